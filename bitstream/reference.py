"""The reference of a file: the image from which its tokens code the difference. FORMAT.md, section 10."""

from __future__ import annotations

import hashlib
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from bitstream.errors import FormatError

SQUARE = 64  # pixels
HASH_BYTES = 8
NAME_MAX = 255  # bytes
MOTION_MAX = (1 << 15) - 1  # pixels
OFFSET_CHANNELS = 3  # flat colours, the first channels of the latents
OFFSET_STEP, OFFSET_MAX = 1 / 32, 127
OF_PIXELS, HAS_MOTION, HAS_SQUARES, HAS_OFFSETS = 1, 2, 4, 8  # bits of the first byte
NO_OFFSETS = (0,) * OFFSET_CHANNELS
FIXED_MAX = 1 + HASH_BYTES + 4 + OFFSET_CHANNELS + NAME_MAX  # bytes, without those for squares


@dataclass(frozen=True)
class Reference:
    """Names an image, and how it is used."""

    hash: bytes  # HASH_BYTES bytes, from `hash_tokens` or `hash_pixels`
    of_pixels: bool = False  # whether the reference is an image file, hashed by its pixels, and not a .tsr file
    motion: tuple[int, int] = (0, 0)  # rows and columns that the reference moves down and to the right
    offsets: tuple[int, ...] = NO_OFFSETS  # added to the first channels of its latents, in OFFSET_STEP: other light
    squares: bytes = b""  # a bit per square that uses the reference, row by row, highest bit first; empty if all do
    name: str = ""  # a hint: the name of the reference's file, without a folder

    def uses(self, width: int, height: int) -> NDArray[np.bool_]:
        """(rows, columns) mask of the squares that use the reference, for an image of width x height pixels."""
        rows, columns = squares_of(width, height)
        if not self.squares:
            return np.ones((rows, columns), np.bool_)
        bits = np.unpackbits(np.frombuffer(self.squares, np.uint8), count=rows * columns)
        return bits.reshape(rows, columns).astype(np.bool_)


def squares_of(width: int, height: int) -> tuple[int, int]:
    """Rows and columns of squares that cover an image. The last row and column may extend beyond it."""
    return -(-height // SQUARE), -(-width // SQUARE)


def pack_squares(uses: NDArray[np.bool_]) -> bytes:
    """The inverse of `Reference.uses`."""
    return b"" if uses.all() else np.packbits(uses).tobytes()


def reference_max(width: int, height: int) -> int:
    """Maximum size of a reference in bytes, for an image of this size."""
    rows, columns = squares_of(width, height)
    return FIXED_MAX + -(-rows * columns // 8)


def write_reference(reference: Reference) -> bytes:
    """The bytes of a reference, without its name if readers would refuse that."""
    name = reference.name.encode(errors="surrogateescape")
    return _write_without_name(reference) + (name if _is_file_name(name) else b"")


def _write_without_name(reference: Reference) -> bytes:
    parts = {
        HAS_MOTION: b"".join(part.to_bytes(2, "big", signed=True) for part in reference.motion if any(reference.motion)),
        HAS_OFFSETS: b"".join(part.to_bytes(1, "big", signed=True) for part in reference.offsets if any(reference.offsets)),
        HAS_SQUARES: reference.squares,
    }
    kind = sum(bit for bit, part in parts.items() if part) + (OF_PIXELS if reference.of_pixels else 0)
    return bytes([kind]) + reference.hash + b"".join(parts.values())


def read_reference(data: bytes, width: int, height: int) -> Reference:
    """The inverse of `write_reference`, for an image of width x height pixels. Raises FormatError if it is damaged."""
    kind = data[0] if data else 0xFF
    if kind & ~(OF_PIXELS | HAS_MOTION | HAS_SQUARES | HAS_OFFSETS):
        msg = f"unknown kind of reference {kind:#x}: the file is damaged, or from a later release"
        raise FormatError(msg)
    rows, columns = squares_of(width, height)
    sizes = {HAS_MOTION: 4, HAS_OFFSETS: OFFSET_CHANNELS, HAS_SQUARES: -(-rows * columns // 8)}
    parts, at = {}, 1 + HASH_BYTES
    for bit, size in sizes.items():
        end = at + (size if kind & bit else 0)
        parts[bit], at = data[at:end], end
    motion = [int.from_bytes(parts[HAS_MOTION][i : i + 2], "big", signed=True) for i in (0, 2)]
    offsets = [int.from_bytes(parts[HAS_OFFSETS][i : i + 1], "big", signed=True) for i in range(OFFSET_CHANNELS)]
    reference = Reference(
        hash=data[1 : 1 + HASH_BYTES],
        of_pixels=bool(kind & OF_PIXELS),
        motion=(motion[0], motion[1]),
        offsets=tuple(offsets),
        squares=parts[HAS_SQUARES],
        name=data[at:].decode(errors="replace"),
    )
    if write_reference(reference) != data or len(data) < at:  # also a name that is not allowed
        msg = "the reference is damaged: get the file again"
        raise FormatError(msg)
    return reference


def _is_file_name(name: bytes) -> bool:
    """Whether bytes are a file name in UTF-8 without a folder, so that a file cannot name others elsewhere."""
    try:
        text = name.decode()
    except UnicodeDecodeError:
        return False
    return 0 < len(name) <= NAME_MAX and text not in (".", "..") and not set("/\\:\0") & set(text)


def hash_tokens(
    stream_id: bytes, width: int, height: int, length: int, payload: bytes, reference: Reference | None = None
) -> bytes:
    """The hash of a .tsr file that is used as a reference. It covers the tokens, and the file's own reference."""
    own = _write_without_name(reference) if reference else b""
    numbers = b"".join(number.to_bytes(4, "big") for number in (width, height, length, len(own)))
    return hashlib.sha256(stream_id + numbers + own + payload).digest()[:HASH_BYTES]


def hash_pixels(pixels: NDArray[np.uint8]) -> bytes:
    """The hash of an image (H, W, 3) that is used as a reference."""
    height, width = pixels.shape[:2]
    size = b"".join(number.to_bytes(4, "big") for number in (width, height))
    return hashlib.sha256(size + np.ascontiguousarray(pixels).tobytes()).digest()[:HASH_BYTES]
