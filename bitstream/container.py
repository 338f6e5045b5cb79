"""The .tsr file: header, payload, sections. FORMAT.md, sections 1 and 2.

Reading makes the cheapest check first: magic and version, then sizes, then the checksum. Numbers in a file are checked before
memory is allocated for them. The header limits the size of the file, so a reader knows when to stop:

    header = read_header(stream.read(HEADER_MAX))
    stream.read(header.max_file_bytes + 1 - HEADER_MAX)
"""

from __future__ import annotations

import zlib
from dataclasses import dataclass
from typing import TypeAlias

from bitstream.block_order import CELL
from bitstream.errors import FormatError
from bitstream.reference import Reference, hash_tokens, read_reference, reference_max, write_reference

MAGIC = b"\xd4T"  # not text, and not the start of any registered image format
VERSION = 1
STREAM_ID_BYTES = 2
SIDE_MAX = 1 << 24  # pixels
SIDE_BYTES = (1, 2, 4)
CRC_BYTES = 3
HEADER_MAX = 33  # bytes, without the reference
SURPLUS_MAX = 4096  # largest number of bytes after the end of a file that is reported as such
CELL_BYTES = 1 << 10  # largest payload per cell; real images use far less
HAS_KIND = 0x04  # flag: a byte with the kind of image follows the length; the two lowest bits are the index of SIDE_BYTES
HAS_REFERENCE = 0x08  # flag: the size of a reference precedes the checksum, and the reference follows it
SPACE_BITS, GREYNESS_SHIFT, TRANSPARENT, HAS_SECTIONS = 0x0F, 4, 0x40, 0x80  # fields of that byte
COLOURED, GREY, NEUTRAL = range(3)  # greyness: colour, one grey channel, or three channels that are equal everywhere
SPACES = {COLOURED: range(4), GREY: (0, 4), NEUTRAL: range(4)}  # numbers of colour spaces; 0 is sRGB
SECTION_NAMES = {1: "alpha", 2: "icc", 3: "exif", 4: "xmp"}  # readers skip other types
ALPHA = 1
CUT_HEADER = "the header is cut short"
Sections: TypeAlias = tuple[tuple[int, bytes], ...]  # (type, content)


@dataclass(frozen=True)
class Header:
    """The fields before the payload."""

    width: int
    height: int
    stream_id: bytes  # the first two bytes of the fingerprint of the model that defines the tokens
    length: int  # tokens in the payload
    space: int  # number of the colour space
    greyness: int  # COLOURED, GREY or NEUTRAL
    transparent: bool  # a section holds the opacity
    payload_bytes: int | None  # None if not stated: the payload then extends to the end of the file
    section_bytes: int
    reference_bytes: int  # 0 if the tokens are those of the image itself
    checksum: bytes
    header_bytes: int  # with the reference

    @property
    def file_bytes(self) -> int | None:
        """Bytes of the complete file, if the header states them."""
        return None if self.payload_bytes is None else self.header_bytes + self.payload_bytes + self.section_bytes

    @property
    def max_file_bytes(self) -> int:
        """Maximum size of the file in bytes."""
        return self.header_bytes + payload_max(self.width, self.height) if self.file_bytes is None else self.file_bytes


@dataclass(frozen=True)
class File:
    """The content of a .tsr file."""

    width: int
    height: int
    stream_id: bytes  # the fields that `Header` has too have the same meaning there
    length: int
    payload: bytes
    sections: Sections = ()
    space: int = 0
    greyness: int = COLOURED
    reference: Reference | None = None  # the image from which the tokens code the difference
    # Results of reading, which writing ignores.
    complete: bool = True  # the checksum is right; False for a cut or damaged file
    payload_complete: bool = True  # no payload byte is missing, as far as the header tells
    missing: int | None = 0  # bytes cut off; None if the header does not tell
    # Trailing bytes to remove so that the checksum matches; 0 if none. A cut file has another value by chance, about once in
    # 4096.
    surplus: int = 0
    header_bytes: int = 0  # 0 unless the file was read
    file_bytes: int = 0  # size of the file; 0 unless the file was read

    @property
    def section_bytes(self) -> int:
        return sum(1 + len(write_number(len(content))) + len(content) for _, content in self.sections)

    @property
    def hash(self) -> bytes:
        """The hash by which other files name this one as their reference."""
        return hash_tokens(self.stream_id, self.width, self.height, self.length, self.payload, self.reference)


def payload_max(width: int, height: int) -> int:
    """Maximum size of the payload in bytes, for an image of this size."""
    return CELL_BYTES * -(-width // CELL) * -(-height // CELL)


def overhead(file: File, payload_bytes: int) -> int:
    """Bytes of header and sections of the file if its payload had `payload_bytes`; its actual payload is ignored."""
    reference_bytes = len(write_reference(file.reference)) if file.reference else 0
    return len(_write_head(file, payload_bytes)) + CRC_BYTES + reference_bytes + file.section_bytes


def write_file(file: File) -> bytes:
    """The bytes of a file. Raises FormatError if a value is out of range."""
    if len(file.payload) > (limit := payload_max(file.width, file.height)):
        msg = f"{len(file.payload)} bytes of tokens do not fit: an image of {file.width}x{file.height} has at most {limit}"
        raise FormatError(msg)
    head = _write_head(file, len(file.payload))
    sections = (bytes([kind]) + write_number(len(content)) + content for kind, content in file.sections)
    body = (write_reference(file.reference) if file.reference else b"") + file.payload + b"".join(sections)
    return head + checksum(head, body) + body


def read_file(data: bytes, header: Header | None = None) -> File:
    """The inverse of `write_file`. A wrong checksum is not an error: see `File.complete`. A cut file keeps the sections that
    are complete. With `header`, the header is not parsed again.

    Raises FormatError as `read_header` does, and for damaged sections and bytes after the end."""
    header = header or read_header(data)
    if (surplus := len(data) - header.max_file_bytes) > 0:
        at_least = "at least " if header.file_bytes is None else ""
        msg = f"the file is damaged: {at_least}{surplus} byte{'s' * (surplus > 1)} after its end; get it again"
        raise FormatError(msg)
    head_end = header.header_bytes - header.reference_bytes
    head, body = data[: head_end - CRC_BYTES], data[head_end:]
    if len(body) < header.reference_bytes:
        raise FormatError(CUT_HEADER)
    complete = len(data) >= (header.file_bytes or 0) and checksum(head, body) == header.checksum
    missing = header.file_bytes - len(data) if header.file_bytes is not None else 0 if complete else None
    start = header.reference_bytes
    end = start + header.payload_bytes if header.payload_bytes is not None else len(body)
    reference = read_reference(body[:start], header.width, header.height) if start else None
    sections = _read_sections(body[end:], bool(missing))
    if header.transparent != (ALPHA in dict(sections)) and not missing:
        msg = "the header and the sections do not agree on transparency: the file is damaged"
        raise FormatError(msg)
    return File(
        header.width,
        header.height,
        header.stream_id,
        header.length,
        payload=body[start:end],
        sections=sections,
        space=header.space,
        greyness=header.greyness,
        reference=reference,
        complete=complete,
        payload_complete=missing is not None and end <= len(body),
        missing=missing,
        surplus=_surplus(head, body, header.checksum) if missing is None else 0,
        header_bytes=header.header_bytes,
        file_bytes=len(data),
    )


def _write_head(file: File, payload_bytes: int) -> bytes:
    """The header without its checksum."""
    longer = max(file.width, file.height)
    if min(file.width, file.height) < 1 or longer > SIDE_MAX:
        msg = f"an image of {file.width}x{file.height} does not fit: sides are 1 to {SIDE_MAX} pixels"
        raise FormatError(msg)
    size_class = next(i for i, size in enumerate(SIDE_BYTES) if longer <= 1 << 8 * size)
    kind = file.space | file.greyness << GREYNESS_SHIFT
    kind |= (TRANSPARENT if ALPHA in dict(file.sections) else 0) | (HAS_SECTIONS if file.sections else 0)
    flags = size_class | (HAS_KIND if kind else 0) | (HAS_REFERENCE if file.reference else 0)
    head = MAGIC + bytes([VERSION << 4 | flags]) + file.stream_id[:STREAM_ID_BYTES]
    head += b"".join((side - 1).to_bytes(SIDE_BYTES[size_class], "big") for side in (file.width, file.height))
    head += write_number(file.length) + (bytes([kind]) if kind else b"")
    head += write_number(payload_bytes) + write_number(file.section_bytes) if file.sections else b""
    return head + (write_number(len(write_reference(file.reference))) if file.reference else b"")


def read_header(data: bytes) -> Header:
    """The header at the start of a file. HEADER_MAX bytes are always enough.

    Raises FormatError if the data is not a .tsr file, is of another version, or ends within the header."""
    if data[:2] != MAGIC:
        msg = "not a .tsr file"
        raise FormatError(msg)
    if len(data) < 3:
        raise FormatError(CUT_HEADER)
    if (version := data[2] >> 4) != VERSION:
        msg = f"a .tsr file of version {version}, and this release reads version {VERSION}: update tessera"
        raise FormatError(msg)
    flags = data[2] & 0x0F
    if flags & 0x03 == 3:
        msg = f"unknown flags {flags:#x} in the header: the file is damaged, or from a later release"
        raise FormatError(msg)
    side = SIDE_BYTES[flags & 0x03]
    sides_end = 3 + STREAM_ID_BYTES + 2 * side
    length, end = read_number(data, sides_end)
    width, height = (int.from_bytes(data[i : i + side], "big") + 1 for i in (sides_end - 2 * side, sides_end - side))
    if max(width, height) > SIDE_MAX:
        msg = f"an image of {width}x{height}: sides are 1 to {SIDE_MAX} pixels, so the file is damaged"
        raise FormatError(msg)
    kind, payload_bytes, section_bytes = 0, None, 0
    if flags & HAS_KIND:
        if len(data) == end:
            raise FormatError(CUT_HEADER)
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
    reference_bytes = 0
    if flags & HAS_REFERENCE:
        reference_bytes, end = read_number(data, end)
        if not 0 < reference_bytes <= reference_max(width, height):
            msg = f"a reference of {reference_bytes} bytes for an image of {width}x{height}: the file is damaged"
            raise FormatError(msg)
    if len(data) < end + CRC_BYTES:
        raise FormatError(CUT_HEADER)
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
        reference_bytes=reference_bytes,
        checksum=data[end : end + CRC_BYTES],
        header_bytes=end + CRC_BYTES + reference_bytes,
    )


def _read_sections(data: bytes, cut: bool) -> Sections:
    """The sections in `data`, without an incomplete last one if the file is cut. Each type occurs at most once."""
    sections: dict[int, bytes] = {}
    position = 0
    while position < len(data):
        kind = data[position]
        if kind in sections or kind == 0:
            msg = f"two sections of type {kind}: the file is damaged" if kind else "a section of type 0: the file is damaged"
            raise FormatError(msg)
        try:
            size, start = read_number(data, position + 1)
        except FormatError:
            if cut:
                break
            raise
        if (position := start + size) > len(data):
            if cut:
                break
            msg = "the sections are longer than the header says: the file is damaged"
            raise FormatError(msg)
        sections[kind] = data[start:position]
    return tuple(sections.items())


def checksum(head: bytes, body: bytes) -> bytes:
    """The low 24 bits of the CRC-32 (ISO 3309, as in zlib and PNG) of all bytes of a file except the checksum."""
    return zlib.crc32(body, zlib.crc32(head)).to_bytes(4, "big")[-CRC_BYTES:]


def _surplus(head: bytes, body: bytes, stated: bytes) -> int:
    """Number of trailing bytes, up to SURPLUS_MAX, to remove so that the checksum matches; 0 if no number makes it match."""
    first = max(0, len(body) - SURPLUS_MAX)
    crc = zlib.crc32(body[:first], zlib.crc32(head))
    for end in range(first, len(body)):
        if crc & 0xFFFFFF == int.from_bytes(stated, "big"):
            return len(body) - end
        crc = zlib.crc32(body[end : end + 1], crc)
    return 0


def write_number(value: int) -> bytes:
    """A number of up to 28 bits as 1 to 4 bytes of 7 bits each, highest first. All but the last have their top bit set."""
    if not 0 <= value < 1 << 28:
        msg = f"{value} does not fit a number of at most 28 bits"
        raise FormatError(msg)
    out = [value & 0x7F]
    while value := value >> 7:
        out.append(value & 0x7F | 0x80)
    return bytes(reversed(out))


def read_number(data: bytes, start: int) -> tuple[int, int]:
    """The inverse of `write_number`: the number at `start`, and the position after it."""
    value = 0
    for end in range(start, min(start + 4, len(data))):
        value = value << 7 | data[end] & 0x7F
        if not data[end] & 0x80:
            if end > start and data[start] == 0x80:
                msg = "a number in the header is longer than necessary: the file is damaged"
                raise FormatError(msg)
            return value, end + 1
    msg = "a number in the header has no end: the file is cut or damaged"
    raise FormatError(msg)
