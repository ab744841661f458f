"""What happens to a picture happens to its boxes, masks and label map: painted objects tell."""

from __future__ import annotations

import io
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from hypothesis import example, given, settings
from hypothesis import strategies as st
from PIL import Image

from vitesse.data.boxes import BoxFiles, Drawn
from vitesse.data.dense import IGNORE, Boxes
from vitesse.data.joint import AugmentBoxes, AugmentMaps, BoxTarget
from vitesse.data.loader import AugmentedPictures, Batch, training_batches
from vitesse.data.maps import Legend, MapFiles
from vitesse.data.masks import decode_masks, encode_masks
from vitesse.data.sampler import Key, Share, ShuffledKeys
from vitesse.data.transforms import FILL
from vitesse.errors import ImageError

COLOURS = np.array([[250, 0, 0], [0, 250, 0], [0, 0, 250]], np.uint8)
CROPS = ("jitter", "overlap", "none")


def encoded(pixels_HWC: np.ndarray, kind: str = "PNG") -> bytes:
    stream = io.BytesIO()
    Image.fromarray(pixels_HWC).save(stream, kind, quality=95)
    return stream.getvalue()


def boxes_of(corners: Any, size: tuple[int, int], masks_NHW: np.ndarray | None = None) -> Boxes:
    corners_N4 = np.array(corners, np.float32).reshape(-1, 4)
    count = len(corners_N4)
    return Boxes(
        boxes_N4=corners_N4,
        labels_N=np.arange(count, dtype=np.int64),
        crowd_N=np.arange(count) % 2 == 1,
        area_N=np.ones(count, np.float32),
        size=size,
        masks=None if masks_NHW is None else encode_masks(masks_NHW),
    )


def painted(size: tuple[int, int], seed: int, masks: bool = False) -> tuple[np.ndarray, Boxes]:
    """A black picture with one rectangle of each colour, apart from each other."""
    rng = np.random.default_rng(seed)
    height, width = size
    pixels_HWC, masks_NHW = np.zeros((*size, 3), np.uint8), np.zeros((3, *size), bool)
    corners = []
    for number in range(3):  # each in a third of the width
        low, high = width * number // 3, width * (number + 1) // 3
        left, right = sorted(rng.choice(np.arange(low + 1, high), 2, replace=False).tolist())
        top, bottom = sorted(rng.choice(height + 1, 2, replace=False).tolist())
        pixels_HWC[top:bottom, left:right] = COLOURS[number]
        masks_NHW[number, top:bottom, left:right] = True
        corners.append((left, top, right, bottom))
    return pixels_HWC, boxes_of(corners, size, masks_NHW if masks else None)


def coloured(x_CHW: torch.Tensor) -> np.ndarray:
    """Which pixels show each rectangle, (3, H, W)."""
    x_HWC = x_CHW.permute(1, 2, 0).numpy().astype(int)
    return (np.abs(x_HWC[None] - COLOURS[:, None, None]) < 110).all(axis=-1)


@given(
    height=st.integers(20, 120),
    width=st.integers(20, 120),
    size=st.tuples(st.integers(16, 100), st.integers(16, 100)),
    crop=st.sampled_from(CROPS),
    hflip=st.sampled_from([0.0, 1.0]),
    masks=st.booleans(),
    seed=st.integers(0, 999),
)
@example(height=50, width=20, size=(29, 16), crop="overlap", hflip=0.0, masks=False, seed=239)  # rounding
@settings(max_examples=60, deadline=None)
def test_boxes_and_masks_stay_on_their_objects(
    height: int, width: int, size: tuple[int, int], crop: Any, hflip: float, masks: bool, seed: int
) -> None:
    pixels_HWC, boxes = painted((height, width), seed, masks)
    augment = AugmentBoxes(size, crop=crop, scale=(0.5, 2.0), hflip=hflip)
    torch.manual_seed(seed)
    x_CHW, target = augment(encoded(pixels_HWC), boxes)
    assert (x_CHW.shape, x_CHW.dtype) == ((3, *size), torch.uint8)
    assert type(x_CHW) is type(target.boxes_N4) is torch.Tensor
    shown = coloured(x_CHW)
    for at, label in enumerate(target.labels_N.tolist()):
        left, top, right, bottom = target.boxes_N4[at].tolist()
        assert target.crowd_N[at] == (label == 1)
        assert 0 <= left <= right - 1 <= size[1] - 1
        assert 0 <= top <= bottom - 1 <= size[0] - 1
        rows, columns = np.nonzero(shown[label])
        if min(right - left, bottom - top) < 4:  # blurred into what surrounds it
            continue
        found = (columns.min(), rows.min(), columns.max() + 1, rows.max() + 1)
        np.testing.assert_allclose(found, (left, top, right, bottom), atol=2.0)
        if masks:
            assert target.masks_NHW is not None
            mask_HW = target.masks_NHW[at].numpy().astype(bool)
            assert (mask_HW ^ shown[label]).sum() <= 2 * (right - left + bottom - top) + 8
    missing = set(range(3)) - set(target.labels_N.tolist())
    for label in missing:  # what is left out is hardly to be seen, or thinner than a pixel
        area = (boxes.boxes_N4[label, 2:] - boxes.boxes_N4[label, :2]).prod()
        zoom = max(1.0, 2 * max(size[0] / height, size[1] / width)) ** 2
        assert shown[label].sum() <= max(0.2 * area * zoom, 2 * max(size))


@pytest.mark.parametrize(("size", "resized"), [((60, 40), (30, 40)), ((30, 90), (30, 40))])
def test_the_whole_picture_fits_and_is_padded_right_and_below(
    size: tuple[int, int], resized: tuple[int, int]
) -> None:
    """A white picture of 45 x 60 keeps its proportions; the rest is the mean colour."""
    white = encoded(np.full((45, 60, 3), 255, np.uint8))
    for hflip in (0.0, 1.0):
        x_CHW, target = AugmentBoxes(size, crop="none", hflip=hflip)(
            white, boxes_of([[0, 0, 60, 45]], (45, 60))
        )
        assert target.boxes_N4.tolist() == [[0, 0, resized[1], resized[0]]]
        inside = torch.zeros(size, dtype=torch.bool)
        inside[: resized[0], : resized[1]] = True
        assert (x_CHW[:, inside] == 255).all()
        assert (x_CHW[:, ~inside] == torch.tensor(FILL)[:, None]).all()


def test_mirroring_is_mirroring() -> None:
    pixels_HWC, boxes = painted((40, 60), 1, masks=True)
    plain, mirrored = (
        AugmentBoxes((40, 60), crop="none", hflip=hflip)(encoded(pixels_HWC), boxes) for hflip in (0.0, 1.0)
    )
    assert torch.equal(plain[0], mirrored[0].flip(2))
    assert plain[1].masks_NHW is not None
    assert mirrored[1].masks_NHW is not None
    assert torch.equal(plain[1].masks_NHW, mirrored[1].masks_NHW.flip(2))
    np.testing.assert_array_equal(plain[1].masks_NHW, decode_masks(boxes.masks or (), boxes.size))
    assert torch.equal(plain[1].boxes_N4[:, 0], 60 - mirrored[1].boxes_N4[:, 2])


def test_boxes_that_are_hardly_seen_are_left_out() -> None:
    """Twice the size of the canvas, a random part is shown; objects are rows of small boxes."""
    corners = [[x, 0, x + 10, 100] for x in range(0, 100, 10)]
    picture, boxes = encoded(np.zeros((100, 100, 3), np.uint8)), boxes_of(corners, (100, 100))
    for seed in range(20):
        kept = {}
        for share in (0.0, 0.45, 1.0):
            torch.manual_seed(seed)
            augment = AugmentBoxes((50, 50), scale=(2.0, 2.0), hflip=0.0, min_visible=share)
            _, target = augment(picture, boxes)
            kept[share] = set(target.labels_N.tolist())
            widths = (target.boxes_N4[:, 2] - target.boxes_N4[:, 0]).tolist()
            assert min(widths, default=1) >= 1
            assert all(width >= 2 * share * 5 for width in widths) or share == 1.0
        assert kept[1.0] <= kept[0.45] <= kept[0.0]
        assert kept[1.0] == set()  # only half of the height is seen
        assert 4 <= len(kept[0.45]) <= 6


def test_a_mask_that_is_not_seen_leaves_no_object() -> None:
    """The box is seen, its mask is in the corner that is not."""
    mask_NHW = np.zeros((1, 100, 100), bool)
    mask_NHW[0, :2, :2] = True
    boxes = boxes_of([[0, 0, 100, 100]], (100, 100), mask_NHW)
    picture, counts = encoded(np.zeros((100, 100, 3), np.uint8)), set()
    for seed in range(30):
        torch.manual_seed(seed)
        _, target = AugmentBoxes((50, 50), scale=(2.0, 2.0))(picture, boxes)
        assert target.masks_NHW is not None
        assert len(target.labels_N) == len(target.masks_NHW) == int(target.masks_NHW.any())
        counts.add(len(target.labels_N))
    assert 0 in counts


def test_many_objects_take_turns() -> None:
    corners_N2 = np.stack(np.meshgrid(np.arange(100), np.arange(100)), axis=-1).reshape(-1, 2)
    boxes = boxes_of(np.concatenate([corners_N2, corners_N2 + 1], axis=1), (100, 100))
    picture = encoded(np.zeros((100, 100, 3), np.uint8))
    augment = AugmentBoxes((100, 100), crop="none", hflip=0.0, max_objects=300)
    drawn = [augment(picture, boxes)[1].labels_N for _ in range(2)]
    assert [len(labels) for labels in drawn] == [300, 300]
    assert drawn[0].tolist() != drawn[1].tolist()
    assert (
        len(AugmentBoxes((100, 100), crop="none", max_objects=10_000)(picture, boxes)[1].labels_N) == 10_000
    )


@pytest.mark.parametrize("crop", CROPS)
def test_pictures_without_objects_and_tiny_ones_are_augmented(crop: Any) -> None:
    for size in ((30, 40), (1, 1), (3, 200)):
        picture = encoded(np.zeros((*size, 3), np.uint8))
        for masks_NHW in (None, np.zeros((0, *size), bool)):
            x_CHW, target = AugmentBoxes((24, 24), crop=crop)(picture, boxes_of([], size, masks_NHW))
            assert x_CHW.shape == (3, 24, 24)
            assert target.boxes_N4.shape == (0, 4)
            assert (target.masks_NHW is None) == (masks_NHW is None)
        whole = boxes_of([[0, 0, size[1], size[0]]], size)
        AugmentBoxes((24, 24), crop=crop)(picture, whole)


@pytest.mark.parametrize("crop", CROPS)
def test_a_large_jpeg_is_decoded_small_with_its_boxes(crop: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    import vitesse.data.joint as joint

    fractions: list[int] = []
    decode = joint.decode

    def watched(*arguments: Any) -> Any:
        decoded = decode(*arguments)
        fractions.append(decoded.fraction)
        return decoded

    monkeypatch.setattr(joint, "decode", watched)
    pixels_HWC, boxes = painted((901, 1203), 4)
    augment = AugmentBoxes((60, 80), crop=crop, scale=(0.5, 1.0))
    found = []
    for kind in ("JPEG", "PNG"):
        torch.manual_seed(2)
        found.append(augment(encoded(pixels_HWC, kind), boxes)[1])
    assert fractions[0] > fractions[1] == 1
    assert torch.equal(found[0].labels_N, found[1].labels_N)
    torch.testing.assert_close(found[0].boxes_N4, found[1].boxes_N4, atol=1.0, rtol=0)


def test_annotations_for_another_size_are_refused() -> None:
    picture = encoded(np.zeros((30, 40, 3), np.uint8))
    with pytest.raises(
        ImageError, match="expected 30x40 pixels as its annotations are for, the picture has 40x30"
    ):
        AugmentBoxes((24, 24))(picture, boxes_of([], (40, 30)))
    with pytest.raises(ImageError, match="expected 20x15 pixels"):
        AugmentMaps((24, 24))(picture, np.zeros((15, 20), np.uint8))


def test_colour_jitter_leaves_geometry_and_padding_alone() -> None:
    pixels_HWC, boxes = painted((40, 60), 3)
    found = []
    for strength in (0.0, 0.9):
        torch.manual_seed(5)
        found.append(
            AugmentBoxes((60, 60), scale=(0.6, 0.6), color_jitter=strength)(encoded(pixels_HWC), boxes)
        )
    assert torch.equal(found[0][1].boxes_N4, found[1][1].boxes_N4)
    assert not torch.equal(found[0][0], found[1][0])
    assert (found[1][0][:, -1, -1] == torch.tensor(FILL)).all()


@given(
    height=st.integers(10, 90),
    width=st.integers(10, 90),
    size=st.tuples(st.integers(8, 80), st.integers(8, 80)),
    short_side=st.none() | st.integers(10, 90),
    seed=st.integers(0, 999),
)
@settings(max_examples=40, deadline=None)
def test_labels_stay_on_their_pixels(
    height: int, width: int, size: tuple[int, int], short_side: int | None, seed: int
) -> None:
    """Each label has a grey of its own, in stripes wide enough to survive a halving."""
    rng = np.random.default_rng(seed)
    stripes = rng.integers(0, 3, (height // 8 + 1, width // 8 + 1))
    labels_HW = stripes.repeat(8, 0).repeat(8, 1)[:height, :width].astype(np.uint8)
    greys_HWC = (labels_HW[..., None] * 100).repeat(3, axis=2).astype(np.uint8)
    torch.manual_seed(seed)
    augment = AugmentMaps(size, short_side=short_side)
    x_CHW, map_HW = augment(encoded(greys_HWC), labels_HW)
    assert (x_CHW.shape, map_HW.shape) == ((3, *size), size)
    assert x_CHW.dtype == map_HW.dtype == torch.uint8
    assert type(map_HW) is torch.Tensor
    seen = map_HW != IGNORE
    assert (x_CHW[:, ~seen] == torch.tensor(FILL)[:, None]).all()
    rows, columns = torch.nonzero(seen, as_tuple=True)
    assert len(rows) == (rows.max() - rows.min() + 1) * (columns.max() - columns.min() + 1)
    nearest = (x_CHW[0][seen].float() / 100).round().to(torch.uint8)
    scale = augment.scale[0] * (short_side / min(height, width) if short_side else 1)
    if scale > 0.4:
        assert (nearest == map_HW[seen]).float().mean() > 0.6


def test_turning_upside_down_is_turning_upside_down() -> None:
    pixels_HWC, boxes = painted((40, 60), 1, masks=True)
    plain, turned = (
        AugmentBoxes((40, 60), crop="none", hflip=0.0, vflip=vflip)(encoded(pixels_HWC), boxes)
        for vflip in (0.0, 1.0)
    )
    assert torch.equal(plain[0], turned[0].flip(1))
    assert plain[1].masks_NHW is not None
    assert turned[1].masks_NHW is not None
    assert torch.equal(plain[1].masks_NHW, turned[1].masks_NHW.flip(1))
    assert torch.equal(plain[1].boxes_N4[:, 1], 40 - turned[1].boxes_N4[:, 3])
    labels_HW = np.arange(12, dtype=np.uint8).reshape(3, 4)
    pixels_HWC = np.repeat(labels_HW[:, :, None], 3, axis=2)
    augment = AugmentMaps((3, 4), scale=(1, 1), hflip=1.0, vflip=1.0)
    x_CHW, map_HW = augment(encoded(pixels_HWC), labels_HW)
    np.testing.assert_array_equal(map_HW, labels_HW[::-1, ::-1])
    np.testing.assert_array_equal(x_CHW[0], map_HW)


def test_a_map_at_its_own_size_is_itself() -> None:
    labels_HW = np.arange(12, dtype=np.uint8).reshape(3, 4)
    pixels_HWC = np.random.default_rng(0).integers(0, 255, (3, 4, 3)).astype(np.uint8)
    x_CHW, map_HW = AugmentMaps((3, 4), scale=(1, 1), hflip=0.0)(encoded(pixels_HWC), labels_HW)
    np.testing.assert_array_equal(x_CHW.permute(1, 2, 0), pixels_HWC)
    np.testing.assert_array_equal(map_HW, labels_HW)


@pytest.fixture
def painted_files(tmp_path: Path) -> list[tuple[Path, Boxes]]:
    made = []
    for number in range(6):
        pixels_HWC, boxes = painted((40 + number, 60), number)
        (tmp_path / f"{number}.png").write_bytes(encoded(pixels_HWC))
        made.append((tmp_path / f"{number}.png", boxes))
    return made


def annotated(files: list[tuple[Path, Boxes]]) -> AugmentedPictures:
    drawn = [
        [Drawn(corners=tuple(corners), label=n) for n, corners in enumerate(boxes.boxes_N4.tolist())]
        for _, boxes in files
    ]
    source = BoxFiles([file for file, _ in files], drawn, ["red", "green", "blue"])
    return AugmentedPictures(source, AugmentBoxes((32, 32), crop="overlap", color_jitter=0.3), seed=7)


def test_augmentation_depends_on_the_key_alone(painted_files: list[tuple[Path, Boxes]]) -> None:
    pictures = annotated(painted_files)
    (first, target), index = pictures[Key(0, 3)]
    assert (index, len(pictures)) == (3, 6)
    torch.rand(5)
    (again, same), _ = pictures[Key(0, 3)]
    assert torch.equal(first, again)
    assert torch.equal(target.boxes_N4, same.boxes_N4)
    for other in (Key(1, 3), Key(0, 3, 1)):
        assert not torch.equal(first, pictures[other][0][0])


def test_workers_give_what_one_process_gives(painted_files: list[tuple[Path, Boxes]]) -> None:
    def batches(workers: int) -> list[Batch]:
        pictures = annotated(painted_files)
        loader = training_batches(pictures, ShuffledKeys(6, 3, 0, Share()), workers)
        found = list(loader)
        loader.close()
        return found

    for one, other in zip(batches(0), batches(1), strict=True):
        assert torch.equal(one.images_BCHW, other.images_BCHW)
        assert one.images_BCHW.shape == (3, 3, 32, 32)
        for mine, theirs in zip(one.annotations, other.annotations, strict=True):
            assert isinstance(mine, BoxTarget)
            assert torch.equal(mine.boxes_N4, theirs.boxes_N4)


def test_unreadable_pictures_are_left_out_and_named(painted_files: list[tuple[Path, Boxes]]) -> None:
    painted_files[1][0].write_bytes(b"no picture")
    painted_files[4][0].unlink()
    pictures = annotated(painted_files)
    pictures.source._sizes = {index: (5, 5) if index == 2 else None for index in range(6)}  # type: ignore[attr-defined]
    (batch,) = training_batches(pictures, ShuffledKeys(6, 6, 0, Share()), 0)
    assert sorted(batch.refused) == [1, 2, 4]
    assert sorted(batch.indices_B.tolist()) == [0, 3, 5]
    assert len(batch.images_BCHW) == len(batch.annotations) == 3


def test_a_batch_of_nothing_is_empty(painted_files: list[tuple[Path, Boxes]]) -> None:
    for file, _ in painted_files:
        file.unlink()
    (batch,) = training_batches(annotated(painted_files), ShuffledKeys(6, 6, 0, Share()), 0)
    assert (len(batch.refused), len(batch.annotations), len(batch.indices_B)) == (6, 0, 0)


def test_label_maps_come_as_one_tensor(painted_files: list[tuple[Path, Boxes]]) -> None:
    files = [file for file, _ in painted_files]
    maps = []
    for file in files:
        Image.fromarray(np.ones((40 + len(maps), 60), np.uint8)).save(file.with_suffix(".map.png"))
        maps.append(file.with_suffix(".map.png"))
    source = MapFiles(files, maps, Legend(class_names=("a", "b"), values=(0, 1)))
    pictures = AugmentedPictures(source, AugmentMaps((24, 32)), seed=0)
    (batch,) = training_batches(pictures, ShuffledKeys(6, 6, 0, Share()), 0)
    assert isinstance(batch.annotations, torch.Tensor)
    assert (batch.annotations.shape, batch.annotations.dtype) == ((6, 24, 32), torch.uint8)
    assert set(batch.annotations.unique().tolist()) <= {1, IGNORE}


def test_targets_move_together() -> None:
    columns = {
        "boxes_N4": torch.rand(2, 4),
        "labels_N": torch.arange(2),
        "crowd_N": torch.tensor([True, False]),
    }
    for masks_NHW in (None, torch.ones(2, 3, 3)):
        moved = BoxTarget(**columns, masks_NHW=masks_NHW).to("meta")
        assert moved.boxes_N4.is_meta
        assert (moved.masks_NHW is None) == (masks_NHW is None)
