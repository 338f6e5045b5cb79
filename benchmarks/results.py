"""What a benchmark found, as plain data: measured by `benchmarks.study`, shown by the terminal, JSON, CSV, plot and page."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

Pixels = NDArray[np.uint8]  # (H, W, 3), RGB


@dataclass(frozen=True)
class Metric:
    """A measure of quality."""

    key: str  # in our data
    title: str
    unit: str
    digits: int  # shown after the point
    best: Callable[..., float]  # of several values: min or max
    json: str  # in the JSON that compressai's plot tool reads

    @property
    def arrow(self) -> str:
        return "higher is better" if self.best is max else "lower is better"


METRICS = {
    metric.key: metric
    for metric in (
        Metric("lpips", "LPIPS", "", 3, min, "lpips-rgb"),
        Metric("psnr", "PSNR", "dB", 2, max, "psnr-rgb"),
        Metric("ms_ssim", "MS-SSIM", "", 4, max, "ms-ssim-rgb"),
        Metric("colour", "Colour error", "", 2, min, "cielab-16"),
    )
}


@dataclass(frozen=True)
class Picture:
    """A picture that was coded."""

    name: str  # unique in a study
    path: str
    width: int
    height: int


@dataclass(frozen=True)
class Sample:
    """One picture as one file, and how good it is."""

    data: bytes  # the whole file
    setting: str  # what made it: 'quality 31', '451 tokens per block'
    scale: float  # the picture was shrunk by this before; 1 is its own size
    bpp: float  # bits per pixel of the original, of the whole file
    metrics: Mapping[str, float]  # by the keys of METRICS


@dataclass(frozen=True)
class Point:
    """A codec at one rate or setting: the mean over all pictures."""

    label: str  # '0.0443 bpp' or 'quality 30'
    pictures: int  # that could be coded so; the mean is over these
    bpp: float
    metrics: Mapping[str, float]


@dataclass(frozen=True)
class Series:
    """A codec's curve, lowest rate first."""

    name: str  # as --codecs has it: 'webp-scaled'
    title: str  # 'WebP, best scale'
    description: str  # encoder, version and settings
    points: tuple[Point, ...]
    aim: str = ""  # what it was trained on, or what its encoder decides by


@dataclass(frozen=True)
class Delta:
    """Bjontegaard's average difference of rate against the anchor at equal quality."""

    codec: str
    metric: str
    percent: float | None  # -30 is 30 % fewer bits than the anchor; None where curves do not overlap
    low: float | None  # the interval of quality that both curves cover, in the metric's unit
    high: float | None
    note: str  # why there is no number, or ''


@dataclass(frozen=True)
class Speed:
    """How fast a codec is at one rate, start-up apart."""

    codec: str
    encode: float  # megapixels a second, median
    decode: float
    startup: float  # seconds from nothing to the first picture
    memory: float  # peak, in MB
    setting: str


@dataclass(frozen=True)
class Results:
    """Everything a benchmark found."""

    command: str
    pictures: tuple[Picture, ...]
    metrics: tuple[str, ...]  # keys of METRICS that were measured
    budgets: tuple[float, ...]  # bits per pixel; empty where each codec ran at its own settings
    series: tuple[Series, ...]
    missing: Mapping[str, str]  # codec or metric -> why it is not there
    failed: Mapping[str, str]  # picture -> why it could not be read
    anchor: str  # codec that rates are compared with
    deltas: tuple[Delta, ...]
    speeds: tuple[Speed, ...]
    speed_note: str  # threads, processor, picture size, runs
    versions: Mapping[str, str]  # software and libraries
    settings: Mapping[str, str]  # how everything was done, in words
    samples: Mapping[tuple[str, str, str], Sample]  # (picture, codec, the point's label)

    def titles(self) -> dict[str, str]:
        return {series.name: series.title for series in self.series}
