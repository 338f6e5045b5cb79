"""Image files: formats, depths, damage and limits."""

from __future__ import annotations

import io
import struct
import tracemalloc
import zlib
from concurrent.futures import ThreadPoolExecutor
from dataclasses import replace

import numpy as np
import pytest
from PIL import Image, ImageFile, PngImagePlugin, features

from bitstream.container import COLOURED, GREY, NEUTRAL
from codec.errors import ImageError
from codec.image.opening import load_image, open_image, pillow_settings
from codec.image.plugins import (
    PLUGINS,
    WRITTEN,
    JxlHeader,
    has_jxl_gain_map,
    jxl_header,
    load_plugin,
    plugin_for,
    readable_endings,
    writable_endings,
)
from codec.image.profiles import profile_of
from codec.image.source import read_source
from codec.limits import check_size
from tests.helpers import profiles
from tests.helpers.image_files import (
    POSTSCRIPT,
    RAMP,
    apple_icon_of,
    camera_exif,
    chunk,
    difference,
    extras,
    icon_of,
    parsed_exif,
    pgm16,
    png16,
    png_file,
    read,
    saved,
)


@pytest.fixture(scope="module")
def small(photo) -> Image.Image:
    return photo.crop((200, 100, 264, 148))


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
    assert jxl_header(data) == JxlHeader(*size, 0)
    assert jxl_header(saved(Image.new("LA", size), "JXL", use_container=container)) == JxlHeader(*size, 1)
    if not container:  # in parts, after a box of metadata with a size of 64 bits
        parts = [struct.pack(">I4sI", 12 + len(part), b"jxlp", n) + part for n, part in enumerate((data[:4], data[4:]))]
        head = b"\0\0\0\x0cJXL \r\n\x87\n" + struct.pack(">I4sQ4x", 1, b"xml ", 20)
        assert jxl_header(head + b"".join(parts)) == JxlHeader(*size, 0)
    jxl_header(data[:9])  # a cut header


def jxl_start(width: int, height: int, channels: int) -> bytes:
    """The start of a JPEG XL file that states this number of channels beyond colour, after all other optional fields."""
    fields = [(0, 1), *((2, 2), (height - 1, 18), (0, 3), (2, 2), (width - 1, 18)), (0, 1), (1, 1), (0, 3)]
    fields += [(1, 1), (1, 1), (9, 5), (3, 3)]  # intrinsic size, 80 pixels high
    fields += [(1, 1), (0, 1), (3, 2), (5, 12), (0, 3), (2, 2), (5, 10)]  # preview
    fields += [(1, 1), (2, 2), (29, 10), (0, 2), (3, 2), (7, 32), (1, 1)]  # animation
    fields += [(1, 1), (3, 2), (20, 6), (8, 4), (0, 1)]  # floats
    fields += [(3, 2), (channels - 1, 12)] if channels > 17 else [(2, 2), (channels - 2, 4)]
    bits, count = 0, 0
    for value, width in fields:
        bits, count = bits | value << count, count + width
    return b"\xff\x0a" + bits.to_bytes(-(-count // 8), "little")


def test_channels_of_a_jpeg_xl_file_are_limited_before_it_is_decoded(monkeypatch):
    pillow_jxl = pytest.importorskip("pillow_jxl")
    for channels in (2, 17, 18, 4096):
        assert jxl_header(jxl_start(5000, 3000, channels)) == JxlHeader(5000, 3000, channels)
    monkeypatch.setattr(pillow_jxl.JpegXLImagePlugin, "Decoder", lambda **_: pytest.fail("it was decoded"))
    load_plugin(plugin_for(ending=".jxl"))
    with pytest.raises(ImageError) as caught:
        open_image(jxl_start(1000, 1000, 4096))
    assert caught.value.advice == ("max_pixels",)


def test_the_gain_map_of_a_jpeg_xl_file_is_noted(small):
    pytest.importorskip("pillow_jxl")
    data = saved(small, "JXL", use_container=True)
    assert not read(data).notes
    (note,) = read(data + struct.pack(">I4s", 12, b"jhgm") + b"\0\0\0\0").notes
    assert "gain map" in note
    assert not has_jxl_gain_map(saved(small, "JXL"))


@pytest.mark.parametrize(("mode", "factor"), [("RGB", 1.5), ("L", 1.5), ("I;16", 2)])
def test_reading_takes_little_more_memory_than_the_pixels(mode, factor):
    """NumPy's own conversion of an image takes three times its size. Pillow's memory is not counted here."""
    image = Image.new(mode, (3000, 2000))
    tracemalloc.start()
    pixels = read_source(image).pixels
    peak = tracemalloc.get_traced_memory()[1]
    tracemalloc.stop()
    assert peak < factor * pixels.size


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
