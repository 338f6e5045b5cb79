"""The source of an encoding: pixels (H, W, 3), colour space, transparency and metadata of an image. No torch."""

from __future__ import annotations

import re
from dataclasses import dataclass
from typing import TYPE_CHECKING

import numpy as np
from numpy.typing import NDArray
from PIL import ExifTags, Image

from bitstream.container import COLOURED, GREY, NEUTRAL, File, Sections
from codec.errors import ImageError
from codec.image.alpha import DEFAULT_ALPHA_QUALITY, fill_hidden, flatten, parse_colour, split_alpha
from codec.image.colour import MODES_16_BIT, greyness_of, pixels_of, remove_colour_if_grey, to_rgb
from codec.image.metadata import Extras, fix_exif, from_sections, to_sections, upright_exif, upright_xmp
from codec.image.opening import DAMAGE, MAX_PIXELS, ImageInput, load_image, open_input, reading_errors
from codec.image.plugins import has_jxl_gain_map
from codec.image.quirks import QUIRKS, Mend
from codec.image.stated_colours import HEAD, colour_profile, file_bytes

if TYPE_CHECKING:
    from codec.options import EncodeOptions

PREVIEW = "Large Thumbnail"  # how Pillow's names begin for the types of previews in an MPO file
GAIN_MAPS = (b"hdr-gain-map", b"iso:ts:21496", b"hdrgainmap")  # of Ultra HDR, ISO 21496-1 in JPEG, and Apple
TONE_MAP = re.compile(rb"infe\x02.{7}tmap", re.DOTALL)  # an item of ISO 21496-1 in AVIF and HEIF
UNUSED_ALPHA = ("BMP", "DIB", "ICO", "TGA")  # formats whose fourth channel is often empty and means nothing
METHODS = {  # by EXIF orientation
    2: Image.Transpose.FLIP_LEFT_RIGHT,
    3: Image.Transpose.ROTATE_180,
    4: Image.Transpose.FLIP_TOP_BOTTOM,
    5: Image.Transpose.TRANSPOSE,
    6: Image.Transpose.ROTATE_270,
    7: Image.Transpose.TRANSVERSE,
    8: Image.Transpose.ROTATE_90,
}
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
    options = options or {}
    allow_damaged = options.get("allow_damaged", False)
    image = open_input(image, max_pixels, allow_damaged)
    if isinstance(image, np.ndarray):
        if image.ndim == 3 and image.shape[2] == 3:
            return Source(image, greyness=greyness_of(image))
        image = Image.fromarray(image if image.ndim == 3 and image.shape[2] == 4 else image.reshape(image.shape[:2]))
    with reading_errors():
        stated = _read_statements(image, max_pixels)
    image = load_image(image, max_pixels, allow_damaged)
    with reading_errors():
        parts = _separate(image, stated)
        background = options.get("background") if parts.alpha is not None else None
        # A grey profile does not fit the pixels if a coloured background shows through.
        coloured = background is not None and len(set(parse_colour(background)[:3])) > 1
        strip = options.get("strip", False) or (coloured and parts.colours.mode in ("L", "1"))
        converted = to_rgb(parts.colours, stated.profile, strip, stated.embedded)
    rgb, alpha = converted.image, parts.alpha
    if alpha is not None and background is not None:
        rgb, alpha = flatten(rgb, alpha, background), None
    pixels = pixels_of(rgb)
    greyness = greyness_of(pixels)
    if greyness == NEUTRAL and converted.grey:
        greyness = GREY
    if alpha is not None:
        fill_hidden(pixels, alpha)
    exif, xmp = (parts.exif, parts.xmp) if options.get("keep_exif", False) else (None, None)
    alpha_quality = options.get("alpha_quality")
    extras = Extras(converted.profile, exif, xmp, alpha)
    sections = to_sections(extras, DEFAULT_ALPHA_QUALITY if alpha_quality is None else alpha_quality)
    free_alpha = alpha if alpha_quality is None else None
    return Source(pixels, sections, converted.space, greyness, (*parts.notes, *converted.notes), free_alpha)


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


@dataclass(frozen=True)
class _Statements:
    """What a file states of its pixels, and Pillow drops or narrows when it loads them."""

    profile: bytes | None
    embedded: bool  # whether the file embeds the profile
    gain_map: bool
    mend: Mend | None
    notes: tuple[str, ...]


def _read_statements(image: Image.Image, max_pixels: int) -> _Statements:
    """The statements of an image that is opened but not loaded. Raises ImageError if its pixels cannot be coded."""
    head = file_bytes(image, 0, HEAD)
    notes = _channel_notes(image, head)
    profile, embedded, colour_notes = colour_profile(image)
    quirk = QUIRKS.get(image.format or "")
    mend = quirk(image, head, max_pixels) if quirk else None
    return _Statements(profile, embedded, _has_gain_map(image, head), mend, (*notes, *colour_notes))


@dataclass(frozen=True)
class _Parts:
    """The content of an image file."""

    colours: Image.Image  # of any mode without alpha
    alpha: NDArray[np.uint8] | None  # (H, W)
    exif: bytes | None
    xmp: bytes | None
    notes: tuple[str, ...]


def _separate(image: Image.Image, stated: _Statements) -> _Parts:
    """Separates a loaded image into its parts, in its orientation."""
    frames = ["its HDR gain map was left out"] if stated.gain_map else _frame_notes(image)
    damage = [image.info[DAMAGE]] if DAMAGE in image.info else []
    mended, mend_notes = stated.mend(image) if stated.mend else (image, ())
    orientation, exif, xmp, metadata_notes = _read_metadata(image)
    if orientation in METHODS:
        mended = mended.transpose(METHODS[orientation])
    exif = fix_exif(exif, *mended.size) if exif else None
    colours, alpha = split_alpha(mended)
    alpha_notes = []
    if alpha is not None and not alpha.any():
        unused = image.format in UNUSED_ALPHA
        alpha_notes.append(
            "its alpha is 0 everywhere and was ignored" if unused else "fully transparent: its colours are not kept"
        )
        alpha = None if unused else alpha
    return _Parts(colours, alpha, exif, xmp, (*frames, *stated.notes, *damage, *mend_notes, *metadata_notes, *alpha_notes))


def _channel_notes(image: Image.Image, head: bytes) -> list[str]:
    """Notes if depth or channels are lost, for an image that is opened but not loaded, and whose file starts with `head`.

    Raises ImageError for 32-bit integers, except those that Pillow makes of a 16-bit PGM."""
    if image.mode == "I" and image.format != "PPM":
        msg = "pixels are 32-bit integers, whose range is not known: convert it to 8 or 16 bits first"
        raise ImageError(msg)
    arguments = [tile.args for tile in getattr(image, "tile", ())]
    deep = image.mode in MODES_16_BIT or any(";16" in str(args) for args in arguments)
    deep |= image.format == "PPM" and any(args[-1] > 255 for args in arguments if isinstance(args, tuple))  # the maximum value
    bits = 16 if deep else image.info["bit_depth"] if image.format == "HEIF" else 8
    notes = [f"{bits} bits per channel became 8"] if bits > 8 else []
    if image.format == "PSD" and (extra := int.from_bytes(head[12:14]) - len(image.getbands())) > 0:
        notes.append(f"{extra} channel{'s' * (extra > 1)} beyond its colours left out")
    return notes


def _has_gain_map(image: Image.Image, head: bytes) -> bool:
    aux = repr(image.info.get("aux")).encode()  # from pillow-heif
    if any(name in head or name in aux for name in GAIN_MAPS) or TONE_MAP.search(head):
        return True
    return image.format == "JXL" and has_jxl_gain_map(file_bytes(image, 0, -1))


def _frame_notes(image: Image.Image) -> list[str]:
    """A note if the image is one of several frames, or an icon of another size than its directory states.

    Layers of a PSD and previews in an MPO do not count as frames."""
    if image.format == "ICO" and image.size not in image.ico.sizes():  # type: ignore[attr-defined]
        return [f"it has {image.width}x{image.height} pixels, and its directory states another size"]
    frames = getattr(image, "n_frames", 1) if image.format != "PSD" else 1
    if image.format == "MPO":
        entries = image.mpinfo[0xB002]  # type: ignore[attr-defined]
        frames -= sum(entry["Attribute"]["MPType"].startswith(PREVIEW) for entry in entries[1:])
    if frames <= 1:
        return []
    position = image.tell()
    return [f"first of {frames} frames" if position == 0 else f"frame {position + 1} of {frames}"]


def _read_metadata(image: Image.Image) -> tuple[int, bytes | None, bytes | None, list[str]]:
    """The orientation of a loaded image, 1 if Pillow turned it, its EXIF from the TIFF header on, and its XMP, both with
    orientation 1; and notes.

    The orientation in EXIF has priority over that in XMP. Damaged EXIF or XMP is left out, with a note."""
    notes: list[str] = []
    orientation, exif, xmp = 1, None, image.info.get("xmp") or image.info.get("XML:com.adobe.xmp") or None
    try:
        if xmp:
            orientation, xmp = upright_xmp(xmp.encode() if isinstance(xmp, str) else xmp)
    except Exception as error:  # damaged metadata, like a damaged image, raises errors of many types
        notes.append(f"its XMP is damaged and was left out ({type(error).__name__})")
        xmp = None
    try:
        tags = image.getexif()
        orientation = tags.get(ExifTags.Base.Orientation) or orientation
        exif = image.info.get("exif")
        if not exif:  # a TIFF has these notes among the tags of the file itself
            kept = Image.Exif()
            for tag in TIFF_NOTES:
                if value := tags.get_ifd(tag) if tag in (ExifTags.IFD.Exif, ExifTags.IFD.GPSInfo) else tags.get(tag):
                    kept[tag] = value
            exif = kept.tobytes() if len(kept) else b""
        exif = upright_exif(exif.removeprefix(b"Exif\0\0"))
    except Exception as error:
        notes.append(f"its EXIF is damaged and was left out ({type(error).__name__})")
        exif = None
    # Pillow turns a TIFF when it loads the pixels. A JPEG XL is turned already, as its own header says.
    turned = image.format == "TIFF" or (image.format == "JXL" and not getattr(image, "jpeg", True))
    return 1 if turned else orientation, exif, xmp, notes
