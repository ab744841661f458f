"""The classes of the data and those of the model: which index of the model a label means."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from typing import TYPE_CHECKING, TypeVar

import numpy as np

from vitesse.data.contract import Pictures
from vitesse.data.sources import Relabelled
from vitesse.errors import DataError

if TYPE_CHECKING:
    from vitesse.data.sources import Source

P = TypeVar("P", bound=Pictures)


def with_classes(source: Source, class_names: tuple[str, ...]) -> Source:
    """A source whose labels are the indices of a model with these classes.

    Labels stay where the names agree, or where the model has numbers for names, or as many classes as the
    data under names of another kind. Where the names are known to the model at other indices, as in a folder
    that lacks some of the classes, they are moved there. Where the data has numbers for names and the model
    has not, as in ImageNet-V2, the number is the index. Case, spaces and underscores do not matter.

    Raises:
        DataError: a label lies outside the model's classes, or names are none of the model's.
    """
    used = {int(label): source.class_names[label] for label in np.unique(source.labels)}
    index_of = _indices(used, len(source.class_names), class_names)
    check_label(max(index_of.values(), default=0), len(class_names))
    if all(index == label for label, index in index_of.items()):
        return source
    table = np.zeros(max(used) + 1, np.int64)
    table[list(index_of)] = list(index_of.values())
    return Relabelled(source, table[source.labels], class_names)


def same_classes(source: P, class_names: tuple[str, ...]) -> P:
    """A source of boxes or label maps as it is, where its classes are those of a model.

    Case, spaces and underscores do not matter.

    Raises:
        DataError: they are not, or stand in another order.
    """
    if [*map(_plain, source.class_names)] != [*map(_plain, class_names)]:
        raise DataError(
            f"the model has the classes {_listed(class_names)}, the data has {_listed(source.class_names)}: "
            "take data with the model's classes in their order"
        )
    return source


def _listed(names: tuple[str, ...]) -> str:
    return ", ".join(names[:5]) + (f" and {len(names) - 5} more" if len(names) > 5 else "")


def check_label(label: int, num_classes: int) -> None:
    """Refuse what is no index of so many classes.

    Raises:
        DataError: it is beyond them.
    """
    if label >= num_classes:
        raise DataError(f"the model has {num_classes} classes, the data has label {label}")


def _indices(used: Mapping[int, str], data_classes: int, class_names: tuple[str, ...]) -> dict[int, int]:
    """The model's index of each label in use, by the rules of `with_classes`."""
    data_numbered, model_numbered = _numbers(used.values()), _numbers(class_names)
    if data_numbered and not model_numbered:
        return {label: int(name) for label, name in used.items()}
    position = {_plain(name): index for index, name in enumerate(class_names)}
    known = {label: position[_plain(name)] for label, name in used.items() if _plain(name) in position}
    in_place = all(index == label for label, index in known.items())
    named_otherwise = data_numbered != model_numbered or data_classes == len(class_names)
    if in_place and (known or named_otherwise):
        return {label: label for label in used}
    if unknown := [name for label, name in used.items() if label not in known]:
        raise DataError(
            f"{len(unknown)} of the data's {len(used)} classes are none of the model's {len(class_names)}, "
            f"{unknown[0]!r} for one: rename its folders, or take a model of these classes"
        )
    return known


def _numbers(names: Iterable[str]) -> bool:
    return all(map(str.isdecimal, names))


def _plain(name: str) -> str:
    return name.replace("_", " ").casefold()
