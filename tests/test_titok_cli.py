"""Everything that the command does, with a One-D-Piece and a TiTok: tiny ones, of the published layout but for their size."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
import torch
from click.testing import CliRunner, Result
from PIL import Image
from safetensors.torch import save_file
from test_titok_import import stated

import codec as library
from bitstream.container import read_file
from cli.main import main
from codec.errors import ModelError
from codec.models.registry import import_model, installed_folder, open_model
from codec.titok import checkpoint as convert
from codec.titok.config import TitokConfig
from codec.titok.network import Titok

TINY = {"side": 32, "codebook": 64, "pixel_codebook": 20, "pixel_code": 8, "pixel_width": 32}
SIZES = {True: TitokConfig(8, True, 16, 1, 2, **TINY), False: TitokConfig(6, False, 16, 1, 2, **TINY)}


def run(*arguments, data: bytes | None = None) -> Result:
    return CliRunner().invoke(main, [str(argument) for argument in arguments], input=data)


def checkpoint(folder: Path, tail_drop: bool) -> Path:
    """A folder as published, of a network with seeded random weights."""
    torch.manual_seed(5)
    folder.mkdir()
    network = Titok(SIZES[tail_drop])
    with torch.no_grad():
        network.pixel_decoder.conv_out.weight.mul_(0.1)
        network.pixel_decoder.conv_out.bias.fill_(0.5)
    save_file(network.state_dict(), folder / "model.safetensors")
    (folder / "config.json").write_text(json.dumps(stated("one-d-piece-s-256" if tail_drop else "titok-s-128")))
    return folder


@pytest.fixture(autouse=True)
def tiny(monkeypatch):
    monkeypatch.setattr(convert, "sized", lambda size, tokens, tail_drop: SIZES[tail_drop])


@pytest.fixture
def models(tmp_path, monkeypatch) -> None:
    """The two, installed as `nested` and `whole`."""
    monkeypatch.setenv("XDG_DATA_HOME", str(tmp_path / "data"))
    for name, tail_drop in (("nested", True), ("whole", False)):
        said = run("models", "import", checkpoint(tmp_path / name, tail_drop), "--name", name)
        assert said.exit_code == 0, said.output
        assert f"{name}, stream id " in said.stderr


@pytest.fixture
def image(tmp_path, photo) -> Path:
    photo.crop((200, 100, 280, 150)).save(tmp_path / "a.png")  # 3 x 2 blocks
    return tmp_path / "a.png"


def test_a_image_there_and_back_at_three_lengths(models, image, tmp_path):
    sizes = []
    for tokens in (1, 3, 8):
        said = run("encode", image, "--model", "nested", "--tokens", tokens, "-o", tmp_path / "a.tsr", "-f", "--json")
        assert said.exit_code == 0, said.output
        told = json.loads(said.stdout)
        assert (told["model"], told["tokens"]) == ("nested", tokens)
        assert run("decode", tmp_path / "a.tsr", "-o", tmp_path / "b.png", "-f").exit_code == 0
        with Image.open(tmp_path / "b.png") as back:
            assert back.size == (80, 50)
        sizes.append((tmp_path / "a.tsr").stat().st_size)
    assert sizes == sorted(set(sizes))
    shown = json.loads(run("info", tmp_path / "a.tsr", "--json").stdout)
    assert (shown["model"], shown["tokens"], shown["quality"], shown["length"]) == ("nested", 8, 100, 48)


def test_two_halves_of_a_pipe(models, image):
    """Two processes, the second of which finds the model by the file."""
    tessera = [sys.executable, "-m", "cli"]
    made = subprocess.run([*tessera, "encode", "-", "--model", "nested"], input=image.read_bytes(), capture_output=True)
    assert made.returncode == 0, made.stderr
    drawn = subprocess.run([*tessera, "decode", "-", "--format", "ppm"], input=made.stdout, capture_output=True)
    assert drawn.returncode == 0, drawn.stderr
    assert drawn.stdout.startswith(b"P6\n80 50\n255\n")


def test_budgets_are_kept_and_cut_files_decode(models, image, tmp_path):
    file = tmp_path / "a.tsr"
    assert run("encode", image, file, "--model", "nested", "--target-size", "30").exit_code == 0
    assert 26 <= file.stat().st_size <= 30
    whole = read_file(file.read_bytes())
    file.write_bytes(file.read_bytes()[:-6])
    refused = run("decode", file, "-o", tmp_path / "b.png")
    assert (refused.exit_code, "cut short" in refused.stderr) == (1, True)
    said = run("decode", file, "-o", tmp_path / "b.png", "--allow-partial", "--json")
    assert said.exit_code == 0, said.output
    assert 0 < json.loads(said.stdout)["tokens"] < whole.length / 6


def test_folders_and_targets_of_quality(models, image, tmp_path):
    said = run("encode", tmp_path, "--output-dir", tmp_path / "out", "--model", "nested", "--target-psnr", "5")
    assert said.exit_code == 0, said.output
    assert "1 encoded" in said.stderr
    assert run("decode", tmp_path / "out").exit_code == 0
    assert (tmp_path / "out" / "a.png").exists()


def test_tokens_out_and_in_again(models, image, tmp_path):
    file, arrays = tmp_path / "a.tsr", tmp_path / "a.npz"
    for name, count in (("nested", 8), ("whole", 6)):
        assert run("encode", image, file, "--model", name, "-f").exit_code == 0
        assert run("tokens", file, "-o", arrays, "-f").exit_code == 0
        with np.load(arrays) as read:
            assert read["size"].tolist() == [80, 50]
            assert (read["indices"].dtype, read["indices"].shape) == (np.int32, (count, 2, 3))
            assert read["known"].sum() == read_file(file.read_bytes()).length
        assert run("tokens", "--back", arrays, "--model", name, "-o", tmp_path / "b.tsr", "-f").exit_code == 0
        assert (tmp_path / "b.tsr").read_bytes() == file.read_bytes()
    with np.load(arrays) as read:
        wrong = dict(read) | {"indices": read["indices"] + 64}
    np.savez(arrays, **wrong)
    said = run("tokens", "--back", arrays, "--model", "whole", "-o", tmp_path / "b.tsr", "-f")
    assert (said.exit_code, "0..63 is allowed" in said.stderr) == (1, True)


@pytest.mark.parametrize(
    ("arguments", "code", "message"),
    [
        (("--model", "nested", "-e", "5"), 2, "effort 5 needs a model that refines tokens, and nested does not: use 3"),
        (("--model", "nested", "--tokens", "9"), 2, "tokens 9 is out of range: 1 to 8"),
        (("--model", "whole", "--tokens", "5"), 2, "all of its 6 tokens or not at all, not with 5"),
        (("--model", "whole", "--target-size", "20"), 1, "does not fit 20 bytes: the smallest file has"),
    ],
)
def test_what_a_model_cannot_do_is_said(models, image, tmp_path, arguments, code, message):
    said = run("encode", image, *arguments)
    assert (said.exit_code, message in said.stderr) == (code, True), said.output
    assert not (tmp_path / "a.tsr").exists()


def test_a_model_without_tail_drop_decodes_all_or_nothing(models, image, tmp_path):
    file = tmp_path / "a.tsr"
    assert run("encode", image, file, "--model", "whole", "-q", "10").exit_code == 0
    assert read_file(file.read_bytes()).length == 36
    assert run("decode", file, "-o", tmp_path / "b.png").exit_code == 0
    fewer = run("decode", file, "-o", tmp_path / "c.png", "--tokens", "5")
    assert (fewer.exit_code, "all of its 6 tokens or not at all, not with 5" in fewer.stderr) == (2, True)
    data = file.read_bytes()
    for size, code in ((len(data) - 1, 0), (len(data) - 9, 1)):  # of the last position some tokens are there, then none
        file.write_bytes(data[:size])
        said = run("decode", file, "-o", tmp_path / "c.png", "--allow-partial", "-f")
        assert said.exit_code == code, said.output
    assert "too few for a single block" in said.stderr
    assert run("encode", image, file, "-f", "--model", "whole", "--target-psnr", "90").exit_code == 0


def test_python_and_pillow(models, image, tmp_path):
    import codec.pillow  # noqa: F401

    data = library.encode(image, model="nested", tokens=3)
    assert library.decode(data).size == (80, 50)
    with Image.open(image) as opened:
        opened.save(tmp_path / "b.tsr", model="nested", tokens=3)
    assert (tmp_path / "b.tsr").read_bytes() == data
    with Image.open(tmp_path / "b.tsr") as opened:
        assert np.array_equal(np.asarray(opened), np.asarray(library.decode(data)))
    with pytest.raises(library.TesseraError, match="does not work in tiles"):
        library.Codec("nested", device="cpu", tile=64).encode(image)


def test_bench_measures_a_model(models, image, tmp_path):
    arguments = ("--codecs", "tessera", "--bpp", "0.05,0.1", "--metrics", "psnr", "--no-speed", "--no-cache", "--csv", "-")
    for model, points in (("nested", 2), ("whole", 1)):
        said = run("bench", image, *arguments, "--model", model)
        assert said.exit_code == 0, said.output
        assert said.stdout.count("a.png,tessera,") == points


def test_models_are_listed_checked_and_removed(models):
    assert [line.split()[0] for line in run("models", "list").stdout.splitlines()] == ["standard", "nested", "whole"]
    assert run("models", "check").stderr.count(", sound") == 3
    assert run("models", "remove", "nested").exit_code == 0
    assert [path.stem for path in installed_folder().iterdir()] == ["whole"]
    gone = run("models", "remove", "nested")
    assert (gone.exit_code, "nested: no such model among those you have installed: whole" in gone.stderr) == (1, True)


def test_names_are_not_taken_twice(models, tmp_path):
    for name, message in (
        ("nested", "is installed already: use -f to replace it"),
        ("standard", "is the name of a bundled model"),
    ):
        said = run("models", "import", tmp_path / "whole", "--name", name)
        assert (said.exit_code, message in said.stderr) == (1, True), said.output
    assert run("models", "import", tmp_path / "whole", "--name", "nested", "-f").exit_code == 0
    assert open_model("nested").code.block_tokens == 6
    with pytest.raises(ModelError, match="is not a name for a model"):
        import_model(str(tmp_path / "whole"), "../evil")
    assert sorted(path.name for path in installed_folder().iterdir()) == ["nested.safetensors", "whole.safetensors"]


def test_a_damaged_model_does_not_stand_in_the_way_of_others(models, image, tmp_path):
    (installed_folder() / "broken.safetensors").write_bytes(b"junk")
    assert run("encode", image, tmp_path / "a.tsr").exit_code == 0
    assert run("encode", image, tmp_path / "b.tsr", "--model", "nested").exit_code == 0
    assert run("decode", tmp_path / "a.tsr", tmp_path / "b.tsr", "--output-dir", tmp_path / "out").exit_code == 0


def test_calibrating_on_photos_makes_smaller_files(models, image, tmp_path, photo):
    photos = tmp_path / "photos"
    photos.mkdir()
    photo.save(photos / "photo.png")
    said = run("models", "import", tmp_path / "nested", "--name", "tuned", "--calibrate", photos, "--json")
    assert said.exit_code == 0, said.output
    assert json.loads(said.stdout)["bits_per_token"] < 6
    sizes = {}
    for name in ("nested", "tuned"):
        assert run("encode", image, tmp_path / f"{name}.tsr", "--model", name, "-q", "100").exit_code == 0
        assert run("decode", tmp_path / f"{name}.tsr", "-o", tmp_path / f"{name}.ppm").exit_code == 0
        sizes[name] = (tmp_path / f"{name}.tsr").stat().st_size
    assert sizes["tuned"] < sizes["nested"]
    assert (tmp_path / "tuned.ppm").read_bytes() == (tmp_path / "nested.ppm").read_bytes()
