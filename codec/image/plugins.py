"""Formats of image files that are read and written, some of them with a plugin, a package of its own. No NumPy, no torch."""

from __future__ import annotations

import importlib
import re
import struct
from collections.abc import Iterator
from contextlib import suppress
from dataclasses import dataclass
from functools import cache

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
MODULES = (  # Pillow's, for the formats in READ and WRITTEN; `Image.init` takes a third longer to import all of its modules
    "Avif", "Bmp", "Dds", "Gif", "Icns", "Ico", "Jpeg", "Jpeg2K", "Mpo", "Pcx", "Png", "Ppm", "Psd", "Qoi", "Sgi", "Tga",
    "Tiff", "WebP",
)  # fmt: skip
JXL_CONTAINER = b"\0\0\0\x0cJXL \r\n\x87\n"
JXL_HEADER_MAX = 64  # bytes of a codestream that hold the part of its header that is read
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


@cache
def load_formats() -> None:
    """Registers Pillow's own formats in READ and WRITTEN, as far as this version of Pillow has them."""
    for name in MODULES:
        with suppress(ImportError):
            importlib.import_module(f"PIL.{name}ImagePlugin")


def readable_endings() -> frozenset[str]:
    """Endings of the image files that are read, some of them with a plugin."""
    return _endings(READ)


def writable_endings() -> frozenset[str]:
    """Endings of the image files that are written, some of them with a plugin."""
    return _endings(WRITTEN)


def _endings(formats: tuple[str, ...]) -> frozenset[str]:
    load_formats()
    known = Image.registered_extensions().items()
    return frozenset(ending for plugin in PLUGINS for ending in plugin.endings).union(
        ending for ending, name in known if name in formats
    )


@dataclass(frozen=True)
class JxlHeader:
    """The header of a JPEG XL file. Its plugin decodes while it opens."""

    width: int
    height: int
    extra_channels: int  # beyond colour: alpha, depth, spot colours, ...


def jxl_header(data: bytes) -> JxlHeader:
    """Parses SizeHeader and ImageMetadata of ISO/IEC 18181-1 up to the number of extra channels."""
    codestream = b"".join(data[start : min(end, start + JXL_HEADER_MAX)] for _, start, end in _jxl_codestream(data))
    bits = int.from_bytes(codestream[2:JXL_HEADER_MAX], "little")  # after the signature; the lowest bit comes first

    def read(count: int) -> int:
        nonlocal bits
        value, bits = bits & ((1 << count) - 1), bits >> count
        return value

    def choose(*options: tuple[int, int]) -> int:
        """One of four pairs of a constant and a number of bits (U32)."""
        constant, count = options[read(2)]
        return constant + read(count)

    def read_size() -> tuple[int, int]:
        small = read(1)

        def read_side() -> int:
            return 8 * (1 + read(5)) if small else choose((1, 9), (1, 13), (1, 18), (1, 30))

        height, ratio = read_side(), read(3)
        if not ratio:
            return read_side(), height
        numerator, denominator = JXL_RATIOS[ratio - 1]
        return height * numerator // denominator, height

    def skip_preview() -> None:
        sides = ((16, 0), (32, 0), (1, 5), (33, 9)) if read(1) else ((1, 6), (65, 8), (321, 10), (1345, 12))
        choose(*sides)
        if not read(3):
            choose(*sides)

    def skip_animation() -> None:
        choose((100, 0), (1000, 0), (1, 10), (1, 30))
        choose((1, 0), (1001, 0), (1, 8), (1, 10))
        choose((0, 0), (0, 3), (0, 16), (0, 32))
        read(1)

    width, height = read_size()
    if read(1):  # all values are defaults
        return JxlHeader(width, height, 0)
    if read(1):
        read(3)  # orientation
        for skip in (read_size, skip_preview, skip_animation):
            if read(1):
                skip()
    if read(1):  # floats
        choose((32, 0), (16, 0), (24, 0), (1, 6))
        read(4)
    else:
        choose((8, 0), (10, 0), (12, 0), (1, 6))
    read(1)  # depth of buffers
    return JxlHeader(width, height, choose((0, 0), (1, 0), (2, 4), (1, 12)))


def has_jxl_gain_map(data: bytes) -> bool:
    """Whether a JPEG XL file has a gain map (ISO/IEC 18181-2)."""
    return any(kind == b"jhgm" for kind, _, _ in _jxl_boxes(data))


def _jxl_codestream(data: bytes) -> Iterator[tuple[bytes, int, int]]:
    """Type, start and end of the parts of the codestream, which is the file itself, or the content of some of its boxes."""
    if data.startswith(b"\xff\x0a"):
        yield b"", 0, len(data)
    for kind, start, end in _jxl_boxes(data):
        if kind in (b"jxlc", b"jxlp"):
            yield kind, start + (4 if kind == b"jxlp" else 0), end  # without the number of the part


def _jxl_boxes(data: bytes) -> Iterator[tuple[bytes, int, int]]:
    """Type, start and end of the content of each box of a JPEG XL file (ISO/IEC 18181-2)."""
    position = 0 if data.startswith(JXL_CONTAINER) else len(data)
    while position + 8 <= len(data):
        size, kind = struct.unpack_from(">I4s", data, position)
        start, end = position + 8, position + size if size else len(data)
        if size == 1 and position + 16 <= len(data):
            start, end = position + 16, position + int.from_bytes(data[position + 8 : position + 16], "big")
        if end < start:
            break
        yield kind, start, end
        position = end
