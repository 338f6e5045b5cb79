"""Inputs of all commands: found by name, in folders and in lists, and read, from files or, for '-', from standard input.

No more is read than an input of its kind can have.
"""

from __future__ import annotations

import os
import re
import sys
from collections.abc import Callable, Iterable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import BinaryIO

import click

from cli.outputs import MISSING, STANDARD, human
from codec.errors import FileError, TesseraError

HEAD = 1 << 16  # bytes that show the format of an image
LIST_MAX = 1 << 26  # bytes of a list of names
IMAGE_BYTES, IMAGE_EXTRA = 4, 1 << 26  # at most, of an encoded image: per pixel that is allowed, and in addition
NPZ_BYTES, NPZ_EXTRA = 1, 1 << 20  # of an .npz of tokens, likewise; all tokens of an image are 0.2 bytes per pixel
ADDRESS = re.compile(r"https?://", re.IGNORECASE)
NO_PHOTOS = ("BUFR", "EPS", "GRIB", "HDF5", "MPEG", "PDF", "TSR", "WMF")  # films, drawings, data, and what is encoded already
HELPED = frozenset((".avif", ".heic", ".heif", ".jxl"))  # need another package, which the error names


@dataclass(frozen=True)
class Files:
    """A kind of files that a command takes from folders."""

    name: str  # for errors
    endings: Callable[[], frozenset[str]]  # asked for only when there is a folder: Pillow's take time to load


@dataclass(frozen=True)
class Input:
    """A file that was named, or found in a folder."""

    path: str  # '-' for standard input
    name: str  # below the folder that was named, or the file's own
    error: TesseraError | None = None  # why it cannot be read, as far as it is known


def photo_endings() -> frozenset[str]:
    """Endings of the images that Pillow reads, some with other packages."""
    from PIL import Image

    Image.init()
    known = Image.registered_extensions().items()
    return HELPED.union(ending for ending, name in known if name in Image.OPEN and name not in NO_PHOTOS)


IMAGES = Files("images", photo_endings)
TSR_FILES = Files(".tsr files", lambda: frozenset([".tsr"]))


def named_inputs(sources: tuple[str, ...], files_from: str | None) -> list[str]:
    """All names that a command line gives: its own, then those of the list that --files-from names.

    Raises click.UsageError where there are none, or the list cannot be read."""
    if not sources and files_from is None:
        msg = "Missing argument 'IN...': name files or folders, '-' for standard input, or a list with --files-from"
        raise click.UsageError(msg)
    if files_from == STANDARD and STANDARD in sources:
        msg = "'-' and --files-from - both need standard input: name a file for one of them"
        raise click.UsageError(msg)
    try:
        return [*sources, *(read_lines(files_from) if files_from is not None else ())]
    except FileError as error:
        msg = f"--files-from {files_from}: {error}"
        raise click.UsageError(msg) from error


def find_inputs(names: Iterable[str], recursive: bool, files: Files) -> Iterator[Input]:
    """Files as they are named, and those of the kind in the folders that are named. A folder that holds none is an input with
    an error."""
    for name in names:
        if name == STANDARD or not os.path.isdir(name):
            yield Input(name, os.path.basename(name))
            continue
        found = False
        for entry in _walk(name, "", recursive, files.endings(), set()):
            found = True
            yield entry
        if not found:
            deeper = "" if recursive else ", or look into its folders too with -r"
            yield Input(name, "", FileError(f"holds no {files.name}: name another folder{deeper}"))


def _walk(folder: str, place: str, recursive: bool, endings: frozenset[str], seen: set[tuple[int, int]]) -> Iterator[Input]:
    """Files of a folder in the order of their names. Links are followed, each folder is entered once; hidden files, and those
    with other endings, are passed over."""
    try:
        state = Path(folder).stat()
        if (state.st_dev, state.st_ino) in seen:
            return
        seen.add((state.st_dev, state.st_ino))
        entries = sorted(os.scandir(folder), key=lambda entry: entry.name)
    except OSError as error:
        yield Input(folder, place, FileError(f"the folder cannot be read ({error.strerror}): check its permissions"))
        return
    for entry in entries:
        below = os.path.join(place, entry.name)
        if entry.name.startswith("."):
            continue
        if entry.is_dir():
            if recursive:
                yield from _walk(entry.path, below, recursive, endings, seen)
        elif entry.is_file() and os.path.splitext(entry.name)[1].lower() in endings:
            yield Input(entry.path, below)


@contextmanager
def opened(path: str) -> Iterator[BinaryIO]:
    """A file, or standard input for '-', open for reading. Raises FileError, also where reading fails later."""
    try:
        if path == STANDARD:
            yield _standard()
            return
        refuse_address(path)
        if os.path.isdir(path):
            msg = "is a folder: name a file in it"
            raise FileError(msg)
        with Path(path).open("rb") as stream:
            yield stream
    except FileNotFoundError as error:
        raise FileError(MISSING) from error
    except OSError as error:
        msg = f"cannot be read ({error.strerror or error}): check its permissions"
        raise FileError(msg) from error


def refuse_address(path: str) -> None:
    """Raises FileError for an address of the web."""
    if ADDRESS.match(path) and not os.path.exists(path):
        msg = "is an address, not a file: fetch it first, as in `curl -L ADDRESS | tessera encode - -o photo.tsr`"
        raise FileError(msg)


def _standard() -> BinaryIO:
    if sys.stdin is None or sys.stdin.isatty():
        state = "closed" if sys.stdin is None else "a terminal"
        msg = f"standard input is {state}: pipe a file into it, or name one"
        raise FileError(msg)
    return sys.stdin.buffer


def read_image_file(path: str, max_pixels: int) -> bytes:
    """All bytes of an encoded image of at most so many pixels.

    Raises FileError, or ImageError where its first bytes are not those of an image."""
    from bitstream.container import MAGIC
    from codec.image.reading import check_head

    with opened(path) as stream:
        head = stream.read(HEAD)
        if head.startswith(MAGIC):
            msg = "is a .tsr file, encoded already: did you mean `tessera decode`?"
            raise FileError(msg)
        check_head(head)
        return _up_to(stream, head, IMAGE_BYTES * max_pixels + IMAGE_EXTRA)


def read_tsr(path: str, max_pixels: int) -> bytes:
    """The bytes of a .tsr file, with its header checked; no more than one byte beyond the longest file that it allows.

    Raises FileError, FormatError, or ImageError for an image with more pixels than allowed."""
    from bitstream.container import HEADER_MAX, MAGIC, read_header
    from codec.image.reading import check_head, check_size

    with opened(path) as stream:
        head = stream.read(HEADER_MAX)
        if not head.startswith(MAGIC):
            try:
                check_head(head + stream.read(HEAD))
            except TesseraError:
                msg = "not a .tsr file" if head else "is empty"
            else:
                msg = "an image, not a .tsr file: did you mean `tessera encode`?"
            raise FileError(msg)
        header = read_header(head)
        check_size(header.width, header.height, max_pixels)
        return head + stream.read(max(0, header.largest + 1 - len(head)))


def read_npz(path: str, max_pixels: int) -> bytes:
    """All bytes of an .npz of the tokens of an image of at most so many pixels. Raises FileError."""
    with opened(path) as stream:
        head = stream.read(4)
        if head[:2] != b"PK":  # as every zip file begins
            msg = "not an .npz of tokens: make one with `tessera tokens`"
            raise FileError(msg)
        return _up_to(stream, head, NPZ_BYTES * max_pixels + NPZ_EXTRA)


def read_lines(path: str) -> list[str]:
    """The names in a file, or in standard input for '-': one per line, or with zero bytes between them, as `find -print0`
    writes them, so that names may hold line breaks. Raises FileError."""
    with opened(path) as stream:
        data = _up_to(stream, b"", LIST_MAX)
    return [os.fsdecode(name) for name in data.split(b"\0" if b"\0" in data else b"\n") if name]


def _up_to(stream: BinaryIO, head: bytes, most: int) -> bytes:
    """All that is left of a file after its head. Raises FileError where it has more than `most` bytes in all."""
    try:
        size = os.fstat(stream.fileno()).st_size  # 0 for pipes and devices
    except (AttributeError, OSError):
        size = 0
    data = head + stream.read(most + 1 - len(head)) if size <= most else b""
    if max(size, len(data)) > most:
        msg = f"has more than {human(most)}, which is the limit for a file of its kind: raise --max-pixels, or check the file"
        raise FileError(msg)
    return data
