"""The command with a DetailFlow: a tiny network in a checkpoint of the published layout."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
from PIL import Image

import tessera
from bitstream.codebook_tokens import CodebookLayout
from bitstream.container import read_file
from codec.detailflow import model as model_module
from tests.helpers.commands import encoded, records, run
from tests.helpers.detailflow import TINY, write_checkpoint

BLOCKS = 4  # of the image


@pytest.fixture
def model(tmp_path, monkeypatch) -> str:
    """The network, installed under its own name; its checkpoint is in `tmp_path`."""
    monkeypatch.setenv("XDG_DATA_HOME", str(tmp_path / "data"))
    monkeypatch.setattr(model_module, "published_config", lambda block_tokens: TINY)
    outcome = run("models", "import", write_checkpoint(tmp_path / "checkpoint"))
    assert outcome.exit_code == 0, outcome.output
    return "detailflow-4"


@pytest.fixture
def image(tmp_path, photo) -> Path:
    photo.crop((200, 100, 310, 190)).save(tmp_path / "a.png")  # 2 x 2 blocks of 64 pixels
    return tmp_path / "a.png"


def pixels_of(file: Path) -> np.ndarray:
    return np.asarray(tessera.decode(file)).astype(int)


def test_lengths_are_rounded_down_to_trained_ones(model, image, tmp_path):
    """In groups of 4, after the first group."""
    file, sizes = tmp_path / "a.tsr", {}
    for tokens, kept in ((1, 1), (3, 3), (7, 4), (13, 12), (16, 16)):
        assert encoded(image, "--model", model, "--tokens", tokens)["tokens"] == kept
        assert read_file(file.read_bytes()).length == kept * BLOCKS
        assert run("decode", file, "-o", tmp_path / "b.png", "-f").exit_code == 0
        sizes[kept] = file.stat().st_size
    assert list(sizes.values()) == sorted(set(sizes.values()))
    assert encoded(image, "--model", model, "-q", 50)["tokens"] == 8
    (record,) = records(run("info", file, "--json"))
    assert (record["model"], record["tokens"], record["length"]) == (model, 8, 8 * BLOCKS)


def test_lengths_of_an_image_end_where_a_block_changes():
    """Some blocks may have one token more than others: kept if these complete a group."""
    layout = CodebookLayout(128, 128, 64, 16, group=4)
    kept = [layout.length_of(length / BLOCKS) for length in range(65)]
    assert kept[:17] == list(range(17))
    assert kept[17:33] == [*[16] * 12, 29, 30, 31, 32]
    assert all(layout.length_of(layout.block_tokens_of(length)) == length for length in kept)


def test_prefixes_decode_coarse_to_fine(model, image, tmp_path):
    """Few tokens give a small image, enlarged: neighbouring pixels differ less."""
    file = tmp_path / "a.tsr"
    encoded(image, "--model", model, "-q", 100)
    changes = []
    for tokens in (1, 6, 10, 16):
        outcome = run("decode", file, "-o", tmp_path / "b.ppm", "-f", "--tokens", tokens, "--json")
        assert outcome.exit_code == 0, outcome.output
        with Image.open(tmp_path / "b.ppm") as decoded:
            assert decoded.size == (110, 90)
            changes.append(np.abs(np.diff(np.asarray(decoded).astype(int), axis=0)).mean())
    assert changes == sorted(changes)
    assert changes[0] < changes[-1] / 2


def test_budgets_are_kept_and_truncated_files_decode(model, image, tmp_path):
    file = tmp_path / "a.tsr"
    encoded(image, "--model", model, "--target-size", "60")
    data = file.read_bytes()
    assert 40 < len(data) <= 60
    length = read_file(data).length
    assert length == CodebookLayout(110, 90, 64, 16, group=4).length_of(length / BLOCKS)
    file.write_bytes(data[:-6])
    assert run("decode", file, "-o", tmp_path / "b.png").exit_code == 1
    outcome = run("decode", file, "-o", tmp_path / "b.png", "--allow-partial", "--json")
    assert outcome.exit_code == 0, outcome.output
    assert 0 < records(outcome)[0]["tokens"] < length / BLOCKS


@pytest.mark.parametrize(("psnr", "tokens"), [(1, 0.25), (90, 16)])
def test_targets_of_quality(model, image, psnr, tokens):
    """A single token of four blocks is enough for 1 dB, and all tokens are kept if the target is out of reach."""
    assert encoded(image, "--model", model, "--target-psnr", psnr)["tokens"] == tokens


def test_a_pipe_a_folder_and_pillow(model, image, tmp_path):
    import tessera.pillow

    encode = run("encode", "-", "--model", model, data=image.read_bytes())
    assert encode.exit_code == 0, encode.stderr
    assert encode.stdout_bytes == tessera.encode(image, model=model)
    outcome = run("encode", image.parent, "--output-dir", tmp_path / "out", "--model", model)
    assert outcome.exit_code == 0, outcome.output
    assert (tmp_path / "out" / "a.tsr").read_bytes() == encode.stdout_bytes
    assert run("decode", tmp_path / "out").exit_code == 0
    with Image.open(image) as opened:
        opened.save(tmp_path / "b.tsr", model=model)
    with Image.open(tmp_path / "b.tsr") as opened, Image.open(tmp_path / "out" / "a.png") as decoded:
        assert np.array_equal(np.asarray(opened), np.asarray(decoded))


def test_images_of_any_size(model):
    for size in ((1, 1), (64, 64), (65, 17), (200, 130)):
        data = tessera.encode(Image.effect_noise(size, 60).convert("RGB"), model=model, tokens=4)
        assert tessera.decode(data).size == size


def test_tokens_are_exported_and_imported(model, image, tmp_path):
    file, arrays = tmp_path / "a.tsr", tmp_path / "a.npz"
    encoded(image, "--model", model, "--tokens", 8)
    assert run("tokens", file, "-o", arrays).exit_code == 0
    with np.load(arrays) as exported:
        assert (exported["indices"].dtype, exported["indices"].shape) == (np.int32, (16, 2, 2))
        assert exported["known"].sum() == 8 * BLOCKS
    assert run("tokens", "--back", arrays, "--model", model, "-o", tmp_path / "b.tsr").exit_code == 0
    assert (tmp_path / "b.tsr").read_bytes() == file.read_bytes()


@pytest.mark.parametrize("arguments", [("-e", "5"), ("--tokens", "17"), ("--tile", "64")], ids=lambda arguments: arguments[0])
def test_options_that_the_model_does_not_support_are_refused(model, image, tmp_path, arguments):
    outcome = run("encode", image, "--model", model, *arguments)
    assert outcome.exit_code == 2, outcome.output
    assert not (tmp_path / "a.tsr").exists()


def test_bench_check_and_calibration(model, image, tmp_path, photo):
    arguments = ("--codecs", "tessera", "--bpp", "0.05,0.1", "--metrics", "psnr", "--no-speed", "--no-cache", "--csv", "-")
    outcome = run("bench", image, *arguments, "--model", model)
    assert outcome.exit_code == 0, outcome.output
    assert outcome.stdout.count("a.png,tessera") == 2
    assert run("models", "check", model).exit_code == 0
    photos = tmp_path / "photos"
    photos.mkdir()
    for number in range(2):
        photo.rotate(180 * number).save(photos / f"{number}.png")
    outcome = run("models", "import", tmp_path / "checkpoint", "--name", "tuned", "--calibrate", photos, "--json")
    assert outcome.exit_code == 0, outcome.output
    assert records(outcome)[0]["bits_per_token"] < 9
    sizes = [encoded(image, "--model", name, "-q", 100)["bytes"] for name in (model, "tuned")]
    assert sizes[1] < sizes[0]
