"""A model for promptable masks as two artefacts: what sees a picture once, and what runs for every prompt.

Shape suffixes: B images, N objects, P points of an object, C channels, H rows, W columns.
"""

from __future__ import annotations

import tempfile
from collections.abc import Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import torch
from torch import Tensor

from vitesse.errors import ExportError
from vitesse.export.fold import fold
from vitesse.export.half import to_half
from vitesse.export.onnx import INPUT, traced, write_artefact
from vitesse.export.verify import tolerance
from vitesse.files import write_atomically
from vitesse.runtime.artefact import Artefact, decoder_path, read_artefact
from vitesse.runtime.engines import available_engines, create_engine
from vitesse.runtime.promptable import as_prompts
from vitesse.spec import PROMPT_FRAME

if TYPE_CHECKING:
    from vitesse.models.promptable import PromptableModel
    from vitesse.spec import Manifest

EMBEDDING, PROMPTS, MASKS, QUALITY = "image_embedding", "prompts", "masks", "quality"
IMAGES, OBJECTS, POINTS = 2, 2, 3
"""Of what is traced and compared: no special numbers, such as 1."""


def export_pair(model: PromptableModel, manifest: Manifest, out: Path) -> Artefact:
    """Write the encoder to `out`, NAME.onnx, and the decoder beside it, NAME.decoder.onnx; gives the encoder.

    Both compute what the model does, on noise, on every installed engine; else nothing is written.

    Raises:
        ExportError: torch cannot trace the model, or a file disagrees with it.
        MissingExtraError: the extra `export` is not installed.
    """
    folded: Any = fold(model)
    images_BCHW = torch.randn(
        IMAGES,
        manifest.model.in_chans,
        *manifest.model.image_size,
        generator=torch.Generator().manual_seed(0),
    )
    with torch.inference_mode():
        embedding_BCHW = model.eval()(images_BCHW)
        prompts_NP3, embedding_1CHW = _prompts(), embedding_BCHW[:1]
        masks = model.decoder(prompts_NP3, embedding_1CHW)
    with tempfile.TemporaryDirectory() as folder:
        decoder = _proven(
            folded.decoder,
            {PROMPTS: prompts_NP3, EMBEDDING: embedding_1CHW.clone()},
            {PROMPTS: {0: torch.export.Dim("objects"), 1: torch.export.Dim("points")}},
            dict(zip((MASKS, QUALITY), masks, strict=True)),
            manifest,
            decoder_path(Path(folder) / out.name),
        )
        encoder = _proven(
            folded,
            {INPUT: images_BCHW},
            {INPUT: {0: torch.export.Dim("batch")}},
            {EMBEDDING: embedding_BCHW},
            replace(manifest, decoder=decoder.sha256),
            Path(folder) / out.name,
        )
    write_atomically(decoder_path(out), decoder.data)
    write_atomically(out, encoder.data)
    return read_artefact(out)


def _prompts() -> Tensor:
    """Points, as many as the tracer is to see, of objects that it is to see."""
    rows = [
        as_prompts([(10 * i, 20 * j) for j in range(POINTS - 1)], (), (PROMPT_FRAME, PROMPT_FRAME))
        for i in range(OBJECTS)
    ]
    return torch.from_numpy(np.concatenate(rows))


def _proven(
    module: torch.nn.Module,
    inputs: Mapping[str, Tensor],
    free: Mapping[str, Mapping[int, Any]],
    expected: Mapping[str, Tensor],
    manifest: Manifest,
    path: Path,
) -> Artefact:
    """The graph of a module as an artefact whose manifest says how far its outputs are from the expected."""
    proto = traced(module, inputs, free, tuple(expected), manifest.model.name)
    if manifest.precision == "fp16":
        proto = to_half(proto)
    write_artefact(proto, manifest, path)
    proof = _parity(read_artefact(path), tuple(inputs.values()), tuple(expected.values()))
    write_artefact(proto, replace(manifest, parity={**proof, "images": IMAGES}), path)
    return read_artefact(path)


def _parity(artefact: Artefact, inputs: Sequence[Tensor], expected: Sequence[Tensor]) -> dict[str, float]:
    """The largest |difference| of an output from the torch model's, by installed engine.

    Raises:
        ExportError: one is larger than `tolerance`.
    """
    found: dict[str, float] = {}
    for name in available_engines():
        outputs = create_engine(artefact, name).run(*(tensor.numpy() for tensor in inputs))
        for output, wanted in zip(outputs, expected, strict=True):
            difference = float(np.abs(output - wanted.numpy()).max())
            limit = tolerance(wanted.numpy(), artefact.manifest.precision)
            if not difference <= limit:
                raise ExportError(
                    f"{artefact.path.name}: on {name} an output differs from torch by {difference:.2e}, "
                    f"expected at most {limit:.2e}; nothing was written"
                )
            found[name] = max(found.get(name, 0.0), difference)
    return found
