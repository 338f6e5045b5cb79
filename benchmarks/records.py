"""The results of a benchmark as plain data: written by `benchmarks.study`, shown as tables, JSON, CSV, plot and page."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

Pixels = NDArray[np.uint8]  # (H, W, 3), RGB

TESSERA = "tessera"
TESSERA_PSNR = "tessera-psnr"  # without texture: closest to the original
SCALED = "-scaled"  # suffix of a codec's name: at the best of several scales
QUICK = "-quick"  # suffix of a codec's name: at its quick setting


def base_name(name: str) -> str:
    """The name of a codec without the suffix of a variant."""
    return name.removesuffix(SCALED).removesuffix(QUICK)


@dataclass(frozen=True)
class ImageInfo:
    """An image of the benchmark."""

    name: str  # unique in a study
    path: str
    width: int
    height: int


@dataclass(frozen=True)
class Sample:
    """A file that a codec encoded from one image, and its quality."""

    data: bytes  # the complete file
    setting: str  # 'quality 31', '451 tokens per block'
    scale: float  # size of the coded image relative to the original
    bpp: float  # bits of the file per pixel of the original
    metrics: Mapping[str, float]  # key of METRICS -> value


@dataclass(frozen=True)
class Point:
    """A codec at one rate or setting: means over images."""

    label: str  # '0.0443 bpp' or 'quality 30'
    images: int  # number of images coded at this point; the means are over these
    bpp: float
    metrics: Mapping[str, float]  # key of METRICS -> value


@dataclass(frozen=True)
class Series:
    """A codec's curve, lowest rate first."""

    name: str  # name in --codecs: 'webp-scaled'
    title: str  # 'WebP, best scale'
    description: str  # encoder, version and settings
    points: tuple[Point, ...]
    made_for: str = ""  # objective of its training or of its encoder

    def complete(self, images: int) -> list[Point]:
        """The points that cover all `images`. At its limit a codec repeats its last file at higher rates: that point is listed
        once."""
        points = [point for point in self.points if point.images == images]
        return [point for index, point in enumerate(points) if index == 0 or point.bpp != points[index - 1].bpp]

    def at(self, label: str) -> Point | None:
        return next((point for point in self.points if point.label == label), None)


@dataclass(frozen=True)
class Delta:
    """Bjontegaard's delta rate: the mean difference of rate from the anchor at equal quality."""

    codec: str
    metric: str
    percent: float | None  # -30 is 30 % fewer bits than the anchor; None if the curves do not overlap
    low: float | None  # interval of quality that both curves cover, in the metric's unit
    high: float | None
    note: str  # reason if there is no number, else ''


@dataclass(frozen=True)
class Speed:
    """Speed of a codec at one rate, without start-up."""

    codec: str
    encode: float  # megapixels per second, median
    decode: float
    startup: float  # seconds from the start of the process until the first image is coded and decoded
    memory: float  # peak, MB
    setting: str


@dataclass(frozen=True)
class Results:
    """All results of a benchmark."""

    command: str
    images: tuple[ImageInfo, ...]
    metrics: tuple[str, ...]  # keys of METRICS
    budgets: tuple[float, ...]  # bits per pixel; empty if each codec ran at settings of its own
    series: tuple[Series, ...]
    missing: Mapping[str, str]  # codec or metric -> reason
    failed: Mapping[str, str]  # image -> reason why it could not be read
    anchor: str  # reference codec for rates
    deltas: tuple[Delta, ...]
    speeds: tuple[Speed, ...]
    speed_note: str  # threads, processor, image size, runs
    versions: Mapping[str, str]  # versions of Tessera, Python, the system and libraries
    settings: Mapping[str, str]  # codec or metric -> its settings, for readers
    samples: Mapping[tuple[str, str, str], Sample]  # (image, codec, label of the point) -> sample

    def titles(self) -> dict[str, str]:
        return {series.name: series.title for series in self.series}

    def labels(self) -> list[str]:
        """Labels of the points that codecs have in common, lowest rate first; empty if each ran at its own settings."""
        return [rate_label(budget) for budget in self.budgets]


def rate_label(bpp: float) -> str:
    """The label of the points at a common rate."""
    return f"{bpp:g} bpp"
