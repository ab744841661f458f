"""Time and accuracy of photo to tensor: what Vitesse does, step by step, beside plain Pillow and torchvision.

    python benchmarks/decode.py                             # 300 photos of data/in1k_samples
    python benchmarks/decode.py --photos coco --enlarge 4   # 2560 px photos, made from data/coco128_val

One thread. Each photo goes through every contender before the next photo, in an order that turns; the first
round warms up. Times are in ms a photo, from JPEG bytes in memory to a normalised float32 tensor. `error` is
the mean absolute difference, in levels of 0 to 255, to a full decode resized in float32 without rounding.
"""

from __future__ import annotations

import argparse
import io
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path

import numpy as np
import torch
from numpy.typing import NDArray
from PIL import Image
from torchvision.io import ImageReadMode, decode_jpeg
from torchvision.transforms import v2
from torchvision.transforms.v2 import functional

from common import DATA, rounded, summary, table, write_record
from vitesse.runtime import decode as decoding
from vitesse.runtime.imaging import load_tensor, preprocess, read_image, resized_size
from vitesse.spec import PreprocessSpec

Contender = Callable[[bytes], NDArray[np.float32]]
FOLDERS = {"in1k": "in1k_samples/images", "coco": "coco128_val"}


def contenders(spec: PreprocessSpec) -> dict[str, Contender]:
    """By name, each from JPEG bytes to (C, H, W) float32."""
    mean, std = (torch.tensor(values)[:, None, None] * 255 for values in (spec.mean, spec.std))
    filters = {"bilinear": v2.InterpolationMode.BILINEAR, "bicubic": v2.InterpolationMode.BICUBIC}

    def plain_pillow(data: bytes) -> NDArray[np.float32]:
        image = Image.open(io.BytesIO(data)).convert("RGB")
        height, width = resized_size((image.height, image.width), spec)
        image = image.resize((width, height), getattr(Image.Resampling, spec.interpolation.upper()))
        top, left = (
            round((side - kept) / 2) for side, kept in zip((height, width), spec.image_size, strict=True)
        )
        image = image.crop((left, top, left + spec.image_size[1], top + spec.image_size[0]))
        x_HWC = (np.asarray(image, np.float32) / 255 - np.float32(spec.mean)) / np.float32(spec.std)
        return np.ascontiguousarray(x_HWC.transpose(2, 0, 1))

    def one_resize(data: bytes) -> NDArray[np.float32]:
        with without_simplejpeg():
            return preprocess(read_image(data), spec)

    def one_resize_draft(data: bytes) -> NDArray[np.float32]:
        with without_simplejpeg():
            return load_tensor(data, spec)

    def torchvision(data: bytes) -> NDArray[np.float32]:
        x_CHW = decode_jpeg(torch.frombuffer(bytearray(data), dtype=torch.uint8), ImageReadMode.RGB)
        size = resized_size((x_CHW.shape[1], x_CHW.shape[2]), spec)
        x_CHW = functional.resize(x_CHW, list(size), filters[spec.interpolation], antialias=True)
        x_CHW = functional.center_crop(x_CHW, list(spec.image_size))
        return ((x_CHW.float() - mean) / std).numpy()

    found: dict[str, Contender] = {
        "plain pillow": plain_pillow,
        "vitesse, full decode": one_resize,
        "vitesse, draft": one_resize_draft,
    }
    if decoding._simplejpeg() is not None:
        found["vitesse, draft + simplejpeg"] = lambda data: load_tensor(data, spec)
    found["torchvision uint8"] = torchvision
    return found


@contextmanager
def without_simplejpeg() -> Iterator[None]:
    """Pillow alone, as in an installation without the extra `fast`."""
    found, decoding._simplejpeg = decoding._simplejpeg, lambda: None  # type: ignore[assignment]
    try:
        yield
    finally:
        decoding._simplejpeg = found


def exact(data: bytes, spec: PreprocessSpec) -> NDArray[np.float32]:
    """A full decode, resized in float32 without rounding in between."""
    x_CHW = torch.from_numpy(np.array(read_image(data)).transpose(2, 0, 1)).float()
    size = resized_size((x_CHW.shape[1], x_CHW.shape[2]), spec)
    mode = getattr(v2.InterpolationMode, spec.interpolation.upper())
    x_CHW = functional.resize(x_CHW, list(size), mode, antialias=True).clamp(0, 255)
    x_CHW = functional.center_crop(x_CHW, list(spec.image_size)) / 255
    return functional.normalize(x_CHW, list(spec.mean), list(spec.std)).numpy()


def load_photos(folder: Path, limit: int, enlarge: int) -> list[bytes]:
    """Bytes of evenly spread JPEGs; enlarged ones are saved again at quality 90."""
    paths = sorted(path for path in folder.rglob("*") if path.suffix.lower() in (".jpg", ".jpeg"))
    photos = [path.read_bytes() for path in paths[:: max(1, len(paths) // limit)][:limit]]
    return photos if enlarge == 1 else [_enlarged(data, enlarge) for data in photos]


def _enlarged(data: bytes, factor: int) -> bytes:
    image, buffer = read_image(data), io.BytesIO()
    image.resize((image.width * factor, image.height * factor), Image.Resampling.BICUBIC).save(
        buffer, "JPEG", quality=90
    )
    return buffer.getvalue()


def measure(
    paths: dict[str, Contender], photos: list[bytes], spec: PreprocessSpec, rounds: int
) -> tuple[dict[str, list[float]], dict[str, list[float]]]:
    """Times in ms and errors in levels, by contender."""
    times: dict[str, list[float]] = {name: [] for name in paths}
    errors: dict[str, list[float]] = {name: [] for name in paths}
    scale = np.asarray(spec.std, np.float32)[:, None, None] * 255
    for turn in range(rounds + 1):
        for index, data in enumerate(photos):
            names = list(paths)
            for name in names[(turn + index) % len(names) :] + names[: (turn + index) % len(names)]:
                before = time.perf_counter()
                x_CHW = paths[name](data)
                took = (time.perf_counter() - before) * 1e3
                if turn:
                    times[name].append(took)
                else:
                    errors[name].append(float(np.abs((x_CHW - exact(data, spec)) * scale).mean()))
    return times, errors


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--photos", choices=FOLDERS, default="in1k")
    parser.add_argument("--enlarge", type=int, default=1, help="make every photo so many times larger first")
    parser.add_argument("--limit", type=int, default=300)
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--size", type=int, default=224)
    parser.add_argument("--interpolation", choices=["bilinear", "bicubic"], default="bicubic")
    parser.add_argument("--out", type=Path)
    args = parser.parse_args()

    torch.set_num_threads(1)
    spec = PreprocessSpec(image_size=(args.size, args.size), interpolation=args.interpolation)
    photos = load_photos(DATA / FOLDERS[args.photos], args.limit, args.enlarge)
    times, errors = measure(contenders(spec), photos, spec, args.rounds)
    sides = [read_image(data).size for data in photos]
    results = {
        name: {
            "ms": summary(times[name]),
            "error_levels": summary(errors[name]),
            "of_plain_pillow": summary(times[name])["median"] / summary(times["plain pillow"])["median"],
            "raw_ms": rounded(times[name]),
        }
        for name in times
    }
    photo_facts = {"count": len(photos), "mean_width_height": np.mean(sides, axis=0).tolist()}
    path = write_record(
        f"decode-{args.photos}" + (f"-x{args.enlarge}" if args.enlarge > 1 else ""),
        {"settings": {**vars(args), "out": None, "threads": 1}, "photos": photo_facts, "results": results},
        args.out,
    )
    rows: list[list[object]] = [["path", "ms median", "p95", "of plain pillow", "error mean", "max"]]
    for name, found in results.items():
        error = errors[name]
        rows.append(
            [
                name,
                found["ms"]["median"],
                found["ms"]["p95"],
                found["of_plain_pillow"],
                float(np.mean(error)),
                max(error),
            ]
        )
    print(table(rows), f"\n{photo_facts}\n{path}")


if __name__ == "__main__":
    main()
