"""Design spaces: every point is a model, and the hand-made models are points."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
import torch
from torch.utils.flop_counter import FlopCounterMode

from vitesse.catalogue import facts
from vitesse.errors import ConfigError
from vitesse.export import fold
from vitesse.models import build, create_model
from vitesse.models.variants import write_spec
from vitesse.search.cost import cost_of
from vitesse.search.space import SPACES, Space, space_for
from vitesse.spec import ModelSpec


def as_variant(space: Space, name: str) -> ModelSpec:
    """A hand-made model written out, under another one's name."""
    variant = space.variant(space.point_of(space.configs[name]))
    return ModelSpec(name=list(space.configs)[-1], image_size=facts(name).image_size, variant=variant)


@pytest.mark.parametrize("family", SPACES)
def test_hand_made_models_are_points(family: str) -> None:
    space = space_for(family, (64,))
    names = []
    for name, point in space.hand_made():
        assert all(point[key] in choices for key, choices in space.choices().items()), name
        assert space.spec(point, 7) == ModelSpec(name=name, image_size=(64, 64), num_classes=7)
        with torch.device("meta"):
            parameters = build(as_variant(space, name)).parameters()
        assert sum(parameter.numel() for parameter in parameters) == facts(name).params, name
        names.append(name)
    assert names == list(space.configs)


@pytest.mark.parametrize("family", SPACES)
def test_every_point_is_a_model_that_folds(family: str) -> None:
    space, rng = space_for(family, (32, 48)), np.random.default_rng(3)
    for point in (space.smallest(), *(space.draw(rng) for _ in range(3))):
        spec = space.spec(point, 7)
        torch.manual_seed(0)
        model = build(spec).eval()
        images_BCHW = torch.rand(2, 3, *spec.image_size)
        with torch.inference_mode():
            logits_BK = model(images_BCHW)
            assert logits_BK.shape == (2, 7)
            torch.testing.assert_close(fold(model)(images_BCHW), logits_BK, rtol=1e-3, atol=1e-4)


@pytest.mark.parametrize("family", SPACES)
def test_costs_are_those_that_torch_counts(family: str) -> None:
    space = space_for(family, (32,))
    spec = space.spec(space.draw(np.random.default_rng(5)), 7)
    model = build(spec).eval()
    with torch.inference_mode(), FlopCounterMode(display=False) as flops:
        model(torch.zeros(3, 3, 32, 32))
    assert cost_of(spec, 3).macs == flops.get_total_flops() // 2
    assert cost_of(spec, 3).dense_convs == cost_of(spec).dense_convs > 0


def test_points_of_the_same_model_have_the_same_spec() -> None:
    space = space_for("efficientvit_m", (64,))
    point = {**space.smallest(), "heads1": 1, "heads2": 2, "heads3": 2, "kernels": "5333"}
    assert space.spec(point, 7) != space.spec({**point, "kernels": "5555"}, 7)
    one_head = {**point, "heads2": 1, "heads3": 1}
    assert space.spec(one_head, 7) == space.spec({**one_head, "kernels": "5555"}, 7)


def test_windows_are_chosen_where_they_matter() -> None:
    def windows(side: int) -> tuple[object, ...]:
        return tuple(space_for("efficientvit_m", (side,)).choices()["window"])

    assert windows(64) == (0,)
    assert windows(112) == (0, 4)
    assert windows(256) == (0, 4, 14)


def test_a_point_is_a_file_that_every_verb_takes(tmp_path: Path) -> None:
    space = space_for("shvit", (32,))
    spec = space.spec(space.draw(np.random.default_rng(1)), 7)
    write_spec(spec, tmp_path / "spec.json")
    assert create_model(str(tmp_path / "spec.json")).spec == spec


@pytest.mark.parametrize(
    ("family", "sizes", "message"),
    [("efficientvit", (64,), "did you mean efficientvit_m"), ("shvit", (8,), "at least 16 pixels")],
)
def test_impossible_spaces_are_refused(family: str, sizes: tuple[int, ...], message: str) -> None:
    with pytest.raises(ConfigError, match=message):
        space_for(family, sizes)
