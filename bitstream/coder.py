"""Tokens and bytes: the order of tokens, and the range coder. FORMAT.md, sections 4 and 6.

The coder is constriction's (a range coder after Martin 1979, 32-bit words, 64-bit state). It is given whole frequencies less
one: constriction adds one to each symbol's share of 2^24, which makes its tables exactly ours, with no rounding on the way.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any, Protocol, TypeAlias

import constriction
import numpy as np
from numpy.typing import NDArray

from bitstream.errors import FormatError
from bitstream.layout import Layout, in_part, spread
from bitstream.prior import PRECISION, LevelPrior, Prior

CHUNK = 1 << 18  # digits handed to the coder in one go, to bound memory
RangeEncoder: TypeAlias = Any  # of constriction.stream.queue, which has no type hints
RangeDecoder: TypeAlias = Any
QUEUE = constriction.stream.queue
FAMILY = constriction.stream.model.Categorical(perfect=False)
MASK = (1 << 64) - 1


@dataclass(frozen=True)
class Tokens:
    """The digits of a picture's tokens, and which of them are known."""

    digits: tuple[NDArray[np.int8], ...]  # (D, n, m) a level; 0 where not known
    known: tuple[NDArray[np.bool_], ...]  # (n, m) a level

    @property
    def length(self) -> int:
        return int(sum(known.sum() for known in self.known))


class Sendable(Protocol):
    """All tokens of a picture in the order they are sent, of whatever family of models."""

    def bits(self) -> NDArray[np.float64]:
        """(tokens,) cost of each token under the tables."""

    def chunks(self, first: int, last: int) -> Iterator[tuple[NDArray[np.int32], NDArray[np.float64]]]:
        """The symbols (S,) of tokens first..last, counted from 0, and the frequencies less one (S, values) that each is coded
        with, some at a time."""


@dataclass(frozen=True)
class Sequence:
    """All tokens of a picture in the order they are sent, with the classes that their digits are coded under."""

    prior: Prior
    symbols: tuple[NDArray[np.int8], ...]  # (tokens, D) digits, a level each
    classes: tuple[NDArray[np.uint8], ...]  # (tokens, D)
    orders: tuple[NDArray[np.int64], ...]  # (tokens,) places of tokens in reading order

    def bits(self) -> NDArray[np.float64]:
        parts = []
        for prior, symbols, classes in zip(self.prior.priors, self.symbols, self.classes, strict=True):
            price = PRECISION - np.log2(prior.frequencies)
            limit = prior.frequencies.shape[1] // 2
            step = max(1, CHUNK // symbols.shape[1])
            for start in range(0, len(symbols), step):
                part = slice(start, start + step)
                parts.append(price[classes[part], symbols[part].astype(np.intp) + limit].sum(1))
        return np.concatenate(parts)

    def chunks(self, first: int, last: int) -> Iterator[tuple[NDArray[np.int32], NDArray[np.float64]]]:
        start = 0
        for prior, symbols, classes in zip(self.prior.priors, self.symbols, self.classes, strict=True):
            limit = prior.frequencies.shape[1] // 2
            step = max(1, CHUNK // symbols.shape[1])
            low, high = max(0, first - start), min(len(symbols), last - start)
            for at in range(low, high, step):
                part = slice(at, min(high, at + step))
                yield symbols[part].ravel().astype(np.int32) + limit, _weights(prior, classes[part])
            start += len(symbols)


def order_of(prior: LevelPrior, classes: NDArray[np.uint8], part: int) -> NDArray[np.int64]:
    """(tokens,) places in reading order of the tokens of a part of the grid, dearest token first; ties by `spread`."""
    rows, columns = classes.shape[1:]
    costs = prior.costs.astype(np.int64)
    cost = np.concatenate([costs[classes[:, row]].sum(0) for row in range(rows)])  # row by row, to bound memory
    places = np.flatnonzero(in_part(part, rows, columns))
    return places[np.lexsort((spread(rows, columns)[places], -cost[places]))]


def sequence_of(
    prior: Prior, layout: Layout, digits: tuple[NDArray[np.int8], ...], classes: tuple[NDArray[np.uint8], ...] | None = None
) -> Sequence:
    """Puts the digits of all levels, (D, n, m) each, into the order they are sent. `classes`, what the prior says of them, are
    computed where they are not at hand."""
    sent, under, orders = [], [], []
    for index in range(len(prior.levels)):
        chosen = classes[index] if classes else prior.classes(index, prior.context(layout, index, list(digits[:index])))
        order = order_of(prior.priors[index], chosen, prior.levels[index].part)
        sent.append(in_order(digits[index], order))
        under.append(in_order(chosen, order))
        orders.append(order)
    return Sequence(prior, tuple(sent), tuple(under), tuple(orders))


def first_tokens(sequence: Sequence, layout: Layout, length: int) -> Tokens:
    """What `decode_tokens` reads of the first `length` tokens."""
    digits, known = [], []
    parts = zip(layout.grids, layout.split(length), sequence.symbols, sequence.orders, strict=True)
    for (rows, columns), kept, symbols, order in parts:
        digits.append(np.zeros((symbols.shape[1], rows, columns), np.int8))
        known.append(np.zeros((rows, columns), np.bool_))
        digits[-1].reshape(symbols.shape[1], -1)[:, order[:kept]] = symbols[:kept].T
        known[-1].ravel()[order[:kept]] = True
    return Tokens(tuple(digits), tuple(known))


def in_order(grid: NDArray, order: NDArray[np.int64]) -> NDArray:
    """(D, n, m) in reading order -> (tokens, D) as sent."""
    return np.ascontiguousarray(grid.reshape(len(grid), -1).T[order])


def _weights(prior: LevelPrior, classes: NDArray[np.uint8]) -> NDArray[np.float64]:
    return (prior.frequencies - 1).astype(np.float64)[classes.ravel()]


def encode_tokens(sequence: Sendable, length: int) -> bytes:
    """The shortest bytes from which `decode_tokens` reads the first `length` tokens."""
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


def fit_tokens(sequence: Sendable, budget: int) -> tuple[int, bytes]:
    """The longest sequence whose bytes are at most `budget`, and these bytes."""
    spent = np.concatenate([[0.0], sequence.bits().cumsum()])
    length = int(np.searchsorted(spent, 8 * budget - 64, side="right")) - 1  # surely fits: the coder ends within 4 bytes
    length = max(0, length)
    encoder = QUEUE.RangeEncoder()
    for symbols, weights in sequence.chunks(0, length):
        encoder.encode(symbols, FAMILY, weights)
    best = _shortest(encoder)
    while length < len(spent) - 1:
        for symbols, weights in sequence.chunks(length, length + 1):
            encoder.encode(symbols, FAMILY, weights)
        longer = _shortest(encoder)
        if len(longer) > budget:
            break
        length, best = length + 1, longer
    return length, best


def decode_tokens(prior: Prior, layout: Layout, payload: bytes, length: int, partial: bool = False) -> Tokens:
    """The inverse of `encode_tokens`.

    With `partial` the payload may have been cut: it is read once as if zeros followed and once as if ones did, and tokens
    are certain as long as both agree, since the coder's value lies between the two. Raises FormatError for bytes that no
    encoder writes."""
    decoders = decoders_of(payload, partial)
    digits: list[NDArray[np.int8]] = []
    known: list[NDArray[np.bool_]] = []
    for index, ((rows, columns), kept) in enumerate(zip(layout.grids, layout.split(length), strict=True)):
        level = prior.levels[index]
        digits.append(np.zeros((level.digits, rows, columns), np.int8))
        known.append(np.zeros((rows, columns), np.bool_))
        if not kept:
            continue
        classes = prior.classes(index, prior.context(layout, index, digits))
        order = order_of(prior.priors[index], classes, level.part)[:kept]
        sent = _decode_level(prior.priors[index], decoders, in_order(classes, order))
        order = order[: len(sent)]
        digits[index].reshape(level.digits, -1)[:, order] = sent.T
        known[index].ravel()[order] = True
        if len(sent) < kept:  # all that follows is unknown
            for later in range(index + 1, len(prior.levels)):
                digits.append(np.zeros((prior.levels[later].digits, *layout.grids[later]), np.int8))
                known.append(np.zeros(layout.grids[later], np.bool_))
            break
    return Tokens(tuple(digits), tuple(known))


def _decode_level(prior: LevelPrior, decoders: list[RangeDecoder], classes: NDArray[np.uint8]) -> NDArray[np.int8]:
    """Digits (tokens, D) for classes (tokens, D); fewer tokens where two decoders come to disagree."""
    limit = prior.frequencies.shape[1] // 2
    digits = classes.shape[1]
    step = max(1, CHUNK // digits)
    parts = [np.zeros((0, digits), np.int8)]
    for start in range(0, len(classes), step):
        weights = _weights(prior, classes[start : start + step])
        read = read_certain(decoders, weights, digits)
        parts.append((read - limit).astype(np.int8))
        if len(read) < len(weights) // digits:
            break
    return np.concatenate(parts)


def decoders_of(payload: bytes, partial: bool) -> list[RangeDecoder]:
    """One decoder for a whole payload; two for one that may have been cut, as if zeros and as if ones followed it."""
    return [QUEUE.RangeDecoder(_words(payload, fill)) for fill in ((0, 0xFF) if partial else (0,))]


def read_certain(decoders: list[RangeDecoder], weights: NDArray[np.float64], digits: int) -> NDArray[np.int32]:
    """Symbols (tokens, D) for frequencies less one (tokens x D, values); fewer tokens where two decoders come to disagree.
    Raises FormatError where a single decoder finds none."""
    read = [_read(decoder, weights, digits) for decoder in decoders]
    shortest = min(map(len, read))
    agreed = (read[0][:shortest] == read[-1][:shortest]).all(1)
    certain = shortest if agreed.all() else int(agreed.argmin())
    if certain < len(weights) // digits and len(decoders) == 1:
        msg = "the tokens are damaged: these bytes stand for nothing"
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
