"""`vitesse` itself: names that load when used."""

from __future__ import annotations

import subprocess
import sys

import pytest

import vitesse


def test_public_names_are_listed():
    assert set(vitesse.__all__) <= set(dir(vitesse))


def test_an_unknown_name_is_an_attribute_error():
    with pytest.raises(AttributeError, match="no attribute 'nonsense'"):
        _ = vitesse.nonsense


def test_the_predictor_is_the_runtimes():
    from vitesse.runtime.predictor import Predictor

    assert vitesse.Predictor is Predictor


def test_the_version_is_the_installed_one():
    from importlib.metadata import version

    assert vitesse.__version__ == version("vitesse")


def test_a_verb_is_callable_however_it_was_imported():
    code = """
import sys, types, importlib.abc, importlib.machinery
import vitesse
class Finder(importlib.abc.MetaPathFinder, importlib.abc.Loader):
    def find_spec(self, name, path=None, target=None):
        if name in ("vitesse.evaluate", "vitesse.export"):
            return importlib.machinery.ModuleSpec(name, self)
    def exec_module(self, module):
        name = module.__name__.rpartition(".")[2]
        setattr(module, name, lambda *args, **options: (name, args, options))
sys.meta_path.insert(0, Finder())
from vitesse.evaluate import evaluate as function
assert function(1) == ("evaluate", (1,), {}) == vitesse.evaluate(1)
assert vitesse.export(2, to=3) == ("export", (2,), {"to": 3})
assert vitesse.evaluate is sys.modules["vitesse.evaluate"]
"""
    subprocess.run([sys.executable, "-c", code], check=True)
