"""Images as people have them, and what the codec makes of them: pixels (H, W, 3), RGB, and what to keep besides. No torch."""

from __future__ import annotations

import importlib
import io
import re
import struct
from collections.abc import Iterator
from contextlib import contextmanager, nullcontext, suppress

import numpy as np
from numpy.typing import NDArray
from PIL import ExifTags, Image, ImageColor, ImageOps, UnidentifiedImageError

from bitstream.block_order import BLOCK
from bitstream.container import COLOURED, GREY
from bitstream.errors import ImageError, TesseraError
from codec.image.alpha import fill_hidden, split
from codec.image.alpha_plane import DEFAULT_QUALITY
from codec.image.colour import DEEP, greyness_of, neutral, to_rgb
from codec.image.metadata import Extras, to_sections, upright_exif
from codec.results import ImageOptions, Prepared
from codec.system.forks import Lock, in_child

MAX_PIXELS = 500_000_000
THIN = 4  # times its own pixels that an image's whole blocks may have, or the limit of pixels for a small image,
THIN_COST = 1 << 24  # or this many: an image of 65535x1 is worked on as 16.8 million pixels
_LIFTING = Lock()
_lifters, _pillows_limit = 0, None  # how many threads have lifted Pillow's limit, and what it was before
# Kinds of files that Pillow may read with help: how they begin, the module that helps, and the package it comes in.
HELPERS = (
    (re.compile(rb"....ftyp(avif|avis)", re.DOTALL), "pillow_avif", "AVIF", "pillow-avif-plugin"),
    (re.compile(rb"....ftyp(hei[cxms]|hev[cxms]|mif1|msf1)", re.DOTALL), "pillow_heif", "HEIC", "pillow-heif"),
    (re.compile(rb"\xff\x0a|\0\0\0\x0cJXL \r\n\x87\n"), "pillow_jxl", "JPEG XL", "pillow-jxl-plugin"),
)
OTHER_IMAGES = ("MPO", "PSD")  # formats whose further frames are previews, gain maps or layers, not moments of an animation
TIFF_NOTES = (270, 271, 272, 305, 306, 315, 33432, 34665, 34853)  # a TIFF's tags about the image, not about the file
KEEP = ImageOptions()


def check_size(width: int, height: int, max_pixels: int = MAX_PIXELS) -> None:
    """Raises ImageError for an image with more pixels than allowed, or so thin that its whole blocks have far more than it."""
    if width * height > max_pixels:
        msg = f"{width}x{height} is {width * height:,} pixels, more than {max_pixels:,}"
        raise ImageError(msg, ("max_pixels",))
    blocks = -(-width // BLOCK) * -(-height // BLOCK)
    cost, allowed = blocks * BLOCK**2, max(THIN * width * height, max_pixels // 30, min(THIN_COST, THIN * max_pixels))
    if blocks > 1 and cost > allowed:
        msg = f"{width}x{height} is thin, and costs what {cost:,} pixels cost, more than {allowed:,}"
        raise ImageError(msg, ("max_pixels",))


def check_head(head: bytes) -> None:
    """Raises ImageError where a file that begins so, with 64 KiB or all that it has, is not an image that Pillow knows."""
    if not head:
        msg = "is empty"
        raise ImageError(msg)
    _call_helper(head)
    Image.init()
    for _, accept in Image.OPEN.values():
        with suppress(IndexError, struct.error):  # from a head that is too short for a signature
            if accept and accept(head[:16]):
                return
    try:  # formats without a signature must parse
        _open(head).close()
    except UnidentifiedImageError as error:
        raise _unknown(head) from error
    except Exception:
        return  # it is found again when all of the file is read


def _open(data: bytes) -> Image.Image:
    with _without_limit():
        return Image.open(io.BytesIO(data))


@contextmanager
def _without_limit() -> Iterator[None]:
    """Lifts Pillow's limit of pixels, which is the whole process's, for what is checked against ours."""
    global _lifters, _pillows_limit
    with _LIFTING:
        if not _lifters:
            _pillows_limit, Image.MAX_IMAGE_PIXELS = Image.MAX_IMAGE_PIXELS, None
        _lifters += 1
    try:
        yield
    finally:
        with _LIFTING:
            _lifters -= 1
            if not _lifters:
                Image.MAX_IMAGE_PIXELS = _pillows_limit


def _forked() -> None:
    """In a forked child there are no threads that have lifted the limit."""
    global _lifters
    if _lifters:
        _lifters, Image.MAX_IMAGE_PIXELS = 0, _pillows_limit


in_child(_forked)


def _load(image: Image.Image) -> None:
    """Reads the pixels of an opened image. For TIFF, Pillow has its limit here once more, on the size of tiles."""
    pixels = image.width * image.height
    width, height = getattr(image, "_tile_size", image.size)
    large = pixels > (Image.MAX_IMAGE_PIXELS or pixels)
    with _without_limit() if large and width * height <= THIN * pixels else nullcontext():
        image.load()


def _call_helper(head: bytes) -> None:
    if helper := _helper(head):
        _import_helper(helper[1])


def call_plugin(package: str | None) -> None:
    """Lets Pillow read and write what a package of HELPERS is for, where it is installed."""
    for _, module, _, name in HELPERS:
        if name == package:
            _import_helper(module)


def _helper(head: bytes) -> tuple[re.Pattern[bytes], str, str, str] | None:
    return next((helper for helper in HELPERS if helper[0].match(head)), None)


def _unknown(head: bytes) -> ImageError:
    if helper := _helper(head):
        return ImageError(f"{helper[2]} cannot be read, or it is damaged: install {helper[3]}, or convert it to PNG first")
    return ImageError("not an image of a format that Pillow knows: convert it to PNG first")


def open_image(data: bytes, max_pixels: int = MAX_PIXELS) -> Image.Image:
    """An image from the bytes of its file, of which only the header has been read; its size is checked. Raises ImageError."""
    _call_helper(data)
    with _reading():
        try:
            image = _open(data)
        except UnidentifiedImageError as error:
            raise _unknown(data) from error
    check_size(*image.size, max_pixels)
    return image


def load_image(image: Image.Image) -> Image.Image:
    """Reads the pixels of an opened image. Raises ImageError."""
    with _reading():
        _load(image)
    return image


def read_image(data: bytes, max_pixels: int = MAX_PIXELS) -> Image.Image:
    """`open_image`, then `load_image`."""
    return load_image(open_image(data, max_pixels))


def _import_helper(module: str) -> None:
    """Lets Pillow read one format more, where the package for it is installed."""
    with suppress(ImportError):
        register = getattr(importlib.import_module(module), "register_heif_opener", None)
        if register:
            register()


@contextmanager
def _reading() -> Iterator[None]:
    """Damaged images raise whatever Pillow's plugins happen to run into: it all means the same."""
    try:
        yield
    except (TesseraError, MemoryError):
        raise
    except Exception as error:
        reason = " ".join(str(error).split()) or type(error).__name__
        msg = f"the image cannot be read ({reason}): it may be cut or damaged"
        raise ImageError(msg) from error


def prepare(image: Image.Image | NDArray[np.uint8], options: ImageOptions = KEEP, max_pixels: int = MAX_PIXELS) -> Prepared:
    """An image, or a uint8 array, RGB (H, W, 3), RGBA (H, W, 4) or grey (H, W) or (H, W, 1) -> pixels for the network,
    sections for the file, and notes for people.

    Raises ImageError for an image that is too large or cannot be coded, and for arrays of another shape or type."""
    if isinstance(image, np.ndarray):
        channels = image.shape[2] if image.ndim == 3 else 1
        if image.dtype != np.uint8 or image.ndim not in (2, 3) or channels not in (1, 3, 4) or 0 in image.shape:
            msg = f"an array of {image.dtype} {image.shape}: give uint8 (height, width), or (height, width, 1, 3 or 4)"
            raise ImageError(msg)
        check_size(image.shape[1], image.shape[0], max_pixels)
        if channels == 3:
            return Prepared(image, greyness=greyness_of(image))
        image = Image.fromarray(image if channels == 4 else image.reshape(image.shape[:2]))
    check_size(*image.size, max_pixels)
    deep = _depth_notes(image)
    with _reading():
        _load(image)
        notes = [*_frame_notes(image), *deep]
        profile, xmp = image.info.get("icc_profile") or None, _xmp_of(image)
        image, exif, damage = _upright(image)
        colours, alpha = split(image)
        made = to_rgb(colours, profile, options.strip)
    rgb, greyness = made.image, made.greyness
    if alpha is not None and options.background is not None:
        rgb, alpha = _flatten(rgb, alpha, options.background), None
        greyness = min(greyness, greyness_of(np.asarray(rgb)))  # grey on a coloured background is coloured
    pixels = np.asarray(rgb)
    if alpha is not None:
        pixels = fill_hidden(pixels, alpha)
    extras = Extras(made.profile, exif if options.keep_exif else None, xmp if options.keep_exif else None, alpha)
    quality = DEFAULT_QUALITY if options.alpha_quality is None else options.alpha_quality
    free = alpha if options.alpha_quality is None else None
    return Prepared(pixels, to_sections(extras, quality), made.space, greyness, (*notes, *damage, *made.notes), free)


def to_pixels(image: Image.Image | NDArray[np.uint8], background: str | None = None) -> NDArray[np.uint8]:
    """The pixels (H, W, 3) alone of `prepare`."""
    return prepare(image, ImageOptions(background=background)).pixels


def _frame_notes(image: Image.Image) -> list[str]:
    frames = getattr(image, "n_frames", 1)
    if frames < 2 or image.format in OTHER_IMAGES:
        return []
    return [f"first of {frames} frames" if image.tell() == 0 else f"frame {image.tell() + 1} of {frames}"]


def _depth_notes(image: Image.Image) -> list[str]:
    """A note of depth that is lost, for an image that was opened but not loaded: Pillow narrows colours as it loads them.

    Raises ImageError for 32-bit integers, but for those that Pillow makes of a PGM of 16 bits."""
    if image.mode == "I" and image.format != "PPM":
        msg = "pixels are 32-bit integers, whose range is not known: convert it to 8 or 16 bits first"
        raise ImageError(msg)
    deep = image.mode in DEEP or any(";16" in str(tile.args) for tile in getattr(image, "tile", ()))
    return ["16 bits per channel became 8"] if deep else []


def _upright(image: Image.Image) -> tuple[Image.Image, bytes | None, list[str]]:
    """The image turned as its EXIF says, and that EXIF; neither where it is damaged, and a note of it."""
    try:
        exif = _exif_of(image)
        if image.format == "JXL" and not getattr(image, "jpeg", True):  # its own header turned it; EXIF says nothing new
            return image, exif, []
        return ImageOps.exif_transpose(image), exif, []
    except Exception as error:  # the parser's errors are as open a set as those of images
        return image, None, [f"its EXIF is damaged and was left out ({type(error).__name__})"]


def _exif_of(image: Image.Image) -> bytes | None:
    """EXIF from its TIFF header on, saying that the image stands upright."""
    exif = image.info.get("exif")
    if not exif:  # TIFF files have their notes among the tags of the file itself
        tags = image.getexif()
        kept = Image.Exif()
        for tag in TIFF_NOTES:
            if value := tags.get_ifd(tag) if tag in (ExifTags.IFD.Exif, ExifTags.IFD.GPSInfo) else tags.get(tag):
                kept[tag] = value
        exif = kept.tobytes() if len(kept) else b""
    return upright_exif(exif.removeprefix(b"Exif\0\0"))


def _xmp_of(image: Image.Image) -> bytes | None:
    """XMP, saying that the image stands upright."""
    xmp = image.info.get("xmp") or image.info.get("XML:com.adobe.xmp") or None
    if isinstance(xmp, str):
        xmp = xmp.encode()
    return re.sub(rb"(tiff:Orientation(?:=[\"']|>))\d", rb"\g<1>1", xmp) if xmp else None


def _flatten(rgb: Image.Image, alpha: NDArray[np.uint8], background: str) -> Image.Image:
    canvas = Image.new("RGB", rgb.size, parse_colour(background)[:3])
    return Image.composite(rgb, canvas, Image.fromarray(alpha))


def flattened(image: Image.Image, background: str) -> Image.Image:
    """An image with transparency, RGBA or LA, laid on a CSS colour, with the same `info`: RGB, or L where all is grey."""
    red, green, blue, _ = parse_colour(background)
    grey = image.mode == "LA" and red == green == blue
    if image.mode == "LA" and not grey:
        image = in_srgb(image)  # a profile for grey does not fit what comes
    clear = image.convert("RGBA")
    flat = _flatten(clear.convert("RGB"), np.asarray(clear.getchannel("A")), background)
    flat = flat.convert("L") if grey else flat
    flat.info = dict(image.info)
    return flat


def in_srgb(image: Image.Image) -> Image.Image:
    """An image with its colours converted from its profile to sRGB, and without the profile; as it is where it has none."""
    profile = image.info.get("icc_profile")
    if not profile:
        return image
    plain = "L" if image.mode in ("L", "LA") else "RGB"
    done = to_rgb(image.convert(plain), profile, strip=True).image.convert(plain)
    if "A" in image.getbands():
        done.putalpha(image.getchannel("A"))
    done.info = {key: value for key, value in image.info.items() if key != "icc_profile"}
    return done


def parse_colour(name: str) -> tuple[int, ...]:
    """A CSS colour such as white, #fff or rgb(0,0,0) -> RGBA. Raises ImageError for what is none."""
    try:
        return ImageColor.getcolor(name, "RGBA")  # type: ignore[return-value]
    except ValueError as error:
        msg = f"{name!r} is not a colour: use a name such as white, or #rrggbb"
        raise ImageError(msg) from error


def mode_of(greyness: int, transparent: bool) -> str:
    """The mode of the image in a file."""
    return ("L" if greyness == GREY else "RGB") + ("A" if transparent else "")


def restore(pixels: NDArray[np.uint8], extras: Extras, greyness: int = COLOURED) -> Image.Image:
    """The inverse of `prepare`, as far as a file keeps it: pixels (H, W, 3) and what a file had besides -> L, LA, RGB or RGBA,
    with the entries of `info` that Pillow's own plugins set."""
    pixels = neutral(pixels, greyness)
    if greyness == GREY:
        pixels = pixels[..., 0]
    image = Image.fromarray(pixels if extras.alpha is None else np.dstack([pixels, extras.alpha]))
    image.info.update(extras.info)
    return image
