"""The command with a One-D-Piece and a TiTok: tiny networks in checkpoints of the published layout."""

from __future__ import annotations

import json
import subprocess
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image
from safetensors.torch import save_file

import tessera
from bitstream.container import read_file
from codec.errors import ModelError, UsageError
from codec.models.installing import import_model
from codec.models.registry import installed_folder, open_model
from codec.titok import checkpoint as checkpoint_module
from codec.titok.config import SECOND_GENERATION, TitokConfig
from codec.titok.model import TitokModel
from codec.titok.network import Titok
from tests.helpers.commands import TESSERA, encoded, records, run
from tests.helpers.titok import published_settings

TINY = {"side": 32, "codebook": 64, "pixel_codebook": 20, "pixel_code": 8, "pixel_width": 32}
CONFIGS = {True: TitokConfig(8, True, 16, 1, 2, **TINY), False: TitokConfig(6, False, 16, 1, 2, **TINY)}  # by tail drop


def write_checkpoint(folder: Path, tail_drop: bool) -> Path:
    """A folder in the published layout, with seeded random weights."""
    torch.manual_seed(5)
    folder.mkdir()
    network = Titok(CONFIGS[tail_drop])
    with torch.no_grad():
        network.pixel_decoder.conv_out.weight.mul_(0.1)
        network.pixel_decoder.conv_out.bias.fill_(0.5)
    save_file(network.state_dict(), folder / "model.safetensors")
    settings = published_settings("one-d-piece-s-256" if tail_drop else "titok-s-128")
    (folder / "config.json").write_text(json.dumps(settings))
    return folder


@pytest.fixture(autouse=True)
def tiny_configs(monkeypatch):
    monkeypatch.setattr(checkpoint_module, "published_config", lambda size, tokens, tail_drop, decoder: CONFIGS[tail_drop])


@pytest.fixture
def models(tmp_path, monkeypatch) -> None:
    """Both networks, installed as `piece` (with tail drop) and `titok`; their checkpoints are in `tmp_path`."""
    monkeypatch.setenv("XDG_DATA_HOME", str(tmp_path / "data"))
    for name, tail_drop in (("piece", True), ("titok", False)):
        outcome = run("models", "import", write_checkpoint(tmp_path / name, tail_drop), "--name", name)
        assert outcome.exit_code == 0, outcome.output


@pytest.fixture
def image(tmp_path, photo) -> Path:
    photo.crop((200, 100, 280, 150)).save(tmp_path / "a.png")  # 3 x 2 blocks
    return tmp_path / "a.png"


def test_an_image_is_coded_at_three_lengths(models, image, tmp_path):
    sizes = []
    for tokens in (1, 3, 8):
        record = encoded(image, "--model", "piece", "--tokens", tokens)
        assert (record["model"], record["tokens"]) == ("piece", tokens)
        assert run("decode", tmp_path / "a.tsr", "-o", tmp_path / "b.png", "-f").exit_code == 0
        with Image.open(tmp_path / "b.png") as decoded:
            assert decoded.size == (80, 50)
        sizes.append((tmp_path / "a.tsr").stat().st_size)
    assert sizes == sorted(set(sizes))
    (record,) = records(run("info", tmp_path / "a.tsr", "--json"))
    assert (record["model"], record["tokens"], record["quality"], record["length"]) == ("piece", 8, 100, 48)


def test_a_pipe_of_two_processes(models, image):
    """The second process finds the model by the stream id."""
    encode = subprocess.run([*TESSERA, "encode", "-", "--model", "piece"], input=image.read_bytes(), capture_output=True)
    assert encode.returncode == 0, encode.stderr
    decode = subprocess.run([*TESSERA, "decode", "-", "--format", "ppm"], input=encode.stdout, capture_output=True)
    assert decode.returncode == 0, decode.stderr
    assert decode.stdout.startswith(b"P6\n80 50\n255\n")


def test_budgets_are_kept_and_truncated_files_decode(models, image, tmp_path):
    file = tmp_path / "a.tsr"
    encoded(image, "--model", "piece", "--target-size", "30")
    data = file.read_bytes()
    assert 26 <= len(data) <= 30
    file.write_bytes(data[:-6])
    assert run("decode", file, "-o", tmp_path / "b.png").exit_code == 1
    outcome = run("decode", file, "-o", tmp_path / "b.png", "--allow-partial", "--json")
    assert outcome.exit_code == 0, outcome.output
    assert 0 < records(outcome)[0]["tokens"] < read_file(data).length / 6


def test_folders_and_targets_of_quality(models, image, tmp_path):
    outcome = run("encode", image.parent, "--output-dir", tmp_path / "out", "--model", "piece", "--target-psnr", "5")
    assert outcome.exit_code == 0, outcome.output
    assert [path.name for path in (tmp_path / "out").iterdir()] == ["a.tsr"]
    assert run("decode", tmp_path / "out").exit_code == 0
    assert (tmp_path / "out" / "a.png").exists()


def test_tokens_are_exported_and_imported(models, image, tmp_path):
    file, arrays = tmp_path / "a.tsr", tmp_path / "a.npz"
    for name, count in (("piece", 8), ("titok", 6)):
        encoded(image, "--model", name)
        assert run("tokens", file, "-o", arrays, "-f").exit_code == 0
        with np.load(arrays) as exported:
            assert exported["size"].tolist() == [80, 50]
            assert (exported["indices"].dtype, exported["indices"].shape) == (np.int32, (count, 2, 3))
            assert exported["known"].sum() == read_file(file.read_bytes()).length
        assert run("tokens", "--back", arrays, "--model", name, "-o", tmp_path / "b.tsr", "-f").exit_code == 0
        assert (tmp_path / "b.tsr").read_bytes() == file.read_bytes()


def test_indices_outside_the_codebook_are_refused(models, image, tmp_path):
    arrays = tmp_path / "a.npz"
    encoded(image, "--model", "titok")
    assert run("tokens", tmp_path / "a.tsr", "-o", arrays).exit_code == 0
    with np.load(arrays) as exported:
        changed = dict(exported) | {"indices": exported["indices"] + 64}
    np.savez(arrays, **changed)
    assert run("tokens", "--back", arrays, "--model", "titok", "-o", tmp_path / "b.tsr").exit_code == 1
    assert not (tmp_path / "b.tsr").exists()


@pytest.mark.parametrize(
    ("arguments", "code"),
    [
        (("--model", "piece", "-e", "5"), 2),  # no refinement
        (("--model", "piece", "--tokens", "9"), 2),  # it has 8
        (("--model", "titok", "--tokens", "5"), 2),  # it decodes all 6 or none
        (("--model", "titok", "--target-size", "20"), 1),  # too few bytes for all of them
    ],
)
def test_options_that_a_model_does_not_support_are_refused(models, image, tmp_path, arguments, code):
    outcome = run("encode", image, *arguments)
    assert outcome.exit_code == code, outcome.output
    assert not (tmp_path / "a.tsr").exists()


def test_a_model_without_tail_drop_decodes_all_tokens_or_none(models, image, tmp_path):
    file = tmp_path / "a.tsr"
    encoded(image, "--model", "titok", "-q", "10")
    data = file.read_bytes()
    assert read_file(data).length == 36
    assert run("decode", file, "-o", tmp_path / "b.png").exit_code == 0
    assert run("decode", file, "-o", tmp_path / "c.png", "--tokens", "5").exit_code == 2
    file.write_bytes(data[:-1])  # some tokens of the last position are known
    assert run("decode", file, "-o", tmp_path / "c.png", "--allow-partial").exit_code == 0
    file.write_bytes(data[:-9])  # none are
    assert run("decode", file, "-o", tmp_path / "d.png", "--allow-partial").exit_code == 1
    assert not (tmp_path / "d.png").exists()
    encoded(image, "--model", "titok", "--target-psnr", "90")


def test_python_and_pillow(models, image, tmp_path):
    import tessera.pillow

    data = tessera.encode(image, model="piece", tokens=3)
    assert tessera.decode(data).size == (80, 50)
    with Image.open(image) as opened:
        opened.save(tmp_path / "b.tsr", model="piece", tokens=3)
    assert (tmp_path / "b.tsr").read_bytes() == data
    with Image.open(tmp_path / "b.tsr") as opened:
        assert np.array_equal(np.asarray(opened), np.asarray(tessera.decode(data)))


def test_the_second_generation_codes_an_image(image, tmp_path):
    config = replace(CONFIGS[False], decoder_size=(24, 2, 3), **(SECOND_GENERATION | {"codebook": 64}))
    weights = {name: value.numpy() for name, value in Titok(config).state_dict().items()}
    model = TitokModel.save(tmp_path / "second.safetensors", config, weights, TitokModel.new_code(config), {})
    data = tessera.encode(image, model=str(model.path))
    assert read_file(data).length == 36
    with Image.open(image) as original:
        assert tessera.Codec(str(model.path)).decode(data).image.size == original.size
    assert run("encode", image, "--model", model.path, "--tokens", 5).exit_code == 2
    assert run("models", "check", model.path).exit_code == 0


def test_tiles_are_refused(models, image):
    with pytest.raises(UsageError):
        tessera.Codec("piece", device="cpu", tile=64).encode(image)


def test_bench_measures_a_model(models, image):
    arguments = ("--codecs", "tessera", "--bpp", "0.05,0.1", "--metrics", "psnr", "--no-speed", "--no-cache", "--csv", "-")
    for model, points in (("piece", 2), ("titok", 1)):
        outcome = run("bench", image, *arguments, "--model", model)
        assert outcome.exit_code == 0, outcome.output
        assert outcome.stdout.count("a.png,tessera,") == points


def test_models_are_listed_checked_and_removed(models):
    assert [line.split()[0] for line in run("models", "list").stdout.splitlines()] == ["standard", "piece", "titok"]
    assert run("models", "check").exit_code == 0
    assert run("models", "remove", "piece").exit_code == 0
    assert [path.stem for path in installed_folder().iterdir()] == ["titok"]
    assert run("models", "remove", "piece").exit_code == 1


def test_names_are_used_once(models, tmp_path):
    for name in ("piece", "standard"):
        assert run("models", "import", tmp_path / "titok", "--name", name).exit_code == 1
    assert run("models", "import", tmp_path / "titok", "--name", "piece", "-f").exit_code == 0
    assert open_model("piece").code.block_tokens == 6


def test_a_name_is_not_a_path(models, tmp_path):
    with pytest.raises(ModelError):
        import_model(str(tmp_path / "titok"), "../evil")
    assert sorted(path.name for path in installed_folder().iterdir()) == ["piece.safetensors", "titok.safetensors"]


def test_a_damaged_model_does_not_affect_others(models, image, tmp_path):
    (installed_folder() / "broken.safetensors").write_bytes(b"junk")
    assert run("encode", image, tmp_path / "a.tsr").exit_code == 0
    assert run("encode", image, tmp_path / "b.tsr", "--model", "piece").exit_code == 0
    assert run("decode", tmp_path / "a.tsr", tmp_path / "b.tsr", "--output-dir", tmp_path / "out").exit_code == 0


def test_calibration_on_photos_makes_smaller_files(models, image, tmp_path, photo):
    photos = tmp_path / "photos"
    photos.mkdir()
    for number in range(2):
        photo.rotate(180 * number).save(photos / f"{number}.png")
    outcome = run("models", "import", tmp_path / "piece", "--name", "tuned", "--calibrate", photos, "--json")
    assert outcome.exit_code == 0, outcome.output
    assert records(outcome)[0]["bits_per_token"] < 6
    sizes = {}
    for name in ("piece", "tuned"):
        assert run("encode", image, tmp_path / f"{name}.tsr", "--model", name, "-q", "100").exit_code == 0
        assert run("decode", tmp_path / f"{name}.tsr", "-o", tmp_path / f"{name}.ppm").exit_code == 0
        sizes[name] = (tmp_path / f"{name}.tsr").stat().st_size
    assert sizes["tuned"] < sizes["piece"]
    assert (tmp_path / "tuned.ppm").read_bytes() == (tmp_path / "piece.ppm").read_bytes()
