"""`vitesse analyze heads`: what it prints, writes and refuses."""

from __future__ import annotations

import json
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from matplotlib.figure import Figure
from PIL import Image
from safetensors.torch import save_file

from vitesse import errors
from vitesse.analyze import heads_report, weighted
from vitesse.analyze.head_similarity import BlockHeads
from vitesse.analyze.heads import HeadsAnalysis
from vitesse.models import build
from vitesse.spec import ModelSpec
from vitesse.weights.files import save_weights


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory, photo: Callable[..., Image.Image]) -> Path:
    """Three pictures, a model of several heads, one of single heads and one without any."""
    torch.manual_seed(0)
    root = tmp_path_factory.mktemp("heads")
    (root / "photos").mkdir()
    for seed in range(3):
        photo(40, 40, seed=seed).save(root / "photos" / f"{seed}.png")
    for file, name in {"m0": "efficientvit_m0", "vit": "vit_tiny_patch4", "s1": "shvit_s1"}.items():
        spec = ModelSpec(name=name, image_size=(32, 32), num_classes=3)
        save_weights(root / f"{file}.safetensors", build(spec), {"preprocess": {"image_size": [32, 32]}})
    return root


def test_a_checkpoint_s_heads_are_compared(folder: Path, tmp_path: Path, vitesse: Callable[..., Any]) -> None:
    m0, vit, out = folder / "m0.safetensors", folder / "vit.safetensors", tmp_path / "out"
    arguments = ("analyze", "heads", m0, vit, "--data", folder / "photos", "--batch-size", "2")
    done = vitesse(*arguments, "--json", "--out", out)
    assert done.code == 0
    first, second = done.records
    assert (first["model"], first["weights"], first["images"]) == (str(m0), "file", 3)
    assert [block["heads"] for block in first["blocks"]] == [4] * 6
    assert [block["heads"] for block in second["blocks"]] == [3] * 12
    for record in (first, second):
        every = [score for block in record["blocks"] for score in block["max_similarity"]]
        assert record["redundancy"] == pytest.approx(np.mean(every), abs=1e-3)
        for block in record["blocks"]:
            similarity = np.array(block["similarity"])
            assert block["maps"] == 3
            np.testing.assert_array_equal(similarity, similarity.T)
            np.testing.assert_array_equal(similarity.diagonal(), 1)
            assert block["redundancy"] == pytest.approx(np.mean(block["max_similarity"]), abs=1e-3)
    written = json.loads((out / "heads.json").read_text())
    assert written["analyses"] == [first, second]
    assert {"versions", "cpu", "commit"} <= written["environment"].keys()
    assert (out / "heads.png").read_bytes().startswith(b"\x89PNG")
    assert "| 12 | blocks.11.attention.branch.attention | 3 | 65x65 |" in (out / "heads.md").read_text()
    table = vitesse(*arguments)
    assert table.out == (out / "heads.md").read_text()


def test_figures_do_not_depend_on_the_batch_size(folder: Path, vitesse: Callable[..., Any]) -> None:
    arguments = ("analyze", "heads", folder / "vit.safetensors", "--data", folder / "photos", "--json")
    one, three = (vitesse(*arguments, "--batch-size", str(size)).records[0] for size in (1, 3))
    assert one["redundancy"] == pytest.approx(three["redundancy"], abs=1e-3)
    (limited,) = vitesse(*arguments, "--limit", "2").records
    assert limited["images"] == 2


def test_titles_fit_into_the_picture_of_one_small_model() -> None:
    block = BlockHeads(
        module="a",
        maps=1,
        queries=4,
        keys=4,
        similarity_AA=np.eye(2),
        correlation_AA=np.eye(2),
        max_similarity_A=np.ones(2),
        max_correlation_A=np.ones(2),
    )
    common = {"model": "m", "weights": "file", "data": "photos", "image_size": (8, 8), "refused": 0}
    analysis = HeadsAnalysis(images=1, blocks=(block,) * 2, single_headed=(), **common)
    figure = Figure((9, 4), layout="constrained")
    axes = figure.subplots(1, 2)
    heads_report._draw_curves(axes, [analysis])
    figure.draw_without_rendering()
    for axis in axes:
        assert axis.title.get_window_extent().x1 <= figure.bbox.x1


@pytest.mark.parametrize("layout", ["plain", "classes"])
def test_one_picture_is_said_and_unreadable_ones_are_counted(
    layout: str, folder: Path, tmp_path: Path, vitesse: Callable[..., Any]
) -> None:
    data = tmp_path / "data"
    pictures = data if layout == "plain" else data / "cat"
    pictures.mkdir(parents=True)
    shutil.copy(folder / "photos" / "0.png", pictures)
    (pictures / "broken.png").write_bytes(b"broken")
    done = vitesse("analyze", "heads", folder / "m0.safetensors", "--data", data, "--json")
    assert done.code == 0
    assert (done.records[0]["images"], done.records[0]["refused"]) == (1, 1)
    assert "seen on 1 picture only" in done.err
    assert "1 pictures could not be read and are left out" in done.err


def test_random_weights_are_said_and_other_layers_left_out(
    folder: Path, monkeypatch: pytest.MonkeyPatch, vitesse: Callable[..., Any]
) -> None:
    monkeypatch.setattr(weighted, "_is_cached", lambda model: False)
    done = vitesse("analyze", "heads", "timm:pvt_v2_b0", "--data", folder / "photos", "--limit", "1")
    assert done.code == 0
    assert "(random weights)" in done.out
    assert "its weights are random" in done.out
    assert "left out, for they have a single head: model.stages.0.blocks.0.attn" in done.out


def test_published_weights_in_the_cache_are_taken(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    asked: list[tuple[str, str]] = []
    monkeypatch.setattr("vitesse.weights.hub.is_cached", lambda *file: bool(asked.append(file)))
    (random,) = weighted.find_weighted(["efficientvit_m0"])
    assert random.weights == "random"
    assert asked == [("timm/efficientvit_m0.r224_in1k", "model.safetensors")]
    assert weighted.find_weighted(["vit_tiny_patch4"])[0].weights == "random"  # of which there are none
    loaded = build(ModelSpec(name="efficientvit_m0")), random.manifest
    monkeypatch.setattr("vitesse.weights.hub.is_cached", lambda *file: True)
    monkeypatch.setattr("vitesse.models.loading.load_torch", lambda name: loaded)
    (published,) = weighted.find_weighted(["efficientvit_m0"])
    assert (published.weights, published.module) == ("published", loaded[0])


def test_arch_is_for_files_that_do_not_say_theirs(
    folder: Path, tmp_path: Path, vitesse: Callable[..., Any]
) -> None:
    module = build(ModelSpec(name="timm:deit_tiny_patch16_224"))
    foreign = tmp_path / "deit.safetensors"
    save_file({name: tensor.half() for name, tensor in module.model.state_dict().items()}, foreign)
    files = (foreign, folder / "m0.safetensors")
    arguments = ("analyze", "heads", "--arch", "timm:deit_tiny_patch16_224", "--data", folder / "photos")
    done = vitesse(*arguments, *files, "--limit", "1", "--json")
    assert done.code == 0, done.err
    assert [len(record["blocks"]) for record in done.records] == [12, 6]
    assert done.records[0]["image_size"] == [224, 224]
    mismatch = vitesse(*arguments, files[1])
    assert mismatch.code == 1
    assert "expected weights of timm:deit_tiny_patch16_224, the file holds efficientvit_m0" in mismatch.err


@pytest.mark.parametrize(
    ("arguments", "code", "message"),
    [
        (["s1.safetensors"], 2, "expected attention of several heads, all its 9 have one alone"),
        (["timm:mobilenetv3_small_050"], 2, "found no softmax attention in it"),
        (["m0.safetensors", "s1.safetensors"], 2, "s1.safetensors: expected attention of several heads"),
        (["efficientvit_m9"], 2, "no model is named 'efficientvit_m9'; did you mean"),
        (["timm:deit_tinny"], 2, "timm has no model named 'deit_tinny'; did you mean"),
        (["efficientvit_sam_l0"], 2, "got one for prompts"),
        (["model.pth"], 2, "run `vitesse convert` first"),
        (["none.safetensors"], 1, "none.safetensors: no such file"),
        (["efficientvit_m0", "--arch", "efficientvit_m0"], 2, "--arch: expected a checkpoint"),
        (["m0.safetensors", "--data", "nowhere"], 1, "nowhere: no such file or folder"),
        (["m0.safetensors", "--data", "empty"], 1, "expected class folders with pictures"),
        (["m0.safetensors", "--data", "broken"], 1, "none of 2 pictures could be read"),
        (["m0.safetensors", "--limit", "0"], 2, "--limit"),
        (["m0.safetensors", "--batch-size", "0"], 2, "--batch-size"),
    ],
)
def test_bad_requests_are_one_line(
    arguments: list[str],
    code: int,
    message: str,
    folder: Path,
    monkeypatch: pytest.MonkeyPatch,
    vitesse: Callable[..., Any],
    one_error: Callable[..., str],
) -> None:
    monkeypatch.setattr(weighted, "_is_cached", lambda model: False)
    (folder / "empty").mkdir(exist_ok=True)
    (folder / "broken").mkdir(exist_ok=True)
    for name in ("a.png", "b.png"):
        (folder / "broken" / name).write_bytes(b"broken")
    monkeypatch.chdir(folder)
    data = () if "--data" in arguments else ("--data", "photos")
    assert message in one_error(vitesse("analyze", "heads", *arguments, *data), code)


def test_an_artefact_without_heads_says_what_to_name(
    make_artefact: Callable[..., Path],
    folder: Path,
    vitesse: Callable[..., Any],
    one_error: Callable[..., str],
) -> None:
    done = vitesse("analyze", "heads", make_artefact(), "--data", folder / "photos")
    assert "found no softmax attention in it; of linear attention name the checkpoint" in one_error(done, 2)


def test_a_missing_extra_is_named_before_anything_runs(
    monkeypatch: pytest.MonkeyPatch, folder: Path, vitesse: Callable[..., Any], one_error: Callable[..., str]
) -> None:
    real = errors.importlib.import_module

    def without_matplotlib(name: str, package: str | None = None) -> object:
        if name.startswith("matplotlib"):
            raise ModuleNotFoundError(f"No module named {name!r}", name=name)
        return real(name, package)

    monkeypatch.setattr(errors.importlib, "import_module", without_matplotlib)
    done = vitesse("analyze", "heads", "none.safetensors", "--data", folder, "--out", folder / "out")
    assert "pip install 'vitesse[bench]'" in one_error(done, 1)


def test_late_blocks_of_the_real_deit_repeat_themselves(
    data_dir: Path, monkeypatch: pytest.MonkeyPatch, vitesse: Callable[..., Any]
) -> None:
    """As the paper's figure 3 has it of DeiT-T: high similarity, most of all in the last blocks."""
    file, data = data_dir / "deit_tiny_in1k_lnq_fp16.safetensors", data_dir / "in1k_val500"
    arguments = ("--arch", "timm:deit_tiny_patch16_224", "--data", data, "--limit", "4", "--json")
    (record,) = vitesse("analyze", "heads", file, *arguments).records
    blocks = [block["redundancy"] for block in record["blocks"]]
    assert min(blocks[-2:]) > 0.85
    assert max(blocks[:6]) < 0.75
    assert [block["correlation"] for block in record["blocks"]][-1] > 0.85
