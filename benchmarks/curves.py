"""Curves, and what is read off them: Bjontegaard's delta rate, and bytes for the same quality. Nothing is extrapolated."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
from numpy.typing import NDArray

from benchmarks.measurements import METRICS, Delta, Point, Series

Curve = tuple[NDArray[np.float64], NDArray[np.float64]]  # bits per pixel and quality, both rising
LEAST_POINTS = 3  # of each curve
LEAST_OVERLAP = 0.1  # of the range of quality that the two curves cover together


def rising(metric: str, value: float) -> float:
    """A metric as a quality that is compared on a line: MS-SSIM in decibels, as is usual, and LPIPS negated."""
    if metric == "ms_ssim":
        return float(-10 * np.log10(max(1e-12, 1 - value)))
    return value if METRICS[metric].best is max else -value


def unrising(metric: str, quality: float) -> float:
    """The inverse of `rising`."""
    if metric == "ms_ssim":
        return float(1 - 10 ** (-quality / 10))
    return float(quality if METRICS[metric].best is max else -quality)


def curve_of(series: Series, metric: str, images: int) -> Curve:
    """Rate and quality at the points where all `images` could be coded, lowest rate first."""
    points = [p for p in series.points if p.images == images and metric in p.metrics]
    rates, values = np.array([p.bpp for p in points]), np.array([rising(metric, p.metrics[metric]) for p in points])
    keep = [i for i in range(len(points)) if i == 0 or rates[i] > rates[i - 1]]  # a codec may have no more to give
    return rates[keep], values[keep]


def delta(anchor: Series, series: Series, metric: str, images: int) -> Delta:
    """Bjontegaard's delta rate (VCEG-M33), with piecewise cubic (PCHIP) interpolation, over the interval of quality that both
    curves cover."""
    curves = [curve_of(s, metric, images) for s in (anchor, series)]
    for of, (_, values) in zip((anchor, series), curves, strict=True):
        if len(values) < LEAST_POINTS:
            reason = f"{of.title} has {len(values)} of the {LEAST_POINTS} points that are needed"
            return Delta(series.name, metric, None, None, None, reason)
        if (np.diff(values) <= 0).any():
            return Delta(series.name, metric, None, None, None, f"the quality of {of.title} does not rise with its rate")
    (rates_a, values_a), (rates_b, values_b) = curves
    low, high = max(values_a[0], values_b[0]), min(values_a[-1], values_b[-1])
    share = (high - low) / (max(values_a[-1], values_b[-1]) - min(values_a[0], values_b[0]))
    if share < LEAST_OVERLAP:
        overlap = f"only {100 * share:.0f} %" if share > 0 else "none"
        note = f"{overlap} of the two ranges of quality overlaps"
        return Delta(series.name, metric, None, None, None, note)
    from bjontegaard import bd_rate

    percent = bd_rate(rates_a, values_a, rates_b, values_b, method="pchip", require_matching_points=False, min_overlap=0)
    ends = sorted((unrising(metric, low), unrising(metric, high)))
    return Delta(series.name, metric, float(percent), ends[0], ends[1], "")


def rate_at(series: Series, metric: str, value: float, images: int) -> float | None:
    """Bits per pixel that a codec needs for a mean quality, interpolated between its points; None outside of them."""
    rates, values = curve_of(series, metric, images)
    wanted = rising(metric, value)
    if len(values) < 2 or (np.diff(values) <= 0).any() or not values[0] <= wanted <= values[-1]:
        return None
    from scipy.interpolate import PchipInterpolator

    return float(np.exp(PchipInterpolator(values, np.log(rates))(wanted)))


def same_quality(
    series: Sequence[Series], reference: Series, metric: str, images: int
) -> list[tuple[Point, list[float | None]]]:
    """For each whole point of the reference, how many times its rate each codec needs for the same mean quality."""
    rows = []
    for point in reference.points:
        if point.images == images and metric in point.metrics:
            rates = [rate_at(other, metric, point.metrics[metric], images) for other in series]
            rows.append((point, [rate and rate / point.bpp for rate in rates]))
    return rows
