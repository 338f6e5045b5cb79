"""Runs that are stopped, killed, or run side by side: nothing half-written, nothing lost, nothing left behind."""

from __future__ import annotations

import os
import pty
import re
import signal
import subprocess
import sys
import threading
import time
from pathlib import Path

import pytest
from click.testing import CliRunner
from PIL import Image

from bitstream.container import read_file
from cli.main import main
from codec.errors import FileError
from codec.system.files import TEMPORARY, Writer, remove_stale_temporaries

TESSERA = [sys.executable, "-m", "cli"]
PATIENCE = 120  # seconds until a test that hangs fails
LEFTOVER = ".tessera-0123456789abcdef.tmp"


@pytest.fixture
def images(tmp_path, photo) -> Path:
    """Some dozen tiny images."""
    folder = tmp_path / "in"
    folder.mkdir()
    for number in range(36):
        photo.crop((number, 0, number + 300, 200)).save(folder / f"{number:02}.png")
    return folder


def start(*arguments: object, **streams: object) -> subprocess.Popen:
    environment = {**os.environ, "OMP_NUM_THREADS": "1"}
    return subprocess.Popen([*TESSERA, *map(str, arguments)], env=environment, **streams)  # type: ignore[call-overload]


def wait_for_outputs(folder: Path, count: int, running: subprocess.Popen) -> None:
    end = time.monotonic() + PATIENCE
    while len(list(folder.glob("*.tsr"))) < count:
        assert running.poll() is None, "it ended before it could be stopped"
        assert time.monotonic() < end
        time.sleep(0.01)


def hidden(folder: Path) -> list[str]:
    return [path.name for path in folder.iterdir() if path.name.startswith(".")]


def test_a_stopped_run_leaves_whole_files_and_goes_on(images, tmp_path):
    out = tmp_path / "out"
    with start("encode", images, "--output-dir", out, stderr=subprocess.PIPE, text=True) as running:
        wait_for_outputs(out, 2, running)
        running.send_signal(signal.SIGINT)
        asked = time.monotonic()
        said = running.communicate(timeout=PATIENCE)[1]
        assert time.monotonic() - asked < 3
    assert running.returncode == 130
    assert re.fullmatch(
        r"Interrupted: \d+ encoded, 0 skipped, 0 failed  .*; continue with --skip-existing", said.splitlines()[-1]
    )
    assert "Traceback" not in said
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
    last = CliRunner().invoke(main, ["encode", str(images), "--output-dir", str(out), "--skip-existing"])
    assert last.exit_code == 0
    assert {path.stem for path in out.glob("*.tsr")} == {path.stem for path in images.iterdir()}
    assert hidden(out) == [".tessera-notes.tmp"]
    assert all(read_file(path.read_bytes()).complete for path in out.glob("*.tsr"))


def test_a_request_to_end_is_heard_too(tmp_path):
    with start("decode", "-", "-o", tmp_path / "a.png", stdin=subprocess.PIPE, stderr=subprocess.PIPE) as running:
        with pytest.raises(subprocess.TimeoutExpired):  # it waits for its input
            running.wait(3)
        running.send_signal(signal.SIGTERM)
        assert running.wait(5) == 143
        assert running.stderr.read() == b""
    assert list(tmp_path.iterdir()) == []


def test_a_call_from_python_leaves_handlers_as_they_were():
    before = [signal.getsignal(number) for number in (signal.SIGINT, signal.SIGTERM)]
    assert CliRunner().invoke(main, ["completion", "bash"]).exit_code == 0
    assert [signal.getsignal(number) for number in (signal.SIGINT, signal.SIGTERM)] == before


def test_progress_is_shown_on_a_terminal_only(images, tmp_path):
    for path in sorted(images.iterdir())[3:]:
        path.unlink()
    ours, theirs = pty.openpty()
    environment = {**os.environ, "NO_COLOR": "1", "TERM": "xterm", "OMP_NUM_THREADS": "1"}
    arguments = ["encode", images, "--output-dir", tmp_path / "out"]
    with subprocess.Popen([*TESSERA, *arguments], stderr=theirs, stdout=subprocess.PIPE, env=environment) as running:
        os.close(theirs)
        shown = b""
        try:
            while part := os.read(ours, 4096):
                shown += part
        except OSError:  # the other side of the terminal is closed
            pass
        assert running.stdout.read() == b""
    os.close(ours)
    assert running.returncode == 0
    assert b"3/3" in shown
    assert b"MP/s" in shown
    assert re.search(rb"\d:\d\d", shown)  # the time that is left
    assert not re.search(rb"\x1b\[[0-9;]*[349][0-7]m", shown)  # no colours
    lines = re.sub(rb"\x1b\[[0-9;?]*[a-zA-Z]", b"", shown).decode().replace("\r", "\n").split("\n")
    lines = [line for line in lines if line]
    assert sum(line.startswith(f"{images}/00.png -> ") for line in lines) == 1
    assert lines[-1].startswith("3 encoded, 0 skipped, 0 failed")


def test_temporaries_of_living_writers_are_left_alone(tmp_path):
    writer = Writer()
    temporary, handle = writer._create_temporary(tmp_path)
    assert TEMPORARY.fullmatch(temporary.name)
    (tmp_path / LEFTOVER).write_bytes(b"half a file")
    (tmp_path / ".tessera-fedcba9876543210.tmp").symlink_to(tmp_path / "elsewhere")
    (tmp_path / "elsewhere").write_bytes(b"kept")
    remove_stale_temporaries([str(tmp_path), str(tmp_path / "none")])
    assert sorted(hidden(tmp_path)) == sorted([temporary.name, ".tessera-fedcba9876543210.tmp"])
    assert (tmp_path / "elsewhere").read_bytes() == b"kept"
    os.close(handle)  # as a killed run's is
    remove_stale_temporaries([str(tmp_path)])
    assert not temporary.exists()


def test_writers_and_sweeps_at_once_lose_nothing(tmp_path):
    stop = threading.Event()

    def keep_sweeping() -> None:
        while not stop.is_set():
            remove_stale_temporaries([str(tmp_path)])

    def keep_writing(name: int) -> None:
        writer = Writer()
        for number in range(60):
            writer.write(str(tmp_path / f"{name}-{number}"), f"{name} {number}".encode())

    sweepers = [threading.Thread(target=keep_sweeping) for _ in range(2)]
    writers = [threading.Thread(target=keep_writing, args=(name,)) for name in range(3)]
    for thread in (*sweepers, *writers):
        thread.start()
    for thread in writers:
        thread.join()
    stop.set()
    for thread in sweepers:
        thread.join()
    made = {path.name: path.read_text() for path in tmp_path.iterdir()}
    assert made == {f"{name}-{number}": f"{name} {number}" for name in range(3) for number in range(60)}


def test_after_the_end_nothing_appears(tmp_path):
    writer = Writer()
    temporary, handle = writer._create_temporary(tmp_path)
    writer.abort()
    os.close(handle)
    with pytest.raises(FileError, match="the run has ended"):
        writer.write(str(tmp_path / "a"), b"late")
    assert not temporary.exists()
    assert list(tmp_path.iterdir()) == []


def test_pipes_at_once(images, tmp_path):
    source = images / "00.png"
    tool, python = " ".join(map(repr, TESSERA)), repr(sys.executable)
    identify = "import sys; from PIL import Image; i = Image.open(sys.stdin.buffer); i.load(); print(i.format, *i.size)"
    line = f"cat '{source}' | {tool} encode - -o - --quiet | {tool} decode - -o - --quiet | {python} -c '{identify}'"
    environment = {**os.environ, "OMP_NUM_THREADS": "1"}
    shells = [
        subprocess.Popen(
            ["bash", "-o", "pipefail", "-c", line], stdout=subprocess.PIPE, stderr=subprocess.PIPE, env=environment, text=True
        )
        for _ in range(8)
    ]
    said = [(*shell.communicate(timeout=2 * PATIENCE), shell.returncode) for shell in shells]
    assert said == [("PNG 300 200\n", "", 0)] * 8
    with Image.open(source) as image:
        assert image.size == (300, 200)
