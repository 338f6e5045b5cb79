"""Sections of a file: colour profile, EXIF, XMP and alpha plane (FORMAT.md, section 2). No torch.

Contents are LZMA2 streams. They are 12 % smaller than with zlib for profiles, and 30-45 % smaller than PNG for alpha planes, in
files of about a thousand bytes.
"""

from __future__ import annotations

import lzma
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray
from PIL import ExifTags

from bitstream.container import ALPHA, Sections
from codec.errors import FormatError, ImageError
from codec.image.alpha import DEFAULT_ALPHA_QUALITY, LOSSLESS_QUALITY, SHRINKS, enlarge_plane, lossy_planes
from codec.image.profiles import SRGB, profile_of

ICC, EXIF, XMP = 2, 3, 4  # types of sections; ALPHA comes first, since a cut file loses its end
LABELS = {ALPHA: "transparency", ICC: "colour profile", EXIF: "EXIF", XMP: "XMP"}
CONTENT_MAX = 1 << 24  # bytes of an unpacked profile, EXIF or XMP
DICTIONARY = 1 << 20  # bytes; part of the format
CHEAP_ALPHA = 800  # bytes, 600 at the default quality: smaller planes stay lossless
FALLING_QUALITIES = (50, 25, 0)  # alpha qualities, in order of trial
TIFF_HEADER = 8  # bytes
SHORT = 3  # the TIFF type of an orientation
SLOW_PRESET_MAX = 1 << 22  # bytes; longer contents use a faster LZMA preset


@dataclass(frozen=True)
class Extras:
    """The unpacked contents of sections."""

    icc: bytes | None = None
    exif: bytes | None = None  # starts with the TIFF header
    xmp: bytes | None = None
    alpha: NDArray[np.uint8] | None = None  # (H, W)

    @property
    def info(self) -> dict[str | tuple[int, int], bytes]:
        """Profile, EXIF and XMP by the names that Pillow's own plugins use in an image's `info`."""
        entries: dict[str | tuple[int, int], bytes | None]  # Pillow's type of `info`
        entries = {"icc_profile": self.icc, "exif": self.exif and b"Exif\0\0" + self.exif, "xmp": self.xmp}
        return {name: content for name, content in entries.items() if content}


def to_sections(extras: Extras, alpha_quality: int = DEFAULT_ALPHA_QUALITY) -> Sections:
    """Packs contents into sections. Raises ImageError if one is larger than a section may be."""
    contents = {ICC: extras.icc, EXIF: extras.exif, XMP: extras.xmp}
    for kind, content in contents.items():
        if content and len(content) > CONTENT_MAX:
            msg = f"the {LABELS[kind]} has {len(content):,} bytes, and a file holds {CONTENT_MAX:,}"
            raise ImageError(msg, ("strip",) if kind == ICC else ("keep_exif",))
    alpha = () if extras.alpha is None else ((ALPHA, pack_alpha(extras.alpha, alpha_quality)),)
    return alpha + tuple((kind, pack(content)) for kind, content in contents.items() if content)


def from_sections(sections: Sections, width: int, height: int, space: int = SRGB) -> Extras:
    """The inverse of `to_sections`, for an image of width x height pixels in the colour space of this number.

    Skips unknown types and damaged EXIF, and sets the orientation in EXIF to 1. Raises FormatError if contents are damaged."""
    packed = dict(sections)
    content = {kind: unpack(packed[kind], CONTENT_MAX, LABELS[kind]) for kind in (ICC, EXIF, XMP) if kind in packed}
    exif = upright_exif(content[EXIF]) if EXIF in content else None
    alpha = unpack_alpha(packed[ALPHA], width, height) if ALPHA in packed else None
    return Extras(content.get(ICC) or profile_of(space), exif, content.get(XMP), alpha)


def pack_alpha(alpha: NDArray[np.uint8], quality: int) -> bytes:
    """Packs alpha (H, W): losslessly at quality 100 or if this takes few bytes, otherwise as small as the quality allows."""
    lossless = b"\0" + pack(alpha.tobytes())
    if quality >= LOSSLESS_QUALITY or len(lossless) <= CHEAP_ALPHA * (quality / LOSSLESS_QUALITY):
        return lossless
    lossy = (bytes([shrink]) + pack(plane.tobytes()) for shrink, plane in lossy_planes(alpha, quality))
    return min(lossless, *lossy, key=len)


def unpack_alpha(packed: bytes, width: int, height: int) -> NDArray[np.uint8]:
    """The inverse of `pack_alpha`. Raises FormatError if the content is damaged."""
    shrink = packed[0] if packed else len(SHRINKS)
    if shrink not in SHRINKS:
        msg = f"the transparency is damaged (it begins with {packed[:1].hex() or 'nothing'})"
        raise FormatError(msg)
    rows, columns = -(-height // (1 << shrink)), -(-width // (1 << shrink))
    plane = unpack(packed[1:], rows * columns, LABELS[ALPHA])
    if len(plane) != rows * columns:
        msg = f"the transparency has {len(plane):,} values for {columns}x{rows} pixels: the file is damaged"
        raise FormatError(msg)
    return enlarge_plane(np.frombuffer(plane, np.uint8).reshape(rows, columns), shrink, height, width)


def pack(content: bytes) -> bytes:
    """Packs bytes into a raw LZMA2 stream."""
    preset = 9 | lzma.PRESET_EXTREME if len(content) <= SLOW_PRESET_MAX else 6
    return lzma.compress(content, lzma.FORMAT_RAW, filters=_filters(preset))


def unpack(packed: bytes, max_size: int, label: str) -> bytes:
    """The inverse of `pack`. Raises FormatError if the stream is damaged, or holds more than `max_size` bytes.

    Further bytes are never unpacked."""
    stream = lzma.LZMADecompressor(lzma.FORMAT_RAW, filters=_filters(0))
    try:
        content = stream.decompress(packed, max_size + 1)
    except (lzma.LZMAError, EOFError) as error:
        msg = f"the {label} is damaged ({error})"
        raise FormatError(msg) from error
    if len(content) > max_size:
        msg = f"the {label} unpacks to more than {max_size:,} bytes: the file is damaged"
        raise FormatError(msg)
    if not stream.eof or stream.unused_data:
        msg = f"the {label} does not end where its section does: the file is damaged"
        raise FormatError(msg)
    return content


def _filters(preset: int) -> list[dict[str, int]]:
    return [{"id": lzma.FILTER_LZMA2, "preset": preset, "dict_size": DICTIONARY, "lc": 0, "lp": 0, "pb": 0}]


def fit_alpha(sections: Sections, alpha: NDArray[np.uint8], max_size: int) -> Sections:
    """Sections with alpha (H, W) at the highest quality that takes at most `max_size` bytes, or at the lowest quality."""
    packed = dict(sections)
    for quality in FALLING_QUALITIES:
        if len(packed[ALPHA]) <= max_size:
            break
        packed[ALPHA] = min(packed[ALPHA], pack_alpha(alpha, quality), key=len)
    return tuple(packed.items())


def upright_exif(exif: bytes) -> bytes | None:
    """EXIF with orientation 1; None if it is not EXIF.

    All other bytes are unchanged, so that offsets stay valid, such as those in the camera's own notes."""
    order = {b"II*\0": "little", b"MM\0*": "big"}.get(exif[:4])
    if order is None or len(exif) < TIFF_HEADER:
        return None

    def number(offset: int, size: int) -> int:
        return int.from_bytes(exif[offset : offset + size], order)  # type: ignore[arg-type]

    directory = number(4, 4)
    for entry in range(directory + 2, directory + 2 + 12 * number(directory, 2), 12):
        if number(entry, 2) == ExifTags.Base.Orientation and entry + 12 <= len(exif):
            fields = ((SHORT, 2), (1, 4), (1, 2))  # type, count and value, with their sizes
            upright = b"".join(value.to_bytes(size, order) for value, size in fields)  # type: ignore[arg-type]
            return exif[: entry + 2] + upright + exif[entry + 10 :]
    return exif
