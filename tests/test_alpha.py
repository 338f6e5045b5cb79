"""Alpha planes: lossy ones stay within their error, and are interpolated as FORMAT.md specifies."""

from __future__ import annotations

import numpy as np
import pytest
from PIL import Image

from bitstream.container import ALPHA
from codec.errors import FormatError
from codec.image.alpha import enlarge_plane, max_rms_error, shrink_plane
from codec.image.metadata import pack_alpha, unpack_alpha
from tests.helpers.commands import run


@pytest.fixture(scope="module")
def soft() -> np.ndarray:
    """A disc (150, 221) with a soft edge."""
    y, x = np.mgrid[:150, :221]
    return (255 * (1.4 - np.hypot(x - 100, y - 70) / 60).clip(0, 1)).round().astype(np.uint8)


def specified_alpha(plane: np.ndarray, side: int, y: int, x: int) -> int:
    """The formula of FORMAT.md, section 2."""

    def a(row: int, column: int) -> int:
        return int(plane[min(max(row, 0), len(plane) - 1), min(max(column, 0), len(plane[0]) - 1)])

    y0, v = divmod(2 * y + 1 - side, 2 * side)
    x0, u = divmod(2 * x + 1 - side, 2 * side)
    upper = (2 * side - u) * a(y0, x0) + u * a(y0, x0 + 1)
    lower = (2 * side - u) * a(y0 + 1, x0) + u * a(y0 + 1, x0 + 1)
    return ((2 * side - v) * upper + v * lower + 2 * side**2) // (4 * side**2)


@pytest.mark.parametrize("shrink", range(4))
@pytest.mark.parametrize("shape", [(1, 1), (5, 19), (16, 8), (300, 3)])
def test_planes_are_enlarged_as_specified(shrink, shape):
    alpha = np.random.default_rng(0).integers(0, 256, shape).astype(np.uint8)
    plane = shrink_plane(alpha, shrink)
    assert plane.shape == tuple(-(-side // 2**shrink) for side in shape)
    enlarged = enlarge_plane(plane, shrink, *shape)
    assert all(enlarged[y, x] == specified_alpha(plane, 2**shrink, y, x) for y in range(shape[0]) for x in range(shape[1]))
    for constant in (0, 255):
        plane = shrink_plane(np.full(shape, constant, np.uint8), shrink)
        assert (enlarge_plane(plane, shrink, *shape) == constant).all()


def test_a_lower_quality_is_smaller_and_keeps_its_error_bound(soft):
    sizes = []
    for quality in (100, 75, 50, 25, 0):
        packed = pack_alpha(soft, quality)
        again = unpack_alpha(packed, soft.shape[1], soft.shape[0])
        sizes.append(len(packed))
        counted = (again != soft) | ((soft > 0) & (soft < 255))
        error = np.sqrt(np.square(again[counted].astype(float) - soft[counted]).mean())
        assert error <= max_rms_error(quality)
    assert sizes == sorted(sizes, reverse=True)
    assert sizes[1] < sizes[0] / 3


def test_small_planes_are_lossless(soft):
    hard = np.where(soft > 127, 255, 0).astype(np.uint8)
    for alpha in (hard, soft[60:80, 90:120]):
        assert np.array_equal(unpack_alpha(pack_alpha(alpha, 75), *alpha.shape[::-1]), alpha)


def test_a_target_size_lowers_the_quality_of_transparency(codec, photo, soft):
    image = photo.crop((100, 50, 321, 200))
    image.putalpha(Image.fromarray(soft))
    default, lossless = codec.encode(image), codec.encode(image, alpha_quality=100)
    alpha_bytes = [len(dict(encoded.file.sections)[ALPHA]) for encoded in (default, lossless)]
    assert alpha_bytes[0] < alpha_bytes[1] / 3
    assert np.array_equal(np.asarray(codec.decode(lossless.data).image.getchannel("A")), soft)
    small = codec.encode(image, target_size=400)
    assert 380 < len(small.data) <= 400
    assert len(dict(small.file.sections)[ALPHA]) <= 133
    assert codec.decode(small.data).image.mode == "RGBA"


def test_the_command_has_a_quality_of_alpha(photo, soft, tmp_path):
    image = photo.crop((100, 50, 321, 200))
    image.putalpha(Image.fromarray(soft))
    image.save(tmp_path / "a.png")
    sizes = []
    for quality in ("100", "75", "0"):
        encode = ["encode", str(tmp_path / "a.png"), "-f", "--tokens", "9", "-o", str(tmp_path / "a.tsr")]
        assert run(*encode, "--alpha-quality", quality).exit_code == 0
        sizes.append((tmp_path / "a.tsr").stat().st_size)
    assert sizes[0] > sizes[1] > sizes[2]


@pytest.mark.parametrize("packed", [b"", b"\4", b"\xff" * 9])
def test_damaged_planes_are_refused(packed):
    with pytest.raises(FormatError):
        unpack_alpha(packed, 5, 5)
