"""Draws docs/texture-RATE.webp: crops at twice their size, of an original, AVIF, and models with and without texture.

    python -m benchmarks.tools.crops KODAK docs BEFORE.safetensors standard
    python -m benchmarks.tools.crops KODAK docs standard --name detail --images kodim07,kodim13 --rates 0.0443

The crops were chosen before the texture network was trained, and cover what is hard: skin, walls, leaves, water, wood, hair.
"""

from __future__ import annotations

import argparse
from collections.abc import Iterator
from pathlib import Path

import numpy as np
from PIL import Image, ImageDraw, ImageFont

from benchmarks.codecs.base import fit_at_all_scales
from benchmarks.codecs.pillow import AVIF
from benchmarks.records import Pixels
from benchmarks.study import read_pixels
from codec.codec import Codec
from codec.metrics import psnr

CROPS = {  # left and top of each crop
    "kodim01": (232, 150),
    "kodim04": (180, 240),
    "kodim07": (330, 240),
    "kodim13": (300, 340),
    "kodim15": (390, 230),
    "kodim19": (150, 400),
}
SIDE, ZOOM = 112, 2
LABEL, GAP = 24, 6  # pixels above the columns, and between images
RATES = (0.0147, 0.0443, 0.153)  # bits per pixel


def main(argv: list[str] | None = None) -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("kodak", type=Path)
    parser.add_argument("folder", type=Path)
    parser.add_argument("models", nargs="+")
    parser.add_argument("--rates", type=lambda text: tuple(map(float, text.split(","))), default=RATES)
    parser.add_argument("--images", type=lambda text: text.split(","), default=CROPS)
    parser.add_argument("--name", default="texture", help="start of the files' names")
    arguments = parser.parse_args(argv)
    for rate in arguments.rates:
        rows = [dict(columns(arguments.kodak / f"{name}.png", arguments.models, rate)) for name in arguments.images]
        sheet(rows).save(arguments.folder / f"{arguments.name}-{rate:g}.webp", quality=80, method=6)


def columns(path: Path, models: list[str], rate: float) -> Iterator[tuple[str, Image.Image]]:
    """The crop of an image, by the title of its column."""
    original = read_pixels(path)
    yield "original", enlarged(original, path.stem)
    budget = int(rate * original.shape[0] * original.shape[1] / 8)
    if fits := list(fit_at_all_scales(AVIF, original, budget)):
        yield "AVIF, best scale", enlarged(max(fits, key=lambda fit: psnr(fit[1], original))[1], path.stem)
    for name in models:
        with Codec(name, device="cpu") as codec:
            data = codec.encode(original, target_size=budget).data
            details = (0.0, None) if "detail" in codec.model.decode_options else (None,)
            for detail in details:
                title = codec.model.name if detail is None else f"{codec.model.name}, detail {detail:g}"
                yield title, enlarged(np.asarray(codec.decode(data, detail=detail).image.convert("RGB")), path.stem)


def enlarged(pixels: Pixels, name: str) -> Image.Image:
    left, top = CROPS[name]
    crop = Image.fromarray(pixels).crop((left, top, left + SIDE, top + SIDE))
    return crop.resize((ZOOM * SIDE, ZOOM * SIDE), Image.Resampling.LANCZOS)


def sheet(rows: list[dict[str, Image.Image]]) -> Image.Image:
    """Rows of crops below the titles of their columns."""
    titles = list(dict.fromkeys(title for row in rows for title in row))
    step = ZOOM * SIDE + GAP
    result = Image.new("RGB", (len(titles) * step - GAP, LABEL + len(rows) * step - GAP), "white")
    for column, title in enumerate(titles):
        ImageDraw.Draw(result).text((column * step + 4, 3), title, "black", font=ImageFont.load_default(15))
        for line, row in enumerate(rows):
            if title in row:
                result.paste(row[title], (column * step, LABEL + line * step))
    return result


if __name__ == "__main__":
    main()
