"""Training batches: (seed, epoch) decides their order, (seed, key) each picture, and nothing else."""

from __future__ import annotations

import io
import itertools
import multiprocessing
import os
import signal
from collections import Counter
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from PIL import Image
from torchvision.transforms import InterpolationMode, RandomResizedCrop, v2

from vitesse.data.loader import AugmentedPictures, training_batches
from vitesse.data.sampler import WINDOW_BLOCKS, Key, Share, ShuffledKeys, epoch_order
from vitesse.data.sources import open_source
from vitesse.data.transforms import Augment, DeviceTransform, mix_batches
from vitesse.errors import ConfigError, ImageError
from vitesse.spec import PreprocessSpec

ALONE = Share()


def keys_of(
    rank: int, world: int, accumulate: int, images: int, batch: int, **options: int
) -> list[list[Key]]:
    share = Share(rank=rank, world=world, accumulate=accumulate)
    keys = ShuffledKeys(images, batch, 5, share, **options)
    keys.start_at(3)
    batches = list(keys)
    assert len(keys) == len(batches)
    return batches


@given(
    images=st.integers(1, 60),
    micro=st.integers(1, 3),
    world=st.integers(1, 3),
    accumulate=st.integers(1, 3),
    repeats=st.integers(1, 3),
)
@settings(max_examples=80, deadline=None)
def test_every_step_holds_the_same_pictures_in_any_world(
    images: int, micro: int, world: int, accumulate: int, repeats: int
) -> None:
    batch = micro * world * accumulate
    alone = keys_of(0, 1, 1, images, batch, repeats=repeats)
    ranks = [keys_of(rank, world, accumulate, images, batch, repeats=repeats) for rank in range(world)]
    assert len(alone) == images // batch
    for step, expected in enumerate(alone):
        parts = [part for rank in ranks for part in rank[step * accumulate : (step + 1) * accumulate]]
        assert {len(part) for part in parts} == {micro}
        assert Counter(key for part in parts for key in part) == Counter(expected)
    seen = [key for keys in alone for key in keys]
    assert len(seen) == len(set(seen))


def test_copies_of_a_picture_are_in_one_step_and_apart() -> None:
    for keys in keys_of(0, 1, 1, 36, 12, repeats=3):
        counts = Counter(key.picture for key in keys)
        assert set(counts.values()) == {3}
        assert all(one.picture != other.picture for one, other in itertools.pairwise(keys))


def test_starting_in_the_middle_gives_the_rest_of_the_epoch() -> None:
    keys = ShuffledKeys(40, 4, 1, Share(accumulate=2))
    keys.start_at(2)
    whole = list(keys)
    keys.start_at(2, 6)
    assert list(keys) == whole[12:]
    assert len(keys) == 8
    keys.start_at(3)
    assert list(keys) != whole


@given(blocks=st.lists(st.integers(0, 9), min_size=1, max_size=60), seed=st.integers(0, 9))
@settings(max_examples=60, deadline=None)
def test_blocks_are_shuffled_a_window_at_a_time(blocks: list[int], seed: int) -> None:
    order = epoch_order(sum(blocks), seed, 0, blocks)
    assert sorted(order.tolist()) == list(range(sum(blocks)))
    block_of = np.repeat(np.arange(len(blocks)), blocks)[order]
    last = {block: place for place, block in enumerate(block_of.tolist())}
    for place in range(len(order)):
        opened = set(block_of[: place + 1].tolist())
        still = {block for block in opened if last[block] > place}
        assert len(still) <= WINDOW_BLOCKS


def test_blocks_change_their_order_every_epoch() -> None:
    first, second = (epoch_order(200, 0, epoch, [10] * 20) for epoch in (0, 1))
    assert first.tolist() != second.tolist()
    assert {int(i) // 10 for i in first[:80]} != {int(i) // 10 for i in second[:80]}


@pytest.fixture
def pictures(tmp_path: Path, paint_classes: Callable[..., Path]) -> AugmentedPictures:
    source = open_source(paint_classes(tmp_path, per_class=4))
    augment = Augment((24, 24), crop_scale=(0.5, 1.0), rand_augment="rand-m9-mstd0.5-inc1", color_jitter=0.2)
    return AugmentedPictures(source, augment, seed=5)


def test_augmentation_depends_on_seed_epoch_picture_and_copy_alone(pictures: AugmentedPictures) -> None:
    def drawn(key: Key) -> torch.Tensor:
        found, _ = pictures[key]
        assert found is not None
        assert found[1] is None  # a class is all that is known of it
        return found[0]

    first = drawn(Key(0, 3))
    assert pictures[Key(0, 7)][1] == 7  # other work in between
    torch.rand(5)
    assert torch.equal(first, drawn(Key(0, 3)))
    assert first.shape == (3, 24, 24)
    assert first.dtype == torch.uint8
    for other in (Key(1, 3), Key(0, 3, 1)):
        assert not torch.equal(first, drawn(other))


def test_workers_give_what_one_process_gives(pictures: AugmentedPictures) -> None:
    def batches(workers: int) -> list[torch.Tensor]:
        keys = ShuffledKeys(len(pictures), 4, 0, ALONE)
        return [batch.images_BCHW for batch in training_batches(pictures, keys, workers)]

    alone, together = batches(0), batches(2)
    assert len(alone) == len(together) == 3
    assert all(torch.equal(one, other) for one, other in zip(alone, together, strict=True))


def test_unreadable_pictures_are_left_out_and_named(
    tmp_path: Path, paint_classes: Callable[..., Path]
) -> None:
    paint_classes(tmp_path, per_class=4)
    (tmp_path / "blue" / "002.png").write_bytes(b"no picture")
    pictures = AugmentedPictures(open_source(tmp_path), Augment((24, 24)), seed=0)
    keys = ShuffledKeys(12, 12, 0, ALONE)
    (batch,) = training_batches(pictures, keys, workers=0)
    assert batch.refused == (2,)
    assert sorted(batch.indices_B.tolist()) == [0, 1, *range(3, 12)]
    assert batch.images_BCHW.shape == (11, 3, 24, 24)


def encoded(image: Image.Image, kind: str = "PNG") -> bytes:
    stream = io.BytesIO()
    image.save(stream, kind, quality=95)
    return stream.getvalue()


@pytest.mark.parametrize("interpolation", ["bicubic", "bilinear"])
def test_a_crop_is_that_of_torchvision(photo: Callable[..., Image.Image], interpolation: str) -> None:
    image = photo(90, 70)
    augment = Augment((32, 48), crop_scale=(0.2, 0.9), hflip=0.0, interpolation=interpolation)  # type: ignore[arg-type]
    mode = InterpolationMode(interpolation)
    for seed in range(8):
        torch.manual_seed(seed)
        ours = augment(encoded(image)).float()
        torch.manual_seed(seed)
        reference = RandomResizedCrop((32, 48), (0.2, 0.9), (3 / 4, 4 / 3), mode)
        theirs = v2.functional.pil_to_tensor(reference(image)).float()
        assert (ours - theirs)[:, 2:-2, 2:-2].abs().max() <= 2  # they crop before they resize
        assert (ours - theirs).abs().mean() < 0.6


def test_a_large_jpeg_is_decoded_small_and_looks_the_same(
    photo: Callable[..., Image.Image], monkeypatch: pytest.MonkeyPatch
) -> None:
    import vitesse.data.transforms as transforms

    fractions: list[int] = []
    decode = transforms.decode

    def watched(*arguments: object) -> object:
        decoded = decode(*arguments)  # type: ignore[arg-type]
        fractions.append(decoded.fraction)
        return decoded

    monkeypatch.setattr(transforms, "decode", watched)
    image = photo(900, 700)
    augment = Augment((64, 64), crop_scale=(0.6, 1.0), hflip=0.0)
    torch.manual_seed(0)
    small = augment(encoded(image, "JPEG")).float()
    torch.manual_seed(0)
    full = augment(encoded(image, "PNG")).float()
    assert fractions == [8, 1]
    assert (small - full).abs().mean() < 5  # its crop is rounded to whole decoded pixels


def test_arrays_of_colours_are_pictures_and_others_are_refused(photo: Callable[..., Image.Image]) -> None:
    augment = Augment((16, 16), crop_scale=(1.0, 1.0), hflip=0.0)

    def as_file(array: np.ndarray) -> bytes:
        stream = io.BytesIO()
        np.save(stream, array)
        return stream.getvalue()

    pixels = np.asarray(photo(32, 32))
    torch.manual_seed(0)
    as_array = augment(as_file(pixels))
    torch.manual_seed(0)
    assert torch.equal(as_array, augment(encoded(photo(32, 32))))
    with pytest.raises(ImageError, match=r"expected an array \(H, W, 3\)"):
        augment(as_file(np.zeros((8, 8, 5), np.float32)))


def test_mirroring_happens_as_often_as_asked(photo: Callable[..., Image.Image]) -> None:
    image = encoded(photo(16, 16))
    plain = Augment((16, 16), crop_scale=(1.0, 1.0), hflip=0.0)(image)
    mirrored = Augment((16, 16), crop_scale=(1.0, 1.0), hflip=1.0)(image)
    assert torch.equal(plain, mirrored.flip(2))
    turned = Augment((16, 16), crop_scale=(1.0, 1.0), hflip=0.0, vflip=1.0)(image)
    assert torch.equal(plain, turned.flip(1))


def test_a_policy_that_timm_does_not_read_is_refused() -> None:
    with pytest.raises(ConfigError, match="expected timm's form"):
        Augment((24, 24), rand_augment="sand-m9")


def test_device_transform_normalises_and_resizes() -> None:
    transform = DeviceTransform(PreprocessSpec(image_size=(8, 8)))
    grey = torch.full((2, 3, 8, 8), 128, dtype=torch.uint8)
    spec = PreprocessSpec(image_size=(8, 8))
    expected = (128 / 255 - torch.tensor(spec.mean)) / torch.tensor(spec.std)
    for x_BCHW, size in ((grey, None), (grey[:, :, :4, :4], None), (grey, (4, 6))):
        normal = transform(x_BCHW, size)
        assert normal.shape == (2, 3, *(size or (8, 8)))
        torch.testing.assert_close(normal[0, :, 0, 0], expected, rtol=1e-5, atol=1e-5)


def test_erasing_replaces_a_rectangle_by_noise() -> None:
    torch.manual_seed(0)
    grey = torch.full((64, 3, 16, 16), 128, dtype=torch.uint8)
    spec = PreprocessSpec(image_size=(16, 16))
    changed = (DeviceTransform(spec, 0.5)(grey) != DeviceTransform(spec)(grey)).any(1).flatten(1).sum(1)
    assert 0.25 < (changed > 0).float().mean() < 0.75
    assert changed.max() < 16 * 16


def test_workers_outlive_signals_and_end_when_told(pictures: AugmentedPictures) -> None:
    batches = training_batches(pictures, ShuffledKeys(len(pictures), 4, 0, ALONE), 1)
    before = set(multiprocessing.active_children())
    iterator = iter(batches)
    next(iterator)
    (worker,) = set(multiprocessing.active_children()) - before
    for number in (signal.SIGTERM, signal.SIGINT):
        os.kill(worker.pid or 0, number)
    assert len(list(iterator)) == 2
    assert worker.is_alive()
    batches.close()
    assert not worker.is_alive()


def test_a_second_epoch_of_the_same_workers_begins_where_it_is_told(pictures: AugmentedPictures) -> None:
    keys = ShuffledKeys(len(pictures), 4, 0, ALONE)
    batches = training_batches(pictures, keys, 1)
    next(iter(batches))
    keys.start_at(1, 1)
    fresh = ShuffledKeys(len(pictures), 4, 0, ALONE)
    fresh.start_at(1)
    rest = [[key.picture for key in part] for part in fresh][1:]
    assert [batch.indices_B.tolist() for batch in batches] == rest


def test_mixing_keeps_shares_whole() -> None:
    assert mix_batches(0.0, 0.0, 1.0) is None
    mix = mix_batches(0.4, 1.0, 1.0)
    assert mix is not None
    torch.manual_seed(0)
    x_BCHW, targets_BK = torch.rand(6, 3, 8, 8), torch.eye(6)
    for _ in range(5):
        mixed_BCHW, shares_BK = mix(x_BCHW, targets_BK)
        assert mixed_BCHW.shape == x_BCHW.shape
        torch.testing.assert_close(shares_BK.sum(1), torch.ones(6))
        assert not torch.equal(shares_BK, targets_BK)
