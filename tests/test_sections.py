"""Sections of a file (transparency, profile, EXIF, XMP) come back exactly; damaged ones are refused in bounded memory."""

from __future__ import annotations

import io
import lzma
import re
import struct
import tracemalloc
from dataclasses import replace

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from PIL import Image

import tessera.pillow  # noqa: F401 (registers .tsr)
from bitstream.container import File, read_file, write_file
from codec.errors import FormatError, ImageError, TargetError, TruncatedError
from codec.image.metadata import ALPHA, CONTENT_MAX, EXIF, ICC, Extras, from_sections, pack, to_sections, unpack
from codec.image.source import restore_image
from tests.helpers import profiles
from tests.helpers import reference_decoder as reference
from tests.helpers.commands import records, run

ALPHA_PLANE = np.arange(60 * 90).reshape(60, 90).astype(np.uint8)


@pytest.fixture(scope="module")
def clear(photo) -> Image.Image:
    """A photo with transparency, a profile, EXIF and XMP."""
    image = photo.crop((200, 100, 290, 160))
    image.putalpha(Image.fromarray(ALPHA_PLANE))
    exif = Image.Exif()
    exif[0x010F] = "Maker"
    image.info |= {"icc_profile": profiles.red_and_green_swapped(), "exif": exif.tobytes(), "xmp": b"<x/>"}
    return image


@settings(deadline=None, max_examples=40)
@given(st.binary(max_size=3000), st.binary(max_size=300), st.binary(max_size=300), st.integers(1, 40), st.integers(1, 40))
def test_sections_come_back(icc, exif, xmp, width, height):
    alpha = np.random.default_rng(width * height).integers(0, 256, (height, width)).astype(np.uint8)
    for plane in (alpha, None):
        extras = Extras(icc or None, b"MM\0*" + bytes(4) + exif, xmp or None, plane)
        again = from_sections(to_sections(extras, alpha_quality=100), width, height)
        assert (again.icc, again.exif, again.xmp) == (extras.icc, extras.exif, extras.xmp)
        assert (again.alpha is None) == (plane is None)
        assert plane is None or np.array_equal(again.alpha, plane)


def test_a_file_keeps_transparency_and_metadata(codec, clear):
    decoded = codec.decode(codec.encode(clear, keep_exif=True, quality=75).data).image
    assert decoded.mode == "RGBA"
    assert np.array_equal(np.asarray(decoded.getchannel("A")), ALPHA_PLANE)
    assert decoded.info == {"icc_profile": profiles.red_and_green_swapped(), "exif": clear.info["exif"], "xmp": b"<x/>"}
    assert decoded.getexif()[0x010F] == "Maker"
    stream = io.BytesIO()
    decoded.save(stream, "PNG")
    assert Image.open(stream).info["icc_profile"] == profiles.red_and_green_swapped()
    visible = ALPHA_PLANE > 0
    error = np.asarray(decoded.convert("RGB")).astype(int)[visible] - np.asarray(clear.convert("RGB"))[visible]
    assert np.sqrt(np.square(error).mean()) < 30
    plain = codec.decode(codec.encode(clear.convert("RGB"), strip=True).data).image
    assert plain.mode == "RGB"
    assert plain.info == {}


def test_bytes_are_as_the_specification_says(codec, clear):
    """The reference decoder shares no code with the codec."""
    data = codec.encode(clear, keep_exif=True, tokens=5).data
    width, height, _, _, sections = reference.read_header(data)
    assert list(sections) == [1, 2, 3, 4]
    unpacked = {kind: reference.unpack(content) for kind, content in sections.items() if kind != 1}
    unpacked[1] = sections[1][:1] + reference.unpack(sections[1][1:])
    assert unpacked[1] == b"\0" + ALPHA_PLANE.tobytes()
    assert unpacked[2] == profiles.red_and_green_swapped()
    assert unpacked[3] == clear.info["exif"].removeprefix(b"Exif\0\0")
    assert unpacked[4] == b"<x/>"
    assert (width, height) == clear.size


def test_readers_skip_types_that_they_do_not_know(codec, clear):
    file = codec.encode(clear.convert("RGB"), strip=True, tokens=30).file
    later = replace(file, sections=((99, b"news"),))
    assert codec.decode(write_file(later)).image == codec.decode(write_file(file)).image


def test_a_target_size_includes_sections(codec, clear):
    full = codec.encode(clear, target_size=1000)
    assert 960 < len(full.data) <= 1000
    assert full.file.section_bytes > 350
    stripped = codec.encode(clear, target_size=1000, strip=True)
    assert stripped.block_tokens > full.block_tokens


@pytest.mark.parametrize(
    ("options", "advice"),
    [
        ({}, ("strip", "background")),
        ({"strip": True}, ("background",)),
        ({"background": "white"}, ("strip",)),
        ({"background": "white", "keep_exif": True}, ("strip",)),
    ],
)
def test_sections_that_do_not_fit_have_advice(codec, clear, options, advice):
    with pytest.raises(TargetError) as caught:
        codec.encode(clear, target_size=40, **options)
    assert caught.value.advice == advice
    smallest = int(re.search(r"smallest file has (\d+)", str(caught.value))[1])
    assert len(codec.encode(clear, target_size=smallest, **options).data) == smallest


# Cut files


def test_a_cut_file_loses_sections_before_tokens(codec, clear):
    encoded = codec.encode(clear, quality=75, keep_exif=True)
    data, length = encoded.data, encoded.file.length
    complete = codec.decode(data)
    assert list(complete.image.info) == ["icc_profile", "exif", "xmp"]
    end = read_file(data).header_bytes + len(encoded.file.payload)
    sections = len(encoded.file.sections)
    for size in range(len(data) - 1, end - 1, -7):
        with pytest.raises(TruncatedError):
            codec.read(data[:size])
        stored = codec.read(data[:size], allow_partial=True)
        assert stored.prefix.length == length
        assert sections - 1 <= len(stored.file.sections) <= sections
        sections = len(stored.file.sections)
    assert sections == 0
    partial = codec.decode(data[:size], allow_partial=True)
    assert partial.partial
    assert (partial.image.mode, partial.image.info) == ("RGB", {})
    assert np.array_equal(np.asarray(partial.image), np.asarray(complete.image.convert("RGB")))


def test_every_prefix_of_a_file_with_sections_is_an_image(codec, clear):
    encoded = codec.encode(clear, quality=75, keep_exif=True)
    data, header_bytes = encoded.data, read_file(encoded.data).header_bytes
    lengths = []
    for size in range(header_bytes, len(data)):
        stored = codec.read(data[:size], allow_partial=True)
        assert stored.partial
        lengths.append(stored.prefix.length)
    assert lengths == sorted(lengths)
    assert 0 < lengths[len(encoded.file.payload) // 2] < lengths[-1] == encoded.file.length
    assert codec.decode(data[: header_bytes + 40], allow_partial=True).image.size == clear.size


def test_the_command_decodes_the_head_of_a_file_with_large_sections(clear, tmp_path):
    profile = np.random.default_rng(0).bytes(16) + profiles.red_and_green_swapped()[16:] + bytes(9999)
    clear.save(tmp_path / "a.png", exif=bytes(range(256)) * 20, icc_profile=profile)
    assert run("encode", tmp_path / "a.png", "--tokens", "20", "--keep-exif").exit_code == 0
    (tmp_path / "head.tsr").write_bytes((tmp_path / "a.tsr").read_bytes()[:60])
    assert run("decode", tmp_path / "head.tsr").exit_code == 1
    assert not (tmp_path / "head.png").exists()
    assert run("decode", tmp_path / "head.tsr", "--allow-partial").exit_code == 0
    with Image.open(tmp_path / "head.png") as decoded:
        assert decoded.size == clear.size


# Greyscale


def test_a_file_keeps_the_number_of_channels(codec, photo):
    """One channel stays one, and three equal channels stay three equal ones."""
    grey = photo.crop((200, 100, 290, 160)).convert("L")
    clear = Image.merge("LA", (grey, Image.fromarray(ALPHA_PLANE)))
    one, three, two = (codec.decode(codec.encode(image).data).image for image in (grey, grey.convert("RGB"), clear))
    assert (one.mode, three.mode, two.mode) == ("L", "RGB", "LA")
    assert np.array_equal(np.asarray(three), np.asarray(one.convert("RGB")))
    assert np.array_equal(np.asarray(two.getchannel("A")), ALPHA_PLANE)
    assert np.abs(np.asarray(one).astype(int) - np.asarray(grey)).mean() < 12
    for image, decoded in ((grey, one), (clear, two)):
        stream = io.BytesIO()
        image.save(stream, "TSR")
        opened = Image.open(stream)
        assert opened.mode == image.mode
        assert np.array_equal(np.asarray(opened), np.asarray(decoded))


def test_a_target_of_psnr_is_measured_on_the_grey_image(codec, photo):
    grey = photo.crop((200, 100, 290, 160)).convert("L")
    encoded = codec.encode(grey, target_psnr=24)
    error = np.asarray(codec.decode(encoded.data).image).astype(float) - np.asarray(grey)
    assert encoded.measured == pytest.approx(10 * np.log10(255**2 / np.square(error).mean()), abs=0.01)


def test_the_command_keeps_greyscale_and_notes_losses(photo, tmp_path):
    grey = photo.crop((200, 100, 264, 148)).convert("L")
    Image.fromarray(np.asarray(grey).astype(np.uint16) * 257).save(tmp_path / "deep.png")
    (record,) = records(run("encode", tmp_path / "deep.png", "-o", tmp_path / "a.tsr", "--json"))
    assert len(record["notes"]) == 1
    assert run("decode", tmp_path / "a.tsr").exit_code == 0
    with Image.open(tmp_path / "a.png") as decoded:
        assert decoded.mode == "L"
    Image.fromarray(np.asarray(grey).astype(np.int32)).save(tmp_path / "wide.tiff")
    assert run("encode", tmp_path / "wide.tiff").exit_code == 1
    assert not (tmp_path / "wide.tsr").exists()


# Damaged and forged sections


@pytest.mark.parametrize("kind", [ICC, EXIF, ALPHA])
def test_damaged_sections_are_refused(kind):
    good, start = pack(ALPHA_PLANE.tobytes()), b"\0" * (kind == ALPHA)
    for content in (b"", b"\x01", good[:-1], good[:50], good + b"\0", bytes(40), b"\xff" * 40, pack(b"") + good):
        with pytest.raises(FormatError):
            from_sections(((kind, start + content),), 90, 60)
    extras = from_sections(((kind, start + good),), 90, 60)
    contents = [content for content in (extras.icc, extras.exif, extras.xmp, extras.alpha) if content is not None]
    assert [bytes(content) for content in contents] == ([] if kind == EXIF else [ALPHA_PLANE.tobytes()])  # not valid EXIF


def forged(codec, exif: bytes) -> bytes:
    """A file with EXIF that `encode` would not write."""
    file = codec.encode(Image.new("RGB", (20, 16), "red"), tokens=9).file
    return write_file(replace(file, sections=((EXIF, pack(exif)),)))


def test_exif_without_a_tiff_header_is_left_out(codec):
    assert codec.decode(forged(codec, b"nonsense at length")).image.info == {}


def test_readers_set_the_orientation_to_1(codec):
    exif = Image.Exif()
    exif[0x010F], exif[0x0112] = "Maker", 6
    decoded = codec.decode(forged(codec, exif.tobytes().removeprefix(b"Exif\0\0"))).image
    assert (decoded.getexif()[0x010F], decoded.getexif()[0x0112]) == ("Maker", 1)


def one_tag(tag: int) -> bytes:
    """EXIF with a tag whose value is text instead of numbers."""
    return b"II*\0\x08\0\0\0\x01\0" + struct.pack("<HHI", tag, 2, 1) + b"abcd" + bytes(20)


@pytest.mark.parametrize("ending", ["tiff", "avif"])
def test_odd_exif_does_not_stop_the_command(codec, ending, tmp_path):
    output = tmp_path / f"a.{ending}"
    for exif in (b"nonsense at length", one_tag(0x0112)):  # an orientation
        assert run("decode", "-", "-o", output, "-f", data=forged(codec, exif)).exit_code == 0
        assert output.stat().st_size > 0


def test_exif_that_a_format_cannot_hold_is_an_error(codec, tmp_path):
    outcome = run("decode", "-", "-o", tmp_path / "a.tiff", data=forged(codec, one_tag(0x011A)))  # a resolution
    assert outcome.exit_code == 1
    assert len(outcome.stderr.splitlines()) == 1
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize("size", [(91, 60), (90, 61), (89, 60), (1, 1)])
def test_transparency_of_another_size_is_refused(size):
    with pytest.raises(FormatError):
        from_sections(((ALPHA, b"\0" + pack(ALPHA_PLANE.tobytes())),), *size)


def test_bombs_are_not_unpacked():
    filters = [{"id": lzma.FILTER_LZMA2, "preset": 1, "dict_size": 1 << 20}]
    bomb = lzma.compress(bytes(1 << 26), lzma.FORMAT_RAW, filters=filters)
    assert len(bomb) < 20_000
    tracemalloc.start()
    for kind in (ICC, ALPHA):
        with pytest.raises(FormatError):
            from_sections(((kind, b"\0" * (kind == ALPHA) + bomb),), 100, 100)
    assert tracemalloc.get_traced_memory()[1] < 3 * CONTENT_MAX
    tracemalloc.stop()


def test_a_stream_cannot_ask_for_a_larger_dictionary():
    """The dictionary is the reader's: a stream with larger distances is damaged."""
    half = np.random.default_rng(0).bytes(5 << 18)
    filters = [{"id": lzma.FILTER_LZMA2, "preset": 1, "dict_size": 1 << 23}]
    with pytest.raises(FormatError):
        unpack(lzma.compress(half + half, lzma.FORMAT_RAW, filters=filters), 1 << 23, "colour profile")


@pytest.mark.parametrize(
    "extras", [Extras(icc=bytes(CONTENT_MAX + 1)), Extras(exif=bytes(CONTENT_MAX + 1))], ids=("icc", "exif")
)
def test_contents_too_large_for_a_file_are_refused(extras):
    with pytest.raises(ImageError):
        to_sections(extras)


def test_pixels_without_sections_are_plain():
    image = restore_image(np.zeros((2, 3, 3), np.uint8), File(3, 2, b"", 1, b""))
    assert (image.mode, image.size, image.info) == ("RGB", (3, 2), {})
