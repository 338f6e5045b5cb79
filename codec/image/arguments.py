"""What a caller may give the library: an image or its pixels, the path of a file, an open file, or bytes. No torch."""

from __future__ import annotations

import os
from pathlib import Path
from typing import Any, BinaryIO, TypeAlias

import numpy as np
from numpy.typing import NDArray
from PIL import Image

from codec.errors import FormatError, ImageError, TesseraError
from codec.image.reading import MAX_PIXELS, open_image

StrPath: TypeAlias = str | os.PathLike[str]
ImageInput: TypeAlias = Image.Image | NDArray[np.uint8] | StrPath | BinaryIO
Data: TypeAlias = bytes | bytearray | memoryview | StrPath | BinaryIO


def image_of(given: ImageInput, max_pixels: int = MAX_PIXELS) -> Image.Image | NDArray[np.uint8]:
    """An image or an array as it is; a file, by its path or open for reading bytes, as an image whose header has been read.

    Raises ImageError for anything else, and for a file that cannot be read or is no image."""
    if isinstance(given, Image.Image | np.ndarray):
        return given
    data = _contents(given, ImageError)
    if data is None:
        msg = f"{_kind(given)} is not an image: give a PIL image, a uint8 array, a path or a file opened with 'rb'"
        raise ImageError(msg)
    try:
        return open_image(data, max_pixels)
    except ImageError as error:
        raise ImageError(_named(given, str(error))) from error


def data_of(given: Data) -> bytes:
    """The bytes of a .tsr file, given as bytes of any kind, by its path, or open for reading bytes.

    Raises FormatError for anything else, and for a file that cannot be read."""
    if isinstance(given, bytes):
        return given
    data = bytes(given) if isinstance(given, bytearray | memoryview) else _contents(given, FormatError)
    if data is None:
        msg = f"{_kind(given)} is not a .tsr file: give its bytes, its path, or a file opened with 'rb'"
        raise FormatError(msg)
    return data


def _contents(given: Any, error_type: type[TesseraError]) -> bytes | None:
    """All bytes of a file, or None for what is no file."""
    try:
        if isinstance(given, str | os.PathLike):
            return Path(given).read_bytes()
        data = given.read() if hasattr(given, "read") else None
    except (OSError, ValueError) as error:  # ValueError: a closed file, or a path with a zero byte
        msg = _named(given, f"cannot be read ({getattr(error, 'strerror', None) or error}): check the name and its permissions")
        raise error_type(msg) from error
    return data if isinstance(data, bytes) else None


def _named(given: Any, problem: str) -> str:
    """A problem, with the name of the file that has it where there is one."""
    name = given if isinstance(given, str | os.PathLike) else getattr(given, "name", None)
    return f"{os.fspath(name)}: {problem}" if isinstance(name, str | os.PathLike) else problem


def _kind(given: Any) -> str:
    if hasattr(given, "read"):
        return "a file opened as text" if hasattr(given, "encoding") else "an object whose read() gives no bytes"
    name = type(given).__name__
    return f"{'an' if name[0] in 'aeiouAEIOU' else 'a'} {name}"
