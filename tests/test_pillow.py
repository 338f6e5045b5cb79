"""The Pillow plugin, as Pillow's users meet it."""

from __future__ import annotations

import io
import subprocess
import sys

import numpy as np
import pytest
from PIL import Image, ImageFile, UnidentifiedImageError

import codec as library
import codec.pillow
from bitstream.container import File, write_file
from codec.image.metadata import EXIF, ICC
from tests.helpers import ROOT, profiles

pytestmark = pytest.mark.light


@pytest.fixture(scope="module")
def small(photo) -> Image.Image:
    return photo.crop((200, 100, 290, 160))


@pytest.fixture(scope="module")
def data(small) -> bytes:
    return library.encode(small, quality=90)


def opened(data: bytes) -> Image.Image:
    return Image.open(io.BytesIO(data))


def saved(image: Image.Image, **options) -> bytes:
    stream = io.BytesIO()
    image.save(stream, "TSR", **options)
    return stream.getvalue()


def test_files_are_opened_and_saved_by_their_ending(small, data, tmp_path):
    small.save(tmp_path / "a.tsr", quality=90)
    assert (tmp_path / "a.tsr").read_bytes() == data
    with Image.open(tmp_path / "a.tsr") as image:
        assert (image.format, image.mode, image.size) == ("TSR", "RGB", (90, 60))
        assert image.get_format_mimetype() == "image/x-tessera"
        assert np.array_equal(np.asarray(image), np.asarray(library.decode(data)))
    image.load()  # pixels are there after the file was closed


def test_opening_draws_nothing():
    code = (
        "import sys, io, codec.pillow; from PIL import Image; "
        "image = Image.open(io.BytesIO(bytes.fromhex(sys.argv[1]))); assert image.size == (90, 60); "
        "sys.exit(3 if 'torch' in sys.modules else 0)"
    )
    data = write_file(File(90, 60, b"\xcb\x06", 3, b"abc"))
    assert subprocess.run([sys.executable, "-c", code, data.hex()], cwd=ROOT, check=False).returncode == 0


def test_without_the_import_pillow_knows_nothing(data):
    code = "import sys, io; from PIL import Image; Image.open(io.BytesIO(bytes.fromhex(sys.argv[1])))"
    done = subprocess.run([sys.executable, "-c", code, data[:40].hex()], capture_output=True, text=True, check=False)
    assert "UnidentifiedImageError" in done.stderr


@pytest.mark.parametrize(
    "options", [{}, {"quality": 20}, {"tokens": 9}, {"target_size": 200}, {"target_bpp": 0.5}, {"target_psnr": 20}]
)
def test_options_are_those_of_the_library(small, options):
    assert saved(small, **options) == library.encode(small, **options)


def test_options_of_others_are_ignored(small, data):
    assert saved(small, quality=90, optimize=True, dpi=(72, 72)) == data


@pytest.mark.parametrize("options", [{"quality": 200}, {"quality": 3, "tokens": 9}])
def test_options_that_make_no_sense(small, options, tmp_path):
    with pytest.raises(ValueError, match=r"out of range|give one of"):
        small.save(tmp_path / "a.tsr", **options)
    assert list(tmp_path.iterdir()) == []


def test_what_cannot_be_saved_leaves_nothing(small, tmp_path):
    with pytest.raises(OSError, match="does not fit 9 bytes"):
        small.save(tmp_path / "a.tsr", target_size=9)
    with pytest.raises(OSError, match="floating point"):
        small.convert("F").save(tmp_path / "a.tsr")
    assert list(tmp_path.iterdir()) == []
    stream = io.BytesIO(b"before")
    with pytest.raises(OSError, match="does not fit 9 bytes"):
        small.save(stream, "TSR", target_size=9)
    assert stream.getvalue() == b"before"  # nothing is written before all is made


def test_profile_and_transparency_are_there_before_pixels_are(small):
    image = small.copy()
    image.putalpha(Image.linear_gradient("L").resize(small.size))
    image.info["icc_profile"] = profiles.red_and_green_swapped()
    again = opened(saved(image, tokens=20))
    assert again.mode == "RGBA"
    assert again.info == {"icc_profile": profiles.red_and_green_swapped()}
    assert np.array_equal(np.asarray(again.getchannel("A")), np.asarray(image.getchannel("A")))
    assert opened(saved(image, tokens=20, icc_profile=None)).info == {}
    assert (
        opened(saved(small, tokens=20, icc_profile=profiles.red_and_green_swapped())).info["icc_profile"]
        == profiles.red_and_green_swapped()
    )
    assert opened(saved(image, tokens=20, background="white", strip=True)).mode == "RGB"


def test_exif_only_if_passed(small):
    exif = Image.Exif()
    exif[0x010F] = "Maker"
    exif[0x0112] = 6
    stream = io.BytesIO()
    small.save(stream, "PNG", exif=exif)
    turned = Image.open(stream)
    assert saved(turned, tokens=20) == saved(small.rotate(-90, expand=True), tokens=20)  # upright, and that is all
    for passed in (exif, exif.tobytes()):
        again = opened(saved(turned, tokens=20, exif=passed))
        assert again.size == (60, 90)
        assert (again.getexif()[0x010F], again.getexif()[0x0112]) == ("Maker", 1)


def test_a_parser_fed_in_bits_gives_the_image(small):
    image = small.copy()
    image.info["icc_profile"] = profiles.red_and_green_swapped()
    data = saved(image, tokens=1000)
    for step in (1, 7, 10_000):
        parser = ImageFile.Parser()
        for start in range(0, len(data), step):
            parser.feed(data[start : start + step])
        done = parser.close()
        assert np.array_equal(np.asarray(done), np.asarray(library.decode(data)))
    parser = ImageFile.Parser()
    parser.feed(data[:-20])
    with pytest.raises(OSError, match="cut short"):
        parser.close()


def test_other_files_are_left_to_others(small):
    stream = io.BytesIO()
    small.save(stream, "PNG")
    assert opened(stream.getvalue()).format == "PNG"
    with pytest.raises(UnidentifiedImageError):
        opened(b"\xd4no image")


def test_damage_is_told_with_its_cause(data):
    for size in range(2, 11):
        with pytest.raises(OSError, match=r"cut short|has no end"):
            opened(data[:size])
    with pytest.raises(OSError, match=r"version 9, and this release reads version 1: update tessera"):
        opened(bytes([*data[:2], 0x90, *data[3:]]))
    with pytest.raises(OSError, match="the colour profile is damaged"):
        opened(write_file(File(9, 9, b"\xcb\x06", 3, b"abc", ((ICC, b"nonsense"),))))
    with pytest.raises(OSError, match="EXIF is damaged"):
        opened(write_file(File(9, 9, b"\xcb\x06", 3, b"abc", ((EXIF, b"nonsense"),))))
    alien = opened(write_file(File(9, 9, b"\x00\x01", 3, b"abc")))
    with pytest.raises(OSError, match="made by a model that is not installed"):
        alien.load()
    image = opened(data[:-1] + bytes([data[-1] ^ 1]))
    with pytest.raises(OSError, match=r"damaged|cut short"):
        image.load()
    with pytest.raises(OSError, match="the checksum is wrong"):
        opened(data[:-1]).verify()
    opened(data).verify()


def test_cut_files_are_drawn_where_pillow_is_told_to(data, monkeypatch):
    with pytest.raises(OSError, match="cut short"):
        opened(data[:60]).load()
    monkeypatch.setattr(ImageFile, "LOAD_TRUNCATED_IMAGES", True)
    assert np.array_equal(np.asarray(opened(data[:60])), np.asarray(library.decode(data[:60], allow_partial=True)))


def test_pillows_limit_of_pixels_holds():
    with pytest.raises(Image.DecompressionBombError):
        opened(write_file(File(1 << 24, 1 << 24, b"\xcb\x06", 1, b"")))


@pytest.mark.parametrize("limit", [Image.MAX_IMAGE_PIXELS, None])
def test_thin_images_are_refused_before_they_are_drawn(limit, monkeypatch):
    monkeypatch.setattr(Image, "MAX_IMAGE_PIXELS", limit)
    data = write_file(File(100_000, 1, library.Codec(device="cpu").model.stream_id, 1, b""))
    with pytest.raises(OSError, match="100000x1 is thin"):
        opened(data).load()
    with pytest.raises(library.ImageError, match="100000x1 is thin"):
        library.decode(data)


def test_images_can_be_worked_on_as_any_other(data):
    image = opened(data)
    assert image.resize((9, 6)).size == (9, 6)
    assert opened(data).convert("L").getpixel((3, 3)) == image.convert("L").getpixel((3, 3))
    assert opened(data).copy().tobytes() == image.tobytes()
    thumbnail = opened(data)
    thumbnail.thumbnail((30, 30))
    assert max(thumbnail.size) == 30
