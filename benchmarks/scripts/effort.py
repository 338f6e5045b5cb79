"""What `--effort` buys: quality and processor seconds at one rate, effort by effort.

    python -m benchmarks.scripts.effort ../shared/kodak --lpips ../shared/perceptual/lpips_alex.npz --bpp 0.0443 --efforts 3,5,7

Every file is at most as large as `--bpp` says; the seconds are of one thread, so that they are those of one core.
"""

from __future__ import annotations

import argparse
import sys
import time
from pathlib import Path

import numpy as np
import torch

from codec.api import Codec
from codec.lpips import LPIPS
from codec.pictures.images import read_image, to_pixels
from codec.search import psnr


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("pictures", type=Path, help="a folder of pictures")
    parser.add_argument("--model", help="name or path; default: the bundled one")
    parser.add_argument("--lpips", type=Path, required=True, help="npz of LPIPS weights")
    parser.add_argument("--bpp", type=float, default=0.0443, help="bits per pixel of the whole file, at most")
    parser.add_argument("--efforts", default="3,5,7", help="which, with commas between")
    parser.add_argument("--every", type=int, default=1, help="only one picture in so many")
    given = parser.parse_args()
    torch.set_num_threads(1)
    codec, lpips = Codec(given.model, device="cpu"), LPIPS(given.lpips)
    pictures = [to_pixels(read_image(path.read_bytes())) for path in sorted(given.pictures.glob("*.*"))[:: given.every]]
    codec.encode(pictures[0])  # weights are loaded before the clock runs
    for effort in map(int, given.efforts.split(",")):
        rows = []
        for original in pictures:
            start = time.process_time()
            data = codec.encode(original, target_bpp=given.bpp, effort=effort)
            seconds = time.process_time() - start
            decoded, rate = np.asarray(codec.decode(data)), len(data) * 8 / original[..., 0].size
            rows.append((rate, psnr(decoded, original), lpips.distance(decoded, original), seconds))
        bpp, decibels, distance, seconds = np.mean(rows, 0)
        sys.stdout.write(
            f"effort {effort}  {bpp:.4f} bpp  PSNR {decibels:.2f} dB  LPIPS {distance:.4f}  {seconds:.1f} s per picture\n"
        )


if __name__ == "__main__":
    main()
