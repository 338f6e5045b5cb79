"""Images are written in the formats of Pillow and its plugins. What the command makes of it is in test_cli.py."""

from __future__ import annotations

import io

import numpy as np
import pytest
from PIL import Image

from codec.errors import ImageError, UsageError
from codec.image.plugins import WRITTEN
from codec.image.source import read_source
from codec.image.writing import OPAQUE, QUALITY, WITH_EXIF, ImageFormat, dropped_metadata, image_format, write_image
from tests.helpers.profiles import red_and_green_swapped


@pytest.mark.parametrize("mode", ["RGB", "RGBA"])
def test_formats_without_profiles_get_srgb(mode):
    image = Image.new(mode, (8, 8), (200, 60, 40, 128)[: len(mode)])
    image.info["icc_profile"] = profile = red_and_green_swapped()
    with Image.open(io.BytesIO(write_image(image, image_format(".png")))) as kept:
        assert (kept.getpixel((0, 0)), kept.info["icc_profile"]) == (image.getpixel((0, 0)), profile)
    with Image.open(io.BytesIO(write_image(image, ImageFormat("TGA", None)))) as converted:
        assert converted.mode == mode
        assert np.allclose(converted.getpixel((0, 0))[:3], (60, 200, 40), atol=3)


def test_every_default_quality_is_of_a_format_that_pillow_writes():
    Image.init()
    assert set(QUALITY) - {"JXL", "HEIF"} <= set(Image.SAVE)


def test_the_error_of_a_missing_plugin_names_it(monkeypatch):
    monkeypatch.setattr(Image, "SAVE", {name: save for name, save in Image.SAVE.items() if name != "JXL"})
    monkeypatch.setattr("codec.image.writing.load_plugin", lambda *_, **__: None)
    with pytest.raises(UsageError, match="pillow-jxl-plugin"):
        image_format(".jxl")


@pytest.mark.parametrize("ending", [".ico", ".icns", ".gif", ".eps", ".pdf", ".xbm", ".spider", ".tsr", ".mpo"])
def test_formats_that_do_not_hold_every_image_are_refused(ending):
    with pytest.raises(UsageError):
        image_format(ending)


@pytest.mark.parametrize("name", ["ICO", "ICNS", "GIF"])
def test_a_file_of_another_size_or_transparency_is_an_error(name, photo):
    image = photo.crop((0, 0, 256, 171))
    image.putalpha(128)
    image.putpixel((0, 0), (1, 2, 3, 255))
    try:
        data = write_image(image, ImageFormat(name, None))
    except ImageError:
        return
    with Image.open(io.BytesIO(data)) as written:
        assert (written.size, written.has_transparency_data) == (image.size, True)


@pytest.mark.parametrize("name", sorted({*WRITTEN} - {"HEIF"}))
@pytest.mark.parametrize("mode", ["RGB", "RGBA"])
def test_written_formats_hold_size_and_transparency(name, mode, photo):
    if name == "JXL":
        pytest.importorskip("pillow_jxl")
    image = photo.crop((0, 0, 257, 171))
    if mode == "RGBA":
        image.putalpha(Image.linear_gradient("L").resize(image.size))
        if name in OPAQUE:
            with pytest.raises(ImageError) as caught:
                write_image(image, ImageFormat(name, None))
            assert caught.value.advice == ("background",)
            return
    with Image.open(io.BytesIO(write_image(image, ImageFormat(name, QUALITY.get(name))))) as written:
        assert (written.size, written.convert("RGBA").getextrema()[3][0] < 255) == (image.size, mode == "RGBA")
        assert np.abs(np.asarray(written.convert(mode)).astype(int) - np.asarray(image)).mean() < 8


@pytest.mark.parametrize("name", sorted({*WRITTEN} - {"HEIF"}))
def test_exif_and_xmp_are_kept_or_their_loss_is_noted(name, photo):
    if name == "JXL":
        pytest.importorskip("pillow_jxl")
    image, exif = photo.crop((0, 0, 40, 30)), Image.Exif()
    exif[0x010F] = "Maker"
    xmp = "<x:xmpmeta xmlns:x='adobe:ns:meta/'>\N{SNOWMAN}</x:xmpmeta>".encode()
    image.info = {"exif": exif.tobytes(), "xmp": xmp}
    format = ImageFormat(name, QUALITY.get(name))
    with Image.open(io.BytesIO(write_image(image, format))) as written:
        assert (written.getexif().get(0x010F) == "Maker") == (name in WITH_EXIF)
        kept = written.info.get("xmp")
    assert (kept == xmp) == (name in WITH_EXIF and name != "JXL")  # the JPEG XL plugin writes XMP, and does not read it
    assert bool(dropped_metadata(image, format)) == (name not in WITH_EXIF)
    image.info = {}
    assert not dropped_metadata(image, format)


@pytest.mark.parametrize("size", [(1 << 20) + 5, 1 << 24])
def test_a_png_with_a_long_profile_can_be_read_again(size):
    image = Image.new("RGB", (8, 8), (200, 60, 40))
    image.info["icc_profile"] = red_and_green_swapped() + bytes(size - len(red_and_green_swapped()))
    source = read_source(write_image(image, image_format(".png")), {"strip": True})
    assert np.allclose(source.pixels, (60, 200, 40), atol=3)
