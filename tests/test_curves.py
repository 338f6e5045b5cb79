"""Bjontegaard's delta rate and bytes for the same quality, on curves whose answers are known."""

from __future__ import annotations

import numpy as np
import pytest

from benchmarks.curves import delta, from_quality, rate_at, same_quality, to_quality
from benchmarks.records import Point, Series

RATES = (0.05, 0.1, 0.2, 0.4, 0.8)


def series(name: str, factor: float = 1.0, rates=RATES, shift: float = 0.0, images: int = 3) -> Series:
    """A curve that gains 3 dB each time the rate doubles and spends `factor` as much as another."""
    points = []
    for rate in rates:
        doublings = np.log2(rate / 0.05)
        metrics = {"psnr": 22 + shift + 3 * doublings, "ms_ssim": 1 - 0.2 * 0.7**doublings, "lpips": 0.6 * 0.8**doublings}
        points.append(Point(f"{rate:g} bpp", images, rate * factor, metrics))
    return Series(name, name.upper(), "", tuple(points))


@pytest.mark.parametrize("metric", ["psnr", "ms_ssim", "lpips"])
@pytest.mark.parametrize("factor", [0.5, 1.0, 1.3])
def test_a_curve_that_spends_so_much_more_has_that_delta_rate(metric, factor):
    found = delta(series("a"), series("b", factor), metric, 3)
    assert found.percent == pytest.approx(100 * (factor - 1), abs=1e-6)
    ends = {"psnr": (22, 34), "ms_ssim": (0.8, 1 - 0.2 * 0.7**4), "lpips": (0.6 * 0.8**4, 0.6)}
    assert (found.low, found.high) == pytest.approx(ends[metric])
    assert (found.codec, found.metric, found.note) == ("b", metric, "")


def test_the_interval_is_the_overlap():
    found = delta(series("a"), series("b", 1.0, shift=2.0), "psnr", 3)
    assert (found.low, found.high) == pytest.approx((24, 34))
    assert found.percent == pytest.approx(100 * (2 ** (-2 / 3) - 1), abs=0.5)


@pytest.mark.parametrize(
    ("other", "note"),
    [
        (series("b", shift=20), "none of the two ranges of quality overlaps"),
        (series("b", shift=11.5), "only 2 % of the two ranges of quality overlaps"),
        (series("b", rates=RATES[:2]), "B has 2 of the 3 points that are needed"),
        (series("b", images=2), "B has 0 of the 3 points that are needed"),
    ],
)
def test_nothing_is_extrapolated(other, note):
    found = delta(series("a"), other, "psnr", 3)
    assert (found.percent, found.low, found.high, found.note) == (None, None, None, note)


def test_a_curve_that_falls_has_no_delta_rate():
    points = list(series("b").points)
    points[2] = Point("0.2 bpp", 3, 0.2, points[2].metrics | {"psnr": 20.0})
    found = delta(series("a"), Series("b", "B", "", tuple(points)), "psnr", 3)
    assert found.note == "the quality of B does not rise with its rate"


def test_points_where_not_all_images_fit_do_not_count():
    points = (Point("0.025 bpp", 1, 0.025, {"psnr": 40.0}), *series("b").points)
    assert delta(series("a"), Series("b", "B", "", points), "psnr", 3).percent == pytest.approx(0, abs=1e-9)


def test_rates_are_read_off_between_points_only():
    assert rate_at(series("a"), "psnr", 23.5, 3) == pytest.approx(0.05 * 2**0.5)
    assert rate_at(series("a"), "psnr", 34, 3) == pytest.approx(0.8)
    assert rate_at(series("a"), "psnr", 34.1, 3) is None
    assert rate_at(series("a"), "lpips", 0.61, 3) is None
    assert rate_at(series("a"), "lpips", 0.6 * 0.8, 3) == pytest.approx(0.1)


def test_bytes_for_the_same_quality():
    a, b = series("a"), series("b", 1.5)
    rows = same_quality([a, b], a, "lpips", 3)
    assert [point.bpp for point, _ in rows] == list(RATES)
    for _, ratios in rows:
        assert ratios == pytest.approx([1, 1.5])


@pytest.mark.parametrize("metric", ["psnr", "ms_ssim", "lpips"])
def test_quality_on_a_line_and_back(metric):
    assert from_quality(metric, to_quality(metric, 0.25)) == pytest.approx(0.25)
    assert to_quality("ms_ssim", 0.99) == pytest.approx(20)
    assert to_quality("lpips", 0.2) > to_quality("lpips", 0.3)
