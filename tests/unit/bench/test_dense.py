"""The benchmark of detectors and segmenters: ratios, bars, what peers are given to do, what is written."""

from __future__ import annotations

import importlib
import json
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from vitesse.bench import Contender, Timing
from vitesse.runtime.engines import onnxruntime_session

BENCHMARKS = Path(__file__).parents[3] / "benchmarks"
with pytest.MonkeyPatch.context() as patch:
    patch.syspath_prepend(BENCHMARKS)
    dense = importlib.import_module("dense")
    models = importlib.import_module("dense_models")


def timing(model, samples, macs=1, engine="onnxruntime", stage="whole", side=320, error=""):
    who = Contender(
        model=model, engine=engine, precision="fp32", image_size=(side, side), macs=macs, stage=stage
    )
    busy = tuple(2 * sample for sample in samples)
    return Timing(contender=who, batch_size=1, threads=1, samples_s=samples, processor_s=busy, error=error)


@pytest.mark.parametrize(("macs", "met"), [(3000, True), (3001, False)])
def test_a_ratio_is_taken_round_by_round_and_judged_by_the_multiply_accumulates(macs, met):
    row = dense.ratio_row(timing("ours", (1.0, 2.0, 4.0), 1000), timing("peer", (3.0, 4.0, 16.0), macs))
    assert (row["ratio"]["median"], row["ratio"]["min"], row["ratio"]["max"]) == (3, 2, 4)
    assert row["processor_ratio"]["median"] == 3
    assert (row["bar"], row["met"]) == (macs / 1000, met)
    assert row["published_bar"] is None


@pytest.mark.parametrize(("seconds", "met"), [(15.2, False), (15.3, True)])
def test_the_bar_is_the_papers_where_they_have_one(seconds, met):
    row = dense.ratio_row(timing(dense.SEG, (1.0,), side=512), timing(dense.SEGFORMER, (seconds,), side=512))
    assert (row["bar"], row["published_bar"], row["met"]) == (1, 15.27, met)


def test_both_sides_run_on_their_fastest_engine_and_stages_stay_apart():
    match = dense.Match("detect", ("ours",), ("peer", "torchvision:fasterrcnn"), (320, 320), dense.BOTH)
    assert [(name, stage) for name, _, stage in match.graphs()] == [
        *(("ours", stage) for stage in ("whole", "network")),
        *(("peer", stage) for stage in ("whole", "network")),
        ("torchvision:fasterrcnn", "whole"),
    ]
    timings = [
        timing("ours", (2.0,)),
        timing("ours", (1.0,), engine="openvino"),
        timing("ours", (0.5,), stage="network"),
        timing("peer", (6.0,)),
        timing("peer", (), engine="openvino", error="refused"),
        timing("peer", (4.0,), stage="network"),
        timing("torchvision:fasterrcnn", (8.0,)),
    ]
    rows = dense.compared(match, timings)
    assert [(row["peer"], row["stage"], row["ratio"]["median"]) for row in rows] == [
        ("peer", "whole", 6),
        ("torchvision:fasterrcnn", "whole", 8),
        ("peer", "network", 8),
    ]
    assert rows[0]["engines"] == ["openvino", "onnxruntime"]
    table = dense.ratio_table(rows).splitlines()
    assert len(table) == 4
    assert "| ours | peer | 320x320 | 0 : 0 | 1.00 | 6.00 (6.00 to 6.00; processor 6.00) |" in table[2]


def test_growth_is_the_exponent_in_pixels():
    found = dense.growth_of(
        [
            timing("a", (side**3.0 * slower,), macs=side**2, engine=engine, side=side)
            for side in (256, 512, 1024)
            for engine, slower in (("onnxruntime", 2), ("openvino", 1))
        ]
    )
    assert (found["a"]["exponent"], found["a"]["macs_exponent"]) == (1.5, 1.0)
    assert set(found["a"]["engines"]) == {"openvino"}
    assert "| a | 1.00 | 8.00 | 64.00 | 1.50 | 1.00 |" in dense.growth_table(found)


def test_the_record_the_tables_and_the_picture_are_written(monkeypatch, tiny_artefact, tmp_path, capsys):
    asked = []

    def stand_in(name, size, stage):
        asked.append((name, size, stage))
        return replace(tiny_artefact, manifest=replace(tiny_artefact.manifest, provenance={"macs": 1000}))

    monkeypatch.setattr(dense, "artefact_of", stand_in)
    monkeypatch.setattr(dense, "picture", lambda size: np.zeros((1, 3, 24, 32), np.float32))
    options = ["--quick", "--engines", "onnxruntime", "--out", str(tmp_path)]
    dense.main([*options, "--prepare"])
    assert {stage for _, _, stage in asked} == {"whole", "network"}
    assert not list(tmp_path.iterdir()), "nothing is timed"
    dense.main(options)
    record = json.loads((tmp_path / "dense.json").read_text())
    assert record["quick"]
    assert {row["stage"] for row in record["rows"]} == {"whole", "network"}
    assert all(len(t["samples_ms"]) == len(t["samples_processor_ms"]) == 2 for t in record["timings"])
    assert record["growth"].keys() == {dense.SEG, dense.SEGFORMER}
    assert (tmp_path / "dense.md").read_text().count("reaches the bar") == 2
    assert (tmp_path / "dense.png").read_bytes().startswith(b"\x89PNG")
    assert str(tmp_path / "dense.json") in capsys.readouterr().out


def test_an_unknown_part_is_refused(capsys):
    with pytest.raises(SystemExit):
        dense.main(["detection"])
    assert "expected of detect, segment, growth, got detection" in capsys.readouterr().err


@settings(deadline=None)
@given(st.lists(st.integers(0, 1000), min_size=2, max_size=50, unique=True), st.integers(1, 60))
def test_as_many_scores_as_wanted_pass_the_threshold_whether_or_not_it_passes_itself(ranks, count):
    scores = torch.tensor(ranks) / 1000
    between = models.threshold(scores, count)
    assert int((scores > between).sum()) == int((scores >= between).sum()) == min(count, len(ranks) - 1)


def settled(name):
    """A peer of random weights, and the pictures that it was settled on."""
    torch.manual_seed(0)
    detector = getattr(models.detection, name)(weights=None, weights_backbone=None).eval()
    pictures = list(models.noise()[:, :, :96, :96])
    models.settle(detector, lambda: detector(pictures))
    return detector, pictures


def test_normalisations_settle_on_what_passes_them():
    detector, pictures = settled("ssdlite320_mobilenet_v3_large")
    convolution, norm, _ = detector.backbone.features[0][0]
    passed_BCHW = models.seen_of(convolution, lambda: detector(pictures))
    assert not detector.training
    torch.testing.assert_close(norm.running_mean, passed_BCHW.mean((0, 2, 3)))
    torch.testing.assert_close(norm.running_var, passed_BCHW.var((0, 2, 3)))


def test_a_peer_finds_what_it_finds_by_itself_and_no_more_than_let_pass():
    """Its own transform normalises to -1 .. 1 and resizes to 320 pixels, where there is nothing to resize."""
    detector, _ = settled("ssdlite320_mobilenet_v3_large")
    picture_BCHW = torch.rand(1, 3, 320, 320)
    (expected,) = models.seen_of(detector, lambda: detector([picture_BCHW[0]]))
    detector.transform, x_BCHW = models.AsItIs(), picture_BCHW * 2 - 1
    boxes, scores, labels = models.seen_of(whole := models.WholeDetector(detector), lambda: whole(x_BCHW))
    assert len(boxes[0]) == len(expected["boxes"]) == 300
    torch.testing.assert_close(scores[0], expected["scores"])
    torch.testing.assert_close(boxes[0], expected["boxes"])
    assert (labels[0] == expected["labels"]).all()

    models.let_candidates_pass(detector, lambda: detector([x_BCHW[0]]))
    network = models.NetworkDetector(detector)
    logits_BPK, _ = models.seen_of(network, lambda: network(x_BCHW))
    assert int((logits_BPK.softmax(-1)[..., 1:] > detector.score_thresh).sum()) == models.CANDIDATES
    (few,) = models.seen_of(detector, lambda: detector([x_BCHW[0]]))
    assert 0 < len(few["boxes"]) <= models.CANDIDATES


def test_a_second_stage_gets_no_more_than_let_pass():
    detector, (picture_CHW, _) = settled("fasterrcnn_mobilenet_v3_large_320_fpn")
    detector.transform = models.AsItIs()
    found = models.let_candidates_pass(detector, lambda: detector([picture_CHW]))
    assert 0 < found["proposals"] <= models.PROPOSALS
    (few,) = models.seen_of(detector, lambda: detector([picture_CHW]))
    assert 0 < len(few["boxes"]) <= models.CANDIDATES


@pytest.mark.slow
def test_the_graph_of_a_peer_finds_what_torch_finds():
    size = (96, 96)
    detector, _ = models.torchvision_detector(dense.SSDLITE, size)
    whole = models.WholeDetector(detector).eval()
    x_BCHW = torch.from_numpy(models.picture(size))
    expected = models.seen_of(whole, lambda: whole(x_BCHW))
    session = onnxruntime_session(models.scripted(whole, x_BCHW).SerializeToString(), 1)
    boxes, scores, labels = session.run(None, {"images": x_BCHW.numpy()})
    np.testing.assert_allclose(boxes, expected[0], atol=1e-2)
    np.testing.assert_allclose(scores, expected[1], atol=1e-4)
    assert (labels == expected[2].numpy()).mean() > 0.99
