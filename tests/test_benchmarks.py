from __future__ import annotations

import re
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
from conftest import PHOTO, ROOT
from PIL import Image, ImageFilter

from benchmarks.metrics import ms_ssim, psnr


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


def test_modules_are_not_too_long():
    for folder in ("bitstream", "codec", "cli", "benchmarks"):
        for path in (ROOT / folder).glob("*.py"):
            assert len(Path(path).read_text().splitlines()) <= 500, path
