"""Quality and processor seconds by `--effort`, at one rate. For docs/benchmarks.md, "Effort".

    python -m benchmarks.tools.effort kodak --lpips lpips_alex.npz --bpp 0.0443 --efforts 3,5,7

Files are at most as large as `--bpp` allows. Times are processor seconds of one thread.
"""

from __future__ import annotations

import argparse
import sys
import time
from pathlib import Path

import numpy as np
import torch

from benchmarks.tools import read_images
from codec.codec import Codec
from codec.metrics import psnr
from codec.metrics.lpips import LPIPS


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("images", type=Path, help="folder")
    parser.add_argument("--model", help="name or path; default: the bundled model")
    parser.add_argument("--lpips", type=Path, required=True, help=".npz with LPIPS weights")
    parser.add_argument("--bpp", type=float, default=0.0443, help="maximum bits per pixel of the complete file")
    parser.add_argument("--efforts", default="3,5,7", help="separated by commas")
    parser.add_argument("--every", type=int, default=1, metavar="N", help="measure one of N images")
    arguments = parser.parse_args()
    torch.set_num_threads(1)
    codec, lpips = Codec(arguments.model, device="cpu"), LPIPS(arguments.lpips)
    images = read_images(arguments.images, arguments.every)
    codec.encode(images[0])  # loads weights before the clock starts
    for effort in map(int, arguments.efforts.split(",")):
        rows = []
        for original in images:
            start = time.process_time()
            data = codec.encode(original, target_bpp=arguments.bpp, effort=effort).data
            seconds = time.process_time() - start
            decoded, rate = np.asarray(codec.decode(data).image), len(data) * 8 / original[..., 0].size
            rows.append((rate, psnr(decoded, original), lpips.distance(decoded, original), seconds))
        bpp, decibels, distance, seconds = np.mean(rows, 0)
        sys.stdout.write(
            f"effort {effort}  {bpp:.4f} bpp  PSNR {decibels:.2f} dB  LPIPS {distance:.4f}  {seconds:.1f} s per image\n"
        )


if __name__ == "__main__":
    main()
