"""How strong the regular pattern is that a decoder may lay over an image: error that repeats every 8 pixels.

    python -m benchmarks.tools.pattern ../shared/kodak --every 4

Prints levels rms per budget, averaged over the images. Metrics hardly see it; eyes do, on skin and water.
"""

from __future__ import annotations

import argparse
import sys
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from codec.codec import Codec
from codec.image.reading import read_image, to_pixels
from codec.rate_control import Target

PERIOD = 8  # pixels: those of the decoder's last two shuffles
REPEATS = 8  # each way, over which the error is averaged
LUMA = (0.299, 0.587, 0.114)
BUDGETS = (0.0244, 0.0443, 0.153)  # bits per pixel


def pattern_error(image: NDArray[np.uint8], original: NDArray[np.uint8]) -> float:
    """Levels rms of the luma error that repeats every 8 pixels over areas of 64x64, less what chance gives.

    Images (H, W, 3), at least 64x64; what remains at the right and bottom is left out."""
    side = PERIOD * REPEATS
    error = (image.astype(np.float64) - original) @ LUMA
    rows, columns = (length // side for length in error.shape)
    # (rows, repeats, period, columns, repeats, period) -> (areas, repeats, phases)
    areas = error[: rows * side, : columns * side].reshape(rows, REPEATS, PERIOD, columns, REPEATS, PERIOD)
    areas = areas.transpose(0, 3, 1, 4, 2, 5).reshape(rows * columns, REPEATS**2, PERIOD**2)
    areas = areas - areas.mean(2, keepdims=True)  # of each repetition: wrong means are no pattern
    phases = areas.mean(1)
    chance = areas.var(1, ddof=1) / REPEATS**2  # variance of a mean of independent values
    return float(np.sqrt(max(0.0, (phases**2 - chance).mean())))


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("images", type=Path, help="a folder of images")
    parser.add_argument("--model", help="name or path; default: the bundled one")
    parser.add_argument("--every", type=int, default=1, help="only one image in so many")
    given = parser.parse_args()
    codec = Codec(given.model, device="cpu")
    rows = []
    for path in sorted(given.images.glob("*.*"))[:: given.every]:
        original = to_pixels(read_image(path.read_bytes()))
        sequence = codec.sequence(original)
        cuts = [codec.cut(sequence, Target(target_bpp=budget)).data for budget in BUDGETS]
        rows.append([pattern_error(np.asarray(codec.decode(cut)), original) for cut in cuts])
    for budget, levels in zip(BUDGETS, np.mean(rows, 0), strict=True):
        sys.stdout.write(f"{budget} bpp: {levels:.2f} levels\n")


if __name__ == "__main__":
    main()
