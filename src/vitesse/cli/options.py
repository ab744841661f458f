"""Options that several verbs share."""

from __future__ import annotations

from typing import Annotated, Literal

import typer

Json = Annotated[bool, typer.Option("--json", help="One JSON object a line on stdout; the rest on stderr.")]
Model = Annotated[
    str | None,
    typer.Option(
        "--model",
        help="Artefact (.onnx), checkpoint (.safetensors), name of published weights or hf:OWNER/REPO; "
        "default the bundled model.",
    ),
]
Arch = Annotated[
    str | None,
    typer.Option("--arch", help="Architecture of a .safetensors file that does not say it.", metavar="NAME"),
]
Threads = Annotated[
    int | None, typer.Option("--threads", min=1, help="Threads of the engine; default all CPUs.", metavar="N")
]
RuntimeEngine = Literal["auto", "onnxruntime", "openvino"]
AnyEngine = Literal["auto", "onnxruntime", "openvino", "torch"]
EngineOption = typer.Option("--engine", help="What runs the model; auto measures once and keeps the fastest.")
