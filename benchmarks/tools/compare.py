"""How a decoded image compares with its original, and with WebP at the same bytes: what `make demo` prints last, and the
image that README.md shows.

    python -m benchmarks.tools.compare ORIGINAL FILE.tsr DECODED SHEET.webp
"""

from __future__ import annotations

import argparse
import sys
from collections.abc import Callable
from pathlib import Path

from PIL import Image, ImageDraw, ImageFont

from benchmarks.codecs.registry import CoderOptions, at_all_scales, make_coder
from benchmarks.records import Pixels
from benchmarks.metrics import ms_ssim
from codec.errors import ModelError
from codec.image.reading import read_image, to_pixels
from codec.metrics import psnr
from codec.metrics.lpips import LPIPS

LABEL = 28  # pixels
GAP = 8  # pixels


def measures(weights: Path | None) -> dict[str, Callable[[Pixels, Pixels], float]]:
    """The measures of an image against its original, by the format of their values; LPIPS only if its weights are there."""
    found: dict[str, Callable[[Pixels, Pixels], float]] = {"PSNR {:.2f} dB": psnr, "MS-SSIM {:.3f}": ms_ssim}
    try:
        return found | {"LPIPS {:.3f}": LPIPS(weights).distance}
    except ModelError:
        if weights:
            raise
        return found


def labelled(pixels: Pixels, text: str) -> Image.Image:
    """The image with a line of text above it."""
    height, width = pixels.shape[:2]
    image = Image.new("RGB", (width, height + LABEL), "white")
    image.paste(Image.fromarray(pixels), (0, LABEL))
    ImageDraw.Draw(image).text((4, 4), text, "black", font=ImageFont.load_default(17))
    return image


def side_by_side(panels: list[Image.Image]) -> Image.Image:
    """Images of one size beside each other."""
    width, height = panels[0].size
    sheet = Image.new("RGB", ((width + GAP) * len(panels) - GAP, height), "white")
    for place, panel in enumerate(panels):
        sheet.paste(panel, (place * (width + GAP), 0))
    return sheet


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    for name in ("original", "file", "decoded", "sheet"):
        parser.add_argument(name, type=Path)
    parser.add_argument("--lpips-weights", type=Path, help="default: what `tessera models fetch lpips` put in place")
    given = parser.parse_args()
    original, decoded = (to_pixels(read_image(path.read_bytes())) for path in (given.original, given.decoded))
    size = given.file.stat().st_size
    compared = measures(given.lpips_weights)
    lines = [
        f"Tessera, {size} bytes: {', '.join(text.format(measure(decoded, original)) for text, measure in compared.items())}"
    ]
    panels = [labelled(original, "original"), labelled(decoded, f"Tessera, {size} bytes")]
    tried = list(at_all_scales(make_coder("webp", CoderOptions()), original, size))
    if tried:
        best = (
            text.format((min if text.startswith("LPIPS") else max)(measure(image, original) for _, image in tried))
            for text, measure in compared.items()
        )
        lines.append(f"WebP at the same bytes, the best of six scales by each measure: {', '.join(best)}")
        made, image = max(tried, key=lambda found: psnr(found[1], original))
        panels.append(labelled(image, f"WebP at its best scale, {len(made.data)} bytes"))
    else:
        lines.append("WebP does not fit these bytes at any scale")
    if len(compared) < 3:
        lines.append("LPIPS was not measured: `tessera models fetch lpips` fetches its weights (244 MB)")
    side_by_side(panels).save(given.sheet, quality=88, method=6)
    lines.append(f"side by side: {given.sheet}")
    sys.stdout.write("\n".join(lines) + "\n")


if __name__ == "__main__":
    main()
