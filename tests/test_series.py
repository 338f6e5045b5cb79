"""Bytes of a series at equal quality: `benchmarks/tools/series.py`."""

from __future__ import annotations

import numpy as np
import pytest

from benchmarks import BenchError
from benchmarks.tools import series
from benchmarks.tools.series import METHODS, Images, Row, add_row, code_with_tessera, read_rows, table


def rows(method: str, factor: float) -> list[Row]:
    """A curve whose PSNR rises by 6 dB, and whose LPIPS halves, each time that its bytes are doubled."""
    return [
        Row("burst", method, step, 8, 1000, round(factor * 1000 * 2**step), 0.4 / 2**step, 24.0 + 6 * step) for step in range(4)
    ]


def test_rows_are_read_as_they_were_written(tmp_path):
    written = rows("avif", 1)
    for row in [*written, Row("other", "avif", 0, 8, 1000, 1, 0.5, 20.0)]:
        add_row(tmp_path / "series.csv", row)
    assert read_rows(tmp_path / "series.csv", "burst") == written
    assert read_rows(tmp_path / "none.csv", "burst") == []


@pytest.mark.parametrize("metric", ["lpips", "psnr"])
def test_bytes_are_compared_at_equal_quality(metric):
    lines = table([*rows("avif", 1), *rows("av1-video", 0.25)], "avif", metric).splitlines()
    assert lines[0].split(" | ")[1:] == ["avif", "av1-video |"]
    assert len(lines) == 2 + 4
    assert all("(1.00)" in line and "(0.25)" in line for line in lines[2:])


def test_no_method_is_extrapolated():
    lower = rows("avif", 1)[:2]
    worst, *_, best = table([*lower, *rows("av1-video", 0.5)], "av1-video", "psnr").splitlines()[2:]
    assert "| - |" not in worst
    assert "| - |" in best


@pytest.mark.parametrize("method", ["avif", "avif-psnr"])
def test_images_by_themselves(method):
    pixels = [np.full((16, 24, 3), level, np.uint8) for level in (40, 200)]
    size, decoded = METHODS[method].code(Images([], pixels), 50)
    assert size > 0
    assert all(np.abs(one.astype(int) - other).max() <= 4 for one, other in zip(decoded, pixels, strict=True))


def test_references_need_the_option(monkeypatch):
    monkeypatch.setattr(series, "run_tessera", lambda *arguments: "")
    with pytest.raises(BenchError, match="first"):
        code_with_tessera(Images([], []), 50, "first")


def test_a_video_needs_images_of_one_size():
    images = Images([], [np.zeros((16, 16, 3), np.uint8), np.zeros((16, 18, 3), np.uint8)])
    with pytest.raises(BenchError, match="one size"):
        METHODS["av1-video"].code(images, 40)
