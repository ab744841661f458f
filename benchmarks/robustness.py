"""Do all families stay finite and near their float32 logits in half precision, on large and extreme inputs?

    python benchmarks/robustness.py

Every cell is a forward pass under autocast on photos, normalised as for ImageNet and multiplied by 1, 10 or
100, against the same model in float32 on the same input: whether all logits are finite, and the smallest
cosine between the two vectors of logits. Large inputs make a network's answers to different photos alike, so
two more figures stand beside it: the cosine between the float32 logits of the two photos, and the cosine of
half precision to float32 when the photos' mean is taken from both.

No published weights are on the machine that made the record, but for DeiT-tiny's, which the plain ViT has.
The others are trained here for a few hundred steps on CIFAR-100 at 96 pixels, so that their weights and
statistics are those of a trained network; random ones amplify every rounding. The weights are kept in
--weights and used again. Needs VITESSE_DATA.
"""

from __future__ import annotations

import argparse
from functools import cache
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn
from torch.nn import functional as F

from common import DATA, table, write_record
from vitesse.data.sources import open_source, take
from vitesse.inputs import expand
from vitesse.models import build
from vitesse.progress import track
from vitesse.runtime.imaging import load_tensor
from vitesse.spec import ModelSpec, PreprocessSpec
from vitesse.weights import load_weights, save_weights

MODELS = {  # by name, steps of training
    "efficientvit_m0": 300,
    "shvit_s1": 300,
    "efficientvit_b0": 300,
    "efficientvit_b0_single_scale": 300,
    "efficientvit_l0": 60,
    "vit_tiny_patch16": 0,
}
TRAIN_SIDE, TRAIN_BATCH, TRAIN_IMAGES = 96, 32, 6400
PHOTOS = ("sample:astronaut", "sample:coffee")
SIZES, SCALES = (224, 512, 1024), (1, 10, 100)
DTYPES = {"bf16": torch.bfloat16, "fp16": torch.float16}
DEIT = DATA / "deit_tiny_in1k_lnq_fp16.safetensors"
COSINE_TARGET = 0.999


def photos(side: int) -> Tensor:
    """The sample photos, preprocessed: (2, 3, side, side) float32."""
    spec = PreprocessSpec(image_size=(side, side), resize="squash")
    pictures = [p[1] if isinstance(p, tuple) else p for p in expand(PHOTOS)]
    return torch.from_numpy(np.stack([load_tensor(picture, spec) for picture in pictures]))


def weights_of(name: str, folder: Path) -> Path:
    """A checkpoint of a trained model, trained now where the folder has none."""
    path = folder / f"{name}.safetensors"
    if name.startswith("vit_"):
        return DEIT
    if not path.is_file():
        folder.mkdir(parents=True, exist_ok=True)
        save_weights(path, train(name, MODELS[name]))
    return path


def train(name: str, steps: int) -> nn.Module:
    """A model after some steps on CIFAR-100."""
    torch.manual_seed(0)
    model = build(ModelSpec(name=name, num_classes=100))
    images_NCHW, labels_N = cifar()
    optimizer = torch.optim.AdamW(model.parameters(), 1e-3, weight_decay=0.05)
    for _ in track(range(steps), f"train {name}", steps):
        chosen = torch.randint(0, len(labels_N), (TRAIN_BATCH,))
        x_BCHW = F.interpolate(images_NCHW[chosen], size=TRAIN_SIDE, mode="bilinear")
        loss = F.cross_entropy(model(x_BCHW), labels_N[chosen])
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
    return model


@cache
def cifar() -> tuple[Tensor, Tensor]:
    """Some training pictures of CIFAR-100, (N, 3, 32, 32) float32 normalised, and labels (N,)."""
    source = take(open_source(DATA / "cifar100", "train"), TRAIN_IMAGES)
    spec = PreprocessSpec(image_size=(32, 32), crop_pct=1.0)
    images = [load_tensor(source.read(index), spec) for index in range(len(source))]
    return torch.from_numpy(np.stack(images)), torch.from_numpy(source.labels)


def trained(name: str, side: int, folder: Path) -> nn.Module:
    """A trained model for another image size."""
    classes = 1000 if name.startswith("vit_") else 100
    model = build(ModelSpec(name=name, image_size=(side, side), num_classes=classes))
    load_weights(model, weights_of(name, folder))
    return model.eval()


@torch.no_grad()
def compare(model: nn.Module, x_BCHW: Tensor, expected_BK: Tensor, dtype: torch.dtype) -> dict[str, Any]:
    """Whether the logits under autocast are finite, and their smallest cosines to those in float32."""
    with torch.autocast("cpu", dtype=dtype):
        logits_BK = model(x_BCHW).float()
    if not (torch.isfinite(logits_BK).all() and torch.isfinite(expected_BK).all()):
        return {"finite": False, "cosine": None, "centred": None}
    mean_K = expected_BK.mean(0)
    return {
        "finite": True,
        "cosine": smallest_cosine(logits_BK, expected_BK),
        "centred": smallest_cosine(logits_BK - mean_K, expected_BK - mean_K),
    }


def smallest_cosine(first_BK: Tensor, second_BK: Tensor) -> float:
    return round(F.cosine_similarity(first_BK, second_BK).min().item(), 6)


def measure(name: str, side: int, scale: int, model: nn.Module) -> dict[str, Any]:
    """One row of the table."""
    x_BCHW = photos(side) * scale
    with torch.no_grad():
        expected_BK = model(x_BCHW)
    found = {label: compare(model, x_BCHW, expected_BK, dtype) for label, dtype in DTYPES.items()}
    between = smallest_cosine(expected_BK[:1], expected_BK[1:])
    good = all(cell["finite"] and cell["cosine"] >= COSINE_TARGET for cell in found.values())
    return {"model": name, "px": side, "scale": scale, "photos": between, **found, "ok": good}


def shown(cell: dict[str, Any]) -> str:
    return f"{cell['cosine']:.5f} {cell['centred']:.4f}" if cell["finite"] else "not finite"


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--models", nargs="+", default=MODELS)
    parser.add_argument("--sizes", nargs="+", type=int, default=SIZES)
    parser.add_argument("--weights", type=Path, default=Path("runs/robustness"))
    parser.add_argument("--out", type=Path)
    args = parser.parse_args()
    heading = ["model", "px", "input", "photo to photo", *(f"{dtype} raw, centred" for dtype in DTYPES), ""]
    cells, rows = [], [heading]
    for name in args.models:
        for side in args.sizes:
            model = trained(name, side, args.weights)
            for scale in SCALES:
                cells.append(cell := measure(name, side, scale, model))
                verdict = "ok" if cell["ok"] else "SHORT"
                half = [shown(cell[dtype]) for dtype in DTYPES]
                rows.append([name, side, f"x{scale}", f"{cell['photos']:.5f}", *half, verdict])
                print(*rows[-1], flush=True)
    content = {"cosine_target": COSINE_TARGET, "train_steps": MODELS, "cells": cells}
    path = write_record("robustness", content, args.out)
    print(table(rows), path, sep="\n")


if __name__ == "__main__":
    main()
