"""Where a file came from: versions, commit, machine, time."""

from __future__ import annotations

import os
import platform
import sys
from datetime import datetime, timezone
from importlib import metadata
from pathlib import Path
from typing import Any

PACKAGES = (
    *("vitesse", "numpy", "pillow", "simplejpeg", "onnxruntime", "openvino"),
    *("torch", "torchvision", "timm", "transformers", "accelerate", "onnx", "onnxscript", "onnxslim"),
)


def versions() -> dict[str, str]:
    """Version of each package that can change a figure, for those installed; no package is imported."""
    found = {"python": platform.python_version()}
    for package in PACKAGES:
        try:
            found[package] = metadata.version(package)
        except metadata.PackageNotFoundError:
            continue
    return found


def cpu_model() -> str:
    """The processor's name as the system gives it."""
    try:
        lines = Path("/proc/cpuinfo").read_text(encoding="utf-8").splitlines()
    except OSError:
        return platform.processor() or platform.machine()
    names = [line.partition(":")[2].strip() for line in lines if line.startswith("model name")]
    return names[0] if names else platform.machine()


def cpu_flags() -> tuple[str, ...]:
    """The vector instructions that inference engines look for, of those this processor has."""
    wanted = {
        "avx2",
        "avx512f",
        "avx512_vnni",
        "avx512_bf16",
        "amx_int8",
        "amx_bf16",
        "asimd",
        "asimddp",
        "sve",
    }
    try:
        text = Path("/proc/cpuinfo").read_text(encoding="utf-8")
    except OSError:
        return ()
    return tuple(sorted(wanted & set(text.split())))


def commit() -> str | None:
    """The source checkout's commit, read from `.git`; None for an installed package."""
    git = Path(__file__).parents[2] / ".git"
    try:
        if git.is_file():
            git = git.parent / git.read_text(encoding="utf-8").removeprefix("gitdir: ").strip()
        head = (git / "HEAD").read_text(encoding="utf-8").strip()
        if not head.startswith("ref: "):
            return head
        if (
            common := git / "commondir"
        ).exists():  # of several worktrees: HEAD is its own, branches are shared
            git = git / common.read_text(encoding="utf-8").strip()
        reference = git / head.removeprefix("ref: ")
        if reference.exists():
            return reference.read_text(encoding="utf-8").strip()
        packed = (git / "packed-refs").read_text(encoding="utf-8").splitlines()
    except OSError:
        return None
    return next((line.split()[0] for line in packed if line.endswith(head.removeprefix("ref: "))), None)


def provenance() -> dict[str, Any]:
    """Command, commit, versions, processor, cores and UTC time of this process."""
    return {
        "command": " ".join(["vitesse", *sys.argv[1:]]) if Path(sys.argv[0]).name == "vitesse" else None,
        "commit": commit(),
        "versions": versions(),
        "cpu": cpu_model(),
        "cpu_flags": list(cpu_flags()),
        "cores": os.cpu_count(),
        "time_utc": datetime.now(timezone.utc).isoformat(timespec="seconds"),
    }
