"""Images of many formats and modes: their pixels, and the metadata that is kept of them."""

from __future__ import annotations

import io
import struct
import time
import zlib
from concurrent.futures import ThreadPoolExecutor
from dataclasses import replace

import numpy as np
import pytest
from PIL import ExifTags, Image, ImageCms, ImageFile, PngImagePlugin, TiffImagePlugin, features

from bitstream.container import COLOURED, GREY, NEUTRAL
from codec.errors import ImageError
from codec.image.metadata import Extras, from_sections, mend_exif, upright_exif, upright_xmp
from codec.image.opening import check_size, load_image, open_image, pillow_settings
from codec.image.plugins import PLUGINS, WRITTEN, jxl_size, load_plugin, plugin_for, readable_endings, writable_endings
from codec.image.profiles import profile_of
from codec.image.source import Source, read_source
from tests.helpers import profiles

RAMP = np.arange(48 * 64, dtype=np.uint32).reshape(48, 64) * 21  # 16-bit values, all different
XMP = b'<x:xmpmeta xmlns:x="adobe:ns:meta/"><a tiff:Orientation="6"/><tiff:Orientation>6</tiff:Orientation></x:xmpmeta>'
UPRIGHT = {  # by EXIF orientation: the pixels to show, from those in the file
    1: lambda a: a,
    2: lambda a: a[:, ::-1],
    3: lambda a: a[::-1, ::-1],
    4: lambda a: a[::-1],
    5: lambda a: a.swapaxes(0, 1),
    6: lambda a: np.rot90(a, -1),
    7: lambda a: a[::-1, ::-1].swapaxes(0, 1),
    8: np.rot90,
}


@pytest.fixture(scope="module")
def small(photo) -> Image.Image:
    return photo.crop((200, 100, 264, 148))


def saved(image: Image.Image, kind: str, **options) -> bytes:
    stream = io.BytesIO()
    image.save(stream, kind, **options)
    return stream.getvalue()


def read(data: bytes, max_pixels: int = 500_000_000, **options) -> Source:
    return read_source(open_image(data, max_pixels), options, max_pixels)


def extras(source: Source) -> Extras:
    return from_sections(source.sections, source.width, source.height)


def difference(source: Source, expected: np.ndarray | Image.Image) -> np.ndarray:
    return np.abs(source.pixels.astype(int) - np.asarray(expected))


def chunk(kind: bytes, content: bytes) -> bytes:
    return struct.pack(">I", len(content)) + kind + content + struct.pack(">I", zlib.crc32(kind + content))


def png_file(width: int, depth: int, colour_type: int, rows: list[bytes], *chunks: bytes) -> bytes:
    """A PNG file of packed rows, with these chunks before the pixels."""
    header = chunk(b"IHDR", struct.pack(">2I5B", width, len(rows), depth, colour_type, 0, 0, 0))
    body = chunk(b"IDAT", zlib.compress(b"".join(b"\0" + row for row in rows)))
    return b"\x89PNG\r\n\x1a\n" + header + b"".join(chunks) + body + chunk(b"IEND", b"")


def png16(channels: int, values: np.ndarray, *, transparent: bytes = b"") -> bytes:
    """A PNG file of 16 bits per value, (H, W) or (H, W, channels), which Pillow does not write."""
    rows = [row.tobytes() for row in values.astype(">u2").reshape(len(values), -1)]
    chunks = [chunk(b"tRNS", transparent)] if transparent else []
    return png_file(values.shape[1], 16, {1: 0, 2: 4, 3: 2, 4: 6}[channels], rows, *chunks)


def tiff_file(values: bytes, width: int, height: int, bits: int, photometric: int) -> bytes:
    """A TIFF file of packed grey values."""
    tags = {256: width, 257: height, 258: bits, 259: 1, 262: photometric, 273: 8, 277: 1, 278: height, 279: len(values)}
    values += bytes(len(values) % 2)
    directory = b"".join(struct.pack("<HHII", tag, 4, 1, value) for tag, value in tags.items())
    return b"II*\0" + struct.pack("<I", 8 + len(values)) + values + struct.pack("<H", len(tags)) + directory + bytes(4)


def pgm16(values: np.ndarray) -> bytes:
    return b"P5 %d %d 65535\n" % values.shape[::-1] + values.astype(">u2").tobytes()


def camera_exif(orientation: int) -> Image.Exif:
    exif = Image.Exif()
    exif[0x010F] = "Maker"
    exif[0x0112] = orientation
    exif.get_ifd(0x8825)[1] = "N"
    exif.get_ifd(0x8769)[0x927C] = b"notes of the camera"
    return exif


def parsed_exif(content: bytes) -> Image.Exif:
    exif = Image.Exif()
    exif.load(content)
    return exif


@pytest.mark.parametrize("orientation", UPRIGHT)
@pytest.mark.parametrize("kind", ["JPEG", "PNG", "WEBP", "TIFF"])
def test_exif_orientation_is_applied(small, kind, orientation):
    data = saved(small, kind, exif=camera_exif(orientation), **({"lossless": True} if kind == "WEBP" else {}))
    plain = Image.open(io.BytesIO(saved(small, kind) if kind == "JPEG" else saved(small, "PNG")))
    source = read(data)
    assert np.array_equal(source.pixels, UPRIGHT[orientation](np.asarray(plain)))
    assert source.sections == ()


@pytest.mark.parametrize("kind", ["JPEG", "PNG", "WEBP", "TIFF"])
def test_an_rgb_profile_is_kept_byte_for_byte(small, kind):
    profile = profiles.red_and_green_swapped()
    data = saved(small, kind, icc_profile=profile)
    assert extras(read(data)).icc == profile
    assert np.array_equal(read(data).pixels, np.asarray(Image.open(io.BytesIO(data)).convert("RGB")))


def test_strip_converts_to_srgb(small):
    red, green, blue = np.asarray(small).transpose(2, 0, 1).astype(int)
    plain = read(saved(small, "PNG", icc_profile=profiles.srgb()), strip=True)
    assert plain.sections == ()
    assert difference(plain, small).max() <= 1
    swapped = read(saved(small, "PNG", icc_profile=profiles.red_and_green_swapped()), strip=True)
    assert swapped.sections == ()
    assert difference(swapped, np.dstack([green, red, blue])).max() <= 2


def test_cmyk_is_converted_with_its_profile(small):
    inks = Image.fromarray(np.asarray(small.resize((4, 3)).resize((64, 48), 0)) // 128 * 255).convert("CMYK")
    assert np.array_equal(read(saved(inks, "TIFF")).pixels, np.asarray(inks.convert("RGB")))
    red, green, blue = np.asarray(inks.convert("RGB")).transpose(2, 0, 1).astype(int)
    for kind, tolerance in (("TIFF", 12), ("JPEG", 40)):  # Lab with 8 bits is coarse, and JPEG blurs edges
        source = read(saved(inks, kind, icc_profile=profiles.cyan_and_magenta_swapped()))
        assert source.sections == ()  # it is sRGB now
        assert difference(source, np.dstack([green, red, blue])).max() <= tolerance


def test_grey_is_converted_with_its_profile(small):
    grey = small.convert("L")
    value = np.asarray(grey) / 255
    light = np.where(value <= 0.0031308, 12.92 * value, 1.055 * value ** (1 / 2.4) - 0.055)
    for image in (grey, Image.merge("LA", (grey, Image.new("L", grey.size, 90)))):
        source = read(saved(image, "PNG", icc_profile=profiles.linear_grey()))
        assert extras(source).icc is None
        assert np.abs(source.pixels - (255 * light)[..., None]).max() <= 2


def test_lab_becomes_srgb(small):
    transform = ImageCms.buildTransform(ImageCms.createProfile("sRGB"), ImageCms.createProfile("LAB"), "RGB", "LAB")
    data = saved(ImageCms.applyTransform(small, transform), "TIFF")
    assert Image.open(io.BytesIO(data)).mode == "LAB"
    assert difference(read(data), small).mean() < 2  # Lab with 8 bits is coarse


@pytest.mark.parametrize(
    ("mode", "profile"),
    [
        ("RGB", b"no profile at all" * 20),
        ("CMYK", profiles.linear_grey()),
        ("RGB", profiles.cyan_and_magenta_swapped()),
        ("CMYK", profiles.cyan_and_magenta_swapped()[:300]),
    ],
)
def test_an_unusable_profile_is_left_out_with_a_note(small, mode, profile):
    image = small.convert(mode)
    source = read(saved(image, "TIFF", icc_profile=profile))
    assert source.sections == ()
    assert np.array_equal(source.pixels, np.asarray(image.convert("RGB")))
    assert len(source.notes) == 1 + (mode == "CMYK")
    assert "profile" in source.notes[-1]


@pytest.mark.parametrize("kind", ["JPEG", "PNG", "WEBP"])
def test_exif_and_xmp_are_kept_only_on_request(small, kind):
    exif = camera_exif(6)
    data = saved(small, kind, exif=exif, **({"xmp": XMP} if kind != "PNG" else {}))
    assert read(data).sections == ()
    kept = extras(read(data, keep_exif=True))
    original = exif.tobytes().removeprefix(b"Exif\0\0")
    assert [a for a, b in zip(kept.exif, original, strict=True) if a != b] == [1]  # only the orientation differs
    again = parsed_exif(kept.exif)
    assert (again[0x0112], again[0x010F]) == (1, "Maker")
    assert again.get_ifd(0x8825) == {1: "N"}
    assert kept.xmp == (None if kind == "PNG" else XMP.replace(b'"6"', b'"1"').replace(b">6<", b">1<"))


def test_exif_of_a_tiff_omits_the_layout_of_the_file(small):
    kept = extras(read(saved(small, "TIFF", exif=camera_exif(3).tobytes()), keep_exif=True))
    again = parsed_exif(kept.exif)
    assert again[0x010F] == "Maker"
    assert again.get_ifd(0x8825) == {1: "N"}
    assert TiffImagePlugin.STRIPOFFSETS not in again
    assert again.get(0x0112, 1) == 1


RDF = '<rdf:RDF xmlns:rdf="http://www.w3.org/1999/02/22-rdf-syntax-ns#">{}</rdf:RDF>'
TIFF_XML = 'xmlns:{}="http://ns.adobe.com/tiff/1.0/"'


@pytest.mark.parametrize(
    ("description", "upright"),
    [
        (f"<a {TIFF_XML.format('tiff')} tiff:Orientation='6'/>", f"<a {TIFF_XML.format('tiff')} tiff:Orientation='1'/>"),
        (
            '<a b=">" tiff:Orientation = "6" c="tiff:Orientation=\'6\'"/>',
            '<a b=">" tiff:Orientation = "1" c="tiff:Orientation=\'6\'"/>',
        ),
        (f"<a {TIFF_XML.format('t')} t:Orientation='6'></a>", f"<a {TIFF_XML.format('t')} t:Orientation='1'></a>"),
        ("<é><tiff:Orientation\n>6</tiff:Orientation></é>", "<é><tiff:Orientation\n>1</tiff:Orientation></é>"),
        ("<!-- tiff:Orientation='3' --><a tiff:Orientation='6'/>", "<!-- tiff:Orientation='3' --><a tiff:Orientation='1'/>"),
    ],
)
@pytest.mark.parametrize("kind", ["JPEG", "PNG", "WEBP"])
def test_the_orientation_in_xmp_is_applied(small, kind, description, upright):
    xmp = RDF.format(description).encode()
    options = {"JPEG": {"xmp": xmp}, "WEBP": {"xmp": xmp, "lossless": True}, "PNG": {"pnginfo": PngImagePlugin.PngInfo()}}[kind]
    if kind == "PNG":
        options["pnginfo"].add_itxt("XML:com.adobe.xmp", xmp.decode())
    data = saved(small, kind, **options)
    source = read(data, keep_exif=True)
    assert np.array_equal(source.pixels, np.rot90(np.asarray(Image.open(io.BytesIO(data))), -1))
    assert extras(source).xmp == RDF.format(upright).encode()
    assert source.notes == ()


def test_long_xmp_takes_linear_time():
    repeated = b"<tiff:Orientation>6</tiff:Orientation>" * 50_000
    start = time.perf_counter()
    assert upright_xmp(b"<x>" + repeated + b"</x>") == (6, b"<x>" + repeated.replace(b">6<", b">1<") + b"</x>")
    assert time.perf_counter() - start < 10  # seconds; half a second, or half a minute if quadratic


def test_the_orientation_in_exif_has_priority_over_xmp(small):
    xmp = RDF.format("<a tiff:Orientation='6'/>").encode()
    data = saved(small, "JPEG", exif=camera_exif(3), xmp=xmp)
    assert np.array_equal(read(data).pixels, np.asarray(Image.open(io.BytesIO(data)))[::-1, ::-1])


@pytest.mark.parametrize(
    "xmp",
    [
        b'<!DOCTYPE x [<!ENTITY a "aaaaaaaaaa"><!ENTITY b "&a;&a;&a;&a;&a;&a;">]><x>&b;</x>',
        b'<!DOCTYPE x SYSTEM "file:///etc/passwd"><x/>',
        b"<x><y></x>",
        b"no XML",
        '<?xml version="1.0" encoding="UTF-16"?><x tiff:Orientation="6"/>'.encode("utf-16"),
        b"<x tiff:Orientation='&#54;'/>",
    ],
)
def test_xmp_that_is_damaged_or_declares_entities_is_left_out(small, xmp):
    source = read(saved(small, "WEBP", lossless=True, xmp=xmp), keep_exif=True)
    assert np.array_equal(source.pixels, np.asarray(small))
    assert source.sections == ()
    assert len(source.notes) == 1


@pytest.mark.parametrize("endian", ["<", ">"])
def test_exif_loses_its_thumbnail_and_has_the_dimensions_of_the_turned_image(small, endian):
    exif = camera_exif(6)
    exif.endian = endian
    exif.get_ifd(0x8769).update({0xA002: 64, 0xA003: 48})
    exif = exif.tobytes().removeprefix(b"Exif\0\0")
    start = len(exif)
    thumbnail = saved(small.resize((16, 12)), "JPEG")
    fields = ((0x0112, 3, 6 if endian == "<" else 6 << 16), (0x0201, 4, start + 42), (0x0202, 4, len(thumbnail)))
    directory = struct.pack(endian + "H", 3) + b"".join(
        struct.pack(endian + "HHII", tag, kind, 1, v) for tag, kind, v in fields
    )
    link = 8 + 2 + 12 * struct.unpack(endian + "H", exif[8:10])[0]
    exif = exif[:link] + struct.pack(endian + "I", start) + exif[link + 4 :] + directory + bytes(4) + thumbnail
    assert parsed_exif(exif).get_ifd(ExifTags.IFD.IFD1)[0x0202] == len(thumbnail)
    kept = extras(read(saved(small, "PNG", exif=exif), keep_exif=True)).exif
    assert len(kept) <= start
    again = parsed_exif(kept)
    assert again.get_ifd(ExifTags.IFD.IFD1) == {}
    details = again.get_ifd(0x8769)
    assert (again[0x0112], details[0xA002], details[0xA003], details[0x927C]) == (1, 48, 64, b"notes of the camera")


@pytest.mark.parametrize("seed", range(40))
def test_any_exif_can_be_mended(seed):
    rng = np.random.default_rng(seed)
    exif = bytearray(camera_exif(6).tobytes().removeprefix(b"Exif\0\0"))
    for position in rng.integers(4, len(exif), 12):
        exif[position] = rng.integers(256)
    assert len(mend_exif(bytes(exif[: rng.integers(8, len(exif))]), 5, 7)) <= len(exif)


@pytest.mark.parametrize("exif", [b"MM\0*\xff\xff\xff\xff", b"II*\0\x08\0\0\0\xff\xff"])
def test_exif_without_an_orientation_stays_unchanged(exif):
    assert upright_exif(exif) == exif
    for other in (b"XX" + exif[2:], exif[:7], b"II", b""):
        assert upright_exif(other) is None


@pytest.mark.filterwarnings("ignore:Corrupt EXIF data")
def test_an_image_with_damaged_exif_can_be_read(small):
    data = saved(small, "JPEG", exif=b"Exif\0\0II*\0\x08\0\0\0\x05\0" + b"\xff" * 7)
    assert read(data).pixels.shape == (48, 64, 3)
    assert read(saved(small, "JPEG", exif=b"Exif\0\0nonsense"), keep_exif=True).sections == ()
    source = read(saved(small, "WEBP", exif=b"Exif\0\0nonsense"), keep_exif=True)
    assert len(source.notes) == 1
    assert "EXIF" in source.notes[0]
    assert source.sections == ()


def with_gradient_alpha(small: Image.Image) -> tuple[Image.Image, np.ndarray]:
    alpha = np.asarray(Image.linear_gradient("L").resize(small.size))
    image = small.copy()
    image.putalpha(Image.fromarray(alpha))
    return image, alpha


@pytest.mark.parametrize("kind", ["PNG", "WEBP", "TIFF"])
def test_alpha_is_kept_exactly(small, kind):
    image, alpha = with_gradient_alpha(small)
    source = read(saved(image, kind, **({"lossless": True, "exact": True} if kind == "WEBP" else {})))
    assert np.array_equal(extras(source).alpha, alpha)
    assert np.array_equal(source.pixels[alpha > 0], np.asarray(small)[alpha > 0])
    assert np.array_equal(read_source(image).pixels, read(saved(image, "PNG")).pixels)


def test_alpha_of_other_modes(small):
    _, alpha = with_gradient_alpha(small)
    grey_alpha = Image.merge("LA", (small.convert("L"), Image.fromarray(alpha)))
    assert np.array_equal(extras(read(saved(grey_alpha, "PNG"))).alpha, alpha)
    palette = small.quantize(4, dither=Image.Dither.NONE)
    values = np.array([0, 90, 255, 255], np.uint8)
    source = read(saved(palette, "PNG", transparency=values.tobytes()))
    assert np.array_equal(extras(source).alpha, values[np.asarray(palette)])
    source = read(saved(palette, "GIF", transparency=2))
    assert np.array_equal(extras(source).alpha == 0, np.asarray(palette) == 2)
    red = small.getpixel((5, 5))
    source = read(saved(small, "PNG", transparency=red))
    assert np.array_equal(extras(source).alpha == 0, (np.asarray(small) == red).all(2))
    grey = small.convert("L")
    source = read(saved(grey, "PNG", transparency=grey.getpixel((5, 5))))
    assert np.array_equal(extras(source).alpha == 0, np.asarray(grey) == grey.getpixel((5, 5)))
    bits = small.convert("1")
    source = read(saved(bits, "PNG", transparency=0))
    assert np.array_equal(extras(source).alpha == 255, np.asarray(bits))


def test_alpha_of_16_bits(small):
    deep = np.dstack([RAMP, RAMP[::-1], RAMP[:, ::-1], RAMP])
    source = read(png16(4, deep))
    assert np.abs(extras(source).alpha.astype(int) - RAMP // 257).max() <= 1
    source = read(png16(1, RAMP, transparent=struct.pack(">H", RAMP[7, 7])))
    assert [tuple(position) for position in np.argwhere(extras(source).alpha == 0)] == [(7, 7)]
    source = read(png16(3, deep[..., :3], transparent=struct.pack(">3H", *deep[7, 7, :3])))
    assert [tuple(position) for position in np.argwhere(extras(source).alpha == 0)] == [(7, 7)]


@pytest.mark.parametrize("depth", [1, 2, 4, 8])
def test_a_transparent_grey_has_the_depth_of_the_file(depth):
    levels = np.arange(8) % (1 << depth)
    bits = (levels[:, None] >> np.arange(depth)[::-1]) & 1
    row = np.packbits(bits).tobytes()
    for key in {0, 1, (1 << depth) - 2, (1 << depth) - 1}:
        source = read(png_file(8, depth, 0, [row], chunk(b"tRNS", struct.pack(">H", key))))
        assert source.greyness == GREY
        visible = levels != key
        alpha = extras(source).alpha
        assert np.array_equal(np.full(8, 255) if alpha is None else alpha[0], np.where(visible, 255, 0))
        assert np.array_equal(source.pixels[0, visible, 0], levels[visible] * 255 // ((1 << depth) - 1))


def test_a_transparent_colour_of_16_bits_is_compared_in_all_bits():
    key = (0x1000, 0x8000, 0xF000)
    values = np.array([[key, (0, 0, 0), (0x1000, 0x8000, 0xF001), (0x1001, 0x8000, 0xF000), (0xFFFF, 0, 0)]])
    data = png16(3, values, transparent=struct.pack(">3H", *key))
    source = read(data)
    assert extras(source).alpha.tolist() == [[0, 255, 255, 255, 255]]
    assert np.abs(source.pixels[0, 1:] - values[0, 1:] / 257).max() <= 1
    loaded = load_image(Image.open(io.BytesIO(data)))  # without its low bytes
    assert extras(read_source(loaded)).alpha.tolist() == [[0, 255, 0, 0, 255]]


def test_alpha_of_orientation_6_and_16_bits_is_turned():
    values = np.arange(6 * 3).reshape(2, 3, 3) * 3000
    exif = camera_exif(6).tobytes().removeprefix(b"Exif\0\0")
    rows = [row.tobytes() for row in values.astype(">u2").reshape(2, -1)]
    data = png_file(3, 16, 2, rows, chunk(b"tRNS", struct.pack(">3H", *values[0, 0])), chunk(b"eXIf", exif))
    assert extras(read(data)).alpha.tolist() == [[255, 0], [255, 255], [255, 255]]


@pytest.mark.parametrize(("bits", "photometric"), [(16, 0), (16, 1), (12, 1), (8, 0), (8, 1)])
def test_grey_values_of_a_tiff_have_the_range_of_its_bits(bits, photometric):
    values = np.array([0, 1, 2, 3, 4, 5, 6, 7]) * ((1 << bits) - 1) // 7
    packed = values.astype("<u2").tobytes() if bits == 16 else values.astype(np.uint8).tobytes()
    if bits == 12:
        packed = np.packbits((values[:, None] >> np.arange(12)[::-1]) & 1).tobytes()
    source = read(tiff_file(packed, 4, 2, bits, photometric))
    shown = np.round(values / ((1 << bits) - 1) * 255).reshape(2, 4)
    assert difference(source, (255 - shown if photometric == 0 else shown)[..., None]).max() <= 1
    assert source.greyness == GREY


def test_a_bitmap_of_photoshop_has_black_as_1():
    header = b"8BPS\0\1" + bytes(6) + struct.pack(">HIIHH", 1, 1, 8, 1, 0) + bytes(12)
    assert read(header + b"\0\0\xf0").pixels[0, :, 0].tolist() == [0, 0, 0, 0, 255, 255, 255, 255]


@pytest.mark.parametrize(("kind", "unused"), [("BMP", True), ("TGA", True), ("PNG", False), ("WEBP", False)])
def test_an_alpha_channel_of_zeros_has_a_note(small, kind, unused):
    image = small.copy()
    image.putalpha(0)
    if kind == "BMP":  # version 5, whose masks name an alpha channel
        pixels = np.asarray(image)[::-1, :, [2, 1, 0, 3]].tobytes()
        masks = struct.pack("<4I", 0xFF0000, 0xFF00, 0xFF, 0xFF000000)
        fields = struct.pack("<3I2H6I", 124, 64, 48, 1, 32, 3, len(pixels), 0, 0, 0, 0)
        header = fields + masks + b"BGRs" + bytes(124 - len(fields + masks) - 4)
        data = b"BM" + struct.pack("<3I", 138 + len(pixels), 0, 138) + header + pixels
    else:
        data = saved(image, kind, **({"lossless": True, "exact": True} if kind == "WEBP" else {}))
    source = read(data)
    assert len(source.notes) == 1
    if unused:
        assert source.sections == ()
        assert np.array_equal(source.pixels, np.asarray(small))
    else:
        assert (extras(source).alpha == 0).all()


def test_an_opaque_alpha_channel_is_dropped(small):
    image = small.copy()
    image.putalpha(255)
    source = read(saved(image, "PNG"))
    assert source.sections == ()
    assert np.array_equal(source.pixels, np.asarray(small))


def test_transparency_is_laid_on_a_background(small):
    image, alpha = with_gradient_alpha(small)
    source = read(saved(image, "PNG"), background="#0000ff")
    assert source.sections == ()
    opacity = alpha[..., None] / 255
    assert np.abs(source.pixels - (opacity * np.asarray(small) + (1 - opacity) * [0, 0, 255])).max() <= 1
    with pytest.raises(ImageError, match="nocolour"):
        read(saved(image, "PNG"), background="nocolour")


def test_invisible_pixels_become_smooth_colours_of_their_surroundings(small):
    visible = np.zeros((48, 64, 1), bool)
    visible[10:30, 20:50] = True
    alpha = Image.fromarray(np.where(visible[..., 0], 255, 0).astype(np.uint8))
    results = []
    for hidden in (np.random.default_rng(0).integers(0, 256, (48, 64, 3)), np.zeros(3)):
        image = Image.fromarray(np.where(visible, np.asarray(small), hidden).astype(np.uint8))
        image.putalpha(alpha)
        results.append(read(saved(image, "PNG")).pixels)
    assert np.array_equal(results[0], results[1])
    shown = np.asarray(small)[visible[..., 0]]
    assert np.array_equal(results[0][visible[..., 0]], shown)
    assert ((results[0] >= shown.min(0)) & (results[0] <= shown.max(0))).all()
    assert np.abs(np.diff(results[0][30:].astype(int), axis=0)).max() <= 8


def test_an_image_without_visible_pixels_has_one_colour():
    source = read(saved(Image.new("RGBA", (37, 5), (9, 8, 7, 0)), "PNG"))
    assert (source.pixels == source.pixels[0, 0]).all()
    assert (extras(source).alpha == 0).all()


def test_16_bits_are_rounded_to_8_with_a_note():
    expected = np.round(RAMP / 257)[..., None]
    for data in (png16(1, RAMP), saved(Image.fromarray(RAMP.astype(np.uint16)), "TIFF"), pgm16(RAMP)):
        assert difference(read(data), expected).max() == 0
        assert len(read(data).notes) == 1
    colour = np.dstack([RAMP, RAMP[::-1], RAMP[:, ::-1]])
    assert np.abs(read(png16(3, colour)).pixels - colour / 257).max() <= 1
    assert len(read(png16(3, colour)).notes) == 1
    assert len(read(b"P6 64 48 65535\n" + colour.astype(">u2").tobytes()).notes) == 1
    clear = png16(2, np.dstack([RAMP, RAMP[::-1]]))
    assert read(clear).greyness == GREY
    assert difference(read(clear), expected)[RAMP[::-1] > 255].max() <= 1


@pytest.mark.parametrize("kind", [np.float32, np.int32])
def test_values_of_unknown_range_are_refused(kind):
    with pytest.raises(ImageError):
        read(saved(Image.fromarray(RAMP.astype(kind)), "TIFF"))


def test_losses_are_noted(small):
    assert len(read(saved(small.convert("CMYK"), "JPEG")).notes) == 1
    for kind in ("PNG", "JPEG", "TIFF"):
        assert read(saved(small, kind)).notes == ()


def test_greyness_is_recognised(small):
    grey = small.convert("L")
    for image in (grey, small.convert("1"), Image.merge("LA", (grey, Image.new("L", grey.size, 90)))):
        assert read(saved(image, "PNG")).greyness == GREY
    assert read(png16(1, RAMP)).greyness == GREY
    assert read(saved(grey, "PNG"), background="white").greyness == GREY
    assert read(saved(grey.convert("RGB"), "PNG")).greyness == NEUTRAL
    assert read_source(np.asarray(grey.convert("RGB"))).greyness == NEUTRAL
    clear = Image.merge("LA", (grey, Image.new("L", grey.size, 90)))
    assert read(saved(clear, "PNG"), background="red").greyness == COLOURED
    assert read(saved(clear, "PNG"), background="white").greyness == GREY
    spot = grey.convert("RGB")
    spot.putpixel((5, 5), (9, 9, 10))
    for image in (small, spot):
        assert read(saved(image, "PNG")).greyness == read_source(np.asarray(image)).greyness == COLOURED


@pytest.mark.parametrize(
    ("mode", "kind"), [("L", "PNG"), ("P", "PNG"), ("P", "GIF"), ("1", "PNG"), ("1", "TIFF"), ("YCbCr", "JPEG")]
)
def test_other_modes_are_converted_as_pillow_does(small, mode, kind):
    data = saved(small.convert(mode), kind)
    source = read(data)
    assert np.array_equal(source.pixels, np.asarray(Image.open(io.BytesIO(data)).convert("RGB")))
    assert source == replace(source, sections=(), notes=(), space=0)


@pytest.mark.parametrize(("kind", "options"), [("GIF", {}), ("WEBP", {"lossless": True}), ("PNG", {}), ("TIFF", {})])
def test_the_first_frame_of_an_animation_is_read_with_a_note(small, kind, options):
    frames = [small.rotate(90 * turn).quantize(16).convert("RGB") for turn in range(3)]
    data = saved(frames[0], kind, save_all=True, append_images=frames[1:], **options)
    source = read(data)
    assert len(source.notes) == 1
    assert difference(source, frames[0]).mean() < 1
    image = load_image(open_image(data))
    image.seek(2)
    later = read_source(image)
    assert len(later.notes) == 1
    assert later.notes != source.notes
    assert difference(later, frames[2]).mean() < 1


def test_images_of_an_mpo_are_noted_except_previews(small):
    data = saved(small, "MPO", save_all=True, append_images=[small.resize((32, 24))])
    assert len(read(data).notes) == 1
    second = data.index(b"MPF\0") + 4 + 50 + 16  # the second entry of Pillow's index, after three tags
    preview = data[:second] + struct.pack("<I", 0x010001) + data[second + 4 :]
    assert read(preview).notes == ()
    ultra_hdr = b'<x:xmpmeta xmlns:hdrgm="http://ns.adobe.com/hdr-gain-map/1.0/"/>'
    for data in (saved(small, "MPO", save_all=True, append_images=[small], xmp=ultra_hdr), saved(small, "JPEG", xmp=ultra_hdr)):
        (note,) = read(data).notes
        assert "gain map" in note


def test_a_damaged_profile_is_left_out_with_a_note(small):
    profile = bytes(70_000)  # two segments of a JPEG
    data = saved(small, "JPEG", icc_profile=profile)
    start = data.index(b"ICC_PROFILE\0\2") - 4
    size = int.from_bytes(data[start + 2 : start + 4], "big")
    damaged = png_file(1, 8, 0, [b"a"], chunk(b"iCCP", b"name\0\0no stream"))
    for file in (data[:start] + data[start + 2 + size :], damaged):
        source = read(file)
        assert source.sections == ()
        (note,) = source.notes
        assert "profile" in note


def test_avif_keeps_profile_and_exif(small):
    if not features.check("avif"):
        pytest.skip("this Pillow has no AVIF")
    data = saved(small, "AVIF", exif=camera_exif(6), icc_profile=profiles.red_and_green_swapped(), quality=90)
    source = read(data, keep_exif=True)
    assert source.pixels.shape == (64, 48, 3)
    assert extras(source).icc == profiles.red_and_green_swapped()
    exif = parsed_exif(extras(source).exif)
    assert (exif[0x0112], exif[0x010F]) == (1, "Maker")
    assert difference(source, np.rot90(np.asarray(small), -1)).mean() < 6


@pytest.mark.parametrize(("module", "ending", "kind"), [("pillow_jxl", ".jxl", "JXL"), ("pillow_heif", ".heic", "HEIF")])
def test_formats_of_installed_plugins_are_read(small, module, ending, kind):
    pytest.importorskip(module)
    load_plugin(plugin_for(ending=ending))
    assert difference(read(saved(small, kind, quality=95)), small).mean() < 6


@pytest.mark.parametrize(
    ("head", "package"),
    [
        (b"\0\0\0\x18ftypheic\0\0\0\0mif1heic", "pillow-heif"),
        (b"\xff\x0a\x7f\x02", "pillow-jxl-plugin"),
        (b"just text", ""),
        (b"", ""),
    ],
)
def test_errors_name_the_missing_plugin(head, package, monkeypatch):
    monkeypatch.setattr("codec.image.opening.load_plugin", lambda *_, **__: None)  # none is installed
    Image.init()
    monkeypatch.setattr(Image, "OPEN", {name: opener for name, opener in Image.OPEN.items() if name not in ("JXL", "HEIF")})
    with pytest.raises(ImageError) as caught:
        open_image(head)
    assert f"install {package}" in str(caught.value) if package else "install" not in str(caught.value)


def test_plugins_are_imported_by_signature(monkeypatch):
    imported = []
    monkeypatch.setattr("codec.image.plugins.importlib.import_module", lambda name: imported.append(name) or object())
    for head in (b"\0\0\0\x18ftypavif", b"\0\0\0\x18ftypheic", b"\0\0\0\x0cJXL \r\n\x87\n"):
        with pytest.raises(ImageError):
            open_image(head)
    assert imported == [plugin.module for plugin in PLUGINS]


@pytest.mark.parametrize("kind", ["PNG", "JPEG", "GIF", "WEBP", "TIFF", "BMP", "PPM"])
def test_damaged_images_raise_only_image_errors(small, kind):
    data = saved(small, kind)
    rng = np.random.default_rng(1)
    refused = 0
    for attempt in range(60):
        broken = bytearray(data[: int(rng.integers(len(data)))] if attempt % 2 else data)
        for _ in range(attempt % 5):
            if broken:
                broken[int(rng.integers(min(len(broken), 200)))] = int(rng.integers(256))
        try:
            assert read(bytes(broken), 10**6).pixels.size > 0
        except ImageError as error:
            refused += 1
            assert "\n" not in str(error)
        except UserWarning:  # Pillow's own; only tests turn it into an error
            pass
    assert refused > 10


def test_size_is_checked_before_pixels_are_read():
    data = bytearray(saved(Image.new("L", (20, 10)), "PNG"))
    data[16:24] = struct.pack(">2I", 30000, 20000)
    data[29:33] = struct.pack(">I", zlib.crc32(data[12:29]))
    for call in (
        lambda: open_image(bytes(data)),
        lambda: read_source(np.zeros((11, 10, 3), np.uint8), max_pixels=100),
        lambda: read_source(Image.new("L", (11, 10)), max_pixels=100),
    ):
        with pytest.raises(ImageError) as caught:
            call()
        assert caught.value.advice == ("max_pixels",)


def icon_of(content: bytes) -> bytes:
    """An ICO file whose directory says 16x16, whatever its content."""
    return struct.pack("<3H4B2H2I", 0, 1, 1, 16, 16, 0, 0, 1, 32, len(content), 22) + content


def apple_icon_of(content: bytes) -> bytes:
    """An ICNS file that promises 16x16, whatever its content."""
    return struct.pack(">4sI4sI", b"icns", 16 + len(content), b"icp4", 8 + len(content)) + content


@pytest.mark.filterwarnings("ignore:Image was not the expected size")
@pytest.mark.parametrize("kind", sorted({*WRITTEN, "GIF", "ICO in ICO", "PNG in ICO", "PNG in ICNS"} - {"HEIF"}))
def test_no_decoder_runs_before_the_size_is_checked(kind, photo, monkeypatch):
    image = photo.crop((0, 0, 120, 100))
    if kind == "JXL":
        pillow_jxl = pytest.importorskip("pillow_jxl")
    if " in " in kind:
        data = {"ICO": icon_of, "ICNS": apple_icon_of}[kind.split()[-1]](saved(image, "PNG"))
        if kind.startswith("ICO"):
            data = saved(image, "ICO", sizes=[(120, 100)])
    else:
        data = saved(image, kind)
    if kind != "PNG in ICNS":  # Pillow refuses sizes that no such icon has
        assert read(data, 12_000).pixels.shape == (100, 120, 3)
    decoders = []
    decoder = Image._getdecoder
    monkeypatch.setattr(Image, "_getdecoder", lambda *given: decoders.append(given) or decoder(*given))
    if kind == "JXL":
        monkeypatch.setattr(pillow_jxl.JpegXLImagePlugin, "Decoder", lambda **_: decoders.append("jxl"))
    with pytest.raises(ImageError) as caught:
        read(data, 11_999)
    assert (caught.value.advice, decoders) == (("max_pixels",), [])


@pytest.mark.parametrize("size", [(8, 8), (256, 256), (257, 3), (3, 700), (320, 200), (9000, 20), (1200, 1000)])
@pytest.mark.parametrize("container", [False, True])
def test_the_size_of_a_jpeg_xl_file_is_read_from_its_header(size, container):
    pytest.importorskip("pillow_jxl")
    data = saved(Image.new("L", size), "JXL", use_container=container)
    assert jxl_size(data) == size
    if not container:  # in parts, after a box of metadata with a size of 64 bits
        parts = [struct.pack(">I4sI", 12 + len(part), b"jxlp", n) + part for n, part in enumerate((data[:4], data[4:]))]
        head = b"\0\0\0\x0cJXL \r\n\x87\n" + struct.pack(">I4sQ4x", 1, b"xml ", 20)
        assert jxl_size(head + b"".join(parts)) == size
    jxl_size(data[:9])  # a cut header


POSTSCRIPT = b"%!PS-Adobe-3.0 EPSF-3.0\n%%BoundingBox: 0 0 9 9\n%%EndComments\nshowpage\n"


def test_formats_that_start_programs_or_open_other_files_are_refused(small, monkeypatch):
    monkeypatch.setattr("subprocess.Popen", lambda *_, **__: pytest.fail("a program was started"))
    iptc = b"".join(struct.pack(">3BH", 0x1C, *key, len(value)) + value for key, value in (
        ((3, 20), (9).to_bytes(4)), ((3, 30), (9).to_bytes(4)), ((3, 60), b"\1\1"), ((3, 120), b"\5"), ((8, 10), POSTSCRIPT),
    ))  # fmt: skip
    for data in (POSTSCRIPT, iptc, saved(small.convert("1"), "XBM"), saved(small.convert("L"), "SPIDER")):
        with pytest.raises(ImageError) as caught:
            read(data)
        assert caught.value.advice == ()
    assert not {".eps", ".ps", ".wmf", ".pdf", ".iim", ".h5"} & (readable_endings() | writable_endings())
    assert {".jpg", ".mpo", ".png", ".tif", ".heic", ".jxl", ".ico"} <= readable_endings()
    assert not {".ico", ".icns", ".gif", ".xbm"} & writable_endings()


def test_pillows_settings_are_restored(small):
    def settings() -> tuple[object, ...]:
        return Image.MAX_IMAGE_PIXELS, ImageFile.LOAD_TRUNCATED_IMAGES, PngImagePlugin.MAX_TEXT_CHUNK

    before = settings()
    load_image(open_image(saved(small, "PNG")))
    load_image(open_image(saved(small, "JPEG")[:-2]), allow_damaged=True)
    with pytest.raises(ImageError):
        open_image(b"none")
    assert before == settings()


def test_threads_with_other_settings_of_pillow_wait():
    with ThreadPoolExecutor() as pool:
        with pillow_settings(100, allow_damaged=True):
            with pillow_settings(100, allow_damaged=True):
                other = pool.submit(open_image, saved(Image.new("L", (30, 40)), "PNG"), 5000)
            with pytest.raises(TimeoutError):
                other.result(0.2)
            assert ImageFile.LOAD_TRUNCATED_IMAGES
        assert other.result(10).size == (30, 40)
    assert not ImageFile.LOAD_TRUNCATED_IMAGES


@pytest.mark.parametrize("size", [(1 << 20) + 1, 1 << 24])
def test_long_profiles_and_texts_of_a_png_are_read(size, small):
    """Pillow refuses more than 1 MiB, unless its limits are raised."""
    profile = profiles.red_and_green_swapped()
    profile += bytes(size - len(profile))
    texts = PngImagePlugin.PngInfo()
    texts.add_text("workflow", "x" * size, zip=True)
    data = saved(small, "PNG", icc_profile=profile, pnginfo=texts)
    assert extras(read(data)).icc == profile
    assert extras(read(data, strip=True)).icc is None
    texts.add_text("bomb", "x" * ((1 << 24) + 2), zip=True)
    with pytest.raises(ImageError) as caught:
        read(saved(small, "PNG", pnginfo=texts))
    assert caught.value.advice == ("allow_damaged",)


@pytest.mark.parametrize("kind", [b"pHYs", b"tEXt", b"gAMA"])
def test_a_wrong_checksum_of_metadata_is_ignored(kind, small):
    texts = PngImagePlugin.PngInfo()
    texts.add(b"gAMA", struct.pack(">I", 45455))
    texts.add_text("Author", "Ann")
    data = saved(small, "PNG", dpi=(72, 72), pnginfo=texts)
    start = data.index(kind)
    end = start + 4 + int.from_bytes(data[start - 4 : start])
    source = read(data[:end] + b"none" + data[end + 4 :])
    assert np.array_equal(source.pixels, small)
    assert len(source.notes) == 1
    for critical in (16, 29):  # the width and the checksum of the header
        with pytest.raises(ImageError):
            read(data[:critical] + b"\1" + data[critical + 1 :])


@pytest.mark.parametrize(("kind", "kept"), [("JPEG", 1.0), ("JPEG", 0.5), ("PNG", 0.6), ("BMP", 0.5), ("GIF", 0.7)])
def test_damaged_images_are_read_only_on_request(kind, kept, photo):
    image = photo.crop((0, 0, 240, 200))
    data = saved(image, kind)
    data = data[: int(kept * len(data)) - 2]
    with pytest.raises(ImageError) as caught:
        read(data)
    assert caught.value.advice == ("allow_damaged",)
    source = read(data, allow_damaged=True)
    assert len(source.notes) == 1
    rows = slice(0, 8) if kind != "BMP" else slice(-8, None)  # BMP begins with the lowest row
    assert difference(source, image)[rows].mean() < 8
    assert not read(saved(image, kind), allow_damaged=True).notes
    with pytest.raises(ImageError):
        read(data[:20], allow_damaged=True)


def test_the_error_of_a_mode_names_it_and_premultiplied_grey_is_read(small):
    image = Image.new("LA", (8, 6), (100, 128)).convert("La")
    source = read_source(image)
    assert (source.pixels == image.convert("LA").getpixel((0, 0))[0]).all()
    assert (extras(source).alpha == 128).all()
    for mode in {*Image.MODES, "I;16L", "I;16B", "RGBX", "RGBa"}:
        try:
            assert read_source(Image.new(mode, (8, 6))).pixels.shape == (6, 8, 3)
        except ImageError as error:
            assert "damaged" not in str(error)
            assert mode in ("F", "I")


@pytest.mark.filterwarnings("error")
@pytest.mark.parametrize("kind", ["TIFF", "PNG"])
def test_only_our_limit_applies(small, kind, monkeypatch):
    """Pillow warns and refuses above its own limit; for TIFF, it checks again when it loads."""
    monkeypatch.setattr(Image, "MAX_IMAGE_PIXELS", 50)
    data = saved(small, kind)
    assert np.array_equal(load_image(open_image(data, 100_000)), small)
    assert np.array_equal(read_source(open_image(data, 100_000)).pixels, small)
    assert Image.MAX_IMAGE_PIXELS == 50


def test_thin_images_are_limited_by_their_blocks():
    check_size(65535, 1, 4_200_000)  # 256 blocks of 65,536 pixels are four times as many
    check_size(100, 100, 10_000)  # a single block is never too thin
    check_size(3000, 1)
    check_size(65535, 1)
    check_size(100_000, 70)
    for width, height, *limit in ((65535, 1, 4_190_000), (100_000, 1), (2_000_000, 1), (1, 100_000)):
        with pytest.raises(ImageError) as caught:
            check_size(width, height, *limit)
        assert caught.value.advice == ("max_pixels",)
    check_size(100_000, 1, 1_000_000_000)
    check_size(16_000, 16_000)


def test_grey_on_a_coloured_background_loses_its_grey_profile(codec, small):
    """A file that said 'grey, gamma 2.2' of coloured pixels could not be read."""
    clear = small.convert("LA")
    clear.putalpha(128)
    stream = io.BytesIO()
    clear.save(stream, "PNG", icc_profile=profile_of(4))
    encoded = codec.encode(stream.getvalue(), background="#a02000")
    assert (encoded.file.greyness, encoded.file.space) == (COLOURED, 0)
    assert codec.decode(encoded.data).image.mode == "RGB"
