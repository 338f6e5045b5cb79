from __future__ import annotations

import io
import json
import os
import pty
import re
import signal
import subprocess
import sys
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
from click.testing import CliRunner
from PIL import Image

from bitstream.container import File, read_file, write_file
from cli.main import main

TESSERA = [sys.executable, "-m", "cli"]


@pytest.fixture(scope="module")
def folder(tmp_path_factory, photo) -> Path:
    """A photo and its file."""
    folder = tmp_path_factory.mktemp("cli")
    photo.crop((100, 100, 300, 250)).save(folder / "a.png")
    assert run("encode", folder / "a.png").exit_code == 0
    return folder


def run(*arguments, data: bytes | None = None):
    return CliRunner().invoke(main, [str(argument) for argument in arguments], input=data)


def shell(*arguments, data: bytes | None = None) -> subprocess.CompletedProcess[bytes]:
    return subprocess.run([*TESSERA, *map(str, arguments)], input=data, capture_output=True, check=False)


def test_encode_and_decode_report_one_line(folder, tmp_path):
    made = run("encode", folder / "a.png", "-o", tmp_path / "a.tsr", "--target-size", "400", "--device", "cpu")
    assert re.fullmatch(
        rf"{folder}/a.png -> {tmp_path}/a.tsr  [\d.]+ kB -> \d+ B  0\.\d{{4}} bpp  \d+ tokens per block  \d+\.\d\d s\n",
        made.stderr,
    )
    assert made.stdout == ""
    assert (tmp_path / "a.tsr").stat().st_size <= 400
    drawn = run("decode", tmp_path / "a.tsr", "-o", tmp_path / "a.webp")
    assert re.fullmatch(rf"{tmp_path}/a.tsr -> {tmp_path}/a.webp  200x150  \d+\.\d\d s\n", drawn.stderr)
    with Image.open(tmp_path / "a.webp") as drawn:
        assert drawn.format == "WEBP"


def test_default_names_lie_beside_the_input(folder):
    assert (folder / "a.tsr").exists()
    assert run("decode", folder / "a.tsr", "--format", "ppm").exit_code == 0
    with Image.open(folder / "a.ppm") as drawn:
        assert drawn.size == (200, 150)


def test_pipes_equal_files_byte_for_byte(folder, tmp_path):
    encoded = shell("encode", "-", "-o", "-", data=(folder / "a.png").read_bytes())
    assert encoded.stdout == (folder / "a.tsr").read_bytes()
    assert b"standard input -> standard output" in encoded.stderr
    decoded = shell("decode", "-", "-o", "-", "--quiet", data=encoded.stdout)
    assert decoded.stderr == b""
    assert run("decode", folder / "a.tsr", "-o", tmp_path / "a.png").exit_code == 0
    assert decoded.stdout == (tmp_path / "a.png").read_bytes()
    bmp = shell("decode", "-", "--format", "bmp", data=encoded.stdout)
    with Image.open(io.BytesIO(bmp.stdout)) as a, Image.open(tmp_path / "a.png") as b:
        assert np.array_equal(np.asarray(a), np.asarray(b))


def test_json_has_all_fields(folder, tmp_path):
    made = json.loads(run("encode", folder / "a.png", "-o", tmp_path / "a.tsr", "-q", "75", "--json").stdout)
    data = (tmp_path / "a.tsr").read_bytes()
    assert made == made | {
        "input": f"{folder}/a.png", "output": f"{tmp_path}/a.tsr", "status": "done", "width": 200, "height": 150,
        "bytes": len(data), "bpp": round(8 * len(data) / 30000, 5), "quality": pytest.approx(75, abs=1), "model": "standard",
        "error": None,
    }  # fmt: skip
    failed = run("decode", tmp_path / "none.tsr", "--json")
    assert failed.exit_code == 1
    assert json.loads(failed.stdout)["status"] == "failed"
    assert json.loads(failed.stdout)["error"] == "no such file: check the name"


def test_tokens_there_and_back(folder, tmp_path):
    assert run("tokens", folder / "a.tsr", "-o", tmp_path / "a.npz").exit_code == 0
    with np.load(tmp_path / "a.npz") as arrays:
        assert arrays["digits_0"].shape == (8, 1, 1)
        assert arrays["size"].tolist() == [200, 150]
    assert run("tokens", tmp_path / "a.npz", "--back", "-o", tmp_path / "a.tsr").exit_code == 0
    assert (tmp_path / "a.tsr").read_bytes() == (folder / "a.tsr").read_bytes()
    wrong = run("tokens", folder / "a.png", "--back", "-o", tmp_path / "b.tsr")
    assert wrong.exit_code == 1
    assert "not an .npz of tokens" in wrong.stderr


def test_info_reads_headers(folder):
    file = read_file((folder / "a.tsr").read_bytes())
    said = run("info", folder / "a.tsr")
    assert said.exit_code == 0
    assert f"200x150, {file.length} tokens, " in said.stdout
    assert f"stream id {file.stream_id.hex()}, whole" in said.stdout
    told = json.loads(run("info", folder / "a.tsr", "--json").stdout)
    assert told["header_bytes"] + told["section_bytes"] + told["payload_bytes"] == told["bytes"]
    assert told["whole"] is True


def test_info_shows_every_section_by_type_and_size(folder, tmp_path):
    file = read_file((folder / "a.tsr").read_bytes())
    sections = ((2, b"profile"), (9, b"of a later release"), (1, bytes(1000)))
    (tmp_path / "b.tsr").write_bytes(write_file(replace(file, sections=sections)))
    told = json.loads(run("info", tmp_path / "b.tsr", "--json").stdout)
    assert told["sections"] == [
        {"type": 2, "name": "icc", "bytes": 7},
        {"type": 9, "name": "unknown 9", "bytes": 18},
        {"type": 1, "name": "alpha", "bytes": 1000},
    ]
    assert told["header_bytes"] + told["section_bytes"] + told["payload_bytes"] == told["bytes"]
    assert told["quality"] == pytest.approx(50, abs=1)
    assert ", icc 7 B, unknown 9 18 B, alpha 1.0 kB), " in run("info", tmp_path / "b.tsr").stdout


def test_info_of_several_files_goes_on_after_a_bad_one(folder, tmp_path):
    alien = tmp_path / "alien.tsr"
    alien.write_bytes(write_file(File(20, 10, b"\x00\x01", 3, b"abc")))
    said = run("info", tmp_path / "none.tsr", folder / "a.png", alien, folder / "a.tsr", "--json")
    assert said.exit_code == 1
    told = [json.loads(line) for line in said.stdout.splitlines()]
    assert [line["status"] for line in told] == ["failed", "failed", "done", "done"]
    assert [told[2][name] for name in ("width", "height", "stream_id", "model", "tokens")] == [20, 10, "0001", None, None]
    assert run("info", alien, folder / "a.tsr").exit_code == 0


def test_larger_images_than_allowed_are_refused_by_every_command(folder, tmp_path):
    assert run("tokens", folder / "a.tsr", "-o", tmp_path / "a.npz", "--max-pixels", "30k").exit_code == 0
    for command, source, output in (
        ("encode", folder / "a.png", "x.tsr"),
        ("decode", folder / "a.tsr", "x.png"),
        ("tokens", folder / "a.tsr", "x.npz"),
        ("tokens", tmp_path / "a.npz", "x.tsr"),
        ("info", folder / "a.tsr", None),
    ):
        flags = [*(["-o", tmp_path / output] if output else []), *(["--back"] if source.suffix == ".npz" else [])]
        said = run(command, source, "--max-pixels", "29999", *flags)
        assert said.exit_code == 1
        assert "200x150 is 30,000 pixels, more than 29,999: raise --max-pixels to allow it" in said.stderr
        assert not output or not (tmp_path / output).exists()


def test_tokens_are_skipped_where_they_are_whole(folder, tmp_path):
    def tokens(*flags: object) -> dict:
        said = run("tokens", *flags, "--skip-existing", "--json")
        assert said.exit_code == 0
        return json.loads(said.stdout)

    arrays, again = tmp_path / "a.npz", tmp_path / "a.tsr"
    assert tokens(folder / "a.tsr", "-o", arrays)["status"] == "done"
    assert tokens(folder / "a.tsr", "-o", arrays)["status"] == "skipped"
    whole = arrays.read_bytes()
    arrays.write_bytes(whole[:-30])
    assert tokens(folder / "a.tsr", "-o", arrays)["status"] == "done"
    assert arrays.read_bytes() == whole
    assert tokens(arrays, "--back", "-o", again)["status"] == "done"
    assert tokens(arrays, "--back", "-o", again)["status"] == "skipped"
    assert run("tokens", folder / "a.tsr", "-o", arrays).exit_code == 1


def test_quiet_says_nothing_but_errors(folder, tmp_path):
    for arguments in (
        ("encode", folder / "a.png", "-o", tmp_path / "a.tsr"),
        ("encode", folder / "a.png", folder / "a.png", "--output-dir", tmp_path / "out"),
        ("decode", folder / "a.tsr", "-o", tmp_path / "b.png"),
        ("info", folder / "a.tsr"),
        ("tokens", folder / "a.tsr", "-o", tmp_path / "a.npz"),
    ):
        said = run(*arguments, "--quiet")
        assert (said.exit_code, said.output) == (0, "")
    assert run("info", tmp_path / "none.tsr", "--quiet").stderr == f"Error: {tmp_path}/none.tsr: no such file: check the name\n"


def test_cut_files(folder, tmp_path):
    cut = tmp_path / "cut.tsr"
    cut.write_bytes((folder / "a.tsr").read_bytes()[:100])
    refused = run("decode", cut)
    assert refused.exit_code == 1
    assert re.fullmatch(
        rf"Error: {cut}: the file is cut short: \d+ of \d+ tokens are there: decode what there is with --allow-partial\n",
        refused.stderr,
    )
    drawn = run("decode", cut, "--allow-partial")
    assert drawn.exit_code == 0
    assert re.search(r"200x150, cut: [\d.]+ tokens per block", drawn.stderr)
    said = run("info", cut)
    assert said.exit_code == 1
    assert "cut or damaged" in said.stdout
    assert run("info", cut, "--allow-partial").exit_code == 0


@pytest.mark.parametrize(
    ("arguments", "code", "message"),
    [
        (("encode", "{none}.png"), 1, "Error: {none}.png: no such file: check the name\n"),
        (("encode", "{dir}", "-o", "{none}"), 1, "Error: {dir}: is a folder: name a file in it\n"),
        (("encode", "{text}"), 1, "Error: {text}: not an image of a format that Pillow knows: convert it to PNG first\n"),
        (("encode", "{empty}"), 1, "Error: {empty}: is empty\n"),
        (("encode", "{half}"), 1, "cut or damaged"),
        (("encode", "{a}.png", "-o", "{a}.png"), 1, "is the input: name another file"),
        (("encode", "{a}.png"), 1, "Error: {a}.png: the output {a}.tsr exists: use -f to replace it\n"),
        (("encode", "{a}.png", "-o", "{none}/x/y.tsr"), 1, "does not exist: make it first"),
        (("encode", "{a}.png", "-f", "--target-size", "9"), 1, "does not fit 9 bytes: the smallest file has"),
        (("encode", "{a}.png", "-f", "--max-pixels", "29k"), 1, "200x150 is 30,000 pixels, more than 29,000"),
        (("encode", "{a}.png", "-f", "--model", "nosuch"), 1, "nosuch: no such model: known are standard"),
        (("encode", "{a}.png", "-f", "--model", "{text}"), 1, "not a model file"),
        (("encode", "{a}.png", "-f", "--device", "cuda:7"), 2, "device 'cuda:7' does not exist"),
        (("encode", "{a}.png", "-f", "--device", "tpu"), 2, "unknown device 'tpu': use auto, cpu, cuda or cuda:N"),
        (("encode", "{a}.png", "-f", "-q", "50", "--tokens", "9"), 2, "--quality and --tokens contradict each other"),
        (("encode", "{a}.png", "-f", "-q", "101"), 2, "101.0 is not in the range"),
        (("encode", "{a}.png", "-f", "--target-size", "4 parsecs"), 2, "'4 parsecs' is not a size"),
        (("encode", "{a}.png", "-o", "-", "--json"), 1, "--json and -o - both need standard output"),
        (("decode", "{a}.png", "-o", "{none}.png"), 1, "Error: {a}.png: an image, not a .tsr file: did you mean"),
        (("decode", "{later}", "-o", "{none}.png"), 1, "version 9, and this release reads version 1: update tessera"),
        (("decode", "{alien}", "-o", "{none}.png"), 1, "made by a model that is not installed (stream id 0001"),
        (("decode", "{former}", "-o", "{none}.png"), 1, "made by a standard model from before the first release"),
        (("decode", "{damaged}", "-o", "{none}.png"), 1, "Error: {damaged}: "),
        (("decode", "{a}.tsr", "-o", "{none}.nonsense"), 2, "no image format is called 'nonsense'"),
        (("decode", "{a}.tsr", "--format", "nonsense"), 2, "no image format is called 'nonsense'"),
        (("decode", "{text}", "-o", "{none}.png"), 1, "Error: {text}: not a .tsr file\n"),
        (("decode", "{empty}", "-o", "{none}.png"), 1, "Error: {empty}: is empty\n"),
        (("tokens", "{a}.png", "-o", "{none}.npz"), 1, "not a .tsr file"),
        (("info", "{a}.png"), 1, "Error: {a}.png: an image, not a .tsr file: did you mean `tessera encode`?\n"),
        (("frobnicate",), 2, "No such command"),
    ],
)
def test_wrong_input_gets_one_line_and_a_code(folder, tmp_path, arguments, code, message):
    data = bytearray((folder / "a.tsr").read_bytes())
    (tmp_path / "later").write_bytes(bytes([*data[:2], 0x90, *data[3:]]))
    (tmp_path / "alien").write_bytes(write_file(File(20, 20, b"\x00\x01", 3, b"abc")))
    (tmp_path / "former").write_bytes(write_file(File(20, 20, b"\x44\xef", 3, b"abc")))
    data[-1] ^= 1
    (tmp_path / "damaged").write_bytes(data)
    (tmp_path / "text").write_text("no image")
    (tmp_path / "empty").write_bytes(b"")
    (tmp_path / "half").write_bytes((folder / "a.png").read_bytes()[:20000])
    Image.new("RGBA", (9, 9)).save(tmp_path / "clear", "png")
    files = "later", "alien", "former", "damaged", "text", "empty", "half", "clear", "none"
    names = {name: tmp_path / name for name in files}
    names |= {"a": folder / "a", "dir": tmp_path}
    before = {path: path.read_bytes() for place in (folder, tmp_path) for path in place.iterdir()}
    said = run(*(argument.format(**names) for argument in arguments))
    assert said.exit_code == code, said.output
    assert message.format(**names) in said.stderr
    assert said.stderr.count("\n") == 1 or code == 2
    assert "Traceback" not in said.stderr
    assert {path: path.read_bytes() for place in (folder, tmp_path) for path in place.iterdir()} == before


def test_binary_is_not_written_to_a_terminal(folder):
    ours, theirs = pty.openpty()
    said = subprocess.run([*TESSERA, "encode", folder / "a.png", "-o", "-"], stdout=theirs, stderr=subprocess.PIPE, check=False)
    os.close(theirs)
    os.close(ours)
    assert said.returncode == 1
    assert b"standard output is a terminal" in said.stderr
    assert said.stderr.count(b"\n") == 1


def test_an_interrupt_ends_at_once(tmp_path):
    with subprocess.Popen(
        [*TESSERA, "encode", "-", "-o", tmp_path / "a.tsr"], stdin=subprocess.PIPE, stderr=subprocess.PIPE
    ) as running:
        with pytest.raises(subprocess.TimeoutExpired):  # it waits for its input
            running.wait(3)
        running.send_signal(signal.SIGINT)
        assert running.wait(5) == 130
        assert running.stderr.read() == b""
    assert list(tmp_path.iterdir()) == []


def test_a_reader_that_leaves_is_no_traceback(folder):
    command = [*TESSERA, "decode", folder / "a.tsr", "-o", "-"]
    with subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.PIPE) as running:
        running.stdout.close()
        said = running.stderr.read()
    assert running.returncode == 1
    assert said.count(b"\n") == 1
    assert b"standard output was closed before all was written" in said


def test_a_link_is_followed_not_replaced(folder, tmp_path):
    (tmp_path / "real.tsr").write_bytes(b"old")
    (tmp_path / "link.tsr").symlink_to(tmp_path / "real.tsr")
    assert run("encode", folder / "a.png", "-o", tmp_path / "link.tsr", "-f").exit_code == 0
    assert (tmp_path / "link.tsr").is_symlink()
    assert (tmp_path / "real.tsr").read_bytes() == (folder / "a.tsr").read_bytes()


def test_a_failed_write_leaves_nothing(folder, tmp_path, monkeypatch):
    (tmp_path / "a.tsr").write_bytes(b"old")

    def full(*_: object) -> None:
        raise OSError(28, "No space left on device")

    monkeypatch.setattr("os.replace", full)
    said = run("encode", folder / "a.png", "-o", tmp_path / "a.tsr", "-f")
    assert said.exit_code == 1
    assert "No space left on device" in said.stderr
    assert [path.name for path in tmp_path.iterdir()] == ["a.tsr"]
    assert (tmp_path / "a.tsr").read_bytes() == b"old"


def test_verbose_shows_where_an_error_came_from(tmp_path):
    assert "Traceback" in run("encode", tmp_path / "none.png", "-v").stderr


@pytest.mark.parametrize("command", [[], *([name] for name in main.commands)])
def test_every_command_has_help_with_examples(command):
    for flag in ("-h", "--help"):
        said = run(*command, flag)
        assert said.exit_code == 0
        assert f"tessera {' '.join(command)}" in said.stdout
        assert said.stdout.count("\n  tessera ") >= 2


def test_version_names_tool_format_and_model():
    assert re.fullmatch(r"tessera \d+\.\d+\.\d+, format 1, model standard \(stream id [0-9a-f]{4}\)\n", run("-V").stdout)


@pytest.mark.parametrize("arguments", [["--help"], ["-V"], ["info", "{a}.tsr"], ["tokens", "{a}.tsr", "-o", "{a}.npz", "-f"]])
def test_torch_is_not_imported_where_nothing_is_drawn(folder, arguments):
    code = (
        "import sys; from cli.main import main; main(sys.argv[1:], standalone_mode=False); "
        "sys.exit(3 if 'torch' in sys.modules else 0)"
    )
    said = subprocess.run(
        [sys.executable, "-c", code, *(a.format(a=folder / "a") for a in arguments)], capture_output=True, check=False
    )
    assert said.returncode == 0, said.stderr.decode()


def test_importing_the_library_does_not_import_torch():
    code = "import sys, codec; codec.Codec; sys.exit(3 if 'torch' in sys.modules else 0)"
    assert subprocess.run([sys.executable, "-c", code], check=False).returncode == 0
