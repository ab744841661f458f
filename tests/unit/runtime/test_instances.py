"""Masks over boxes become pixels of the picture, as Mask R-CNN has them, and take little memory."""

from __future__ import annotations

import json
import tracemalloc
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from numpy.typing import NDArray
from PIL import Image
from torch.nn import functional as F
from torchvision.models.detection.roi_heads import paste_masks_in_image

from vitesse.cli import run
from vitesse.results import Detections, from_run_lengths
from vitesse.runtime.imaging import Placement, place
from vitesse.runtime.overlay import palette
from vitesse.runtime.postprocess import found_objects, pasted
from vitesse.runtime.predictor import Predictor
from vitesse.spec import PreprocessSpec

Arrays = dict[str, NDArray[np.generic]]
LaidOver = Callable[[NDArray[np.float32], NDArray[np.float64], tuple[int, int]], NDArray[np.float64]]
SIDE = 28
CORNERS = st.floats(-40, 100, width=32)


@settings(max_examples=60, deadline=None)
@given(CORNERS, CORNERS, st.floats(0.01, 120), st.floats(0.01, 120), st.integers(0, 99))
def test_pixels_are_those_of_the_formula(
    laid_over: LaidOver, left: float, top: float, width: float, height: float, seed: int
) -> None:
    mask_hw = np.random.default_rng(seed).random((SIDE, SIDE), np.float32)
    corners, size = np.array([left, top, left + width, top + height]), (50, 70)
    found_HW = from_run_lengths(pasted(mask_hw, corners, size))
    expected_HW = laid_over(mask_hw, corners, size)
    clear_HW = np.abs(expected_HW - 0.5) > 1e-4
    assert (found_HW == (expected_HW >= 0.5))[clear_HW].all()


def smooth(seed: int) -> NDArray[np.float32]:
    """A blob as a model gives it."""
    noise = torch.rand(1, 1, 5, 5, generator=torch.Generator().manual_seed(seed)) * 12 - 4
    return F.interpolate(noise, (SIDE, SIDE), mode="bicubic")[0, 0].sigmoid().numpy()


@pytest.mark.parametrize("seed", range(6))
def test_objects_are_nearly_those_of_torchvision_which_rounds_boxes(seed: int) -> None:
    mask_hw, size = smooth(seed), (480, 640)
    corners = np.array([31.3, 20.8, 551.6, 390.1])
    (theirs_HW,) = paste_masks_in_image(
        torch.from_numpy(mask_hw)[None, None], torch.from_numpy(corners)[None].float(), size
    )[:, 0]
    ours_HW, theirs_HW = from_run_lengths(pasted(mask_hw, corners, size)), theirs_HW.numpy() >= 0.5
    assert (ours_HW & theirs_HW).sum() / (ours_HW | theirs_HW).sum() > 0.98


@pytest.mark.parametrize("resize", ["fit", "squash"])
@pytest.mark.parametrize("size", [(300, 500), (700, 240), (20, 31)])
def test_a_mask_is_laid_over_the_whole_box_where_the_picture_ends_before(
    resize: str, size: tuple[int, int], instances: Arrays
) -> None:
    """A disc in the input, part of which is room beside the picture, is cut off and not squeezed."""
    spec = PreprocessSpec(image_size=(96, 128), resize=resize)  # type: ignore[arg-type]
    placement = place(size, spec)
    (disc, *_) = found_objects(
        np.array([[10.0, 40, 128, 96]]),
        np.array([0.9]),
        np.array([1]),
        placement,
        ("ring", "disc"),
        0.5,
        instances["masks"][0, :1],
    )
    mask_HW = disc.mask()
    assert mask_HW is not None
    assert mask_HW.shape == size
    (scale_y, scale_x), (y, x) = placement.scales, (np.indices(size) + 0.5)
    expected_HW = np.hypot((x / scale_x - 69) / 59, (y / scale_y - 68) / 28) < 0.9
    assert (mask_HW ^ expected_HW).sum() <= 0.06 * expected_HW.sum() + 2


def test_a_hundred_objects_of_a_large_picture_take_little_memory() -> None:
    size, rng = (3000, 4000), np.random.default_rng(0)
    corner_N2 = rng.uniform(0, 2000, (100, 2))
    boxes_N4 = np.concatenate([corner_N2, corner_N2 + rng.uniform(300, 1000, (100, 2))], axis=1)
    masks_Nhw = np.stack([smooth(seed) for seed in range(100)])
    scores_N, labels_N = rng.random(100), np.zeros(100, np.int64)
    tracemalloc.start()
    try:
        as_it_is = Placement(size, size, (0, 0), size)
        found = found_objects(boxes_N4, scores_N, labels_N, as_it_is, ("blob",), 0, masks_Nhw)
        kept, most = tracemalloc.get_traced_memory()
    finally:
        tracemalloc.stop()
    assert len(found) == 100
    assert kept < 25e6, "as pixels they would be 1200 MB"
    assert most < 80e6
    assert [one.segmentation is not None and one.segmentation["size"] for one in found] == [[*size]] * 100


@pytest.mark.parametrize("engine", ["onnxruntime", "openvino"])
def test_an_artefact_with_masks_gives_them_in_pixels_of_the_picture(
    instance_artefact: Path, instances: Arrays, laid_over: LaidOver, engine: str
) -> None:
    pixels = np.zeros((128, 192, 3), np.uint8)
    pictures = Predictor(instance_artefact, engine=engine, batch_size=4).predict([pixels, pixels])
    for record in pictures:
        assert isinstance(record, Detections)
        assert record.error is None
        assert [(p.label, round(p.score, 2)) for p in record.predictions] == [("disc", 0.9), ("ring", 0.6)]
        for index, found in enumerate(record.predictions):
            mask_HW = found.mask()
            assert mask_HW is not None
            corners = 2 * instances["boxes"][0, index].astype(np.float64)
            expected_HW = laid_over(instances["masks"][0, index], corners, (128, 192)) >= 0.5
            assert (mask_HW ^ expected_HW).sum() <= 2
            assert mask_HW.any()
    again = Detections.from_dict(json.loads(json.dumps(pictures[0].to_dict())))
    assert again == pictures[0]


def test_the_command_writes_and_draws_masks(
    instance_artefact: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    Image.new("RGB", (96, 64), (90, 90, 90)).save(tmp_path / "a.png")
    model = ["--model", str(instance_artefact), "--engine", "onnxruntime"]
    assert run(["predict", str(tmp_path / "a.png"), *model, "--json", "--save", str(tmp_path / "out")]) == 0
    (disc, ring) = json.loads(capsys.readouterr().out)["predictions"]
    assert disc["segmentation"]["size"] == [64, 96]
    assert from_run_lengths(disc["segmentation"])[32, 24]
    assert not from_run_lengths(ring["segmentation"])[31, 80], "the hole of the ring"
    with Image.open(tmp_path / "out" / "a.labels.jpg") as drawn:
        scale = drawn.width / 96
        inside, hole = (drawn.getpixel((int(x * scale), int(y * scale))) for x, y in ((24.5, 40), (80, 31)))
    colour = np.array(palette(2)[1])
    assert np.abs(inside - colour).sum() < 0.6 * np.abs(90 - colour).sum()
    assert np.abs(np.array(hole) - 90).max() < 12
