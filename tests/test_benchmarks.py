"""The formulas of metrics, and the tools that make the numbers and images of the documentation."""

from __future__ import annotations

import re
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
from PIL import Image, ImageFilter

from benchmarks.metrics import cielab, colour_error, ms_ssim, peaks
from benchmarks.tools import compare
from codec.metrics import psnr
from codec.metrics.lpips import LPIPS
from tests.helpers import PHOTO, ROOT


def test_psnr_is_its_definition():
    original = np.full((8, 8, 3), 100, np.uint8)
    assert psnr(original + np.uint8(10), original) == pytest.approx(20 * np.log10(255 / 10))
    assert psnr(original, original) == float("inf")


def test_ms_ssim_falls_with_blur(photo):
    original = np.asarray(photo)
    blurred = [np.asarray(photo.filter(ImageFilter.GaussianBlur(radius))) for radius in (1, 4)]
    assert ms_ssim(original, original) == pytest.approx(1, abs=1e-5)
    assert 1 > ms_ssim(blurred[0], original) > ms_ssim(blurred[1], original) > 0


def test_cielab_of_known_colours():
    """The primaries of sRGB, white and a grey (D65)."""
    known = {
        (255, 255, 255): (100, 0, 0),
        (0, 0, 0): (0, 0, 0),
        (255, 0, 0): (53.24, 80.09, 67.20),
        (0, 255, 0): (87.73, -86.18, 83.18),
        (0, 0, 255): (32.30, 79.19, -107.86),
        (119, 119, 119): (50.03, 0, 0),
    }
    assert np.allclose(cielab(np.array(list(known), float)), list(known.values()), atol=0.02)


def test_colour_error_measures_casts_and_ignores_noise():
    grey = np.full((50, 70, 3), 119, np.uint8)
    assert colour_error(grey, grey) == 0
    assert colour_error(grey + np.uint8(8), grey) == pytest.approx(cielab(np.array([127.0] * 3))[0] - 50.03, abs=0.01)
    checks = np.indices((50, 70)).sum(0)[..., None] % 2
    noisy = (grey + 10 * np.where(checks, 1, -1)).astype(np.uint8)
    assert colour_error(noisy, grey) < 0.2
    cast = grey.copy()
    cast[:16, :16, 0] += 40  # one of 4 x 5 squares
    distance = np.linalg.norm(cielab(np.array([159.0, 119, 119])) - cielab(np.array([119.0] * 3)))
    assert colour_error(cast, grey) == pytest.approx(distance / 20)


def woven(amplitude: float, deviation: float, columns: int = 384) -> np.ndarray:
    """A grey image of noise; its first columns have a wave of 4 pixels along both axes."""
    y, x = np.indices((256, 384))
    noise = np.random.default_rng(0).normal(0, deviation, x.shape)
    grey = 120 + amplitude * np.cos(np.pi / 2 * (x + y)) * (x < columns) + noise
    return np.repeat(grey.round().astype(np.uint8)[..., None], 3, 2)


def test_peaks_have_the_height_of_a_texture_above_noise():
    """A Hann window of 64 samples sums to 31.5, and its squares to 23.625. The wave has the power (a/2)^2 31.5^4; the noise has
    (s^2 + 1/12) 23.625^2, with rounding, and the mean of its logarithm is lower by Euler's constant. The ten highest values are
    the wave and its four neighbours at half the amplitude, twice."""
    amplitude, deviation = 20, 4
    signal, noise = (amplitude / 2) ** 2 * 31.5**4, (deviation**2 + 1 / 12) * 23.625**2
    centre = 10 * np.log10(signal / noise) + 10 * np.euler_gamma / np.log(10)
    assert centre == pytest.approx(43, abs=0.5)
    expected = centre - 4 / 5 * 20 * np.log10(2)
    assert peaks(woven(amplitude, deviation)) == pytest.approx(expected, abs=0.5)
    assert peaks(woven(2 * amplitude, deviation)) == pytest.approx(expected + 20 * np.log10(2), abs=0.5)


def test_peaks_ignore_noise_brightness_lines_and_texture_in_one_place():
    image = woven(20, 4)
    assert peaks(image + np.uint8(40)) == pytest.approx(peaks(image), abs=1e-6)
    assert peaks(np.full((256, 256, 3), 119, np.uint8)) == 0
    noise = woven(0, 20)
    assert 0 < peaks(noise) < 3
    assert peaks(woven(20, 20, columns=64)) < 0.3 * peaks(woven(20, 20))
    lines = noise.copy()
    lines[::8] = 220
    assert peaks(lines) < 3


@pytest.fixture(scope="module")
def demo(tmp_path_factory, codec, photo) -> Path:
    """The files of `make demo` before it calls `compare`."""
    folder = tmp_path_factory.mktemp("demo")
    data = codec.encode(photo, target_size=2000).data
    (folder / "a.tsr").write_bytes(data)
    codec.decode(data).image.save(folder / "a.png")
    return folder


def run_compare(demo: Path, monkeypatch, capsys, *options: object) -> str:
    arguments = ["compare", PHOTO, demo / "a.tsr", demo / "a.png", demo / "c.webp", *options]
    monkeypatch.setattr(sys, "argv", list(map(str, arguments)))
    compare.main()
    return capsys.readouterr().out


def test_compare_prints_numbers_and_writes_a_sheet(demo, photo, monkeypatch, capsys, tmp_path):
    monkeypatch.setenv("TORCH_HOME", str(tmp_path))
    tessera, webp, lpips, *_ = run_compare(demo, monkeypatch, capsys).splitlines()
    numbers = r"PSNR \d\d\.\d\d dB, MS-SSIM 0\.\d{3}"
    assert re.fullmatch(rf"Tessera, {(demo / 'a.tsr').stat().st_size} bytes: {numbers}", tessera)
    assert re.fullmatch(rf"WebP .*: {numbers}", webp)
    assert "tessera models fetch lpips" in lpips
    with Image.open(demo / "c.webp") as sheet:
        assert sheet.size == (3 * photo.width + 2 * compare.GAP, photo.height + compare.LABEL)
        middle = np.asarray(sheet.convert("RGB"))[compare.LABEL :, photo.width + compare.GAP :][:, : photo.width]
    with Image.open(demo / "a.png") as decoded:
        assert psnr(middle, np.asarray(decoded)) > 30


def test_compare_measures_lpips_if_its_weights_are_installed(demo, monkeypatch, capsys, tmp_path, lpips_weights):
    (tmp_path / "tessera").mkdir()
    (tmp_path / "tessera" / "lpips_alex.npz").symlink_to(lpips_weights)
    monkeypatch.setenv("XDG_DATA_HOME", str(tmp_path))
    tessera, webp = re.findall(r"LPIPS (0\.\d{3})", run_compare(demo, monkeypatch, capsys))
    with Image.open(PHOTO) as original, Image.open(demo / "a.png") as decoded:
        distance = LPIPS(lpips_weights).distance(np.asarray(decoded), np.asarray(original.convert("RGB")))
    assert float(tessera) == pytest.approx(distance, abs=6e-4)
    assert float(webp) > 0


def test_longer_prefixes_are_not_worse():
    command = [sys.executable, "-m", "benchmarks.tools.prefixes", str(PHOTO), "--cuts", "5"]
    lines = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, check=True).stdout.splitlines()
    decibels = [float(line.split()[3]) for line in lines[:-1]]
    assert len(decibels) == 5
    assert decibels == sorted(decibels)


def test_modules_have_at_most_500_lines():
    modules = [path for room in ("bitstream", "codec", "cli", "benchmarks", "tests") for path in (ROOT / room).rglob("*.py")]
    assert len(modules) > 100
    assert {str(path): count for path in modules if (count := len(path.read_text().splitlines())) > 500} == {}


def test_every_tool_is_mentioned_on_a_page():
    pages = [*ROOT.glob("*.md"), *(ROOT / "docs").glob("*.md"), *(ROOT / "benchmarks").glob("*.md"), ROOT / "Makefile"]
    text = "\n".join(page.read_text() for page in pages)
    tools = [path.stem for path in (ROOT / "benchmarks" / "tools").glob("*.py") if path.stem != "__init__"]
    assert tools
    assert [tool for tool in tools if f"benchmarks.tools.{tool}" not in text] == []
