"""The Pillow plugin: opening, saving, and the errors that Pillow's users expect."""

from __future__ import annotations

import io
import subprocess
import sys

import numpy as np
import pytest
from PIL import Image, ImageFile, UnidentifiedImageError

import tessera
import tessera.pillow
from bitstream.container import File, write_file
from codec.image.metadata import EXIF, ICC
from tests.helpers import ROOT, profiles

pytestmark = pytest.mark.light
UNKNOWN_ID = b"\x00\x01"  # the stream id of a model that is not installed


@pytest.fixture(scope="module")
def small(photo) -> Image.Image:
    return photo.crop((200, 100, 290, 160))


@pytest.fixture(scope="module")
def data(small) -> bytes:
    return tessera.encode(small, quality=90)


def opened(data: bytes) -> Image.Image:
    return Image.open(io.BytesIO(data))


def saved(image: Image.Image, **options) -> bytes:
    stream = io.BytesIO()
    image.save(stream, "TSR", **options)
    return stream.getvalue()


def test_files_are_opened_and_saved_by_their_suffix(small, data, tmp_path):
    small.save(tmp_path / "a.tsr", quality=90)
    assert (tmp_path / "a.tsr").read_bytes() == data
    with Image.open(tmp_path / "a.tsr") as image:
        assert (image.format, image.mode, image.size) == ("TSR", "RGB", (90, 60))
        assert image.get_format_mimetype() == "image/x-tessera"
        assert np.array_equal(np.asarray(image), np.asarray(tessera.decode(data)))
    image.load()  # the pixels stay after the file was closed


def test_load_takes_the_options_of_decode(data):
    few, whole = opened(data), opened(data)
    few.load(tokens=10)
    assert few.tobytes() == tessera.decode(data, tokens=10).tobytes() != whole.tobytes()
    smooth = opened(data)
    smooth.load(detail=0.0)
    assert smooth.tobytes() == tessera.decode(data, detail=0.0).tobytes() != whole.tobytes()
    with pytest.raises(OSError, match="steps"):  # the bundled model samples nothing
        opened(data).load(steps=2)


def test_open_loads_no_network():
    code = (
        "import sys, io, tessera.pillow; from PIL import Image; "
        "image = Image.open(io.BytesIO(bytes.fromhex(sys.argv[1]))); assert image.size == (90, 60); "
        "sys.exit(3 if {'torch', 'onnxruntime'} & sys.modules.keys() else 0)"
    )
    data = write_file(File(90, 60, UNKNOWN_ID, 3, b"abc"))
    assert subprocess.run([sys.executable, "-c", code, data.hex()], cwd=ROOT, check=False).returncode == 0


def test_the_format_is_unknown_without_the_import(data):
    code = "import sys, io; from PIL import Image; Image.open(io.BytesIO(bytes.fromhex(sys.argv[1])))"
    process = subprocess.run([sys.executable, "-c", code, data[:40].hex()], capture_output=True, text=True, check=False)
    assert "UnidentifiedImageError" in process.stderr


@pytest.mark.parametrize(
    "options", [{}, {"quality": 20}, {"tokens": 9}, {"target_size": 200}, {"target_bpp": 0.5}, {"target_psnr": 20}]
)
def test_options_of_save_are_those_of_encode(small, options):
    assert saved(small, **options) == tessera.encode(small, **options)


def test_a_model_can_be_named(small):
    assert saved(small, model="standard") == saved(small)
    with pytest.raises(OSError, match="nosuch"):
        saved(small, model="nosuch")


def test_options_of_other_plugins_are_ignored(small, data):
    assert saved(small, quality=90, optimize=True, dpi=(72, 72)) == data


@pytest.mark.parametrize("options", [{"quality": 200}, {"quality": 3, "tokens": 9}])
def test_wrong_options_raise_value_error(small, options, tmp_path):
    with pytest.raises(ValueError, match="quality"):
        small.save(tmp_path / "a.tsr", **options)
    assert list(tmp_path.iterdir()) == []


def test_a_failed_save_writes_nothing(small, tmp_path):
    with pytest.raises(OSError, match="9 bytes"):
        small.save(tmp_path / "a.tsr", target_size=9)
    with pytest.raises(OSError, match="floating point"):
        small.convert("F").save(tmp_path / "a.tsr")
    assert list(tmp_path.iterdir()) == []
    stream = io.BytesIO(b"before")
    with pytest.raises(OSError, match="9 bytes"):
        small.save(stream, "TSR", target_size=9)
    assert stream.getvalue() == b"before"


def test_profile_and_mode_are_known_before_the_pixels(small):
    profile = profiles.red_and_green_swapped()
    image = small.copy()
    image.putalpha(Image.linear_gradient("L").resize(small.size))
    image.info["icc_profile"] = profile
    again = opened(saved(image, tokens=20))
    assert again.mode == "RGBA"
    assert again.info == {"icc_profile": profile}
    assert np.array_equal(np.asarray(again.getchannel("A")), np.asarray(image.getchannel("A")))
    assert opened(saved(image, tokens=20, icc_profile=None)).info == {}
    assert opened(saved(small, tokens=20, icc_profile=profile)).info["icc_profile"] == profile
    assert opened(saved(image, tokens=20, background="white", strip=True)).mode == "RGB"


def test_exif_is_written_only_if_passed(small):
    exif = Image.Exif()
    exif[0x010F] = "Maker"
    exif[0x0112] = 6
    stream = io.BytesIO()
    small.save(stream, "PNG", exif=exif)
    turned = Image.open(stream)
    assert saved(turned, tokens=20) == saved(small.rotate(-90, expand=True), tokens=20)
    for passed in (exif, exif.tobytes()):
        again = opened(saved(turned, tokens=20, exif=passed))
        assert again.size == (60, 90)
        assert (again.getexif()[0x010F], again.getexif()[0x0112]) == ("Maker", 1)


def test_a_parser_takes_a_file_in_pieces(small):
    image = small.copy()
    image.info["icc_profile"] = profiles.red_and_green_swapped()
    data = saved(image, tokens=1000)
    for step in (1, 7, 10_000):
        parser = ImageFile.Parser()
        for start in range(0, len(data), step):
            parser.feed(data[start : start + step])
        assert np.array_equal(np.asarray(parser.close()), np.asarray(tessera.decode(data)))
    parser = ImageFile.Parser()
    parser.feed(data[:-20])
    with pytest.raises(OSError, match="cut short"):
        parser.close()


def test_other_formats_are_left_to_their_plugins(small):
    stream = io.BytesIO()
    small.save(stream, "PNG")
    assert opened(stream.getvalue()).format == "PNG"
    with pytest.raises(UnidentifiedImageError):
        opened(b"\xd4no image")


def test_damage_raises_os_error(data):
    damaged = [data[:size] for size in range(2, 11)]
    damaged.append(bytes([*data[:2], 0x90, *data[3:]]))  # version 9
    damaged += [write_file(File(9, 9, UNKNOWN_ID, 3, b"abc", ((kind, b"nonsense"),))) for kind in (ICC, EXIF)]
    for content in damaged:
        with pytest.raises(OSError) as caught:
            opened(content)
        assert not isinstance(caught.value, UnidentifiedImageError)
    unknown_model = write_file(File(9, 9, UNKNOWN_ID, 3, b"abc"))
    for content in (unknown_model, data[:-1] + bytes([data[-1] ^ 1])):
        image = opened(content)
        with pytest.raises(OSError):
            image.load()
    opened(data).verify()
    with pytest.raises(OSError, match="checksum"):
        opened(data[:-1]).verify()


def test_cut_files_are_loaded_only_if_pillow_allows_it(data, monkeypatch):
    with pytest.raises(OSError, match="cut short"):
        opened(data[:60]).load()
    monkeypatch.setattr(ImageFile, "LOAD_TRUNCATED_IMAGES", True)
    assert np.array_equal(np.asarray(opened(data[:60])), np.asarray(tessera.decode(data[:60], allow_partial=True)))


def test_pillows_limit_of_pixels_applies(monkeypatch):
    with pytest.raises(Image.DecompressionBombError):
        opened(write_file(File(1 << 24, 1 << 24, UNKNOWN_ID, 1, b"")))
    monkeypatch.setattr(Image, "MAX_IMAGE_PIXELS", 100)
    with pytest.raises(Image.DecompressionBombError):
        opened(write_file(File(20, 11, UNKNOWN_ID, 3, b"abc")))


@pytest.mark.parametrize("limit", [Image.MAX_IMAGE_PIXELS, None])
def test_thin_images_are_refused_before_they_are_decoded(limit, monkeypatch):
    monkeypatch.setattr(Image, "MAX_IMAGE_PIXELS", limit)
    data = write_file(File(100_000, 1, tessera.Codec(device="cpu").model.stream_id, 1, b""))
    with pytest.raises(OSError, match="narrow"):
        opened(data).load()
    with pytest.raises(tessera.ImageError, match="narrow"):
        tessera.decode(data)


def test_opened_images_work_like_any_other(data):
    image = opened(data)
    assert image.resize((9, 6)).size == (9, 6)
    assert opened(data).convert("L").getpixel((3, 3)) == image.convert("L").getpixel((3, 3))
    assert opened(data).copy().tobytes() == image.tobytes()
    thumbnail = opened(data)
    thumbnail.thumbnail((30, 30))
    assert max(thumbnail.size) == 30
