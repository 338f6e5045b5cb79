"""The range coder: symbols to bytes and back. FORMAT.md, section 6.

The coder is constriction's (a range coder after Martin 1979, 32-bit words, 64-bit state). It takes integer frequencies less
one: constriction adds one to the share of each symbol in 2^24, so its tables are exactly ours, without rounding.
"""

from __future__ import annotations

from typing import Any, TypeAlias

import constriction
import numpy as np
from numpy.typing import NDArray

from bitstream.errors import FormatError
from bitstream.sequence import TokenSequence

RangeEncoder: TypeAlias = Any  # constriction.stream.queue has no type hints
RangeDecoder: TypeAlias = Any
QUEUE = constriction.stream.queue
CATEGORICAL = constriction.stream.model.Categorical(perfect=False)
STATE_MASK = (1 << 64) - 1


def encode_tokens(sequence: TokenSequence, length: int) -> bytes:
    """The shortest payload that `bitstream.sequence.Code.decode` decodes to the first `length` tokens."""
    encoder = QUEUE.RangeEncoder()
    for symbols, weights in sequence.chunks(0, length):
        encoder.encode(symbols, CATEGORICAL, weights)
    return _shortest(encoder)


def make_decoders(payload: bytes, partial: bool) -> list[RangeDecoder]:
    """One decoder for a complete payload, two for a payload that may have been cut. One of the two reads zeros after its end,
    the other reads ones. The true continuation is between them, so symbols are certain as long as both decoders agree."""
    padding = -len(payload) % 4 + 16  # completes the last word, and adds the words that a decoder reads ahead
    padded = [payload + bytes([fill]) * padding for fill in ((0, 0xFF) if partial else (0,))]
    return [QUEUE.RangeDecoder(np.frombuffer(words, ">u4").astype(np.uint32)) for words in padded]


def read_certain(decoders: list[RangeDecoder], weights: NDArray[np.float64], digits: int) -> NDArray[np.int32]:
    """Symbols (tokens, digits) for frequencies less one (tokens x digits, values): fewer tokens if two decoders disagree.
    Raises FormatError if a single decoder finds no symbol."""
    read = [_read(decoder, weights, digits) for decoder in decoders]
    shortest = min(map(len, read))
    agreed = (read[0][:shortest] == read[-1][:shortest]).all(1)
    certain = shortest if agreed.all() else int(agreed.argmin())
    if certain < len(weights) // digits and len(decoders) == 1:
        msg = "the tokens are damaged: no encoder writes these bytes"
        raise FormatError(msg)
    return read[0][:certain]


def _read(decoder: RangeDecoder, weights: NDArray[np.float64], digits: int) -> NDArray[np.int32]:
    """Symbols (tokens, digits): fewer tokens if the bytes stand for no symbol. This happens with damaged bytes, and with padded
    ones, because the intervals of the symbols do not fill the whole range."""
    backup = decoder.clone()
    try:
        return decoder.decode(CATEGORICAL, weights).reshape(-1, digits)
    except AssertionError:
        pass
    rows = [np.zeros(0, np.int32)]
    for start in range(0, len(weights), digits):
        try:
            rows.append(backup.decode(CATEGORICAL, weights[start : start + digits]))
        except AssertionError:
            break
    return np.concatenate(rows).reshape(-1, digits)


def fit_tokens(sequence: TokenSequence, budget: int) -> tuple[int, bytes]:
    """The length of the longest prefix that takes at most `budget` bytes, and these bytes."""
    spent = np.concatenate([[0.0], sequence.bits().cumsum()])
    slack = 64  # bits: the coder ends within 4 bytes of the cost, and loses a little with every symbol of a large image
    while True:
        length = max(0, int(np.searchsorted(spent, 8 * budget - slack, side="right")) - 1)
        encoder = QUEUE.RangeEncoder()
        for symbols, weights in sequence.chunks(0, length):
            encoder.encode(symbols, CATEGORICAL, weights)
        best = _shortest(encoder)
        if len(best) <= budget or not length:
            break
        slack += 8 * (len(best) - budget) + 64
    while length < len(spent) - 1:
        for symbols, weights in sequence.chunks(length, length + 1):
            encoder.encode(symbols, CATEGORICAL, weights)
        longer = _shortest(encoder)
        if len(longer) > budget:
            break
        length, best = length + 1, longer
    return length, best


def _shortest(encoder: RangeEncoder) -> bytes:
    """The fewest bytes that, followed by zeros, are in the encoder's final interval. The encoder can go on afterwards."""
    words, (lower, size) = encoder.pos()
    sealed = encoder.get_compressed()
    # The sealed words, with every carry resolved, are a point in the interval: a number of `words` words and 64 bits.
    # The interval begins at the only number that is congruent to `lower` and below the point by less than `size`.
    head_words = max(0, words - 2)
    tail = [int(word) for word in sealed[head_words : words + 2]]
    tail += [0] * (words + 2 - head_words - len(tail))
    point = int.from_bytes(b"".join(word.to_bytes(4, "big") for word in tail), "big")
    low = point - ((point - lower) & STATE_MASK)
    high = low + size  # not in the interval
    head = sealed[:head_words].astype(">u4").tobytes()
    bits = 32 * len(tail)
    for kept in range(len(tail) * 4 + 1):
        unit = 1 << (bits - 8 * kept)
        value = -(-low // unit) * unit
        if value < min(high, 1 << bits):
            return (head + (value // unit).to_bytes(kept, "big")).rstrip(b"\0")
    msg = "the range coder's interval is empty"
    raise AssertionError(msg)
