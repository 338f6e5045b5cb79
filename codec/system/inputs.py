"""Opening files for reading: a path, an open file, or bytes in memory. No torch."""

from __future__ import annotations

import io
import os
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any, BinaryIO, TypeAlias

from codec.errors import FileError, TesseraError

PIECE = 1 << 20  # bytes
FileInput: TypeAlias = bytes | bytearray | memoryview | str | os.PathLike[str] | BinaryIO


@contextmanager
def open_file(file: Any, expected: str = "a file") -> Iterator[BinaryIO]:
    """A file open for reading. Errors within the block are about this file."""
    name = file if isinstance(file, str | os.PathLike) else getattr(file, "name", None)
    if not isinstance(name, str | os.PathLike):  # a pipe's name is a number
        name = None
    try:
        if isinstance(file, bytes | bytearray | memoryview):
            yield io.BytesIO(file)
        elif isinstance(file, str | os.PathLike):
            if os.path.isdir(file):
                msg = "is a folder: name a file in it"
                raise FileError(msg)
            with Path(file).open("rb") as stream:
                yield stream
        elif hasattr(file, "read") and isinstance(file.read(0), bytes):
            yield file
        else:
            kind = "a file opened as text" if hasattr(file, "encoding") else f"an object of type {type(file).__name__}"
            msg = f"{kind} is not {expected}"
            raise FileError(msg)
    except FileNotFoundError as error:
        msg = "no such file: check the name"
        raise FileError(msg, file=name) from error
    except (OSError, ValueError) as error:  # ValueError: a closed file, or a path with a zero byte
        reason = getattr(error, "strerror", None) or error
        advice = "check its permissions" if isinstance(error, PermissionError) else "check the name, or name another file"
        msg = f"cannot be read ({reason}): {advice}"
        raise FileError(msg, file=name) from error
    except TesseraError as error:
        error.about(name)
        raise


def read_at_most(stream: BinaryIO, head: bytes, limit: int) -> bytes:
    """The bytes of a file whose `head` has been read. Raises FileError if it has more than `limit` bytes."""
    try:
        size = os.fstat(stream.fileno()).st_size  # 0 for pipes and devices
    except (AttributeError, OSError):
        size = 0
    content = io.BytesIO()  # grows in place, and `getvalue` does not copy: joined pieces would take twice the memory
    content.write(head)
    while max(size, content.tell()) <= limit and (piece := stream.read(min(PIECE, limit + 1 - content.tell()))):
        content.write(piece)
    if max(size, content.tell()) > limit:
        msg = f"has more than {limit / 1e6:.0f} MB, the limit for files of its kind: check the file"
        raise FileError(msg, ("max_pixels",))
    return content.getvalue()


def path_of(file: Any) -> str | None:
    """The path of a file, if it has one."""
    name = file if isinstance(file, str | os.PathLike) else getattr(file, "name", None)
    return os.fsdecode(name) if isinstance(name, str | os.PathLike) else None


def folder_of(file: Any) -> str | None:
    """The folder of a file, if the file has a path."""
    path = path_of(file)
    return None if path is None else str(Path(path).parent)
