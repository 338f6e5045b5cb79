"""No command reads more than it needs, and wrong inputs are answered with the next step."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import pytest
from click.testing import CliRunner, Result

import cli.inputs
from bitstream.container import HEADER_MAX, read_header
from cli.main import main
from tests.fuzz.check import forget_peak, peak

TESSERA = [sys.executable, "-m", "cli"]
GIB = 1 << 30


def run(*arguments, data: bytes | None = None) -> Result:
    return CliRunner().invoke(main, [str(argument) for argument in arguments], input=data)


def shell(line: str, folder: Path, **options) -> subprocess.CompletedProcess[str]:
    """A line of bash in which $T is the command, in the folder."""
    environment = {**os.environ, "T": " ".join(TESSERA), "PYTHONPATH": str(Path(__file__).parent.parent)}
    command = ["bash", "-c", f"cd '{folder}'; {line}"]
    return subprocess.run(command, env=environment, capture_output=True, text=True, check=False, timeout=60, **options)


@pytest.fixture(scope="module")
def folder(tmp_path_factory, photo) -> Path:
    """A photo, its file, and files of 40 GB that begin like these but are all holes."""
    folder = tmp_path_factory.mktemp("reading")
    photo.crop((40, 60, 88, 92)).save(folder / "photo.png")
    assert run("encode", folder / "photo.png").exit_code == 0
    for name in ("photo.png", "photo.tsr"):
        (folder / f"large-{name}").write_bytes((folder / name).read_bytes())
    (folder / "zeros").write_bytes(b"")
    for name in ("large-photo.png", "large-photo.tsr", "zeros"):
        os.truncate(folder / name, 40_000_000_000)
    return folder


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (("decode", "zeros", "-o", "x.png"), "zeros: not a .tsr file\n"),
        (("info", "zeros"), "zeros: not a .tsr file\n"),
        (("info", "/dev/zero"), "/dev/zero: not a .tsr file\n"),
        (("decode", "/dev/zero", "-o", "x.png"), "/dev/zero: not a .tsr file\n"),
        (("encode", "/dev/zero", "-o", "x.tsr"), "/dev/zero: not an image of a format that Pillow knows"),
        (("encode", "zeros", "-o", "x.tsr"), "zeros: not an image of a format that Pillow knows"),
        (("tokens", "zeros", "-o", "x.npz"), "zeros: not a .tsr file\n"),
        (("tokens", "zeros", "--back", "-o", "x.tsr"), "zeros: not an .npz of tokens"),
        (("info", "large-photo.tsr"), "large-photo.tsr: the file is damaged: "),
        (("decode", "large-photo.tsr", "-o", "x.png"), "large-photo.tsr: the file is damaged: "),
        (("encode", "large-photo.png", "-o", "x.tsr"), "large-photo.png: has more than 2067.11 MB, which is the limit"),
        (("encode", "--files-from", "zeros"), "--files-from zeros: has more than 67.11 MB, which is the limit"),
    ],
)
def test_endless_and_huge_files_end_at_once(folder, monkeypatch, arguments, message):
    monkeypatch.chdir(folder)
    forget_peak()
    before = peak()
    said = run(*arguments)
    assert said.exit_code in (1, 2)
    assert message in said.stderr
    assert peak() - before < 200 << 20
    assert not list(folder.glob("x.*"))


def test_a_pipe_without_an_end_is_read_up_to_the_limit(folder, monkeypatch):
    monkeypatch.setattr(cli.inputs, "IMAGE_EXTRA", 1 << 20)
    endless = (folder / "photo.png").read_bytes() + bytes(2 << 20)
    said = run("encode", "-", "-o", folder / "x.tsr", "--max-pixels", "10k", data=endless)
    assert said.exit_code == 1
    assert said.stderr == (
        "Error: standard input: has more than 1.09 MB, which is the limit for a file of its kind: raise --max-pixels, "
        "or check the file\n"
    )


def test_of_a_file_no_more_is_read_than_its_header_allows(folder, monkeypatch):
    header = read_header((folder / "photo.tsr").read_bytes()[:HEADER_MAX])
    assert len(cli.inputs.read_tsr(str(folder / "large-photo.tsr"), 1 << 20)) == header.max_file_bytes + 1
    assert cli.inputs.read_tsr(str(folder / "photo.tsr"), 1 << 20) == (folder / "photo.tsr").read_bytes()


def test_the_wrong_kind_of_file_is_answered_with_the_other_command(folder, monkeypatch):
    monkeypatch.chdir(folder)
    for arguments, message in (
        (("decode", "photo.png", "-o", "x.png"), "photo.png: an image, not a .tsr file: did you mean `tessera encode`?"),
        (("decode", "photo.png"), "photo.png: an image, not a .tsr file: did you mean `tessera encode`?"),
        (("encode", "photo.tsr"), "photo.tsr: is a .tsr file, encoded already: did you mean `tessera decode`?"),
        (("encode", "photo.tsr", "-f"), "photo.tsr: is a .tsr file, encoded already: did you mean `tessera decode`?"),
        (("info", "photo.png"), "photo.png: an image, not a .tsr file: did you mean `tessera encode`?"),
        (("encode", "photo.tsr", "-o", "x.tsr"), "photo.tsr: is a .tsr file, encoded already: did you mean `tessera decode`?"),
        (
            ("encode", "https://example.org/a.png"),
            "is an address, not a file: fetch it first, as in `curl -L ADDRESS | tessera",
        ),
        (("decode", "HTTP://example.org/a.tsr"), "is an address, not a file: fetch it first, as in `curl -L ADDRESS | tessera"),
    ):
        said = run(*arguments)
        assert (said.exit_code, message in said.stderr) == (1, True), said.stderr
        assert said.stderr.count("\n") == 1


@pytest.mark.parametrize(
    ("line", "code", "message"),
    [
        ("$T --help >/dev/full", 1, "Error: cannot write to standard output (No space left on device): check space"),
        ("$T --version >/dev/full", 1, "Error: cannot write to standard output (No space left on device): check space"),
        ("$T encode --help >/dev/full", 1, "Error: cannot write to standard output (No space left on device): check space"),
        ("$T info photo.tsr >/dev/full", 1, "Error: photo.tsr: cannot write to standard output (No space left on device)"),
        ("$T info photo.tsr >&-", 1, "Error: photo.tsr: standard output is closed: redirect it to a file or a pipe"),
        ("$T info photo.tsr --json >&-", 1, "Error: standard output is closed: redirect it to a file or a pipe"),
        ("$T encode photo.png -f --json >&-", 1, "Error: standard output is closed: redirect it to a file or a pipe"),
        ("$T models list >&-", 1, "Error: standard output is closed: redirect it to a file or a pipe"),
        ("$T frobnicate 2>/dev/full", 2, ""),
        ("$T info none 2>/dev/full", 1, ""),
        ("$T info none -v 2>&-", 1, ""),
    ],
)
def test_standard_streams_that_are_closed_or_full(folder, line, code, message):
    said = shell(line, folder)
    assert said.returncode == code
    assert said.stdout == ""
    assert said.stderr.startswith(message)
    assert said.stderr.count("\n") == bool(message)


@pytest.mark.parametrize("kilobytes", [300_000, 700_000, 1_000_000])
def test_little_memory_is_said_in_one_line_per_file(folder, tmp_path, kilobytes):
    line = f"ulimit -v {kilobytes}; $T encode photo.png photo.png large-none.png --output-dir {tmp_path}"
    said = shell(line, folder)
    lines = said.stderr.splitlines()
    assert said.returncode == 1
    assert lines[-1].startswith(("0 encoded, 0 skipped, ", "1 encoded, 0 skipped, "))
    assert "Traceback" not in said.stderr
    assert "a bug in tessera" not in said.stderr
    for line in lines[:-1]:
        assert line.startswith(("Error: ", "photo.png -> ")), line
