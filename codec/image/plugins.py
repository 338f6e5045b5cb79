"""Formats of image files that are read and written, some of them with a plugin, a package of its own. No NumPy, no torch."""

from __future__ import annotations

import importlib
import re
import struct
from contextlib import suppress
from dataclasses import dataclass

from PIL import Image

# Pillow's names of the formats that are opened, for the reasons given. A file's content decides its format, whatever its name,
# so strangers could reach every other parser, too. Left out are EPS and WMF, which start Ghostscript or draw with Windows;
# IPTC and SPIDER, which open a further file of any format; BUFR, GRIB, HDF5, MPEG and PDF, which have no pixels for Pillow;
# FITS and MCIDAS, measurements of unknown range; and formats that are hardly in use: BLP, CUR, DCX, FLI, FTEX, GBR, IM, IMT,
# MSP, PCD, PIXAR, SUN, XBM, XPM and XVTHUMB.
READ = (
    *("AVIF", "GIF", "JPEG", "PNG", "WEBP"),  # of the web
    *("HEIF", "JXL", "MPO"),  # of cameras and phones
    *("JPEG2000", "PSD", "TIFF"),  # of scanners, archives and editors
    *("BMP", "DIB", "ICNS", "ICO", "PCX"),  # of Windows and macOS
    *("PPM", "QOI"),  # of command-line tools
    *("DDS", "SGI", "TGA"),  # of renderers and games
)
# Formats that hold an image of any size up to their limit in 8 bits per channel. GIF has 256 colours, ICO and ICNS a few sizes.
WRITTEN = (
    "AVIF", "BMP", "DDS", "DIB", "HEIF", "JPEG", "JPEG2000", "JXL", "PCX", "PNG", "PPM", "QOI", "SGI", "TGA", "TIFF", "WEBP",
)  # fmt: skip
JXL_RATIOS = ((1, 1), (12, 10), (4, 3), (3, 2), (16, 9), (5, 4), (2, 1))  # width to height, by their number from 1


@dataclass(frozen=True)
class Plugin:
    """A package that adds a format to Pillow."""

    format: str
    package: str
    module: str
    signature: re.Pattern[bytes]  # signature of the format's files
    endings: tuple[str, ...]


PLUGINS = (
    Plugin("AVIF", "pillow-avif-plugin", "pillow_avif", re.compile(rb"....ftyp(avif|avis)", re.DOTALL), (".avif",)),
    Plugin(
        "HEIC",
        "pillow-heif",
        "pillow_heif",
        re.compile(rb"....ftyp(hei[cxms]|hev[cxms]|mif1|msf1)", re.DOTALL),
        (".heic", ".heif"),
    ),
    Plugin("JPEG XL", "pillow-jxl-plugin", "pillow_jxl", re.compile(rb"\xff\x0a|\0\0\0\x0cJXL \r\n\x87\n"), (".jxl",)),
)


def plugin_for(head: bytes = b"", ending: str = "") -> Plugin | None:
    """The plugin for files that start with `head`, or for files with this ending."""
    matches = (plugin for plugin in PLUGINS if ending in plugin.endings or (head and plugin.signature.match(head)))
    return next(matches, None)


def load_plugin(plugin: Plugin | None) -> None:
    """Registers a plugin with Pillow, if it is installed."""
    if plugin:
        with suppress(ImportError):
            register = getattr(importlib.import_module(plugin.module), "register_heif_opener", None)
            if register:
                register()


def readable_endings() -> frozenset[str]:
    """Endings of the image files that are read, some of them with a plugin."""
    return _endings(READ)


def writable_endings() -> frozenset[str]:
    """Endings of the image files that are written, some of them with a plugin."""
    return _endings(WRITTEN)


def _endings(formats: tuple[str, ...]) -> frozenset[str]:
    Image.init()
    known = Image.registered_extensions().items()
    return frozenset(ending for plugin in PLUGINS for ending in plugin.endings).union(
        ending for ending, name in known if name in formats
    )


def jxl_size(data: bytes) -> tuple[int, int]:
    """Width and height in the header of a JPEG XL file (ISO/IEC 18181-1, SizeHeader). Its plugin decodes while it opens."""
    bits = int.from_bytes(_jxl_codestream(data)[2:16], "little")  # after the signature; the lowest bit comes first

    def read(count: int) -> int:
        nonlocal bits
        value, bits = bits & ((1 << count) - 1), bits >> count
        return value

    def read_side() -> int:
        return 8 * (1 + read(5)) if small else 1 + read((9, 13, 18, 30)[read(2)])

    small = read(1)
    height, ratio = read_side(), read(3)
    if not ratio:
        return read_side(), height
    numerator, denominator = JXL_RATIOS[ratio - 1]
    return height * numerator // denominator, height


def _jxl_codestream(data: bytes) -> bytes:
    """The first bytes of the codestream, which is the file itself, or the content of some of its boxes (ISO/IEC 18181-2)."""
    if data.startswith(b"\xff\x0a"):
        return data[:16]
    codestream, position = b"", 0
    while len(codestream) < 16 and position + 16 <= len(data):
        size, kind, long_size = struct.unpack_from(">I4sQ", data, position)
        start = position + (16 if size == 1 else 8)
        end = position + long_size if size == 1 else position + size if size else len(data)
        if end < start:
            break
        if kind in (b"jxlc", b"jxlp"):
            start += 4 if kind == b"jxlp" else 0  # the number of the part
            codestream += data[start : min(end, start + 16)]
        position = end
    return codestream
