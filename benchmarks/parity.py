"""Does every model that timm has compute what timm's does, before and after folding and through both engines?

    python benchmarks/parity.py

Weights, BatchNorm statistics and bias tables are random, seed 0; the input is noise of the model's own size.
Differences are the largest |difference| of 1000 logits over three pictures, against timm's model in float32.
"""

from __future__ import annotations

import argparse
import tempfile
from pathlib import Path

import numpy as np
import timm
import torch
from torch import nn
from torch.utils.flop_counter import FlopCounterMode

from common import IN_TIMM, table, write_record
from vitesse.catalogue import facts
from vitesse.export import fold
from vitesse.export.onnx import to_onnx, write_artefact
from vitesse.models import create_model, list_models
from vitesse.progress import track
from vitesse.runtime.artefact import read_artefact
from vitesse.runtime.engines import available_engines, create_engine
from vitesse.spec import Manifest, PreprocessSpec
from vitesse.weights.load import load_weights


def randomised(model: nn.Module) -> nn.Module:
    """A model whose statistics, gains and bias tables are as varied as after training."""
    generator = torch.Generator().manual_seed(0)
    for module in model.modules():
        if isinstance(module, nn.modules.batchnorm._BatchNorm):
            nn.init.uniform_(module.weight, 0.5, 1.5, generator=generator)
            nn.init.uniform_(module.bias, -0.5, 0.5, generator=generator)
            nn.init.uniform_(module.running_mean, -0.5, 0.5, generator=generator)
            nn.init.uniform_(module.running_var, 0.5, 1.5, generator=generator)
    for name, parameter in model.named_parameters():
        if "attention_bias" in name:
            nn.init.normal_(parameter, generator=generator)
    return model.eval()


def timms_model(name: str) -> nn.Module:
    """timm's model of ours, randomised, with the epsilon of the original release in every norm."""
    model = timm.create_model(IN_TIMM.get(name, name))
    if name.startswith("efficientvit_l"):
        model.head.in_conv.norm.eps = 1e-7
    return randomised(model)


def measure(name: str, folder: Path) -> dict[str, float]:
    """Parameters, MACs and differences of one model."""
    reference = timms_model(name)
    model = create_model(name).eval()
    load_weights(model, reference.state_dict())
    folded = fold(model)
    x_BCHW = torch.randn(3, 3, *model.spec.image_size, generator=torch.Generator().manual_seed(1))
    with torch.no_grad(), FlopCounterMode(display=False) as flops:
        logits = {"eager": model(x_BCHW).numpy()}
    with torch.no_grad():
        expected, logits["folded"] = reference(x_BCHW).numpy(), folded(x_BCHW).numpy()
    manifest = Manifest(
        model=model.spec,
        class_names=tuple(map(str, range(1000))),
        preprocess=PreprocessSpec(image_size=model.spec.image_size),
    )
    write_artefact(to_onnx(folded, model.spec), manifest, folder / f"{name}.onnx")
    artefact = read_artefact(folder / f"{name}.onnx")
    for engine in available_engines():
        logits[engine] = create_engine(artefact, engine).run(x_BCHW.numpy())[0]
    return {
        "params": sum(p.numel() for p in model.parameters()),
        "macs": flops.get_total_flops() / 2 / len(x_BCHW),
        **{stage: float(np.abs(found - expected).max()) for stage, found in logits.items()},
    }


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument(
        "--models", nargs="+", default=[name for name in list_models() if facts(name).weights]
    )
    parser.add_argument("--out", type=Path)
    args = parser.parse_args()
    with tempfile.TemporaryDirectory() as folder:
        found = {
            name: measure(name, Path(folder)) for name in track(args.models, "compare", len(args.models))
        }
    path = write_record("parity", {"models": found}, args.out)
    columns = list(next(iter(found.values())))
    rows: list[list[object]] = [["model", *columns]]
    for name, row in found.items():
        differences = [f"{row[stage]:.1e}" for stage in columns[2:]]
        rows.append([name, f"{row['params']:,.0f}", f"{row['macs'] / 1e6:.1f} M", *differences])
    print(table(rows), path, sep="\n")


if __name__ == "__main__":
    main()
