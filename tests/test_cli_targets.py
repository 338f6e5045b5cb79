"""The flags that say how good a file should be, or how hard to try."""

from __future__ import annotations

import json
import re

import numpy as np
import pytest
from click.testing import CliRunner
from PIL import Image

from cli.main import main
from codec.metrics import psnr
from tests.helpers import SHARED

LPIPS_WEIGHTS = SHARED / "perceptual" / "lpips_alex.npz"


def run(*arguments):
    return CliRunner().invoke(main, [str(argument) for argument in arguments])


@pytest.fixture
def image(tmp_path, photo):
    photo.crop((100, 100, 228, 196)).save(tmp_path / "a.png")
    return tmp_path / "a.png"


def encoded(image, *flags) -> dict:
    said = run("encode", image, "-o", image.with_suffix(".tsr"), "-f", "--json", *flags)
    assert said.exit_code == 0, said.stderr
    return json.loads(said.stdout)


def test_a_psnr_is_reached_by_the_smallest_file(image):
    told = encoded(image, "--target-psnr", "25")
    assert run("decode", image.with_suffix(".tsr"), "-o", image.with_name("b.png")).exit_code == 0
    with Image.open(image) as original, Image.open(image.with_name("b.png")) as drawn:
        measured = psnr(np.asarray(drawn), np.asarray(original))
    assert told["reached"] is True
    assert told["measured"] == pytest.approx(measured)
    assert 25 <= measured < 25.5
    assert encoded(image, "--target-psnr", "24")["bytes"] < told["bytes"] < encoded(image, "-q", "100")["bytes"]
    line = run("encode", image, "-f", "--target-psnr", "25").stderr
    assert re.search(r"tokens per block  25\.\d\d dB  \d+\.\d\d s\n", line)


def test_what_is_out_of_reach_is_a_warning_or_with_strict_an_error(image):
    best = encoded(image, "-q", "100")["bytes"]
    for flags, code, word in (((), 0, "Warning"), (("--strict",), 1, "Error"), (("--strict", "--quiet"), 1, "Error")):
        said = run("encode", image, "-f", "--target-psnr", "90", *flags)
        assert said.exit_code == code
        assert re.search(rf"{word}: {image}: --target-psnr 90 is out of reach: the best is \d\d\.\d\d dB\n", said.stderr)
        assert image.with_suffix(".tsr").stat().st_size == best
    assert encoded(image, "--target-psnr", "90")["reached"] is False
    assert run("encode", image, "-f", "--strict", "--target-psnr", "20").exit_code == 0


@pytest.mark.skipif(not LPIPS_WEIGHTS.exists(), reason="no weights of LPIPS")
def test_an_lpips_is_reached(image):
    told = encoded(image, "--target-lpips", "0.4", "--lpips-weights", LPIPS_WEIGHTS)
    assert told["reached"] is True
    assert 0.35 < told["measured"] <= 0.4
    said = run("encode", image, "-f", "--target-lpips", "0", "--lpips-weights", LPIPS_WEIGHTS, "--strict")
    assert said.exit_code == 1
    assert re.search(r"--target-lpips 0 is out of reach: the best is LPIPS 0\.\d{4}\n", said.stderr)


def test_missing_weights_of_lpips_are_one_line(image, tmp_path):
    said = run("encode", image, image, "-f", "--target-lpips", "0.4", "--lpips-weights", tmp_path / "none.npz")
    assert said.exit_code == 1
    assert said.stderr.count("LPIPS weights cannot be read") == 1
    assert not image.with_suffix(".tsr").exists()


def test_sizes_hold_for_every_file_of_a_batch(tmp_path, photo):
    for number, side in enumerate((40, 100, 200)):
        photo.crop((number, 0, number + side, side)).save(tmp_path / f"{number}.png")
    assert run("encode", tmp_path, "--target-size", "200", "--output-dir", tmp_path / "out").exit_code == 0
    sizes = [path.stat().st_size for path in (tmp_path / "out").iterdir()]
    assert len(sizes) == 3
    assert all(size <= 200 for size in sizes)
    said = run("encode", tmp_path, "--target-bpp", "0.3", "--output-dir", tmp_path / "small", "--json")
    told = [json.loads(line) for line in said.stdout.splitlines()]
    assert {line["status"] for line in told if line["width"] != 40} == {"done"}
    assert all(line["bpp"] <= 0.3 for line in told if line["status"] == "done")


def test_effort_changes_the_file_only_above_its_default(image):
    usual = encoded(image, "-q", "40")["bytes"]
    assert encoded(image, "-q", "40", "--effort", "3")["bytes"] == usual
    assert encoded(image, "--target-psnr", "25", "-e", "7")["bytes"] < encoded(image, "--target-psnr", "25")["bytes"]


def test_targets_of_a_pipeline_stay_whole_with_threads(tmp_path, photo):
    for number in range(4):
        photo.crop((20 * number, 0, 20 * number + 64, 64)).save(tmp_path / f"{number}.png")
    said = run("encode", tmp_path, "--target-psnr", "24", "--json", "--batch", "2", "-j", "2")
    assert said.exit_code == 0
    told = {line["input"]: line for line in map(json.loads, said.stdout.splitlines())}
    for source, line in told.items():
        alone = run("encode", source, "-f", "--target-psnr", "24", "--json")
        assert json.loads(alone.stdout)["bytes"] == line["bytes"]
