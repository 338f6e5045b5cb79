"""The source of an encoding: pixels (H, W, 3), colour space, transparency and metadata of an image. No torch."""

from __future__ import annotations

import re
from dataclasses import dataclass
from typing import TYPE_CHECKING

import numpy as np
from numpy.typing import NDArray
from PIL import ExifTags, Image, ImageOps

from bitstream.container import COLOURED, GREY, File, Sections
from codec.errors import ImageError
from codec.image.alpha import DEFAULT_ALPHA_QUALITY, fill_hidden, flatten, parse_colour, split_alpha
from codec.image.colour import DEEP, greyness_of, remove_colour_if_grey, to_rgb
from codec.image.metadata import Extras, from_sections, to_sections, upright_exif
from codec.image.opening import MAX_PIXELS, ImageInput, check_size, load_image, open_input, reading_errors

if TYPE_CHECKING:
    from codec.options import EncodeOptions

NOT_ANIMATED = ("MPO", "PSD")  # formats whose further frames are previews, gain maps or layers
TIFF_NOTES = (270, 271, 272, 305, 306, 315, 33432, 34665, 34853)  # tags of a TIFF about the image, not about the file


@dataclass(frozen=True)
class Source:
    """An image in the form that the network takes, with the other content of its file."""

    pixels: NDArray[np.uint8]  # (H, W, 3)
    sections: Sections = ()
    space: int = 0  # number of the colour space in `codec.image.profiles`
    greyness: int = COLOURED  # or GREY, NEUTRAL
    notes: tuple[str, ...] = ()  # remarks for the user, such as 'first of 12 frames'
    alpha: NDArray[np.uint8] | None = None  # (H, W), if its section may be made smaller to fit a size

    @property
    def width(self) -> int:
        return self.pixels.shape[1]

    @property
    def height(self) -> int:
        return self.pixels.shape[0]


def read_source(image: ImageInput, options: EncodeOptions | None = None, max_pixels: int = MAX_PIXELS) -> Source:
    """Reads an image file, a PIL image, or a uint8 array: RGB (H, W, 3), RGBA (H, W, 4), grey (H, W) or (H, W, 1).

    Raises FileError if the file cannot be read, ImageError if the image is damaged, too large or cannot be coded, or if the
    array has another shape or type."""
    image, options = open_input(image, max_pixels), options or {}
    if isinstance(image, np.ndarray):
        channels = image.shape[2] if image.ndim == 3 else 1
        if image.dtype != np.uint8 or image.ndim not in (2, 3) or channels not in (1, 3, 4) or 0 in image.shape:
            msg = f"an array of {image.dtype} {image.shape}: give uint8 (height, width), or (height, width, 1, 3 or 4)"
            raise ImageError(msg)
        check_size(image.shape[1], image.shape[0], max_pixels)
        if channels == 3:
            return Source(image, greyness=greyness_of(image))
        image = Image.fromarray(image if channels == 4 else image.reshape(image.shape[:2]))
    check_size(*image.size, max_pixels)
    notes = _depth_notes(image)  # before loading, when Pillow narrows colours
    load_image(image)
    with reading_errors():
        frames = getattr(image, "n_frames", 1)
        if frames > 1 and image.format not in NOT_ANIMATED:
            position = image.tell()
            notes.insert(0, f"first of {frames} frames" if position == 0 else f"frame {position + 1} of {frames}")
        profile, xmp = image.info.get("icc_profile") or None, _upright_xmp(image)
        image, exif = _upright(image, notes)
        colours, alpha = split_alpha(image)
        background = options.get("background") if alpha is not None else None
        # A grey profile does not fit the pixels if a coloured background shows through.
        coloured = background is not None and len(set(parse_colour(background)[:3])) > 1
        converted = to_rgb(colours, profile, options.get("strip", False) or (coloured and colours.mode in ("L", "1")))
    rgb, greyness = converted.image, converted.greyness
    if alpha is not None and background is not None:
        rgb, alpha = flatten(rgb, alpha, background), None
        greyness = min(greyness, greyness_of(np.asarray(rgb)))  # grey on a coloured background is coloured
    pixels = np.asarray(rgb) if alpha is None else fill_hidden(np.asarray(rgb), alpha)
    keep_exif, alpha_quality = options.get("keep_exif", False), options.get("alpha_quality")
    extras = Extras(converted.profile, exif if keep_exif else None, xmp if keep_exif else None, alpha)
    sections = to_sections(extras, DEFAULT_ALPHA_QUALITY if alpha_quality is None else alpha_quality)
    free_alpha = alpha if alpha_quality is None else None
    return Source(pixels, sections, converted.space, greyness, (*notes, *converted.notes), free_alpha)


def restore_image(pixels: NDArray[np.uint8], file: File) -> Image.Image:
    """The inverse of `read_source`: pixels (H, W, 3) and the file that they were decoded from -> L, LA, RGB or RGBA, with the
    entries of `info` that Pillow's own plugins set. Raises FormatError if the file's sections are damaged."""
    extras = from_sections(file.sections, file.width, file.height, file.space)
    pixels = remove_colour_if_grey(pixels, file.greyness)
    if file.greyness == GREY:
        pixels = pixels[..., 0]
    image = Image.fromarray(pixels if extras.alpha is None else np.dstack([pixels, extras.alpha]))
    image.info.update(extras.info)
    return image


def mode_of(greyness: int, transparent: bool) -> str:
    """The mode of the image that `restore_image` makes."""
    return ("L" if greyness == GREY else "RGB") + ("A" if transparent else "")


def _depth_notes(image: Image.Image) -> list[str]:
    """A note if depth is lost, for an image that is opened but not loaded.

    Raises ImageError for 32-bit integers, except those that Pillow makes of a 16-bit PGM."""
    if image.mode == "I" and image.format != "PPM":
        msg = "pixels are 32-bit integers, whose range is not known: convert it to 8 or 16 bits first"
        raise ImageError(msg)
    deep = image.mode in DEEP or any(";16" in str(tile.args) for tile in getattr(image, "tile", ()))
    return ["16 bits per channel became 8"] if deep else []


def _upright(image: Image.Image, notes: list[str]) -> tuple[Image.Image, bytes | None]:
    """The image in its EXIF orientation, and its EXIF, from the TIFF header on, with orientation 1.

    Damaged EXIF is left out, with a note."""
    try:
        exif = image.info.get("exif")
        if not exif:  # a TIFF has these notes among the tags of the file itself
            tags, kept = image.getexif(), Image.Exif()
            for tag in TIFF_NOTES:
                if value := tags.get_ifd(tag) if tag in (ExifTags.IFD.Exif, ExifTags.IFD.GPSInfo) else tags.get(tag):
                    kept[tag] = value
            exif = kept.tobytes() if len(kept) else b""
        exif = upright_exif(exif.removeprefix(b"Exif\0\0"))
        if image.format == "JXL" and not getattr(image, "jpeg", True):  # turned already, as its own header says
            return image, exif
        return ImageOps.exif_transpose(image), exif
    except Exception as error:  # damaged EXIF, like a damaged image, raises errors of many types
        notes.append(f"its EXIF is damaged and was left out ({type(error).__name__})")
        return image, None


def _upright_xmp(image: Image.Image) -> bytes | None:
    """The image's XMP with orientation 1."""
    xmp = image.info.get("xmp") or image.info.get("XML:com.adobe.xmp") or None
    if isinstance(xmp, str):
        xmp = xmp.encode()
    return re.sub(rb"(tiff:Orientation(?:=[\"']|>))\d", rb"\g<1>1", xmp) if xmp else None
