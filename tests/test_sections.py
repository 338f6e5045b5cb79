"""What a file keeps beside its tokens comes back exactly; what is damaged there is refused, and bounded."""

from __future__ import annotations

import io
import json
import lzma
import re
import struct
import tracemalloc
from dataclasses import replace

import numpy as np
import pytest
from click.testing import CliRunner
from codec.image.reading import restore
from hypothesis import given, settings
from hypothesis import strategies as st
from PIL import Image

import codec.pillow  # noqa: F401 (registers .tsr)
from bitstream.container import File, read_file, write_file
from cli.main import main
from codec.errors import FormatError, ImageError, TargetError, TruncatedError
from codec.image.metadata import ALPHA, CONTENT_MAX, EXIF, ICC, Extras, from_sections, pack, to_sections, unpack
from tests.helpers import profiles
from tests.helpers import reference_decoder as reference

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
def test_sections_invert(icc, exif, xmp, width, height):
    alpha = np.random.default_rng(width * height).integers(0, 256, (height, width)).astype(np.uint8)
    for plane in (alpha, None):
        extras = Extras(icc or None, b"MM\0*" + bytes(4) + exif, xmp or None, plane)
        again = from_sections(to_sections(extras, alpha_quality=100), width, height)
        assert (again.icc, again.exif, again.xmp) == (extras.icc, extras.exif, extras.xmp)
        assert (again.alpha is None) == (plane is None)
        assert plane is None or np.array_equal(again.alpha, plane)


def test_a_file_gives_back_what_it_was_given(codec, clear):
    data = codec.encode(clear, keep_exif=True, quality=75)
    again = codec.decode(data)
    assert again.mode == "RGBA"
    assert np.array_equal(np.asarray(again.getchannel("A")), ALPHA_PLANE)
    assert again.info == {"icc_profile": profiles.red_and_green_swapped(), "exif": clear.info["exif"], "xmp": b"<x/>"}
    assert again.getexif()[0x010F] == "Maker"
    stream = io.BytesIO()
    again.save(stream, "PNG")
    assert Image.open(stream).info["icc_profile"] == profiles.red_and_green_swapped()
    seen = ALPHA_PLANE > 0
    error = np.asarray(again.convert("RGB")).astype(int)[seen] - np.asarray(clear.convert("RGB"))[seen]
    assert np.sqrt(np.square(error).mean()) < 30
    plain = codec.decode(codec.encode(clear.convert("RGB"), strip=True))
    assert plain.mode == "RGB"
    assert plain.info == {}


def test_bytes_are_as_the_specification_says(codec, clear):
    """The reader in reference.py shares no code with the codec."""
    data = codec.encode(clear, keep_exif=True, tokens=5)
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
    file = read_file(codec.encode(clear.convert("RGB"), strip=True, tokens=30))
    later = write_file(File(file.width, file.height, file.stream_id, file.length, file.payload, ((99, b"news"),)))
    assert np.array_equal(np.asarray(codec.decode(later)), np.asarray(codec.decode(write_file(file))))


def test_a_target_counts_sections(codec, clear):
    full = codec.compress(clear, target_size=1000)
    assert 960 < len(full.data) <= 1000
    assert full.file.section_bytes > 350
    bare = codec.compress(clear, target_size=1000, strip=True)
    assert bare.block_tokens > full.block_tokens


@pytest.mark.parametrize(
    ("options", "said", "advice"),
    [
        ({}, "for its transparency and colour profile", ("strip", "background")),
        ({"strip": True}, "for its transparency", ("background",)),
        ({"background": "white"}, "for its colour profile", ("strip",)),
        ({"background": "white", "keep_exif": True}, "for its colour profile and EXIF and XMP", ("strip",)),
    ],
)
def test_sections_that_do_not_fit_are_named(codec, clear, options, said, advice):
    with pytest.raises(
        TargetError, match=rf"does not fit 40 bytes: the smallest file has (\d+), \d+ of them {said}$"
    ) as caught:
        codec.encode(clear, target_size=40, **options)
    assert caught.value.advice == advice
    smallest = int(re.search(r"has (\d+)", str(caught.value))[1])
    assert len(codec.encode(clear, target_size=smallest, **options)) == smallest


def test_a_cut_file_loses_what_follows_the_image_first(codec, clear):
    made = codec.compress(clear, quality=75, keep_exif=True)
    whole = codec.decompress(made.data)
    assert list(whole.image.info) == ["icc_profile", "exif", "xmp"]
    before = len(made.file.sections)
    for size in range(len(made.data) - 1, made.file.header_bytes + len(made.file.payload) - 1, -7):
        with pytest.raises(TruncatedError, match="its image is there, but not all that follows it"):
            codec.read(made.data[:size])
        read = codec.read(made.data[:size], allow_partial=True)
        assert read.prefix.length == made.file.length
        assert before - 1 <= len(read.file.sections) <= before
        before = len(read.file.sections)
    assert before == 0
    part = codec.decompress(made.data[:size], allow_partial=True)
    assert part.partial
    assert (part.image.mode, part.image.info) == ("RGB", {})
    assert np.array_equal(np.asarray(part.image), np.asarray(whole.image.convert("RGB")))


def test_every_prefix_of_a_file_with_sections_is_a_image(codec, clear):
    made = codec.compress(clear, quality=75, keep_exif=True)
    lengths = []
    for size in range(made.file.header_bytes, len(made.data)):
        read = codec.read(made.data[:size], allow_partial=True)
        assert read.partial
        lengths.append(read.prefix.length)
    assert lengths == sorted(lengths)
    assert 0 < lengths[len(made.file.payload) // 2] < lengths[-1] == made.file.length
    assert codec.decode(made.data[: made.file.header_bytes + 40], allow_partial=True).size == clear.size


def test_commands_draw_the_head_of_a_file_that_carries_much(clear, tmp_path):
    carrying = clear.copy()
    carrying.info["icc_profile"] = np.random.default_rng(0).bytes(16) + profiles.red_and_green_swapped()[16:] + bytes(9999)
    carrying.save(tmp_path / "a.png", exif=bytes(range(256)) * 20, icc_profile=carrying.info["icc_profile"])
    encode = ["encode", str(tmp_path / "a.png"), "--tokens", "20", "--keep-exif", "-o", str(tmp_path / "a.tsr")]
    assert CliRunner().invoke(main, encode).exit_code == 0
    (tmp_path / "head.tsr").write_bytes((tmp_path / "a.tsr").read_bytes()[:60])
    decode = ["decode", str(tmp_path / "head.tsr"), "-o", str(tmp_path / "head.png")]
    refused = CliRunner().invoke(main, decode)
    assert (refused.exit_code, refused.stderr.count("cut short")) == (1, 1)
    assert CliRunner().invoke(main, [*decode, "--allow-partial"]).exit_code == 0
    with Image.open(tmp_path / "head.png") as drawn:
        assert drawn.size == clear.size


def test_greyscale_comes_back_as_it_was(codec, photo):
    """One channel as one, and three equal ones as three equal ones."""
    grey = photo.crop((200, 100, 290, 160)).convert("L")
    clear = Image.merge("LA", (grey, Image.fromarray(ALPHA_PLANE)))
    one, three, two = (codec.decode(codec.encode(image)) for image in (grey, grey.convert("RGB"), clear))
    assert (one.mode, three.mode, two.mode) == ("L", "RGB", "LA")
    assert np.array_equal(np.asarray(three), np.asarray(one.convert("RGB")))
    assert np.array_equal(np.asarray(two.getchannel("A")), ALPHA_PLANE)
    assert np.abs(np.asarray(one).astype(int) - np.asarray(grey)).mean() < 12
    for image in (grey, clear):
        stream = io.BytesIO()
        image.save(stream, "TSR")
        again = Image.open(stream)
        assert again.mode == image.mode
        assert np.array_equal(np.asarray(again), np.asarray(codec.decode(codec.encode(image))))


def test_a_target_of_quality_is_measured_on_the_grey_image(codec, photo):
    grey = photo.crop((200, 100, 290, 160)).convert("L")
    made = codec.compress(grey, target_psnr=24)
    error = np.asarray(codec.decode(made.data)).astype(float) - np.asarray(grey)
    assert made.measured == pytest.approx(10 * np.log10(255**2 / np.square(error).mean()), abs=0.01)


def test_the_command_keeps_greyscale_and_notes_what_it_loses(photo, tmp_path):
    grey = photo.crop((200, 100, 264, 148)).convert("L")
    Image.fromarray(np.asarray(grey).astype(np.uint16) * 257).save(tmp_path / "deep.png")
    made = CliRunner().invoke(main, ["encode", str(tmp_path / "deep.png"), "-o", str(tmp_path / "a.tsr"), "--json"])
    assert json.loads(made.stdout)["notes"] == ["16 bits per channel became 8"]
    assert CliRunner().invoke(main, ["decode", str(tmp_path / "a.tsr"), "-o", str(tmp_path / "a.png")]).exit_code == 0
    with Image.open(tmp_path / "a.png") as again:
        assert again.mode == "L"
    Image.fromarray(np.asarray(grey).astype(np.int32)).save(tmp_path / "wide.tiff")
    refused = CliRunner().invoke(main, ["encode", str(tmp_path / "wide.tiff"), "-o", str(tmp_path / "b.tsr")])
    assert (refused.exit_code, "pixels are 32-bit integers" in refused.stderr) == (1, True)


@pytest.mark.parametrize("kind", [ICC, EXIF, ALPHA])
def test_damaged_contents_are_refused(kind):
    good, start = pack(ALPHA_PLANE.tobytes()), b"\0" * (kind == ALPHA)
    for content in (b"", b"\x01", good[:-1], good[:50], good + b"\0", bytes(40), b"\xff" * 40, pack(b"") + good):
        with pytest.raises(FormatError, match="damaged"):
            from_sections(((kind, start + content),), 90, 60)
    read = from_sections(((kind, start + good),), 90, 60)
    whole = [part for part in (read.icc, read.exif, read.xmp, read.alpha) if part is not None]
    assert [bytes(part) for part in whole] == ([] if kind == EXIF else [ALPHA_PLANE.tobytes()])  # which is no EXIF


def forged(codec, exif: bytes) -> bytes:
    """A file with EXIF that no writer puts there."""
    file = codec.compress(Image.new("RGB", (20, 16), "red"), tokens=9).file
    return write_file(replace(file, sections=((EXIF, pack(exif)),)))


def test_exif_without_a_tiff_header_is_left_out(codec):
    assert codec.decode(forged(codec, b"nonsense at length")).info == {}


def test_readers_set_the_orientation_to_1(codec):
    exif = Image.Exif()
    exif[0x010F], exif[0x0112] = "Maker", 6
    again = codec.decode(forged(codec, exif.tobytes().removeprefix(b"Exif\0\0")))
    assert (again.getexif()[0x010F], again.getexif()[0x0112]) == ("Maker", 1)


def one_tag(tag: int) -> bytes:
    """EXIF with a tag whose value is text where numbers should be."""
    return b"II*\0\x08\0\0\0\x01\0" + struct.pack("<HHI", tag, 2, 1) + b"abcd" + bytes(20)


@pytest.mark.parametrize("ending", ["tiff", "avif"])
def test_odd_exif_is_no_fault_of_ours(codec, ending, tmp_path):
    out = tmp_path / f"a.{ending}"
    for exif in (b"nonsense at length", one_tag(0x0112)):  # an orientation
        done = CliRunner().invoke(main, ["decode", "-", "-o", str(out), "-f"], input=forged(codec, exif))
        assert (done.exit_code, done.stderr.count("Error")) == (0, 0)


def test_exif_that_a_format_cannot_hold_is_an_error_of_one_line(codec, tmp_path):
    decode = ["decode", "-", "-o", str(tmp_path / "a.tiff")]
    done = CliRunner().invoke(main, decode, input=forged(codec, one_tag(0x011A)))  # a resolution
    assert done.exit_code == 1
    assert re.fullmatch(r"Error: .*the image cannot be written as TIFF .*: use png\n", done.stderr)


@pytest.mark.parametrize("size", [(91, 60), (90, 61), (89, 60), (1, 1)])
def test_transparency_has_the_size_of_the_image(size):
    with pytest.raises(FormatError, match=r"transparency (unpacks to more than|has 5,400 values)"):
        from_sections(((ALPHA, b"\0" + pack(ALPHA_PLANE.tobytes())),), *size)


def test_bombs_are_not_unpacked():
    bomb = lzma.compress(
        bytes(1 << 26), lzma.FORMAT_RAW, filters=[{"id": lzma.FILTER_LZMA2, "preset": 1, "dict_size": 1 << 20}]
    )
    assert len(bomb) < 20_000
    tracemalloc.start()
    for kind, size in ((ICC, CONTENT_MAX), (ALPHA, 10_000)):
        with pytest.raises(FormatError, match=f"unpacks to more than {size:,} bytes"):
            from_sections(((kind, b"\0" * (kind == ALPHA) + bomb),), 100, 100)
    assert tracemalloc.get_traced_memory()[1] < 3 * CONTENT_MAX
    tracemalloc.stop()


def test_streams_of_another_dictionary_are_no_way_around_the_limit():
    """The dictionary is the reader's, whatever the writer used: 64 MiB of distance cannot be asked for."""
    far = np.random.default_rng(0).bytes(5 << 18)
    wide = lzma.compress(far + far, lzma.FORMAT_RAW, filters=[{"id": lzma.FILTER_LZMA2, "preset": 1, "dict_size": 1 << 23}])
    with pytest.raises(FormatError, match="damaged"):
        unpack(wide, 1 << 23, "colour profile")


def test_contents_too_large_for_a_file_are_refused():
    with pytest.raises(ImageError, match=r"colour profile has 16,777,217 bytes, and a file holds 16,777,216$"):
        to_sections(Extras(icc=bytes(CONTENT_MAX + 1)))
    with pytest.raises(ImageError, match="EXIF has 16,777,217 bytes"):
        to_sections(Extras(exif=bytes(CONTENT_MAX + 1)))


def test_pixels_without_extras_are_plain():
    image = restore(np.zeros((2, 3, 3), np.uint8), Extras())
    assert (image.mode, image.size, image.info) == ("RGB", (3, 2), {})
