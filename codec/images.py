"""Pictures as people have them, and pixels as the network wants them: uint8 (H, W, 3), RGB."""

from __future__ import annotations

import io
import threading
import warnings

import numpy as np
from numpy.typing import NDArray
from PIL import Image, ImageColor, ImageOps, UnidentifiedImageError

from bitstream.errors import ImageError

MAX_PIXELS = 500_000_000
_OPENING = threading.Lock()


def check_size(width: int, height: int, max_pixels: int = MAX_PIXELS) -> None:
    """Raises ImageError for a picture with more pixels than allowed."""
    if width * height > max_pixels:
        msg = f"{width}x{height} is {width * height:,} pixels, more than {max_pixels:,}: raise --max-pixels to allow it"
        raise ImageError(msg)


def open_image(data: bytes, max_pixels: int = MAX_PIXELS) -> Image.Image:
    """A picture from the bytes of its file, of which only the header has been read; its size is checked. Raises ImageError."""
    try:
        with _OPENING, warnings.catch_warnings():  # Pillow's limit, and Python's list of warnings, are the whole process's
            warnings.simplefilter("ignore", Image.DecompressionBombWarning)  # max_pixels is our limit
            limit, Image.MAX_IMAGE_PIXELS = Image.MAX_IMAGE_PIXELS, None
            try:
                image = Image.open(io.BytesIO(data))
            finally:
                Image.MAX_IMAGE_PIXELS = limit
    except UnidentifiedImageError as error:
        msg = "not a picture of a format that Pillow knows: convert it to PNG first"
        raise ImageError(msg) from error
    except (OSError, SyntaxError, ValueError, EOFError) as error:
        raise _unreadable(error) from error
    check_size(*image.size, max_pixels)
    return image


def load_image(image: Image.Image) -> Image.Image:
    """Reads the pixels of an opened picture. Raises ImageError."""
    try:
        image.load()
    except (OSError, SyntaxError, ValueError, EOFError) as error:
        raise _unreadable(error) from error
    return image


def read_image(data: bytes, max_pixels: int = MAX_PIXELS) -> Image.Image:
    """`open_image`, then `load_image`."""
    return load_image(open_image(data, max_pixels))


def _unreadable(error: Exception) -> ImageError:
    return ImageError(f"the picture cannot be read ({error}): it may be cut or damaged")


def to_pixels(image: Image.Image | NDArray[np.uint8], background: str | None = None) -> NDArray[np.uint8]:
    """A picture -> pixels (H, W, 3). EXIF orientation is applied; transparency is laid on `background`, a CSS colour.

    Raises ImageError for transparency without a background, and for arrays of another shape or type."""
    if isinstance(image, np.ndarray):
        if image.dtype != np.uint8 or image.ndim != 3 or image.shape[2] != 3 or 0 in image.shape:
            msg = f"an array of {image.dtype} {image.shape}: give uint8 (height, width, 3)"
            raise ImageError(msg)
        return image
    image = ImageOps.exif_transpose(image)
    if image.mode.startswith("I;16") or image.mode == "I":
        deep = np.asarray(image).astype(np.int64)
        return np.repeat((deep.clip(0, 65535) // 257).astype(np.uint8)[..., None], 3, 2)
    if image.has_transparency_data:
        image = image.convert("RGBA")
        if np.asarray(image.getchannel("A")).min() < 255:
            if background is None:
                msg = "the picture has transparency, which cannot be kept yet: lay it on a colour with --background white"
                raise ImageError(msg)
            canvas = Image.new("RGBA", image.size, parse_colour(background))
            image = Image.alpha_composite(canvas, image)
    return np.asarray(image.convert("RGB"))


def parse_colour(name: str) -> tuple[int, ...]:
    """A CSS colour such as white, #fff or rgb(0,0,0) -> RGBA. Raises ImageError for what is none."""
    try:
        return ImageColor.getcolor(name, "RGBA")  # type: ignore[return-value]
    except ValueError as error:
        msg = f"{name!r} is no colour: use a name such as white, or #rrggbb"
        raise ImageError(msg) from error
