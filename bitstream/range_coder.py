"""Tokens and bytes: the range coder. FORMAT.md, section 6.

The coder is constriction's (a range coder after Martin 1979, 32-bit words, 64-bit state). It is given whole frequencies less
one: constriction adds one to each symbol's share of 2^24, which makes its tables exactly ours, with no rounding on the way.
"""

from __future__ import annotations

from typing import Any, TypeAlias

import constriction
import numpy as np
from numpy.typing import NDArray

from bitstream.errors import FormatError
from bitstream.sequence import TokenSequence

RangeEncoder: TypeAlias = Any  # of constriction.stream.queue, which has no type hints
RangeDecoder: TypeAlias = Any
QUEUE = constriction.stream.queue
FAMILY = constriction.stream.model.Categorical(perfect=False)
MASK = (1 << 64) - 1


def encode_tokens(sequence: TokenSequence, length: int) -> bytes:
    """The shortest bytes from which `Code.decode` reads the first `length` tokens."""
    encoder = QUEUE.RangeEncoder()
    for symbols, weights in sequence.chunks(0, length):
        encoder.encode(symbols, FAMILY, weights)
    return _shortest(encoder)


def _shortest(encoder: RangeEncoder) -> bytes:
    """The fewest bytes that, followed by zeros, lie in the encoder's final interval."""
    words, (lower, size) = encoder.pos()
    sealed = encoder.get_compressed()
    # A point in the interval, as `words` whole words and 64 bits more; the sealed words are one, with every carry resolved.
    # The interval begins at the only number that is congruent to `lower`, below the point by less than `size`.
    tail = max(0, words - 2)
    cut = [int(word) for word in sealed[tail : words + 2]]
    cut += [0] * (words + 2 - tail - len(cut))
    point = int.from_bytes(b"".join(word.to_bytes(4, "big") for word in cut), "big")
    low = point - ((point - lower) & MASK)
    high = low + size  # not in the interval
    head = sealed[:tail].astype(">u4").tobytes()
    bits = 32 * len(cut)
    for kept in range(len(cut) * 4 + 1):
        unit = 1 << (bits - 8 * kept)
        value = -(-low // unit) * unit
        if value < min(high, 1 << bits):
            return (head + (value // unit).to_bytes(kept, "big")).rstrip(b"\0")
    msg = "the range coder's interval is empty"
    raise AssertionError(msg)


def fit_tokens(sequence: TokenSequence, budget: int) -> tuple[int, bytes]:
    """The longest sequence whose bytes are at most `budget`, and these bytes."""
    spent = np.concatenate([[0.0], sequence.bits().cumsum()])
    slack = 64  # bits: the coder ends within 4 bytes, and loses some more in large images, a little with every symbol
    while True:
        length = max(0, int(np.searchsorted(spent, 8 * budget - slack, side="right")) - 1)
        encoder = QUEUE.RangeEncoder()
        for symbols, weights in sequence.chunks(0, length):
            encoder.encode(symbols, FAMILY, weights)
        best = _shortest(encoder)
        if len(best) <= budget or not length:
            break
        slack += 8 * (len(best) - budget) + 64
    while length < len(spent) - 1:
        for symbols, weights in sequence.chunks(length, length + 1):
            encoder.encode(symbols, FAMILY, weights)
        longer = _shortest(encoder)
        if len(longer) > budget:
            break
        length, best = length + 1, longer
    return length, best


def decoders_of(payload: bytes, partial: bool) -> list[RangeDecoder]:
    """One decoder for a whole payload; two for one that may have been cut: it is read once as if zeros followed and once as if
    ones did, and tokens are certain as long as both agree, since the coder's value lies between the two."""
    return [QUEUE.RangeDecoder(_words(payload, fill)) for fill in ((0, 0xFF) if partial else (0,))]


def read_certain(decoders: list[RangeDecoder], weights: NDArray[np.float64], digits: int) -> NDArray[np.int32]:
    """Symbols (tokens, D) for frequencies less one (tokens x D, values); fewer tokens where two decoders come to disagree.
    Raises FormatError where a single decoder finds none."""
    read = [_read(decoder, weights, digits) for decoder in decoders]
    shortest = min(map(len, read))
    agreed = (read[0][:shortest] == read[-1][:shortest]).all(1)
    certain = shortest if agreed.all() else int(agreed.argmin())
    if certain < len(weights) // digits and len(decoders) == 1:
        msg = "the tokens are damaged: no encoder writes these bytes"
        raise FormatError(msg)
    return read[0][:certain]


def _read(decoder: RangeDecoder, weights: NDArray[np.float64], digits: int) -> NDArray[np.int32]:
    """Symbols (tokens, D); fewer where the bytes lead to none. That happens to damaged bytes, and to cut ones filled up:
    the intervals of the symbols do not quite fill the interval that they share."""
    before = decoder.clone()
    try:
        return decoder.decode(FAMILY, weights).reshape(-1, digits)
    except AssertionError:
        pass
    rows = [np.zeros(0, np.int32)]
    for start in range(0, len(weights), digits):
        try:
            rows.append(before.decode(FAMILY, weights[start : start + digits]))
        except AssertionError:
            break
    return np.concatenate(rows).reshape(-1, digits)


def _words(payload: bytes, fill: int) -> NDArray[np.uint32]:
    """Big-endian words, with two words or more of `fill` behind: as far as the coder looks ahead."""
    padded = payload + bytes([fill]) * (-len(payload) % 4 + 16)
    return np.frombuffer(padded, ">u4").astype(np.uint32)
