"""What an image costs as PNG, WebP, JPEG and AVIF: milliseconds to encode, bytes, and what is lost.

    .venv/bin/python bench/formats.py [--repeats 9]

One picture of the demo checkpoint, enlarged to 1024x1024, twice: as it is, and with noise of 3 of
255, which stands for what photographs have. Milliseconds are of one processor, the median of the
repeats; dB is the peak signal to noise ratio over red, green and blue.
"""

from __future__ import annotations

import argparse
import io
import math
import statistics
import sys
import time
from collections.abc import Callable
from pathlib import Path

import numpy as np
from PIL import Image, features

ROOT = Path(__file__).parents[1]
sys.path.insert(0, str(ROOT))

from farm.spec.imagefile import encoded  # noqa: E402
from farm.spec.output import Output  # noqa: E402

SIDE, NOISE = 1024, 3.0
BOX = (400, 160, 656, 416)
"""Of the demo's contact sheet."""
TEXT = "a red apple\nSteps: 20, Sampler: Euler a, CFG scale: 7, Seed: 1, Size: 1024x1024"

Encode = Callable[[Image.Image], bytes]


def plain(kind: str, **options: object) -> Encode:
    def encode(picture: Image.Image) -> bytes:
        file = io.BytesIO()
        picture.save(file, kind, **options)
        return file.getvalue()

    return encode


def ours(output: str) -> Encode:
    return lambda picture: encoded(picture, TEXT, Output.model_validate(output))


ROWS: dict[str, Encode] = {
    "PNG, level 1": ours("png"),
    "PNG, level 4": plain("PNG", compress_level=4),
    "PNG, level 6": plain("PNG", compress_level=6),
    "WebP, lossless": ours("webp lossless"),
    "WebP, lossless, method 0": plain("WEBP", lossless=True, quality=0, method=0),
    "WebP, lossless, method 4": plain("WEBP", lossless=True, quality=80, method=4),
    "WebP 80": ours("webp 80"),
    "WebP 90": ours("webp 90"),
    "WebP 90, method 4": plain("WEBP", quality=90, method=4),
    "JPEG 80": ours("jpeg 80"),
    "JPEG 90": ours("jpeg 90"),
    "JPEG 95": ours("jpeg 95"),
    "JPEG 90, whole colour": plain("JPEG", quality=90, subsampling=0, optimize=True),
    "AVIF 80": ours("avif 80"),
    "AVIF 80, speed 6": plain("AVIF", quality=80, speed=6, max_threads=1),
}


def pictures() -> dict[str, Image.Image]:
    with Image.open(ROOT / "docs/images/demo.webp") as sheet:
        made = sheet.convert("RGB").crop(BOX).resize((SIDE, SIDE), Image.Resampling.BICUBIC)
    values = np.asarray(made, float)
    noise = np.random.default_rng(0).normal(0, NOISE, values.shape)
    noisy = Image.fromarray((values + noise).clip(0, 255).round().astype(np.uint8))
    return {"smooth": made, "noisy": noisy}


def decibels(picture: Image.Image, file: bytes) -> float:
    with Image.open(io.BytesIO(file)) as stored:
        error = np.asarray(picture, float) - np.asarray(stored.convert("RGB"), float)
    squares = float((error**2).mean())
    return 10 * math.log10(255**2 / squares) if squares else math.inf


def milliseconds(encode: Encode, picture: Image.Image, repeats: int) -> float:
    taken = []
    for _ in range(repeats):
        began = time.process_time()
        encode(picture)
        taken.append(1e3 * (time.process_time() - began))
    return statistics.median(taken)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--repeats", type=int, default=9)
    repeats = parser.parse_args().repeats
    found = pictures()
    versions = [f"{name} {features.version(name)}" for name in ("zlib_ng", "webp", "jpg", "avif")]
    print(f"Pillow {Image.__version__}, {', '.join(versions)}\n")
    print("| |" + "".join(f" {name}: ms | kB | dB |" for name in found))
    print("|---|" + "---|" * 3 * len(found))
    for name, encode in ROWS.items():
        cells = []
        for picture in found.values():
            file = encode(picture)
            lost = decibels(picture, file)
            shown = "" if math.isinf(lost) else f"{lost:.1f}"
            spent = milliseconds(encode, picture, repeats)
            cells += [f"{spent:.0f}", f"{len(file) / 1000:.0f}", shown]
        print(f"| {name} | {' | '.join(cells)} |", flush=True)


if __name__ == "__main__":
    main()
