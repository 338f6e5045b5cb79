"""The codecs of the benchmark, one by one."""

from __future__ import annotations

import io
import sys
from dataclasses import replace

import numpy as np
import pytest
from PIL import Image, ImageCms

from benchmarks import BenchError
from benchmarks.codecs.base import SCALES, SettingSearch, enlarge, fit_at_all_scales, shrink
from benchmarks.codecs.pillow import AVIF
from benchmarks.codecs.registry import CLASSICAL, QUICK_CODECS, BenchCodecOptions, open_codec
from benchmarks.codecs.tessera import TesseraCodec
from benchmarks.codecs.vvc import _ffmpeg
from codec.errors import FormatError, ImageError
from codec.metrics import psnr

FROM_EXTRA = ("heic", "heic-quick", "vvc", "vvc-quick")  # need packages of the extra `bench`
NAMES = [
    pytest.param(name, marks=pytest.mark.learned if name in FROM_EXTRA else ())
    for name in ("tessera", "tessera-psnr", *(codec.name for codec in (*CLASSICAL, *QUICK_CODECS)))
]


@pytest.fixture(scope="module")
def small(photo) -> np.ndarray:
    return np.asarray(photo.crop((100, 100, 260, 200)))


@pytest.mark.parametrize("name", NAMES)
def test_a_file_fits_its_budget_and_that_of_the_next_setting_does_not(name, small):
    bench_codec = open_codec(name, BenchCodecOptions(device="cpu"))
    budgets = [1000, 1500, 4000]
    for budget, file in zip(budgets, bench_codec.fit(small, budgets), strict=True):
        assert file is not None
        assert len(file.data) <= budget
        assert bench_codec.decode(file.data).shape == small.shape
        if not name.startswith("tessera"):
            assert bench_codec.encode(small, file.number) == file.data
            assert len(bench_codec.encode(small, file.number + 1)) > budget or file.number == bench_codec.highest
    assert bench_codec.fit(small, [10]) == [None]


@pytest.mark.parametrize("name", NAMES)
def test_higher_settings_have_more_bytes_and_better_quality(name, small):
    bench_codec = open_codec(name, BenchCodecOptions(device="cpu"))
    low, high = (bench_codec.encode(small, bench_codec.settings[index]) for index in (1, -1))
    assert len(low) < len(high)
    assert psnr(bench_codec.decode(low), small) < psnr(bench_codec.decode(high), small)


def test_tessera_without_texture_is_closer_to_the_original(small, monkeypatch):
    with_texture, without = (open_codec(name, BenchCodecOptions(device="cpu")) for name in ("tessera", "tessera-psnr"))
    data = with_texture.encode(small, 30)
    assert without.encode(small, 30) == data
    assert psnr(without.decode(data), small) > psnr(with_texture.decode(data), small)
    assert without.title == "Tessera, detail 0"
    monkeypatch.setattr(type(without.codec.model), "decode_options", ())
    with pytest.raises(BenchError, match="texture"):
        without.check()


@pytest.mark.learned
@pytest.mark.parametrize("size", [(1, 1), (17, 9), (95, 64)])
def test_vvc_codes_odd_and_small_sizes(size, photo):
    pixels = np.asarray(photo.crop((100, 100, 100 + size[0], 100 + size[1])))
    vvc = open_codec("vvc-quick", BenchCodecOptions())
    data = vvc.encode(pixels, 40)
    assert data[:4] == size[0].to_bytes(2, "big") + size[1].to_bytes(2, "big")
    assert vvc.decode(data).shape == pixels.shape
    assert psnr(vvc.decode(data), pixels) > 28


@pytest.mark.learned
def test_vvc_refuses_other_files_and_large_images(small):
    vvc = open_codec("vvc-quick", BenchCodecOptions())
    data = vvc.encode(small, 20)
    with pytest.raises(FormatError):
        vvc.decode(bytes([0, 200]) + data[2:])
    with pytest.raises(BenchError):
        vvc.decode(b"not a file of VVC")
    with pytest.raises(ImageError):
        vvc.encode(np.zeros((1, 65536, 3), np.uint8), 20)


def test_vvc_needs_an_ffmpeg_with_its_encoder(monkeypatch):
    monkeypatch.setattr("benchmarks.codecs.vvc._ffmpeg", lambda: ("/usr/bin/ffmpeg", "5.1"))
    monkeypatch.setattr("benchmarks.codecs.vvc._run", lambda *_: b" V..... libx265")
    with pytest.raises(BenchError, match="/usr/bin/ffmpeg"):
        open_codec("vvc", BenchCodecOptions())


def test_quick_settings_differ_from_the_usual_ones():
    usual = {codec.name: codec for codec in CLASSICAL}
    for quick in QUICK_CODECS:
        codec = usual[quick.name.removesuffix("-quick")]
        assert (quick.made_for, quick.highest) == (codec.made_for, codec.highest)
        assert quick != replace(codec, name=quick.name, title=quick.title)


def test_tessera_cuts_one_encoding_for_every_budget(small, codec):
    first, second, longer = TesseraCodec(codec).fit(small, [600, 600, 1200])
    assert first == second
    assert longer.data[14:200] == first.data[14:200]  # after the header, the shorter file is the start of the longer one
    assert codec.encode(small, target_size=1200).data == longer.data


def test_a_benchmark_counts_the_bytes_that_encode_writes(photo, codec):
    """A standard sRGB profile costs nothing, so a user's file is as small as the one that was measured without a profile."""
    image = photo.crop((0, 0, 256, 192))
    image.info["icc_profile"] = ImageCms.ImageCmsProfile(ImageCms.createProfile("sRGB")).tobytes()
    grey = photo.crop((0, 0, 256, 192)).convert("L")
    for original in (image, grey):
        pixels = np.asarray(original.convert("RGB"))
        (file,) = TesseraCodec(codec).fit(pixels, [900])
        assert file is not None
        assert len(file.data) <= 900
        assert len(TesseraCodec(codec).encode(pixels, 25)) == len(codec.encode(original, quality=25).data)


def test_the_search_for_a_setting_tries_few(small):
    class CountingCodec:
        encoded = 0

        def encode(self, pixels, setting):
            self.encoded += 1
            return bytes(setting)

    counting = CountingCodec()
    search = SettingSearch(counting, small)
    assert [search.fit(range(101), budget).number for budget in (37, 38, 90, 500)] == [37, 38, 90, 100]
    assert counting.encoded <= 20
    assert search.fit(range(5, 101), 4) is None


def test_images_are_shrunk_and_enlarged(small):
    for scale in SCALES:
        shrunk = shrink(small, scale)
        assert shrunk.shape == (round(100 * scale), round(160 * scale), 3)
        assert enlarge(shrunk, 160, 100).shape == small.shape
    assert shrink(np.zeros((1, 3, 3), np.uint8), 0.125).shape == (1, 1, 3)
    files = list(fit_at_all_scales(open_codec("webp", BenchCodecOptions()), small, 300))
    assert 1 <= len(files) < len(SCALES)
    assert all(len(file.data) <= 300 and image.shape == small.shape for file, image in files)


def test_a_codec_that_pillow_lacks_is_missing(monkeypatch):
    monkeypatch.setattr("benchmarks.codecs.pillow.features.version", lambda name: None)
    with pytest.raises(BenchError, match="avif"):
        open_codec("avif", BenchCodecOptions())


def test_a_codec_without_its_package_is_missing(monkeypatch):
    monkeypatch.setitem(sys.modules, "pillow_jxl", None)
    with pytest.raises(BenchError, match="pip install pillow-jxl-plugin"):
        open_codec("jxl", BenchCodecOptions())
    monkeypatch.setitem(sys.modules, "imageio_ffmpeg", None)
    _ffmpeg.cache_clear()
    with pytest.raises(BenchError, match="pip install imageio-ffmpeg"):
        open_codec("vvc", BenchCodecOptions())


def test_an_encoder_that_fails_names_the_image_and_the_setting(small):
    with pytest.raises(BenchError, match="160x100 at quality 5"):
        replace(AVIF, options={"subsampling": "warp"}).encode(small, 5)


def test_webp_is_pillows_at_the_same_settings(small):
    """The benchmark's own settings are what their names say: the file is the one that Pillow writes with these options."""
    stream = io.BytesIO()
    Image.fromarray(small).save(stream, "WEBP", quality=30, method=6)
    assert open_codec("webp", BenchCodecOptions()).encode(small, 30) == stream.getvalue()
