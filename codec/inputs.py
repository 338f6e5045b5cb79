"""What callers hand to the library: images, their pixels, paths, open files and bytes. No torch."""

from __future__ import annotations

import io
import os
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any, BinaryIO, TypeAlias

import numpy as np
from numpy.typing import NDArray
from PIL import Image

from bitstream.container import HEADER_MAX, MAGIC, File, read_file, read_header
from codec.errors import FileError, FormatError, ImageError, TesseraError
from codec.image.opening import check_head, check_size, open_image
from codec.options import MAX_PIXELS

PathInput: TypeAlias = str | os.PathLike[str]
FileInput: TypeAlias = bytes | bytearray | memoryview | PathInput | BinaryIO
ImageInput: TypeAlias = Image.Image | NDArray[np.uint8] | FileInput

HEAD = 1 << 16  # bytes that show the format of an image
IMAGE_BYTES, IMAGE_EXTRA = 4, 1 << 26  # largest image file: bytes per allowed pixel, and more


def open_input(image: ImageInput, max_pixels: int = MAX_PIXELS) -> Image.Image | NDArray[np.uint8]:
    """An image or array as it is, an image file with its header read and its size checked.

    Raises FileError if the file cannot be read, ImageError if it is not an image or too large."""
    if isinstance(image, Image.Image | np.ndarray):
        return image
    with open_file(image, "an image: give a PIL image, a uint8 array, a path, a file opened with 'rb' or its bytes") as stream:
        head = stream.read(HEAD)
        if head.startswith(MAGIC):
            msg = "is a .tsr file, encoded already"
            raise ImageError(msg, ("decode",))
        check_head(head)
        limit = IMAGE_BYTES * max_pixels + IMAGE_EXTRA
        return open_image(read_at_most(stream, head, limit), max_pixels)


def read_tsr(file: FileInput, max_pixels: int = MAX_PIXELS) -> File:
    """A .tsr file, parsed. At most one byte more is read than its header allows.

    Raises FileError if the file cannot be read, FormatError if it is damaged, ImageError if the image is too large."""
    with open_file(file, "a .tsr file: give its bytes, its path, or a file opened with 'rb'") as stream:
        head = stream.read(HEADER_MAX)
        if not head.startswith(MAGIC):
            _refuse(head + stream.read(HEAD))
        header = read_header(head)
        check_size(header.width, header.height, max_pixels)
        return read_file(head + stream.read(max(0, header.max_file_bytes + 1 - len(head))), header)


def read_at_most(stream: BinaryIO, head: bytes, limit: int) -> bytes:
    """The bytes of a file whose `head` has been read. Raises FileError if it has more than `limit` bytes."""
    try:
        size = os.fstat(stream.fileno()).st_size  # 0 for pipes and devices
    except (AttributeError, OSError):
        size = 0
    data = head + stream.read(limit + 1 - len(head)) if size <= limit else b""
    if max(size, len(data)) > limit:
        msg = f"has more than {limit / 1e6:.0f} MB, the limit for files of its kind: check the file"
        raise FileError(msg, ("max_pixels",))
    return data


def _refuse(head: bytes) -> None:
    """Raises FormatError for a file that is not a .tsr file, by what its first bytes are."""
    try:
        check_head(head)
    except TesseraError as error:
        msg = "not a .tsr file" if head else "is empty"
        raise FormatError(msg) from error
    msg = "an image, not a .tsr file"
    raise FormatError(msg, ("encode",))


@contextmanager
def open_file(file: Any, expected: str = "a file") -> Iterator[BinaryIO]:
    """A file open for reading. Errors within the block that concern a named file begin with its name."""
    name = file if isinstance(file, str | os.PathLike) else getattr(file, "name", None)
    prefix = f"{os.fspath(name)}: " if isinstance(name, str | os.PathLike) else ""
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
        msg = f"{prefix}no such file: check the name"
        raise FileError(msg) from error
    except (OSError, ValueError) as error:  # ValueError: a closed file, or a path with a zero byte
        reason = getattr(error, "strerror", None) or error
        msg = f"{prefix}cannot be read ({reason}): check its permissions"
        raise FileError(msg) from error
    except TesseraError as error:
        if prefix and not str(error).startswith(prefix):
            error.args = (f"{prefix}{error}", *error.args[1:])
        raise
