"""Runs the commands in the transcripts beside this file and writes what they print:

    python -m tests.transcripts.make [NAME...]

A transcript is a list of commands (`$`), each with its standard output (`>`), its standard error (`!`), the files that it
created, changed or removed (`+`, `~`, `-`) and its exit code unless it is 0 (`=`). Lines with `#` are comments. To add a case,
add its `$` line and run this program. Every transcript starts in a new folder with the files that `prepare` makes. Numbers that
differ between machines and versions are replaced by N; the two lines of usage before an error are left out.
"""

from __future__ import annotations

import os
import re
import shlex
import subprocess
import sys
import tempfile
from collections.abc import Callable, Iterator
from contextlib import chdir, contextmanager
from dataclasses import replace
from pathlib import Path
from unittest.mock import patch

from click.testing import CliRunner
from PIL import Image

from bitstream.container import read_file, write_file
from cli.main import main as tessera
from tests.helpers import GOLDEN, PHOTO, ROOT

FOLDER = Path(__file__).parent
SHELL = re.compile(r"[|<>;&*$`]")  # a line with one of these, or of another command than tessera, is for bash
TOOL = f"""#!/bin/sh
exec '{sys.executable}' -c 'from cli.main import main; main(prog_name="tessera")' "$@"
"""
TERMINAL = f"""#!/bin/sh
exec '{sys.executable}' -c 'import pty, sys; sys.exit(pty.spawn(sys.argv[1:]) >> 8)' "$@" </dev/null
"""
NORMAL: tuple[tuple[str, str | Callable[[re.Match[str]], str]], ...] = (
    (re.escape(str(ROOT)), "CHECKOUT"),
    (r"\AUsage: .*\nTry '.*' for help\.\n\n", ""),
    (r"\d+\.\d+ s\b", "N s"),
    (r"[\d.]+ MP/s", "N MP/s"),
    (r"[\d.]+ k?B -> [\d.]+ k?B", "N -> N"),
    (r"[\d.]+ bpp  [\d.]+ tokens per block", "N bpp  N tokens per block"),
    (r"[\d.]+ dB\b", "N dB"),
    (r"LPIPS 0\.\d+", "LPIPS N"),
    (r'("seconds": )[\d.]+', r"\1N"),
    (r"\btessera \d+\.\d+\.\d+", "tessera N"),
    (r"\b\d+\.\d+ MB(?= *$)", "N MB"),
)
MEASURED = (  # by an encoder, whose floats differ between processors
    (r'("(?:bytes|bpp|tokens|measured|length)": )[\d.]+', r"\1N"),
    (r'("quality": )\d+\.[1-9]', r"\1N"),
)
SUMMARY = re.compile(r"(Interrupted: )?\d+ (encoded|decoded), ")


def prepare(folder: Path) -> None:
    """Makes the files that the commands are about: images, .tsr files, and files that are neither."""
    photo = Image.open(PHOTO).convert("RGB").crop((100, 100, 196, 164))
    photo.save(folder / "photo.png")
    (folder / "photos" / "more").mkdir(parents=True)
    for name, left in (("a.png", 0), ("b.webp", 24), ("more/c.png", 48)):
        photo.crop((left, 0, left + 48, 64)).save(folder / "photos" / name)
    (folder / "photos" / "notes.txt").write_text("no image")
    (folder / "notes.txt").write_text("no image")
    (folder / "empty.png").write_bytes(b"")
    (folder / "cut.png").write_bytes((folder / "photo.png").read_bytes()[:5000])
    clear = photo.copy()
    clear.putalpha(Image.linear_gradient("L").resize(photo.size))
    clear.save(folder / "clear.png")
    stored = (GOLDEN / "wide-bytes.tsr").read_bytes()
    (folder / "stored.tsr").write_bytes(stored)
    (folder / "cut.tsr").write_bytes(stored[:200])
    (folder / "damaged.tsr").write_bytes(stored[:100] + bytes([stored[100] ^ 1]) + stored[101:])
    (folder / "longer.tsr").write_bytes(stored + b"\n")
    (folder / "later.tsr").write_bytes(stored[:2] + bytes([0x90 | stored[2] & 15]) + stored[3:])
    (folder / "unknown.tsr").write_bytes(write_file(replace(read_file(stored), stream_id=b"\x00\x01")))
    (folder / "cut-out.tsr").write_bytes((GOLDEN / "sections" / "cut-out.tsr").read_bytes())


@contextmanager
def session() -> Iterator[Path]:
    """A new folder with these files, in which the commands run, as a user who has installed nothing and reaches no network."""

    def refuse(*_: object, **__: object) -> None:
        msg = "no network"
        raise OSError(msg)

    with tempfile.TemporaryDirectory() as name:
        folder, tools = Path(name) / "work", Path(name) / "bin"
        folder.mkdir()
        tools.mkdir()
        for tool, script in (("tessera", TOOL), ("on-a-terminal", TERMINAL)):
            (tools / tool).write_text(script)
            (tools / tool).chmod(0o755)
        prepare(folder)
        surroundings = {
            "PATH": f"{tools}:{os.environ['PATH']}", "PYTHONPATH": str(ROOT), "XDG_DATA_HOME": name, "XDG_CACHE_HOME": name,
            "COLUMNS": "80", "NO_COLOR": "1", "TERM": "dumb", "OMP_NUM_THREADS": "1", "CUDA_VISIBLE_DEVICES": "",
        }  # fmt: skip
        with chdir(folder), patch.dict(os.environ, surroundings), patch("socket.getaddrinfo", refuse):
            yield folder


def run(line: str) -> tuple[str, str, int]:
    """Standard output, standard error and exit code of a command line."""
    if line.startswith("tessera") and not SHELL.search(line):
        result = CliRunner().invoke(tessera, shlex.split(line)[1:], prog_name="tessera")
        if result.exception and not isinstance(result.exception, SystemExit):
            raise result.exception
        return result.stdout, result.stderr, result.exit_code
    command = ["bash", "-o", "pipefail", "-c", line]
    done = subprocess.run(command, stdin=subprocess.DEVNULL, capture_output=True, text=True, check=False, timeout=120)
    return done.stdout, done.stderr, done.returncode


def normal(line: str, text: str) -> list[str]:
    """The lines of what a command printed, alike on all machines. Lines about several images come in order of their names."""
    patterns = (*NORMAL, *MEASURED) if re.match("tessera (encode|tokens)", line) else NORMAL
    for pattern, replacement in patterns:
        text = re.sub(pattern, replacement, text, flags=re.MULTILINE)
    lines = [one.rstrip() for one in text.rstrip().splitlines()]
    end = len(lines) - bool(lines and SUMMARY.match(lines[-1]))
    if end < len(lines) or all(one.startswith("{") for one in lines):
        lines[:end] = sorted(lines[:end])
    return lines


def state(folder: Path) -> dict[str, tuple[int, int]]:
    """Size and time of change of all files below a folder; folders end with a slash."""
    paths = ((path, path.lstat()) for path in sorted(folder.rglob("*")))
    return {
        f"{path.relative_to(folder)}{'/' * path.is_dir()}": (0, 0) if path.is_dir() else (status.st_size, status.st_mtime_ns)
        for path, status in paths
    }


def transcript(text: str) -> str:
    """A transcript whose commands have run again."""
    lines: list[str] = []
    with session() as folder:
        for line in text.splitlines():
            if not line.startswith("$ "):
                lines += [line] if line.startswith("#") or not line else []
                continue
            before = state(folder)
            out, err, code = run(line[2:])
            after = state(folder)
            lines.append(line)
            lines += [f"> {one}".rstrip() for one in normal(line[2:], out)] + [
                f"! {one}".rstrip() for one in normal(line[2:], err)
            ]
            lines += [f"+ {name}" for name in after if name not in before]
            lines += [f"~ {name}" for name in after if before.get(name, after[name]) != after[name]]
            lines += [f"- {name}" for name in before if name not in after]
            lines += [f"= {code}"] if code else []
    return "\n".join(lines) + "\n"


def main() -> None:
    names = sys.argv[1:] or sorted(path.stem for path in FOLDER.glob("*.txt"))
    for name in names:
        path = FOLDER / f"{name}.txt"
        path.write_text(transcript(path.read_text()))


if __name__ == "__main__":
    main()
