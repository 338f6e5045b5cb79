"""Images with a reference: an image that resembles another is coded as the difference of their latents. No torch.

Squares of 64x64 pixels use the reference or do not. Those that do start with the latents that decoding gives for the reference,
and tokens code the difference, which no network predicts: zero digits leave the latents as they are. The others are coded as
the squares of any image, except that the network predicts them from what is around them, too. See
`codec.pyramid.tokenizer.Reconstruction`.

Latents that were never quantized do not decode to an image, so the reference's are quantized: by its own tokens, or by all
tokens if it was moved, has another size, or is not a .tsr file.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import Any

import numpy as np
from numpy.typing import NDArray

from bitstream.block_order import BLOCK_CELLS, CELL
from bitstream.pyramid_tokens import PyramidLayout, PyramidPrefix, PyramidSequence
from bitstream.reference import (
    MOTION_MAX,
    OFFSET_CHANNELS,
    OFFSET_MAX,
    OFFSET_STEP,
    SQUARE,
    Reference,
    pack_squares,
    squares_of,
)
from bitstream.sequence import Difference
from codec.models.base import Enough, ReferenceImage
from codec.pyramid.runtime.backend import Array
from codec.pyramid.tiles import decode_pixels, encode_pixels
from codec.pyramid.tokenizer import Base, PyramidTokenizer, Reconstruction, choose, dequantize, quantize

MOTION_PIXELS = 1 << 20  # images are reduced to about this size before motion is searched for
FINE_SIDE = 512  # pixels; side of the window in which the motion of a reduced image is made exact
STILL = 0.9  # motion is used if its error is below this share of that without it, and so are offsets
OFFSET_STEPS = 6  # towards the most frequent difference
SQUARES_LAMBDA = 2.5  # times lambda in the choice of squares; with 1, files of webcam frames were 4 % larger
WHITENING = 0.7  # exponent of the spectrum's magnitude; 1 is phase correlation, which amplifies the noise of coded images


@dataclass(frozen=True)
class PyramidReferencer(PyramidTokenizer):
    """A tokenizer that also codes images with a reference. See `codec.models.base.Referencer`."""

    def base_of(self, reference: PyramidPrefix | NDArray[np.uint8]) -> Base:
        if isinstance(reference, PyramidPrefix):
            latents, known = dequantize(self.backend, [reference])
            return Base(reference.layout, latents, known, np.ones(latents.shape[2:], np.bool_))
        layout = self.code.layout(reference.shape[1], reference.shape[0])
        return _quantized(self, layout, encode_pixels(self.backend, [layout], [reference], self.tile))

    def pixels_of(self, base: Base) -> NDArray[np.uint8]:
        return decode_pixels(self.backend, [base.layout], base.latents, base.known, self.tile)[0]

    def tokenize_against(
        self, image: NDArray[np.uint8], reference: ReferenceImage, enough: Enough, typical: int
    ) -> PyramidSequence:
        layout = self.code.layout(image.shape[1], image.shape[0])
        latents = encode_pixels(self.backend, [layout], [image], self.tile)
        motion = find_motion(reference.pixels(), image)
        base = self._moved(reference, motion, layout)
        offsets = _offsets(latents, base.latents)
        base = self._lit(base, offsets)
        alone = quantize(self.backend, self.code, [layout], latents, [enough])[0]
        limit = Enough(bits=enough.bits)  # more tokens, with fewer bits each
        own = _rates(self, alone, latents)
        tokens = min(typical, int(np.searchsorted(alone.bits().cumsum(), enough.bits)) + 1)
        rdo_lambda = SQUARES_LAMBDA * _slope(own, next(i for i, n in enumerate(np.cumsum(layout.counts), 1) if n >= tokens))
        chosen, sequence, theirs = self._difference(latents, base, limit)
        uses = _costs(theirs, rdo_lambda) < _costs(own, rdo_lambda)
        if not uses.any():
            return alone
        if not uses.all():
            part = self._difference(latents, _in_squares(base, uses), limit)
            if _total(part[2], rdo_lambda) < _total(theirs, rdo_lambda):
                chosen, sequence, theirs = part
            else:
                uses = np.ones_like(uses)
        stored = Reference(reference.hash, reference.of_pixels, motion, offsets, pack_squares(uses), reference.name)
        return replace(sequence, difference=Difference(stored, chosen, alone, _equal_error(layout, theirs, own, tokens)))

    def add_reference(self, prefix: PyramidPrefix, stored: Reference, reference: ReferenceImage) -> PyramidPrefix:
        base = self._lit(self._moved(reference, stored.motion, prefix.layout), stored.offsets)
        uses = stored.uses(prefix.layout.width, prefix.layout.height)
        return replace(prefix, base=_in_squares(base, uses))

    def _moved(self, reference: ReferenceImage, motion: tuple[int, int], layout: PyramidLayout) -> Base:
        """The base of an image whose reference moves by `motion`."""
        height, width = reference.size
        if motion == (0, 0) and (layout.width, layout.height) == (width, height):
            return reference.base
        return self.base_of(moved(reference.pixels(), motion, layout.height, layout.width))

    def _lit(self, base: Base, offsets: tuple[int, ...]) -> Base:
        """The base in another light."""
        if not any(offsets):
            return base
        shift = np.zeros((1, self.backend.config.channels, 1, 1))
        shift[0, :OFFSET_CHANNELS, 0, 0] = np.multiply(offsets, OFFSET_STEP)
        return replace(base, latents=base.latents + self.backend.array(shift))

    def _difference(self, latents: Array, base: Base, enough: Enough) -> tuple[Base, PyramidSequence, tuple[NDArray, NDArray]]:
        """The base, the tokens of an image's latents with it, and their `_rates`."""
        sequence = quantize(self.backend, self.code, [base.layout], latents, [enough], [base])[0]
        return base, sequence, _rates(self, sequence, latents, [base])


def moved(pixels: NDArray[Any], motion: tuple[int, int], height: int, width: int) -> NDArray[Any]:
    """An image (H, W, ...) moved down and to the right, (height, width, ...). Its edges are repeated."""
    rows, columns = (
        np.clip(np.arange(size) - shift, 0, limit - 1)
        for size, shift, limit in zip((height, width), motion, pixels.shape, strict=False)
    )
    return pixels[rows[:, None], columns]


def _quantized(tokenizer: PyramidTokenizer, layout: PyramidLayout, latents: Array) -> Base:
    """Latents (1, C, h, w) after quantization with all tokens, each digit rounded to the nearest, and dequantization."""
    decoded = Reconstruction(tokenizer.backend, [layout])
    for index, level in enumerate(layout.levels):
        predicted = decoded.predict(index)
        free = np.zeros((1, level.limit + 1), np.float32)  # bits of a digit
        tables = [np.zeros((level.digits, *layout.grids[index]), np.uint8)]
        raw = decoded.analyse(index, latents, predicted)
        digits = choose(tokenizer.backend, index, [layout], raw, tables, free)[0] * layout.masks[index]
        decoded.add(index, predicted, [digits], [layout.masks[index][None]])
    return Base(layout, decoded.latents, decoded.known, np.ones(latents.shape[2:], np.bool_))


# The choice of squares


def _in_squares(base: Base, uses: NDArray[np.bool_]) -> Base:
    """The base in some squares (rows, columns)."""
    cells = uses.repeat(SQUARE // CELL, 0).repeat(SQUARE // CELL, 1)
    inside = np.ones_like(base.uses)
    rows, columns = (min(pair) for pair in zip(cells.shape, inside.shape, strict=True))
    inside[:rows, :columns] = cells[:rows, :columns]
    return replace(base, uses=inside)


def _rates(
    tokenizer: PyramidTokenizer, sequence: PyramidSequence, latents: Array, bases: Sequence[Base] = ()
) -> tuple[NDArray, NDArray]:
    """The bits of each square, and its squared error in latents: (levels + 1, rows, columns), before the first level and after
    each level of the sequence."""
    layout = sequence.layout
    prefix = sequence.first(sum(len(symbols) for symbols in sequence.symbols))
    decoded = Reconstruction(tokenizer.backend, [layout], bases)
    errors = [_errors(latents - decoded.latents, layout)]
    bits = [np.zeros_like(errors[0])]
    costs = np.split(sequence.bits(), np.cumsum([len(symbols) for symbols in sequence.symbols])[:-1])
    for index, (cost, order) in enumerate(zip(costs, sequence.orders, strict=True)):
        decoded.add(index, decoded.predict(index), [prefix.digits[index]], [prefix.known[index][None]])
        grid, cells = np.zeros(layout.grids[index]), BLOCK_CELLS // layout.levels[index].side
        grid.ravel()[order] = cost
        per_cell = grid.repeat(cells, 0).repeat(cells, 1) / cells**2
        spread = np.zeros([size * SQUARE // CELL for size in errors[0].shape])
        rows, columns = (min(pair) for pair in zip(spread.shape, per_cell.shape, strict=True))
        spread[:rows, :columns] = per_cell[:rows, :columns]
        shape = (errors[0].shape[0], SQUARE // CELL, errors[0].shape[1], SQUARE // CELL)
        bits.append(bits[-1] + spread.reshape(shape).sum((1, 3)))
        errors.append(_errors(latents - decoded.latents, layout))
    return np.array(bits), np.array(errors)


def _errors(difference: Array, layout: PyramidLayout) -> NDArray[np.float64]:
    """(rows, columns) sum of the squares of latents (1, C, h, w) in each square of the image, without cells outside of it."""
    inside = difference[:, :, : -(-layout.height // CELL), : -(-layout.width // CELL)]
    errors, side = np.zeros(squares_of(layout.width, layout.height)), SQUARE // CELL
    for row, column in np.ndindex(errors.shape):
        cells = inside[:, :, row * side : (row + 1) * side, column * side : (column + 1) * side]
        errors[row, column] = float((cells**2).sum())
    return errors


def _slope(rates: tuple[NDArray, NDArray], level: int) -> float:
    """Lambda: the squared error that a bit of level `level` removes."""
    bits, errors = (array.sum((1, 2)) for array in rates)
    level = min(level, len(bits) - 1)
    return max(0.0, float(errors[level - 1] - errors[level])) / max(1e-9, float(bits[level] - bits[level - 1]))


def _costs(rates: tuple[NDArray, NDArray], rdo_lambda: float) -> NDArray[np.float64]:
    """(rows, columns) rate-distortion cost of each square at its best level."""
    bits, errors = rates
    return (errors + rdo_lambda * bits).min(0)


def _total(rates: tuple[NDArray, NDArray], rdo_lambda: float) -> float:
    """The rate-distortion cost of all squares at their best common level."""
    bits, errors = (array.sum((1, 2)) for array in rates)
    return float((errors + rdo_lambda * bits).min())


def _equal_error(layout: PyramidLayout, theirs: tuple[NDArray, NDArray], own: tuple[NDArray, NDArray], tokens: int) -> int:
    """The length at which the first of two codings has the error that the second has with so many tokens."""
    lengths = np.cumsum([0, *layout.counts])
    their_logs, own_logs = (np.log(errors.sum((1, 2)) + 1e-9) for _, errors in (theirs, own))
    wanted = np.interp(tokens, lengths[: len(own_logs)], own_logs)
    falling = np.minimum.accumulate(their_logs)
    return max(1, int(np.interp(-wanted, -falling, lengths[: len(falling)])))


# Light and motion


def _offsets(latents: Array, base: Array) -> tuple[int, ...]:
    """What the first channels of a reference's latents lack in most cells of an image: the light of a scene or the exposure of
    a camera changes. Weighted prediction of video codecs has such offsets, too."""
    offsets = []
    for channel in range(OFFSET_CHANNELS):
        differences = latents[0, channel] - base[0, channel]
        offset = 0.0
        for _ in range(OFFSET_STEPS):
            distances = abs(differences - offset)
            alike = distances <= distances.mean()
            offset = float((differences * alike).sum() / alike.sum())
        units = max(-OFFSET_MAX, min(OFFSET_MAX, round(offset / OFFSET_STEP)))
        helps = abs(differences - units * OFFSET_STEP).mean() < STILL * abs(differences).mean()
        offsets.append(units if helps else 0)
    return tuple(offsets)


def find_motion(reference: NDArray[np.uint8], image: NDArray[np.uint8]) -> tuple[int, int]:
    """The rows and columns by which moving a reference (H, W, 3) makes it most similar to an image, or (0, 0) if that does not
    help. By phase correlation (Kuglin and Hines 1975) of the grey images."""
    height, width = (min(pair) for pair in zip(reference.shape[:2], image.shape[:2], strict=True))
    greys = [pixels[:height, :width].mean(2, dtype=np.float32) for pixels in (reference, image)]
    step = max(1, round((height * width / MOTION_PIXELS) ** 0.5))
    coarse = [part * step for part in _peak([_reduced(grey, step) for grey in greys])]
    if step > 1:
        windows = [_window(greys[0], [-part for part in coarse]), _window(greys[1], [0, 0])]
        coarse = [a + b for a, b in zip(coarse, _peak(windows), strict=True)]
    motion = coarse[0], coarse[1]
    if motion == (0, 0) or max(map(abs, motion)) > MOTION_MAX:
        return 0, 0
    differences = (moved(greys[0], shift, height, width) - greys[1] for shift in ((0, 0), motion))
    still, moving = (np.abs(difference - difference.mean()).mean() for difference in differences)
    return motion if moving < STILL * still else (0, 0)


def _peak(greys: Sequence[NDArray[np.float32]]) -> list[int]:
    """The motion from the first to the second of two images (H, W) of one size."""
    window = np.hanning(greys[0].shape[0] + 2)[1:-1, None] * np.hanning(greys[0].shape[1] + 2)[1:-1]
    first, second = (np.fft.rfft2((grey - grey.mean()) * window) for grey in greys)
    cross = second * first.conj()
    correlation = np.fft.irfft2(cross / np.maximum(np.abs(cross), 1e-6) ** WHITENING, greys[0].shape)
    peak = np.unravel_index(correlation.argmax(), correlation.shape)
    return [int(at) if at <= size // 2 else int(at) - size for at, size in zip(peak, correlation.shape, strict=True)]


def _reduced(grey: NDArray[np.float32], step: int) -> NDArray[np.float32]:
    """Means of squares of step x step pixels."""
    rows, columns = (size // step for size in grey.shape)
    return grey[: rows * step, : columns * step].reshape(rows, step, columns, step).mean((1, 3))


def _window(grey: NDArray[np.float32], offset: Sequence[int]) -> NDArray[np.float32]:
    """A square of FINE_SIDE pixels around the centre, moved by `offset` as far as the image allows."""
    tops = [
        min(max(0, (size - FINE_SIDE) // 2 + part), max(0, size - FINE_SIDE))
        for size, part in zip(grey.shape, offset, strict=True)
    ]
    return grey[tops[0] : tops[0] + FINE_SIDE, tops[1] : tops[1] + FINE_SIDE]
