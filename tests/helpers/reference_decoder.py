"""The reference decoder, written from FORMAT.md alone: slow, plain, in Python integers. It shares no code with the codec."""

from __future__ import annotations

import hashlib
import lzma
import zlib

import numpy as np


def read_header(data: bytes) -> tuple:
    """Width, height, length, payload and sections by type, with the reference as type 0. The checksum must be right."""
    assert data[:2] == b"\xd4T"
    assert data[2] >> 4 == 1
    size = (1, 2, 4)[data[2] & 3]
    width, height = (1 + int.from_bytes(data[5 + i * size : 5 + (i + 1) * size], "big") for i in (0, 1))
    length, at = read_number(data, 5 + 2 * size)
    image_kind = payload_size = sections_size = reference_size = 0
    if data[2] & 4:
        image_kind, at = data[at], at + 1
    if image_kind & 128:
        payload_size, at = read_number(data, at)
        sections_size, at = read_number(data, at)
    if data[2] & 8:
        reference_size, at = read_number(data, at)
    assert zlib.crc32(data[:at] + data[at + 3 :]) % 2**24 == int.from_bytes(data[at : at + 3], "big")
    at += 3
    sections = {0: data[at : at + reference_size]} if reference_size else {}
    at += reference_size
    if not image_kind & 128:
        return width, height, length, data[at:], sections
    assert len(data) == at + payload_size + sections_size
    payload, at = data[at : at + payload_size], at + payload_size
    while at < len(data):
        kind = data[at]
        size, at = read_number(data, at + 1)
        sections[kind] = data[at : at + size]
        at += size
    assert (1 in sections) == (image_kind & 64 > 0)
    return width, height, length, payload, sections


def read_number(data: bytes, at: int) -> tuple[int, int]:
    value = 0
    while True:
        value = value * 128 + data[at] % 128
        at += 1
        if data[at - 1] < 128:
            return value, at


def read_reference(data: bytes) -> dict:
    """The reference of a file, section 10."""
    width, height, *_, sections = read_header(data)
    content, squares = sections[0], ceil(width, 64) * ceil(height, 64)
    kind, content_hash, at = content[0], content[1:9].hex(), 9
    motion, offsets, uses = [0, 0], [0, 0, 0], [1] * squares
    if kind & 2:
        motion = [int.from_bytes(content[i : i + 2], "big", signed=True) for i in (9, 11)]
        at += 4
    if kind & 8:
        offsets = [int.from_bytes(content[at + i : at + i + 1], "big", signed=True) for i in range(3)]
        at += 3
    if kind & 4:
        uses = [content[at + i // 8] >> (7 - i % 8) & 1 for i in range(squares)]
        at += ceil(squares, 8)
    name = content[at:].decode()
    return {"pixels": kind & 1, "hash": content_hash, "motion": motion, "offsets": offsets, "uses": uses, "name": name}


def hash_of_file(data: bytes) -> str:
    """The hash that other files name this one by."""
    width, height, length, payload, sections = read_header(data)
    own = sections.get(0, b"")
    if own:
        name = read_reference(data)["name"].encode()
        own = own[: len(own) - len(name)]
    numbers = b"".join(number.to_bytes(4, "big") for number in (width, height, length, len(own)))
    return hashlib.sha256(data[3:5] + numbers + own + payload).hexdigest()[:16]


def unpack(content: bytes) -> bytes:
    return lzma.decompress(content, lzma.FORMAT_RAW, filters=[{"id": lzma.FILTER_LZMA2, "dict_size": 2**20}])


def ceil(a: int, b: int) -> int:
    return -(-a // b)


def contexts_of(arrays: dict[str, np.ndarray], level: int, planes: np.ndarray) -> np.ndarray:
    """Input planes (K, n, m) int64 -> table indexes (D, n, m)."""
    shifts = arrays[f"prior.{level}.shifts"]
    x = planes
    for layer in range(len(shifts)):
        weight = arrays[f"prior.{level}.{layer}.weight"].astype(np.int64)
        total = np.zeros((len(weight), *x.shape[1:]), np.int64) + arrays[f"prior.{level}.{layer}.bias"][:, None, None]
        k = weight.shape[2] // 2
        padded = np.pad(x, ((0, 0), (k, k), (k, k)))
        for dy in range(2 * k + 1):
            for dx in range(2 * k + 1):
                window = padded[:, dy : dy + x.shape[1], dx : dx + x.shape[2]]
                total += np.einsum("ok,kyx->oyx", weight[:, :, dy, dx], window)
        top = 4095 if layer < len(shifts) - 1 else len(arrays[f"prior.{level}.costs"]) - 1
        x = np.clip(total >> int(shifts[layer]), 0, top)
    return x


class RangeDecoder:
    def __init__(self, payload: bytes) -> None:
        self.bytes = iter(payload)
        self.low, self.range, self.point = 0, 2**64 - 1, self.take(8)

    def take(self, count: int) -> int:
        return int.from_bytes(bytes(next(self.bytes, 0) for _ in range(count)), "big")

    def digit(self, frequencies: np.ndarray) -> int:
        return self.symbol(frequencies) - len(frequencies) // 2

    def symbol(self, frequencies: np.ndarray) -> int:
        scale = self.range >> 24
        q = (self.point - self.low) % 2**64 // scale
        assert q < 2**24
        start = symbol = 0
        while start + int(frequencies[symbol]) <= q:
            start += int(frequencies[symbol])
            symbol += 1
        self.low = (self.low + scale * start) % 2**64
        self.range = scale * int(frequencies[symbol])
        if self.range < 2**32:
            self.low = self.low * 2**32 % 2**64
            self.range *= 2**32
            self.point = (self.point * 2**32 + self.take(4)) % 2**64
        return symbol


def z_order_key(y: int, x: int, bits: int) -> int:
    key = 0
    for bit in range(bits):
        key = key * 4 + (y >> bit) % 2 * 2 + (x >> bit) % 2
    return key


def context_grids(levels: list[dict], level: int) -> list[list[int]]:
    grids: list[list[int]] = []
    for j in range(level + 1):
        if levels[j].get("part", 0) == 2:
            grids[-1].append(j)
        else:
            grids.append([j])
    own = [j for j in grids.pop() if j < level]
    return grids[-3:] + ([own] if own else [])


def decode(data: bytes, levels: list[dict], arrays: dict[str, np.ndarray]) -> list[np.ndarray]:
    """Digits (D, n, m) of each level; 0 for unknown tokens."""
    width, height, length, payload, _ = read_header(data)
    decoder, digits = RangeDecoder(payload), []
    for i, level in enumerate(levels):
        rows, columns = (ceil(ceil(side, 16), 16 // level["side"]) for side in (height, width))
        digits.append(np.zeros((level["digits"], rows, columns), np.int64))
        if not length:
            continue
        planes = np.zeros((1, rows, columns), np.int64)
        if i:
            grids = []
            for grid in context_grids(levels, i):
                r = level["side"] // levels[grid[0]]["side"]
                magnitudes = sum(np.abs(digits[j]) for j in grid)
                grids += [[[plane[y // r][x // r] for x in range(columns)] for y in range(rows)] for plane in magnitudes]
            planes = np.array(grids)
        contexts = contexts_of(arrays, i, planes)
        cost = arrays[f"prior.{i}.costs"].astype(np.int64)[contexts].sum(0)
        bits = max(1, (max(rows, columns) - 1).bit_length())
        part = level.get("part", 0)
        positions = [(y, x) for y in range(rows) for x in range(columns) if part == 0 or (y + x) % 2 == part - 1]
        positions.sort(key=lambda p: (-int(cost[p]), z_order_key(*p, bits)))
        for y, x in positions[:length]:
            for d in range(level["digits"]):
                digits[i][d, y, x] = decoder.digit(arrays[f"prior.{i}.frequencies"][contexts[d, y, x]])
        length -= min(length, len(positions))
    return digits


def decode_digits(
    data: bytes, levels: list[int], arrays: dict[str, np.ndarray], cell: int = 0, side: int = 256
) -> dict[tuple[int, ...], list[int]]:
    """Digits of each known token of section 9, by its cell (row, column), or by its position in a row and its block."""
    width, height, length, payload, _ = read_header(data)
    rows, columns = (ceil(edge, cell or side) for edge in (height, width))
    squares = sorted(np.ndindex(rows, columns), key=lambda p: z_order_key(*p, max(1, (max(rows, columns) - 1).bit_length())))
    tokens = squares if cell else [(position, *block) for position in range(len(arrays["picks"])) for block in squares]
    split = max(levels) > 512
    half = 2 ** ceil((levels[0] - 1).bit_length(), 2)
    limits = [ceil(levels[0], half), half] if split else levels
    decoder, symbols = RangeDecoder(payload), {}
    for token in tokens[:length]:
        pick, neighbours = pick_of_cell(*token, rows, columns) if cell else pick_in_row(*token)
        own: list[int] = []
        for i, limit in enumerate(limits):
            first, neighbour_step, symbol_step = arrays["picks"][pick][i].tolist()
            classes = [int(c[i][symbols[n][i]]) for c, n in zip(arrays["classes"], neighbours, strict=False)]
            table = first + neighbour_step * sum(classes) + (symbol_step * own[-1] if i else 0)
            own.append(decoder.symbol(arrays["tables"][table]))
            assert own[-1] < limit
        symbols[token] = own
    if not split:
        return symbols
    return {token: [arrays["ranks"].tolist().index(high * half + low)] for token, (high, low) in symbols.items()}


def pick_in_row(position: int, y: int, x: int) -> tuple[int, list[tuple[int, ...]]]:
    return position, [(position - 1, y, x)] if position else []


def pick_of_cell(y: int, x: int, rows: int, columns: int) -> tuple[int, list[tuple[int, ...]]]:
    if y == x == 0:
        return 0, []
    s = 1
    while y % (2 * s) == x % (2 * s) == 0:
        s *= 2
    neighbours = []
    if x // s % 2:
        neighbours += [(y, x - s), (y, x + s if x + s < columns else x - s)]
    if y // s % 2:
        neighbours += [(y - s, x), (y + s if y + s < rows else y - s, x)]
    return 3 * min(3, s.bit_length() - 1) + 2 * (y // s % 2) + x // s % 2, neighbours
