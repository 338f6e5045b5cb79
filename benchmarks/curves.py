"""Comparisons of curves: Bjontegaard's delta rate, and bytes for the same quality. Nothing is extrapolated."""

from __future__ import annotations

from collections.abc import Sequence
from math import inf, isfinite

import numpy as np
from numpy.typing import NDArray

from benchmarks.metrics import METRICS
from benchmarks.records import Delta, Point, Series

Curve = tuple[NDArray[np.float64], NDArray[np.float64]]  # bits per pixel and quality, both ascending
MIN_POINTS = 3  # points per curve
MIN_OVERLAP = 0.1  # overlap of two curves, relative to their joint range of quality


def delta(anchor: Series, series: Series, metric: str, images: int) -> Delta:
    """Bjontegaard's delta rate (VCEG-M33) with piecewise cubic (PCHIP) interpolation, over the interval of quality that both
    curves cover. Points count only if all `images` could be coded there."""
    curves = [curve_of(one, metric, images) for one in (anchor, series)]
    for one, (_, qualities) in zip((anchor, series), curves, strict=True):
        if len(qualities) < MIN_POINTS:
            note = f"{one.title} has {len(qualities)} of the {MIN_POINTS} points that are needed"
            return Delta(series.name, metric, None, None, None, note)
        if (np.diff(qualities) <= 0).any():
            return Delta(series.name, metric, None, None, None, f"the quality of {one.title} does not rise with its rate")
    (rates_a, qualities_a), (rates_b, qualities_b) = curves
    low, high = max(qualities_a[0], qualities_b[0]), min(qualities_a[-1], qualities_b[-1])
    overlap = (high - low) / (max(qualities_a[-1], qualities_b[-1]) - min(qualities_a[0], qualities_b[0]))
    if overlap < MIN_OVERLAP:
        share = f"only {100 * overlap:.0f} %" if overlap > 0 else "none"
        return Delta(series.name, metric, None, None, None, f"{share} of the two ranges of quality overlaps")
    from bjontegaard import bd_rate

    percent = bd_rate(rates_a, qualities_a, rates_b, qualities_b, method="pchip", require_matching_points=False, min_overlap=0)
    ends = sorted((from_quality(metric, low), from_quality(metric, high)))
    return Delta(series.name, metric, float(percent), ends[0], ends[1], "")


def same_quality(
    series: Sequence[Series], reference: Series, metric: str, images: int
) -> list[tuple[Point, list[float | None]]]:
    """For each complete point of the reference, each codec's rate at equal mean quality, relative to the reference's rate."""
    rows = []
    for point in reference.points:
        if point.images == images and metric in point.metrics:
            rates = [rate_at(one, metric, point.metrics[metric], images) for one in series]
            rows.append((point, [rate and rate / point.bpp for rate in rates]))
    return rows


def has_curve(series: Series, images: int) -> bool:
    """Whether a codec has enough points that cover all `images` for a BD-rate."""
    return len({point.bpp for point in series.complete(images)}) >= MIN_POINTS


def rate_at(series: Series, metric: str, value: float, images: int) -> float | None:
    """Bits per pixel of a codec at a mean quality, interpolated between its points; None outside of them."""
    rates, qualities = curve_of(series, metric, images)
    quality = to_quality(metric, value)
    if len(qualities) < 2 or (np.diff(qualities) <= 0).any() or not qualities[0] <= quality <= qualities[-1]:
        return None
    from scipy.interpolate import PchipInterpolator

    return float(np.exp(PchipInterpolator(qualities, np.log(rates))(quality)))


def curve_of(series: Series, metric: str, images: int) -> Curve:
    """Rate and quality of the points that cover all `images`, lowest rate first. Points of infinite PSNR, which exact copies
    have, are left out."""
    points = [p for p in series.complete(images) if isfinite(p.metrics.get(metric, inf))]
    rates, qualities = np.array([p.bpp for p in points]), np.array([to_quality(metric, p.metrics[metric]) for p in points])
    keep = [i for i in range(len(points)) if i == 0 or rates[i] > rates[i - 1]]  # a codec repeats its last file at its limit
    return rates[keep], qualities[keep]


def to_quality(metric: str, value: float) -> float:
    """A metric converted so that higher is better: MS-SSIM in decibels, as usual, and LPIPS negated."""
    if metric == "ms_ssim":
        return float(-10 * np.log10(max(1e-12, 1 - value)))
    return value if METRICS[metric].best is max else -value


def from_quality(metric: str, quality: float) -> float:
    """The inverse of `to_quality`."""
    if metric == "ms_ssim":
        return float(1 - 10 ** (-quality / 10))
    return float(quality if METRICS[metric].best is max else -quality)
