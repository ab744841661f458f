"""Colours over pictures, and the files that hold them."""

from __future__ import annotations

import numpy as np
import pytest
from PIL import Image

from vitesse.results import Mask, Masks
from vitesse.runtime.drawing import save_masks
from vitesse.runtime.overlay import blend, palette


def square(height: int, width: int, rows: slice, columns: slice) -> np.ndarray:
    mask_HW = np.zeros((height, width), np.bool_)
    mask_HW[rows, columns] = True
    return mask_HW


def test_colours_differ_and_more_begin_with_the_same():
    many = palette(40)
    assert palette(7) == many[:7]
    assert palette(0) == []
    assert all(0 <= channel <= 255 for colour in many for channel in colour)
    eight = np.asarray(many[:8], np.float64)
    apart = np.linalg.norm(eight[:, None] - eight[None], axis=2) + 1e9 * np.eye(8)
    assert apart.min() > 60


def test_a_mask_is_half_colour_inside_and_all_colour_at_its_edge():
    image = Image.new("L", (8, 6), 100)
    mask_HW = square(6, 8, slice(1, 5), slice(2, 8))
    pixels = np.asarray(blend(image, mask_HW, (200, 0, 50)))
    inner = square(6, 8, slice(2, 4), slice(3, 7))
    assert (pixels[inner] == (150, 50, 75)).all()
    assert (pixels[mask_HW & ~inner] == (200, 0, 50)).all(), "the picture's own edge is an edge of the mask"
    assert (pixels[~mask_HW] == (100, 100, 100)).all()
    assert np.asarray(image).min() == 100, "the picture itself stays"


def test_a_mask_of_another_size_is_refused():
    with pytest.raises(ValueError, match=r"expected a mask of \(6, 8\), got \(8, 6\)"):
        blend(Image.new("RGB", (8, 6)), np.zeros((8, 6), np.bool_), (1, 2, 3))


def test_files_hold_the_masks_exactly(tmp_path, photo):
    image = photo(40, 30)
    masks = [square(30, 40, slice(2, 9), slice(3, 20)), np.zeros((30, 40), np.bool_)]
    result = Masks(
        source="https://x.org/a b?.jpg",
        model="m",
        size=(30, 40),
        predictions=tuple(Mask(mask_HW=mask, score=0.5) for mask in masks),
    )
    paths = save_masks(tmp_path / "out", image, result)
    assert [path.name for path in paths] == ["a b_.masks.jpg", "a b_.mask-1.png", "a b_.mask-2.png"]
    for path, mask_HW in zip(paths[1:], masks, strict=True):
        with Image.open(path) as saved:
            assert saved.mode == "L"
            assert np.array_equal(np.asarray(saved), 255 * mask_HW.astype(np.uint8))
    with Image.open(paths[0]) as drawn:
        expected = np.asarray(blend(image, masks[0], palette(2)[0]), np.float64)
        assert np.abs(np.asarray(drawn, np.float64) - expected).mean() < 12
