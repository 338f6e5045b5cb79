"""The command under hard conditions: endless inputs, little memory, signals, kills, and several at once."""

from __future__ import annotations

import os
import pty
import re
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest

from bitstream.container import read_file
from cli.main import main
from codec.errors import FileError
from codec.system.files import TEMPORARY
from codec.system.inputs import read_at_most
from tests.fuzz.check import forget_peak, peak
from tests.helpers.commands import SURROUNDINGS, TESSERA, TIMEOUT, files_below, run, start, wait_for_outputs

LEFTOVER = ".tessera-0123456789abcdef.tmp"
MAX_RISE = 200 << 20  # bytes of memory for a file that is refused


@pytest.fixture
def images(tmp_path, photo) -> Path:
    """A folder of 36 small images."""
    folder = tmp_path / "in"
    folder.mkdir()
    for number in range(36):
        photo.crop((number, 0, number + 300, 200)).save(folder / f"{number:02}.png")
    return folder


@pytest.fixture(scope="module")
def large(tmp_path_factory, photo) -> Path:
    """A photo and its file; and files of 40 GB that begin like them, or with zeros, and are holes."""
    folder = tmp_path_factory.mktemp("large")
    photo.crop((40, 60, 88, 92)).save(folder / "photo.png")
    assert run("encode", folder / "photo.png").exit_code == 0
    for name in ("photo.png", "photo.tsr"):
        (folder / f"large-{name}").write_bytes((folder / name).read_bytes())
    (folder / "zeros").write_bytes(b"")
    for name in ("large-photo.png", "large-photo.tsr", "zeros"):
        os.truncate(folder / name, 40_000_000_000)
    return folder


def hidden(folder: Path) -> list[str]:
    return [name for name in files_below(folder) if name.startswith(".")]


# Large inputs and little memory


@pytest.mark.parametrize(
    ("arguments", "code"),
    [
        (("decode", "zeros", "-o", "x.png"), 1),
        (("decode", "/dev/zero", "-o", "x.png"), 1),
        (("decode", "large-photo.tsr", "-o", "x.png"), 1),
        (("encode", "zeros", "-o", "x.tsr"), 1),
        (("encode", "/dev/zero", "-o", "x.tsr"), 1),
        (("encode", "large-photo.png", "-o", "x.tsr"), 1),
        (("encode", "--files-from", "zeros"), 2),
        (("info", "zeros"), 1),
        (("info", "/dev/zero"), 1),
        (("info", "large-photo.tsr"), 1),
        (("tokens", "zeros", "-o", "x.npz"), 1),
        (("tokens", "zeros", "--back", "-o", "x.tsr"), 1),
    ],
)
def test_endless_and_huge_files_are_refused_at_once(large, monkeypatch, arguments, code):
    monkeypatch.chdir(large)
    forget_peak()
    before = peak()
    assert run(*arguments).exit_code == code
    assert peak() - before < MAX_RISE
    assert not list(large.glob("x.*"))


def test_an_endless_pipe_takes_no_more_memory_than_the_limit():
    limit = 256 << 20
    with Path("/dev/zero").open("rb") as endless:
        forget_peak()
        before = peak()
        with pytest.raises(FileError):
            read_at_most(endless, b"head", limit)
    assert peak() - before < 1.2 * limit


def test_a_pipe_without_an_end_is_read_up_to_the_limit(large):
    """64 MiB and 4 bytes per pixel."""
    endless = (large / "photo.png").read_bytes() + bytes(66 << 20)
    assert run("encode", "-", "-o", large / "x.tsr", "--max-pixels", "10k", data=endless).exit_code == 1
    assert run("encode", "-", "-o", large / "y.tsr", data=endless).exit_code == 0


@pytest.mark.parametrize("kilobytes", [300_000, 700_000, 1_000_000])
def test_lack_of_memory_is_one_line_per_file(large, tmp_path, kilobytes):
    line = f"ulimit -v {kilobytes}; {' '.join(TESSERA)} encode photo.png photo.png none.png --output-dir {tmp_path}"
    outcome = subprocess.run(["bash", "-c", line], cwd=large, env=SURROUNDINGS, capture_output=True, text=True, timeout=TIMEOUT)
    assert outcome.returncode == 1
    lines = [line for line in outcome.stderr.splitlines() if line.startswith(("Error: ", "photo.png -> "))]
    assert 1 <= len(lines) <= 2  # the summary follows; libraries in C may add lines of their own ("std::bad_alloc")
    assert "a bug in tessera" not in outcome.stderr
    assert "Traceback" not in outcome.stderr


# Signals


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM])
def test_a_signal_ends_a_command_that_waits_for_input(large, tmp_path, number):
    with start("encode", "-", "-o", tmp_path / "a.tsr", stdin=subprocess.PIPE, text=False) as running:
        running.stdin.write((large / "photo.png").read_bytes() + bytes(1 << 18))  # a pipe holds less, so it is reading
        running.stdin.flush()
        time.sleep(0.3)  # until it has read all of that and waits for more
        running.send_signal(number)
        assert running.wait(5) == 128 + number
        assert running.stderr.read() == b""
    assert list(tmp_path.iterdir()) == []


def test_a_run_that_is_stopped_or_killed_leaves_complete_files_and_continues(images, tmp_path):
    out = tmp_path / "out"
    with start("encode", images, "--output-dir", out) as running:
        wait_for_outputs(out, 2, running)
        running.send_signal(signal.SIGINT)
        asked = time.monotonic()
        errors = running.communicate(timeout=TIMEOUT)[1]
        assert time.monotonic() - asked < 3
    assert running.returncode == 130
    assert "--skip-existing" in errors.splitlines()[-1]
    assert "Traceback" not in errors
    assert hidden(out) == []
    done = len(list(out.iterdir()))
    assert 2 <= done < 36

    with start("encode", images, "--output-dir", out, "--skip-existing", "--quiet") as running:
        wait_for_outputs(out, done + 2, running)
        running.kill()
    assert all(read_file(path.read_bytes()).complete for path in out.glob("*.tsr"))
    assert all(TEMPORARY.fullmatch(name) for name in hidden(out))
    assert len(list(out.glob("*.tsr"))) < 36

    (out / LEFTOVER).write_bytes(b"half a file")
    (out / ".tessera-notes.tmp").write_bytes(b"not ours")
    assert run("encode", images, "--output-dir", out, "--skip-existing").exit_code == 0
    assert {path.stem for path in out.glob("*.tsr")} == {path.stem for path in images.iterdir()}
    assert hidden(out) == [".tessera-notes.tmp"]
    assert all(read_file(path.read_bytes()).complete for path in out.glob("*.tsr"))


def test_a_call_from_python_leaves_signal_handlers_as_they_were():
    before = [signal.getsignal(number) for number in (signal.SIGINT, signal.SIGTERM)]
    assert run("completion", "bash").exit_code == 0
    main(["completion", "bash"], standalone_mode=False)
    assert [signal.getsignal(number) for number in (signal.SIGINT, signal.SIGTERM)] == before


# Terminals and pipes


def test_progress_is_shown_on_a_terminal_only(images, tmp_path):
    for path in sorted(images.iterdir())[3:]:
        path.unlink()
    ours, theirs = pty.openpty()
    terminal = {**SURROUNDINGS, "NO_COLOR": "1", "TERM": "xterm"}
    with start("encode", images, "--output-dir", tmp_path / "out", stderr=theirs, env=terminal) as running:
        os.close(theirs)
        shown = b""
        try:
            while part := os.read(ours, 4096):
                shown += part
        except OSError:  # the other side of the terminal is closed
            pass
        assert running.stdout.read() == ""
    os.close(ours)
    assert running.returncode == 0
    assert b"3/3" in shown
    assert re.search(rb"\d:\d\d", shown)  # the time that is left
    assert not re.search(rb"\x1b\[[0-9;]*[349][0-7]m", shown)  # no colours
    lines = re.sub(rb"\x1b\[[0-9;?]*[a-zA-Z]", b"", shown).decode().replace("\r", "\n").split("\n")
    assert sum(line.startswith(f"{images}/00.png -> ") for line in lines) == 1


def test_pipes_at_once(images):
    source = images / "00.png"
    tool, python = " ".join(map(repr, TESSERA)), repr(sys.executable)
    identify = "import sys; from PIL import Image; i = Image.open(sys.stdin.buffer); i.load(); print(i.format, *i.size)"
    line = f"cat '{source}' | {tool} encode - -o - --quiet | {tool} decode - -o - --quiet | {python} -c '{identify}'"
    command = ["bash", "-o", "pipefail", "-c", line]
    pipes = {"stdout": subprocess.PIPE, "stderr": subprocess.PIPE, "text": True}
    shells = [subprocess.Popen(command, env=SURROUNDINGS, **pipes) for _ in range(4)]
    outcomes = [(*shell.communicate(timeout=2 * TIMEOUT), shell.returncode) for shell in shells]
    assert outcomes == [("PNG 300 200\n", "", 0)] * 4
