"""Detectors and segmenters go the way of classifiers: trained, resumed, scored, exported, asked."""

from __future__ import annotations

import io
import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image

import vitesse
import vitesse.export.int8 as int8
from vitesse.data.annotated import open_boxes, open_maps
from vitesse.data.dense import IGNORE
from vitesse.errors import ConfigError, DataError
from vitesse.evaluate import DenseEvaluation, evaluate
from vitesse.heads import mask_rcnn
from vitesse.metrics.dense import BoxesFound, Objects
from vitesse.metrics.detection import BoxScorer
from vitesse.models import detectors
from vitesse.results import Detections, SemanticMap
from vitesse.train import train
from vitesse.train.recipe import Recipe
from vitesse.train.tasks import TASKS, task_of
from vitesse.train.tasks.detect import BoxLoss
from vitesse.train.tasks.segment import PixelLoss, class_weights
from vitesse.train.tasks.shown import worst_boxes

DETECTOR, SEGMENTER = "fcos_e2e_efficientvit_b0", "efficientvit_seg_b0_cityscapes"
INSTANCES = "mask_rcnn_shvit_s1"
COLOURS = {"red": (220, 40, 40), "blue": (40, 60, 220)}
SIDE = 64
SETTINGS = {
    "image_size": SIDE,
    "batch_size": 6,
    "workers": 0,
    "init": "",
    "trackers": [],
    "ema": 0.0,
    "scale": [0.9, 1.1],
    "warmup_epochs": 0.5,
    "eval_every": 1,
    "log_every": 1,
}


@pytest.fixture(scope="module")
def painted(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Grey pictures with a red and a blue square each: as COCO boxes in `boxes`, as label maps in `maps`."""
    root = tmp_path_factory.mktemp("painted")
    generator = np.random.default_rng(0)
    for split, count in (("train", 24), ("val", 8)):
        images, annotations = [], []
        for folder in (f"boxes/{split}", f"maps/images/{split}", f"maps/masks/{split}"):
            (root / folder).mkdir(parents=True)
        for number in range(count):
            pixels_HWC = np.full((48, 64, 3), 128, np.uint8)
            labels_HW = np.zeros((48, 64), np.uint8)
            for label, colour in enumerate(COLOURS.values()):
                left, top = int(generator.integers(2, 14)) + 30 * label, int(generator.integers(2, 26))
                pixels_HWC[top : top + 18, left : left + 18] = colour
                labels_HW[top : top + 18, left : left + 18] = label + 1
                box = {"bbox": [left, top, 18, 18], "area": 324, "iscrowd": 0, "category_id": label + 1}
                annotations.append({**box, "id": len(annotations) + 1, "image_id": number})
            name = f"{number}.png"
            Image.fromarray(pixels_HWC).save(root / "boxes" / split / name)
            Image.fromarray(pixels_HWC).save(root / "maps/images" / split / name)
            Image.fromarray(labels_HW).save(root / "maps/masks" / split / name)
            images.append({"id": number, "file_name": f"{split}/{name}", "height": 48, "width": 64})
        categories = [{"id": label + 1, "name": name} for label, name in enumerate(COLOURS)]
        written = {"images": images, "annotations": annotations, "categories": categories}
        (root / "boxes" / "annotations").mkdir(exist_ok=True)
        (root / "boxes" / "annotations" / f"instances_{split}.json").write_text(json.dumps(written))
    (root / "maps" / "classes.txt").write_text("ground\nred\nblue\n")
    return root


def rows(out: Path, kind: str) -> list[dict[str, Any]]:
    lines = (out / "metrics.jsonl").read_text().splitlines()
    return [row for row in map(json.loads, lines) if row["kind"] == kind]


@pytest.fixture(scope="module")
def finished(painted: Path, tmp_path_factory: pytest.TempPathFactory) -> dict[str, Path]:
    """Folders of a run each, by task."""
    out = tmp_path_factory.mktemp("runs")
    longer = {**SETTINGS, "lr": 5e-3, "epochs": 40, "eval_every": 20, "batch_size": 6, "color_jitter": 0.0}
    train(painted / "boxes", model=DETECTOR, out=out / "detect", overrides=longer)
    train(painted / "maps", model=SEGMENTER, out=out / "segment", overrides={**longer, "resize": "fit"})
    return {"detect": out / "detect", "segment": out / "segment"}


@pytest.mark.slow
def test_a_detector_learns_is_exported_and_finds(
    finished: dict[str, Path], painted: Path, tmp_path: Path
) -> None:
    out = finished["detect"]
    last = rows(out, "epoch")[-1]
    assert rows(out, "step")[-1]["loss"] < 0.7 * rows(out, "step")[0]["loss"]
    assert last["ap50"] > 0.3, "chance is 0"
    page = (out / "report.html").read_text()
    for text in ("average precision", "What it sees", "Class by class", "of 2 found", "data:image/jpeg"):
        assert text in page
    best = out / "checkpoints" / "best" / "model.safetensors"
    artefact = vitesse.export(best, tmp_path / "d.onnx", data=painted / "boxes", split="val")
    assert artefact.manifest.task == "detect"
    assert artefact.manifest.parity is not None
    assert artefact.manifest.parity["equal_boxes"] >= 0.98
    found = evaluate(painted / "boxes", model=artefact.path, split="val", engine="onnxruntime")
    assert isinstance(found, DenseEvaluation)
    of_torch = evaluate(painted / "boxes", model=best, split="val")
    assert found.to_dict()["ap50"] == pytest.approx(of_torch.to_dict()["ap50"], abs=1e-3)
    assert artefact.manifest.accuracy is not None
    assert artefact.manifest.accuracy["ap50"] == pytest.approx(found.to_dict()["ap50"])
    assert max(row.get("ap", 0) for row in rows(out, "epoch")) == pytest.approx(
        found.to_dict()["ap"], abs=1e-3
    )
    records = vitesse.load(artefact.path, engine="openvino", min_score=0).predict(
        sorted((painted / "boxes" / "val").iterdir())
    )
    source = open_boxes(painted / "boxes", "val")
    scorer = BoxScorer(source)
    named = {Path(source.name(index)).name: index for index in range(len(source))}
    for record in records:
        assert isinstance(record, Detections)
        assert record.size == (48, 64)
        corners = np.array([(x, y, x + w, y + h) for x, y, w, h in (p.bbox for p in record.predictions)])
        scores = np.array([p.score for p in record.predictions])
        labels = np.array([p.index for p in record.predictions])
        scorer.add(named[Path(record.source).name], corners.reshape(-1, 4), scores, labels)
    assert scorer.scores().ap50 == pytest.approx(found.to_dict()["ap50"], abs=0.02)


@pytest.mark.slow
def test_a_segmenter_learns_is_exported_and_colours(
    finished: dict[str, Path], painted: Path, tmp_path: Path
) -> None:
    out = finished["segment"]
    assert rows(out, "epoch")[-1]["miou"] > 0.4, "all ground gives 0.26"
    page = (out / "report.html").read_text()
    for text in ("mean IoU", "What it sees", "of the pixels right", "Class by class"):
        assert text in page
    best = out / "checkpoints" / "best" / "model.safetensors"
    artefact = vitesse.export(best, tmp_path / "s.onnx", data=painted / "maps", split="val")
    found = evaluate(painted / "maps", model=artefact.path, split="val", engine="openvino")
    assert max(row.get("miou", 0) for row in rows(out, "epoch")) == pytest.approx(
        found.to_dict()["miou"], abs=2e-3
    )
    picture = sorted((painted / "maps/images/val").iterdir())[0]
    (record,) = vitesse.load(artefact.path).predict([picture])
    assert isinstance(record, SemanticMap)
    right_HW = open_maps(painted / "maps", "val").label_map(0)
    assert (record.classes_HW == right_HW).mean() > 0.7


@pytest.mark.slow
@pytest.mark.parametrize(("task", "data", "key"), [("detect", "boxes", "ap"), ("segment", "maps", "miou")])
def test_int8_is_scored_beside_fp32(
    finished: dict[str, Path],
    painted: Path,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    task: str,
    data: str,
    key: str,
) -> None:
    monkeypatch.setattr(int8, "seconds_a_picture", lambda runners, _: {"fp32": 2.0, "int8": 1.0})
    monkeypatch.setattr(int8, "MAX_LOSS", 0.1)  # of eight pictures, by a model that barely learned
    best = finished[task] / "checkpoints" / "best" / "model.safetensors"
    asked = {"data": painted / data, "split": "val", "precision": "int8", "calibrate": painted / data}
    made = vitesse.export(best, tmp_path / "m.onnx", **asked)
    known = made.manifest.accuracy
    assert known is not None
    assert 0 < known[f"fp32_{key}"] - 0.1 <= known[key]
    worst = min(
        evaluate(painted / data, model=made.path, split="val", engine=name).to_dict()[key]
        for name in ("onnxruntime", "openvino")
    )
    assert known[key] == pytest.approx(worst, abs=1e-6)
    assert made.manifest.calibration is not None
    assert made.manifest.calibration["images"] == 24, "the training pictures"
    assert made.manifest.calibration["float_operators"], "the layers that predict"


@pytest.mark.slow
@pytest.mark.parametrize(("task", "model"), [("boxes", DETECTOR), ("maps", SEGMENTER)])
def test_a_stopped_run_ends_with_the_same_weights(
    painted: Path,
    tmp_path: Path,
    weights: Callable[..., Any],
    same: Callable[..., bool],
    task: str,
    model: str,
) -> None:
    from vitesse.errors import StoppedError
    from vitesse.train.step import TrainingStep

    settings = {**SETTINGS, "epochs": 2, "eval_every": 2, "resize": "fit", "ema": 0.9}
    train(painted / task, model=model, out=tmp_path / "whole", overrides=settings)
    step, done = TrainingStep.__call__, []

    def stop_in_the_second_epoch(self: TrainingStep, *args: Any, **wishes: Any) -> Any:
        done.append(1)
        return step(self, *args, **{**wishes, "stop": len(done) == 6})

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(TrainingStep, "__call__", stop_in_the_second_epoch)
        with pytest.raises(StoppedError):
            train(painted / task, model=model, out=tmp_path / "stopped", overrides=settings)
    train(painted / task, model=model, out=tmp_path / "stopped", overrides=settings)
    assert same(weights(tmp_path / "whole"), weights(tmp_path / "stopped"))
    losses = [[row["loss"] for row in rows(tmp_path / name, "step")] for name in ("whole", "stopped")]
    assert losses[0] == losses[1]


def test_data_for_another_task_is_refused_with_a_model_to_take(painted: Path, tmp_path: Path) -> None:
    with pytest.raises(
        ConfigError, match=f"annotated to detect, efficientvit_m0 is not; take --model {'fcos'}"
    ):
        train(painted / "boxes", model="efficientvit_m0", out=tmp_path)
    with pytest.raises(ConfigError, match="annotated to segment"):
        train(painted / "maps", model=DETECTOR, out=tmp_path)


@pytest.fixture(scope="module")
def outlined(painted: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The painted boxes with diamonds as masks."""
    root = tmp_path_factory.mktemp("outlined")
    (root / "annotations").mkdir()
    for split in ("train", "val"):
        (root / split).symlink_to(painted / "boxes" / split)
        name = f"annotations/instances_{split}.json"
        written = json.loads((painted / "boxes" / name).read_text())
        for one in written["annotations"]:
            x, y, w, h = one["bbox"]
            one["segmentation"] = [[x + w / 2, y, x + w, y + h / 2, x + w / 2, y + h, x, y + h / 2]]
        (root / name).write_text(json.dumps(written))
    return root


def test_a_model_with_masks_is_trained_on_masks_and_scored_by_them(
    outlined: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    for module, name, value in (
        (mask_rcnn, "PROPOSALS", 20),
        (mask_rcnn, "HIDDEN", 16),
        (detectors, "PAPER_CHANNELS", 8),
    ):
        monkeypatch.setattr(module, name, value)
    settings = {**SETTINGS, "epochs": 1, "limit_train": 8, "batch_size": 2, "limit_val": 3}
    result = train(outlined, model=INSTANCES, out=tmp_path / "out", overrides=settings)
    (row,) = rows(tmp_path / "out", "epoch")
    assert np.isfinite(row["loss"])
    assert 0 <= row["mask_ap"] <= row["mask_ap50"] <= 1
    assert "mask AP" in result.scores.explain()
    page = (tmp_path / "out" / "report.html").read_text()
    assert "average precision of masks" in page


def test_a_model_with_masks_is_not_trained_on_boxes_alone(painted: Path, tmp_path: Path) -> None:
    with pytest.raises(DataError, match=r"expected objects with masks .* take a model of boxes, such as"):
        train(painted / "boxes", model=INSTANCES, out=tmp_path / "out", overrides=SETTINGS)
    assert not (tmp_path / "out").exists()


@pytest.mark.parametrize(("model", "masks"), [(DETECTOR, False), (INSTANCES, True)])
def test_masks_are_drawn_for_models_that_learn_them(outlined: Path, model: str, masks: bool) -> None:
    task = task_of(model)
    source = task.exam.open(outlined, "train")
    assert source.has_masks
    augment = task.augmentation(Recipe(**{**SETTINGS, "scale": (1.0, 1.0)}))
    _, target = augment(source.read(0), source.boxes(0))
    assert (target.masks_NHW is not None) == masks
    if masks:
        drawn_N = target.masks_NHW.flatten(1).sum(1) / (target.boxes_N4[:, 2:] - target.boxes_N4[:, :2]).prod(
            1
        )
        assert ((drawn_N > 0.4) & (drawn_N < 0.6)).all(), "half a box is inside its diamond"


def test_the_report_draws_what_was_found_with_its_mask(outlined: Path) -> None:
    source = TASKS["detect"].exam.open(outlined, "val")
    boxes = source.boxes(0)
    found = Objects(boxes.boxes_N4.astype(float), np.ones(2, np.float32), boxes.labels_N, boxes.masks)
    pictures = [
        np.asarray(Image.open(io.BytesIO(worst_boxes(BoxesFound({0: one}), source)[0].jpeg)), float)
        for one in (found, found._replace(masks=None))
    ]
    left, top, right, bottom = boxes.boxes_N4[0] * (640 / 64)
    middle, corner = (
        (slice(y - 5, y + 5), slice(x - 5, x + 5))
        for y, x in ((int(top + bottom) // 2, int(left + right) // 2), (int(bottom) - 20, int(right) - 20))
    )
    assert np.abs(pictures[0][middle] - pictures[1][middle]).mean() > 20
    assert np.abs(pictures[0][corner] - pictures[1][corner]).mean() < 8


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"mixup": 0.2}, "recipe mixup: expected 0.0, since it is for classifiers alone, got 0.2"),
        ({"teacher": "timm:resnet18"}, "recipe teacher"),
        ({"resize": "crop"}, "recipe resize: expected fit or squash"),
        ({"scale": [2, 1]}, "recipe scale"),
        ({"image_height": 0}, "recipe image_height"),
        ({"class_weight": 0.5}, "recipe class_weight: expected 0.0, since it is for label maps alone"),
    ],
)
def test_what_only_classifiers_do_is_refused(
    painted: Path, tmp_path: Path, changes: dict[str, Any], message: str
) -> None:
    with pytest.raises(ConfigError, match=message):
        train(painted / "boxes", model=DETECTOR, out=tmp_path, overrides={**SETTINGS, **changes})


def test_other_classes_are_not_scored(finished: dict[str, Path], painted: Path, tmp_path: Path) -> None:
    other = json.loads((painted / "boxes/annotations/instances_val.json").read_text())
    other["categories"][0]["name"] = "green"
    (tmp_path / "val").symlink_to(painted / "boxes" / "val")
    (tmp_path / "other.json").write_text(json.dumps(other))
    best = finished["detect"] / "checkpoints" / "best" / "model.safetensors"
    with pytest.raises(DataError, match="the model has the classes red, blue, the data has green, blue"):
        evaluate(tmp_path / "other.json", model=best)


def test_blank_pictures_teach_nothing() -> None:
    recipe = Recipe(image_size=64, image_height=32, resize="fit")
    spec = vitesse.spec.PreprocessSpec(image_size=(32, 64), resize="fit")
    cpu = torch.device("cpu")
    pixels = PixelLoss(recipe, spec, torch.nn.Conv2d(3, 4, 8, 8), cpu)
    batch = pixels.blank(2)
    assert batch.images_BCHW.shape == (2, 3, 32, 64)
    assert (batch.annotations == IGNORE).all()  # type: ignore[union-attr]
    assert pixels(batch, 64, 0.0).item() == 0
    boxes = BoxLoss(recipe, spec, lambda x, targets: {"loss": x.sum() * 0 + len(targets[0]["boxes"])}, cpu)  # type: ignore[arg-type]
    assert boxes(boxes.blank(2), 64, 0.0).item() == 0
    (nothing, _) = boxes.blank(2).annotations  # type: ignore[misc]
    assert nothing.masks_NHW.shape == (0, 32, 64), "for models that learn from masks"


def test_parts_of_pictures_are_learned_at_their_own_scale() -> None:
    recipe = Recipe(image_size=64, image_height=48, resize="squash", crop_size=(24, 40))
    spec = vitesse.spec.PreprocessSpec(image_size=(48, 64), resize="squash")
    shapes: list[tuple[int, ...]] = []
    layer = torch.nn.Conv2d(3, 4, 8, 8)
    layer.register_forward_pre_hook(lambda _, inputs: shapes.append(tuple(inputs[0].shape)))
    loss = PixelLoss(recipe, spec, layer, torch.device("cpu"))
    loss(loss.blank(2), 64, 0.0)
    assert shapes == [(2, 3, 24, 40)], "not enlarged to the 48x64 of the whole picture"


def test_pixels_of_rare_classes_count_more() -> None:
    weights_K = class_weights(np.array([100, 25, 400, 0]), 0.5)
    assert weights_K.tolist() == [1, 2, 0.5, 1], "the median is 100; nothing is known of the last"
    spec = vitesse.spec.PreprocessSpec(image_size=(8, 8))
    model = torch.nn.Conv2d(3, 4, 1)
    recipe = Recipe(image_size=8, label_smoothing=0.1)
    loss = PixelLoss(recipe, spec, model, torch.device("cpu"), weights_K)
    batch = loss.blank(2)
    batch.annotations[:, :4] = torch.arange(4).repeat(2, 4, 2)  # type: ignore[index]
    logits_BKHW = model(loss.inputs(batch.images_BCHW))
    expected = torch.nn.CrossEntropyLoss(weights_K, ignore_index=IGNORE, label_smoothing=0.1)(
        logits_BKHW,
        batch.annotations.long(),  # type: ignore[union-attr]
    )
    torch.testing.assert_close(loss(batch, 8, 0.0), expected)
    assert PixelLoss(recipe, spec, model, torch.device("cpu"), weights_K)(loss.blank(1), 8, 0.0).item() == 0


def test_every_task_counts_what_it_learns_from(painted: Path) -> None:
    boxes, maps = (
        TASKS[name].exam.open(painted / where, "train")
        for name, where in (("detect", "boxes"), ("segment", "maps"))
    )
    assert TASKS["detect"].amounts(boxes).tolist() == [24, 24]
    assert TASKS["segment"].amounts(maps).tolist() == [24 * (48 * 64 - 2 * 324), 24 * 324, 24 * 324]
