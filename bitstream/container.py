"""The .tsr file: header, sections, payload. FORMAT.md, sections 1 and 2.

Reading is in steps, cheapest check first: magic and version, then sizes, then the checksum; no array is made from a number
in a file before it was checked.
"""

from __future__ import annotations

import zlib
from dataclasses import dataclass
from typing import TypeAlias

from bitstream.errors import FormatError

MAGIC = b"\xd4T"  # not text, and not the start of any registered image format
VERSION = 1
STREAM_ID_BYTES = 2
SIDE_MAX = 1 << 24  # pixels
HAS_SECTIONS = 0x04  # flags: the two lowest bits say how many bytes a side takes, this one that sections follow
SIDE_BYTES = (1, 2, 4)
CRC_BYTES = 3
SECTION_NAMES = {1: "icc", 2: "exif", 3: "xmp", 4: "alpha"}  # readers skip those that they do not know
Sections: TypeAlias = tuple[tuple[int, bytes], ...]  # (type, content)


@dataclass(frozen=True)
class File:
    """What a .tsr file says."""

    width: int
    height: int
    stream_id: bytes  # the first two bytes of the fingerprint of the model that tokens belong to
    length: int  # tokens in the payload
    payload: bytes
    sections: Sections = ()
    whole: bool = True  # the checksum holds; False for a cut or damaged file
    header_bytes: int = 0  # all that comes before the sections

    @property
    def section_bytes(self) -> int:
        return sum(1 + len(write_number(len(content))) + len(content) for _, content in self.sections) + bool(self.sections)


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
    """The bytes of a file; `whole` and `header_bytes` are not looked at. Raises FormatError for what no file can hold."""
    longest = max(file.width, file.height)
    if min(file.width, file.height) < 1 or longest > SIDE_MAX:
        msg = f"a picture of {file.width}x{file.height} does not fit: sides are 1 to {SIDE_MAX} pixels"
        raise FormatError(msg)
    size_class = next(i for i, size in enumerate(SIDE_BYTES) if longest <= 1 << 8 * size)
    flags = size_class | (HAS_SECTIONS if file.sections else 0)
    head = MAGIC + bytes([VERSION << 4 | flags]) + file.stream_id[:STREAM_ID_BYTES]
    head += b"".join((side - 1).to_bytes(SIDE_BYTES[size_class], "big") for side in (file.width, file.height))
    head += write_number(file.length)
    body = b"".join(bytes([kind]) + write_number(len(content)) + content for kind, content in file.sections)
    body += (b"\0" if file.sections else b"") + file.payload
    return head + _checksum(head, body) + body


def _checksum(head: bytes, body: bytes) -> bytes:
    """The low 24 bits of the CRC-32 (ISO 3309, as in zlib) of all bytes but its own."""
    return zlib.crc32(body, zlib.crc32(head)).to_bytes(4, "big")[-CRC_BYTES:]


def read_file(data: bytes) -> File:
    """The inverse of `write_file`. A wrong checksum is not an error here: `whole` says so, and the caller decides.

    Raises FormatError for what is not a .tsr file, is of another version, or ends before its payload begins."""
    if data[:2] != MAGIC:
        msg = "not a .tsr file"
        raise FormatError(msg)
    if len(data) < 3:
        msg = "the header is cut short"
        raise FormatError(msg)
    if (version := data[2] >> 4) != VERSION:
        msg = f"a .tsr file of version {version}, and this release reads version {VERSION}: update tessera"
        raise FormatError(msg)
    flags = data[2] & 0x0F
    if flags & 0x08 or flags & 0x03 == 3:
        msg = f"unknown flags {flags:#x} in the header: the file is damaged, or from a later release"
        raise FormatError(msg)
    size = SIDE_BYTES[flags & 0x03]
    at = 3 + STREAM_ID_BYTES + 2 * size
    length, end = read_number(data, at)
    if len(data) < end + CRC_BYTES:
        msg = "the header is cut short"
        raise FormatError(msg)
    width, height = (int.from_bytes(data[i : i + size], "big") + 1 for i in (at - 2 * size, at - size))
    if max(width, height) > SIDE_MAX:
        msg = f"a picture of {width}x{height}: sides are 1 to {SIDE_MAX} pixels, so the file is damaged"
        raise FormatError(msg)
    body = end + CRC_BYTES
    whole = _checksum(data[:end], data[body:]) == data[end:body]
    sections, start = _read_sections(data, body) if flags & HAS_SECTIONS else ((), body)
    return File(width, height, data[3 : 3 + STREAM_ID_BYTES], length, data[start:], sections, whole, body)


def _read_sections(data: bytes, at: int) -> tuple[Sections, int]:
    """The sections at `at`, and where the payload begins. Each type is there once at most, so there are at most 255."""
    sections: dict[int, bytes] = {}
    while at < len(data):
        kind = data[at]
        if kind == 0:
            return tuple(sections.items()), at + 1
        if kind in sections:
            msg = f"two sections of type {kind}: the file is damaged"
            raise FormatError(msg)
        size, at = read_number(data, at + 1)
        if at + size > len(data):
            break
        sections[kind] = data[at : at + size]
        at += size
    msg = "the file ends inside its sections, before the picture begins"
    raise FormatError(msg)
