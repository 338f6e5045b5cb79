"""Colour profiles that a file names by a number: recognised by their effect, and replaced by equivalent ones."""

from __future__ import annotations

import io
import struct
import zlib

import numpy as np
import pytest
from PIL import ExifTags, Image, ImageCms, features

from bitstream.container import GREY
from codec.errors import ImageError
from codec.image.metadata import from_sections
from codec.image.profiles import GREYS, SPACES, SRGB, make_profile, profile_of, recognise
from codec.image.source import read_source
from tests.helpers import profiles

D65 = np.array([0.3127, 0.3290])
BRADFORD = np.array([[0.8951, 0.2664, -0.1614], [-0.7502, 1.7135, 0.0367], [0.0389, -0.0685, 1.0296]])
D50 = np.array([0.9642, 1, 0.8249])
# From the standards: IEC 61966-2-1, SMPTE EG 432-1, Adobe RGB (1998), ISO 22028-2
CHROMATICITIES = {
    0: ([[0.64, 0.33], [0.30, 0.60], [0.15, 0.06]], D65),
    1: ([[0.680, 0.320], [0.265, 0.690], [0.150, 0.060]], D65),
    2: ([[0.64, 0.33], [0.21, 0.71], [0.15, 0.06]], D65),
    3: ([[0.7347, 0.2653], [0.1596, 0.8404], [0.0366, 0.0001]], np.array([0.3457, 0.3585])),
}


def xyz(chromaticity: np.ndarray | list[float]) -> np.ndarray:
    x, y = chromaticity
    return np.array([x / y, 1, (1 - x - y) / y])


@pytest.mark.parametrize("number", CHROMATICITIES)
def test_primaries_are_those_of_the_standards(number):
    primaries, white = CHROMATICITIES[number]
    columns = np.stack([xyz(chromaticity) for chromaticity in primaries], 1)
    columns = columns * np.linalg.solve(columns, xyz(white))
    adapted = np.linalg.inv(BRADFORD) @ np.diag((BRADFORD @ D50) / (BRADFORD @ xyz(white))) @ BRADFORD @ columns
    assert np.abs(adapted.T - SPACES[number].primaries).max() < 0.0008


@pytest.mark.parametrize("number", SPACES)
def test_a_space_is_recognised_by_its_own_profile(number):
    assert recognise(make_profile(SPACES[number]), SPACES[number].mode) == number


def test_profiles_with_the_same_effect_are_recognised():
    for profile in (profiles.srgb(), profiles.matrix(SPACES[SRGB].primaries, profiles.srgb_curve(), b"any name")):
        assert recognise(profile, "RGB") == SRGB
    assert recognise(profiles.matrix(SPACES[1].primaries, profiles.srgb_curve()), "RGB") == 1
    assert recognise(profiles.matrix(SPACES[2].primaries, profiles.gamma(2.2)), "RGB") == 2
    assert recognise(profiles.matrix((), profiles.gamma(2.2)), "L") == 4
    assert recognise(profiles.matrix((), profiles.srgb_curve()), "L") == SRGB


@pytest.mark.parametrize(
    ("profile", "mode"),
    [
        (profiles.red_and_green_swapped(), "RGB"),  # by its name it is sRGB
        (profiles.matrix(SPACES[SRGB].primaries, profiles.gamma(2.2), b"sRGB IEC61966-2.1"), "RGB"),
        (profiles.matrix(SPACES[1].primaries, profiles.gamma(1.9)), "RGB"),
        (profiles.linear_grey(), "L"),
        (profiles.matrix((), profiles.gamma(2.0)), "L"),
        (profiles.srgb()[:200], "RGB"),
        (b"no profile", "RGB"),
    ],
)
def test_other_profiles_have_no_number(profile, mode):
    assert recognise(profile, mode) is None


def in_srgb(image: Image.Image, profile: bytes | None) -> np.ndarray:
    source = ImageCms.ImageCmsProfile(io.BytesIO(profile)) if profile else ImageCms.createProfile("sRGB")
    transform = ImageCms.buildTransform(source, ImageCms.createProfile("sRGB"), image.mode, "RGB")
    return np.asarray(ImageCms.applyTransform(image, transform)).astype(int)


@pytest.mark.parametrize(
    ("profile", "space", "extra"),
    [
        (profiles.srgb(), 0, 0),
        (profiles.matrix(SPACES[1].primaries, profiles.srgb_curve()), 1, 1),
        (profiles.matrix(SPACES[2].primaries, profiles.gamma(2.2)), 2, 1),
        (profiles.matrix(SPACES[3].primaries, profiles.gamma(1.8)), 3, 1),
    ],
)
def test_a_common_profile_takes_at_most_a_byte(codec, photo, profile, space, extra):
    small = photo.crop((200, 100, 264, 148))
    plain = codec.encode(small, quality=50).data
    small.info["icc_profile"] = profile
    data = codec.encode(small, quality=50).data
    assert len(data) == len(plain) + extra
    again = codec.decode(data).image
    assert again.info.get("icc_profile") == profile_of(space)
    assert np.array_equal(np.asarray(again), np.asarray(codec.decode(plain).image))
    assert np.abs(in_srgb(small, again.info.get("icc_profile")) - in_srgb(small, profile)).max() <= 1


def test_greyscale_keeps_its_curve(codec, photo):
    grey = photo.crop((200, 100, 264, 148)).convert("L")
    plain = codec.encode(grey, quality=50).data
    for profile, space in ((make_profile(GREYS[SRGB]), 0), (profiles.matrix((), profiles.gamma(2.2)), 4)):
        grey.info["icc_profile"] = profile
        data = codec.encode(grey, quality=50).data
        assert len(data) == len(plain)
        assert codec.decode(data).image.info.get("icc_profile") == profile_of(space)
    grey.info["icc_profile"] = profiles.linear_grey()
    assert "icc_profile" not in codec.decode(codec.encode(grey, quality=50).data).image.info
    assert np.abs(read_source(grey).pixels - in_srgb(grey, profiles.linear_grey())).max() <= 2


def test_strip_converts_profiles_with_a_number(photo):
    small = photo.crop((200, 100, 264, 148))
    small.info["icc_profile"] = profile_of(1)
    source = read_source(small, {"strip": True})
    assert (source.space, source.sections) == (SRGB, ())
    assert np.abs(source.pixels - in_srgb(small, profile_of(1))).max() <= 2
    small.info["icc_profile"] = profiles.srgb()
    assert np.array_equal(read_source(small, {"strip": True}).pixels, np.asarray(small))


def test_a_common_profile_fits_into_a_small_file(codec, photo):
    profile = profiles.matrix(SPACES[SRGB].primaries, profiles.srgb_curve(), b"sRGB IEC61966-2.1")
    assert len(profile) > 2000
    photo = photo.resize((250, 160))
    photo.info["icc_profile"] = profile
    assert 380 < len(codec.encode(photo, target_size=400).data) <= 400


# Colours that a file states without a profile


P3, ADOBE, PROPHOTO = (CHROMATICITIES[number] for number in (1, 2, 3))
BT2020 = [[0.708, 0.292], [0.170, 0.797], [0.131, 0.046]], D65


@pytest.fixture(scope="module")
def small(photo) -> Image.Image:
    return photo.crop((200, 100, 264, 148))


def saved(image: Image.Image, kind: str, **options) -> bytes:
    stream = io.BytesIO()
    image.save(stream, kind, **options)
    return stream.getvalue()


def with_chunks(data: bytes, **chunks: bytes) -> bytes:
    """A PNG file with these chunks after its header."""
    content = b""
    for name, fields in chunks.items():
        body = name.encode() + fields
        content += struct.pack(">I", len(fields)) + body + struct.pack(">I", zlib.crc32(body))
    return data[:33] + content + data[33:]


def gamma_field(gamma: float) -> bytes:
    return struct.pack(">I", round(gamma * 100_000))


def points_field(space: tuple) -> bytes:
    primaries, white = space
    return struct.pack(">8I", *(round(100_000 * number) for point in (white, *primaries) for number in point))


def curve_of_srgb(light: np.ndarray) -> np.ndarray:
    return np.where(light <= 0.0031308, 12.92 * light, 1.055 * light.clip(0) ** (1 / 2.4) - 0.055).clip(0, 1)


def light_of_srgb(values: np.ndarray) -> np.ndarray:
    return np.where(values <= 0.04045, values / 12.92, ((values + 0.055) / 1.055) ** 2.4)


def matrix_of(space: tuple) -> np.ndarray:
    primaries, white = space
    columns = np.stack([xyz(point) for point in primaries], 1)
    return columns * np.linalg.solve(columns, xyz(white))


@pytest.mark.parametrize(
    ("chunks", "space"),
    [
        ({"gAMA": gamma_field(0.45455)}, 0),
        ({"gAMA": gamma_field(0.45455), "cHRM": points_field(CHROMATICITIES[0])}, 0),
        ({"gAMA": gamma_field(1), "cHRM": points_field(P3), "sRGB": b"\0"}, 0),
        ({"cHRM": points_field(P3)}, 1),
        ({"gAMA": gamma_field(0.45455), "cHRM": points_field(ADOBE)}, 2),
        ({"gAMA": gamma_field(1 / 1.8), "cHRM": points_field(PROPHOTO)}, 3),
        ({"cICP": bytes([1, 13, 0, 1])}, 0),
        ({"cICP": bytes([2, 2, 0, 1])}, 0),
        ({"cICP": bytes([1, 1, 0, 1])}, 0),
        ({"cICP": bytes([12, 13, 0, 1])}, 1),
        ({"cICP": bytes([12, 13, 0, 1]), "sRGB": b"\0"}, 1),
        ({"cICP": bytes([12, 13, 0, 1]), "iCCP": b"a\0\0" + zlib.compress(profiles.red_and_green_swapped())}, 1),
    ],
)
def test_stated_colours_become_the_number_of_their_space(small, chunks, space):
    for image in (small, small.quantize(32)):
        source = read_source(with_chunks(saved(image, "PNG"), **chunks))
        assert (source.space, source.sections, source.notes) == (space, (), ())
        assert np.array_equal(source.pixels, np.asarray(image.convert("RGB")))


@pytest.mark.parametrize(
    ("chunks", "exponent", "space"),
    [
        ({"gAMA": gamma_field(1)}, 1, CHROMATICITIES[0]),
        ({"cICP": bytes([1, 8, 0, 1])}, 1, CHROMATICITIES[0]),
        ({"gAMA": gamma_field(0.55)}, 1 / 0.55, CHROMATICITIES[0]),
        ({"gAMA": gamma_field(1), "cHRM": points_field(P3)}, 1, P3),
        ({"cICP": bytes([9, 13, 0, 1])}, None, BT2020),
        ({"cICP": bytes([9, 4, 0, 1])}, 2.2, BT2020),
    ],
)
def test_other_stated_colours_become_srgb(small, chunks, exponent, space):
    values = np.asarray(small) / 255
    light = light_of_srgb(values) if exponent is None else values**exponent
    expected = 255 * curve_of_srgb(light @ (np.linalg.inv(matrix_of(CHROMATICITIES[0])) @ matrix_of(space)).T)
    source = read_source(with_chunks(saved(small, "PNG"), **chunks))
    assert (source.space, source.sections, len(source.notes)) == (0, (), 1)
    assert np.abs(source.pixels - expected).mean() < 0.6
    grey = small.convert("L")
    values = np.asarray(grey) / 255
    light = light_of_srgb(values) if exponent is None else values**exponent
    source = read_source(with_chunks(saved(grey, "PNG"), **chunks))
    assert source.greyness == GREY
    expected = values if source.space == 4 else curve_of_srgb(light)
    assert (source.space == 4) == (exponent == 2.2)
    assert np.abs(source.pixels - 255 * expected[..., None]).max() <= 2


@pytest.mark.parametrize("codes", [(9, 16, 0, 1), (9, 18, 0, 1), (12, 16, 0, 1), (1, 13, 0, 0)])
def test_hdr_and_the_range_of_video_are_refused(small, codes):
    with pytest.raises(ImageError):
        read_source(with_chunks(saved(small, "PNG"), cICP=bytes(codes)))


@pytest.mark.parametrize(
    "chunks",
    [
        {"cICP": bytes([1, 10, 0, 1])},
        {"cICP": bytes([3, 13, 0, 1])},
        {"gAMA": gamma_field(0.00001)},
        {"cHRM": bytes(32)},
        {"cHRM": struct.pack(">8I", *([30_000] * 8))},
    ],
)
def test_stated_colours_without_meaning_have_a_note(small, chunks):
    source = read_source(with_chunks(saved(small, "PNG"), **chunks))
    assert len(source.notes) == 1
    assert np.array_equal(source.pixels, np.asarray(small))


def test_avif_states_colours_by_codes(small):
    if not features.check("avif"):
        pytest.skip("this Pillow has no AVIF")
    data = saved(small, "AVIF", quality=95)
    start = data.index(b"colrnclx") + 8
    for primaries, curve, space in ((1, 13, 0), (12, 13, 1), (2, 2, 0)):
        source = read_source(data[:start] + struct.pack(">2H", primaries, curve) + data[start + 4 :])
        assert (source.space, source.sections, source.notes) == (space, (), ())
    for curve in (16, 18):
        with pytest.raises(ImageError):
            read_source(data[:start] + struct.pack(">2H", 9, curve) + data[start + 4 :])


def test_cameras_state_adobe_rgb_in_exif(small):
    for space, index, number in ((65535, "R03", 2), (2, None, 2), (1, "R98", 0), (65535, None, 0), (1, "R03", 0)):
        exif = Image.Exif()
        exif.get_ifd(ExifTags.IFD.Exif)[ExifTags.Base.ColorSpace] = space
        if index:
            exif.get_ifd(ExifTags.IFD.Exif)[ExifTags.IFD.Interop] = {1: index}
        for kind in ("JPEG", "WEBP"):
            assert read_source(saved(small, kind, exif=exif)).space == number
            profile = make_profile(SPACES[1])
            assert read_source(saved(small, kind, exif=exif, icc_profile=profile)).space == 1
        assert read_source(saved(small.convert("L"), "JPEG", exif=exif)).space == 0


def test_a_tiff_states_primaries(small):
    primaries, white = P3
    tags = {318: tuple(white.tolist()), 319: tuple(number for point in primaries for number in point)}
    source = read_source(saved(small, "TIFF", tiffinfo=tags))
    assert (source.space, source.notes) == (1, ())


def test_the_colour_space_of_qoi_is_not_trusted(small):
    """Pillow writes 'linear' for images in sRGB."""
    data = saved(small, "QOI")
    for space in (b"\0", b"\1"):
        assert np.array_equal(read_source(data[:13] + space + data[14:]).pixels, np.asarray(small))


def test_a_bitmap_states_primaries_or_embeds_a_profile(small):
    pixels = np.asarray(small)[::-1, :, ::-1].tobytes()

    def bitmap(kind: bytes, points: bytes = bytes(48), profile: bytes = b"") -> bytes:
        fields = struct.pack("<3I2H6I", 124, 64, 48, 1, 24, 0, len(pixels), 0, 0, 0, 0) + bytes(16) + kind + points
        fields += struct.pack("<4I", 4, 124 + len(pixels), len(profile), 0)
        return b"BM" + struct.pack("<3I", 138 + len(pixels), 0, 138) + fields + pixels + profile

    def points(space: tuple, gamma: float) -> bytes:
        numbers = [round(2**30 * number) for x, y in space[0] for number in (x, y, 1 - x - y)]
        return struct.pack("<12I", *numbers, *[round(65536 * gamma)] * 3)

    swapped = profiles.red_and_green_swapped()
    for data, number in (
        (bitmap(b"BGRs"), 0),
        (bitmap(b" niW"), 0),
        (bitmap(bytes(4)), 0),
        (bitmap(bytes(4), points(P3, 0)), 1),
        (bitmap(bytes(4), points(ADOBE, 2.2)), 2),
        (bitmap(b"DEBM", profile=make_profile(SPACES[1])), 1),
    ):
        source = read_source(data)
        assert (source.space, source.sections, source.notes) == (number, (), ())
        assert np.array_equal(source.pixels, np.asarray(small))
    source = read_source(bitmap(b"DEBM", profile=swapped))
    assert from_sections(source.sections, 64, 48).icc == swapped


def test_jpeg_2000_embeds_a_profile(small):
    if not features.check("jpg_2000"):
        pytest.skip("this Pillow has no JPEG 2000")
    data = saved(small, "JPEG2000")
    swapped = profiles.red_and_green_swapped()
    header, box = data.index(b"jp2h") - 4, data.index(b"colr") - 4
    old = int.from_bytes(data[box : box + 4], "big")
    new = struct.pack(">I4sBBB", 11 + len(swapped), b"colr", 2, 0, 0) + swapped
    size = struct.pack(">I", int.from_bytes(data[header : header + 4], "big") + len(new) - old)
    source = read_source(data[:header] + size + data[header + 4 : box] + new + data[box + old :])
    assert from_sections(source.sections, 64, 48).icc == swapped
    assert source.notes == ()
