"""Writing images to the formats of Pillow and its plugins. No torch."""

from __future__ import annotations

import io
from dataclasses import dataclass
from typing import Any

import numpy as np
from PIL import ExifTags, Image
from PIL.PngImagePlugin import PngInfo

from codec.errors import ImageError, UsageError
from codec.image.alpha import flatten, parse_colour
from codec.image.colour import to_rgb
from codec.image.opening import pillow_settings
from codec.image.plugins import WRITTEN, load_formats, load_plugin, plugin_for
from codec.options import MAX_PIXELS

# Default quality of lossy formats: about 40 dB from the decoded image (Kodak), a sixth to a tenth of the size of the PNG.
QUALITY = {"JPEG": 90, "WEBP": 90, "AVIF": 80, "JXL": 90, "HEIF": 90}
PNG_LEVEL = 2  # zlib level, 0 to 9: four times as fast as Pillow's 6, for files 2 % smaller to 11 % larger
LOSSLESS_AT_100 = ("WEBP", "JXL")
WITH_PROFILE = ("AVIF", "HEIF", "JPEG", "PNG", "TIFF", "WEBP")  # formats that keep a colour profile
WITH_EXIF = (*WITH_PROFILE, "JXL")  # formats that keep EXIF and XMP
OPAQUE = ("BMP", "DIB", "JPEG", "PCX", "PPM")  # formats without transparency, at least in what Pillow writes


@dataclass(frozen=True)
class ImageFormat:
    """A Pillow format, and its quality."""

    name: str  # Pillow's name for the format
    quality: int | None  # 0 to 100; None if the format has no such choice

    def save_options(self) -> dict[str, Any]:
        """Keywords of `Image.save`."""
        if self.quality is None:
            return {"compress_level": PNG_LEVEL} if self.name == "PNG" else {}
        return {"lossless": True} if self.quality == 100 and self.name in LOSSLESS_AT_100 else {"quality": self.quality}

    def __str__(self) -> str:
        if self.quality is None:
            return self.name
        return f"{self.name} lossless" if "lossless" in self.save_options() else f"{self.name} quality {self.quality}"


def image_format(ending: str, quality: int | None = None) -> ImageFormat:
    """The format of files with this ending, such as '.png'.

    Raises UsageError if it cannot be written or does not hold every image, or if it has no quality and one is given."""
    ending = ending.lower()
    load_formats()
    plugin = plugin_for(ending=ending)
    load_plugin(plugin)
    name = Image.registered_extensions().get(ending)
    if name not in Image.SAVE or name not in WRITTEN:
        msg = f"images cannot be written as {ending.lstrip('.')!r}: use png, jpg, webp, tiff, ppm, avif or bmp"
        if plugin:
            msg = f"images cannot be written as {ending.lstrip('.')}: install {plugin.package}, or use png"
        raise UsageError(msg)
    if quality is not None and name not in QUALITY:
        msg = f"an output quality is for {', '.join(sorted(QUALITY))}, and {name} has none: leave it out"
        raise UsageError(msg)
    return ImageFormat(name, QUALITY.get(name) if quality is None else quality)


def write_image(image: Image.Image, format: ImageFormat, background: str | None = None) -> bytes:
    """The bytes of an image file, composited on `background`, a CSS colour, if one is given.

    Raises ImageError if the format cannot hold the image."""
    if image.mode in ("RGBA", "LA"):
        if background is not None:
            image = flattened(image, background)
        elif format.name in OPAQUE:
            msg = f"{format.name} has no transparency, unlike png and webp"
            raise ImageError(msg, ("background",))
    if format.name not in WITH_PROFILE:
        image = in_srgb(image)
    stream = io.BytesIO()
    try:
        image.save(stream, format.name, **format.save_options(), **_metadata(image, format.name))
        _verify(image, stream, format.name)
    except MemoryError:
        raise
    except Exception as error:  # unusual EXIF makes Pillow's writers of TIFF and AVIF raise errors of any kind
        msg = f"a {image.width}x{image.height} image cannot be written as {format.name} ({error}): use png"
        raise ImageError(msg) from error
    return stream.getvalue()


def dropped_metadata(image: Image.Image, format: ImageFormat) -> tuple[str, ...]:
    """Remarks for the user on metadata that the format does not keep."""
    lost = [label for key, label in (("exif", "EXIF"), ("xmp", "XMP")) if image.info.get(key)]
    return () if format.name in WITH_EXIF or not lost else (f"{' and '.join(lost)} left out: {format.name} does not keep it",)


def _metadata(image: Image.Image, name: str) -> dict[str, Any]:
    """Keywords of `Image.save` for profile, EXIF and XMP."""
    values = {key: image.info[key] for key in ("icc_profile", "exif", "xmp") if image.info.get(key)}
    if name == "PNG" and "xmp" in values:
        values["pnginfo"] = PngInfo()
        values["pnginfo"].add_itxt("XML:com.adobe.xmp", values["xmp"])
    elif name == "TIFF" and "xmp" in values:
        exif = Image.Exif()
        exif.load(values.get("exif", b""))
        exif[ExifTags.Base.XMLPacket] = values["xmp"]
        values["exif"] = exif
    return values


def _verify(image: Image.Image, stream: io.BytesIO, name: str) -> None:
    """Raises ValueError if the written file has another size or no transparency, as icons and palettes would."""
    if name in ("JXL", "WEBP"):  # opening them takes memory for their pixels
        return
    with pillow_settings(max(MAX_PIXELS, image.width * image.height)):
        written = Image.open(stream, formats=[name])
    if (written.size, written.has_transparency_data) != (image.size, image.has_transparency_data):
        transparency = "with" if written.has_transparency_data else "without"
        msg = f"the file would have {written.width}x{written.height} pixels, {transparency} transparency"
        raise ValueError(msg)


def flattened(image: Image.Image, background: str) -> Image.Image:
    """An RGBA or LA image composited on a CSS colour, with the same `info`: RGB, or L if all is grey."""
    red, green, blue, _ = parse_colour(background)
    grey = image.mode == "LA" and red == green == blue
    if image.mode == "LA" and not grey:
        image = in_srgb(image)  # a grey profile does not fit coloured pixels
    clear = image.convert("RGBA")
    flat = flatten(clear.convert("RGB"), np.asarray(clear.getchannel("A")), background)
    flat = flat.convert("L") if grey else flat
    flat.info = dict(image.info)
    return flat


def in_srgb(image: Image.Image) -> Image.Image:
    """An image converted from its colour profile to sRGB, without the profile. Without a profile, the image itself."""
    profile = image.info.get("icc_profile")
    if not profile:
        return image
    plain = "L" if image.mode in ("L", "LA") else "RGB"
    converted = to_rgb(image.convert(plain), profile, strip=True).image.convert(plain)
    if "A" in image.getbands():
        converted.putalpha(image.getchannel("A"))
    converted.info = {key: value for key, value in image.info.items() if key != "icc_profile"}
    return converted
