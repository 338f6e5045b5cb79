"""Image files whose values mean something else than Pillow takes them for, and those that hold more than is coded."""

from __future__ import annotations

import io
import struct
import warnings

import numpy as np
import pytest
from PIL import ExifTags, Image

from bitstream.container import GREY
from codec.errors import ImageError
from codec.image.opening import open_image
from codec.image.plugins import load_plugin, plugin_for
from codec.image.profiles import SPACES, make_profile
from tests.helpers.commands import run
from tests.helpers.image_files import difference, extras, icon_of, read, saved

COLOURS = np.arange(12, dtype=np.uint8).reshape(2, 2, 3) * 20
ALPHA = np.array([[0, 100], [200, 255]], np.uint8)


@pytest.fixture(scope="module")
def small(photo) -> Image.Image:
    return photo.crop((200, 100, 264, 148))


def tga(kind: int, depth: int, alpha_bits: int, pixels: bytes, palette: bytes = b"", palette_depth: int = 0) -> bytes:
    """A TGA of 2x2 pixels, from the top."""
    count = len(palette) * 8 // palette_depth if palette else 0
    return (
        struct.pack("<3B2HB4H2B", 0, count > 0, kind, 0, count, palette_depth, 0, 0, 2, 2, depth, 0x20 | alpha_bits)
        + palette
        + pixels
    )


def bgr5(alpha: np.ndarray) -> bytes:
    """COLOURS in 5 bits per channel, with the top bit set if alpha is above 127."""
    red, green, blue = (COLOURS[..., channel].astype(np.uint16) >> 3 for channel in range(3))
    return ((alpha > 127).astype(np.uint16) << 15 | red << 10 | green << 5 | blue).astype("<u2").tobytes()


def test_the_alpha_of_a_tga_is_what_its_header_states():
    bgra = np.dstack([COLOURS[..., ::-1], ALPHA]).tobytes()
    five_bits = (COLOURS >> 3).astype(int) * 255 // 31
    for stated, notes in ((8, 0), (0, 1)):
        source = read(tga(2, 32, stated, bgra))
        assert len(source.notes) == notes
        assert extras(source).alpha is None if not stated else np.array_equal(extras(source).alpha, ALPHA)
        assert np.array_equal(source.pixels[1], COLOURS[1])
    indexes = bytes(range(4))
    for data in (tga(2, 16, 1, bgr5(ALPHA)), tga(1, 8, 1, indexes, bgr5(ALPHA), 16)):
        source = read(data)
        assert np.array_equal(extras(source).alpha, np.where(ALPHA > 127, 255, 0))
        assert np.abs(source.pixels[1] - five_bits[1]).max() <= 1
    for data in (tga(2, 16, 0, bgr5(ALPHA)), tga(1, 8, 0, indexes, bgr5(ALPHA), 16)):
        source = read(data)
        assert (extras(source).alpha, source.notes) == (None, ())
        assert np.abs(source.pixels - five_bits).max() <= 1
    grey = read(tga(3, 16, 8, np.dstack([COLOURS[..., 0], ALPHA]).tobytes()))
    assert grey.greyness == GREY
    assert np.array_equal(extras(grey).alpha, ALPHA)


def psd(mode: int, planes: np.ndarray) -> bytes:
    """A PSD of planes (C, H, W), without layers."""
    channels, height, width = planes.shape
    return b"8BPS" + struct.pack(">H6xH2I2H", 1, channels, height, width, 8, mode) + bytes(12) + b"\0\0" + planes.tobytes()


def test_channels_of_a_psd_beyond_its_colours_are_noted():
    planes = np.stack([*np.moveaxis(COLOURS, 2, 0), ALPHA, ALPHA])
    grey, colour, with_alpha, more = (read(psd(mode, planes[:count])) for mode, count in ((1, 2), (3, 3), (3, 4), (3, 5)))
    assert (len(grey.notes), grey.greyness) == (1, GREY)
    assert np.array_equal(grey.pixels[..., 0], COLOURS[..., 0])
    assert np.array_equal(colour.pixels, COLOURS)
    assert colour.notes == with_alpha.notes == ()
    assert np.array_equal(extras(with_alpha).alpha, ALPHA)
    assert len(more.notes) == 1


def test_the_profile_of_a_gif_is_kept(small):
    profile = make_profile(SPACES[2]) + bytes(300)
    blocks = b"".join(
        bytes([len(part)]) + part for part in (profile[start : start + 255] for start in range(0, len(profile), 255))
    )
    data = saved(small.convert("P"), "GIF")
    start = 13 + 3 * 2 ** ((data[10] & 7) + 1)  # after the colour table
    source = read(data[:start] + b"!\xff\x0bICCRGBG1012" + blocks + b"\0" + data[start:])
    assert (source.space, source.notes) == (2, ())
    assert np.array_equal(source.pixels, read(data).pixels)
    damaged = read(data[:start] + b"!\xff\x0bICCRGBG1012\4none\0" + data[start:])
    assert (damaged.space, damaged.sections, len(damaged.notes)) == (0, (), 1)


def test_transfer_curves_of_a_tiff_are_noted(small):
    tags = Image.Exif()
    tags[301] = tuple(range(0, 65536, 256)) * 3
    assert len(read(saved(small, "TIFF", exif=tags)).notes) == 1
    assert not read(saved(small, "TIFF", exif=tags, icc_profile=make_profile(SPACES[1]))).notes


def test_an_icon_with_a_false_directory_is_noted(small, tmp_path):
    data = bytearray(icon_of(saved(small, "PNG")))
    assert not read(saved(small.resize((32, 32)), "ICO", sizes=[(32, 32)])).notes
    data[6:8] = 16, 16
    with pytest.warns(UserWarning, match="expected size"):  # of Pillow, which the command does not show
        source = read(bytes(data))
    assert source.pixels.shape == (48, 64, 3)
    assert len(source.notes) == 1
    (tmp_path / "a.ico").write_bytes(data)
    with warnings.catch_warnings(record=True) as shown:
        warnings.simplefilter("always")
        assert run("encode", str(tmp_path / "a.ico")).exit_code == 0
    assert shown == []


def test_heif_images(small):
    """Orientation, transparency, grey, profile, other images in the file, depth, size and damage."""
    pillow_heif = pytest.importorskip("pillow_heif")
    load_plugin(plugin_for(ending=".heic"))
    exif = Image.Exif()
    exif[ExifTags.Base.Orientation] = 6
    turned = read(saved(small, "HEIF", quality=95, exif=exif.tobytes()), keep_exif=True)
    assert difference(turned, np.rot90(np.asarray(small), -1)).mean() < 6
    clear = small.copy()
    clear.putalpha(Image.fromarray(np.tile(np.arange(64, dtype=np.uint8) * 4, (48, 1))))
    assert (
        np.abs(
            extras(read(saved(clear, "HEIF", quality=95), alpha_quality=100)).alpha.astype(int) - clear.getchannel("A")
        ).max()
        < 9
    )
    assert read(saved(small.convert("L"), "HEIF")).greyness == GREY
    assert read(saved(small, "HEIF", icc_profile=make_profile(SPACES[2]))).space == 2
    several = saved(small, "HEIF", save_all=True, append_images=[small.rotate(180)], primary_index=1)
    assert len(read(several).notes) == 1
    assert difference(read(several), small.rotate(180)).mean() < 8
    deep = pillow_heif.from_bytes(mode="RGB;16", size=small.size, data=(np.asarray(small).astype(np.uint16) * 257).tobytes())
    stream = io.BytesIO()
    deep.save(stream, quality=95)
    source = read(stream.getvalue())
    assert len(source.notes) == 1
    assert difference(source, small).mean() < 6
    hdr = io.BytesIO()
    deep.save(hdr, color_primaries=9, transfer_characteristics=16)
    forged = bytearray(saved(small, "HEIF"))
    position = forged.index(b"ispe") + 8
    forged[position : position + 8] = struct.pack(">2I", 30000, 30000)
    for data, limit in ((hdr.getvalue(), 10**6), (saved(small, "HEIF"), 64 * 48 - 1), (bytes(forged), 10**6)):
        with pytest.raises(ImageError):
            open_image(data, limit)
            read(data, limit)
