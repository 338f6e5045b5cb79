"""Strength of the regular pattern that the decoder adds to an image. For docs/benchmarks.md, "Pattern".

    python -m benchmarks.tools.pattern kodak --every 4

Prints the rms of the luma error that repeats every 8 pixels, in levels of 0..255, per rate. Metrics hardly respond to it, but
it is visible on skin and water.
"""

from __future__ import annotations

import argparse
import sys
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from benchmarks.tools import read_images
from codec.codec import Codec

PERIOD = 8  # pixels, from the decoder's last two pixel shuffles
REPEATS = 8  # periods to average over, in each direction
LUMA = (0.299, 0.587, 0.114)
BUDGETS = (0.0244, 0.0443, 0.153)  # bits per pixel


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("images", type=Path, help="folder")
    parser.add_argument("--model", help="name or path; default: the bundled model")
    parser.add_argument("--every", type=int, default=1, metavar="N", help="measure one of N images")
    arguments = parser.parse_args()
    codec = Codec(arguments.model, device="cpu")
    rows = []
    for original in read_images(arguments.images, arguments.every):
        (sequence,) = codec.tokenize([original])
        files = [codec.write(sequence, target_bpp=budget).data for budget in BUDGETS]
        rows.append([pattern_error(np.asarray(codec.decode(file).image), original) for file in files])
    for budget, levels in zip(BUDGETS, np.mean(rows, 0), strict=True):
        sys.stdout.write(f"{budget} bpp: {levels:.2f} levels\n")


def pattern_error(image: NDArray[np.uint8], original: NDArray[np.uint8]) -> float:
    """The rms of the luma error that repeats every 8 pixels within areas of 64x64, minus its expected value for noise.

    Images are (H, W, 3) and at least 64x64. Remaining pixels at the right and bottom are ignored."""
    side = PERIOD * REPEATS
    error = (image.astype(np.float64) - original) @ LUMA
    rows, columns = (length // side for length in error.shape)
    # (rows, repeats, period, columns, repeats, period) -> (areas, repeats, phases)
    areas = error[: rows * side, : columns * side].reshape(rows, REPEATS, PERIOD, columns, REPEATS, PERIOD)
    areas = areas.transpose(0, 3, 1, 4, 2, 5).reshape(rows * columns, REPEATS**2, PERIOD**2)
    areas = areas - areas.mean(2, keepdims=True)  # the mean of each repetition: a wrong mean is not a pattern
    phases = areas.mean(1)
    noise = areas.var(1, ddof=1) / REPEATS**2  # variance of the mean of independent errors
    return float(np.sqrt(max(0.0, (phases**2 - noise).mean())))


if __name__ == "__main__":
    main()
