"""Colours of any kind of picture as RGB, and the profile that says what they mean. No torch.

An RGB profile is kept beside the picture, byte for byte, and its numbers stay as they are; only with `strip` are they
converted to sRGB. Pictures in other colour spaces become sRGB in any case, through their profile where they have one.
"""

from __future__ import annotations

import io

import numpy as np
from PIL import Image, ImageCms

from bitstream.errors import ImageError

SPACES = {b"RGB ": "RGB", b"GRAY": "L", b"CMYK": "CMYK", b"Lab ": "LAB"}  # of a profile: the mode that it is for
ICC_SIGNATURE = slice(36, 40)
ICC_SPACE = slice(16, 20)
DEEP = ("I", "I;16", "I;16B", "I;16L", "I;16N")
FLAGS = ImageCms.Flags.BLACKPOINTCOMPENSATION


def space_of(profile: bytes) -> str | None:
    """The mode of pictures that a profile is for; None for what is no profile that can be used."""
    return SPACES.get(profile[ICC_SPACE]) if profile[ICC_SIGNATURE] == b"acsp" else None


def to_rgb(image: Image.Image, profile: bytes | None, strip: bool) -> tuple[Image.Image, bytes | None, list[str]]:
    """A picture without alpha -> RGB, the profile to keep (None means sRGB), and what a person should hear of it.

    Raises ImageError for pixels without an agreed meaning."""
    image = _plain(image)
    if profile is None:
        return _without_profile(image), None, []
    space = space_of(profile)
    if space == "RGB" and image.mode not in ("CMYK", "LAB"):
        image = image.convert("RGB")
        if not strip:
            return image, profile, []
    elif space != image.mode:
        return _without_profile(image), None, ["its colour profile is not for such pixels and was left out"]
    try:
        return _through(image, ImageCms.ImageCmsProfile(io.BytesIO(profile))), None, []
    except (ImageCms.PyCMSError, OSError, ValueError) as error:
        return _without_profile(image), None, [f"its colour profile cannot be used and was left out ({error})"]


def _plain(image: Image.Image) -> Image.Image:
    """Modes with a meaning of their own -> L, RGB, CMYK or LAB, 8 bits each."""
    if image.mode in DEEP:
        return Image.fromarray(narrow(np.asarray(image)))
    if image.mode == "F":
        msg = "pixels are floating point numbers, whose range no one can tell: convert it to 8 or 16 bits first"
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
