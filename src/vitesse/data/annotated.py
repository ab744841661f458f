"""What a user names as data, as a source of boxes or of label maps."""

from __future__ import annotations

from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import Any, Literal, cast

from vitesse.data.ade20k import is_ade20k, open_ade20k
from vitesse.data.camvid import is_camvid, open_camvid
from vitesse.data.cityscapes import is_cityscapes, open_cityscapes
from vitesse.data.coco import find_coco, open_coco, read_coco
from vitesse.data.dense import BoxSource, MapSource
from vitesse.data.mask_folders import is_mask_folder, open_mask_folder, open_mask_yaml
from vitesse.data.voc import is_voc, open_voc
from vitesse.data.yaml_files import YAML_SUFFIXES, describes_maps, find_yaml
from vitesse.data.yolo import is_yolo_folder, open_yolo_folder, open_yolo_yaml
from vitesse.errors import DataError

Kind = Literal["classify", "detect", "segment"]

BOX_LAYOUTS = "COCO's json, YOLO's data.yaml or images/ and labels/, or VOC's Annotations/"
MAP_LAYOUTS = (
    "a YAML file with images and masks, images/ and masks/, or Cityscapes', ADE20K's or CamVid's folders"
)


def open_boxes(data: str | Path | Any, split: str | None = None, *, masks: bool = True) -> BoxSource:
    """The pictures with boxes at `data`.

    Args:
        data: a folder in COCO's, YOLO's or VOC's layout, a COCO json, a YOLO YAML file, or an opened source,
            which is given back.
        split: see `open_source`; a single COCO json is without splits.
        masks: whether to read masks where there are some.

    Raises:
        DataError: the path does not exist, its layout is not one of these, or it lacks the split.
    """
    if hasattr(data, "boxes"):
        return cast(BoxSource, data)
    opener = _box_opener(Path(data), masks)
    if opener is None:
        raise DataError(_not_found(Path(data), f"boxes in {BOX_LAYOUTS}"))
    return opener(split)


def open_maps(data: str | Path | Any, split: str | None = None) -> MapSource:
    """The pictures with label maps at `data`.

    Args:
        data: a folder in one of the layouts of `MAP_LAYOUTS`, a YAML file that describes some, or an opened
            source, which is given back.
        split: see `open_source`.

    Raises:
        DataError: the path does not exist, its layout is not one of these, or it lacks the split.
    """
    if hasattr(data, "label_map"):
        return cast(MapSource, data)
    opener = _map_opener(Path(data))
    if opener is None:
        raise DataError(_not_found(Path(data), f"label maps in {MAP_LAYOUTS}"))
    return opener(split)


def kind_of(data: str | Path | Any) -> Kind:
    """What data is annotated for, by its layout; whatever has neither boxes nor label maps is to classify."""
    if hasattr(data, "boxes") or (_is_path(data) and _box_opener(Path(data), True)):
        return "detect"
    if hasattr(data, "label_map") or (_is_path(data) and _map_opener(Path(data))):
        return "segment"
    return "classify"


def _box_opener(path: Path, masks: bool) -> Callable[[str | None], BoxSource] | None:
    if path.suffix == ".json" and path.is_file():
        return lambda split: read_coco(path, masks=masks)
    if (file := _yaml(path)) is not None:
        return None if describes_maps(file) else partial(open_yolo_yaml, file, masks=masks)
    if not path.is_dir():
        return None
    if find_coco(path):
        return partial(open_coco, path, masks=masks)
    if is_yolo_folder(path):
        return partial(open_yolo_folder, path, masks=masks)
    return partial(open_voc, path) if is_voc(path) else None


def _map_opener(path: Path) -> Callable[[str | None], MapSource] | None:
    if (file := _yaml(path)) is not None:
        return partial(open_mask_yaml, file) if describes_maps(file) else None
    if not path.is_dir():
        return None
    layouts: dict[Callable[[Path], bool], Callable[[Path, str | None], MapSource]] = {
        is_cityscapes: open_cityscapes,
        is_ade20k: open_ade20k,
        is_camvid: open_camvid,
        is_mask_folder: open_mask_folder,
    }
    return next((partial(open_, path) for fits, open_ in layouts.items() if fits(path)), None)


def _yaml(path: Path) -> Path | None:
    """The YAML file that a path is, or that lies in a folder and describes it."""
    if path.is_dir():
        return find_yaml(path)
    return path if path.suffix in YAML_SUFFIXES and path.is_file() else None


def _is_path(data: object) -> bool:
    return isinstance(data, str | Path)


def _not_found(path: Path, expected: str) -> str:
    return f"{path}: expected {expected}" if path.exists() else f"{path}: no such file or folder"
