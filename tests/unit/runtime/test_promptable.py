"""Prompts in the picture's pixels to masks in them, with a model whose masks are the boxes themselves."""

from __future__ import annotations

import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from PIL import Image
from torch.nn import functional as F
from torchvision.transforms import functional as transforms

from vitesse.errors import ArtefactError, ConfigError, EngineError, ImageError
from vitesse.predictors import load, load_masks
from vitesse.runtime.artefact import Artefact, decoder_path, read_artefact
from vitesse.runtime.engines import available_engines, create_engine
from vitesse.runtime.promptable import (
    OBJECTS_A_RUN,
    MaskPredictor,
    as_prompts,
    fitted,
    fitted_size,
    in_picture,
)
from vitesse.spec import PROMPT_FRAME, PreprocessSpec

Photo = Callable[..., Image.Image]
SIZES = [
    (300, 400),
    (400, 300),
    (768, 1024),
    (37, 1500),
    (1500, 37),
    (1, 1),
    (3, 5000),
    (333, 1000),
    (5, 2048),
]
ANY_SIZE = pytest.mark.parametrize("size", SIZES, ids=str)
PHOTO = (300, 400)


@pytest.fixture(scope="module")
def sam(make_promptable: Callable[..., Path]) -> MaskPredictor:
    return MaskPredictor(make_promptable(), engine="onnxruntime", threads=1)


@pytest.fixture
def seeing(sam: MaskPredictor, photo: Photo) -> MaskPredictor:
    """Looks at a picture 400 wide and 300 high."""
    sam.set_image(photo(400, 300))
    return sam


def corners(mask: Any) -> tuple[int, ...]:
    left, top, width, height = mask.bbox
    assert mask.area == width * height
    return left, top, left + width, top + height


def test_each_box_gives_its_mask_in_the_order_asked(seeing):
    boxes = [(i, 2 * i, 200 + 10 * i, 150 + 5 * i) for i in range(2 * OBJECTS_A_RUN + 1)]
    result = seeing.predict(boxes=boxes)
    assert (result.size, len(result.predictions), result.model) == (PHOTO, len(boxes), "tiny_sam")
    for mask, box in zip(result.predictions, boxes, strict=True):
        assert corners(mask) == pytest.approx(box, abs=1)


def test_points_are_one_object_and_may_stand_beside_a_box(seeing):
    (mask,) = seeing.predict(points=[(20, 10, 0), (200, 120)]).predictions
    assert corners(mask) == pytest.approx((0, 0, 200, 120), abs=1)
    (mask,) = seeing.predict(points=[(20, 10)], boxes=[(50, 60, 200, 120)]).predictions
    assert corners(mask) == pytest.approx((50, 60, 200, 120), abs=1)


def test_of_several_masks_the_one_expected_to_be_best(seeing):
    box = (100, 50, 300, 250)
    (best,) = seeing.predict(boxes=[box], multimask=True).predictions
    assert best.score == pytest.approx(0.9)
    margin = 64 * 400 / PROMPT_FRAME
    assert corners(best) == pytest.approx((100 + margin, 50 + margin, 300 - margin, 250 - margin), abs=1)


def test_the_picture_is_the_last_one_set(sam):
    scores = []
    for level in (0, 100):
        sam.set_image(np.full((64, 64, 3), level, np.uint8))
        scores.append(sam.predict(points=[(1, 1)]).predictions[0].score)
    black, grey = (
        np.mean((level / 255 - np.array([0.485, 0.456, 0.406])) / [0.229, 0.224, 0.225]) for level in (0, 100)
    )
    assert scores == pytest.approx([max(0, 0.5 + black), max(0, 0.5 + grey)], abs=1e-5)


@pytest.mark.parametrize("kind", ["path", "text", "bytes", "named", "opened", "array"])
def test_a_picture_comes_as_any_source(sam, photo, encode, tmp_path, kind):
    data = encode(photo(40, 30), "PNG")
    (tmp_path / "a.png").write_bytes(data)
    source, name = {
        "path": (tmp_path / "a.png", str(tmp_path / "a.png")),
        "text": (str(tmp_path / "a.png"), str(tmp_path / "a.png")),
        "bytes": (data, "input 0"),
        "named": (("sample:a", data), "sample:a"),
        "opened": (photo(40, 30), "input 0"),
        "array": (np.asarray(photo(40, 30)), "input 0"),
    }[kind]
    sam.set_image(source)
    result = sam.predict(boxes=[(0, 0, 20, 30)])
    assert (result.source, result.size) == (name, (30, 40))
    assert corners(result.predictions[0]) == pytest.approx((0, 0, 20, 30), abs=1)


def test_a_refused_picture_is_named_and_no_other_is_seen_in_its_place(seeing, tmp_path):
    (tmp_path / "bad.jpg").write_bytes(b"\xff\xd8\xff broken")
    with pytest.raises(ImageError, match=r"bad\.jpg: "):
        seeing.set_image(tmp_path / "bad.jpg")
    with pytest.raises(ConfigError, match="expected a picture first"):
        seeing.predict(points=[(1, 1)])


@pytest.mark.parametrize(
    ("prompts", "message"),
    [
        ({}, "expected a point or a box to say which object is meant, got neither"),
        ({"points": [(400, 2)]}, "point 400,2: outside the picture of 400x300 pixels"),
        ({"points": [(-0.5, 2)]}, "point -0.5,2: outside the picture"),
        ({"points": [(2, 300, 0)]}, "point 2,300: outside the picture"),
        ({"points": [(2, 3, 2)]}, "point 2,3: expected label 1, of the object, or 0, outside it, got 2"),
        ({"points": [(2, float("nan"))]}, "point: expected x,y or x,y,label in pixels"),
        ({"points": (2, 3)}, "point: expected x,y or x,y,label in pixels of the picture, got 2"),
        ({"points": ["ab"]}, "point: expected x,y or x,y,label in pixels of the picture, got 'ab'"),
        ({"boxes": [(5, 5, 5, 9)]}, "box 5,5,5,9: expected left < right and top < bottom, this has no area"),
        ({"boxes": [(9, 5, 3, 9)]}, "this has no area"),
        ({"boxes": [(-1, 5, 3, 9)]}, "box -1,5,3,9: reaches out of the picture of 400x300 pixels"),
        ({"boxes": [(1, 5, 3, 9), (1, 5, 401, 9)]}, "box 1,5,401,9: reaches out"),
        ({"boxes": [(1, 5, 3)]}, "box: expected left,top,right,bottom in pixels of the picture, got"),
        ({"points": [(1, 1)], "boxes": [(0, 0, 2, 2)] * 2}, "expected at most one box beside points, got 2"),
    ],
)
def test_prompts_that_mean_nothing_are_refused_in_one_line(seeing, prompts, message):
    with pytest.raises(ConfigError) as caught:
        seeing.predict(**prompts)
    assert message in str(caught.value)
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize("engine", available_engines())
def test_engines_agree(make_promptable, photo, engine):
    predictor = MaskPredictor(make_promptable(), engine=engine, threads=1)
    predictor.set_image(photo(400, 300))
    result = predictor.predict(boxes=[(40, 60, 320, 240)])
    assert corners(result.predictions[0]) == pytest.approx((40, 60, 320, 240), abs=1)
    with pytest.raises(EngineError, match="expected a batch"):
        predictor._decoder.run(np.zeros((1, 2, 4), np.float32), np.zeros((1, 3, 8, 8), np.float32))
    with pytest.raises(EngineError, match="failed"):
        predictor._decoder.run(np.zeros((1, 2, 3), np.float32))


# The geometry, against segment-anything's recipe in torch.


@ANY_SIZE
@pytest.mark.parametrize("side", [512, 1024])
def test_a_picture_is_fitted_as_sam_does(photo, size, side):
    image = photo(size[1], size[0])
    spec = PreprocessSpec(image_size=(side, side), resize="fit", interpolation="bilinear")
    scale = side / max(size)
    expected_size = [max(1, int(length * scale + 0.5)) for length in size]
    assert fitted_size(size, side) == tuple(expected_size)
    resized = transforms.to_tensor(transforms.resize(image, expected_size))
    normalised = transforms.normalize(resized, spec.mean, spec.std)
    expected = F.pad(normalised, (0, side - expected_size[1], 0, side - expected_size[0]))
    np.testing.assert_allclose(fitted(image, spec), expected.numpy(), atol=1e-5)


@ANY_SIZE
def test_logits_reach_the_picture_as_sam_does(size):
    logits = torch.randn(256, 256, generator=torch.Generator().manual_seed(0))
    height, width = fitted_size(size, PROMPT_FRAME)
    framed = F.interpolate(logits[None, None], (PROMPT_FRAME, PROMPT_FRAME), mode="bilinear")
    expected = F.interpolate(framed[..., :height, :width], size, mode="bilinear")[0, 0]
    np.testing.assert_allclose(in_picture(logits.numpy(), size), expected.numpy(), atol=1e-4)


def test_prompts_live_in_the_frame_and_points_without_box_are_padded():
    assert as_prompts([(400, 150), (10, 20, 0)], (), (300, 800)).tolist() == [
        [[512, 192, 1], pytest.approx([12.8, 25.6, 0]), [0, 0, -1]]
    ]
    both = as_prompts([(400, 150)], [(0, 0, 800, 300)], (300, 800))
    assert both.tolist() == [[[512, 192, 1], [0, 0, 2], [1024, 384, 3]]]
    assert as_prompts((), [(0, 0, 800, 300), (8, 3, 80, 30)], (300, 800)).shape == (2, 2, 3)
    # 333 of 1000 pixels are 340.992 of 1024, 341 in whole ones: vertically prompts follow that.
    assert as_prompts([(0, 111)], (), (333, 1000))[0, 0, 1] == pytest.approx(111 * 341 / 333)


@settings(max_examples=25, deadline=None)
@given(st.integers(1, 900), st.integers(1, 900), st.floats(0, 0.999), st.floats(0, 0.999))
def test_masks_come_back_to_where_prompts_went(height, width, down, across):
    """Logits that are the frame's own coordinates; at the edges the outermost logits go on."""
    row, column = int(down * height), int(across * width)
    ((point, _),) = as_prompts([(column + 0.5, row + 0.5)], (), (height, width))
    centres = (np.arange(256, dtype=np.float32) + 0.5) * PROMPT_FRAME / 256
    frame = fitted_size((height, width), PROMPT_FRAME)
    for axis, wanted in ((1, point[0]), (0, point[1])):
        logits = np.broadcast_to(centres if axis else centres[:, None], (256, 256))
        found = in_picture(logits, (height, width))[row, column]
        inner = 2.5 < wanted < frame[axis] - 2.5
        assert found == pytest.approx(wanted, abs=0.01 if inner else 2.5)


# The two files.


def test_the_pair_is_checked(make_promptable, tiny_artefact, tmp_path):
    path = make_promptable()
    encoder = read_artefact(path)
    assert decoder_path(Path("a/sam.v2.onnx")) == Path("a/sam.v2.decoder.onnx")
    with pytest.raises(ArtefactError, match=r"sam\.decoder\.onnx: expected an encoder, this is a decoder"):
        MaskPredictor(decoder_path(path))
    with pytest.raises(
        ArtefactError, match="expected a model for promptable masks, this one's task is classify"
    ):
        MaskPredictor(tiny_artefact)
    alone = tmp_path / "x.onnx"
    shutil.copy(path, alone)
    with pytest.raises(ArtefactError, match=r"expected its decoder beside it, there is no x\.decoder\.onnx"):
        MaskPredictor(alone)
    shutil.copy(path, decoder_path(alone))
    with pytest.raises(ArtefactError, match=r"expected the decoder of x\.onnx, this is another"):
        MaskPredictor(alone)
    shutil.copy(decoder_path(path), decoder_path(alone))
    assert MaskPredictor(alone, engine="onnxruntime").artefact.sha256 == encoder.sha256


def test_a_decoder_whose_graph_takes_pictures_is_refused(make_artefact, make_promptable):
    manifest = read_artefact(make_promptable()).manifest.to_dict()
    with pytest.raises(ArtefactError, match=r"the manifest says prompts \(N, P, 3\), the graph takes"):
        read_artefact(make_artefact(manifest | {"decoder": ""}))


def test_loading_says_what_the_file_is_for(make_promptable, tmp_path):
    path = make_promptable()
    assert isinstance(load_masks(path, engine="onnxruntime"), MaskPredictor)
    with pytest.raises(ConfigError, match="use `vitesse segment`"):
        load(path)
    with pytest.raises(ConfigError, match=r"m\.safetensors: expected an artefact, this is a checkpoint"):
        load_masks(tmp_path / "m.safetensors")


def test_the_decoder_runs_on_the_engine_that_was_chosen_for_the_encoder(make_promptable, monkeypatch):
    made: list[tuple[str, str]] = []

    def create(artefact: Artefact, name: str, *args: Any, **options: Any) -> Any:
        made.append((artefact.path.name, name))
        return create_engine(artefact, "onnxruntime")

    monkeypatch.setattr("vitesse.runtime.promptable.create_engine", create)
    MaskPredictor(make_promptable())
    assert made == [("sam.onnx", "auto"), ("sam.decoder.onnx", "onnxruntime")]
