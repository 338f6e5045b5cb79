"""Images of every kind, as real files, and what becomes of what they carry."""

from __future__ import annotations

import io
import struct
import zlib
from dataclasses import replace

import numpy as np
import pytest
from codec.image.reading import HELPERS, _import_helper, check_size, open_image, prepare, read_image, to_pixels, upright_exif
from PIL import Image, TiffImagePlugin, features

from bitstream.container import COLOURED, GREY, NEUTRAL
from codec.errors import ImageError, UsageError
from codec.image.metadata import Extras, from_sections
from codec.results import ImageOptions, Prepared
from tests.helpers import profiles

RAMP = np.arange(48 * 64, dtype=np.uint32).reshape(48, 64) * 21  # 16-bit values, all different
XMP = b'<x:xmpmeta xmlns:x="adobe:ns:meta/"><a tiff:Orientation="6"/><tiff:Orientation>6</tiff:Orientation></x:xmpmeta>'


@pytest.fixture(scope="module")
def small(photo) -> Image.Image:
    return photo.crop((200, 100, 264, 148))


def saved(image: Image.Image, kind: str, **options) -> bytes:
    stream = io.BytesIO()
    image.save(stream, kind, **options)
    return stream.getvalue()


def prepared(data: bytes, **options) -> Prepared:
    return prepare(read_image(data), ImageOptions(**options))


def extras(made: Prepared) -> Extras:
    return from_sections(made.sections, made.width, made.height)


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


def camera_exif(orientation: int) -> Image.Exif:
    exif = Image.Exif()
    exif[0x010F] = "Maker"
    exif[0x0112] = orientation
    exif.get_ifd(0x8825)[1] = "N"
    exif.get_ifd(0x8769)[0x927C] = b"notes of the camera"
    return exif


@pytest.mark.parametrize("orientation", range(1, 9))
@pytest.mark.parametrize("kind", ["JPEG", "PNG", "WEBP", "TIFF"])
def test_orientation_is_applied(small, kind, orientation):
    data = saved(small, kind, exif=camera_exif(orientation), **({"lossless": True} if kind == "WEBP" else {}))
    turns = {2: 0, 3: 3, 4: 1, 5: 5, 6: 4, 7: 6, 8: 2}  # FLIP_LEFT_RIGHT, ROTATE_180, ... as Pillow numbers them
    flips = {2: Image.Transpose.FLIP_LEFT_RIGHT, 3: Image.Transpose.ROTATE_180, 4: Image.Transpose.FLIP_TOP_BOTTOM,
             5: Image.Transpose.TRANSPOSE, 6: Image.Transpose.ROTATE_270, 7: Image.Transpose.TRANSVERSE,
             8: Image.Transpose.ROTATE_90}  # fmt: skip
    assert set(turns) == set(flips)
    plain = Image.open(io.BytesIO(saved(small, kind) if kind == "JPEG" else saved(small, "PNG")))
    expected = plain.transpose(flips[orientation]) if orientation > 1 else plain
    made = prepared(data)
    assert np.array_equal(made.pixels, np.asarray(expected))
    assert made.sections == ()


@pytest.mark.parametrize("kind", ["JPEG", "PNG", "WEBP", "TIFF"])
def test_an_rgb_profile_is_kept_byte_for_byte(small, kind):
    profile = profiles.red_and_green_swapped()
    data = saved(small, kind, icc_profile=profile)
    assert extras(prepared(data)).icc == profile
    assert np.array_equal(prepared(data).pixels, np.asarray(Image.open(io.BytesIO(data)).convert("RGB")))


def test_strip_converts_to_srgb(small):
    red, green, blue = np.asarray(small).transpose(2, 0, 1).astype(int)
    plain = prepared(saved(small, "PNG", icc_profile=profiles.srgb()), strip=True)
    assert plain.sections == ()
    assert np.abs(plain.pixels.astype(int) - np.asarray(small)).max() <= 1
    swapped = prepared(saved(small, "PNG", icc_profile=profiles.red_and_green_swapped()), strip=True)
    assert swapped.sections == ()
    assert np.abs(swapped.pixels.astype(int) - np.dstack([green, red, blue])).max() <= 2


def test_cmyk_goes_through_its_profile(small):
    inks = Image.fromarray(np.asarray(small.resize((4, 3)).resize((64, 48), 0)) // 128 * 255).convert("CMYK")
    assert np.array_equal(prepared(saved(inks, "TIFF")).pixels, np.asarray(inks.convert("RGB")))
    red, green, blue = np.asarray(inks.convert("RGB")).transpose(2, 0, 1).astype(int)
    for kind, off in (("TIFF", 12), ("JPEG", 40)):  # 8 bits of Lab are coarse, and JPEG spoils edges
        made = prepared(saved(inks, kind, icc_profile=profiles.cyan_and_magenta_swapped()))
        assert made.sections == ()  # it is sRGB now
        assert np.abs(made.pixels.astype(int) - np.dstack([green, red, blue])).max() <= off


def test_grey_goes_through_its_profile(small):
    grey = small.convert("L")
    value = np.asarray(grey) / 255
    light = np.where(value <= 0.0031308, 12.92 * value, 1.055 * value ** (1 / 2.4) - 0.055)
    for image in (grey, Image.merge("LA", (grey, Image.new("L", grey.size, 90)))):
        made = prepared(saved(image, "PNG", icc_profile=profiles.linear_grey()))
        assert extras(made).icc is None
        assert np.abs(made.pixels - (255 * light)[..., None]).max() <= 2


def test_lab_becomes_srgb(small):
    from PIL import ImageCms

    transform = ImageCms.buildTransform(ImageCms.createProfile("sRGB"), ImageCms.createProfile("LAB"), "RGB", "LAB")
    data = saved(ImageCms.applyTransform(small, transform), "TIFF")
    assert Image.open(io.BytesIO(data)).mode == "LAB"
    assert np.abs(prepared(data).pixels.astype(int) - np.asarray(small)).mean() < 2  # Lab in 8 bits is coarse


@pytest.mark.parametrize(
    ("mode", "profile", "note"),
    [
        ("RGB", b"no profile at all" * 20, "not for such pixels"),
        ("CMYK", profiles.linear_grey(), "not for such pixels"),
        ("RGB", profiles.cyan_and_magenta_swapped(), "not for such pixels"),
        ("CMYK", profiles.cyan_and_magenta_swapped()[:300], "cannot be used"),
    ],
)
def test_a_profile_that_cannot_be_is_left_out_aloud(small, mode, profile, note):
    image = small.convert(mode)
    made = prepared(saved(image, "TIFF", icc_profile=profile))
    assert made.sections == ()
    assert np.array_equal(made.pixels, np.asarray(image.convert("RGB")))
    assert len(made.notes) == 1 + (mode == "CMYK")
    assert note in made.notes[-1]


@pytest.mark.parametrize("kind", ["JPEG", "PNG", "WEBP"])
def test_exif_and_xmp_only_on_request(small, kind):
    exif = camera_exif(6)
    data = saved(small, kind, exif=exif, **({"xmp": XMP} if kind != "PNG" else {}))
    assert prepared(data).sections == ()
    kept = extras(prepared(data, keep_exif=True))
    original = exif.tobytes().removeprefix(b"Exif\0\0")
    assert [a for a, b in zip(kept.exif, original, strict=True) if a != b] == [1]  # nothing but the orientation
    again = Image.Exif()
    again.load(kept.exif)
    assert (again[0x0112], again[0x010F]) == (1, "Maker")
    assert again.get_ifd(0x8825) == {1: "N"}
    assert kept.xmp == (None if kind == "PNG" else XMP.replace(b'"6"', b'"1"').replace(b">6<", b">1<"))


def test_exif_of_tiff_files_leaves_the_file_itself_out(small):
    kept = extras(prepared(saved(small, "TIFF", exif=camera_exif(3).tobytes()), keep_exif=True))
    again = Image.Exif()
    again.load(kept.exif)
    assert again[0x010F] == "Maker"
    assert again.get_ifd(0x8825) == {1: "N"}
    assert TiffImagePlugin.STRIPOFFSETS not in again
    assert again.get(0x0112, 1) == 1


@pytest.mark.parametrize("exif", [b"MM\0*\xff\xff\xff\xff", b"II*\0\x08\0\0\0\xff\xff"])
def test_exif_that_says_nothing_is_left_as_it_is(exif):
    assert upright_exif(exif) == exif
    for other in (b"XX" + exif[2:], exif[:7], b"II", b""):
        assert upright_exif(other) is None


@pytest.mark.filterwarnings("ignore:Corrupt EXIF data")
def test_damaged_exif_does_not_stop_a_image(small):
    data = saved(small, "JPEG", exif=b"Exif\0\0II*\0\x08\0\0\0\x05\0" + b"\xff" * 7)
    assert prepared(data).pixels.shape == (48, 64, 3)
    assert prepared(saved(small, "JPEG", exif=b"Exif\0\0nonsense"), keep_exif=True).sections == ()
    made = prepared(saved(small, "WEBP", exif=b"Exif\0\0nonsense"), keep_exif=True)
    assert made.notes == ("its EXIF is damaged and was left out (SyntaxError)",)
    assert made.sections == ()


def half_clear(small: Image.Image) -> tuple[Image.Image, np.ndarray]:
    alpha = np.asarray(Image.linear_gradient("L").resize(small.size))
    image = small.copy()
    image.putalpha(Image.fromarray(alpha))
    return image, alpha


@pytest.mark.parametrize("kind", ["PNG", "WEBP", "TIFF"])
def test_alpha_is_kept_exactly(small, kind):
    image, alpha = half_clear(small)
    made = prepared(saved(image, kind, **({"lossless": True, "exact": True} if kind == "WEBP" else {})))
    assert np.array_equal(extras(made).alpha, alpha)
    assert np.array_equal(made.pixels[alpha > 0], np.asarray(small)[alpha > 0])


def test_alpha_of_other_modes(small):
    _, alpha = half_clear(small)
    grey_alpha = Image.merge("LA", (small.convert("L"), Image.fromarray(alpha)))
    assert np.array_equal(extras(prepared(saved(grey_alpha, "PNG"))).alpha, alpha)
    palette = small.quantize(4, dither=Image.Dither.NONE)
    values = np.array([0, 90, 255, 255], np.uint8)
    made = prepared(saved(palette, "PNG", transparency=values.tobytes()))
    assert np.array_equal(extras(made).alpha, values[np.asarray(palette)])
    made = prepared(saved(palette, "GIF", transparency=2))
    assert np.array_equal(extras(made).alpha == 0, np.asarray(palette) == 2)
    red = small.getpixel((5, 5))
    made = prepared(saved(small, "PNG", transparency=red))
    assert np.array_equal(extras(made).alpha == 0, (np.asarray(small) == red).all(2))
    grey = small.convert("L")
    made = prepared(saved(grey, "PNG", transparency=grey.getpixel((5, 5))))
    assert np.array_equal(extras(made).alpha == 0, np.asarray(grey) == grey.getpixel((5, 5)))
    bits = small.convert("1")
    made = prepared(saved(bits, "PNG", transparency=0))
    assert np.array_equal(extras(made).alpha == 255, np.asarray(bits))


def test_alpha_of_16_bits(small):
    deep = np.dstack([RAMP, RAMP[::-1], RAMP[:, ::-1], RAMP])
    made = prepared(png16(4, deep))
    assert np.abs(extras(made).alpha.astype(int) - RAMP // 257).max() <= 1
    made = prepared(png16(1, RAMP, transparent=struct.pack(">H", RAMP[7, 7])))
    assert [tuple(place) for place in np.argwhere(extras(made).alpha == 0)] == [(7, 7)]
    made = prepared(png16(3, deep[..., :3], transparent=struct.pack(">3H", *deep[7, 7, :3])))
    assert extras(made).alpha is None or extras(made).alpha[7, 7] == 0


def test_an_opaque_alpha_channel_is_dropped(small):
    image = small.copy()
    image.putalpha(255)
    made = prepared(saved(image, "PNG"))
    assert made.sections == ()
    assert np.array_equal(made.pixels, np.asarray(small))


def test_a_background_shows_through(small):
    image, alpha = half_clear(small)
    made = prepared(saved(image, "PNG"), background="#0000ff")
    assert made.sections == ()
    share = alpha[..., None] / 255
    assert np.abs(made.pixels - (share * np.asarray(small) + (1 - share) * [0, 0, 255])).max() <= 1
    with pytest.raises(ImageError, match="'nocolour' is not a colour"):
        prepared(saved(image, "PNG"), background="nocolour")


def test_what_nobody_sees_costs_nothing(small):
    """Whatever colours an image has where it is clear, the network gets the same, smooth ones."""
    seen = np.zeros((48, 64, 1), bool)
    seen[10:30, 20:50] = True
    alpha = Image.fromarray(np.where(seen[..., 0], 255, 0).astype(np.uint8))
    made = []
    for hidden in (np.random.default_rng(0).integers(0, 256, (48, 64, 3)), np.zeros(3)):
        image = Image.fromarray(np.where(seen, np.asarray(small), hidden).astype(np.uint8))
        image.putalpha(alpha)
        made.append(prepared(saved(image, "PNG")).pixels)
    assert np.array_equal(made[0], made[1])
    assert np.array_equal(made[0][seen[..., 0]], np.asarray(small)[seen[..., 0]])
    low, high = (np.asarray(small)[seen[..., 0]].min(0), np.asarray(small)[seen[..., 0]].max(0))
    assert ((made[0] >= low) & (made[0] <= high)).all()
    outside = np.abs(np.diff(made[0][30:].astype(int), axis=0)).max()
    assert outside <= 8  # neighbours hardly differ


def test_a_image_that_is_clear_all_over():
    made = prepared(saved(Image.new("RGBA", (37, 5), (9, 8, 7, 0)), "PNG"))
    assert (made.pixels == made.pixels[0, 0]).all()
    assert (extras(made).alpha == 0).all()


def test_deep_images_are_rounded():
    expected = np.round(RAMP / 257)[..., None]
    for data in (png16(1, RAMP), saved(Image.fromarray(RAMP.astype(np.uint16)), "TIFF")):
        assert np.abs(prepared(data).pixels - expected).max() == 0
    colour = np.dstack([RAMP, RAMP[::-1], RAMP[:, ::-1]])
    assert np.abs(prepared(png16(3, colour)).pixels - colour / 257).max() <= 1
    with pytest.raises(ImageError, match=r"floating point numbers.*convert it to 8 or 16 bits"):
        prepared(saved(Image.fromarray(RAMP.astype(np.float32)), "TIFF"))
    with pytest.raises(ImageError, match=r"32-bit integers.*convert it to 8 or 16 bits"):
        prepared(saved(Image.fromarray(RAMP.astype(np.int32)), "TIFF"))
    assert np.abs(prepared(b"P5 64 48 65535\n" + RAMP.astype(">u2").tobytes()).pixels - expected).max() == 0


def test_what_is_lost_is_noted(small):
    colour = np.dstack([RAMP, RAMP[::-1], RAMP[:, ::-1]])
    for data in (png16(1, RAMP), png16(3, colour), saved(Image.fromarray(RAMP.astype(np.uint16)), "TIFF")):
        assert prepare(open_image(data)).notes == ("16 bits per channel became 8",)
    assert prepare(open_image(b"P5 64 48 65535\n" + RAMP.astype(">u2").tobytes())).notes == ("16 bits per channel became 8",)
    assert prepare(open_image(saved(small.convert("CMYK"), "JPEG"))).notes == ("its CMYK colours became sRGB",)
    for kind in ("PNG", "JPEG", "TIFF"):
        assert prepare(open_image(saved(small, kind))).notes == ()


def test_a_image_without_colour_says_so(small):
    grey = small.convert("L")
    for image in (grey, small.convert("1"), Image.merge("LA", (grey, Image.new("L", grey.size, 90)))):
        assert prepared(saved(image, "PNG")).greyness == GREY
    assert prepared(png16(1, RAMP)).greyness == GREY
    assert prepared(saved(grey, "PNG"), background="white").greyness == GREY
    assert prepared(saved(grey.convert("RGB"), "PNG")).greyness == NEUTRAL
    assert prepare(np.asarray(grey.convert("RGB"))).greyness == NEUTRAL
    clear = Image.merge("LA", (grey, Image.new("L", grey.size, 90)))
    assert prepared(saved(clear, "PNG"), background="red").greyness == COLOURED
    assert prepared(saved(clear, "PNG"), background="white").greyness == GREY
    spot = grey.convert("RGB")
    spot.putpixel((5, 5), (9, 9, 10))
    for image in (small, spot):
        assert prepared(saved(image, "PNG")).greyness == prepare(np.asarray(image)).greyness == COLOURED


@pytest.mark.parametrize(
    ("mode", "kind"), [("L", "PNG"), ("P", "PNG"), ("P", "GIF"), ("1", "PNG"), ("1", "TIFF"), ("YCbCr", "JPEG")]
)
def test_other_modes_are_what_pillow_makes_of_them(small, mode, kind):
    data = saved(small.convert(mode), kind)
    made = prepared(data)
    assert np.array_equal(made.pixels, np.asarray(Image.open(io.BytesIO(data)).convert("RGB")))
    assert made == replace(made, sections=(), notes=(), space=0)


@pytest.mark.parametrize(("kind", "options"), [("GIF", {}), ("WEBP", {"lossless": True}), ("PNG", {}), ("TIFF", {})])
def test_of_an_animation_the_first_frame_is_taken_aloud(small, kind, options):
    frames = [small.rotate(90 * turn).quantize(16).convert("RGB") for turn in range(3)]
    data = saved(frames[0], kind, save_all=True, append_images=frames[1:], **options)
    made = prepared(data)
    assert made.notes == ("first of 3 frames",)
    assert np.abs(made.pixels.astype(int) - np.asarray(frames[0])).mean() < 1
    image = read_image(data)
    image.seek(2)
    later = prepare(image)
    assert later.notes == ("frame 3 of 3",)
    assert np.abs(later.pixels.astype(int) - np.asarray(frames[2])).mean() < 1


def test_images_beside_the_image_are_no_frames(small):
    data = saved(small, "MPO", save_all=True, append_images=[small.resize((32, 24))])
    assert prepared(data).notes == ()


def test_avif_with_all_it_carries(small):
    if not features.check("avif"):
        pytest.skip("this Pillow has no AVIF")
    data = saved(small, "AVIF", exif=camera_exif(6), icc_profile=profiles.red_and_green_swapped(), quality=90)
    made = prepared(data, keep_exif=True)
    assert made.pixels.shape == (64, 48, 3)
    assert extras(made).icc == profiles.red_and_green_swapped()
    upright = Image.Exif()
    upright.load(extras(made).exif)
    assert (upright[0x0112], upright[0x010F]) == (1, "Maker")
    assert np.abs(made.pixels.astype(int) - np.rot90(np.asarray(small), -1)).mean() < 6


@pytest.mark.parametrize(("module", "kind"), [("pillow_jxl", "JXL"), ("pillow_heif", "HEIF")])
def test_formats_that_a_package_adds(small, module, kind):
    pytest.importorskip(module)
    _import_helper(module)
    data = saved(small, kind, quality=95)
    assert np.abs(prepared(data).pixels.astype(int) - np.asarray(small)).mean() < 6


@pytest.mark.parametrize(
    ("start", "said"),
    [
        (b"\0\0\0\x18ftypheic\0\0\0\0mif1heic", r"HEIC cannot be read, or it is damaged: install pillow-heif, or convert"),
        (b"\xff\x0a\x7f\x02", r"JPEG XL cannot be read, or it is damaged: install pillow-jxl-plugin"),
        (b"just text", "not an image of a format that Pillow knows: convert it to PNG first"),
        (b"", "not an image of a format that Pillow knows"),
    ],
)
def test_what_would_help_is_named(start, said, monkeypatch):
    monkeypatch.setattr("codec.image.reading._import_helper", lambda module: None)  # as where nothing is installed
    Image.init()
    monkeypatch.setattr(Image, "ID", [name for name in Image.ID if name not in ("JXL", "HEIF")])
    with pytest.raises(ImageError, match=said):
        read_image(start)


def test_every_helper_is_tried(monkeypatch):
    tried = []
    monkeypatch.setattr("codec.image.reading.importlib.import_module", lambda name: tried.append(name) or object())
    for start in (b"\0\0\0\x18ftypavif", b"\0\0\0\x18ftypheic", b"\0\0\0\x0cJXL \r\n\x87\n"):
        with pytest.raises(ImageError):
            open_image(start)
    assert tried == [helper[1] for helper in HELPERS]


@pytest.mark.parametrize("kind", ["PNG", "JPEG", "GIF", "WEBP", "TIFF", "BMP", "PPM"])
def test_damaged_images_raise_image_errors_alone(small, kind):
    data = saved(small, kind)
    rng = np.random.default_rng(1)
    refused = 0
    for attempt in range(60):
        broken = bytearray(data[: int(rng.integers(len(data)))] if attempt % 2 else data)
        for _ in range(attempt % 5):
            if broken:
                broken[int(rng.integers(min(len(broken), 200)))] = int(rng.integers(256))
        try:
            assert prepare(read_image(bytes(broken), 10**6)).pixels.size > 0
        except ImageError as error:
            refused += 1
            assert "\n" not in str(error)
        except UserWarning:  # Pillow's own, an error in tests alone
            pass
    assert refused > 10


def test_size_is_checked_before_pixels_are_read():
    data = bytearray(saved(Image.new("L", (20, 10)), "PNG"))
    data[16:24] = struct.pack(">2I", 30000, 20000)
    data[29:33] = struct.pack(">I", zlib.crc32(data[12:29]))
    with pytest.raises(ImageError, match=r"30000x20000 is 600,000,000 pixels, more than 500,000,000$"):
        read_image(bytes(data))
    with pytest.raises(ImageError, match="more than 100"):
        prepare(np.zeros((11, 10, 3), np.uint8), max_pixels=100)
    with pytest.raises(ImageError, match="more than 100"):
        prepare(Image.new("L", (11, 10)), max_pixels=100)


def test_pillows_own_limit_is_as_before(small):
    before = Image.MAX_IMAGE_PIXELS
    read_image(saved(small, "PNG"))
    with pytest.raises(ImageError):
        read_image(b"none")
    assert before == Image.MAX_IMAGE_PIXELS


@pytest.mark.filterwarnings("error")
@pytest.mark.parametrize("kind", ["TIFF", "PNG"])
def test_only_our_limit_holds(small, kind, monkeypatch):
    """Pillow has a limit of its own, above which it warns and refuses; for TIFF it asks once more when it loads."""
    monkeypatch.setattr(Image, "MAX_IMAGE_PIXELS", 50)
    data = saved(small, kind)
    assert np.array_equal(read_image(data, 100_000), small)
    assert np.array_equal(prepare(open_image(data, 100_000)).pixels, small)
    assert Image.MAX_IMAGE_PIXELS == 50


def test_options_that_contradict_each_other():
    with pytest.raises(UsageError, match="strip and keep exif contradict each other"):
        ImageOptions(strip=True, keep_exif=True)


def test_pixels_alone(small):
    image, alpha = half_clear(small)
    assert np.array_equal(to_pixels(image)[alpha > 0], np.asarray(small)[alpha > 0])
    assert np.array_equal(to_pixels(image, "white"), prepare(image, ImageOptions(background="white")).pixels)


def test_thin_images_count_with_their_whole_blocks():
    check_size(65535, 1, 4_200_000)  # 256 blocks of 65,536 pixels are four times as many
    with pytest.raises(ImageError, match=r"65535x1 is thin, and costs what 16,777,216 pixels cost, more than 16,760,000$"):
        check_size(65535, 1, 4_190_000)
    check_size(100, 100, 10_000)  # a single block is never too thin
    check_size(3000, 1)
    check_size(65535, 1)
    check_size(100_000, 70)
    for thin in ((100_000, 1), (2_000_000, 1), (1, 100_000)):
        with pytest.raises(ImageError, match="is thin"):
            check_size(*thin)
    check_size(100_000, 1, 1_000_000_000)
    check_size(16_000, 16_000)
