"""Quality of cut files: every prefix is a picture, and more bytes are never a worse one.

    python -m benchmarks.scripts.prefixes ../shared/kodak --lpips ../shared/perceptual/lpips_alex.npz

Encodes each picture whole, cuts the file at a series of sizes, decodes the cuts, and prints PSNR and LPIPS averaged over the
pictures for each size, and by how much either ever falls back from one size to the next.
"""

from __future__ import annotations

import argparse
import sys
from pathlib import Path

import numpy as np
import torch

from codec.api import Codec
from codec.lpips import LPIPS
from codec.pictures.images import read_image, to_pixels
from codec.search import psnr


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("pictures", type=Path, nargs="+", help="pictures of one size, or folders of them")
    parser.add_argument("--model", help="name or path; default: the bundled one")
    parser.add_argument("--lpips", type=Path, help="npz of LPIPS weights; without it LPIPS is left out")
    parser.add_argument("--cuts", type=int, default=40, help="how many sizes, evenly spaced on a logarithmic scale")
    parser.add_argument("--limit", type=int, help="only so many pictures")
    parser.add_argument("--threads", type=int)
    given = parser.parse_args()
    if given.threads:
        torch.set_num_threads(given.threads)
    files = [f for p in given.pictures for f in (sorted(p.glob("*.*")) if p.is_dir() else [p])][: given.limit]
    lpips = LPIPS(given.lpips) if given.lpips else None
    codec = Codec(given.model)
    sizes = np.unique(np.geomspace(16, 30000, given.cuts).astype(int))
    rows = []
    for path in files:
        original = to_pixels(read_image(path.read_bytes()))
        data = codec.encode(original, tokens=1365)
        row = []
        for size in sizes:
            picture = np.asarray(codec.decode(data[:size], allow_partial=True))
            row.append((psnr(picture, original), lpips.distance(picture, original) if lpips else 0.0))
        rows.append(row)
    means = np.mean(rows, 0)
    for size, (decibels, distance) in zip(sizes, means, strict=True):
        sys.stdout.write(f"{size:6} bytes  PSNR {decibels:6.3f} dB  LPIPS {distance:.4f}\n")
    falls, rises = np.diff(means[:, 0]).clip(max=0), np.diff(means[:, 1]).clip(min=0)
    sys.stdout.write(f"largest fall of PSNR {-falls.min():.4f} dB, largest rise of LPIPS {rises.max():.4f}\n")


if __name__ == "__main__":
    main()
