"""The codecs of the benchmark, one by one."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import pytest
from codec.image.reading import to_pixels
from PIL import Image, ImageCms

from benchmarks.codecs.base import Sizes
from benchmarks.codecs.pillow import PILLOW_CODERS
from benchmarks.codecs.registry import (
    CLASSICAL,
    QUICK_CODERS,
    SCALES,
    CoderOptions,
    TesseraCoder,
    at_all_scales,
    enlarge,
    make_coder,
    shrink,
)
from benchmarks.codecs.vvc import _ffmpeg
from codec.errors import CodecMissingError, FormatError, ImageError
from codec.metrics import psnr
from tests.helpers import SHARED

OF_EXTRA = ("heic", "heic-quick", "vvc", "vvc-quick")  # need packages of the extra `bench`
HERE = [
    pytest.param(name, marks=pytest.mark.learned if name in OF_EXTRA else ())
    for name in ("tessera", *(coder.name for coder in (*CLASSICAL, *QUICK_CODERS)))
]


@pytest.fixture(scope="module")
def small(photo) -> np.ndarray:
    return np.asarray(photo.crop((100, 100, 260, 200)))


@pytest.mark.parametrize("name", HERE)
def test_a_file_fits_its_budget_and_the_next_setting_does_not(name, small):
    coder = make_coder(name, CoderOptions(device="cpu"))
    budgets = [1000, 1500, 4000]
    for budget, made in zip(budgets, coder.fit(small, budgets), strict=True):
        assert made is not None
        assert len(made.data) <= budget
        assert coder.decode(made.data).shape == small.shape
        if name != "tessera":
            assert coder.encode(small, made.number) == made.data
            assert len(coder.encode(small, made.number + 1)) > budget or made.number == coder.highest
    assert coder.fit(small, [10]) == [None]


@pytest.mark.parametrize("name", HERE)
def test_higher_settings_buy_quality(name, small):
    coder = make_coder(name, CoderOptions(device="cpu"))
    low, high = coder.settings[1], coder.settings[-1]
    files = [coder.encode(small, setting) for setting in (low, high)]
    assert len(files[0]) < len(files[1])
    assert psnr(coder.decode(files[0]), small) < psnr(coder.decode(files[1]), small)


@pytest.mark.learned
@pytest.mark.parametrize("size", [(1, 1), (17, 9), (95, 64)])
def test_vvc_takes_odd_and_small_sizes(size, photo):
    pixels = np.asarray(photo.crop((100, 100, 100 + size[0], 100 + size[1])))
    coder = make_coder("vvc-quick", CoderOptions())
    data = coder.encode(pixels, 40)
    assert data[:4] == size[0].to_bytes(2, "big") + size[1].to_bytes(2, "big")
    assert coder.decode(data).shape == pixels.shape
    assert psnr(coder.decode(data), pixels) > 28


@pytest.mark.learned
def test_vvc_refuses_what_is_none_of_its_files(small):
    coder = make_coder("vvc-quick", CoderOptions())
    data = coder.encode(small, 20)
    with pytest.raises(FormatError, match=f"these {len(data)} bytes are not a file of VVC, quick"):
        coder.decode(bytes([0, 200]) + data[2:])
    with pytest.raises(CodecMissingError, match="ffmpeg failed on VVC"):
        coder.decode(b"nothing of the kind")
    with pytest.raises(ImageError, match="65536x1 is too large for VVC, quick here"):
        coder.encode(np.zeros((1, 65536, 3), np.uint8), 20)


def test_vvc_without_its_encoder_says_so(monkeypatch):
    monkeypatch.setattr("benchmarks.codecs.vvc._ffmpeg", lambda: ("/usr/bin/ffmpeg", "5.1"))
    monkeypatch.setattr("benchmarks.codecs.vvc._run", lambda *_: b" V..... libx265")
    with pytest.raises(CodecMissingError, match="VVC needs an ffmpeg with libvvenc, which /usr/bin/ffmpeg lacks: pip install"):
        make_coder("vvc", CoderOptions())


def test_a_quick_setting_is_another_setting():
    slow = {coder.name: coder for coder in CLASSICAL}
    for coder in QUICK_CODERS:
        usual = slow[coder.name.removesuffix("-quick")]
        assert (coder.aim, coder.highest) == (usual.aim, usual.highest)
        assert coder != replace(usual, name=coder.name, title=coder.title)


def test_tessera_is_cut_from_one_encoding(small, codec):
    made = TesseraCoder(codec).fit(small, [600, 600, 1200])
    assert made[0] == made[1]
    assert made[2].data[14:200] == made[0].data[14:200]  # the shorter file begins the longer one, past the header
    assert codec.encode(small, target_size=1200) == made[2].data


def test_bisection_tries_few_settings(small):
    class Counting:
        tried = 0

        def encode(self, pixels, setting):
            self.tried += 1
            return bytes(setting)

    coder = Counting()
    sizes = Sizes(coder, small)
    assert [sizes.fit(range(101), budget).number for budget in (37, 38, 90, 500)] == [37, 38, 90, 100]
    assert coder.tried <= 20
    assert sizes.fit(range(5, 101), 4) is None


def test_scales_shrink_and_enlarge(small):
    for scale in SCALES:
        tiny = shrink(small, scale)
        assert tiny.shape == (round(100 * scale), round(160 * scale), 3)
        assert enlarge(tiny, 160, 100).shape == small.shape
    assert shrink(np.zeros((1, 3, 3), np.uint8), 0.125).shape == (1, 1, 3)
    found = list(at_all_scales(make_coder("webp", CoderOptions()), small, 300))
    assert 1 <= len(found) < len(SCALES)
    assert all(len(made.data) <= 300 and image.shape == small.shape for made, image in found)


def test_a_codec_that_pillow_lacks_says_so(monkeypatch):
    monkeypatch.setattr("benchmarks.codecs.pillow.features.version", lambda name: None)
    with pytest.raises(CodecMissingError, match=r"AVIF is missing from this Pillow \(.*\): install a build with avif"):
        make_coder("avif", CoderOptions())


def test_a_plugin_that_is_not_installed_says_so(monkeypatch):
    monkeypatch.setitem(__import__("sys").modules, "pillow_jxl", None)
    with pytest.raises(CodecMissingError, match="JPEG XL needs pillow-jxl-plugin: pip install pillow-jxl-plugin"):
        make_coder("jxl", CoderOptions())
    monkeypatch.setitem(__import__("sys").modules, "imageio_ffmpeg", None)
    _ffmpeg.cache_clear()
    with pytest.raises(CodecMissingError, match="VVC needs imageio-ffmpeg: pip install imageio-ffmpeg"):
        make_coder("vvc", CoderOptions())


def test_an_encoder_that_fails_says_on_what(small):
    coder = replace(next(coder for coder in PILLOW_CODERS if coder.name == "avif"), options={"subsampling": "warp"})
    with pytest.raises(CodecMissingError, match=r"AVIF failed on an image of 160x100 at quality 5 \("):
        coder.encode(small, 5)


# Kodak at fixed qualities, as compressai (869a9f5) stores them in results/image/kodak: bits per pixel and PSNR, dB. Later
# versions of libjpeg-turbo draw JPEG a little better: by 0.07 dB here, and by up to 0.13 at quality 75.
PUBLISHED = {
    ("jpeg", 5): (0.22115, 23.780),
    ("jpeg", 10): (0.32661, 26.577),
    ("webp", 5): (0.23442, 28.328),
    ("webp", 10): (0.29634, 29.151),
    ("webp", 30): (0.51271, 31.443),
}


@pytest.mark.skipif(not (SHARED / "kodak").exists(), reason="the Kodak images are not there")
@pytest.mark.parametrize("name", ["jpeg", "webp"])
def test_kodak_agrees_with_published_curves(name):
    coder = next(coder for coder in PILLOW_CODERS if coder.name == name)
    coder = replace(coder, options={})  # the published files had the libraries' own defaults
    images = [np.asarray(Image.open(path).convert("RGB")) for path in sorted((SHARED / "kodak").glob("*.png"))]
    assert len(images) == 24
    for (codec, quality), (bpp, decibels) in PUBLISHED.items():
        if codec == name:
            files = [coder.encode(image, quality) for image in images]
            rates = [8 * len(data) / (768 * 512) for data in files]
            assert np.mean(rates) == pytest.approx(bpp, rel=0.002)
            values = [psnr(coder.decode(data), image) for data, image in zip(files, images, strict=True)]
            assert np.mean(values) == pytest.approx(decibels, abs=0.1)


def test_bench_counts_the_bytes_of_encode(photo, codec):
    """A stock sRGB profile costs nothing, so what is measured without it is what a user's file has."""
    image = photo.crop((0, 0, 256, 192))
    image.info["icc_profile"] = ImageCms.ImageCmsProfile(ImageCms.createProfile("sRGB")).tobytes()
    grey = photo.crop((0, 0, 256, 192)).convert("L")
    coder = TesseraCoder(codec)
    for original in (image, grey):
        (fitted,) = coder.fit(to_pixels(original), [900])
        assert fitted is not None
        assert len(fitted.data) <= 900
        assert len(coder.encode(to_pixels(original), 25)) == len(codec.encode(original, quality=25))
