"""Images of many formats and modes: their pixels, and the metadata that is kept of them."""

from __future__ import annotations

import io
import struct
import zlib
from dataclasses import replace

import numpy as np
import pytest
from PIL import Image, ImageCms, TiffImagePlugin, features

from bitstream.container import COLOURED, GREY, NEUTRAL
from codec.errors import ImageError
from codec.image.metadata import Extras, from_sections, upright_exif
from codec.image.opening import check_size, load_image, open_image
from codec.image.plugins import PLUGINS, load_plugin, plugin_for
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


def png16(channels: int, values: np.ndarray, *, transparent: bytes = b"") -> bytes:
    """A PNG file of 16 bits per value, (H, W) or (H, W, channels), which Pillow does not write."""
    height, width = values.shape[:2]

    def chunk(kind: bytes, content: bytes) -> bytes:
        return struct.pack(">I", len(content)) + kind + content + struct.pack(">I", zlib.crc32(kind + content))

    rows = values.astype(">u2").reshape(height, -1)
    header = struct.pack(">2I5B", width, height, 16, {1: 0, 2: 4, 3: 2, 4: 6}[channels], 0, 0, 0)
    body = zlib.compress(b"".join(b"\0" + row.tobytes() for row in rows))
    trns = chunk(b"tRNS", transparent) if transparent else b""
    return b"\x89PNG\r\n\x1a\n" + chunk(b"IHDR", header) + trns + chunk(b"IDAT", body) + chunk(b"IEND", b"")


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
    assert extras(source).alpha is None or extras(source).alpha[7, 7] == 0


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


def test_previews_are_not_frames(small):
    data = saved(small, "MPO", save_all=True, append_images=[small.resize((32, 24))])
    assert read(data).notes == ()


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
    monkeypatch.setattr(Image, "ID", [name for name in Image.ID if name not in ("JXL", "HEIF")])
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


def test_pillows_limit_is_restored(small):
    before = Image.MAX_IMAGE_PIXELS
    load_image(open_image(saved(small, "PNG")))
    with pytest.raises(ImageError):
        open_image(b"none")
    assert before == Image.MAX_IMAGE_PIXELS


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
