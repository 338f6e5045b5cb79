"""The command on one image: its outputs, pipes and records, and the effect of every option. Exact words are in transcripts/."""

from __future__ import annotations

import io
import os
import re
import subprocess
import sys
from dataclasses import replace
from pathlib import Path

import click
import numpy as np
import pytest
from PIL import Image

import tessera
from bitstream.container import File, read_file, write_file
from bitstream.pyramid_tokens import QUALITY_STOPS
from cli.main import main
from cli.progress import Bar
from codec.metrics import psnr
from codec.models.registry import open_model
from tests.helpers.commands import encoded, finish, records, run

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
    "--preserve": IMAGES,
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


@pytest.fixture
def image(tmp_path, photo) -> Path:
    photo.crop((100, 100, 228, 196)).save(tmp_path / "a.png")
    return tmp_path / "a.png"


@pytest.fixture
def clear(tmp_path, photo) -> Path:
    """An image with transparency and EXIF."""
    exif = Image.Exif()
    exif[0x010E] = "a description"
    clear = photo.crop((0, 0, 64, 48))
    clear.putalpha(Image.linear_gradient("L").resize(clear.size))
    clear.save(tmp_path / "clear.png", exif=exif)
    return tmp_path / "clear.png"


@pytest.fixture
def file(image) -> Path:
    """The .tsr file of the image."""
    image.with_suffix(".tsr").write_bytes(tessera.encode(image))
    return image.with_suffix(".tsr")


def pixels(path: Path | str | io.BytesIO) -> np.ndarray:
    with Image.open(path) as image:
        return np.asarray(image.convert("RGB")).astype(int)


def decode(file: Path, output: Path, *options: object) -> np.ndarray:
    outcome = run("decode", file, "-o", output, "-f", *options)
    assert outcome.exit_code == 0, outcome.stderr
    return pixels(output)


# Options


def command(path: str) -> click.Command:
    command: click.Command = main
    for name in path.split():
        assert isinstance(command, click.Group)
        command = command.commands[name]
    return command


@pytest.mark.parametrize("flag", FLAGS)
def test_an_option_has_one_name_and_letter_in_all_its_commands(flag):
    for path in FLAGS[flag]:
        (option,) = (option for option in command(path).params if flag in option.opts)
        assert [name for name in option.opts if not name.startswith("--")] == ([SHORT[flag]] if flag in SHORT else [])


# Encoding


def test_encode_writes_what_the_library_encodes(image):
    assert run("encode", image).exit_code == 0
    assert image.with_suffix(".tsr").read_bytes() == tessera.encode(image)


def test_quality_is_50_by_default_and_higher_is_larger(image):
    default = encoded(image)
    assert default["quality"] == 50
    assert encoded(image, "-q", "50")["bytes"] == default["bytes"]
    qualities = [encoded(image, "--quality", quality) for quality in (0, 25, 50, 75, 100)]
    assert [record["tokens"] for record in qualities] == [tokens for _, tokens in QUALITY_STOPS]
    sizes = [record["bytes"] for record in qualities]
    assert sizes == sorted(set(sizes))
    assert default["bpp"] == pytest.approx(default["bytes"] * 8 / (128 * 96), abs=1e-5)


def test_tokens_are_counted_per_block_in_both_directions(image, tmp_path):
    file = image.with_suffix(".tsr")
    encoded(image, "--tokens", "100")
    short = file.read_bytes()
    (tmp_path / "short.tsr").write_bytes(short)
    long = encoded(image, "--tokens", "300")
    assert 300 <= long["tokens"] < 300 + 256 / 48  # 48 of the block's 256 cells
    assert len(short) < long["bytes"]
    assert read_file(short).length < read_file(file.read_bytes()).length
    complete, more, fewer = (
        decode(file, tmp_path / "b.png", *options) for options in ((), ("--tokens", 1365), ("--tokens", 100))
    )
    assert np.array_equal(complete, more)
    assert np.array_equal(fewer, decode(tmp_path / "short.tsr", tmp_path / "b.png"))
    assert not np.array_equal(fewer, complete)


@pytest.mark.parametrize(
    ("flag", "value", "limit"), [("--target-size", "0.3k", 300), ("--target-size", "400", 400), ("--target-bpp", "0.2", 307)]
)
def test_a_size_is_never_exceeded_and_used(image, flag, value, limit):
    assert limit - 16 < encoded(image, flag, value)["bytes"] <= limit


def test_the_error_of_an_impossible_size_names_the_smallest(image):
    outcome = run("encode", image, "--target-size", "5", "--json")
    assert outcome.exit_code == 1
    smallest = max(map(int, re.findall(r"\b\d+\b", records(outcome)[0]["error"])))
    assert encoded(image, "--target-size", smallest)["bytes"] <= smallest
    assert run("encode", image, "-f", "--target-size", smallest - 1).exit_code == 1


def test_a_psnr_is_reached_by_the_smallest_file(image):
    record = encoded(image, "--target-psnr", "25")
    measured = psnr(
        decode(image.with_suffix(".tsr"), image.with_name("b.png")).astype(np.uint8), pixels(image).astype(np.uint8)
    )
    assert record["reached"] is True
    assert record["measured"] == pytest.approx(measured)
    assert 25 <= measured < 25.5
    assert encoded(image, "--target-psnr", "24")["bytes"] < record["bytes"] < encoded(image, "-q", "100")["bytes"]


def test_a_psnr_out_of_reach_gives_the_best_file_and_fails_only_with_strict(image):
    best = encoded(image, "-q", "100")["bytes"]
    for options, code, lines in (((), 0, 2), (("--strict",), 1, 2), (("--strict", "--quiet"), 1, 1), (("--quiet",), 0, 1)):
        outcome = run("encode", image, "-f", "--target-psnr", "90", *options)
        assert (outcome.exit_code, outcome.stderr.count("\n")) == (code, lines)
        assert image.with_suffix(".tsr").stat().st_size == best
    assert encoded(image, "--target-psnr", "90")["reached"] is False
    assert run("encode", image, "-f", "--strict", "--target-psnr", "20").exit_code == 0


def test_an_lpips_is_reached(image, lpips_weights):
    record = encoded(image, "--target-lpips", "0.3", "--lpips-weights", lpips_weights)
    assert record["reached"] is True
    assert 0.25 < record["measured"] <= 0.3
    strict = ("--target-lpips", "0", "--lpips-weights", lpips_weights, "--strict")
    assert run("encode", image, "-f", *strict).exit_code == 1


def test_effort_changes_the_file_only_above_its_default(image):
    files = []
    for options in ((), ("--effort", "3"), ("-e", "4")):
        encoded(image, "--tokens", "100", *options)
        files.append(image.with_suffix(".tsr").read_bytes())
    assert files[0] == files[1] != files[2]


def test_a_model_by_name_or_path_writes_the_same_file(image, tmp_path):
    encoded(image)
    expected = image.with_suffix(".tsr").read_bytes()
    standard = open_model()
    (tmp_path / "mine.safetensors").write_bytes(standard.path.read_bytes())
    for name in ("standard", tmp_path / "mine.safetensors"):
        encoded(image, "--model", name)
        assert image.with_suffix(".tsr").read_bytes() == expected
    assert read_file(expected).stream_id == standard.stream_id


def test_metadata_and_transparency_are_kept_as_asked(clear, tmp_path):
    def sections(*options: str) -> set[str]:
        encoded(clear, *options)
        (record,) = records(run("info", clear.with_suffix(".tsr"), "--json"))
        assert sum(section["bytes"] for section in record["sections"]) < record["section_bytes"] or not record["sections"]
        return {section["name"] for section in record["sections"]}

    assert sections() == {"alpha"}
    assert sections("--keep-exif") == {"alpha", "exif"}
    assert sections("--background", "white") == set()
    assert sections("--background", "#204060", "--keep-exif") == {"exif"}
    assert sections("--background", "#204060", "--strip") == set()
    for options, mode in ((("--background", "white"), "RGB"), ((), "RGBA")):
        encoded(clear, "--keep-exif", *options)
        decode(clear.with_suffix(".tsr"), tmp_path / "b.png")
        with Image.open(tmp_path / "b.png") as decoded, Image.open(clear) as original:
            assert decoded.mode == mode
            assert decoded.getexif()[0x010E] == "a description"
            if mode == "RGBA":
                assert np.array_equal(decoded.getchannel("A"), original.getchannel("A"))


# Decoding


@pytest.mark.parametrize(
    ("name", "kind"), [("png", "PNG"), ("jpg", "JPEG"), ("webp", "WEBP"), ("ppm", "PPM"), ("tiff", "TIFF")]
)
def test_a_format_by_ending_or_option(file, tmp_path, name, kind):
    decode(file, tmp_path / f"b.{name}")
    decode(file, tmp_path / "b", "--format", name)
    assert (tmp_path / "b").read_bytes() == (tmp_path / f"b.{name}").read_bytes()
    with Image.open(tmp_path / "b") as decoded:
        assert (decoded.format, decoded.size) == (kind, (128, 96))


@pytest.mark.parametrize("ending", ["jpg", "webp", "avif", "jxl"])
def test_lossy_formats_have_a_quality(file, tmp_path, ending):
    if ending == "jxl":
        pytest.importorskip("pillow_jxl")
    lossless = decode(file, tmp_path / "b.png")
    sizes = {}
    for quality in (None, 30, 100):
        output = tmp_path / f"{quality}.{ending}"
        image = decode(file, output, *([] if quality is None else ["--output-quality", quality]))
        sizes[quality] = output.stat().st_size
        if quality is None:
            assert psnr(image.astype(np.uint8), lossless.astype(np.uint8)) > 35
    assert sizes[30] < sizes[None] < sizes[100]
    assert sizes[None] < (tmp_path / "b.png").stat().st_size / 2
    if ending in ("webp", "jxl"):
        assert np.array_equal(pixels(tmp_path / f"100.{ending}"), lossless)


@pytest.mark.parametrize("ending", ["png", "ppm", "bmp"])
def test_a_quality_for_a_lossless_format_is_refused(file, tmp_path, ending):
    assert run("decode", file, tmp_path / f"b.{ending}", "--output-quality", "80").exit_code == 2
    assert not (tmp_path / f"b.{ending}").exists()


@pytest.mark.parametrize("ending", ["jpg", "ppm"])
def test_transparency_needs_a_background_if_the_format_has_none(clear, tmp_path, ending):
    encoded(clear)
    file, output = clear.with_suffix(".tsr"), tmp_path / f"b.{ending}"
    assert run("decode", file, output).exit_code == 1
    assert not output.exists()
    flat, expected = (decode(file, path, "--background", "#00ff00") for path in (output, tmp_path / "b.png"))
    assert np.allclose(flat[0].mean(0), (0, 255, 0), atol=3)
    assert np.abs(flat - expected).mean() < (4 if ending == "jpg" else 0.1)
    with Image.open(tmp_path / "b.png") as image:
        assert image.mode == "RGB"


def test_a_cut_file_is_refused_unless_allowed(file, tmp_path):
    (tmp_path / "cut.tsr").write_bytes(file.read_bytes()[:100])
    decode = ("decode", tmp_path / "cut.tsr", tmp_path / "b.png")
    assert run(*decode).exit_code == run("info", tmp_path / "cut.tsr").exit_code == 1
    assert not (tmp_path / "b.png").exists()
    assert run(*decode, "--allow-partial").exit_code == run("info", tmp_path / "cut.tsr", "--allow-partial").exit_code == 0
    assert pixels(tmp_path / "b.png").shape == (96, 128, 3)
    (record,) = records(run(*decode, "-f", "--allow-partial", "--json"))
    assert record["partial"] is True
    assert record["tokens"] < 500


# Tokens


def test_tokens_there_and_back(file, tmp_path):
    assert run("tokens", file, "-o", tmp_path / "a.npz").exit_code == 0
    with np.load(tmp_path / "a.npz") as arrays:
        assert arrays["digits_0"].shape == (8, 1, 1)
        assert arrays["size"].tolist() == [128, 96]
    assert run("tokens", tmp_path / "a.npz", "--back", "-o", tmp_path / "b.tsr").exit_code == 0
    assert (tmp_path / "b.tsr").read_bytes() == file.read_bytes()


def test_tokens_are_skipped_if_they_are_complete(file, tmp_path):
    def status(*arguments: object) -> str:
        outcome = run("tokens", *arguments, "--skip-existing", "--json")
        assert outcome.exit_code == 0
        return records(outcome)[0]["status"]

    arrays, again = tmp_path / "a.npz", tmp_path / "b.tsr"
    assert status(file, "-o", arrays) == "done"
    assert status(file, "-o", arrays) == "skipped"
    complete = arrays.read_bytes()
    arrays.write_bytes(complete[:-30])
    assert status(file, "-o", arrays) == "done"
    assert arrays.read_bytes() == complete
    assert status(arrays, "--back", "-o", again) == "done"
    assert status(arrays, "--back", "-o", again) == "skipped"
    assert run("tokens", file, "-o", arrays).exit_code == 1


# Information


def test_info_counts_every_byte_and_names_every_section(file, tmp_path):
    stored = read_file(file.read_bytes())
    sections = ((2, b"profile"), (9, b"of a later release"), (1, bytes(1000)))
    (tmp_path / "b.tsr").write_bytes(write_file(replace(stored, sections=sections)))
    for path, names in ((file, []), (tmp_path / "b.tsr", [(2, "icc", 7), (9, "unknown 9", 18), (1, "alpha", 1000)])):
        (record,) = records(run("info", path, "--json"))
        assert record["header_bytes"] + record["section_bytes"] + record["payload_bytes"] == record["bytes"]
        assert [(section["type"], section["name"], section["bytes"]) for section in record["sections"]] == names
        assert (record["quality"], record["length"]) == (50, stored.length)
        assert record["whole"] is True


def test_info_of_several_files_continues_after_a_bad_one(file, image, tmp_path):
    unknown = tmp_path / "unknown.tsr"
    unknown.write_bytes(write_file(File(20, 10, b"\x00\x01", 3, b"abc")))
    outcome = run("info", tmp_path / "none.tsr", image, unknown, file, "--json")
    assert outcome.exit_code == 1
    assert [record["status"] for record in records(outcome)] == ["failed", "failed", "done", "done"]
    names = ("width", "height", "stream_id", "model", "tokens")
    assert [records(outcome)[2][name] for name in names] == [20, 10, "0001", None, None]
    assert run("info", unknown, file).exit_code == 0


# All commands


def test_pipes_equal_files_byte_for_byte(file, image, tmp_path):
    piped = finish("encode", "-", "-o", "-", input=image.read_bytes(), text=False)
    assert piped.stdout == file.read_bytes()
    decode(file, tmp_path / "b.png")
    assert finish("decode", "-", "-o", "-", input=piped.stdout, text=False).stdout == (tmp_path / "b.png").read_bytes()
    bmp = finish("decode", "-", "--format", "bmp", input=piped.stdout, text=False)
    assert np.array_equal(pixels(io.BytesIO(bmp.stdout)), pixels(tmp_path / "b.png"))


def test_larger_images_than_allowed_are_refused_by_every_command(image, file, tmp_path):
    assert run("tokens", file, "-o", tmp_path / "a.npz", "--max-pixels", "12288").exit_code == 0
    for command, source, output in (
        ("encode", image, "x.tsr"),
        ("decode", file, "x.png"),
        ("tokens", file, "x.npz"),
        ("tokens", tmp_path / "a.npz", "x.tsr"),
        ("info", file, None),
    ):
        options = [*(["-o", tmp_path / output] if output else []), *(["--back"] if source.suffix == ".npz" else [])]
        outcome = run(command, source, "--max-pixels", "12287", *options)
        assert outcome.exit_code == 1
        assert "--max-pixels" in outcome.stderr
        assert not output or not (tmp_path / output).exists()


def test_quiet_prints_errors_alone(image, file, tmp_path):
    for arguments in (
        ("encode", image, "-o", tmp_path / "b.tsr"),
        ("encode", image, image, "--output-dir", tmp_path / "out"),
        ("decode", file, "-o", tmp_path / "b.png"),
        ("info", file),
        ("tokens", file, "-o", tmp_path / "a.npz"),
        ("models", "check"),
    ):
        outcome = run(*arguments, "--quiet")
        assert (outcome.exit_code, outcome.output) == (0, "")
    assert run("info", tmp_path / "none.tsr", "--quiet").stderr.count("\n") == 1


def test_verbose_shows_where_an_error_came_from(tmp_path):
    assert "Traceback" in run("encode", tmp_path / "none.png", "-v").stderr


# Imports


@pytest.mark.parametrize(
    "arguments",
    [
        ["--help"], ["-V"], ["completion", "zsh"], ["models", "check"], ["info", "{a}.tsr"], ["encode", "-n", "{a}.png"],
        ["decode", "{a}.png"], ["tokens", "{a}.tsr", "-o", "{a}.npz"],
    ],
    ids=lambda arguments: " ".join(arguments),
)  # fmt: skip
def test_commands_without_a_network_do_not_import_torch(file, arguments):
    code = (
        "import sys; from contextlib import suppress; from cli.main import main\n"
        "with suppress(SystemExit): main(sys.argv[1:], prog_name='tessera')\n"
        "sys.exit(3 if 'torch' in sys.modules else 0)"
    )
    arguments = [argument.format(a=file.with_suffix("")) for argument in arguments]
    outcome = subprocess.run([sys.executable, "-c", code, *arguments], capture_output=True, text=True, check=False)
    assert outcome.returncode == 0, outcome.stderr


def test_importing_the_library_does_not_import_torch():
    code = "import sys, codec; codec.Codec; sys.exit(3 if 'torch' in sys.modules else 0)"
    assert subprocess.run([sys.executable, "-c", code], check=False).returncode == 0


# Progress and threads


def test_the_bar_moves_within_an_image(image, monkeypatch):
    moves: list[float] = []
    monkeypatch.setattr(Bar, "advance", lambda self, steps=1, note=None: moves.append(steps))
    assert run("encode", image, "--tokens", "9").exit_code == 0
    assert 0 < moves[0] < 1
    assert sum(moves) == pytest.approx(1)


def test_numpy_leaves_the_cores_to_jobs(image, monkeypatch):
    for jobs in ("1", "3"):
        monkeypatch.setenv("OPENBLAS_NUM_THREADS", "")  # restored at the end
        monkeypatch.delenv("OPENBLAS_NUM_THREADS")
        assert run("encode", image, "-f", "--tokens", "9", "-j", jobs).exit_code == 0
        assert os.environ["OPENBLAS_NUM_THREADS"] == jobs
