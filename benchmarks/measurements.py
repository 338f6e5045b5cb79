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
    how: str  # it is measured, in words
    usual: bool = True  # measured where nothing else is asked for
    rated: bool = True  # rates at equal values of it are compared

    @property
    def arrow(self) -> str:
        return "higher is better" if self.best is max else "lower is better"


METRICS = {
    metric.key: metric
    for metric in (
        Metric("lpips", "LPIPS", "", 3, min, "lpips-rgb", "v0.1 on AlexNet"),
        Metric("psnr", "PSNR", "dB", 2, max, "psnr-rgb", "over all channels"),
        Metric("ms_ssim", "MS-SSIM", "", 4, max, "ms-ssim-rgb", "by pytorch-msssim, the mean of the channels"),
        Metric("colour", "Colour error", "", 2, min, "cielab-16", "mean distance in CIELAB of the means of 16x16 pixels"),
        Metric(
            "features",
            "Lite0 features",
            "",
            4,
            min,
            "lite0-rgb",
            "distance of unit-normalised features of EfficientNet-Lite0, mean of five stages",
            usual=False,
        ),
        Metric("ssimulacra2", "SSIMULACRA2", "", 1, max, "ssimulacra2", "version 2.1 by the package ssimulacra2", usual=False),
        Metric(
            "top1",
            "Top-1 agreement",
            "%",
            0,
            max,
            "top1",
            "images whose likeliest class is the original's",
            usual=False,
            rated=False,
        ),
        Metric(
            "top5",
            "Top-5 agreement",
            "%",
            0,
            max,
            "top5",
            "images among whose five likeliest classes is the original's likeliest",
            usual=False,
            rated=False,
        ),
    )
}


@dataclass(frozen=True)
class ImageInfo:
    """An image that was coded."""

    name: str  # unique in a study
    path: str
    width: int
    height: int


@dataclass(frozen=True)
class Sample:
    """One image as one file, and how good it is."""

    data: bytes  # the whole file
    setting: str  # what made it: 'quality 31', '451 tokens per block'
    scale: float  # the image was shrunk by this before; 1 is its own size
    bpp: float  # bits per pixel of the original, of the whole file
    metrics: Mapping[str, float]  # by the keys of METRICS


@dataclass(frozen=True)
class Point:
    """A codec at one rate or setting: the mean over all images."""

    label: str  # '0.0443 bpp' or 'quality 30'
    images: int  # that could be coded so; the mean is over these
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
    startup: float  # seconds from nothing to the first image
    memory: float  # peak, in MB
    setting: str


@dataclass(frozen=True)
class Results:
    """Everything a benchmark found."""

    command: str
    images: tuple[ImageInfo, ...]
    metrics: tuple[str, ...]  # keys of METRICS that were measured
    budgets: tuple[float, ...]  # bits per pixel; empty where each codec ran at its own settings
    series: tuple[Series, ...]
    missing: Mapping[str, str]  # codec or metric -> why it is not there
    failed: Mapping[str, str]  # image -> why it could not be read
    anchor: str  # codec that rates are compared with
    deltas: tuple[Delta, ...]
    speeds: tuple[Speed, ...]
    speed_note: str  # threads, processor, image size, runs
    versions: Mapping[str, str]  # software and libraries
    settings: Mapping[str, str]  # how everything was done, in words
    samples: Mapping[tuple[str, str, str], Sample]  # (image, codec, the point's label)

    def titles(self) -> dict[str, str]:
        return {series.name: series.title for series in self.series}
