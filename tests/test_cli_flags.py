"""One flag means one thing everywhere: which commands have it, and what it does, by running them."""

from __future__ import annotations

import json
import sys

import click
import numpy as np
import pytest
from click.testing import CliRunner
from PIL import Image

from bitstream.container import read_file
from bitstream.pyramid_tokens import QUALITY_STOPS
from cli.main import main
from codec.models.registry import open_model

CODING = ("encode", "decode", "bench run")
IMAGES = ("encode", "decode")
ALL = ("encode", "decode", "info", "tokens", "bench run", "models list", "models path", "models check", "train")
FLAGS = {
    "--output": ("encode", "decode", "tokens", "train"),
    "--output-dir": IMAGES,
    "--quality": ("encode",),
    "--tokens": IMAGES,
    "--target-size": ("encode",),
    "--target-bpp": ("encode",),
    "--target-psnr": ("encode",),
    "--target-lpips": ("encode",),
    "--strict": ("encode",),
    "--effort": ("encode",),
    "--jobs": CODING,
    "--batch": IMAGES,
    "--device": (*CODING, "train"),
    "--model": ("encode", "decode", "bench run"),
    "--ray": CODING,
    "--recursive": CODING,
    "--files-from": CODING,
    "--force": (*CODING, "tokens"),
    "--keep-extension": ("encode",),
    "--skip-existing": ("encode", "decode", "tokens"),
    "--dry-run": IMAGES,
    "--strip": ("encode",),
    "--keep-exif": ("encode",),
    "--background": IMAGES,
    "--output-quality": ("decode",),
    "--alpha-quality": ("encode",),
    "--max-pixels": (*CODING, "info", "tokens"),
    "--allow-partial": ("decode", "info"),
    "--format": ("decode",),
    "--json": ALL,
    "--quiet": ALL,
    "--verbose": ALL,
}
SHORT = {
    "--output": "-o", "--quality": "-q", "--effort": "-e", "--jobs": "-j", "--recursive": "-r", "--force": "-f",
    "--dry-run": "-n", "--verbose": "-v",
}  # fmt: skip


def run(*arguments, data: bytes | None = None):
    return CliRunner().invoke(main, [str(argument) for argument in arguments], input=data)


@pytest.fixture
def image(tmp_path, photo):
    photo.crop((100, 100, 228, 196)).save(tmp_path / "a.png")
    return tmp_path / "a.png"


def encoded(image, *flags) -> dict:
    said = run("encode", image, "-f", "--json", *flags)
    assert said.exit_code == 0, said.stderr
    return json.loads(said.stdout)


def command(path: str) -> click.Command:
    found: click.Command = main
    for name in path.split():
        assert isinstance(found, click.Group)
        found = found.commands[name]
    return found


@pytest.mark.parametrize("flag", FLAGS)
def test_a_flag_is_where_it_belongs_under_one_name_and_letter(flag):
    for path in FLAGS[flag]:
        found = [option for option in command(path).params if flag in option.opts]
        assert found, f"{path} has no {flag}"
        assert [name for name in found[0].opts if not name.startswith("--")] == ([SHORT[flag]] if flag in SHORT else [])


def test_quality_is_50_by_default_and_higher_is_larger(image):
    usual = encoded(image)
    assert usual["quality"] == 50
    assert encoded(image, "-q", "50")["bytes"] == usual["bytes"]
    told = [encoded(image, "--quality", quality) for quality in (0, 25, 50, 75, 100)]
    assert [one["tokens"] for one in told] == [tokens for _, tokens in QUALITY_STOPS]
    sizes = [one["bytes"] for one in told]
    assert sizes == sorted(set(sizes))
    assert usual["bpp"] == pytest.approx(usual["bytes"] * 8 / (128 * 96), abs=1e-5)
    assert f"{usual['bpp']:.4f} bpp" in run("encode", image, "-f").stderr
    for quality in ("-1", "101", "high"):
        said = run("encode", image, "-f", "-q", quality)
        assert (said.exit_code, said.stdout) == (2, "")
        assert quality in said.stderr


def test_tokens_are_a_block_when_written_and_when_read(image, tmp_path):
    whole = encoded(image, "--tokens", "300")
    file = read_file(image.with_suffix(".tsr").read_bytes())
    assert 300 <= whole["tokens"] < 300 + 256 / 48  # 48 of a block's 256 cells, and no part of a token
    assert encoded(image, "--tokens", "100")["bytes"] < whole["bytes"]
    short = image.with_suffix(".tsr").read_bytes()
    assert read_file(short).length < file.length

    assert encoded(image, "--tokens", "300")["bytes"] == whole["bytes"]
    drawn = {}
    for name, flags in {"all": (), "more": ("--tokens", "1365"), "fewer": ("--tokens", "100")}.items():
        out = tmp_path / f"{name}.png"
        assert run("decode", image.with_suffix(".tsr"), "-o", out, *flags).exit_code == 0
        drawn[name] = np.asarray(Image.open(out))
    (tmp_path / "short.tsr").write_bytes(short)
    assert run("decode", tmp_path / "short.tsr", "-o", tmp_path / "short.png").exit_code == 0
    assert np.array_equal(drawn["all"], drawn["more"])
    assert np.array_equal(drawn["fewer"], np.asarray(Image.open(tmp_path / "short.png")))
    assert not np.array_equal(drawn["fewer"], drawn["all"])


@pytest.mark.parametrize(
    ("flag", "value", "limit"), [("--target-size", "0.3k", 300), ("--target-size", "400", 400), ("--target-bpp", "0.2", 307)]
)
def test_a_size_is_never_exceeded_and_used(image, flag, value, limit):
    assert limit - 16 < encoded(image, flag, value)["bytes"] <= limit


def test_an_impossible_size_says_the_smallest_possible(image):
    said = run("encode", image, "-f", "--target-size", "5")
    assert said.exit_code == 1
    assert len(said.stderr.splitlines()) == 1
    smallest = next(int(word) for word in said.stderr.split() if word.isdigit() and int(word) > 5)
    assert encoded(image, "--target-size", smallest)["bytes"] <= smallest
    assert run("encode", image, "-f", "--target-size", smallest - 1).exit_code == 1


def test_a_model_by_name_or_path_writes_the_same_file(image, tmp_path):
    encoded(image)
    usual = image.with_suffix(".tsr").read_bytes()
    standard = open_model()
    (tmp_path / "mine.safetensors").write_bytes(standard.path.read_bytes())
    for name in ("standard", tmp_path / "mine.safetensors"):
        encoded(image, "--model", name)
        assert image.with_suffix(".tsr").read_bytes() == usual
    assert read_file(usual).stream_id == standard.stream_id
    assert run("decode", image.with_suffix(".tsr"), "-o", tmp_path / "b.png").exit_code == 0


def test_formats_that_are_not_in_the_name(image, tmp_path):
    encoded(image)
    for name, kind in (("png", "PNG"), ("jpg", "JPEG"), ("webp", "WEBP"), ("ppm", "PPM")):
        out = tmp_path / "drawn"
        assert run("decode", image.with_suffix(".tsr"), "-o", out, "-f", "--format", name).exit_code == 0
        with Image.open(out) as drawn:
            assert (drawn.format, drawn.size) == (kind, (128, 96))
    said = run("decode", image.with_suffix(".tsr"), "-o", out, "-f", "--format", "xyz")
    assert said.exit_code in (1, 2)
    assert "xyz" in said.stderr


def test_a_whole_and_a_cut_file_under_allow_partial(image, tmp_path):
    encoded(image)
    data = image.with_suffix(".tsr").read_bytes()
    cut = tmp_path / "cut.tsr"
    cut.write_bytes(data[: len(data) // 2])
    for name in ("decode", "info"):
        output = ("-o", tmp_path / "cut.png") if name == "decode" else ()
        refused = run(name, cut, *output)
        assert refused.exit_code == 1
        assert "--allow-partial" in refused.stderr
        assert run(name, cut, *output, "--allow-partial").exit_code == 0
    with Image.open(tmp_path / "cut.png") as drawn:
        assert drawn.size == (128, 96)


def test_background_flattens_what_is_kept_without_it(tmp_path, photo):
    see_through = photo.crop((0, 0, 64, 64)).convert("RGBA")
    see_through.putalpha(Image.linear_gradient("L").resize((64, 64)))
    see_through.save(tmp_path / "a.png")
    for flags, mode in (((), "RGBA"), (("--background", "white"), "RGB")):
        encoded(tmp_path / "a.png", *flags)
        assert run("decode", tmp_path / "a.tsr", "-o", tmp_path / "b.png", "-f").exit_code == 0
        with Image.open(tmp_path / "b.png") as drawn:
            assert drawn.mode == mode
            if mode == "RGBA":
                assert drawn.getchannel("A").tobytes() == see_through.getchannel("A").tobytes()


def test_json_is_one_object_a_file_also_for_models(image):
    encoded(image)
    for arguments in (
        ("decode", image.with_suffix(".tsr"), "-f"),
        ("info", image.with_suffix(".tsr")),
        ("tokens", image.with_suffix(".tsr"), "-o", image.with_suffix(".npz")),
        ("models", "path"),
        ("models", "check", "standard"),
    ):
        said = run(*arguments, "--json")
        assert (said.exit_code, len(said.stdout.splitlines())) == (0, 1), said.stderr
        told = json.loads(said.stdout)
        assert arguments[0] == "models" or {"input", "output", "status", "width", "height", "bytes", "error"} <= told.keys()


@pytest.mark.parametrize(
    ("given", "told"),
    [
        (("--ray", "{a}"), "a.png' is not the address of a Ray cluster: write HOST:PORT or auto; --ray alone comes after the"),
        (("{a}", "--ray", "head"), "'head' is not the address"),
        (
            ("{a}", "--ray", "ray://head:10001"),
            "'ray://head:10001' is for Ray's client: run tessera on a machine",
        ),
        (("{a}", "--ray", "--device", "cuda:1"), "--ray and --device cuda:1 contradict each other"),
        (("{a}", "-o", "-", "--ray"), "--ray and '-' contradict each other"),
    ],
)
def test_what_ray_cannot_do_is_told(image, given, told):
    for options in ((), ("-n",)):
        said = run("encode", *(argument.format(a=image) for argument in given), *options)
        assert (said.exit_code, said.stdout) == (2, "")
        assert told in said.stderr
        assert not image.with_suffix(".tsr").exists()


@pytest.mark.parametrize("command", [("encode",), ("bench", "--codecs", "tessera", "--metrics", "psnr", "--no-cache")])
def test_without_the_extra_ray_is_named(image, command, monkeypatch):
    monkeypatch.setitem(sys.modules, "ray", None)
    said = run(command[0], image, *command[1:], "--ray")
    assert (said.exit_code, said.stdout) == (2, "")
    told = "work on several machines needs ray, which is not installed: pip install 'tessera-codec[ray]'\n"
    assert said.stderr in (f"Error: {told}", f"Error: bench: {told}")
    assert not image.with_suffix(".tsr").exists()
    assert run("encode", image, "--ray", "-n").exit_code == 0
