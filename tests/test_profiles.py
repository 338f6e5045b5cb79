"""Colour profiles that a file names by a number: recognised by their effect, and replaced by equivalent ones."""

from __future__ import annotations

import io

import numpy as np
import pytest
from PIL import Image, ImageCms

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
