"""What `--effort` buys: quality and processor seconds at one rate, effort by effort.

    python -m benchmarks.tools.effort ../shared/kodak --lpips ../shared/perceptual/lpips_alex.npz --bpp 0.0443 --efforts 3,5,7

Every file is at most as large as `--bpp` says; the seconds are of one thread, so that they are those of one core.
"""

from __future__ import annotations

import argparse
import sys
import time
from pathlib import Path

import numpy as np
import torch

from codec.codec import Codec
from codec.image.reading import read_image, to_pixels
from codec.metrics import psnr
from codec.metrics.lpips import LPIPS


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("images", type=Path, help="a folder of images")
    parser.add_argument("--model", help="name or path; default: the bundled one")
    parser.add_argument("--lpips", type=Path, required=True, help="npz of LPIPS weights")
    parser.add_argument("--bpp", type=float, default=0.0443, help="bits per pixel of the whole file, at most")
    parser.add_argument("--efforts", default="3,5,7", help="which, with commas between")
    parser.add_argument("--every", type=int, default=1, help="only one image in so many")
    given = parser.parse_args()
    torch.set_num_threads(1)
    codec, lpips = Codec(given.model, device="cpu"), LPIPS(given.lpips)
    images = [to_pixels(read_image(path.read_bytes())) for path in sorted(given.images.glob("*.*"))[:: given.every]]
    codec.encode(images[0])  # weights are loaded before the clock runs
    for effort in map(int, given.efforts.split(",")):
        rows = []
        for original in images:
            start = time.process_time()
            data = codec.encode(original, target_bpp=given.bpp, effort=effort)
            seconds = time.process_time() - start
            decoded, rate = np.asarray(codec.decode(data)), len(data) * 8 / original[..., 0].size
            rows.append((rate, psnr(decoded, original), lpips.distance(decoded, original), seconds))
        bpp, decibels, distance, seconds = np.mean(rows, 0)
        sys.stdout.write(
            f"effort {effort}  {bpp:.4f} bpp  PSNR {decibels:.2f} dB  LPIPS {distance:.4f}  {seconds:.1f} s per image\n"
        )


if __name__ == "__main__":
    main()
