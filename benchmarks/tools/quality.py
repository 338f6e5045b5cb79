"""What `--quality` means: bytes, LPIPS and PSNR at some values of it, beside WebP at the same values.

    python -m benchmarks.tools.quality ../shared/kodak --lpips ../shared/perceptual/lpips_alex.npz

Prints the means over the images as the rows of a Markdown table. With `--tokens`, lengths in tokens per block are measured
instead of qualities, to choose the scale by.
"""

from __future__ import annotations

import argparse
import io
import sys
from pathlib import Path

import numpy as np
from numpy.typing import NDArray
from PIL import Image

from codec.codec import Codec
from codec.image.reading import read_image, to_pixels
from codec.metrics import psnr
from codec.metrics.lpips import LPIPS
from codec.models.registry import open_model
from codec.rate_control import block_tokens_of_quality


def webp(pixels: NDArray[np.uint8], quality: int) -> bytes:
    stream = io.BytesIO()
    Image.fromarray(pixels).save(stream, "webp", quality=quality, method=6)
    return stream.getvalue()


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("images", type=Path, help="a folder of images")
    parser.add_argument("--model", help="name or path; default: the bundled one")
    parser.add_argument("--lpips", type=Path, required=True, help="npz of LPIPS weights")
    parser.add_argument("--qualities", default="0,25,50,75,90,100", help="which, with commas between")
    parser.add_argument("--tokens", help="lengths instead, with commas between")
    parser.add_argument("--every", type=int, default=1, help="only one image in so many")
    given = parser.parse_args()
    codec, lpips = Codec(given.model, device="cpu"), LPIPS(given.lpips)
    images = [to_pixels(read_image(path.read_bytes())) for path in sorted(given.images.glob("*.*"))[:: given.every]]

    def measure(data: bytes, decoded: Image.Image, original: NDArray[np.uint8]) -> tuple[float, float, float]:
        pixels = np.asarray(decoded.convert("RGB"))
        return len(data), lpips.distance(pixels, original), psnr(pixels, original)

    lengths = [float(part) for part in (given.tokens or "").split(",") if part]
    steps = lengths or [block_tokens_of_quality(open_model().code, float(part)) for part in given.qualities.split(",")]
    files = [[codec.encode(original, tokens=step) for step in steps] for original in images]
    names = lengths or [int(part) for part in given.qualities.split(",")]
    for column, (name, step) in enumerate(zip(names, steps, strict=True)):
        ours = [
            measure(made[column], codec.decode(made[column]), original) for made, original in zip(files, images, strict=True)
        ]
        row = f"| {name:g} | {step:.0f} | {{:,.0f}} | {{:.3f}} | {{:.2f}} |".format(*np.mean(ours, 0))
        if not lengths:
            theirs = []
            for original in images:
                data = webp(original, int(name))
                theirs.append(measure(data, Image.open(io.BytesIO(data)), original))
            row += " {:,.0f} | {:.3f} | {:.2f} |".format(*np.mean(theirs, 0))
        sys.stdout.write(row + "\n")
        sys.stdout.flush()


if __name__ == "__main__":
    main()
