"""The image formats that `tessera decode` writes: Pillow's own, and those of plugins that are installed."""

from __future__ import annotations

import io
import os
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import click

from cli.outputs import STANDARD
from codec.errors import TesseraError

if TYPE_CHECKING:
    from PIL import Image

# Quality of lossy formats by default: about 40 dB from what was decoded (Kodak), a sixth to a tenth of the PNG's size.
QUALITY = {"JPEG": 90, "WEBP": 90, "AVIF": 80, "JXL": 90, "HEIF": 90}
PNG_LEVEL = 2  # of zlib, 0 to 9: four times as fast as Pillow's 6, for files 2 % smaller to 11 % larger
LOSSLESS_AT_100 = ("WEBP", "JXL")
PLUGINS = {".jxl": "pillow-jxl-plugin", ".heic": "pillow-heif", ".heif": "pillow-heif"}
KEPT = ("icc_profile", "exif", "xmp")  # what Pillow's plugins take, where their format has a place for it
PROFILED = ("AVIF", "HEIF", "JPEG", "PNG", "TIFF", "WEBP")  # formats that keep a colour profile
OPAQUE = ("JPEG", "PPM")  # formats that people ask for most, without transparency


@dataclass(frozen=True)
class Format:
    """The format of outputs, and its quality."""

    name: str  # that Pillow has for it
    quality: int | None  # 0 to 100; None where the format has no such choice

    def options(self) -> dict[str, Any]:
        """For `Image.save`."""
        if self.quality is None:
            return {"compress_level": PNG_LEVEL} if self.name == "PNG" else {}
        return {"lossless": True} if self.quality == 100 and self.name in LOSSLESS_AT_100 else {"quality": self.quality}

    def __str__(self) -> str:
        if self.quality is None:
            return self.name
        return f"{self.name} lossless" if "lossless" in self.options() else f"{self.name} quality {self.quality}"


def endings() -> frozenset[str]:
    """Endings of the images that can be written, some with a plugin."""
    from PIL import Image

    Image.init()
    known = (ending for ending, name in Image.registered_extensions().items() if name in Image.SAVE)
    return frozenset(known).union(PLUGINS) - {".tsr"}


def format_of(output: str, ending: str | None, quality: int | None) -> Format:
    """The format that an output's name or --format asks for. Raises UsageError for one that cannot be written, or that has no
    quality where one is asked for."""
    from PIL import Image

    from codec.image.reading import call_plugin

    suffix = f".{ending.lstrip('.')}" if ending else ("" if output == STANDARD else os.path.splitext(output)[1])
    suffix = (suffix or ".png").lower()
    Image.init()
    call_plugin(PLUGINS.get(suffix))
    name = Image.registered_extensions().get(suffix)
    if name not in Image.SAVE or name == "TSR":
        msg = f"no image format is called {suffix.lstrip('.')!r}: use png, jpg, webp, ppm, tiff or another that Pillow writes"
        if suffix in PLUGINS:
            msg = f"images cannot be written as {suffix.lstrip('.')}: install {PLUGINS[suffix]}, or use png"
        raise click.UsageError(msg)
    if quality is not None and name not in QUALITY:
        lossy = ", ".join(sorted(QUALITY))
        msg = f"--output-quality is for {lossy}, and {name} has no quality: leave it out"
        raise click.UsageError(msg)
    return Format(name, QUALITY.get(name) if quality is None else quality)


def image_bytes(image: Image.Image, format: Format, background: str | None = None) -> bytes:
    """An image as a file, its transparency laid on `background` where one is given.

    Raises TesseraError where the format cannot hold it."""
    from codec.image.reading import flattened, in_srgb

    if image.mode in ("RGBA", "LA"):
        if background is not None:
            image = flattened(image, background)
        elif format.name in OPAQUE:
            msg = f"{format.name} has no transparency: use png or webp, or lay it on a colour with --background white"
            raise TesseraError(msg)
    if format.name not in PROFILED:
        image = in_srgb(image)
    kept = {key: image.info[key] for key in KEPT if key in image.info}
    stream = io.BytesIO()
    try:
        image.save(stream, format.name, **format.options(), **kept)
    except MemoryError:
        raise
    except Exception as error:  # odd EXIF makes Pillow's writers of TIFF and AVIF raise errors of any kind
        msg = f"the image cannot be written as {format.name} ({error}): use png"
        raise TesseraError(msg) from error
    return stream.getvalue()
