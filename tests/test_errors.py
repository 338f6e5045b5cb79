"""Errors: the library names its options, and the command turns them into its flags."""

from __future__ import annotations

import ast
import pickle
import re

import numpy as np
import pytest
from PIL import Image

from bitstream.container import File, write_file
from cli.main import main
from cli.report import ADVICE
from codec.codec import Codec
from codec.errors import DeviceError, ModelError, TesseraError
from codec.models.base import write_model
from codec.system.device import pick_device
from tests.helpers import ROOT
from tests.helpers.commands import run


@pytest.fixture(scope="module")
def files(tmp_path_factory, codec, photo):
    """An image, its file, a cut file, and a file of a model that is not installed."""
    folder = tmp_path_factory.mktemp("errors")
    photo.crop((0, 0, 60, 40)).save(folder / "a.png")
    data = codec.encode(Image.open(folder / "a.png")).data
    (folder / "a.tsr").write_bytes(data)
    (folder / "cut.tsr").write_bytes(data[:-3])
    (folder / "unknown.tsr").write_bytes(write_file(File(20, 10, b"\x00\x01", 3, b"abc")))
    return folder


@pytest.mark.parametrize(("name", "advice"), [("a.tsr", "max_pixels"), ("cut.tsr", "allow_partial"), ("unknown.tsr", "model")])
def test_the_command_turns_options_into_flags(files, name, advice):
    codec = Codec(device="cpu", max_pixels=3000 if advice != "max_pixels" else 100)
    with pytest.raises(TesseraError) as caught:
        codec.decode((files / name).read_bytes())
    assert caught.value.advice == (advice,)
    assert "--" not in str(caught.value)
    flags = ["--max-pixels", "100"] if advice == "max_pixels" else []
    result = run("decode", files / name, "-o", files / "x.png", *flags)
    assert result.exit_code == 1
    assert result.stderr.endswith(f"{ADVICE[advice]}\n")
    assert f"--{advice.replace('_', '-')}" in ADVICE[advice]
    assert not (files / "x.png").exists()


def test_an_error_names_its_file_once_also_after_it_has_travelled(files, tmp_path):
    path = tmp_path / "broken.safetensors"
    metadata = {"kind": "tessera-titok-1", "fingerprint": "0" * 64, "card": {}}
    sizes = {"block_tokens": 32, "tail_drop": True, "width": -1, "layers": 8, "heads": 8}
    write_model(path, {"a": np.zeros(1, np.float32)}, metadata | {"network": sizes})
    with pytest.raises(ModelError) as caught:
        Codec(str(path)).encode(Image.open(files / "a.png"))
    for error in (caught.value, pickle.loads(pickle.dumps(caught.value))):  # noqa: S301
        assert (error.file, str(error)) == (str(path), f"{path}: {error.message}")
    assert run("models", "check", path).stderr.count(path.name) == 1
    assert f"a.png: {path}: " in run("encode", files / "a.png", "-o", tmp_path / "x.tsr", "--model", path).stderr
    with pytest.raises(TesseraError) as caught:
        Codec().decode(files / "none.tsr")
    assert caught.value.file == str(files / "none.tsr")
    assert run("decode", files / "none.tsr", "-o", tmp_path / "x.png").stderr.count("none.tsr") == 1


def test_a_missing_device_is_an_error_of_usage(files):
    with pytest.raises(DeviceError) as caught:
        pick_device("cuda:77")
    assert (caught.value.advice, "--" in str(caught.value)) == (("device",), False)
    result = run("encode", files / "a.png", "-o", files / "x.tsr", "--device", "cuda:77")
    assert (result.exit_code, result.stderr.endswith(f"{ADVICE['device']}\n")) == (2, True)


def test_no_text_of_the_library_names_a_flag():
    for path in [*(ROOT / "codec").rglob("*.py"), *(ROOT / "bitstream").rglob("*.py")]:
        nodes = ast.walk(ast.parse(path.read_text()))
        texts = [node.value for node in nodes if isinstance(node, ast.Constant) and isinstance(node.value, str)]
        assert not [text for text in texts if re.search(r"(?<!\S)--[a-z]", text)], path


def test_every_flag_or_command_that_is_advised_exists():
    commands = [*main.commands.values(), *main.commands["models"].commands.values()]
    flags = {option for command in commands for parameter in command.params for option in parameter.opts}
    for text in ADVICE.values():
        advised_flags = set(re.findall(r"(?<!\S)-[-a-z]+", text))
        advised_commands = set(re.findall(r"`tessera (\w+)`", text))
        assert advised_flags | advised_commands
        assert advised_flags <= flags
        assert advised_commands <= main.commands.keys()


def test_pickling_keeps_the_advice():
    error = pickle.loads(pickle.dumps(TesseraError("too large", ("max_pixels",))))  # noqa: S301 (our own)
    assert (str(error), error.advice) == ("too large", ("max_pixels",))


def test_exit_codes_are_documented():
    for text in ((ROOT / "docs" / "json.md").read_text(), (ROOT / "docs" / "tessera.1").read_text()):
        assert "130" in text
        assert "143" in text
        assert "SIGTERM" in text
