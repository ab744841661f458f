"""Augmentation: how often and how much, counted; what timm does, from timm."""

from __future__ import annotations

import math
import random
from collections.abc import Callable
from types import ModuleType

import numpy as np
import pytest
import torch
from PIL import Image

from vitesse.data.transforms import Augment, DeviceTransform, mix_batches
from vitesse.spec import IMAGENET_MEAN, IMAGENET_STD, PreprocessSpec
from vitesse.train.recipe_files import load_recipe


def within(count: int, draws: int, share: float) -> bool:
    """Whether a count is what a share of so many draws may give, by four standard deviations."""
    return abs(count - draws * share) <= 4 * math.sqrt(draws * share * (1 - share))


@pytest.fixture(autouse=True)
def seeded() -> None:
    torch.manual_seed(0)
    random.seed(0)


@pytest.fixture
def ramp(encode: Callable[..., bytes]) -> bytes:
    """A picture whose red is its column and whose green is its row."""
    rows, columns = np.mgrid[0:250, 0:250].astype(np.uint8)
    return encode(Image.fromarray(np.stack([columns, rows, rows * 0], axis=-1)), "PNG")


@pytest.mark.parametrize("hflip", [0.0, 0.3, 1.0])
def test_so_many_pictures_are_mirrored(ramp: bytes, hflip: float) -> None:
    augment = Augment((8, 8), crop_scale=(0.9, 1.0), hflip=hflip)
    mirrored = sum(bool((x := augment(ramp))[0, 4, 0] > x[0, 4, -1]) for _ in range(300))
    assert within(mirrored, 300, hflip)


def test_crops_keep_the_shares_and_the_shapes_that_they_may(ramp: bytes) -> None:
    augment = Augment((50, 50), crop_scale=(0.08, 0.5), hflip=0.0)
    widths, heights = [], []
    for _ in range(400):
        x_CHW = augment(ramp).float()
        widths.append(float(x_CHW[0, 25, 40] - x_CHW[0, 25, 10]) * 50 / 30)
        heights.append(float(x_CHW[1, 40, 25] - x_CHW[1, 10, 25]) * 50 / 30)
    areas, ratios = np.multiply(widths, heights) / 250**2, np.divide(widths, heights)
    assert areas.min() > 0.08 * 0.9
    assert areas.max() < 0.5 * 1.1
    assert ratios.min() > 3 / 4 * 0.9
    assert ratios.max() < 4 / 3 * 1.1
    assert areas.mean() == pytest.approx(0.29, abs=4 * 0.42 / math.sqrt(12 * 400) + 0.01)


@pytest.mark.parametrize("share", [0.25, 1.0])
def test_so_many_pictures_lose_a_rectangle_to_noise(share: float) -> None:
    transform = DeviceTransform(PreprocessSpec(image_size=(24, 24)), random_erase=share)
    x_BCHW = transform(torch.full((800, 3, 24, 24), 100, dtype=torch.uint8))
    plain = (100 / 255 - torch.tensor(IMAGENET_MEAN)) / torch.tensor(IMAGENET_STD)
    changed_BHW = ((x_BCHW - plain[:, None, None]).abs() > 1e-4).any(1)
    erased = changed_BHW.any(2).any(1)
    assert within(int(erased.sum()), 800, share)
    areas = changed_BHW[erased].float().mean((1, 2))
    assert areas.min() > 0.01
    assert areas.max() < 0.36
    noise = x_BCHW.permute(0, 2, 3, 1)[changed_BHW]
    assert abs(float(noise.mean())) < 0.02
    assert float(noise.std()) == pytest.approx(1, abs=0.02)


def test_batches_are_mixed_in_equal_odds_with_shares_that_add_up() -> None:
    x_BCHW = torch.arange(4.0).view(4, 1, 1, 1).expand(4, 1, 16, 16)
    targets_BK = torch.eye(4)
    kinds = {"plain": 0, "mixup": 0, "cutmix": 0}
    mix = mix_batches(1.0, 1.0, 0.5)
    assert mix is not None
    for _ in range(400):
        y_BCHW, mixed_BK = mix(x_BCHW, targets_BK)
        torch.testing.assert_close(mixed_BK.sum(1), torch.ones(4))
        torch.testing.assert_close(y_BCHW.mean((1, 2, 3)), mixed_BK @ torch.arange(4.0), atol=1e-4, rtol=0)
        whole = bool((y_BCHW == y_BCHW.round()).all())
        kinds["plain" if torch.equal(y_BCHW, x_BCHW) else "cutmix" if whole else "mixup"] += 1
    assert within(kinds["mixup"], 400, 0.25)
    assert within(kinds["plain"] + kinds["cutmix"], 400, 0.75)
    assert mix_batches(0.0, 0.0, 1.0) is None


@pytest.mark.parametrize("name", ["deit", "efficientvit_mit"])
def test_rand_augment_is_timm_s_with_the_recipe_s_filter_and_colour(
    name: str, timm: ModuleType, photo: Callable[..., Image.Image], encode: Callable[..., bytes]
) -> None:
    from timm.data import create_transform

    recipe, picture = load_recipe(name), photo(40, 40)
    theirs = create_transform(
        40,
        is_training=True,
        auto_augment=recipe.rand_augment,
        interpolation=recipe.interpolation,
        hflip=0.0,
        separate=True,
    )[1].transforms[0]
    ours = Augment((40, 40), rand_augment=recipe.rand_augment, interpolation=recipe.interpolation).steps[0]
    for seed in range(40):
        found = []
        for step in (theirs, ours):
            random.seed(seed)
            np.random.seed(seed)
            found.append(np.asarray(step(picture)))
        np.testing.assert_array_equal(*found)
