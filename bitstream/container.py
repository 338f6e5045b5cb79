"""The .tsr file: header, payload, sections. FORMAT.md, sections 1 and 2.

Reading is in steps, cheapest check first: magic and version, then sizes, then the checksum; no array is made from a number
in a file before it was checked. A header alone says how large its file can be, so that a reader knows when to stop:

    header = read_header(stream.read(HEADER_MAX))
    stream.read(header.largest + 1 - HEADER_MAX)
"""

from __future__ import annotations

import zlib
from dataclasses import dataclass
from typing import TypeAlias

from bitstream.block_order import CELL
from bitstream.errors import FormatError

MAGIC = b"\xd4T"  # not text, and not the start of any registered image format
VERSION = 1
STREAM_ID_BYTES = 2
SIDE_MAX = 1 << 24  # pixels
SIDE_BYTES = (1, 2, 4)
CRC_BYTES = 3
HEADER_MAX = 29  # bytes
SURPLUS_MAX = 4096  # bytes after the end of a file, at most, that are recognised as such
CELL_BYTES = 1 << 10  # of payload for each cell, at most; real images stay far below
HAS_KIND = 0x04  # flags: the two lowest bits say how many bytes a side takes, this one that a byte on the image follows
SPACE_BITS, GREYNESS_SHIFT, TRANSPARENT, HAS_SECTIONS = 0x0F, 4, 0x40, 0x80  # fields of that byte
COLOURED, GREY, NEUTRAL = range(3)  # greyness: in colour, of one channel, or of three that are equal everywhere
SPACES = {COLOURED: range(4), GREY: (0, 4), NEUTRAL: range(4)}  # numbers of colour spaces: 0 is sRGB
SECTION_NAMES = {1: "alpha", 2: "icc", 3: "exif", 4: "xmp"}  # readers skip those that they do not know
ALPHA = 1
Sections: TypeAlias = tuple[tuple[int, bytes], ...]  # (type, content)


@dataclass(frozen=True)
class Header:
    """What stands before the payload."""

    width: int
    height: int
    stream_id: bytes  # the first two bytes of the fingerprint of the model that tokens belong to
    length: int  # tokens in the payload
    space: int  # number of the colour space
    greyness: int  # COLOURED, GREY or NEUTRAL
    transparent: bool  # a section holds its opacity
    payload_bytes: int | None  # None where not stated: the payload then goes on to the end of the file
    section_bytes: int
    checksum: bytes
    bytes: int  # that the header takes

    @property
    def size(self) -> int | None:
        """Bytes of the whole file, where the header says it."""
        return None if self.payload_bytes is None else self.bytes + self.payload_bytes + self.section_bytes

    @property
    def largest(self) -> int:
        """Bytes that the file can have at most."""
        return self.bytes + payload_max(self.width, self.height) if self.size is None else self.size


@dataclass(frozen=True)
class File:
    """What a .tsr file says."""

    width: int
    height: int
    stream_id: bytes  # as in `Header`
    length: int  # tokens in the payload
    payload: bytes
    sections: Sections = ()
    space: int = 0
    greyness: int = COLOURED
    # What reading found out; writing does not look at it.
    transparent: bool = False  # a section holds its opacity; in a cut file it may be missing
    whole: bool = True  # the checksum holds; False for a cut or damaged file
    payload_whole: bool = True  # nothing of the payload is missing, as far as the header can tell
    missing: int | None = 0  # bytes cut off; None where the header cannot tell
    surplus: int = 0  # bytes without which the checksum would hold; by chance for one cut file in many thousands
    header_bytes: int = 0

    @property
    def section_bytes(self) -> int:
        return sum(1 + len(write_number(len(content))) + len(content) for _, content in self.sections)


def payload_max(width: int, height: int) -> int:
    """Bytes that the payload of such an image has at most."""
    return CELL_BYTES * -(-width // CELL) * -(-height // CELL)


def write_number(value: int) -> bytes:
    """A number of up to 28 bits as 1 to 4 bytes, 7 bits each, highest first; all but the last have their top bit set."""
    if not 0 <= value < 1 << 28:
        msg = f"{value} does not fit a number of at most 28 bits"
        raise FormatError(msg)
    out = [value & 0x7F]
    while value := value >> 7:
        out.append(value & 0x7F | 0x80)
    return bytes(reversed(out))


def read_number(data: bytes, at: int) -> tuple[int, int]:
    """The inverse of `write_number`: the number at `at`, and where it ends."""
    value = 0
    for end in range(at, min(at + 4, len(data))):
        value = value << 7 | data[end] & 0x7F
        if not data[end] & 0x80:
            if end > at and data[at] == 0x80:
                msg = "a number in the header is longer than it need be: the file is damaged"
                raise FormatError(msg)
            return value, end + 1
    msg = "a number in the header has no end: the file is cut or damaged"
    raise FormatError(msg)


def write_file(file: File) -> bytes:
    """The bytes of a file. Raises FormatError for what no file can hold."""
    if len(file.payload) > (most := payload_max(file.width, file.height)):
        msg = f"{len(file.payload)} bytes of tokens do not fit: an image of {file.width}x{file.height} has at most {most}"
        raise FormatError(msg)
    head, body = _head(file, len(file.payload)), file.payload + _pack(file.sections)
    return head + _checksum(head, body) + body


def overhead(file: File, payload_bytes: int) -> int:
    """Bytes that a file has beside its payload, were that of so many bytes; the payload that it has is not looked at."""
    return len(_head(file, payload_bytes)) + CRC_BYTES + file.section_bytes


def _head(file: File, payload_bytes: int) -> bytes:
    """The header but for its checksum."""
    longest = max(file.width, file.height)
    if min(file.width, file.height) < 1 or longest > SIDE_MAX:
        msg = f"an image of {file.width}x{file.height} does not fit: sides are 1 to {SIDE_MAX} pixels"
        raise FormatError(msg)
    size_class = next(i for i, size in enumerate(SIDE_BYTES) if longest <= 1 << 8 * size)
    kind = file.space | file.greyness << GREYNESS_SHIFT
    kind |= (TRANSPARENT if ALPHA in dict(file.sections) else 0) | (HAS_SECTIONS if file.sections else 0)
    head = MAGIC + bytes([VERSION << 4 | size_class | (HAS_KIND if kind else 0)]) + file.stream_id[:STREAM_ID_BYTES]
    head += b"".join((side - 1).to_bytes(SIDE_BYTES[size_class], "big") for side in (file.width, file.height))
    head += write_number(file.length) + (bytes([kind]) if kind else b"")
    return head + (write_number(payload_bytes) + write_number(file.section_bytes) if file.sections else b"")


def _pack(sections: Sections) -> bytes:
    return b"".join(bytes([kind]) + write_number(len(content)) + content for kind, content in sections)


def _checksum(head: bytes, body: bytes) -> bytes:
    """The low 24 bits of the CRC-32 (ISO 3309, as in zlib and PNG) of all bytes but its own."""
    return zlib.crc32(body, zlib.crc32(head)).to_bytes(4, "big")[-CRC_BYTES:]


def read_header(data: bytes) -> Header:
    """The header at the start of a file; HEADER_MAX bytes are always enough.

    Raises FormatError for what is not a .tsr file, is of another version, or ends within its header."""
    if data[:2] != MAGIC:
        msg = "not a .tsr file"
        raise FormatError(msg)
    if len(data) < 3:
        raise FormatError(SHORT)
    if (version := data[2] >> 4) != VERSION:
        msg = f"a .tsr file of version {version}, and this release reads version {VERSION}: update tessera"
        raise FormatError(msg)
    flags = data[2] & 0x0F
    if flags & 0x08 or flags & 0x03 == 3:
        msg = f"unknown flags {flags:#x} in the header: the file is damaged, or from a later release"
        raise FormatError(msg)
    side = SIDE_BYTES[flags & 0x03]
    at = 3 + STREAM_ID_BYTES + 2 * side
    length, end = read_number(data, at)
    width, height = (int.from_bytes(data[i : i + side], "big") + 1 for i in (at - 2 * side, at - side))
    if max(width, height) > SIDE_MAX:
        msg = f"an image of {width}x{height}: sides are 1 to {SIDE_MAX} pixels, so the file is damaged"
        raise FormatError(msg)
    kind, payload_bytes, section_bytes = 0, None, 0
    if flags & HAS_KIND:
        if len(data) == end:
            raise FormatError(SHORT)
        kind, end = data[end], end + 1
    space, greyness = kind & SPACE_BITS, kind >> GREYNESS_SHIFT & 0x03
    if space not in SPACES.get(greyness, ()):
        msg = f"unknown kind of image {kind:#x} in the header: the file is damaged, or from a later release"
        raise FormatError(msg)
    if kind & HAS_SECTIONS:
        payload_bytes, end = read_number(data, end)
        section_bytes, end = read_number(data, end)
        if payload_bytes > payload_max(width, height):
            msg = f"{payload_bytes} bytes of tokens for an image of {width}x{height}: the file is damaged"
            raise FormatError(msg)
    if len(data) < end + CRC_BYTES:
        raise FormatError(SHORT)
    return Header(
        width,
        height,
        stream_id=data[3 : 3 + STREAM_ID_BYTES],
        length=length,
        space=space,
        greyness=greyness,
        transparent=bool(kind & TRANSPARENT),
        payload_bytes=payload_bytes,
        section_bytes=section_bytes,
        checksum=data[end : end + CRC_BYTES],
        bytes=end + CRC_BYTES,
    )


SHORT = "the header is cut short"


def read_file(data: bytes) -> File:
    """The inverse of `write_file`. A wrong checksum is not an error here: `whole` says so, and the caller decides. Of the
    sections of a cut file, those that are whole are read.

    Raises FormatError as `read_header` does, and for damaged sections and bytes after the end."""
    header = read_header(data)
    if (over := len(data) - header.largest) > 0:
        least = "at least " if header.size is None else ""
        msg = f"the file is damaged: {least}{_bytes(over)} after its end; get it again"
        raise FormatError(msg)
    whole = len(data) >= (header.size or 0) and (
        _checksum(data[: header.bytes - CRC_BYTES], data[header.bytes :]) == header.checksum
    )
    missing = header.size - len(data) if header.size is not None else 0 if whole else None
    payload_end = header.bytes + header.payload_bytes if header.payload_bytes is not None else len(data)
    sections = _read_sections(data[payload_end:], bool(missing))
    if header.transparent != (ALPHA in dict(sections)) and not missing:
        msg = "the header and the sections do not agree on transparency: the file is damaged"
        raise FormatError(msg)
    return File(
        header.width,
        header.height,
        header.stream_id,
        header.length,
        data[header.bytes : payload_end],
        sections,
        header.space,
        header.greyness,
        header.transparent,
        whole,
        payload_whole=missing is not None and payload_end <= len(data),
        missing=missing,
        surplus=_surplus(data, header) if missing is None else 0,
        header_bytes=header.bytes,
    )


def _surplus(data: bytes, header: Header) -> int:
    """How many of the last bytes must go for the checksum to hold; 0 where that is none of SURPLUS_MAX."""
    first = max(header.bytes, len(data) - SURPLUS_MAX)
    so_far = zlib.crc32(data[header.bytes : first], zlib.crc32(data[: header.bytes - CRC_BYTES]))
    wanted = int.from_bytes(header.checksum, "big")
    for end in range(first, len(data)):
        if so_far & 0xFFFFFF == wanted:
            return len(data) - end
        so_far = zlib.crc32(data[end : end + 1], so_far)
    return 0


def _bytes(count: int) -> str:
    return "1 byte" if count == 1 else f"{count} bytes"


def _read_sections(data: bytes, cut: bool) -> Sections:
    """The sections that `data` consists of; where it is cut, those that are whole. Each type is there once at most, so there
    are at most 255."""
    sections: dict[int, bytes] = {}
    at = 0
    while at < len(data):
        kind = data[at]
        if kind in sections or kind == 0:
            msg = f"two sections of type {kind}: the file is damaged" if kind else "a section of type 0: the file is damaged"
            raise FormatError(msg)
        try:
            size, start = read_number(data, at + 1)
        except FormatError:
            if cut:
                break
            raise
        if (at := start + size) > len(data):
            if cut:
                break
            msg = "the sections are longer than the header says: the file is damaged"
            raise FormatError(msg)
        sections[kind] = data[start:at]
    return tuple(sections.items())
