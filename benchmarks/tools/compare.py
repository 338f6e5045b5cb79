"""Compares a decoded image with its original, and with WebP at the same bytes. For `make demo` and docs/comparison.webp.

python -m benchmarks.tools.compare ORIGINAL FILE.tsr DECODED SHEET.webp
"""

from __future__ import annotations

import argparse
import sys
from collections.abc import Callable
from pathlib import Path

from PIL import Image, ImageDraw, ImageFont

from benchmarks.codecs.base import fit_at_all_scales
from benchmarks.codecs.pillow import WEBP
from benchmarks.metrics import ms_ssim
from benchmarks.records import Pixels
from benchmarks.study import read_pixels
from codec.errors import ModelError
from codec.metrics import psnr
from codec.metrics.lpips import LPIPS

LABEL = 28  # pixels above an image
GAP = 8  # pixels


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    for name in ("original", "file", "decoded", "sheet"):
        parser.add_argument(name, type=Path)
    parser.add_argument("--lpips-weights", type=Path, help="default: downloaded by `tessera models fetch lpips`")
    arguments = parser.parse_args()
    original, decoded = read_pixels(arguments.original), read_pixels(arguments.decoded)
    size = arguments.file.stat().st_size
    metrics = open_metrics(arguments.lpips_weights)
    values = ", ".join(text.format(metric(decoded, original)) for text, metric in metrics.items())
    lines = [f"Tessera, {size} bytes: {values}"]
    panels = [labelled(original, "original"), labelled(decoded, f"Tessera, {size} bytes")]
    webp = list(fit_at_all_scales(WEBP, original, size))
    if webp:
        best_values = (
            text.format((min if text.startswith("LPIPS") else max)(metric(image, original) for _, image in webp))
            for text, metric in metrics.items()
        )
        lines.append(f"WebP at the same bytes, the best of six scales by each metric: {', '.join(best_values)}")
        best_file, best_image = max(webp, key=lambda pair: psnr(pair[1], original))
        panels.append(labelled(best_image, f"WebP at its best scale, {len(best_file.data)} bytes"))
    else:
        lines.append("WebP does not fit these bytes at any scale")
    if len(metrics) < 3:
        lines.append("LPIPS was not measured: `tessera models fetch lpips` fetches its weights (244 MB)")
    side_by_side(panels).save(arguments.sheet, quality=88, method=6)
    lines.append(f"side by side: {arguments.sheet}")
    sys.stdout.write("\n".join(lines) + "\n")


def open_metrics(weights: Path | None) -> dict[str, Callable[[Pixels, Pixels], float]]:
    """Metrics of an image and its original, by the format of their values. LPIPS is included if its weights are installed."""
    metrics: dict[str, Callable[[Pixels, Pixels], float]] = {"PSNR {:.2f} dB": psnr, "MS-SSIM {:.3f}": ms_ssim}
    try:
        return metrics | {"LPIPS {:.3f}": LPIPS(weights).distance}
    except ModelError:
        if weights:
            raise
        return metrics


def labelled(pixels: Pixels, text: str) -> Image.Image:
    """The image below a line of text."""
    height, width = pixels.shape[:2]
    image = Image.new("RGB", (width, height + LABEL), "white")
    image.paste(Image.fromarray(pixels), (0, LABEL))
    ImageDraw.Draw(image).text((4, 4), text, "black", font=ImageFont.load_default(17))
    return image


def side_by_side(panels: list[Image.Image]) -> Image.Image:
    """Images of equal size in a row."""
    width, height = panels[0].size
    sheet = Image.new("RGB", ((width + GAP) * len(panels) - GAP, height), "white")
    for index, panel in enumerate(panels):
        sheet.paste(panel, (index * (width + GAP), 0))
    return sheet


if __name__ == "__main__":
    main()
