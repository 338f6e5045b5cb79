"""Reading inputs and writing outputs: '-' for pipes, nothing half-written, nothing replaced unasked."""

from __future__ import annotations

import os
import stat
import sys
import tempfile
from pathlib import Path

from bitstream.errors import TesseraError

STANDARD = "-"


class FileError(TesseraError):
    """A file cannot be read or written; the message says why and what to do."""


def read_input(path: str) -> bytes:
    """All bytes of a file, or of standard input for '-'. Raises FileError."""
    if path == STANDARD:
        if sys.stdin is None or sys.stdin.isatty():
            msg = "standard input is a terminal: pipe a file into it, or name one"
            raise FileError(msg)
        return sys.stdin.buffer.read()
    try:
        if os.path.isdir(path):
            msg = "is a folder: name a file in it"
            raise FileError(msg)
        return Path(path).read_bytes()
    except FileNotFoundError as error:
        msg = "no such file: check the name"
        raise FileError(msg) from error
    except OSError as error:
        msg = f"cannot be read ({error.strerror}): check its permissions"
        raise FileError(msg) from error


def read_lines(path: str) -> list[str]:
    """The names in a file, one a line, or in standard input for '-'. Raises FileError."""
    return [line for line in os.fsdecode(read_input(path)).split("\n") if line]


def check_output(path: str, force: bool, source: str) -> None:
    """Raises FileError, before any work, where an output could not or should not be written."""
    if path == STANDARD:
        if sys.stdout is None or sys.stdout.isatty():
            msg = "standard output is a terminal, which binary data would garble: use -o FILE, or pipe it on"
            raise FileError(msg)
        return
    target = Path(path)
    if target.is_dir():
        msg = f"the output {path} is a folder: name a file"
        raise FileError(msg)
    if not target.parent.is_dir():
        msg = f"the folder of the output {path} does not exist: make it first"
        raise FileError(msg)
    if target.exists() and source != STANDARD and os.path.exists(source) and os.path.samefile(target, source):
        msg = f"the output {path} is the input: name another file"
        raise FileError(msg)
    if target.exists() and not force:
        msg = f"the output {path} exists: use -f to replace it"
        raise FileError(msg)


def write_output(path: str, data: bytes) -> None:
    """Writes a file whole or not at all, or to standard output for '-'. Raises FileError."""
    if path == STANDARD:
        try:
            sys.stdout.buffer.write(data)
            sys.stdout.buffer.flush()
        except BrokenPipeError as error:
            os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())  # so that closing it at exit is silent
            msg = "standard output was closed before all was written: let the reader read to the end"
            raise FileError(msg) from error
        return
    target = Path(os.path.realpath(path))  # a link is followed, not replaced
    try:
        if target.exists() and not stat.S_ISREG(target.stat().st_mode):  # a device or a named pipe
            target.write_bytes(data)
            return
        handle, temporary = tempfile.mkstemp(dir=target.parent, prefix=f".{target.name}.")
        try:
            with os.fdopen(handle, "wb") as stream:
                stream.write(data)
            os.chmod(temporary, target.stat().st_mode if target.exists() else 0o666 & ~_umask())
            os.replace(temporary, target)
        except BaseException:
            os.unlink(temporary)
            raise
    except OSError as error:
        msg = f"cannot write {path} ({error.strerror}): check space and permissions"
        raise FileError(msg) from error


def _umask() -> int:
    mask = os.umask(0)
    os.umask(mask)
    return mask


def human(size: float) -> str:
    """Bytes as people say them: 734 B, 3.1 kB, 1.92 MB."""
    if size < 1000:
        return f"{size:.0f} B"
    return f"{size / 1000:.1f} kB" if size < 1_000_000 else f"{size / 1_000_000:.2f} MB"
