"""Training batches: (seed, epoch) decides the order, (seed, epoch, index) each picture, nothing else."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from vitesse.data.loader import AugmentedPictures, ShuffledKeys, training_batches
from vitesse.data.sources import open_source
from vitesse.data.transforms import DeviceTransform, augment_pictures, mix_batches
from vitesse.errors import ConfigError
from vitesse.spec import PreprocessSpec

AUGMENT = {"crop_scale": (0.5, 1.0), "hflip": 0.5, "rand_augment": "rand-m9-mstd0.5-inc1"}


@given(images=st.integers(1, 60), batch=st.integers(1, 8), world=st.integers(1, 3), seed=st.integers(0, 99))
@settings(max_examples=60, deadline=None)
def test_ranks_share_an_epoch_without_overlap(images: int, batch: int, world: int, seed: int) -> None:
    def epoch(rank: int, number: int) -> list[list[tuple[int, int]]]:
        keys = ShuffledKeys(images, batch, seed, rank, world)
        keys.start_at(number)
        batches = list(keys)
        assert len(keys) == len(batches)
        return batches

    seen = [index for rank in range(world) for keys in epoch(rank, 3) for _, index in keys]
    assert len(seen) == len(set(seen)) == images // (batch * world) * batch * world
    assert epoch(0, 3) == epoch(0, 3)


def test_starting_in_the_middle_gives_the_rest_of_the_epoch() -> None:
    keys = ShuffledKeys(40, 4, seed=1)
    keys.start_at(2)
    whole = list(keys)
    keys.start_at(2, 6)
    assert list(keys) == whole[6:]
    assert len(keys) == 4
    keys.start_at(3)
    assert list(keys) != whole


@pytest.fixture
def pictures(tmp_path: Path, paint_classes: Callable[..., Path]) -> AugmentedPictures:
    source = open_source(paint_classes(tmp_path, per_class=4))
    return AugmentedPictures(source, augment_pictures((24, 24), **AUGMENT), seed=5)


def test_augmentation_depends_on_seed_epoch_and_index_alone(pictures: AugmentedPictures) -> None:
    first, _ = pictures[(0, 3)]
    pictures[(0, 7)]  # other work in between
    torch.rand(5)
    again, _ = pictures[(0, 3)]
    assert first is not None
    assert again is not None
    assert torch.equal(first, again)
    assert first.shape == (3, 24, 24)
    assert first.dtype == torch.uint8
    assert not torch.equal(first, pictures[(1, 3)][0])  # type: ignore[arg-type]


def test_workers_change_nothing(pictures: AugmentedPictures) -> None:
    keys = ShuffledKeys(len(pictures), 4, seed=0)
    alone = list(training_batches(pictures, keys, workers=0))
    helped = list(training_batches(pictures, keys, workers=2))
    assert len(alone) == 3
    for one, other in zip(alone, helped, strict=True):
        assert torch.equal(one.images_BCHW, other.images_BCHW)
        assert torch.equal(one.indices_B, other.indices_B)


def test_an_unreadable_picture_leaves_its_batch_and_is_named(pictures: AugmentedPictures) -> None:
    broken = Path(pictures.source.name(5))
    broken.write_bytes(broken.read_bytes()[:40])
    batches = list(training_batches(pictures, ShuffledKeys(len(pictures), 12, seed=0), workers=0))
    assert batches[0].refused == (5,)
    assert batches[0].images_BCHW.shape[0] == 11
    assert 5 not in batches[0].indices_B


def test_a_policy_that_timm_does_not_read_is_refused() -> None:
    with pytest.raises(ConfigError, match="expected timm's form"):
        augment_pictures((8, 8), crop_scale=(1, 1), hflip=0, rand_augment="nonsense-x3")


def test_the_device_transform_normalises_and_enlarges() -> None:
    spec = PreprocessSpec(image_size=(8, 8), mean=(0.5, 0.25, 0.1), std=(0.5, 0.2, 0.3))
    x_BCHW = torch.tensor([255, 51, 0], dtype=torch.uint8).view(1, 3, 1, 1).expand(2, 3, 4, 4)
    y_BCHW = DeviceTransform(spec)(x_BCHW)
    assert y_BCHW.shape == (2, 3, 8, 8)
    expected = torch.tensor([1.0, -0.25, -1 / 3]).view(1, 3, 1, 1).expand(2, 3, 8, 8)
    torch.testing.assert_close(y_BCHW, expected)


@pytest.mark.parametrize(("mixup", "cutmix"), [(0.8, 0.0), (0.0, 1.0), (0.8, 1.0)])
def test_mixing_keeps_target_shares_whole(mixup: float, cutmix: float) -> None:
    torch.manual_seed(0)
    mix = mix_batches(mixup, cutmix, 1.0)
    assert mix is not None
    targets_BK = torch.eye(6)
    x_BCHW, mixed_BK = mix(torch.rand(6, 3, 8, 8), targets_BK)
    assert x_BCHW.shape == (6, 3, 8, 8)
    torch.testing.assert_close(mixed_BK.sum(1), torch.ones(6))
    assert not torch.equal(mixed_BK, targets_BK)
    assert mix_batches(0, 0, 1.0) is None
