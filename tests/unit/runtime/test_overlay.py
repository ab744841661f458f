"""Colours over pictures, and the files that hold them."""

from __future__ import annotations

import numpy as np
from PIL import Image

from vitesse.results import Mask, Masks
from vitesse.runtime.gallery import save_masks
from vitesse.runtime.overlay import blend, draw_masks, palette


def square(height: int, width: int, rows: slice, columns: slice) -> np.ndarray:
    mask_HW = np.zeros((height, width), np.bool_)
    mask_HW[rows, columns] = True
    return mask_HW


def found(masks: list[np.ndarray], source: str = "a.jpg") -> Masks:
    predictions = tuple(Mask(mask_HW=mask, score=0.5) for mask in masks)
    return Masks(source=source, model="m", size=masks[0].shape, predictions=predictions)


def test_each_mask_is_laid_on_in_its_colour():
    image = Image.new("L", (8, 6), 100)
    masks = [square(6, 8, slice(1, 5), slice(2, 8)), square(6, 8, slice(0, 1), slice(0, 3))]
    pixels = np.asarray(draw_masks(image, found(masks)))
    for mask_HW, colour in zip(masks, palette(2), strict=True):
        assert (pixels[mask_HW] == np.asarray(blend(image.convert("RGB"), mask_HW, colour))[mask_HW]).all()
    assert (pixels[~(masks[0] | masks[1])] == (100, 100, 100)).all()
    assert np.asarray(image).min() == 100, "the picture itself stays"


def test_files_hold_the_masks_exactly(tmp_path, photo):
    image = photo(40, 30)
    masks = [square(30, 40, slice(2, 9), slice(3, 20)), np.zeros((30, 40), np.bool_)]
    result = found(masks, "https://x.org/a b?.jpg")
    paths = save_masks(tmp_path / "out", image, result)
    assert [path.name for path in paths] == ["a b_.masks.jpg", "a b_.mask-1.png", "a b_.mask-2.png"]
    for path, mask_HW in zip(paths[1:], masks, strict=True):
        with Image.open(path) as saved:
            assert saved.mode == "L"
            assert np.array_equal(np.asarray(saved), 255 * mask_HW.astype(np.uint8))
    with Image.open(paths[0]) as drawn:
        expected = np.asarray(blend(image, masks[0], palette(2)[0]), np.float64)
        assert np.abs(np.asarray(drawn, np.float64) - expected).mean() < 12
