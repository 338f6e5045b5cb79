"""Inputs of all commands: found by name, in folders and in lists, and read from files or, for '-', from standard input."""

from __future__ import annotations

import codecs
import os
import re
import sys
from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

from cli.outputs import STANDARD
from codec.errors import FileError, TesseraError

if TYPE_CHECKING:
    from bitstream.container import File

LIST_MAX = 1 << 26  # bytes, maximum size of a list of names
NPZ_BYTES, NPZ_EXTRA = 1, 1 << 20  # maximum size of an .npz file: bytes per allowed pixel, plus bytes
ADDRESS = re.compile(r"https?://", re.IGNORECASE)


@dataclass(frozen=True)
class Files:
    """A kind of files."""

    name: str  # plural noun in errors
    endings: Callable[[], frozenset[str]]  # called only for folders, since loading Pillow's list takes time


@dataclass(frozen=True)
class Input:
    """A file that is named or found in a folder."""

    path: str  # '-' for standard input
    name: str  # relative to the named folder, or the file's own
    error: TesseraError | None = None  # known reason why it cannot be read


def readable_endings() -> frozenset[str]:
    """Endings of the image files that Pillow reads, some of them with plugins."""
    from codec.image.plugins import readable_endings

    return readable_endings()


def _writable_endings() -> frozenset[str]:
    from codec.image.plugins import writable_endings

    return writable_endings()


ENDING = ".tsr"
IMAGES = Files("images", readable_endings)
OUTPUT_IMAGES = Files("images", _writable_endings)
TSR_FILES = Files(".tsr files", lambda: frozenset([ENDING]))


def named_inputs(sources: tuple[str, ...], files_from: str | None) -> list[str]:
    """All names on a command line: its arguments, then the names in the list of --files-from.

    Raises click.UsageError if there are none, or if the list cannot be read."""
    if not sources and files_from is None:
        msg = "Missing argument 'IN...': name files or folders, '-' for standard input, or a list with --files-from"
        raise click.UsageError(msg)
    if files_from == STANDARD and STANDARD in sources:
        msg = "'-' and --files-from - both need standard input: name a file for one of them"
        raise click.UsageError(msg)
    try:
        return [*sources, *(read_lines(files_from) if files_from is not None else ())]
    except FileError as error:
        msg = f"--files-from {files_from}: {error.message}"
        raise click.UsageError(msg) from error


def find_inputs(names: Iterable[str], recursive: bool, files: Files) -> Iterator[Input]:
    """The named files, and the files of the kind in the named folders. A folder without any is an input with an error."""
    for name in names:
        if name == STANDARD or not os.path.isdir(name):
            yield Input(name, os.path.basename(name))
            continue
        found = False
        for entry in _walk(name, "", recursive, files.endings(), set()):
            found = True
            yield entry
        if not found:
            advice = "" if recursive else ", or add -r for its subfolders"
            yield Input(name, "", FileError(f"contains no {files.name}: name another folder{advice}"))


def _walk(folder: str, prefix: str, recursive: bool, endings: frozenset[str], seen: set[tuple[int, int]]) -> Iterator[Input]:
    """The files of a folder in order of name. Links are followed, and each folder is entered once. Hidden files and files with
    other endings are left out. `prefix` is the folder's path relative to the named folder."""
    try:
        state = Path(folder).stat()
        if (state.st_dev, state.st_ino) in seen:
            return
        seen.add((state.st_dev, state.st_ino))
        entries = sorted(os.scandir(folder), key=lambda entry: entry.name)
    except OSError as error:
        yield Input(folder, prefix, FileError(f"the folder cannot be read ({error.strerror}): check its permissions"))
        return
    for entry in entries:
        name = os.path.join(prefix, entry.name)
        if entry.name.startswith("."):
            continue
        if entry.is_dir():
            if recursive:
                yield from _walk(entry.path, name, recursive, endings, seen)
        elif entry.is_file() and os.path.splitext(entry.name)[1].lower() in endings:
            yield Input(entry.path, name)


class StandardInput:
    """Standard input, and the number of bytes that were read from it."""

    bytes_read = 0

    def read(self, size: int = -1) -> bytes:
        data = sys.stdin.buffer.read(size)
        self.bytes_read += len(data)
        return data

    def fileno(self) -> int:
        return sys.stdin.fileno()


def input_of(path: str) -> Any:
    """A file for the library: its path, or standard input for '-'. Raises FileError for a terminal and for a web
    address."""
    if path != STANDARD:
        refuse_address(path)
        return path
    if sys.stdin is None or sys.stdin.isatty():
        state = "closed" if sys.stdin is None else "a terminal"
        msg = f"standard input is {state}: pipe a file into it, or name one"
        raise FileError(msg)
    return StandardInput()


def refuse_address(path: str) -> None:
    """Raises FileError for a web address."""
    if ADDRESS.match(path) and not os.path.exists(path):
        msg = "a web address, not a file: download it first, for example with `curl -L -O ADDRESS`"
        raise FileError(msg)


def is_complete_tsr(path: str, max_pixels: int) -> bool:
    """Whether a .tsr file can be read and has a correct checksum."""
    try:
        return read_tsr(path, max_pixels).complete
    except TesseraError:
        return False


def is_complete_image(path: str, max_pixels: int) -> bool:
    """Whether all pixels of an image file can be read."""
    from PIL import Image

    from codec.image.opening import load_image, open_input

    try:
        image = open_input(path, max_pixels)
        assert isinstance(image, Image.Image)
        load_image(image)
    except TesseraError:
        return False
    return True


def read_tsr(path: str, max_pixels: int) -> File:
    """A .tsr file, parsed. Raises TesseraError."""
    from codec.reading import read_tsr

    return read_tsr(input_of(path), max_pixels)


def read_npz(path: str, max_pixels: int) -> bytes:
    """The bytes of an .npz file of tokens, for an image of at most `max_pixels`. Raises FileError."""
    from codec.system.inputs import open_file, read_at_most

    with open_file(input_of(path)) as stream:
        head = stream.read(4)
        if head[:2] != b"PK":  # signature of zip files
            msg = "not an .npz file of tokens: create one with `tessera tokens`"
            raise FileError(msg)
        return read_at_most(stream, head, NPZ_BYTES * max_pixels + NPZ_EXTRA)


def read_lines(path: str) -> list[str]:
    """The names in a file, or in standard input for '-': one per line, or separated by zero bytes, as `find -print0` writes
    them, so that names may contain line breaks. On Unix, names need not be UTF-8. Raises FileError if the list cannot be read,
    or is UTF-16 or UTF-32."""
    from codec.system.inputs import open_file, read_at_most

    with open_file(input_of(path)) as stream:
        data = read_at_most(stream, b"", LIST_MAX)
        data = data.removeprefix(codecs.BOM_UTF8)
        names = data.split(b"\0") if b"\0" in data else data.replace(b"\r\n", b"\n").split(b"\n")
        # In UTF-16 and UTF-32, a line break has zero bytes next to it, so it looks like a name.
        if data.startswith((codecs.BOM_UTF16_LE, codecs.BOM_UTF16_BE)) or not {b"\n", b"\r"}.isdisjoint(names):
            msg = "the list is in UTF-16 or UTF-32: save it as UTF-8 (in PowerShell, `... | Set-Content -Encoding utf8 FILE`)"
            raise FileError(msg)
        try:
            return [os.fsdecode(name) for name in names if name]
        except UnicodeDecodeError as error:  # on Windows
            msg = "the list is not in UTF-8: save it as UTF-8"
            raise FileError(msg) from error
