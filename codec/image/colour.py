"""Conversion of images to RGB, and their colour profiles. No torch.

RGB values stay as they are. Their profile is kept as the number of its colour space if it has one, and otherwise byte for byte;
only `strip` converts colours to sRGB. Greyscale stays greyscale, and is converted to the curve of sRGB if its profile has no
number. Other images become sRGB, through their profile if they have one.
"""

from __future__ import annotations

import io
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray
from PIL import Image, ImageCms

from bitstream.container import COLOURED, NEUTRAL
from codec.errors import ImageError
from codec.image.profiles import SRGB, recognise

MODES = {b"RGB ": "RGB", b"GRAY": "L", b"CMYK": "CMYK", b"Lab ": "LAB"}  # mode by the colour space in a profile's header
STANDARD_MODES = tuple(MODES.values())
NOT_KEPT = {"CMYK": "CMYK", "LAB": "Lab"}  # modes that become sRGB, and their names
ICC_SIGNATURE = slice(36, 40)
ICC_SPACE = slice(16, 20)
MODES_16_BIT = ("I", "I;16", "I;16B", "I;16L", "I;16N")  # modes with 16 bits
STRIP_ROWS = 256  # rows computed per step, to bound memory
FLAGS = ImageCms.Flags.BLACKPOINTCOMPENSATION


@dataclass(frozen=True)
class Colours:
    """An image without alpha, converted for coding."""

    image: Image.Image  # RGB
    space: int = SRGB  # number of the space in `codec.image.profiles`
    profile: bytes | None = None  # the profile, if its space has no number
    grey: bool = False  # whether its file has one channel
    notes: tuple[str, ...] = ()  # remarks for the user


def to_rgb(image: Image.Image, profile: bytes | None, strip: bool, embedded: bool = True) -> Colours:
    """Converts an image without alpha, of any mode. A profile is kept only if it was embedded or its space has a number.

    Raises ImageError if the meaning of the pixels is not known."""
    image = image if image.mode in STANDARD_MODES else _standard_mode(image)
    notes = [f"its {NOT_KEPT[image.mode]} colours became sRGB"] if image.mode in NOT_KEPT else []
    mode = MODES.get(profile[ICC_SPACE]) if profile and profile[ICC_SIGNATURE] == b"acsp" else None
    if profile and mode != image.mode and not (mode == "RGB" and image.mode == "L"):
        notes.append("its colour profile is not for such pixels and was left out")
        mode = None
    space, kept_profile = SRGB, None
    if not profile or not mode:
        rgb = _as_rgb(image)
    elif (number := recognise(profile, mode)) is not None and (number == SRGB or (mode == image.mode and not strip)):
        rgb, space = _as_rgb(image), number
    elif image.mode == "RGB" and embedded and not strip:
        rgb, kept_profile = image, profile
    else:
        try:
            rgb = _to_srgb(image.convert(mode), ImageCms.ImageCmsProfile(io.BytesIO(profile)))
            if not embedded and not strip:
                notes.append("its colours, which it states without a profile, became sRGB")
        except (ImageCms.PyCMSError, OSError, ValueError) as error:
            rgb = _as_rgb(image)
            notes.append(f"its colour profile cannot be used and was left out ({error})")
    if grey := image.mode == "L":
        rgb = rgb.getchannel("G").convert("RGB")  # the channels may differ by one after a conversion
    return Colours(rgb, space, kept_profile, grey, tuple(notes))


def _standard_mode(image: Image.Image) -> Image.Image:
    """Converts any other mode to L or RGB with 8 bits."""
    if image.mode in MODES_16_BIT:
        values = np.asarray(image)
        pixels = np.empty(values.shape, np.uint8)
        for top in range(0, len(values), STRIP_ROWS):
            strip = slice(top, top + STRIP_ROWS)
            pixels[strip] = (values[strip].astype(np.int64).clip(0, 65535) + 128) // 257
        return Image.fromarray(pixels)
    if image.mode == "F":
        msg = "pixels are floating point numbers, whose range is not known: convert it to 8 or 16 bits first"
        raise ImageError(msg)
    return image.convert("L" if image.mode == "1" else "RGB")


def _as_rgb(image: Image.Image) -> Image.Image:
    """Converts an image without a profile."""
    if image.mode == "LAB":
        return _to_srgb(image, ImageCms.createProfile("LAB"))
    return image if image.mode == "RGB" else image.convert("RGB")  # `convert` copies


def _to_srgb(image: Image.Image, profile: ImageCms.ImageCmsProfile | ImageCms.core.CmsProfile) -> Image.Image:
    """Converts colours from a profile to sRGB, white to white."""
    intent = ImageCms.Intent.RELATIVE_COLORIMETRIC
    transform = ImageCms.buildTransform(profile, ImageCms.createProfile("sRGB"), image.mode, "RGB", intent, FLAGS)
    converted = ImageCms.applyTransform(image, transform)
    assert converted is not None
    return converted


def pixels_of(image: Image.Image) -> NDArray[np.uint8]:
    """The pixels (H, W, 3) of an RGB image. NumPy's own conversion takes three times their memory."""
    pixels = np.empty((image.height, image.width, 3), np.uint8)
    for top in range(0, image.height, STRIP_ROWS):
        strip = pixels[top : top + STRIP_ROWS]
        rows = Image.new("RGB", (image.width, len(strip)))
        rows.paste(image, (0, -top))
        strip[:] = np.asarray(rows)
    return pixels


def greyness_of(pixels: NDArray[np.uint8]) -> int:
    """NEUTRAL if the three channels of pixels (H, W, 3) are equal everywhere, else COLOURED."""
    red, green, blue = pixels[..., 0], pixels[..., 1], pixels[..., 2]
    return NEUTRAL if np.array_equal(red, green) and np.array_equal(green, blue) else COLOURED


def remove_colour_if_grey(pixels: NDArray[np.uint8], greyness: int) -> NDArray[np.uint8]:
    """Decoded pixels (H, W, 3), made grey if the original was grey."""
    if greyness == COLOURED:
        return pixels
    mean = (pixels.sum(2, dtype=np.uint16) + 1) // 3
    return np.repeat(mean.astype(np.uint8)[..., None], 3, 2)
