"""Errors of the library speak of its options; the command speaks of its flags."""

from __future__ import annotations

import ast
import pickle

import pytest
from click.testing import CliRunner
from PIL import Image

from bitstream.container import File, write_file
from cli.main import main
from cli.report import ADVICE
from codec.errors import TesseraError
from codec.system.device import pick_device
from tests.helpers import ROOT

SCRIPTS = ("weight_averaging.py",)  # run as programs


def run(*arguments):
    return CliRunner().invoke(main, [str(argument) for argument in arguments])


@pytest.fixture(scope="module")
def files(tmp_path_factory, codec, photo):
    """An image, its file, one that is cut, and one of a model that is not installed."""
    folder = tmp_path_factory.mktemp("errors")
    photo.crop((0, 0, 60, 40)).save(folder / "a.png")
    data = codec.encode(Image.open(folder / "a.png"))
    (folder / "a.tsr").write_bytes(data)
    (folder / "cut.tsr").write_bytes(data[:-3])
    (folder / "alien.tsr").write_bytes(write_file(File(20, 10, b"\x00\x01", 3, b"abc")))
    return folder


@pytest.mark.parametrize(
    ("name", "advice", "said"),
    [
        ("a.tsr", "max_pixels", "60x40 is 2,400 pixels, more than 100: raise --max-pixels to allow it"),
        ("cut.tsr", "allow_partial", "tokens are there: decode what there is with --allow-partial"),
        ("alien.tsr", "model", "name a model file with --model"),
    ],
)
def test_the_command_turns_an_option_into_a_flag(files, codec, monkeypatch, name, advice, said):
    if advice == "max_pixels":
        monkeypatch.setattr(codec, "max_pixels", 100)
    with pytest.raises(TesseraError) as caught:
        codec.decode((files / name).read_bytes())
    assert caught.value.advice == (advice,)
    assert "--" not in str(caught.value)
    flags = ["--max-pixels", "100"] if advice == "max_pixels" else []
    shown = run("decode", files / name, "-o", files / "x.png", *flags)
    assert shown.exit_code == 1
    assert shown.stderr.endswith(f"{said}\n")
    assert str(caught.value) in shown.stderr


def test_a_missing_device(files):
    with pytest.raises(TesseraError) as caught:
        pick_device("cuda:77")
    assert (caught.value.advice, "--" in str(caught.value)) == (("device",), False)
    shown = run("encode", files / "a.png", "-o", files / "x.tsr", "--device", "cuda:77")
    assert (shown.exit_code, shown.stderr.endswith(": use --device cpu\n")) == (2, True)


def test_no_text_of_the_library_names_a_flag():
    for path in [*(ROOT / "codec").rglob("*.py"), *(ROOT / "bitstream").rglob("*.py")]:
        if path.name not in SCRIPTS:
            tree = ast.parse(path.read_text())
            texts = [node.value for node in ast.walk(tree) if isinstance(node, ast.Constant) and isinstance(node.value, str)]
            assert not [text for text in texts if " --" in text or text.startswith("--")], path


def test_every_advice_names_a_flag_that_exists():
    known = {option for command in main.commands.values() for parameter in command.params for option in parameter.opts}
    for text in ADVICE.values():
        flags = {word.strip(",") for word in text.split() if word.startswith("-")}
        assert flags
        assert flags <= known


def test_an_error_keeps_its_advice_between_processes():
    error = pickle.loads(pickle.dumps(TesseraError("too large", ("max_pixels",))))  # noqa: S301 (our own)
    assert (str(error), error.advice) == ("too large", ("max_pixels",))


def test_pillow_refuses_what_is_too_large_for_it(tmp_path, monkeypatch):
    import codec.pillow  # noqa: F401 (registers the format)

    monkeypatch.setattr(Image, "MAX_IMAGE_PIXELS", 100)
    (tmp_path / "a.tsr").write_bytes(write_file(File(20, 11, b"\x00\x01", 3, b"abc")))
    with pytest.raises(Image.DecompressionBombError):
        Image.open(tmp_path / "a.tsr")
    assert "DecompressionBombError" in (ROOT / "SECURITY.md").read_text()


def test_exit_codes_are_listed_where_people_look():
    for text in ((ROOT / "README.md").read_text(), (ROOT / "docs" / "tessera.1").read_text()):
        assert "130" in text
        assert "143" in text
        assert "SIGTERM" in text
