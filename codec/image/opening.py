"""Opening image files with Pillow: formats, size limits and plugins. No torch."""

from __future__ import annotations

import io
import struct
from collections.abc import Iterator
from contextlib import contextmanager, nullcontext, suppress
from typing import TypeAlias

import numpy as np
from numpy.typing import NDArray
from PIL import Image, UnidentifiedImageError

from bitstream.block_order import BLOCK
from bitstream.container import MAGIC
from codec.errors import ImageError, TesseraError
from codec.image.plugins import load_plugin, plugin_for
from codec.options import MAX_PIXELS
from codec.system.inputs import FileInput, open_file, read_at_most
from codec.system.process import after_fork_in_child, fork_safe_lock

ImageInput: TypeAlias = Image.Image | NDArray[np.uint8] | FileInput

HEAD = 1 << 16  # bytes read to recognise the format of an image
IMAGE_BYTES, IMAGE_EXTRA = 4, 1 << 26  # limit on image files: bytes per allowed pixel, plus a constant
# An image that is one pixel high is computed in blocks of 256 pixels: 65535x1 costs as much as 16.8 million pixels. Its blocks
# may cost four times its own pixels, or a thirtieth of max_pixels, or as much as that example.
THIN_FACTOR = 4
THIN_COST = 1 << 24
_pillow_lock = fork_safe_lock()
_pillow_users, _pillow_limit = 0, None  # threads that have lifted Pillow's pixel limit; the original limit


def open_input(image: ImageInput, max_pixels: int = MAX_PIXELS) -> Image.Image | NDArray[np.uint8]:
    """Returns an image or array unchanged, and opens an image file: reads its header and checks its size.

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


def check_size(width: int, height: int, max_pixels: int = MAX_PIXELS) -> None:
    """Raises ImageError if an image has more pixels than allowed, or is so thin that its blocks have far more."""
    if width * height > max_pixels:
        msg = f"{width}x{height} is {width * height:,} pixels, more than {max_pixels:,}"
        raise ImageError(msg, ("max_pixels",))
    blocks = -(-width // BLOCK) * -(-height // BLOCK)
    cost = blocks * BLOCK**2
    allowed = max(THIN_FACTOR * width * height, max_pixels // 30, min(THIN_COST, THIN_FACTOR * max_pixels))
    if blocks > 1 and cost > allowed:
        msg = f"{width}x{height} is too narrow: decoding it costs as much as {cost:,} pixels; the limit is {allowed:,}"
        raise ImageError(msg, ("max_pixels",))


def check_head(head: bytes) -> None:
    """Raises ImageError if a file is certainly not an image that Pillow reads. `head` is its content, or the first 64 KiB."""
    if not head:
        msg = "is empty"
        raise ImageError(msg)
    load_plugin(plugin_for(head))
    Image.init()
    for _, accept in Image.OPEN.values():
        with suppress(IndexError, struct.error):  # the head may be too short for a signature
            if accept and accept(head[:16]):
                return
    try:  # a format without a signature must be parsed
        _open(head).close()
    except UnidentifiedImageError as error:
        raise _unknown_format(head) from error
    except Exception:
        return  # reported when the complete file is read


def open_image(data: bytes, max_pixels: int = MAX_PIXELS) -> Image.Image:
    """The image in the bytes of a file. Its header is read and its size is checked; `load_image` reads its pixels.

    Raises ImageError."""
    load_plugin(plugin_for(data))
    with reading_errors():
        try:
            image = _open(data)
        except UnidentifiedImageError as error:
            raise _unknown_format(data) from error
    check_size(*image.size, max_pixels)
    return image


def load_image(image: Image.Image) -> Image.Image:
    """Reads the pixels of an opened image. Raises ImageError."""
    with reading_errors():
        # For TIFF, Pillow checks its limit again here, on the size of tiles.
        pixels = image.width * image.height
        tile_width, tile_height = getattr(image, "_tile_size", image.size)
        above_limit = pixels > (Image.MAX_IMAGE_PIXELS or pixels)
        with _without_limit() if above_limit and tile_width * tile_height <= THIN_FACTOR * pixels else nullcontext():
            image.load()
    return image


@contextmanager
def reading_errors() -> Iterator[None]:
    """Converts any error of Pillow's plugins into ImageError; damaged images raise errors of many types."""
    try:
        yield
    except (TesseraError, MemoryError):
        raise
    except Exception as error:
        reason = " ".join(str(error).split()) or type(error).__name__
        msg = f"the image cannot be read ({reason}): it may be cut or damaged"
        raise ImageError(msg) from error


def _unknown_format(head: bytes) -> ImageError:
    if plugin := plugin_for(head):
        msg = f"{plugin.format} cannot be read, or it is damaged: install {plugin.package}, or convert it to PNG first"
        return ImageError(msg)
    return ImageError("not an image of a format that Pillow knows: convert it to PNG first")


def _open(data: bytes) -> Image.Image:
    with _without_limit():
        return Image.open(io.BytesIO(data))


@contextmanager
def _without_limit() -> Iterator[None]:
    """Lifts Pillow's pixel limit, which applies to the whole process; `check_size` applies ours."""
    global _pillow_users, _pillow_limit
    with _pillow_lock:
        if not _pillow_users:
            _pillow_limit, Image.MAX_IMAGE_PIXELS = Image.MAX_IMAGE_PIXELS, None
        _pillow_users += 1
    try:
        yield
    finally:
        with _pillow_lock:
            _pillow_users -= 1
            if not _pillow_users:
                Image.MAX_IMAGE_PIXELS = _pillow_limit


def _restore_limit() -> None:
    """In a forked child, no thread has lifted the limit."""
    global _pillow_users
    if _pillow_users:
        _pillow_users, Image.MAX_IMAGE_PIXELS = 0, _pillow_limit


after_fork_in_child(_restore_limit)
