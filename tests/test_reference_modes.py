"""Folders whose images are coded against each other: `--reference first`, `previous` and `auto`."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from bitstream.container import read_file
from codec.codec import Codec
from codec.errors import UsageError
from codec.metrics import psnr
from codec.parallel import series
from tests.helpers.commands import records, run

SIZE = (120, 100)
COUNT = 4


@pytest.fixture(scope="module")
def burst(photo) -> list[Image.Image]:
    """Images of one scene, each a little brighter than the one before, and with noise of its own."""
    pixels = np.asarray(photo.crop((200, 100, 200 + SIZE[0], 100 + SIZE[1])), np.float32)
    noise = [np.random.default_rng(seed).normal(0, 1.5, pixels.shape) for seed in range(COUNT)]
    return [Image.fromarray((pixels + index + noise[index]).clip(0, 255).astype(np.uint8)) for index in range(COUNT)]


@pytest.fixture(scope="module")
def others(photo) -> list[Image.Image]:
    return [photo.crop((x, 250, x + SIZE[0], 250 + SIZE[1])).rotate(180) for x in (0, 350)]


@pytest.fixture
def folder(burst, tmp_path, monkeypatch) -> Path:
    monkeypatch.chdir(tmp_path)
    Path("in").mkdir()
    for index, image in enumerate(burst):
        image.save(f"in/{index}.png")
    return tmp_path


def encode(*options: object) -> dict[str, dict]:
    """Encodes the folder 'in' to 'out'; returns the records by the names of the inputs."""
    outcome = run("encode", "-r", "in", "--output-dir", "out", "--json", *options)
    return {Path(record["input"]).relative_to("in").as_posix(): record for record in records(outcome)}


def references() -> dict[str, str | None]:
    files = {path.relative_to("out").as_posix(): read_file(path.read_bytes()) for path in Path("out").rglob("*.tsr")}
    return {name: file.reference.name if file.reference else None for name, file in sorted(files.items())}


def sizes() -> int:
    return sum(path.stat().st_size for path in Path("out").rglob("*.tsr"))


def test_first(folder, burst):
    found = encode("--reference", "first", "-q", "30")
    assert references() == {"0.tsr": None, "1.tsr": "0.tsr", "2.tsr": "0.tsr", "3.tsr": "0.tsr"}
    assert [found[name]["reference"] for name in sorted(found)] == [None, "0.tsr", "0.tsr", "0.tsr"]
    assert found["0.png"]["quality"] == pytest.approx(series.raised_quality(30, COUNT), abs=1)
    assert found["1.png"]["quality"] == 30
    assert run("decode", "-r", "out", "--output-dir", "decoded").exit_code == 0
    for index, image in enumerate(burst):
        assert psnr(np.asarray(Image.open(f"decoded/{index}.png")), np.asarray(image)) > 24
    Path("one").mkdir()
    assert run("decode", "out/3.tsr", "--output-dir", "one").exit_code == 0  # the reference is beside the file


def test_previous(folder):
    encode("--reference", "previous", "-q", "30")
    assert references() == {"0.tsr": None, "1.tsr": "0.tsr", "2.tsr": "1.tsr", "3.tsr": "2.tsr"}
    assert run("decode", "-r", "out", "--output-dir", "decoded").exit_code == 0


def test_auto(folder, others):
    for index, image in enumerate(others):
        image.save(f"in/{index}x.png")
    encode("-q", "30")
    alone = sizes()
    encode("--reference", "auto", "-q", "30", "-f")
    assert references() == {
        "0.tsr": None, "0x.tsr": None, "1.tsr": "0.tsr", "1x.tsr": None, "2.tsr": "0.tsr", "3.tsr": "0.tsr",
    }  # fmt: skip
    assert sizes() < alone


def test_auto_codes_images_by_themselves_if_that_is_smaller(folder, others, monkeypatch):
    monkeypatch.setattr(series, "ALIKE", 255)
    for path in Path("in").iterdir():
        path.unlink()
    for index, image in enumerate(others):
        image.save(f"in/{index}.png")
    encode("-q", "30")
    alone = {path.name: path.read_bytes() for path in Path("out").iterdir()}
    encode("--reference", "auto", "-q", "30", "-f")
    assert {path.name: path.read_bytes() for path in Path("out").iterdir()} == alone


@pytest.mark.parametrize("mode", ["first", "previous", "auto"])
def test_a_run_that_was_stopped_continues(folder, mode):
    encode("--reference", mode, "-q", "30")
    complete = {path.name: path.read_bytes() for path in Path("out").iterdir()}
    for name in ("1.tsr", "3.tsr"):
        Path("out", name).unlink()
    found = encode("--reference", mode, "-q", "30", "--skip-existing")
    assert [found[name]["status"] for name in sorted(found)] == ["skipped", "done", "skipped", "done"]
    assert {path.name: path.read_bytes() for path in Path("out").iterdir()} == complete


@pytest.mark.parametrize("mode", ["first", "previous", "auto"])
def test_the_next_image_replaces_a_damaged_reference(folder, mode):
    Path("in/0.png").write_bytes(b"no image")
    outcome = run("encode", "-r", "in", "--output-dir", "out", "--reference", mode, "-q", "30", "-j", "1")
    assert outcome.exit_code == 1
    assert references() == {"1.tsr": None, "2.tsr": "1.tsr", "3.tsr": "2.tsr" if mode == "previous" else "1.tsr"}


def test_each_folder_is_a_series(folder, burst):
    Path("in/sub").mkdir()
    for index in range(2):
        burst[index].save(f"in/sub/{index}.png")
    encode("--reference", "first", "-q", "30", "--keep-extension")
    assert references()["sub/0.png.tsr"] is None
    assert references()["sub/1.png.tsr"] == references()["1.png.tsr"] == "0.png.tsr"


def test_every_file_keeps_to_a_size(folder):
    for mode in ("first", "auto"):
        found = encode("--reference", mode, "--target-size", "300", "-f")
        assert all(record["bytes"] <= 300 for record in found.values())
        assert references()["3.tsr"] == "0.tsr"


def test_the_reference_exceeds_a_psnr(folder):
    found = encode("--reference", "first", "--target-psnr", "24")
    assert all(record["reached"] for record in found.values())
    assert found["0.png"]["bytes"] > encode("--target-psnr", "24", "-f")["0.png"]["bytes"]


def test_contradictions(folder, monkeypatch):
    for options in (["--ray"], ["-e", "5"]):
        assert run("encode", "-r", "in", "--output-dir", "out", "--reference", "first", *options).exit_code == 2
    with Codec(device="cpu") as codec:
        monkeypatch.setattr(type(codec.model), "refers", False)
        with pytest.raises(UsageError):
            codec.encode_all(["in/0.png", "in/1.png"], reference="first")


def test_a_single_image_has_no_reference(folder):
    assert run("encode", "in/0.png", "alone.tsr", "--reference", "first", "-q", "30").exit_code == 0
    assert run("encode", "in/0.png", "same.tsr", "-q", "30").exit_code == 0
    assert Path("alone.tsr").read_bytes() == Path("same.tsr").read_bytes()
    Path("first").write_bytes(Path("same.tsr").read_bytes())
    assert run("encode", "in/1.png", "-o", "one.tsr", "--reference", "./first", "-q", "30").exit_code == 0
    assert read_file(Path("one.tsr").read_bytes()).reference.name == "first"


def test_python(codec, burst):
    outcomes = sorted(codec.encode_all(burst, reference="previous", quality=30), key=lambda outcome: outcome.index)
    files = [outcome.result.data for outcome in outcomes]
    assert [file.reference is not None for file in map(read_file, files)] == [False, True, True, True]
    assert codec.decode(files[1], reference=files[0]).image.size == SIZE


def test_similar_images_form_groups(codec, burst, others, monkeypatch):
    monkeypatch.setattr(series, "MAX_GROUP", 3)
    images = [burst[0], others[0], burst[1], burst[2], burst[3].resize((50, 50)), others[1], burst[3], b"damaged"]
    members = series.members_of(images)
    groups = series._Series(codec, members, {"reference": "auto"}, None, None)._groups()
    assert groups == [[0, 2, 3], [1], [4], [5], [6], [7]]


def test_the_quality_of_a_reference_rises_with_the_images():
    qualities = [series.raised_quality(30, count) for count in (1, 2, 4, 16, 64, 1000)]
    assert qualities == sorted(qualities)
    assert qualities[:2] == [30, 30]
    assert qualities[-1] <= series.MAX_RAISED
    assert series.raised_quality(90, 100) == 90
