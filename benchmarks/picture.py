"""Original, Tessera and WebP at the same bytes, side by side: the picture in the README.

python -m benchmarks.picture docs/photo.webp docs/comparison.webp --size 2000
"""

from __future__ import annotations

import argparse
from pathlib import Path

import numpy as np
from PIL import Image, ImageDraw, ImageFont

from benchmarks.codecs import Means, at_all_scales, make_coder
from benchmarks.metrics import psnr
from codec.api import Codec
from codec.images import read_image, to_pixels

LABEL = 28  # pixels


def labelled(pixels: np.ndarray, text: str) -> Image.Image:
    """The picture with a line of text above it."""
    height, width = pixels.shape[:2]
    image = Image.new("RGB", (width, height + LABEL), "white")
    image.paste(Image.fromarray(pixels), (0, LABEL))
    ImageDraw.Draw(image).text((4, 4), text, "black", font=ImageFont.load_default(17))
    return image


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("photo", type=Path)
    parser.add_argument("output", type=Path)
    parser.add_argument("--size", type=int, default=2000, help="bytes")
    parser.add_argument("--model", help="name or path; default: the bundled one")
    given = parser.parse_args()
    original = to_pixels(read_image(given.photo.read_bytes()))
    codec = Codec(given.model)
    made = codec.compress(original, target_size=given.size)
    tessera = np.asarray(codec.decode(made.data))
    candidates = at_all_scales(make_coder("webp", Means()), original, len(made.data))
    best, webp = max(candidates, key=lambda found: psnr(found[1], original))
    panels = [
        labelled(original, "original"),
        labelled(tessera, f"Tessera, {len(made.data)} bytes"),
        labelled(webp, f"WebP at its best scale, {len(best.data)} bytes"),
    ]
    width, height = panels[0].size
    sheet = Image.new("RGB", (width * 3 + 16, height), "white")
    for place, panel in enumerate(panels):
        sheet.paste(panel, (place * (width + 8), 0))
    sheet.save(given.output, quality=88, method=6)


if __name__ == "__main__":
    main()
