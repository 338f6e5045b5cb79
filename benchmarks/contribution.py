"""Contribution maps: which pixels change when a token changes, after One-D-Piece (2501.10064).

The digits of a token are replaced by others that the entropy model considers possible, drawn from its tables. All other tokens
stay, even in later levels, although the encoder chose them for the original token. A map is the mean absolute difference
of the decoded image over its channels and several draws.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, replace
from itertools import groupby

import numpy as np
from numpy.typing import NDArray
from PIL import Image, ImageDraw, ImageFont

from benchmarks.records import Pixels
from bitstream.pyramid_tokens import PyramidCode, PyramidLayout, PyramidPrefix
from codec.codec import Codec
from codec.errors import UsageError

SAMPLES = 3  # tokens per level if none are named
DRAWS = 4  # replacements of a token
SEED = 1

# Sizes of the sheet, in pixels
PANEL = 256  # longer side of an image
GAP = 12
LINE = 18
COLUMNS = 1 + SAMPLES
DIM = 0.5  # brightness of the image below a map
# Black, violet, red, orange, pale yellow: brightness grows with the change.
HEAT = np.array([[0, 0, 0], [66, 10, 104], [187, 55, 84], [249, 142, 9], [252, 255, 164]], np.float64)


@dataclass(frozen=True)
class Contribution:
    """The effect of a token."""

    index: int  # index in the sequence; 0 is coded first
    level: int
    row: int  # row in the grid of its level
    column: int
    change: NDArray[np.float32]  # (H, W) mean absolute difference of a pixel, 0 to 255
    share: float  # share of the pixels that change, mean over the draws


@dataclass(frozen=True)
class TokenPosition:
    """The position of a token, and the tables of its digits."""

    index: int
    level: int
    row: int
    column: int
    frequencies: NDArray[np.int32]  # (D, 2 limit + 1)


def contribution(
    codec: Codec,
    pixels: Pixels,
    indexes: Sequence[int] | None,
    length: float,
    draws: int = DRAWS,
    progress: Callable[[], None] = lambda: None,
) -> list[Contribution]:
    """Maps of tokens, in the order of the sequence, for an image (H, W, 3) that is coded with `length` tokens per block.

    `indexes` are positions in the sequence; None: SAMPLES tokens of each level, evenly spaced from the first. Each token costs
    `draws` decodings of the image; `progress` is called after each token. The same arguments give the same maps. Raises
    UsageError if the sequence has no such token, or the model no levels."""
    code = codec.model.code
    if not isinstance(code, PyramidCode):
        msg = f"{codec.model.name} has no levels of tokens: use the standard model"
        raise UsageError(msg, ("model",))
    (sequence,) = codec.tokenize([pixels])
    original = codec.read(codec.write(sequence, tokens=length).data).prefix
    assert isinstance(original, PyramidPrefix)
    indexes = sorted(set(default_indexes(original.layout, original.length) if indexes is None else indexes))
    if outside := [index for index in indexes if not 0 <= index < original.length]:
        msg = f"there is no token {outside[0]}: this image has tokens 0 to {original.length - 1} at {length:g} tokens per block"
        raise UsageError(msg)

    def decode(prefix: PyramidPrefix) -> NDArray[np.int16]:
        return codec.tokenizer().detokenize([prefix])[0].astype(np.int16)

    reference = decode(original)
    maps = []
    for position in positions_of(code, original, indexes):
        change, share = np.zeros(reference.shape[:2], np.float32), 0.0
        for replacement in replacements(position, original, draws):
            difference = np.abs(decode(replacement) - reference)
            change += difference.mean(2, dtype=np.float32) / draws
            share += float(difference.any(2).mean()) / draws
        maps.append(Contribution(position.index, position.level, position.row, position.column, change, share))
        progress()
    return maps


def default_indexes(layout: PyramidLayout, length: int) -> list[int]:
    """Indexes of up to SAMPLES tokens of each level that a sequence of this length reaches."""
    indexes, start = [], 0
    for count, kept in zip(layout.counts, layout.split(length), strict=True):
        indexes += [start + kept * sample // SAMPLES for sample in range(SAMPLES) if kept]
        start += count
    return indexes


def positions_of(code: PyramidCode, prefix: PyramidPrefix, indexes: Sequence[int]) -> Iterator[TokenPosition]:
    """The positions of the tokens at `indexes`, level by level."""
    layout, start = prefix.layout, 0
    for level, count in enumerate(layout.counts):
        ranks = [index - start for index in indexes if 0 <= index - start < count]
        if ranks:
            contexts = code.contexts(layout, level, prefix.digits[:level])
            order = code.order(layout, level, contexts)
            for rank in ranks:
                row, column = divmod(int(order[rank]), layout.grids[level][1])
                frequencies = code.entropy_models[level].frequencies[contexts[:, row, column]]
                yield TokenPosition(start + rank, level, row, column, frequencies)
        start += count


def replacements(position: TokenPosition, prefix: PyramidPrefix, draws: int) -> Iterator[PyramidPrefix]:
    """The tokens of an image with one of them replaced, `draws` times. Draws depend on the position alone."""
    rng = np.random.default_rng((SEED, position.index))
    level, row, column = position.level, position.row, position.column
    for _ in range(draws):
        digits = prefix.digits[level].copy()
        digits[:, row, column] = other_digits(position.frequencies, digits[:, row, column], rng)
        yield replace(prefix, digits=(*prefix.digits[:level], digits, *prefix.digits[level + 1 :]))


def other_digits(frequencies: NDArray[np.int32], digits: NDArray[np.int8], rng: np.random.Generator) -> NDArray[np.int8]:
    """Digits (D,) drawn from their tables (D, 2 limit + 1) under the condition that they are not all equal to `digits`.

    Rejection would take long if the entropy model is certain. So the first digit that differs is drawn first: the digits
    before it stay, it gets another value, and the digits after it get any value."""
    tables = frequencies / frequencies.sum(1, keepdims=True)
    limit = tables.shape[1] // 2
    positions, symbols = np.arange(len(digits)), digits.astype(np.intp) + limit
    equal = tables[positions, symbols]
    odds = np.concatenate([[1.0], equal.cumprod()[:-1]]) * (1 - equal)
    first = rng.choice(len(digits), p=odds / odds.sum())
    tables[first, symbols[first]] = 0
    cumulative = tables.cumsum(1)
    drawn = (rng.random(len(digits)) * cumulative[:, -1])[:, None] >= cumulative
    return np.where(positions < first, digits, drawn.sum(1) - limit).astype(np.int8)


def sheet(pixels: Pixels, contributions: Sequence[Contribution]) -> Image.Image:
    """Heat maps over the dimmed image (H, W, 3): for each level the mean map, then the maps of single tokens."""
    height, width = pixels.shape[:2]
    scale = PANEL / max(height, width)
    size = max(1, round(width * scale)), max(1, round(height * scale))
    levels = [(level, list(group)) for level, group in groupby(contributions, lambda one: one.level)]
    cell = PANEL + GAP, size[1] + 2 * LINE + GAP
    lines = [-(-(len(group) + 1) // COLUMNS) for _, group in levels]  # rows of panels per level
    top = 3 * LINE
    canvas = Image.new("RGB", (COLUMNS * cell[0] + GAP, top + sum(lines) * cell[1] + len(lines) * LINE + GAP), "white")
    draw = ImageDraw.Draw(canvas)
    _draw_legend(canvas)
    for (level, group), count in zip(levels, lines, strict=True):
        draw.text((GAP, top), f"Level {level}", "black", font=ImageFont.load_default(15))
        mean = np.mean([one.change for one in group], axis=0)
        maps = [(mean, f"mean of {len(group)} token{'s' if len(group) > 1 else ''}")]
        maps += [(one.change, f"token {one.index}, row {one.row}, column {one.column}") for one in group]
        shares = [float(np.mean([one.share for one in group])), *(one.share for one in group)]
        for index, ((change, name), share) in enumerate(zip(maps, shares, strict=True)):
            left, upper = GAP + index % COLUMNS * cell[0], top + LINE + 4 + index // COLUMNS * cell[1]
            canvas.paste(_heat(pixels, change, size), (left, upper))
            text = f"{name}\n{100 * share:.3g} % of the pixels, by up to {change.max():.3g}"
            draw.multiline_text((left, upper + size[1] + 2), text, "#333333", font=ImageFont.load_default(12), spacing=2)
        top += LINE + count * cell[1]
    return canvas


def _draw_legend(canvas: Image.Image) -> None:
    """Draws the title and the scale of colours."""
    draw = ImageDraw.Draw(canvas)
    draw.text((GAP, 8), "Which pixels change with a token, and by how much of 255", "black", font=ImageFont.load_default(17))
    bar = np.broadcast_to(_colours(np.sqrt(np.linspace(0, 1, PANEL))), (LINE // 2, PANEL, 3))
    left = canvas.width - GAP - PANEL
    canvas.paste(Image.fromarray(bar.astype(np.uint8)), (left, 10))
    font = ImageFont.load_default(12)
    draw.text((left, 12 + LINE // 2), "0", "#333333", font=font)
    draw.text((left + PANEL, 12 + LINE // 2), "largest change of the panel", "#333333", font=font, anchor="ra")


def _colours(strength: NDArray[np.float64]) -> NDArray[np.float64]:
    """Strength (...) in 0..1 -> colours (..., 3)."""
    stops = np.linspace(0, 1, len(HEAT))
    return np.stack([np.interp(strength, stops, channel) for channel in HEAT.T], axis=-1)


def _heat(pixels: Pixels, change: NDArray[np.float32], size: tuple[int, int]) -> Image.Image:
    """A map over the image, at the size of a panel. Strength is the square root of the change, so that small ones are
    visible."""
    grey = np.asarray(Image.fromarray(pixels).convert("L").resize(size, Image.Resampling.BICUBIC), np.float64)[..., None]
    filtering = Image.Resampling.BOX if max(size) < max(pixels.shape) else Image.Resampling.NEAREST
    scaled = np.asarray(Image.fromarray(change).resize(size, filtering), np.float64)
    strength = np.sqrt(scaled / max(scaled.max(), 1e-9)).clip(0, 1)
    weight = np.minimum(1, 1.5 * strength)[..., None]
    return Image.fromarray(((1 - weight) * DIM * grey + weight * _colours(strength)).astype(np.uint8))
