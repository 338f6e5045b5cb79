"""Quality of cut files: every prefix is an image, and more bytes are never a worse one.

    python -m benchmarks.tools.prefixes ../shared/kodak --lpips ../shared/perceptual/lpips_alex.npz

Encodes each image whole, cuts the file at a series of sizes, decodes the cuts, and prints PSNR and LPIPS averaged over the
images for each size, and by how much either ever falls back from one size to the next.
"""

from __future__ import annotations

import argparse
import sys
from pathlib import Path

import numpy as np
import torch

from codec.codec import Codec
from codec.image.reading import read_image, to_pixels
from codec.metrics import psnr
from codec.metrics.lpips import LPIPS


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("images", type=Path, nargs="+", help="images of one size, or folders of them")
    parser.add_argument("--model", help="name or path; default: the bundled one")
    parser.add_argument("--lpips", type=Path, help="npz of LPIPS weights; without it LPIPS is left out")
    parser.add_argument("--cuts", type=int, default=40, help="how many sizes, evenly spaced on a logarithmic scale")
    parser.add_argument("--limit", type=int, help="only so many images")
    parser.add_argument("--threads", type=int)
    given = parser.parse_args()
    if given.threads:
        torch.set_num_threads(given.threads)
    files = [f for p in given.images for f in (sorted(p.glob("*.*")) if p.is_dir() else [p])][: given.limit]
    lpips = LPIPS(given.lpips) if given.lpips else None
    codec = Codec(given.model)
    sizes = np.unique(np.geomspace(16, 30000, given.cuts).astype(int))
    rows = []
    for path in files:
        original = to_pixels(read_image(path.read_bytes()))
        data = codec.encode(original, tokens=1365)
        row = []
        for size in sizes:
            image = np.asarray(codec.decode(data[:size], allow_partial=True))
            row.append((psnr(image, original), lpips.distance(image, original) if lpips else 0.0))
        rows.append(row)
    means = np.mean(rows, 0)
    for size, (decibels, distance) in zip(sizes, means, strict=True):
        sys.stdout.write(f"{size:6} bytes  PSNR {decibels:6.3f} dB  LPIPS {distance:.4f}\n")
    falls, rises = np.diff(means[:, 0]).clip(max=0), np.diff(means[:, 1]).clip(min=0)
    sys.stdout.write(f"largest fall of PSNR {-falls.min():.4f} dB, largest rise of LPIPS {rises.max():.4f}\n")


if __name__ == "__main__":
    main()
