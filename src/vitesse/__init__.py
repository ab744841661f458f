"""Real-time vision transformers: train them, measure them, ship them.

The public names are loaded when they are first used, so `import vitesse` costs nothing and pulls in no torch.
"""

from __future__ import annotations

import importlib
import sys
from types import ModuleType
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from vitesse.bench import benchmark as benchmark
    from vitesse.evaluate import evaluate as evaluate
    from vitesse.export import export as export
    from vitesse.models import create_model as create_model
    from vitesse.models import list_models as list_models
    from vitesse.predictors import load as load
    from vitesse.predictors import predict as predict
    from vitesse.prune import prune as prune
    from vitesse.runtime.predictor import Predictor as Predictor
    from vitesse.search import search as search
    from vitesse.train import train as train

    __version__: str

_HOMES = {
    "load": "vitesse.predictors",
    "predict": "vitesse.predictors",
    "benchmark": "vitesse.bench",
    "Predictor": "vitesse.runtime.predictor",
    "create_model": "vitesse.models",
    "list_models": "vitesse.models",
}
_VERBS = ("train", "evaluate", "export", "prune", "search")
"""Modules that hold a function of their own name: `vitesse.train(…)` and `vitesse.train.recipe` both work."""
_EXTRAS = {
    "create_model": "torch",
    "list_models": "torch",
    "train": "train",
    "export": "export",
    "benchmark": "bench",
    "prune": "bench",
    "search": "search",
}
"""What brings the packages that a name needs."""

__all__ = [
    "Predictor",
    "__version__",
    "benchmark",
    "create_model",
    "evaluate",
    "export",
    "list_models",
    "load",
    "predict",
    "prune",
    "search",
    "train",
]


class _Verb(ModuleType):
    """A module that is called as the function of its own name."""

    def __call__(self, *args: Any, **options: Any) -> Any:
        return getattr(self, self.__name__.rpartition(".")[2])(*args, **options)


class _Package(ModuleType):
    """Makes the verbs callable when the import system binds them here, whoever imports them first."""

    def __setattr__(self, name: str, value: Any) -> None:
        if name in _VERBS and isinstance(value, ModuleType):
            value.__class__ = _Verb
        super().__setattr__(name, value)


sys.modules[__name__].__class__ = _Package


def __getattr__(name: str) -> Any:
    if name in _VERBS:
        return _import(f"vitesse.{name}", name)
    if name in _HOMES:
        value = getattr(_import(_HOMES[name], name), name)
    elif name == "__version__":
        value = importlib.import_module("importlib.metadata").version("vitesse")
    else:
        raise AttributeError(f"module 'vitesse' has no attribute {name!r}")
    globals()[name] = value
    return value


def _import(module: str, name: str) -> ModuleType:
    if name not in _EXTRAS:
        return importlib.import_module(module)
    from vitesse.errors import from_extra

    with from_extra(_EXTRAS[name]):
        return importlib.import_module(module)


def __dir__() -> list[str]:
    return sorted({*globals(), *__all__})
