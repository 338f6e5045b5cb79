"""Tables and plots of README.md and docs/benchmarks.md, from the JSON files that `tessera bench --json-dir` wrote.

A codec keeps its file until it is measured again, so a study need not be repeated as a whole.

    python -m benchmarks.tools.tables benchmarks/results/kodak \\
        --plot benchmarks/results/kodak/kodak.png --short-plot docs/kodak.png
"""

from __future__ import annotations

import argparse
import json
import sys
from collections.abc import Iterable, Iterator
from pathlib import Path

from PIL import Image

from benchmarks.curves import delta
from benchmarks.export import write_plot
from benchmarks.metrics import METRICS
from benchmarks.records import TESSERA, Point, Series, rate_label

RATES = (0.0147, 0.0244, 0.0443, 0.0806, 0.153, 0.4)  # bits per pixel
ROWS = (
    "tessera", "tessera-psnr", "webp", "webp-scaled", "avif", "avif-scaled", "avif-psnr-scaled", "vvc", "vvc-scaled",
    "heic-scaled", "jxl-scaled", "jpeg-scaled", "jpeg2000-scaled",
)  # fmt: skip
ANCHORS = (
    "webp", "webp-scaled", "avif", "avif-scaled", "avif-psnr", "avif-psnr-scaled", "vvc", "vvc-scaled", "heic-scaled", "jxl",
    "jxl-scaled", "jpeg-scaled", "jpeg2000-scaled",
)  # fmt: skip
MAIN = ("lpips", "psnr", "ms_ssim")
MORE = ("ssimulacra2", "features")
COLOUR = ("colour",)
SHORT_RATES = (0.0244, 0.0806, 0.4)  # rates of the table in README.md
SHORT_ROWS = (
    "tessera",
    "tessera-psnr",
    "webp-scaled",
    "avif-scaled",
    "vvc-scaled",
    "jpeg-scaled",
)  # codecs of its table and plot
SHORT_METRICS = ("lpips", "psnr")
RECOGNITION = ("top1", "top5")


def read_series(path: Path) -> Series:
    """The inverse of `benchmarks.export.json_of`: a codec's curve."""
    plain = json.loads(path.read_text())
    curve = plain["results"]
    points = []
    for index, label in enumerate(plain["labels"]):
        metrics = {key: curve[metric.json][index] for key, metric in METRICS.items() if metric.json in curve}
        points.append(Point(label, plain["images"], curve["bpp"][index], metrics))
    incomplete = [Point(label, count, 0.0, {}) for label, count in plain["too_few_images"].items()]
    return Series(plain["codec"], plain["name"], plain["description"], (*incomplete, *points), plain["made_for"])


def read_all(folder: Path, names: tuple[str, ...]) -> list[Series]:
    """The curves of the codecs that were measured."""
    return [read_series(path) for name in names if (path := folder / f"{name}.json").exists()]


def rate_table(
    folder: Path, keys: tuple[str, ...] = MAIN, names: tuple[str, ...] = ROWS, rates: Iterable[float] = RATES
) -> Iterator[str]:
    """The metrics `keys` of the codecs `names` at each of the rates that was measured, or the number of images that fit it, if
    some do not. Empty if Tessera's file lacks one of the metrics."""
    rows = read_all(folder, names)
    rates = [rate for rate in rates if rows[0].at(rate_label(rate))]
    if not all(key in point.metrics for key in keys for point in rows[0].points if point.metrics):
        return
    yield "| bpp at most | " + " | ".join(f"{rate:g}" for rate in rates) + " |"
    yield "|---" * (len(rates) + 1) + "|"
    for series in rows:
        images = max(point.images for point in series.points)
        cells = []
        for rate in rates:
            point = series.at(rate_label(rate))
            if point and all(key in point.metrics for key in keys):
                cells.append(" / ".join(f"{point.metrics[key]:.{min(3, METRICS[key].digits)}f}" for key in keys))
            else:
                cells.append(f"{point.images if point else 0} of {images} fit")
        title = f"**{series.title}**" if series.name == TESSERA else series.title
        yield f"| {title} | " + " | ".join(cells) + " |"


def short_table(folder: Path) -> Iterator[str]:
    """The table of README.md."""
    return rate_table(folder, SHORT_METRICS, SHORT_ROWS, SHORT_RATES)


def objectives(folder: Path) -> Iterator[str]:
    """The objective of each codec."""
    yield "Objectives: " + "; ".join(f"{series.title}: {series.made_for}" for series in read_all(folder, ROWS))


def delta_table(folder: Path) -> Iterator[str]:
    """Tessera's Bjontegaard delta rates: its difference in bits from each codec, and the range of quality.
    Codecs with too few rates for any number are left out."""
    tessera = read_series(folder / "tessera.json")
    yield "| bits against | " + " | ".join(METRICS[key].title for key in MAIN) + " |"
    yield "|---" * (len(MAIN) + 1) + "|"
    images = max(point.images for point in tessera.points)
    for anchor in read_all(folder, ANCHORS):
        cells = []
        for key in MAIN:
            metric = METRICS[key]
            bd_rate = delta(anchor, tessera, key, images)
            if bd_rate.percent is None:
                cells.append("no number")
            else:
                interval = f"{bd_rate.low:.{metric.digits}f} to {bd_rate.high:.{metric.digits}f}"
                cells.append(f"{bd_rate.percent:+.0f} % ({interval})")
        if set(cells) != {"no number"}:
            yield f"| {anchor.title} | " + " | ".join(cells) + " |"


def write_small_plot(curves: list[Series], keys: tuple[str, ...], path: Path) -> None:
    """A plot as a PNG of at most 256 colours."""
    write_plot(curves, keys, path)
    with Image.open(path) as plot:
        reduced = plot.convert("RGB").quantize(256)
    reduced.save(path, optimize=True)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("folder", type=Path, help="with a JSON file for each codec")
    parser.add_argument("--plot", type=Path, help="PNG of all curves")
    parser.add_argument("--short-plot", type=Path, help="PNG of the curves that README.md shows")
    arguments = parser.parse_args()
    folder: Path = arguments.folder
    if arguments.plot:
        names = (*ROWS[:1], *ANCHORS, *(name for name in ROWS[1:] if name not in ANCHORS))
        write_small_plot(read_all(folder, names), MAIN, arguments.plot)
    if arguments.short_plot:
        write_small_plot(read_all(folder, SHORT_ROWS), SHORT_METRICS, arguments.short_plot)
    tables = [
        rate_table(folder),
        short_table(folder),
        delta_table(folder),
        rate_table(folder, COLOUR),
        rate_table(folder, MORE),
        rate_table(folder, RECOGNITION),
        objectives(folder),
    ]
    sys.stdout.write("\n\n".join(filter(None, ("\n".join(table) for table in tables))) + "\n")


if __name__ == "__main__":
    main()
