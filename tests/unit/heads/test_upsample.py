"""Both forms of enlarging a map, against torch's own resizing."""

from __future__ import annotations

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch.nn import functional as F

from vitesse.heads.segmentation import PixelClasses
from vitesse.heads.upsample import MatrixUpsample, Upsample, cubic_weights

SIDES = st.integers(1, 9)


def resized(x_BCHW: torch.Tensor, factor: int) -> torch.Tensor:
    """torch's bicubic resizing to a size, in float64."""
    size = [side * factor for side in x_BCHW.shape[2:]]
    return F.interpolate(x_BCHW.double(), size=size, mode="bicubic", align_corners=False)


@settings(deadline=None, max_examples=30)
@given(SIDES, SIDES, st.integers(1, 9), st.integers(0, 999))
def test_matrix_products_enlarge_as_torch_does(rows: int, columns: int, factor: int, seed: int) -> None:
    x_BCHW = torch.randn(2, 3, rows, columns, generator=torch.Generator().manual_seed(seed))
    expected = resized(x_BCHW, factor)
    for enlarge in (Upsample(factor), MatrixUpsample(factor)):
        torch.testing.assert_close(enlarge(x_BCHW).double(), expected, rtol=0, atol=1e-5)


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16, torch.float64])
def test_the_dtype_is_kept(dtype: torch.dtype) -> None:
    assert MatrixUpsample(4)(torch.ones(1, 2, 3, 5, dtype=dtype)).dtype == dtype


@pytest.mark.parametrize(("cells", "factor"), [(1, 8), (7, 2), (32, 4), (256, 8)])
def test_the_weights_of_a_position_sum_to_one(cells: int, factor: int) -> None:
    weights = cubic_weights(cells, factor)
    assert weights.shape == (cells + 4, cells * factor)
    torch.testing.assert_close(weights.sum(0), torch.ones(cells * factor), rtol=0, atol=1e-5)


@settings(deadline=None, max_examples=30)
@given(SIDES, SIDES, st.integers(2, 8), st.integers(1, 5), st.integers(0, 999), st.data())
def test_classes_are_the_largest_of_the_enlarged_logits(
    rows: int, columns: int, factor: int, num_classes: int, seed: int, data: st.DataObject
) -> None:
    """Where two are level but for rounding, either may win."""
    logits_BKhw = torch.randn(2, num_classes, rows, columns, generator=torch.Generator().manual_seed(seed))
    size = tuple(data.draw(st.integers((side - 1) * factor + 1, side * factor)) for side in (rows, columns))
    found_BHW = PixelClasses(num_classes, factor)(logits_BKhw, size)
    assert found_BHW.shape == (2, *size)
    assert found_BHW.dtype == torch.int32
    expected_BKHW = resized(logits_BKhw, factor)[:, :, : size[0], : size[1]]
    chosen_BHW = expected_BKHW.gather(1, found_BHW[:, None].long())[:, 0]
    torch.testing.assert_close(chosen_BHW, expected_BKHW.amax(1), rtol=0, atol=1e-5)


def test_of_level_classes_the_first_wins() -> None:
    assert PixelClasses(3, 8)(torch.zeros(1, 3, 2, 2), (16, 16)).sum() == 0
