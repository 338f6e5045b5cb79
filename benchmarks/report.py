"""The page of a benchmark: one HTML file that needs no network, with curves, tables, and all images side by side.

The numbers describe the original files. The images on the page were decoded and encoded again as WebP, so that the page stays
small. They are stored as JSON, one block per image, and the browser decodes only the blocks that are shown.
"""

from __future__ import annotations

import base64
import io
import json
import math
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass, replace
from functools import cached_property
from pathlib import Path
from typing import Any

import numpy as np
from PIL import Image

from benchmarks.curves import rate_at
from benchmarks.export import bd_rate_metrics
from benchmarks.metrics import METRICS
from benchmarks.records import (
    QUICK,
    SCALED,
    TESSERA,
    Delta,
    ImageInfo,
    Pixels,
    Results,
    Sample,
    Series,
    base_name,
    rate_label,
)
from codec.errors import TesseraError
from codec.system.files import Writer

HERE = Path(__file__).parent
ORIGINAL = "original"
COLOURS = 10  # number of colours in report.css
MARKS = 10  # number of marks there
RATES = 4  # maximum number of rates with images
LOW_SHARE = 0.75  # share of the rates, from the lowest, with images: above it, codecs are hard to tell apart
NEAR = 1.3  # maximum ratio between files that are shown together, for codecs at their own settings
WEBP_QUALITY = 80  # far above the compared qualities; Kodak with every codec stays near 30 MB
MAX_SIDE = 1280  # pixels; larger images are shrunk
THUMBNAIL = 160  # pixels
MAX_BYTES = 64_000_000  # maximum size of all images on a page; browsers open larger pages slowly

Decoded = Callable[[str, str, Sample], Pixels]


def write_report(
    results: Results,
    path: Path,
    original: Callable[[str], Pixels],
    decoded: Decoded,
    rates: int = RATES,
    limit: int = MAX_BYTES,
    progress: Callable[[], None] = lambda: None,
) -> None:
    """Writes the page atomically.

    `original` returns the pixels of an image by name; `decoded` returns a sample's pixels by image and codec, at full size.
    Images are shown at up to `rates` rates, and as many of them as fit `limit` bytes; `progress` is called after each. Raises
    TesseraError if a library is missing, FileError if the page cannot be written.
    """
    try:
        from jinja2 import Environment, FileSystemLoader, StrictUndefined
        from markupsafe import Markup
        from plotly.offline import get_plotlyjs
    except ImportError as error:
        msg = f"the page needs {error.name}: pip install '.[report]' in Tessera's repository"
        raise TesseraError(msg) from error
    environment = Environment(
        loader=FileSystemLoader(HERE), autoescape=True, undefined=StrictUndefined, trim_blocks=True, lstrip_blocks=True
    )
    gallery = Gallery(results, original, decoded, rates)
    blocks = list(gallery.blocks(limit, progress))
    shown = [block["image"] for block in blocks]
    page = environment.get_template("report.html").render(
        results=results,
        tables=Tables(results),
        metrics=[METRICS[key] for key in results.metrics],
        rated=[METRICS[key] for key in bd_rate_metrics(results)],
        thumbnails=[(image.name, block["thumbnail"]) for image, block in zip(shown, blocks, strict=True)],
        left_out=len(results.images) - len(shown),
        quality=WEBP_QUALITY,
        side=MAX_SIDE if any(max(image.width, image.height) > MAX_SIDE for image in shown) else None,
        rates=[f"{rate:g}" for rate in gallery.rates],
        data=Markup(in_script(page_data(results, gallery, blocks))),
        blocks=[Markup(in_script(block["data"])) for block in blocks],
        style=Markup((HERE / "report.css").read_text(encoding="utf-8")),
        scripts=[Markup((HERE / name).read_text(encoding="utf-8")) for name in ("report.js", "report.images.js")],
        plotly=Markup(get_plotlyjs().replace("</script", "<\\/script")),
    )
    Writer().write(str(path), page.encode(errors="backslashreplace"), replace=True)


def in_script(plain: Any) -> str:
    """Plain data as JSON for a <script> element: nothing in it can end the element."""
    return json.dumps(plain, separators=(",", ":"), allow_nan=False).replace("<", "\\u003c")


def finite(values: Mapping[str, float]) -> dict[str, float | None]:
    """Values for JSON, which has no infinity: the PSNR of an exact copy becomes None."""
    return {key: value if math.isfinite(value) else None for key, value in values.items()}


def colour_of(results: Results, name: str) -> int:
    """Index in the palette: 0 for Tessera, the following for other codecs in order. Variants have the colour of their codec."""
    number = _number_of(results, name)
    return number and 1 + (number - 1) % (COLOURS - 1)


def mark_of(results: Results, name: str) -> int:
    """Index of the mark. Together with its colour, it is unique among 90 codecs."""
    return _number_of(results, name) % MARKS


def _number_of(results: Results, name: str) -> int:
    """0 for Tessera; for other codecs their position among the codecs without variants, from 1."""
    names = dict.fromkeys([TESSERA, *(base_name(series.name) for series in results.series), base_name(name)])
    return list(names).index(base_name(name))


def page_data(results: Results, gallery: Gallery, blocks: list[dict[str, Any]]) -> dict[str, Any]:
    """The data of the page's script without the blocks of images."""
    count = len(results.images)
    return {
        "metrics": [
            {"key": key, "title": metric.title, "unit": metric.unit, "digits": metric.digits, "arrow": metric.arrow,
             "high": metric.best is max}
            for key, metric in ((key, METRICS[key]) for key in results.metrics)
        ],
        "series": [
            {"name": series.name, "title": series.title, "colour": colour_of(results, series.name),
             "mark": mark_of(results, series.name),
             "dashed": series.name.endswith(SCALED), "dotted": series.name.endswith(QUICK), "bold": series.name == TESSERA,
             "points": [{"label": p.label, "bpp": p.bpp} | finite(p.metrics) for p in series.complete(count)]}
            for series in results.series
        ],
        "images": [
            {"name": block["image"].name, "width": block["image"].width, "height": block["image"].height,
             "images": [{name: file["image"] for name, file in files.items()} for files in block["data"]["files"]]}
            for block in blocks
        ],
        "budgets": bool(results.budgets),
        "speeds": [
            {"name": speed.codec, "encode": 1 / speed.encode, "decode": 1 / speed.decode} for speed in results.speeds
        ],  # seconds per megapixel
        "common": {key: common_quality(results, key) for key in bd_rate_metrics(results)} if results.speeds else {},
        "shown": gallery.names,
        "start": gallery.start(),
    }  # fmt: skip


def common_quality(results: Results, metric: str) -> dict[str, Any] | None:
    """The mean quality for the plot of rate against time, and the codecs' rates at this quality, in bits per pixel.

    It is the quality that most codecs with a known speed reach and, among several, the one with the lowest rates. None if no
    two codecs share a quality."""
    timed = [series for series in results.series if series.name in {speed.codec for speed in results.speeds}]
    count = len(results.images)
    values = [point.metrics[metric] for series in timed for point in series.points if metric in point.metrics]
    rows = [(value, [rate_at(series, metric, value, count) for series in timed]) for value in values if math.isfinite(value)]
    value, rates = max(rows, key=lambda row: (sum(map(bool, row[1])), -sum(rate or 0 for rate in row[1])), default=(0.0, []))
    reached = {series.name: rate for series, rate in zip(timed, rates, strict=False) if rate}
    return {"value": value, "rates": reached} if len(reached) > 1 else None


@dataclass(frozen=True)
class Gallery:
    """The choice of rates, codecs and images that a page shows."""

    results: Results
    original: Callable[[str], Pixels]
    decoded: Decoded
    max_rates: int

    @property
    def names(self) -> list[str]:
        """The codecs whose images are shown: all except quick settings."""
        return [series.name for series in self.results.series if not series.name.endswith(QUICK)]

    @cached_property
    def rates(self) -> list[float]:
        """The rates with images: some of the common rates or, for codecs at their own settings, some of all rates."""
        rates = sorted(self.results.budgets or {float(f"{p.bpp:.2g}") for s in self.results.series for p in s.points})
        if len(rates) > self.max_rates:
            indexes = np.linspace(0, max(self.max_rates, math.ceil(LOW_SHARE * len(rates))) - 1, self.max_rates).round()
            rates = [rates[int(index)] for index in indexes]
        return rates

    @cached_property
    def _by_codec(self) -> dict[tuple[str, str], list[Sample]]:
        samples: dict[tuple[str, str], list[Sample]] = {}
        for (image, codec, _), sample in self.results.samples.items():
            samples.setdefault((image, codec), []).append(sample)
        return samples

    def sample(self, image: str, codec: str, rate: float) -> Sample | None:
        """A codec's file at a common rate; at settings of its own, the file nearest to the rate, or None if it is not near."""
        if self.results.budgets:
            return self.results.samples.get((image, codec, rate_label(rate)))
        near = [(abs(math.log(s.bpp / rate)), s) for s in self._by_codec.get((image, codec), ())]
        return min((pair for pair in near if pair[0] <= math.log(NEAR)), key=lambda pair: pair[0], default=(0, None))[1]

    def start(self) -> dict[str, Any]:
        """The first view: Tessera on the left, the anchor or its downscaled variant on the right, at the lowest rate with
        a file of both. The very lowest rate is chosen last."""
        names = self.names
        first = self.results.images[0].name if self.results.images else ""
        left = TESSERA if TESSERA in names else next(iter(names), ORIGINAL)
        wanted = (self.results.anchor, self.results.anchor + SCALED, *(name for name in names if name.endswith(SCALED)), *names)
        indexes = [*range(1, len(self.rates)), 0]
        for right in dict.fromkeys(name for name in wanted if name in names and name != left):
            for index in indexes[: len(self.rates)]:
                if all(self.sample(first, name, self.rates[index]) for name in (left, right)):
                    return {"left": left, "right": right, "rate": index, "grid": self._grid(first, left, right, index)}
        return {"left": ORIGINAL, "right": left, "rate": 0, "grid": [ORIGINAL, left]}

    def _grid(self, image: str, left: str, right: str, rate: int) -> list[str]:
        """The first view of the grid: the original, the two codecs, and the best of the others by the first metric."""
        files = {name: self.sample(image, name, self.rates[rate]) for name in self.names if name not in (left, right)}
        key = next(iter(self.results.metrics), "")
        values = [(file.metrics[key], name) for name, file in files.items() if file and key in file.metrics]
        return [ORIGINAL, left, right, *(name for _, name in sorted(values, reverse=METRICS[key].best is max)[:1])]

    def blocks(self, limit: int, progress: Callable[[], None]) -> Iterator[dict[str, Any]]:
        """A block per image while `limit` bytes are not exceeded, and at least one."""
        remaining = limit
        for index, image in enumerate(self.results.images):
            block = self.block(image)
            remaining -= sum(map(len, block["data"]["images"]))
            if index and remaining < 0:
                return
            yield block
            progress()

    def block(self, image: ImageInfo) -> dict[str, Any]:
        """An image's thumbnail, its original and decoded images, and the facts about each file. Equal files are decoded
        once."""
        pixels = self.original(image.name)
        images = [as_webp(pixels, MAX_SIDE, WEBP_QUALITY)]
        indexes: dict[bytes, int] = {}  # file -> index in `images`
        files: list[dict[str, Any]] = [{} for _ in self.rates]
        for name in self.names:  # codec by codec: only one model is in memory
            for rate, row in zip(self.rates, files, strict=True):
                sample = self.sample(image.name, name, rate)
                if sample is None:
                    continue
                if sample.data not in indexes:
                    indexes[sample.data] = len(images)
                    images.append(as_webp(self.decoded(image.name, name, sample), MAX_SIDE, WEBP_QUALITY))
                row[name] = {
                    "image": indexes[sample.data], "bytes": len(sample.data), "bpp": sample.bpp, "setting": sample.setting,
                    "scale": sample.scale, "metrics": finite(sample.metrics),
                }  # fmt: skip
        return {"image": image, "thumbnail": as_webp(pixels, THUMBNAIL, 70), "data": {"images": images, "files": files}}


def as_webp(pixels: Pixels, side: int, quality: int) -> str:
    """Pixels as a WebP file in base64, shrunk if a side is longer than `side` pixels."""
    image = Image.fromarray(pixels)
    image.thumbnail((side, side), Image.Resampling.LANCZOS)
    stream = io.BytesIO()
    image.save(stream, "WEBP", quality=quality, method=4)
    return base64.b64encode(stream.getvalue()).decode()


@dataclass(frozen=True)
class Cell:
    """A cell of a table."""

    text: str
    best: bool = False
    number: bool = True  # False: a remark instead of a number
    note: str = ""  # small print below the text


@dataclass(frozen=True)
class Tables:
    """The tables of a page."""

    results: Results

    def colour(self, name: str) -> int:
        return colour_of(self.results, name)

    def mark(self, name: str) -> int:
        return mark_of(self.results, name)

    def dashed(self, name: str) -> bool:
        return name.endswith(SCALED)

    def dotted(self, name: str) -> bool:
        return name.endswith(QUICK)

    @cached_property
    def codecs(self) -> int:
        """The number of codecs without their variants."""
        return len({base_name(series.name) for series in self.results.series})

    @cached_property
    def scaled(self) -> int:
        """The number of downscaled variants."""
        return sum(self.dashed(series.name) for series in self.results.series)

    def same_bytes(self, metric: str) -> list[tuple[Series, list[Cell]]]:
        """A row per codec, a cell per rate; the best of each rate is marked."""
        labels = self.results.labels()
        rows = [(series, [self._cell(series, label, metric) for label in labels]) for series in self.results.series]
        for column in range(len(labels)):
            numbers = [cells[column].text for _, cells in rows if cells[column].number]
            best = METRICS[metric].best(numbers, key=float, default="")
            for _, cells in rows:
                cells[column] = replace(cells[column], best=cells[column].number and cells[column].text == best)
        return rows

    def _cell(self, series: Series, label: str, metric: str) -> Cell:
        point = series.at(label)
        count, fit = len(self.results.images), point.images if point else 0
        if not point or fit < count:
            return Cell(f"{fit} of {count} fit", number=False)
        return Cell(self.value(metric, point.metrics), number=metric in point.metrics)

    def value(self, metric: str, values: Mapping[str, float]) -> str:
        return f"{values[metric]:.{METRICS[metric].digits}f}" if metric in values else "not measured"

    def deltas(self) -> list[tuple[Series, list[Cell]]]:
        """A row per codec but the anchor, a cell per metric."""
        deltas = {(delta.codec, delta.metric): delta for delta in self.results.deltas}
        others = [series for series in self.results.series if series.name != self.results.anchor]
        keys = bd_rate_metrics(self.results)
        return [(series, [_delta_cell(deltas.get((series.name, key)), key) for key in keys]) for series in others]


def _delta_cell(delta: Delta | None, metric: str) -> Cell:
    if delta is None or delta.percent is None or delta.low is None or delta.high is None:
        return Cell("none", number=False, note=delta.note if delta else "not measured")
    digits = METRICS[metric].digits
    interval = f"over {delta.low:.{digits}f} to {delta.high:.{digits}f} {METRICS[metric].unit}".rstrip()
    return Cell(f"{delta.percent:+.1f} %".replace("-", "\N{MINUS SIGN}"), best=delta.percent < 0, note=interval)
