"""Outputs: checks before any work, writing, standard output, and formatting of names and sizes."""

from __future__ import annotations

import os
import re
import sys
from contextlib import suppress
from pathlib import Path
from typing import IO, Any

from codec.errors import FileError
from codec.system.files import Writer

STANDARD = "-"
MISSING = "no such file: check the name"
CLOSED = "standard output is closed: redirect it to a file or a pipe"
UNPRINTABLE = re.compile(r"[\x00-\x1f\x7f-\x9f\u2028-\u202e\u2066-\u2069\ud800-\udfff]")


def check_output(path: str, force: bool, source: str, *, makes_folders: bool = False, as_json: str | None = None) -> None:
    """Raises FileError if an output could not or should not be written. Called before any work."""
    if path == STANDARD:
        if as_json:
            msg = "--json and -o - both need standard output: name an output file"
            raise FileError(msg)
        if sys.stdout is None or sys.stdout.isatty():
            state = "closed" if sys.stdout is None else "a terminal, and the data is binary"
            msg = f"standard output is {state}: use -o FILE, or a pipe"
            raise FileError(msg)
        return
    target, problem = Path(path), None
    try:
        if is_folder(path):
            problem = "is a folder: name a file"
        elif not makes_folders and not target.parent.is_dir():
            msg = f"the folder of the output {path} does not exist: create it first"
            raise FileError(msg)
        elif target.exists() and source != STANDARD and os.path.exists(source) and os.path.samefile(target, source):
            problem = "is the input: name another file"
        elif not force and target.is_file():  # a device or a named pipe has no content to lose
            problem = "exists: use -f to replace it"
        elif not force and target.is_symlink() and not target.exists():
            problem = "is a link to a file that does not exist: use -f to write that file"
    except OSError as error:
        problem = f"cannot be written ({error.strerror}): name another"
    if problem:
        msg = f"the output {path} {problem}"
        raise FileError(msg)


def is_folder(path: str) -> bool:
    """Whether a path names an existing folder or ends with a slash."""
    return path != STANDARD and (os.path.isdir(path) or os.path.basename(path) == "")


def write_output(
    path: str, data: bytes, replace: bool = False, writer: Writer | None = None, original: os.stat_result | None = None
) -> None:
    """Writes one file, or standard output for '-'; see `Writer.write`. Raises FileError."""
    if path == STANDARD:
        write_standard(data)
    else:
        (writer or Writer()).write(path, data, replace, original)


def write_standard(data: bytes) -> None:
    """Writes to standard output. Raises FileError if it is closed, its reader has ended or the disk is full."""
    if sys.stdout is None:
        raise FileError(CLOSED)
    try:
        sys.stdout.buffer.write(data)
        sys.stdout.buffer.flush()
    except OSError as error:
        silence(sys.stdout)
        if isinstance(error, BrokenPipeError):
            msg = "broken pipe: the reader closed standard output before all data was written"
        else:
            msg = f"cannot write to standard output ({error.strerror}): check space and permissions"
        raise FileError(msg) from error


def silence(stream: IO[Any] | None) -> None:
    """Redirects a standard stream that cannot be written to; otherwise Python would fail again when it exits."""
    with suppress(AttributeError, OSError, ValueError):  # closed, or not a file at all
        os.dup2(os.open(os.devnull, os.O_WRONLY), stream.fileno())  # type: ignore[union-attr]


def human(size: float) -> str:
    """A readable number of bytes: 734 B, 3.1 kB, 1.92 MB."""
    if size < 1000:
        return f"{size:.0f} B"
    return f"{size / 1000:.1f} kB" if size < 1_000_000 else f"{size / 1_000_000:.2f} MB"


def printable(text: str) -> str:
    """Text that any terminal can show on one line. Other characters of a file name are escaped: bytes that are not UTF-8,
    control characters, and marks that change the direction of writing."""
    return UNPRINTABLE.sub(lambda found: _escaped(ord(found[0])), text)


def _escaped(code: int) -> str:
    if 0xDC80 <= code <= 0xDCFF:  # Python's surrogate for a byte that is not UTF-8
        return f"\\x{code - 0xDC00:02x}"
    return repr(chr(code))[1:-1]
