"""The formulas of metrics, and the tools that make the numbers and images of the documentation."""

from __future__ import annotations

import re
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
from PIL import Image, ImageFilter

from benchmarks.metrics import cielab, colour_error, ms_ssim
from benchmarks.tools import compare
from benchmarks.tools.pattern import pattern_error
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


def test_pattern_error_measures_repetition_and_ignores_noise():
    grey = np.full((150, 200, 3), 119, np.uint8)
    assert pattern_error(grey, grey) == pattern_error(grey + np.uint8(8), grey) == 0
    dots = grey.copy()
    dots[::8, ::8] += 80
    assert pattern_error(dots, grey) == pytest.approx(80 * np.sqrt(63) / 64)
    noisy = grey + np.random.default_rng(0).choice([0, 20], (150, 200, 1)).astype(np.uint8)  # an error of the same size
    assert pattern_error(noisy, grey) < 0.5


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
