"""Opening image files with Pillow: formats, size limits and plugins. No torch."""

from __future__ import annotations

import io
import struct
import threading
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from typing import IO, Any, TypeAlias

import numpy as np
from numpy.typing import NDArray
from PIL import Image, ImageFile, PngImagePlugin, UnidentifiedImageError

from bitstream.container import MAGIC
from codec.errors import ImageError, TesseraError
from codec.image.plugins import READ, jxl_header, load_formats, load_plugin, plugin_for
from codec.limits import NARROW_FACTOR, check_size
from codec.options import MAX_PIXELS
from codec.system.inputs import FileInput, open_file, read_at_most
from codec.system.process import after_fork_in_child, fork_safe_lock

ImageInput: TypeAlias = Image.Image | NDArray[np.uint8] | FileInput

HEAD = 1 << 16  # bytes read to recognise the format of an image
IMAGE_BYTES, IMAGE_EXTRA = 4, 1 << 26  # limit on image files: bytes per allowed pixel, plus a constant
CHANNELS = 4  # maximum for an image with as many pixels as allowed; JPEG XL has up to 4099, and its plugin decodes all of them
TEXT_MAX = 1 << 24  # bytes of an unpacked profile or text in a PNG, as in `codec.image.metadata`; Pillow allows 1 MiB
PNG_SIGNATURE = b"\x89PNG\r\n\x1a\n"
DAMAGE = "tessera_damage"  # key in an image's `info`: a remark for the user on damage that was accepted


def open_input(image: ImageInput, max_pixels: int = MAX_PIXELS, allow_damaged: bool = False) -> Image.Image | NDArray[np.uint8]:
    """Returns an image or array unchanged, and opens an image file: reads its header. Checks sizes.

    Raises FileError if the file cannot be read, ImageError if it is not an image or too large, or if an array has another
    shape or type than `ImageInput` allows."""
    if isinstance(image, np.ndarray):
        channels = image.shape[2] if image.ndim == 3 else 1
        if image.dtype != np.uint8 or image.ndim not in (2, 3) or channels not in (1, 3, 4) or 0 in image.shape:
            msg = f"an array of {image.dtype} {image.shape}: give uint8 (height, width), or (height, width, 1, 3 or 4)"
            raise ImageError(msg)
        check_size(image.shape[1], image.shape[0], max_pixels)
        return image
    if isinstance(image, Image.Image):
        check_size(*image.size, max_pixels)
        return image
    with open_file(image, "an image: give a PIL image, a uint8 array, a path, a file opened with 'rb' or its bytes") as stream:
        head = stream.read(HEAD)
        if head.startswith(MAGIC):
            msg = "already a .tsr file"
            raise ImageError(msg, ("decode",))
        check_head(head)
        limit = IMAGE_BYTES * max_pixels + IMAGE_EXTRA
        return open_image(read_at_most(stream, head, limit), max_pixels, allow_damaged)


def check_head(head: bytes) -> None:
    """Raises ImageError if the start of a file shows that its format is not supported. `head` is its content, or the first
    64 KiB."""
    if not head:
        msg = "the file is empty"
        raise ImageError(msg)
    load_plugin(plugin_for(head))
    if _has_signature(head):
        return
    try:  # a format without a signature must be parsed
        _open(io.BytesIO(head), MAX_PIXELS).close()
    except UnidentifiedImageError as error:
        raise _unknown_format(head) from error
    except Exception:
        return  # reported when the complete file is read


def open_image(data: bytes, max_pixels: int = MAX_PIXELS, allow_damaged: bool = False) -> Image.Image:
    """The image in the bytes of a file. Its header is read and its size is checked; `load_image` reads its pixels.

    Wrong checksums of a PNG's metadata are ignored. Raises ImageError."""
    plugin = plugin_for(data)
    load_plugin(plugin)
    if plugin and plugin.format == "JPEG XL" and "JXL" in Image.OPEN:
        header = jxl_header(data)
        check_size(header.width, header.height, max_pixels)
        if header.width * header.height * (3 + header.extra_channels) > CHANNELS * max_pixels:
            msg = f"{header.width}x{header.height} with {header.extra_channels} channels beyond colour takes too much memory"
            raise ImageError(msg, ("max_pixels",))
    with reading_errors("allow_damaged"):
        try:
            image = _open(io.BytesIO(data), max_pixels)
        except Exception as error:
            unidentified = isinstance(error, UnidentifiedImageError)
            if not (allow_damaged or (unidentified and data.startswith(PNG_SIGNATURE))):
                raise (_unknown_format(data) if unidentified else error) from error
            try:
                image = _open(io.BytesIO(data), max_pixels, allow_damaged=True)
            except UnidentifiedImageError:
                raise _unknown_format(data) from error
            image.info[DAMAGE] = "its metadata is damaged, such as a wrong checksum"
    check_size(*image.size, max_pixels)
    return image


def load_image(image: Image.Image, max_pixels: int = MAX_PIXELS, allow_damaged: bool = False) -> Image.Image:
    """Reads the pixels of an opened image. Returns the image, or another one if it is damaged and `allow_damaged`.

    Raises ImageError."""
    stream, tiled, size = getattr(image, "fp", None), hasattr(image, "_tile_size"), image.size
    # For TIFF, Pillow checks the size of the tiles, which may be larger than the image.
    limit = max(max_pixels, NARROW_FACTOR * image.width * image.height) if tiled else max_pixels
    try:
        with reading_errors("allow_damaged"), pillow_settings(limit):
            image.load()
    except ImageError as error:
        if not allow_damaged or stream is None or stream.closed or "allow_damaged" not in error.advice:
            raise
        with reading_errors():
            frame, image = image.tell(), _open(stream, max_pixels, allow_damaged=True)
            with pillow_settings(limit, allow_damaged=True):
                image.seek(frame)
                image.load()
        image.info[DAMAGE] = "it is damaged, and some pixels are missing or wrong"
    if image.size != size:  # an icon may be larger than its header says
        check_size(*image.size, max_pixels)
    return image


@contextmanager
def reading_errors(*advice: str) -> Iterator[None]:
    """Converts any error of Pillow's plugins into ImageError with this advice; damaged images raise errors of many types."""
    try:
        yield
    except (TesseraError, MemoryError):
        raise
    except Image.DecompressionBombError as error:
        msg = "the image has more pixels than allowed"
        raise ImageError(msg, ("max_pixels",)) from error
    except Exception as error:
        reason = " ".join(str(error).split()) or type(error).__name__
        msg = f"the image is cut or damaged ({reason})" if advice else f"cannot be read ({reason}): convert it to PNG first"
        raise ImageError(msg, advice) from error


def _has_signature(head: bytes) -> bool:
    for name in _formats():
        accept = Image.OPEN[name][1]
        with suppress(IndexError, struct.error):  # the head may be too short for a signature
            if accept and accept(head[:16]):
                return True
    return False


def _unknown_format(head: bytes) -> ImageError:
    if plugin := plugin_for(head):
        msg = f"{plugin.format} cannot be read, or it is damaged: install {plugin.package}, or convert it to PNG first"
        return ImageError(msg)
    if _has_signature(head):
        return ImageError("the image cannot be read: it is cut or damaged, get it again")
    return ImageError("not an image of a format that tessera reads: convert it to PNG first")


def _formats() -> list[str]:
    """Pillow's names of the formats that are read."""
    load_formats()
    return [name for name in READ if name in Image.OPEN]


def _open(stream: IO[bytes], max_pixels: int, allow_damaged: bool = False) -> Image.Image:
    with pillow_settings(max_pixels, allow_damaged):
        return Image.open(stream, formats=_formats())


class _PixelLimit(int):
    """A value for `Image.MAX_IMAGE_PIXELS`. Pillow warns of images above the limit and refuses those of twice as many pixels;
    twice this limit is the limit itself."""

    def __rmul__(self, _: int) -> int:
        return int(self)


_pillow = threading.Condition(fork_safe_lock())
_pillow_users = 0  # threads for which Pillow is set
_pillow_values: tuple[int, bool] = (0, False)  # the values that they share
_pillow_before: list[Any] = []  # Pillow's settings before


@contextmanager
def pillow_settings(max_pixels: int, allow_damaged: bool = False) -> Iterator[None]:
    """Sets Pillow's limits. They apply to the whole process: a thread that needs other values waits until no thread needs
    these, and other code that uses Pillow meanwhile gets them, too."""
    global _pillow_users, _pillow_values
    with _pillow:
        values = (max_pixels, allow_damaged)
        _pillow.wait_for(lambda: not _pillow_users or _pillow_values == values)
        if not _pillow_users:
            _pillow_values = values
            _pillow_before[:] = Image.MAX_IMAGE_PIXELS, ImageFile.LOAD_TRUNCATED_IMAGES, PngImagePlugin.MAX_TEXT_CHUNK
            Image.MAX_IMAGE_PIXELS = _PixelLimit(max_pixels)
            ImageFile.LOAD_TRUNCATED_IMAGES |= allow_damaged
            PngImagePlugin.MAX_TEXT_CHUNK = max(PngImagePlugin.MAX_TEXT_CHUNK, TEXT_MAX + 1)
        _pillow_users += 1
    try:
        yield
    finally:
        with _pillow:
            _pillow_users -= 1
            if not _pillow_users:
                _restore_pillow()
                _pillow.notify_all()


def _restore_pillow() -> None:
    Image.MAX_IMAGE_PIXELS, ImageFile.LOAD_TRUNCATED_IMAGES, PngImagePlugin.MAX_TEXT_CHUNK = _pillow_before


def _after_fork() -> None:
    """In a forked child, no other thread uses Pillow."""
    global _pillow_users
    if _pillow_users:
        _pillow_users = 0
        _restore_pillow()


after_fork_in_child(_after_fork)
