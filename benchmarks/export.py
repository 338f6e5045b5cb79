"""The results of a benchmark as JSON, CSV, a plot, and tables for the terminal."""

from __future__ import annotations

import csv
import io
import json
from collections.abc import Iterator, Sequence
from math import isfinite
from pathlib import Path
from typing import TYPE_CHECKING

from benchmarks.curves import same_quality
from benchmarks.metrics import METRICS
from benchmarks.records import QUICK, SCALED, TESSERA, Delta, Point, Results, Series, base_name
from codec.system.files import atomic_write

if TYPE_CHECKING:
    from rich.table import Table

PANELS = 4  # per row of a plot
# Wong, Nature Methods 8, 441 (2011): distinguishable for colour-blind readers too. report.css has the same.
COLOURS = ("#d55e00", "#0072b2", "#009e73", "#cc79a7", "#e69f00", "#56b4e9", "#7a7a7a", "#8c6bb1", "#000000", "#a6761d")
MARKS = "os^vD"  # a mark for each time that the colours are used


def write_json(results: Results, folder: Path) -> list[Path]:
    """Writes a file per codec, which compressai's plot tool reads, and `study.json` with the conditions of the benchmark."""
    paths = [write_json_file(folder / f"{series.name}.json", json_of(series, results)) for series in results.series]
    study = {
        "command": results.command,
        "images": [f"{image.name}, {image.width}x{image.height}" for image in results.images],
        "budgets": results.budgets,
        "missing": dict(results.missing),
        "failed": dict(results.failed),
        "speed": results.speed_note,
        "versions": dict(results.versions),
        "settings": dict(results.settings),
    }
    return [*paths, write_json_file(folder / "study.json", study)]


def json_of(series: Series, results: Results) -> dict:
    """A codec's curve in the form that compressai's plot tool reads, followed by further fields."""
    points = [point for point in series.points if point.images == len(results.images)]
    curve: dict[str, list] = {"bpp": [point.bpp for point in points]}
    for key in results.metrics:
        if all(key in point.metrics for point in points):
            values = [point.metrics[key] for point in points]
            curve[METRICS[key].json] = [value if isfinite(value) else None for value in values]  # JSON has no infinity
    speed = next((speed for speed in results.speeds if speed.codec == series.name), None)
    if speed and points:
        area = sum(image.width * image.height for image in results.images) / len(results.images) / 1e6
        # seconds per image; speed was measured at a single rate
        curve["encoding_time"] = [area / speed.encode] * len(points)
        curve["decoding_time"] = [area / speed.decode] * len(points)
    return {
        "name": series.title,
        "description": series.description,
        "made_for": series.made_for,
        "results": curve,
        "codec": series.name,
        "labels": [point.label for point in points],
        "images": len(results.images),
        "too_few_images": {p.label: p.images for p in series.points if p.images < len(results.images)},
        "bd_rate": {METRICS[d.metric].json: delta_json(d, results.anchor) for d in results.deltas if d.codec == series.name},
        "speed": speed and vars(speed),
    }


def delta_json(delta: Delta, anchor: str) -> dict:
    return {"anchor": anchor, "percent": delta.percent, "low": delta.low, "high": delta.high, "note": delta.note}


def write_json_file(path: Path, plain: dict) -> Path:
    with atomic_write(path) as temporary:
        temporary.write_text(json.dumps(plain, indent=1) + "\n")
    return path


def csv_of(results: Results) -> str:
    """A row for each sample, and then the means under the image name `mean`. A name that a spreadsheet would compute as a
    formula begins with a quote."""
    stream = io.StringIO()
    writer = csv.writer(stream, lineterminator="\n")
    writer.writerow(["image", "codec", "point", "setting", "scale", "bytes", "bpp", *results.metrics])
    for (image, codec, label), s in results.samples.items():
        values = [f"{s.metrics[key]:.6g}" if key in s.metrics else "" for key in results.metrics]
        name = f"'{image}" if image.startswith(("=", "+", "-", "@", "\t", "\r")) else image
        writer.writerow([name, codec, label, s.setting, f"{s.scale:g}", len(s.data), f"{s.bpp:.6g}", *values])
    for series in results.series:
        for point in series.points:
            values = [f"{point.metrics[key]:.6g}" if key in point.metrics else "" for key in results.metrics]
            count = f"{point.images} of {len(results.images)} images"
            writer.writerow(["mean", series.name, point.label, count, "", "", f"{point.bpp:.6g}", *values])
    return stream.getvalue()


def tables(results: Results) -> Iterator[tuple[str, Table, str]]:
    """For the terminal: titles, tables, and remarks on them."""
    yield from _metric_tables(results)
    yield from _same_quality_tables(results)
    if results.deltas:
        yield _delta_table(results)
    if results.speeds:
        yield _speed_table(results)
    objectives = _new_table("", "")
    objectives.columns[1].justify = "left"
    for series in results.series:
        objectives.add_row(series.title, series.made_for)
    yield "Objective of each codec (a codec does well in similar metrics)", objectives, ""


def _metric_tables(results: Results) -> Iterator[tuple[str, Table, str]]:
    images = len(results.images)
    for key in results.metrics:
        if not any(key in point.metrics for series in results.series for point in series.points):
            continue  # an image is too small, as `Bench.open` said
        metric = METRICS[key]
        unit = f", {metric.unit}" if metric.unit else ""
        if results.budgets:
            title = f"{metric.title}{unit}, at no more than this many bits per pixel ({metric.arrow})"
            table = _new_table("", *(f"{budget:g}" for budget in results.budgets))
            for series in results.series:
                table.add_row(series.title, *(_cell(series.at(label), key, images) for label in results.labels()))
        else:
            title = f"{metric.title}{unit} at each codec's own settings ({metric.arrow})"
            table = _new_table("", "bpp", metric.title, "")
            for series in results.series:
                for point in series.points:
                    table.add_row(series.title, f"{point.bpp:.4f}", _cell(point, key, images), point.label)
        yield title, table, ""


def _cell(point: Point | None, key: str, images: int) -> str:
    """A mean; or the number of images if not all fitted, since a mean over the easy ones alone would flatter the codec."""
    if point is None:
        return "-"
    if point.images < images:
        return f"{point.images} of {images}"
    return f"{point.metrics[key]:.{METRICS[key].digits}f}" if key in point.metrics else "-"


def _same_quality_tables(results: Results) -> Iterator[tuple[str, Table, str]]:
    reference = next((series for series in results.series if series.name == TESSERA), None)
    for key in bd_rate_metrics(results) if reference else ():
        assert reference
        rows = same_quality(results.series, reference, key, len(results.images))
        if rows:
            table = _new_table("", *(f"{point.metrics[key]:.{METRICS[key].digits}f}" for point, _ in rows))
            for index, series in enumerate(results.series):
                ratios = [ratios[index] for _, ratios in rows]
                table.add_row(series.title, *("-" if ratio is None else f"{ratio:.2f}" for ratio in ratios))
            yield f"Bytes for the same {METRICS[key].title}, as a multiple of Tessera's", table, ""


def _delta_table(results: Results) -> tuple[str, Table, str]:
    keys = bd_rate_metrics(results)
    table = _new_table("", *(METRICS[key].title for key in keys))
    deltas = {(delta.codec, delta.metric): delta for delta in results.deltas}
    notes = []
    for series in results.series:
        cells = []
        for key in keys:
            delta, digits = deltas.get((series.name, key)), METRICS[key].digits
            if delta and delta.percent is not None:
                cells.append(f"{delta.percent:+.1f} %  {delta.low:.{digits}f}..{delta.high:.{digits}f}")
            else:
                cells.append("-")
                notes += [f"{series.title}, {METRICS[key].title}: {delta.note}"] if delta else []
        if series.name != results.anchor:
            table.add_row(series.title, *cells)
    title = f"BD-rate against {results.titles()[results.anchor]} (negative is fewer bits), and its interval of quality"
    return title, table, "\n".join(notes)


def _speed_table(results: Results) -> tuple[str, Table, str]:
    table = _new_table("", "encode MP/s", "decode MP/s", "start-up s", "memory MB", "at")
    for s in results.speeds:
        values = (f"{s.encode:.2f}", f"{s.decode:.2f}", f"{s.startup:.2f}", f"{s.memory:.0f}")
        table.add_row(results.titles().get(s.codec, s.codec), *values, s.setting)
    return "Speed", table, results.speed_note


def _new_table(*columns: str) -> Table:
    """A table without rules: the first column aligned left, numbers right."""
    from rich.table import Table

    table = Table(box=None, pad_edge=False, header_style="bold")
    for index, column in enumerate(columns):
        table.add_column(column, justify="right" if index else "left", no_wrap=True)
    return table


def bd_rate_metrics(results: Results) -> list[str]:
    """The metrics that have a BD-rate."""
    return [key for key in results.metrics if METRICS[key].has_bd_rate]


def write_plot(curves: Sequence[Series], keys: Sequence[str], path: Path, overlays: Sequence[dict] = ()) -> None:
    """Plots a panel for each metric in `keys`, as PNG, SVG or PDF by the suffix of `path`. `overlays` are curves in
    compressai's JSON."""
    import matplotlib

    matplotlib.use("Agg")
    from matplotlib import pyplot as plt

    images = max((point.images for series in curves for point in series.points), default=0)
    ticks = sorted(
        {float(p.label.removesuffix(" bpp")) for series in curves for p in series.points if p.label.endswith(" bpp")}
    )
    columns = min(PANELS, len(keys))
    rows = -(-len(keys) // columns)
    figure, axes = plt.subplots(rows, columns, figsize=(5.2 * columns, 4.6 * rows), layout="constrained", squeeze=False)
    for axis in axes.flat[len(keys) :]:
        axis.remove()
    for key, axis in zip(keys, axes.flat, strict=False):
        metric = METRICS[key]
        indexes: dict[str, int] = {}
        for series in curves:
            index = indexes.setdefault(base_name(series.name), len(indexes))
            colour, mark = COLOURS[index % len(COLOURS)], MARKS[index // len(COLOURS) % len(MARKS)]
            points = [p for p in series.complete(images) if key in p.metrics]
            bold = series.name == TESSERA
            line = "--" if series.name.endswith(SCALED) else ":" if series.name.endswith(QUICK) else "-"
            size = 8 if len(points) == 1 else 4 if bold else 3  # a single point has no line
            axis.plot(
                [p.bpp for p in points], [p.metrics[key] for p in points], marker=mark, markersize=size,
                linewidth=2.6 if bold else 1.3, linestyle=line, color=colour, label=series.title,
                zorder=3 if bold else 2,
            )  # fmt: skip
        for overlay in overlays:
            if metric.json in overlay["results"]:
                rates, values = overlay["results"]["bpp"], overlay["results"][metric.json]
                axis.plot(rates, values, ":", linewidth=1.2, color="#444444", label=f"{overlay['name']} (published)")
        axis.set_xscale("log")
        axis.set_xlabel("bits per pixel")
        axis.set_ylabel(f"{metric.title}{f' ({metric.unit})' if metric.unit else ''}, {metric.arrow}")
        axis.grid(alpha=0.3, which="both")
        axis.spines[["top", "right"]].set_visible(False)
        if ticks:
            axis.set_xticks(ticks, [f"{tick:g}" for tick in ticks], rotation=45)
            axis.minorticks_off()
    handles, labels = axes[0][0].get_legend_handles_labels()
    if handles:
        figure.legend(handles, labels, loc="outside lower center", ncols=min(5, len(labels)), frameon=False, fontsize="small")
    figure.suptitle(f"{images} images, mean, whole files", fontsize="medium")
    metadata = {"Date": None} if path.suffix == ".svg" else {}
    with atomic_write(path) as temporary:
        figure.savefig(temporary, dpi=150, metadata=metadata, format=path.suffix.lower().lstrip("."))
    plt.close(figure)
