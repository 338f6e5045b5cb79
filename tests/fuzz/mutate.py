"""Seeded damage to .tsr files: mutation i of a seed is the same in every run and on every machine."""

from __future__ import annotations

import lzma
from collections.abc import Callable
from functools import cache

import numpy as np

from bitstream.container import (
    ALPHA,
    CRC_BYTES,
    HAS_KIND,
    HAS_REFERENCE,
    HAS_SECTIONS,
    MAGIC,
    SIDE_BYTES,
    STREAM_ID_BYTES,
    TRANSPARENT,
    VERSION,
    checksum,
    read_file,
    read_header,
    write_number,
)
from codec.image.metadata import pack

Rng = np.random.Generator
SIDES = (1, 2, 15, 16, 17, 255, 256, 257, 300, 4096, 65535, 65536, 1 << 24)
NAMES = (b"block.tsr", b"against.tsr", b"../check.py", b"x")
NUMBERS = (0, 1, 9, 127, 128, 1365, 16383, 16384, (1 << 28) - 1)


def mutation(corpus: list[bytes], seed: int, index: int) -> tuple[bytes, bool]:
    """Damaged bytes, and whether their checksum was corrected: then they are a valid file with another meaning."""
    rng = np.random.default_rng([seed, index])
    data = corpus[int(rng.integers(len(corpus)))]
    if rng.random() < 0.5:
        for _ in range(int(rng.integers(1, 4))):
            data = PLAIN[int(rng.integers(len(PLAIN)))](data, corpus, rng)
        return data, False
    return FORGED[int(rng.integers(len(FORGED)))](data, rng), True


def _flip(data: bytes, corpus: list[bytes], rng: Rng) -> bytes:
    out = bytearray(data)
    for _ in range(int(rng.integers(1, 9)) if out else 0):
        out[int(rng.integers(len(out)))] ^= 1 << int(rng.integers(8))
    return bytes(out)


def _set(data: bytes, corpus: list[bytes], rng: Rng) -> bytes:
    at = int(rng.integers(len(data) + 1))
    return data[:at] + bytes([int(rng.choice([0, 1, 0x7F, 0x80, 0xFF, int(rng.integers(256))]))]) + data[at + 1 :]


def _cut(data: bytes, corpus: list[bytes], rng: Rng) -> bytes:
    return data[: int(rng.integers(len(data) + 1))]


def _extend(data: bytes, corpus: list[bytes], rng: Rng) -> bytes:
    return data + rng.bytes(int(rng.integers(1, 40)))


def _drop(data: bytes, corpus: list[bytes], rng: Rng) -> bytes:
    start, end = sorted(int(at) for at in rng.integers(len(data) + 1, size=2))
    return data[:start] + data[end:]


def _repeat(data: bytes, corpus: list[bytes], rng: Rng) -> bytes:
    start, end = sorted(int(at) for at in rng.integers(len(data) + 1, size=2))
    return data[:end] + data[start:]


def _splice(data: bytes, corpus: list[bytes], rng: Rng) -> bytes:
    other = corpus[int(rng.integers(len(corpus)))]
    return data[: int(rng.integers(len(data) + 1))] + other[int(rng.integers(len(other) + 1)) :]


def _random(data: bytes, corpus: list[bytes], rng: Rng) -> bytes:
    return (MAGIC + bytes([VERSION << 4 | int(rng.integers(16))])) * int(rng.integers(2)) + rng.bytes(int(rng.integers(120)))


PLAIN: tuple[Callable[[bytes, list[bytes], Rng], bytes], ...] = (
    _flip, _flip, _set, _cut, _extend, _drop, _repeat, _splice, _random,
)  # fmt: skip


def forge(
    width: int,
    height: int,
    stream_id: bytes,
    length: int,
    body: bytes,
    kind: int = 0,
    sizes: tuple[int, ...] = (),
    reference: bytes = b"",
) -> bytes:
    """A file with any content and a valid checksum. `body` follows the checksum; `sizes` are the sizes of its parts as the
    header states them."""
    size = next((i for i, count in enumerate(SIDE_BYTES) if max(width, height) <= 1 << 8 * count), len(SIDE_BYTES) - 1)
    head = MAGIC + bytes([VERSION << 4 | size | (HAS_KIND if kind else 0) | (HAS_REFERENCE if reference else 0)]) + stream_id
    head += b"".join((side - 1).to_bytes(SIDE_BYTES[size], "big") for side in (width, height)) + write_number(length)
    head += bytes([kind] if kind else []) + b"".join(map(write_number, sizes))
    head += write_number(len(reference)) if reference else b""
    body = reference + body
    return head + checksum(head, body) + body


def _sizes(data: bytes, rng: Rng) -> bytes:
    """Sides of up to 2^24 pixels."""
    file = read_file(data)
    sides = [int(rng.choice(SIDES)) if rng.random() < 0.8 else int(rng.integers(1, 400)) for _ in range(2)]
    return forge(*sides, file.stream_id, file.length, file.payload)


def _length(data: bytes, rng: Rng) -> bytes:
    file = read_file(data)
    length = int(rng.choice(NUMBERS)) if rng.random() < 0.5 else int(rng.integers(2000))
    return forge(file.width, file.height, file.stream_id, length, file.payload)


def _payload(data: bytes, rng: Rng) -> bytes:
    """A payload that no encoder wrote."""
    file = read_file(data)
    payload = rng.bytes(int(rng.integers(200))) if rng.random() < 0.5 else _flip(file.payload, [], rng)
    return forge(file.width, file.height, file.stream_id, file.length, payload)


def _model(data: bytes, rng: Rng) -> bytes:
    file = read_file(data)
    return forge(file.width, file.height, rng.bytes(STREAM_ID_BYTES), file.length, file.payload)


def _any_header(data: bytes, rng: Rng) -> bytes:
    """Random bytes in the header, and a checksum that matches them."""
    file = read_file(data)
    end = file.header_bytes - read_header(data).reference_bytes
    head = bytearray(data[: end - CRC_BYTES])
    for _ in range(int(rng.integers(1, 4))):
        head[int(rng.integers(2, len(head)))] = int(rng.integers(256))
    body = data[end:]
    return bytes(head) + checksum(bytes(head), body) + body


def _reference(data: bytes, rng: Rng) -> bytes:
    """A reference to a file of the corpus or to none, used in any way."""
    file = read_file(data)
    hashes = [file.reference.hash] if file.reference else [file.hash]
    content = bytes([int(rng.integers(8 if rng.random() < 0.9 else 256))]) + (hashes[0] if rng.random() < 0.7 else rng.bytes(8))
    content += rng.bytes(int(rng.integers(8))) + NAMES[int(rng.integers(len(NAMES)))] * int(rng.integers(3))
    return forge(file.width, file.height, file.stream_id, file.length, file.payload, reference=content)


def _sections(data: bytes, rng: Rng) -> bytes:
    """Sections of any type, number, size and content."""
    file = read_file(data)
    body = b""
    for _ in range(int(rng.integers(1, 4)) if rng.random() < 0.95 else 600):
        content = _content(file.width * file.height, rng)
        size = len(content) if rng.random() < 0.8 else int(rng.choice(NUMBERS))
        body += bytes([int(rng.choice([1, 2, 3, 4, int(rng.integers(256))]))]) + write_number(size) + content
    sizes = [len(file.payload), len(body)]
    for index in range(2):
        if rng.random() < 0.1:
            sizes[index] = int(rng.choice(NUMBERS)) if rng.random() < 0.5 else max(0, sizes[index] + int(rng.integers(-2, 3)))
    kind = HAS_SECTIONS | (TRANSPARENT if (body[0] == ALPHA) != (rng.random() < 0.1) else 0)
    return forge(file.width, file.height, file.stream_id, file.length, file.payload + body, kind, tuple(sizes))


def _content(pixels: int, rng: Rng) -> bytes:
    kind = int(rng.integers(6))
    if kind == 0:
        return rng.bytes(int(rng.integers(60)))
    if kind == 1:
        return _bomb(int(rng.choice([24, 26, 28])))
    good = pack(bytes(max(0, pixels + int(rng.integers(-1, 2))))) if kind < 4 else pack(rng.bytes(int(rng.integers(200))))
    good = bytes([int(rng.integers(5))]) * int(rng.integers(2)) + good  # an alpha plane begins with a byte like this
    return good if kind != 5 else _flip(good, [], rng)


@cache
def _bomb(bits: int) -> bytes:
    """A few kB that unpack to 2^bits bytes."""
    filters = [{"id": lzma.FILTER_LZMA2, "preset": 0, "dict_size": 1 << 20}]
    packer = lzma.LZMACompressor(lzma.FORMAT_RAW, filters=filters)
    return b"".join(packer.compress(bytes(1 << 20)) for _ in range(1 << bits - 20)) + packer.flush()


FORGED: tuple[Callable[[bytes, Rng], bytes], ...] = (
    _sizes,
    _length,
    _payload,
    _payload,
    _model,
    _any_header,
    _reference,
    _sections,
    _sections,
)
