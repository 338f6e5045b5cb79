"""The tables of README.md and MODEL.md, and their plot, from the JSON that `tessera bench --json-dir` wrote. Codecs that were
measured earlier keep their files, so only what has changed needs to be measured again.

    python -m benchmarks.tools.tables benchmarks/results/kodak --plot benchmarks/results/kodak/kodak.png
"""

from __future__ import annotations

import argparse
import json
import sys
from collections.abc import Iterator
from pathlib import Path

from benchmarks.curves import delta
from benchmarks.export import write_plot
from benchmarks.records import METRICS, Point, Series

RATES = (0.0147, 0.0244, 0.0443, 0.0806, 0.153, 0.4)  # bits per pixel
ROWS = (
    "tessera", "webp", "webp-scaled", "avif", "avif-scaled", "avif-psnr-scaled", "vvc", "vvc-scaled", "heic-scaled",
    "jxl-scaled", "jpeg-scaled", "jpeg2000-scaled",
)  # fmt: skip
ANCHORS = (
    "webp", "webp-scaled", "avif", "avif-scaled", "avif-psnr", "avif-psnr-scaled", "vvc", "vvc-scaled", "heic-scaled", "jxl",
    "jxl-scaled", "jpeg-scaled", "jpeg2000-scaled",
)  # fmt: skip
MAIN = ("lpips", "psnr", "ms_ssim")
MORE = ("ssimulacra2", "features")
COLOUR = ("colour",)
SEEN = ("top1", "top5")


def read_series(path: Path) -> Series:
    """A codec's curve, from the file that `benchmarks.export.write_json` made of it."""
    plain = json.loads(path.read_text())
    curve = plain["results"]
    points = []
    for place, label in enumerate(plain["labels"]):
        metrics = {key: curve[metric.json][place] for key, metric in METRICS.items() if metric.json in curve}
        points.append(Point(label, plain["images"], curve["bpp"][place], metrics))
    few = [Point(label, count, 0.0, {}) for label, count in plain["too_few_images"].items()]
    return Series(plain["codec"], plain["name"], plain["description"], (*few, *points), plain.get("made_for", ""))


def measured(folder: Path, names: tuple[str, ...]) -> list[Series]:
    """The curves of the codecs that were measured."""
    return [read_series(path) for name in names if (path := folder / f"{name}.json").exists()]


def rate_table(folder: Path, keys: tuple[str, ...] = MAIN) -> Iterator[str]:
    """Metrics at each rate of RATES that was measured, LPIPS / PSNR / MS-SSIM where no others are named; how many images
    fitted, where not all did. Nothing where Tessera's file lacks one of them."""
    rows = measured(folder, ROWS)
    rates = [rate for rate in RATES if any(point.label == f"{rate:g} bpp" for point in rows[0].points)]
    if not all(key in point.metrics for key in keys for point in rows[0].points if point.metrics):
        return
    yield "| bpp at most | " + " | ".join(f"{rate:g}" for rate in rates) + " |"
    yield "|---" * (len(rates) + 1) + "|"
    for series in rows:
        whole = max(point.images for point in series.points)
        cells = []
        for rate in rates:
            point = next((p for p in series.points if p.label == f"{rate:g} bpp"), None)
            if point and all(key in point.metrics for key in keys):
                cells.append(" / ".join(f"{point.metrics[key]:.{min(3, METRICS[key].digits)}f}" for key in keys))
            else:
                cells.append(f"{point.images if point else 0} of {whole} fit")
        title = f"**{series.title}**" if series.name == "tessera" else series.title
        yield f"| {title} | " + " | ".join(cells) + " |"


def aims(folder: Path) -> Iterator[str]:
    """What each codec was made for."""
    if told := [f"{series.title}: {series.aim}" for series in measured(folder, ROWS) if series.aim]:
        yield "Made for: " + "; ".join(told)


def delta_table(folder: Path) -> Iterator[str]:
    """Tessera's Bjontegaard delta rates: how many more or fewer bits than each codec, and the qualities that it holds for.
    Codecs with too few rates for any number are left out."""
    tessera = read_series(folder / "tessera.json")
    yield "| bits against | " + " | ".join(METRICS[key].title for key in MAIN) + " |"
    yield "|---" * (len(MAIN) + 1) + "|"
    images = max(point.images for point in tessera.points)
    for anchor in measured(folder, ANCHORS):
        cells = []
        for key in MAIN:
            metric = METRICS[key]
            found = delta(anchor, tessera, key, images)
            ends = f"{found.low:.{metric.digits}f} to {found.high:.{metric.digits}f}" if found.percent is not None else ""
            cells.append(f"{found.percent:+.0f} % ({ends})" if ends else "no number")
        if set(cells) != {"no number"}:
            yield f"| {anchor.title} | " + " | ".join(cells) + " |"


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("folder", type=Path, help="with a JSON file for each codec")
    parser.add_argument("--plot", type=Path, help="image to make of the curves")
    given = parser.parse_args()
    folder: Path = given.folder
    if given.plot:
        curves = measured(folder, (*ROWS[:1], *ANCHORS, *(name for name in ROWS[1:] if name not in ANCHORS)))
        write_plot(curves, MAIN, given.plot)
    tables = [
        rate_table(folder),
        delta_table(folder),
        rate_table(folder, COLOUR),
        rate_table(folder, MORE),
        rate_table(folder, SEEN),
        aims(folder),
    ]
    sys.stdout.write("\n\n".join(filter(None, ("\n".join(table) for table in tables))) + "\n")


if __name__ == "__main__":
    main()
