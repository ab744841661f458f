"""Land cover from a hyperspectral scene: small vision transformers on patches, beside linear baselines.

    python examples/hyperspectral.py
    python examples/hyperspectral.py --models efficientvit_b0 --seeds 1 --out runs/samson

The Samson scene has 95x95 pixels and 156 bands. A model sees the patch around a pixel and names the pixel's
class. The scene is cut into blocks, alternately for training and for testing, and only patches that lie
wholly inside a block are used: no training patch shares a pixel with a test patch. Band means and deviations
come from the training patches. The last model of the first seed is saved, exported and run without torch; a
picture of the scene, the truth, the prediction and the errors is drawn. Needs VITESSE_DATA.
"""

from __future__ import annotations

import argparse
import json
import os
import statistics
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from numpy.lib.stride_tricks import sliding_window_view
from numpy.typing import NDArray
from torch import Tensor, nn
from torch.nn import functional as F

import vitesse
from vitesse.progress import say, track
from vitesse.provenance import provenance
from vitesse.runtime.imaging import preprocess_bands
from vitesse.spec import PreprocessSpec, to_mapping
from vitesse.weights import save_weights

DATA = Path(os.environ.get("VITESSE_DATA", Path(__file__).parents[2] / "shared" / "data"))
RADIUS = 3
BLOCK = 19
INPUT_SIDE = 32
MODELS = ("vit_tiny_patch16", "shvit_s1", "efficientvit_b0")


@dataclass(frozen=True)
class Scene:
    """`cube_HWC` float32 in 0..1, `label_HW` class indices, and which pixels are centres for what."""

    cube_HWC: NDArray[np.float32]
    label_HW: NDArray[np.int64]
    class_names: tuple[str, ...]
    train_HW: NDArray[np.bool_]
    test_HW: NDArray[np.bool_]

    def patches(self, chosen_N: NDArray[np.int64]) -> NDArray[np.float32]:
        """The patches around pixels given by their flat index: (N, side, side, C)."""
        side = 2 * RADIUS + 1
        padded_HWC = np.pad(self.cube_HWC, ((RADIUS, RADIUS), (RADIUS, RADIUS), (0, 0)), mode="reflect")
        windows = sliding_window_view(padded_HWC, (side, side), axis=(0, 1))
        rows, columns = np.unravel_index(chosen_N, self.label_HW.shape)
        return np.ascontiguousarray(windows[rows, columns].transpose(0, 2, 3, 1))

    def centres(self, mask_HW: NDArray[np.bool_]) -> NDArray[np.int64]:
        return np.flatnonzero(mask_HW)


def read_scene(path: Path) -> Scene:
    """The scene with its blocks, alternately for training and for testing."""
    content = np.load(path)
    label_HW = content["label"].astype(np.int64)
    rows, columns = np.indices(label_HW.shape)
    margins = [np.minimum(i % BLOCK, BLOCK - 1 - i % BLOCK) for i in (rows, columns)]
    inside = (margins[0] >= RADIUS) & (margins[1] >= RADIUS)
    for_training = (rows // BLOCK + columns // BLOCK) % 2 == 0
    scene = Scene(
        content["cube"],
        label_HW,
        tuple(str(name) for name in content["classes"]),
        inside & for_training,
        inside & ~for_training,
    )
    assert not (covered(scene.train_HW) & covered(scene.test_HW)).any(), "a patch of each shares a pixel"
    return scene


def covered(centres_HW: NDArray[np.bool_]) -> NDArray[np.bool_]:
    """The pixels that lie in a patch around any of the centres."""
    reach = np.pad(centres_HW, RADIUS)
    side = 2 * RADIUS + 1
    return sliding_window_view(reach, (side, side)).any((2, 3))


def draw_labels(scene: Scene, per_class: int, seed: int) -> NDArray[np.int64]:
    """Training pixels, so many of each class."""
    generator = np.random.default_rng(seed)
    candidates = scene.centres(scene.train_HW)
    labels = scene.label_HW.ravel()[candidates]
    chosen = [generator.choice(candidates[labels == c], per_class, replace=False) for c in np.unique(labels)]
    return np.concatenate(chosen)


def preprocess_of(patches_NHWC: NDArray[np.float32]) -> PreprocessSpec:
    """Patches enlarged for a patch embedding of stride 16, normalised band by band."""
    mean_C, std_C = patches_NHWC.mean((0, 1, 2)), patches_NHWC.std((0, 1, 2)) + 1e-3
    return PreprocessSpec(
        image_size=(INPUT_SIDE, INPUT_SIDE),
        resize="squash",
        mean=tuple(mean_C.astype(float).tolist()),
        std=tuple(std_C.astype(float).tolist()),
    )


def tensors(patches_NHWC: NDArray[np.float32], spec: PreprocessSpec) -> Tensor:
    """(N, C, INPUT_SIDE, INPUT_SIDE) float32."""
    return torch.from_numpy(np.stack([preprocess_bands(patch, spec) for patch in patches_NHWC]))


def train_linear(x_NC: Tensor, labels_N: Tensor, num_classes: int) -> nn.Module:
    """Multinomial logistic regression with a small L2 penalty, to convergence."""
    model = nn.Linear(x_NC.shape[1], num_classes)
    nn.init.zeros_(model.weight)
    optimizer = torch.optim.LBFGS(model.parameters(), max_iter=500, line_search_fn="strong_wolfe")

    def closure() -> Tensor:
        optimizer.zero_grad()
        loss = F.cross_entropy(model(x_NC), labels_N) + 1e-3 * model.weight.square().sum()
        loss.backward()
        return loss

    optimizer.step(closure)
    return model.eval()


def train_model(
    name: str, x_NCHW: Tensor, labels_N: Tensor, num_classes: int, steps: int, seed: int
) -> nn.Module:
    """A model trained on flipped and turned patches."""
    torch.manual_seed(seed)
    model = vitesse.create_model(
        name, in_chans=x_NCHW.shape[1], num_classes=num_classes, image_size=INPUT_SIDE
    )
    optimizer = torch.optim.AdamW(model.parameters(), 1e-3, weight_decay=0.05)
    schedule = torch.optim.lr_scheduler.OneCycleLR(optimizer, 1e-3, steps)
    for _ in track(range(steps), name, steps):
        chosen = torch.randint(0, len(labels_N), (32,))
        x_BCHW = torch.rot90(x_NCHW[chosen], int(torch.randint(0, 4, ())), (2, 3))
        if torch.rand(()) < 0.5:
            x_BCHW = x_BCHW.flip(3)
        loss = F.cross_entropy(model(x_BCHW), labels_N[chosen], label_smoothing=0.1)
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
        schedule.step()
    return model.eval()


@torch.inference_mode()
def classify(model: nn.Module, x: Tensor) -> NDArray[np.int64]:
    """Class indices (N,)."""
    logits = torch.cat([model(part) for part in x.split(256)])
    return logits.argmax(1).numpy()


def accuracy(found_N: NDArray[np.int64], labels_N: NDArray[np.int64]) -> dict[str, float]:
    """Overall accuracy, and the mean over classes."""
    right = found_N == labels_N
    return {
        "overall": float(right.mean()),
        "average": float(np.mean([right[labels_N == c].mean() for c in np.unique(labels_N)])),
    }


def run_seed(scene: Scene, seed: int, args: argparse.Namespace) -> tuple[dict[str, dict[str, float]], Any]:
    """Scores by method, and the last model with its preprocessing and the training pixels."""
    chosen = draw_labels(scene, args.per_class, seed)
    test = scene.centres(scene.test_HW)
    labels, test_labels = scene.label_HW.ravel()[chosen], scene.label_HW.ravel()[test]
    patches, test_patches = scene.patches(chosen), scene.patches(test)
    spec = preprocess_of(patches)
    x_NCHW, test_NCHW = tensors(patches, spec), tensors(test_patches, spec)
    labels_N = torch.from_numpy(labels)
    mean, std = np.asarray(spec.mean, np.float32), np.asarray(spec.std, np.float32)
    views: dict[str, Callable[[NDArray[np.float32]], NDArray[np.float32]]] = {
        "linear, centre pixel": lambda p: p[:, RADIUS, RADIUS],
        "linear, patch mean": lambda p: p.mean((1, 2)),
    }
    scores = {}
    for name, view in views.items():
        seen, unseen = (torch.from_numpy((view(p) - mean) / std) for p in (patches, test_patches))
        linear = train_linear(seen, labels_N, len(scene.class_names))
        scores[name] = accuracy(classify(linear, unseen), test_labels) | {"params": count(linear)}
    for name in args.models:
        model = train_model(name, x_NCHW, labels_N, len(scene.class_names), args.steps, seed)
        scores[name] = accuracy(classify(model, test_NCHW), test_labels) | {"params": count(model)}
    return scores, (model, spec, chosen)


def count(model: nn.Module) -> int:
    return sum(parameter.numel() for parameter in model.parameters())


def ship(model: nn.Module, spec: PreprocessSpec, scene: Scene, out: Path) -> NDArray[np.int64]:
    """Save, export, and classify the whole scene without torch: class indices (H, W)."""
    out.mkdir(parents=True, exist_ok=True)
    metadata = {"class_names": list(scene.class_names), "preprocess": to_mapping(spec)}
    save_weights(out / "samson.safetensors", model, metadata)
    vitesse.export(out / "samson.safetensors", out / "samson.onnx", trained_on="Samson hyperspectral scene")
    predictor = vitesse.load(out / "samson.onnx", engine="onnxruntime", batch_size=64, top_k=1)
    records = predictor.stream(list(scene.patches(np.arange(scene.label_HW.size))))
    found = [record.predictions[0].index for record in track(records, "classify", scene.label_HW.size)]
    return np.array(found).reshape(scene.label_HW.shape)


def draw(scene: Scene, found_HW: NDArray[np.int64], chosen: NDArray[np.int64], path: Path) -> None:
    """The scene, the truth, the prediction and the errors, side by side."""
    from matplotlib import pyplot as plt
    from matplotlib.colors import ListedColormap
    from matplotlib.patches import Patch

    colours = ListedColormap(["#c9a66b", "#4b7f3f", "#3f74b5"])
    false_colour = scene.cube_HWC[:, :, [120, 60, 20]]
    false_colour = np.clip(false_colour / np.quantile(false_colour, 0.98, axis=(0, 1)), 0, 1)
    figure, axes = plt.subplots(1, 4, figsize=(15, 4.4), layout="constrained")
    axes[0].imshow(false_colour)
    axes[0].set_title("near infrared, red, green")
    axes[1].imshow(scene.label_HW, cmap=colours)
    axes[1].set_title("truth; dots: training labels")
    axes[1].scatter(chosen % scene.label_HW.shape[1], chosen // scene.label_HW.shape[1], s=5, c="white")
    axes[2].imshow(found_HW, cmap=colours)
    axes[2].set_title("prediction")
    errors = np.where(scene.test_HW, np.where(found_HW == scene.label_HW, 1, 2), 0)
    axes[3].imshow(errors, cmap=ListedColormap(["#e8e8e8", "#bcd9bc", "#c0392b"]), vmin=0, vmax=2)
    wrong = (errors == 2).sum() / scene.test_HW.sum()
    axes[3].set_title(f"test pixels: {wrong:.1%} wrong (red)")
    for axis in axes:
        axis.set_xticks([])
        axis.set_yticks([])
    handles = [Patch(color=colours(i), label=name) for i, name in enumerate(scene.class_names)]
    axes[2].legend(handles=handles, loc="upper center", bbox_to_anchor=(0.5, -0.02), ncols=3, frameon=False)
    figure.savefig(path, dpi=110)
    plt.close(figure)


def summarise(runs: Sequence[dict[str, dict[str, float]]]) -> dict[str, dict[str, float]]:
    """Mean and standard deviation over seeds, by method."""
    return {
        name: {
            "params": runs[0][name]["params"],
            **{
                f"{key}_{label}": round(function([run[name][key] for run in runs]), 4)
                for key in ("overall", "average")
                for label, function in (("mean", statistics.mean), ("std", statistics.pstdev))
            },
        }
        for name in runs[0]
    }


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--models", nargs="+", default=MODELS)
    parser.add_argument("--per-class", type=int, default=15, help="training labels of each class")
    parser.add_argument("--steps", type=int, default=200, help="of training")
    parser.add_argument("--seeds", type=int, default=3)
    parser.add_argument("--out", type=Path, default=Path("runs/samson"))
    args = parser.parse_args()
    scene = read_scene(DATA / "hsi" / "samson.npz")
    runs, first = [], None
    for seed in range(args.seeds):
        scores, trained = run_seed(scene, seed, args)
        runs.append(scores)
        first = first or trained
        say(f"seed {seed}: " + ", ".join(f"{name} {row['overall']:.1%}" for name, row in scores.items()))
    assert first is not None
    model, spec, chosen = first
    found_HW = ship(model, spec, scene, args.out)
    shipped = accuracy(found_HW[scene.test_HW], scene.label_HW[scene.test_HW])["overall"]
    draw(scene, found_HW, chosen, args.out / "samson.png")
    summary = summarise(runs)
    record = {
        "environment": provenance(),
        "per_class": args.per_class,
        "steps": args.steps,
        "seeds": args.seeds,
    }
    record |= {"test_pixels": int(scene.test_HW.sum()), "onnxruntime_overall": shipped, "methods": summary}
    (args.out / "samson.json").write_text(json.dumps(record, indent=1) + "\n")
    print(f"{'method':<24}{'parameters':>12}{'overall':>16}{'average':>16}")
    for name, row in summary.items():
        cells = [f"{row[f'{key}_mean']:.1%} ± {row[f'{key}_std']:.1%}" for key in ("overall", "average")]
        print(f"{name:<24}{row['params']:>12,}{cells[0]:>16}{cells[1]:>16}")
    print(f"{args.models[-1]} of seed 0 as an artefact, on ONNX Runtime: {shipped:.1%}; files in {args.out}/")


if __name__ == "__main__":
    main()
