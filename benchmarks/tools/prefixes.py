"""Quality of cut files: every prefix is an image, and more bytes are not worse. For docs/benchmarks.md, "Prefixes".

    python -m benchmarks.tools.prefixes kodak --lpips lpips_alex.npz

Encodes each image with all tokens, cuts the file at several sizes and decodes the parts. Prints mean PSNR and LPIPS for each
size, and the largest loss of either from one size to the next.
"""

from __future__ import annotations

import argparse
import sys
from pathlib import Path

import numpy as np
import torch

from benchmarks.study import read_pixels
from codec.codec import Codec
from codec.metrics import psnr
from codec.metrics.lpips import LPIPS


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("images", type=Path, nargs="+", help="images of one size, or folders of them")
    parser.add_argument("--model", help="name or path; default: the bundled model")
    parser.add_argument("--lpips", type=Path, help=".npz with LPIPS weights; without it, LPIPS is left out")
    parser.add_argument("--cuts", type=int, default=40, metavar="N", help="number of sizes, evenly spaced in logarithm")
    parser.add_argument("--limit", type=int, metavar="N", help="measure the first N images")
    parser.add_argument("--threads", type=int)
    arguments = parser.parse_args()
    if arguments.threads:
        torch.set_num_threads(arguments.threads)
    files = [f for p in arguments.images for f in (sorted(p.glob("*.*")) if p.is_dir() else [p])][: arguments.limit]
    lpips = LPIPS(arguments.lpips) if arguments.lpips else None
    codec = Codec(arguments.model)
    sizes = np.unique(np.geomspace(16, 30000, arguments.cuts).astype(int))
    rows = []
    for path in files:
        original = read_pixels(path)
        data = codec.encode(original, tokens=1365).data
        row = []
        for size in sizes:
            image = np.asarray(codec.decode(data[:size], allow_partial=True).image)
            row.append((psnr(image, original), lpips.distance(image, original) if lpips else 0.0))
        rows.append(row)
    means = np.mean(rows, 0)
    for size, (decibels, distance) in zip(sizes, means, strict=True):
        sys.stdout.write(f"{size:6} bytes  PSNR {decibels:6.3f} dB  LPIPS {distance:.4f}\n")
    falls, rises = np.diff(means[:, 0]).clip(max=0), np.diff(means[:, 1]).clip(min=0)
    sys.stdout.write(f"largest fall of PSNR {-falls.min():.4f} dB, largest rise of LPIPS {rises.max():.4f}\n")


if __name__ == "__main__":
    main()
