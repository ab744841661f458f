"""Do all families stay finite and near their float32 logits in half precision, on large and extreme inputs?

    python benchmarks/robustness.py

Every cell is a forward pass under autocast on photos, normalised as for ImageNet and multiplied by 1, 10 or
100, against the same model in float32 on the same input: whether all logits are finite, and the smallest
cosine between the two vectors of logits.

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
def compare(model: nn.Module, x_BCHW: Tensor, dtype: torch.dtype) -> dict[str, Any]:
    """Whether the logits under autocast are finite, and their smallest cosine to those in float32."""
    expected_BK = model(x_BCHW)
    with torch.autocast("cpu", dtype=dtype):
        logits_BK = model(x_BCHW).float()
    finite = bool(torch.isfinite(logits_BK).all() and torch.isfinite(expected_BK).all())
    cosine = F.cosine_similarity(logits_BK, expected_BK).min().item() if finite else float("nan")
    return {"finite": finite, "cosine": round(cosine, 6)}


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--models", nargs="+", default=MODELS)
    parser.add_argument("--sizes", nargs="+", type=int, default=SIZES)
    parser.add_argument("--weights", type=Path, default=Path("runs/robustness"))
    parser.add_argument("--out", type=Path)
    args = parser.parse_args()
    cells, rows = [], [["model", "px", "input", *DTYPES, "verdict"]]
    for name in args.models:
        for side in args.sizes:
            model, x_BCHW = trained(name, side, args.weights), photos(side)
            for scale in SCALES:
                found = {label: compare(model, x_BCHW * scale, dtype) for label, dtype in DTYPES.items()}
                good = all(cell["finite"] and cell["cosine"] >= COSINE_TARGET for cell in found.values())
                cells.append({"model": name, "px": side, "scale": scale, **found})
                cosines = [
                    f"{cell['cosine']:.5f}" if cell["finite"] else "not finite" for cell in found.values()
                ]
                rows.append([name, side, f"x{scale}", *cosines, "ok" if good else "SHORT"])
                print(*rows[-1], flush=True)
    content = {"cosine_target": COSINE_TARGET, "train_steps": MODELS, "cells": cells}
    path = write_record("robustness", content, args.out)
    print(table(rows), path, sep="\n")


if __name__ == "__main__":
    main()
