"""The model in the package is what its manifest and its card say."""

from __future__ import annotations

from pathlib import Path

import pytest

from vitesse.evaluate import evaluate
from vitesse.inputs import expand
from vitesse.predictors import find_artefact, load
from vitesse.runtime.artefact import bundled_artefact, bundled_names, read_artefact
from vitesse.runtime.decode import DEFAULT_LIMITS

SENSIBLE = {
    "sample:rocket": {"rocket"},
    "sample:coffee": {"cup", "bowl", "plate"},
    "sample:motorcycle": {"motorcycle", "bicycle"},
    "sample:astronaut": {"woman", "girl", "man", "boy"},
}


@pytest.mark.slow
@pytest.mark.parametrize("engine", ["onnxruntime", "openvino"])
def test_the_manifest_states_the_accuracy_of_this_very_file(data_dir: Path, engine: str) -> None:
    stated = read_artefact(bundled_artefact()).manifest.accuracy
    assert stated is not None
    measured = evaluate(data_dir / "cifar100", engine=engine)
    assert (measured.images, measured.refused) == (stated["images"], 0) == (10_000, 0)
    # The manifest has the worse engine's; with int8 engines round differently, a few pictures in a thousand.
    assert stated["top1"] - 5e-4 <= measured.top1 <= stated["top1"] + 3e-3
    assert measured.top5 == pytest.approx(stated["top5"], abs=2e-3)
    assert stated["fp32_top1"] - measured.top1 <= 0.005


def test_every_one_is_named_and_has_a_card() -> None:
    assert bundled_names() == ("efficientvit_m1_cifar100", "bccd")


@pytest.mark.slow
@pytest.mark.parametrize("engine", ["onnxruntime", "openvino"])
def test_the_detector_finds_as_many_cells_as_its_manifest_states(data_dir: Path, engine: str) -> None:
    manifest = find_artefact("bccd").manifest
    assert manifest.accuracy is not None
    measured = evaluate(data_dir / "bccd", model="bccd", split="test", engine=engine).to_dict()
    assert (measured["images"], measured["objects"]) == (72, 945)
    for key in ("ap", "ap50"):
        assert measured[key] == pytest.approx(manifest.accuracy[key], abs=1e-3)
    assert measured["ap50"] >= 0.88


@pytest.mark.parametrize("engine", ["onnxruntime", "openvino"])
def test_ordinary_photos_get_a_sensible_class_among_the_first_five(engine: str) -> None:
    predictor = load(engine=engine, top_k=5)
    records = predictor.predict(expand(list(SENSIBLE), DEFAULT_LIMITS))
    labels = {source: {p.label for p in r.predictions} for source, r in zip(SENSIBLE, records, strict=True)}
    sensible = [source for source, expected in SENSIBLE.items() if expected & labels[source]]
    assert len(sensible) >= 3, labels


def test_the_file_is_small_and_says_where_it_comes_from() -> None:
    artefact = read_artefact(bundled_artefact())
    manifest = artefact.manifest
    assert len(artefact.data) <= 4_000_000
    assert manifest.precision == "int8"
    assert manifest.model.name in artefact.path.stem
    assert manifest.trained_on
    assert manifest.licence
    assert {"recipe", "commit", "cpu"} <= manifest.provenance.keys()
    assert manifest.parity is not None
    assert max(manifest.parity["onnxruntime"], manifest.parity["openvino"]) <= 1e-4


@pytest.mark.parametrize(
    ("name", "figures"), [("efficientvit_m1_cifar100", ("top1", "top5")), ("bccd", ("ap", "ap50"))]
)
def test_the_card_repeats_the_manifest(name: str, figures: tuple[str, str]) -> None:
    artefact = read_artefact(bundled_artefact(name))
    card = artefact.path.with_suffix(".md").read_text(encoding="utf-8")
    accuracy = artefact.manifest.accuracy
    assert accuracy is not None
    shares = [f"{accuracy[key]:.2%}" for key in figures]
    for fact in (artefact.sha256, artefact.manifest.licence, *shares):
        assert fact in card
