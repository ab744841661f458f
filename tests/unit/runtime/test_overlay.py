"""Masks in colours over pictures, and the files that hold them."""

from __future__ import annotations

import numpy as np
import pytest
from PIL import Image

from vitesse.results import Mask, Masks
from vitesse.runtime.gallery import save_masks
from vitesse.runtime.overlay import draw_masks, palette


@pytest.fixture
def result() -> Masks:
    """A rectangle, nothing, and a second rectangle that overlaps the first."""
    masks = np.zeros((3, 30, 40), np.bool_)
    masks[0, 2:9, 3:20] = masks[2, 5:25, 15:30] = True
    return Masks(
        source="https://x.org/a b?.jpg",
        model="m",
        size=(30, 40),
        predictions=tuple(Mask(mask_HW=mask_HW, score=0.5) for mask_HW in masks),
    )


def test_colours_differ_and_more_begin_with_the_same():
    many = palette(40)
    assert palette(7) == many[:7]
    assert len(palette(0)) == 0
    eight = np.asarray(many[:8], np.float64)
    apart = np.linalg.norm(eight[:, None] - eight[None], axis=2) + 1e9 * np.eye(8)
    assert apart.min() > 50


def test_every_mask_is_tinted_by_its_own_colour_and_nothing_else_is(result):
    image = Image.new("L", (40, 30), 100)
    drawn = np.asarray(draw_masks(image, result), np.float64)
    first, nothing, second = (mask.mask_HW for mask in result.predictions)
    assert not nothing.any()
    assert (drawn[~first & ~second] == 100).all()
    assert np.asarray(image).min() == np.asarray(image).max() == 100, "the picture itself stays"
    for mask_HW, colour in ((first & ~second, palette(3)[0]), (second & ~first, palette(3)[2])):
        shown, own = drawn[mask_HW], np.asarray(colour, np.float64)
        assert (shown == shown[0]).all()
        share = np.dot(shown[0] - 100, own - 100) / np.dot(own - 100, own - 100)
        assert 0.3 < share < 0.8, "neither hidden nor hiding"
        np.testing.assert_allclose(shown[0], 100 + share * (own - 100), atol=1)


def test_files_hold_the_masks_exactly(result, tmp_path, photo):
    image = photo(40, 30)
    paths = save_masks(tmp_path / "out", image, result)
    assert [path.name for path in paths] == ["a b_.masks.jpg", *(f"a b_.mask-{i}.png" for i in (1, 2, 3))]
    for path, mask in zip(paths[1:], result.predictions, strict=True):
        with Image.open(path) as saved:
            assert saved.mode == "L"
            assert np.array_equal(np.asarray(saved), 255 * mask.mask_HW.astype(np.uint8))
    with Image.open(paths[0]) as drawn:
        expected = np.asarray(draw_masks(image, result), np.float64)
        assert np.abs(np.asarray(drawn, np.float64) - expected).mean() < 12
