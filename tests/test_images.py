"""Images of many formats and modes: their pixels, and the metadata that is kept of them."""

from __future__ import annotations

import io
import struct
import time

import numpy as np
import pytest
from PIL import ExifTags, Image, ImageCms, PngImagePlugin, TiffImagePlugin

from bitstream.container import GREY
from codec.errors import ImageError
from codec.image.metadata import fix_exif, upright_exif, upright_xmp
from codec.image.opening import load_image
from codec.image.source import read_source
from tests.helpers import profiles
from tests.helpers.image_files import (
    RAMP,
    RDF,
    TIFF_XML,
    UPRIGHT,
    XMP,
    camera_exif,
    chunk,
    difference,
    extras,
    parsed_exif,
    png16,
    png_file,
    read,
    saved,
    tiff_file,
    with_gradient_alpha,
)


@pytest.fixture(scope="module")
def small(photo) -> Image.Image:
    return photo.crop((200, 100, 264, 148))


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
    assert len(fix_exif(bytes(exif[: rng.integers(8, len(exif))]), 5, 7)) <= len(exif)


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
