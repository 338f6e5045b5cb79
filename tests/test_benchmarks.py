from __future__ import annotations

import json
import re
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
from conftest import PHOTO, ROOT, SHARED
from PIL import Image, ImageFilter

from benchmarks.metrics import ms_ssim, psnr
from benchmarks.quality import best_quality, classical_bytes, classical_row
from bitstream.errors import ModelError
from codec.lpips import LPIPS


def run(module: str, *arguments: object) -> str:
    done = subprocess.run(
        [sys.executable, "-m", module, *map(str, arguments)], cwd=ROOT, capture_output=True, text=True, check=False
    )
    assert done.returncode == 0, done.stderr
    return done.stdout


def test_psnr_is_its_definition():
    original = np.full((8, 8, 3), 100, np.uint8)
    assert psnr(original + np.uint8(10), original) == pytest.approx(20 * np.log10(255 / 10))
    assert psnr(original, original) == float("inf")


def test_ms_ssim_falls_with_blur(photo):
    original = np.asarray(photo)
    blurred = [np.asarray(photo.filter(ImageFilter.GaussianBlur(radius))) for radius in (1, 4)]
    assert ms_ssim(original, original) == pytest.approx(1, abs=1e-5)
    assert 1 > ms_ssim(blurred[0], original) > ms_ssim(blurred[1], original) > 0


@pytest.mark.skipif(not (SHARED / "perceptual").exists(), reason="perceptual weights are not there")
def test_lpips_falls_with_likeness(photo):
    lpips = LPIPS(SHARED / "perceptual" / "lpips_alex.npz")
    original = np.asarray(photo)
    blurred = [np.asarray(photo.filter(ImageFilter.GaussianBlur(radius))) for radius in (1, 4)]
    assert lpips.distance(original, original) == 0
    assert 0.01 < lpips.distance(blurred[0], original) < lpips.distance(blurred[1], original) < 1


def test_a_file_that_is_no_lpips_is_refused(tmp_path):
    with pytest.raises(ModelError, match="LPIPS weights cannot be read from"):
        LPIPS(tmp_path / "none.npz")


@pytest.mark.parametrize("kind", ["webp", "jpeg"])
def test_opponents_get_their_best_within_the_budget(photo, kind):
    data = best_quality(photo, kind, 9000)
    assert len(data) <= 9000
    assert any(len(classical_bytes(photo, kind, quality)) == len(data) for quality in range(96))
    row = classical_row(np.asarray(photo), kind, 0.3, None)
    assert row["bpp"] <= 0.3

    assert best_quality(photo, kind, 20) is None
    assert classical_row(np.asarray(photo), kind, 0.0001, None) is None


def test_quality_prints_a_table_and_writes_the_numbers(tmp_path):
    printed = run("benchmarks.quality", PHOTO, "--budgets", 0.05, 0.2, "--opponents", "webp", "--json", tmp_path / "q.json")
    assert printed.splitlines()[0] == "| bpp at most | 0.05 | 0.2 |"
    assert [line.split(" | ")[0] for line in printed.splitlines()[2:]] == ["| tessera, bpp", "| tessera", "| webp"]
    results = json.loads((tmp_path / "q.json").read_text())["results"]
    low, high = results["tessera"]
    assert low["bpp"] <= 0.05 < high["bpp"] <= 0.2
    assert low["psnr"] < high["psnr"]


def test_compare_prints_what_make_demo_shows(tmp_path, codec, photo):
    data = codec.encode(photo, target_size=2000)
    (tmp_path / "a.tsr").write_bytes(data)
    codec.decode(data).save(tmp_path / "a.png")
    printed = run("benchmarks.compare", PHOTO, tmp_path / "a.tsr", tmp_path / "a.png")
    assert re.match(rf"tessera {len(data)} bytes: PSNR \d\d\.\d\d dB, MS-SSIM 0\.\d+\nWebP at the same bytes", printed)


def test_the_picture_of_the_readme_is_made(tmp_path):
    run("benchmarks.picture", PHOTO, tmp_path / "c.webp", "--size", 3000)
    with Image.open(tmp_path / "c.webp") as sheet, Image.open(PHOTO) as photo:
        assert sheet.width > 3 * photo.width


def test_prefixes_say_by_how_much_quality_ever_falls(tmp_path):
    printed = run("benchmarks.prefixes", PHOTO, "--cuts", 5)
    assert len(printed.splitlines()) == 6
    assert re.search(r"largest fall of PSNR -?0\.0000 dB", printed)


def test_speed_is_printed_for_each_quality():
    printed = run("benchmarks.speed", PHOTO, "--quality", 30, "--device", "cpu")
    assert re.search(r"quality 30: encode \d+\.\d\d, decode \d+\.\d\d\n", printed)


def test_modules_are_not_too_long():
    for folder in ("bitstream", "codec", "cli", "benchmarks"):
        for path in (ROOT / folder).glob("*.py"):
            assert len(Path(path).read_text().splitlines()) <= 500, path
