"""Bytes, LPIPS and PSNR by `--quality`, with WebP at the same values. For docs/targets.md, "The quality scale".

    python -m benchmarks.tools.quality kodak --lpips lpips_alex.npz

Prints means over the images as rows of a Markdown table: quality, tokens per block, and then bytes, LPIPS and PSNR of Tessera
and of WebP. With `--tokens`, it measures lengths in tokens per block instead of qualities; the scale of qualities was chosen
from these.
"""

from __future__ import annotations

import argparse
import sys
from pathlib import Path

import numpy as np

from benchmarks.codecs.pillow import WEBP
from benchmarks.records import Pixels
from benchmarks.tools import read_images
from codec.codec import Codec
from codec.metrics import psnr
from codec.metrics.lpips import LPIPS
from codec.rate_control import block_tokens_of_quality


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("images", type=Path, help="folder")
    parser.add_argument("--model", help="name or path; default: the bundled model")
    parser.add_argument("--lpips", type=Path, required=True, help=".npz with LPIPS weights")
    parser.add_argument("--qualities", default="0,25,50,75,90,100", help="separated by commas")
    parser.add_argument("--tokens", help="lengths instead of qualities, separated by commas")
    parser.add_argument("--every", type=int, default=1, metavar="N", help="measure one of N images")
    arguments = parser.parse_args()
    codec, lpips = Codec(arguments.model, device="cpu"), LPIPS(arguments.lpips)
    images = read_images(arguments.images, arguments.every)

    def measure(data: bytes, decoded: Pixels, original: Pixels) -> tuple[float, float, float]:
        return len(data), lpips.distance(decoded, original), psnr(decoded, original)

    lengths = [float(length) for length in (arguments.tokens or "").split(",") if length]
    names = lengths or [float(quality) for quality in arguments.qualities.split(",")]
    steps = lengths or [block_tokens_of_quality(codec.model.code, quality) for quality in names]
    files = [[codec.encode(original, tokens=step).data for step in steps] for original in images]
    for index, (name, step) in enumerate(zip(names, steps, strict=True)):
        rows = [
            measure(row[index], np.asarray(codec.decode(row[index]).image.convert("RGB")), original)
            for row, original in zip(files, images, strict=True)
        ]
        line = f"| {name:g} | {step:.0f} | {{:,.0f}} | {{:.3f}} | {{:.2f}} |".format(*np.mean(rows, 0))
        if not lengths:
            webp = [WEBP.encode(original, name) for original in images]
            rows = [measure(file, WEBP.decode(file), original) for file, original in zip(webp, images, strict=True)]
            line += " {:,.0f} | {:.3f} | {:.2f} |".format(*np.mean(rows, 0))
        sys.stdout.write(line + "\n")
        sys.stdout.flush()


if __name__ == "__main__":
    main()
