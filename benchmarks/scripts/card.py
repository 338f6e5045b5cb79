"""The tables of README.md and MODEL.md, from the JSON that `tessera bench --json-dir` wrote.

python -m benchmarks.scripts.card benchmarks/kodak
"""

from __future__ import annotations

import json
import sys
from collections.abc import Iterator
from pathlib import Path

from benchmarks.curves import delta
from benchmarks.results import METRICS, Point, Series

RATES = (0.0147, 0.0244, 0.0443, 0.0806, 0.153, 0.4)  # bits per pixel
ROWS = ("tessera", "webp-scaled", "avif-scaled", "jxl-scaled", "jpeg-scaled", "jpeg2000-scaled")
ANCHORS = ("webp", "webp-scaled", "avif", "avif-scaled", "jxl", "jxl-scaled", "jpeg-scaled", "jpeg2000-scaled")


def read_series(path: Path) -> Series:
    """A codec's curve, from the file that `benchmarks.export.write_json` made of it."""
    plain = json.loads(path.read_text())
    curve = plain["results"]
    points = []
    for place, label in enumerate(plain["labels"]):
        metrics = {key: curve[metric.json][place] for key, metric in METRICS.items() if metric.json in curve}
        points.append(Point(label, plain["pictures"], curve["bpp"][place], metrics))
    few = [Point(label, count, 0.0, {}) for label, count in plain["too_few_pictures"].items()]
    return Series(plain["codec"], plain["name"], plain["description"], (*few, *points))


def rate_table(folder: Path) -> Iterator[str]:
    """LPIPS / PSNR / MS-SSIM at each rate; how many pictures fitted, where not all did."""
    yield "| bpp at most | " + " | ".join(f"{rate:g}" for rate in RATES) + " |"
    yield "|---" * (len(RATES) + 1) + "|"
    for name in ROWS:
        series = read_series(folder / f"{name}.json")
        whole = max(point.pictures for point in series.points)
        cells = []
        for rate in RATES:
            point = next((p for p in series.points if p.label == f"{rate:g} bpp"), None)
            if point and point.metrics:
                cells.append(
                    " / ".join(
                        f"{point.metrics[key]:.{digits}f}" for key, digits in (("lpips", 3), ("psnr", 2), ("ms_ssim", 3))
                    )
                )
            else:
                cells.append(f"{point.pictures if point else 0} of {whole} fit")
        title = f"**{series.title}**" if name == "tessera" else series.title
        yield f"| {title} | " + " | ".join(cells) + " |"


def delta_table(folder: Path) -> Iterator[str]:
    """Tessera's Bjontegaard delta rates: how many more or fewer bits than each codec, and the qualities that it holds for."""
    tessera = read_series(folder / "tessera.json")
    measured = {key: metric for key, metric in METRICS.items() if any(key in point.metrics for point in tessera.points)}
    yield "| bits against | " + " | ".join(metric.title for metric in measured.values()) + " |"
    yield "|---" * (len(measured) + 1) + "|"
    pictures = max(point.pictures for point in tessera.points)
    for name in ANCHORS:
        anchor = read_series(folder / f"{name}.json")
        cells = []
        for key, metric in measured.items():
            found = delta(anchor, tessera, key, pictures)
            ends = f"{found.low:.{metric.digits}f} to {found.high:.{metric.digits}f}" if found.percent is not None else ""
            cells.append(f"{found.percent:+.0f} % ({ends})" if ends else "no number")
        yield f"| {anchor.title} | " + " | ".join(cells) + " |"


def main() -> None:
    folder = Path(sys.argv[1])
    sys.stdout.write("\n".join([*rate_table(folder), "", *delta_table(folder)]) + "\n")


if __name__ == "__main__":
    main()
