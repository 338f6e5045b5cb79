"""Formats whose pixels Pillow loads with another meaning than their files state. No torch.

Each function in QUIRKS takes an image that is opened but not loaded, the head of its file, and the limit of pixels. It returns
the function that mends the loaded image, or None if nothing needs mending.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import TypeAlias

import numpy as np
from PIL import Image, ImageOps

from codec.image.colour import MODES_16_BIT
from codec.image.opening import load_image, open_image

Mend: TypeAlias = Callable[
    [Image.Image], tuple[Image.Image, tuple[str, ...]]
]  # loaded image -> mended image, notes for the user
PHOTOMETRIC, WHITE_IS_ZERO, BITS = 262, 0, 258  # tags of a TIFF, and a value


def _png(image: Image.Image, _: bytes, max_pixels: int) -> Mend | None:
    """Grey with alpha of 16 bits, of which Pillow makes RGBA, and a transparent colour, which it leaves at the depth of the
    file."""
    tiles = getattr(image, "tile", ())
    if any(tile.args == "LA;16B" for tile in tiles):
        return lambda loaded: (loaded.convert("LA"), ())
    if (key := image.info.get("transparency")) is None:
        return None
    if image.mode == "L" and tiles:
        depth = int(tiles[0].args[2:] or 8)  # of "L", "L;2" or "L;4"
        image.info["transparency"] = (key & ((1 << depth) - 1)) * 255 // ((1 << depth) - 1)
    elif image.mode == "RGB" and max(key) > 255 and not tiles:  # of 16 bits, and loaded: the low bytes are lost
        image.info["transparency"] = tuple(value >> 8 for value in key)
    if image.mode != "RGB" or not tiles or tiles[0].args != "RGB;16B":
        return None
    image.fp.seek(0)  # type: ignore[attr-defined]
    opened = open_image(image.fp.read(), max_pixels)  # type: ignore[attr-defined]
    opened.seek(image.tell())
    opened.tile = [tile._replace(args="RGB;16L") for tile in opened.tile]  # type: ignore[attr-defined]
    low_bytes = load_image(opened, max_pixels)
    return lambda loaded: (_clear_key(loaded, low_bytes), ())


def _clear_key(image: Image.Image, low_bytes: Image.Image) -> Image.Image:
    """An image of 16 bits, given by its high and low bytes, with its transparent colour as alpha."""
    clear = np.ones((image.height, image.width), bool)
    for channel, value in enumerate(image.info["transparency"]):
        for plane, byte in ((image, value >> 8), (low_bytes, value & 255)):
            clear &= np.asarray(plane.getchannel(channel)) == byte
    rgba = image.copy()
    rgba.putalpha(Image.fromarray(np.where(clear, 0, 255).astype(np.uint8)))
    return rgba


def _tga(_: Image.Image, head: bytes, __: int) -> Mend | None:
    """Alpha as the header of a TGA states it (Truevision TGA 2.0, field 5.6).

    Pillow reads the fourth channel of 32 bits and the top bit of 16 bits as alpha even if the header has no alpha, and takes
    that bit for transparent instead of opaque."""

    def mend(image: Image.Image) -> tuple[Image.Image, tuple[str, ...]]:
        if "A" not in (image.palette.mode if image.palette else image.mode):
            return image, ()
        mapped, grey, alpha_bits = image.mode == "P", image.mode == "LA", head[17] & 15
        depth = head[7] if mapped else head[16]
        image = image if grey else image.convert("RGBA")
        alpha = image.getchannel("A")
        if not alpha_bits and (depth == 16 or not mapped):
            ignored = (depth == 32 or grey) and alpha.getextrema() not in ((0, 0), (255, 255))
            notes = ("its alpha was ignored, since its header says that it has none",) if ignored else ()
            return image.convert("L" if grey else "RGB"), notes
        if depth == 16 and not grey:
            image.putalpha(ImageOps.invert(alpha))
        return image, ()

    return mend if head else None


def _psd(image: Image.Image, _: bytes, __: int) -> Mend | None:
    """Bits, of which 1 is black."""
    return (lambda loaded: (ImageOps.invert(loaded.convert("L")), ())) if image.mode == "1" else None


def _tiff(image: Image.Image, _: bytes, __: int) -> Mend | None:
    """Values of 12 or 16 bits, which Pillow leaves as the file has them: 0 becomes black, and the range that of 16 bits."""

    def mend(loaded: Image.Image) -> tuple[Image.Image, tuple[str, ...]]:
        tags = getattr(loaded, "tag_v2", {})
        white = (1 << tags.get(BITS, (16,))[0]) - 1
        values = np.asarray(loaded).astype(np.uint32) * 65535 // white
        values = 65535 - values if tags.get(PHOTOMETRIC) == WHITE_IS_ZERO else values
        return Image.fromarray(values.astype(np.uint16)), ()

    return mend if image.mode in MODES_16_BIT else None


QUIRKS = {"PNG": _png, "PSD": _psd, "TGA": _tga, "TIFF": _tiff}
