"""Colours of any kind of image as RGB, and the profile that says what they mean. No torch.

The numbers of an RGB image stay as they are. Its profile is kept as the number of its colour space where that has one, and
otherwise byte for byte; only with `strip` are colours converted to sRGB. Greyscale stays greyscale, and is converted to the
curve of sRGB where its profile has no number. Images of other kinds become sRGB in any case, through their profile if they
have one.
"""

from __future__ import annotations

import io
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray
from PIL import Image, ImageCms

from bitstream.container import COLOURED, GREY, NEUTRAL
from codec.errors import ImageError
from codec.image.profiles import SRGB, recognise

SPACES = {b"RGB ": "RGB", b"GRAY": "L", b"CMYK": "CMYK", b"Lab ": "LAB"}  # of a profile: the mode that it is for
NAMES = {"CMYK": "CMYK", "LAB": "Lab"}  # modes that cannot be kept
ICC_SIGNATURE = slice(36, 40)
ICC_SPACE = slice(16, 20)
DEEP = ("I", "I;16", "I;16B", "I;16L", "I;16N")
FLAGS = ImageCms.Flags.BLACKPOINTCOMPENSATION


@dataclass(frozen=True)
class Colours:
    """An image without alpha as it is coded."""

    image: Image.Image  # RGB
    space: int = SRGB  # its number in `codec.image.profiles`
    profile: bytes | None = None  # where the space has no number
    greyness: int = COLOURED
    notes: tuple[str, ...] = ()  # what a person should hear of it


def mode_of(profile: bytes) -> str | None:
    """The mode of images that a profile is for; None for what is no profile that can be used."""
    return SPACES.get(profile[ICC_SPACE]) if profile[ICC_SIGNATURE] == b"acsp" else None


def to_rgb(image: Image.Image, profile: bytes | None, strip: bool) -> Colours:
    """An image without alpha, of any mode, as it is coded. Raises ImageError for pixels without an agreed meaning."""
    image = _plain(image)
    notes = (f"its {NAMES[image.mode]} colours became sRGB",) if image.mode in NAMES else ()
    mode = profile and mode_of(profile)
    if profile and mode != image.mode and not (mode == "RGB" and image.mode == "L"):
        notes, profile = (*notes, "its colour profile is not for such pixels and was left out"), None
    if not profile:
        return _finished(_without_profile(image), image.mode == "L", notes=notes)
    assert mode
    space = recognise(profile, mode)
    if space == SRGB or (space is not None and mode == image.mode and not strip):
        return _finished(image.convert("RGB"), image.mode == "L", space, notes=notes)
    if image.mode == "RGB" and not strip:
        return _finished(image, False, profile=profile)
    try:
        converted = _through(image.convert(mode), ImageCms.ImageCmsProfile(io.BytesIO(profile)))
    except (ImageCms.PyCMSError, OSError, ValueError) as error:
        converted = _without_profile(image)
        notes = (*notes, f"its colour profile cannot be used and was left out ({error})")
    return _finished(converted, image.mode == "L", notes=notes)


def _finished(
    rgb: Image.Image, grey: bool, space: int = SRGB, profile: bytes | None = None, notes: tuple[str, ...] = ()
) -> Colours:
    if grey:  # conversion may leave channels one apart
        return Colours(rgb.getchannel("G").convert("RGB"), space, profile, GREY, notes)
    return Colours(rgb, space, profile, greyness_of(np.asarray(rgb)), notes)


def greyness_of(pixels: NDArray[np.uint8]) -> int:
    """NEUTRAL for pixels (H, W, 3) whose channels are equal everywhere, else COLOURED."""
    red, green, blue = pixels[..., 0], pixels[..., 1], pixels[..., 2]
    return NEUTRAL if np.array_equal(red, green) and np.array_equal(green, blue) else COLOURED


def neutral(pixels: NDArray[np.uint8], greyness: int) -> NDArray[np.uint8]:
    """Pixels (H, W, 3) as the network makes them -> the same without a trace of colour, where the image had none."""
    if greyness == COLOURED:
        return pixels
    mean = (pixels.sum(2, dtype=np.uint16) + 1) // 3
    return np.repeat(mean.astype(np.uint8)[..., None], 3, 2)


def _plain(image: Image.Image) -> Image.Image:
    """Modes with a meaning of their own -> L, RGB, CMYK or LAB, 8 bits each."""
    if image.mode in DEEP:
        return Image.fromarray(narrow(np.asarray(image)))
    if image.mode == "F":
        msg = "pixels are floating point numbers, whose range is not known: convert it to 8 or 16 bits first"
        raise ImageError(msg)
    if image.mode in ("L", "RGB", "CMYK", "LAB"):
        return image
    return image.convert("L" if image.mode == "1" else "RGB")


def narrow(deep: np.ndarray) -> np.ndarray:
    """16-bit values -> the nearest 8-bit ones."""
    return ((deep.astype(np.int64).clip(0, 65535) + 128) // 257).astype(np.uint8)


def _without_profile(image: Image.Image) -> Image.Image:
    if image.mode == "LAB":
        return _through(image, ImageCms.createProfile("LAB"))
    return image.convert("RGB")


def _through(image: Image.Image, profile: ImageCms.ImageCmsProfile | ImageCms.core.CmsProfile) -> Image.Image:
    """Colours of a profile -> sRGB, whites on white."""
    intent = ImageCms.Intent.RELATIVE_COLORIMETRIC
    transform = ImageCms.buildTransform(profile, ImageCms.createProfile("sRGB"), image.mode, "RGB", intent, FLAGS)
    done = ImageCms.applyTransform(image, transform)
    assert done is not None
    return done
