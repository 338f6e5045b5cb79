"""Transparency that loses a little: how much, what it saves, and that the specification says what comes back."""

from __future__ import annotations

import numpy as np
import pytest
from click.testing import CliRunner
from PIL import Image

from bitstream.container import ALPHA
from cli.main import main
from codec.errors import FormatError, UsageError
from codec.image.alpha_plane import enlarged, error_of, shrunk
from codec.image.metadata import pack_alpha, unpack_alpha
from codec.results import ImageOptions


@pytest.fixture(scope="module")
def soft() -> np.ndarray:
    """A round shape (150, 221) with a soft edge."""
    y, x = np.mgrid[:150, :221]
    return (255 * (1.4 - np.hypot(x - 100, y - 70) / 60).clip(0, 1)).round().astype(np.uint8)


def as_specified(plane: np.ndarray, side: int, y: int, x: int) -> int:
    def a(row: int, column: int) -> int:
        return int(plane[min(max(row, 0), len(plane) - 1), min(max(column, 0), len(plane[0]) - 1)])

    y0, v = divmod(2 * y + 1 - side, 2 * side)
    x0, u = divmod(2 * x + 1 - side, 2 * side)
    upper = (2 * side - u) * a(y0, x0) + u * a(y0, x0 + 1)
    lower = (2 * side - u) * a(y0 + 1, x0) + u * a(y0 + 1, x0 + 1)
    return ((2 * side - v) * upper + v * lower + 2 * side**2) // (4 * side**2)


@pytest.mark.parametrize("shrink", range(4))
@pytest.mark.parametrize("shape", [(1, 1), (5, 19), (16, 8), (300, 3)])
def test_planes_are_drawn_as_specified(shrink, shape):
    alpha = np.random.default_rng(0).integers(0, 256, shape).astype(np.uint8)
    plane = shrunk(alpha, shrink)
    assert plane.shape == tuple(-(-side // 2**shrink) for side in shape)
    drawn = enlarged(plane, shrink, *shape)
    assert all(drawn[y, x] == as_specified(plane, 2**shrink, y, x) for y in range(shape[0]) for x in range(shape[1]))
    for flat in (0, 255):
        assert (enlarged(shrunk(np.full(shape, flat, np.uint8), shrink), shrink, *shape) == flat).all()


def test_a_lower_quality_is_smaller_and_keeps_its_bound(soft):
    sizes = []
    for quality in (100, 75, 50, 25, 0):
        packed = pack_alpha(soft, quality)
        again = unpack_alpha(packed, soft.shape[1], soft.shape[0])
        sizes.append(len(packed))
        changed = (again != soft) | ((soft > 0) & (soft < 255))
        error = np.sqrt(np.square(again[changed].astype(float) - soft[changed]).mean())
        assert error <= error_of(quality)
    assert sizes == sorted(sizes, reverse=True)
    assert sizes[1] < sizes[0] / 3


def test_what_is_cheap_is_exact(soft):
    hard = np.where(soft > 127, 255, 0).astype(np.uint8)
    for alpha in (hard, soft[60:80, 90:120]):
        assert np.array_equal(unpack_alpha(pack_alpha(alpha, 75), *alpha.shape[::-1]), alpha)


def test_a_size_that_is_asked_for_costs_transparency_before_it_fails(codec, photo, soft):
    image = photo.crop((100, 50, 321, 200))
    image.putalpha(Image.fromarray(soft))
    usual, exact = codec.compress(image), codec.compress(image, alpha_quality=100)
    bytes_of = [len(dict(made.file.sections)[ALPHA]) for made in (usual, exact)]
    assert bytes_of[0] < bytes_of[1] / 3
    assert np.array_equal(np.asarray(codec.decode(exact.data).getchannel("A")), soft)
    small = codec.compress(image, target_size=400)
    assert 380 < len(small.data) <= 400
    assert len(dict(small.file.sections)[ALPHA]) <= 133
    assert codec.decode(small.data).mode == "RGBA"


def test_the_command_takes_a_quality_of_alpha(photo, soft, tmp_path):
    image = photo.crop((100, 50, 321, 200))
    image.putalpha(Image.fromarray(soft))
    image.save(tmp_path / "a.png")
    sizes = []
    for quality in ("100", "75", "0"):
        encode = ["encode", str(tmp_path / "a.png"), "-f", "--tokens", "9", "-o", str(tmp_path / "a.tsr")]
        assert CliRunner().invoke(main, [*encode, "--alpha-quality", quality]).exit_code == 0
        sizes.append((tmp_path / "a.tsr").stat().st_size)
    assert sizes[0] > sizes[1] > sizes[2]


def test_bounds():
    for quality in (-1, 101):
        with pytest.raises(UsageError, match=f"alpha quality {quality} is out of range"):
            ImageOptions(alpha_quality=quality)
    for packed in (b"", b"\4", b"\xff" * 9):
        with pytest.raises(FormatError, match="transparency is damaged"):
            unpack_alpha(packed, 5, 5)
