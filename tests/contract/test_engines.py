"""What every engine must do."""

from __future__ import annotations

import sys
import threading

import numpy as np
import pytest

from vitesse.errors import EngineError, MissingExtraError
from vitesse.runtime.artefact import read_artefact
from vitesse.runtime.engines import ENGINES, available_engines, create_engine, usable_cpus

pytestmark = pytest.mark.parametrize("name", list(ENGINES))


def batch(size, seed=0):
    return np.random.default_rng(seed).normal(size=(size, 3, 24, 32)).astype(np.float32)


def test_it_is_installed_here(name):
    assert name in available_engines()


def test_asked_by_name_it_is_that_engine(name, tiny_artefact):
    assert create_engine(tiny_artefact, name).name == name


@pytest.mark.parametrize("size", [1, 5, 16])
def test_outputs_equal_the_reference(name, tiny_artefact, tiny_reference, size):
    (logits_BK,) = create_engine(tiny_artefact, name, threads=1).run(batch(size))
    np.testing.assert_allclose(logits_BK, tiny_reference(batch(size)), atol=1e-5)


def test_outputs_stay_when_it_runs_again(name, tiny_artefact, tiny_reference):
    engine = create_engine(tiny_artefact, name, threads=2)
    (first,) = engine.run(batch(3))
    engine.run(batch(3, seed=1))
    np.testing.assert_allclose(first, tiny_reference(batch(3)), atol=1e-5)


def test_several_threads_may_call_it(name, tiny_artefact, tiny_reference):
    engine = create_engine(tiny_artefact, name, threads=1)
    wrong = []

    def work(seed):
        for _ in range(20):
            (logits,) = engine.run(batch(2, seed))
            if not np.allclose(logits, tiny_reference(batch(2, seed)), atol=1e-5):
                wrong.append(seed)

    threads = [threading.Thread(target=work, args=(seed,)) for seed in range(4)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert wrong == []


def test_nan_and_infinity_are_found_and_named(name, make_artefact):
    engine = create_engine(read_artefact(make_artefact(logarithm=True)), name)
    pictures = np.abs(batch(4))
    engine.run(pictures)
    pictures[2] = 0  # log(0) is infinite
    with pytest.raises(EngineError, match=rf"{name}: output 0 holds NaN or infinity for 1 of 4 .* picture 2"):
        engine.run(pictures)


@pytest.mark.parametrize(
    "wrong",
    [
        np.zeros((2, 3, 24, 33), np.float32),
        np.zeros((2, 1, 24, 32), np.float32),
        np.zeros((3, 24, 32), np.float32),
        np.zeros((0, 3, 24, 32), np.float32),
        np.zeros((2, 3, 24, 32), np.float64),
        np.zeros((2, 3, 24, 32), np.uint8),
    ],
    ids=lambda array: f"{array.shape}-{array.dtype}",
)
def test_another_shape_or_dtype_is_refused(name, tiny_artefact, wrong):
    with pytest.raises(EngineError, match=r"expected a batch \(any, 3, 24, 32\) of float32, got") as caught:
        create_engine(tiny_artefact, name).run(wrong)
    assert str(wrong.dtype) in str(caught.value)


def test_arrays_of_any_layout_run(name, tiny_artefact, tiny_reference):
    strided = batch(8)[::2]
    turned = np.asfortranarray(batch(2))
    engine = create_engine(tiny_artefact, name)
    for pictures in (strided, turned):
        np.testing.assert_allclose(engine.run(pictures)[0], tiny_reference(pictures), atol=1e-5)


def test_a_model_it_cannot_load_is_an_engine_error(name, tiny_artefact):
    from dataclasses import replace

    broken = replace(
        tiny_artefact, data=tiny_artefact.data.replace(b"GlobalAveragePool", b"GlobalAveragePuul")
    )
    with pytest.raises(EngineError, match=f"{name} refused the model: ") as caught:
        create_engine(broken, name)
    assert "\n" not in str(caught.value)


def test_missing_it_names_the_command(name, tiny_artefact, monkeypatch):
    monkeypatch.setitem(sys.modules, name, None)
    with pytest.raises(MissingExtraError, match=r"pip install 'vitesse"):
        create_engine(tiny_artefact, name)


def test_a_mistyped_name_is_refused(name, tiny_artefact):
    with pytest.raises(EngineError, match=f"did you mean {name}"):
        create_engine(tiny_artefact, name[:-1])


def test_threads_below_one_are_refused(name, tiny_artefact):
    with pytest.raises(EngineError, match="threads: expected at least 1, got 0"):
        create_engine(tiny_artefact, name, threads=0)


def test_usable_cpus_is_at_least_one(name):
    assert usable_cpus() >= 1
