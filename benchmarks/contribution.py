"""What a token is for: which pixels change when it changes. After the contribution maps of One-D-Piece (2501.10064).

A token's digits are replaced by others that the prior holds possible there, drawn from the tables of their classes, and all
other tokens are kept where they stand: those of later levels too, although the encoder chose them with the true token known.
A map is the mean absolute difference of the decoded image, over its channels and several draws.
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
from codec.codec import Codec, read_tokens
from codec.errors import UsageError

SAMPLES = 3  # tokens of a level that are looked at where none are named
DRAWS = 4  # other values that a token is given
SEED = 1

# The sheet, in pixels.
PANEL = 256  # longer side of an image
GAP = 12
LINE = 18
COLUMNS = 1 + SAMPLES
DIM = 0.5  # of the image's brightness
# Black, violet, red, orange, pale yellow: as bright as the change is large.
HEAT = np.array([[0, 0, 0], [66, 10, 104], [187, 55, 84], [249, 142, 9], [252, 255, 164]], np.float64)


@dataclass(frozen=True)
class Contribution:
    """A token, and what changes with it."""

    place: int  # in the sequence; 0 is sent first
    level: int
    row: int  # in the grid of its level
    column: int
    change: NDArray[np.float32]  # (H, W) mean absolute difference of a pixel, 0 to 255
    share: float  # of the pixels that changed at all, mean over the draws


@dataclass(frozen=True)
class Place:
    """Where a token of the sequence stands, and what else could stand there."""

    place: int
    level: int
    row: int
    column: int
    frequencies: NDArray[np.int32]  # (D, 2 limit + 1), the tables of its digits


def contribution(
    codec: Codec,
    pixels: Pixels,
    tokens: Sequence[int] | None,
    length: float,
    draws: int = DRAWS,
    progress: Callable[[], None] = lambda: None,
) -> list[Contribution]:
    """Maps of tokens, in the order of the sequence, in an image (H, W, 3) that is cut to `length` tokens per block.

    `tokens` are places in the sequence, the first of which is 0; None takes SAMPLES tokens of each level, the one sent first
    and others evenly after it. A token costs `draws` decodings of the image; `progress` is called after each token. The same
    arguments give the same maps. Raises UsageError for a place that the sequence does not reach."""
    code = codec.model.code
    assert isinstance(code, PyramidCode)
    sent = read_tokens(codec.write(codec.tokenize([pixels])[0], tokens=length).file, code)
    assert isinstance(sent, PyramidPrefix)
    wanted = sorted(set(some_of_each_level(sent.layout, sent.length) if tokens is None else tokens))
    if outside := [place for place in wanted if not 0 <= place < sent.length]:
        msg = f"there is no token {outside[0]}: this image has 0 to {sent.length - 1} at {length:g} tokens per block"
        raise UsageError(msg)

    def decoded(prefix: PyramidPrefix) -> NDArray[np.int16]:
        return codec.tokenizer().detokenize([prefix])[0].astype(np.int16)

    before = decoded(sent)
    out = []
    for place in places_of(code, sent, wanted):
        change, share = np.zeros(before.shape[:2], np.float32), 0.0
        for other in others(place, sent, draws):
            difference = np.abs(decoded(other) - before)
            change += difference.mean(2, dtype=np.float32) / draws
            share += float(difference.any(2).mean()) / draws
        out.append(Contribution(place.place, place.level, place.row, place.column, change, share))
        progress()
    return out


def some_of_each_level(layout: PyramidLayout, length: int) -> list[int]:
    """Places of up to SAMPLES tokens of each level that a sequence of this length reaches."""
    places, start = [], 0
    for count, kept in zip(layout.counts, layout.split(length), strict=True):
        places += [start + kept * sample // SAMPLES for sample in range(SAMPLES) if kept]
        start += count
    return places


def places_of(code: PyramidCode, sent: PyramidPrefix, wanted: Sequence[int]) -> Iterator[Place]:
    """Where the wanted tokens of the sequence stand, level by level."""
    layout, start = sent.layout, 0
    for index, count in enumerate(layout.counts):
        ranks = [place - start for place in wanted if 0 <= place - start < count]
        if ranks:
            classes = code.contexts(layout, index, sent.digits[:index])
            order = code.order(layout, index, classes)
            for rank in ranks:
                row, column = divmod(int(order[rank]), layout.grids[index][1])
                frequencies = code.entropy_models[index].frequencies[classes[:, row, column]]
                yield Place(start + rank, index, row, column, frequencies)
        start += count


def others(place: Place, sent: PyramidPrefix, draws: int) -> Iterator[PyramidPrefix]:
    """The tokens of an image with one of them changed, several times; the same for a place in every call."""
    rng = np.random.default_rng((SEED, place.place))
    own = sent.digits[place.level][:, place.row, place.column]
    for _ in range(draws):
        digits = sent.digits[place.level].copy()
        digits[:, place.row, place.column] = other_digits(place.frequencies, own, rng)
        yield replace(sent, digits=(*sent.digits[: place.level], digits, *sent.digits[place.level + 1 :]))


def other_digits(frequencies: NDArray[np.int32], own: NDArray[np.int8], rng: np.random.Generator) -> NDArray[np.int8]:
    """Digits (D,) drawn from their tables (D, 2 limit + 1), given that they are not all as they were.

    Drawing until one differs would take long where the prior is sure. So the first digit that differs is drawn first: those
    before it stay, it takes another value, and those after it any."""
    tables = frequencies / frequencies.sum(1, keepdims=True)
    limit = tables.shape[1] // 2
    digits, symbols = np.arange(len(own)), own.astype(np.intp) + limit
    stay = tables[digits, symbols]
    odds = np.concatenate([[1.0], stay.cumprod()[:-1]]) * (1 - stay)
    first = rng.choice(len(own), p=odds / odds.sum())
    tables[first, symbols[first]] = 0
    heights = tables.cumsum(1)
    drawn = (rng.random(len(own)) * heights[:, -1])[:, None] >= heights
    return np.where(digits < first, own, drawn.sum(1) - limit).astype(np.int8)


def sheet(pixels: Pixels, contributions: Sequence[Contribution]) -> Image.Image:
    """Heat maps over the dimmed image (H, W, 3): for each level their mean, then the tokens one by one."""
    height, width = pixels.shape[:2]
    scale = PANEL / max(height, width)
    size = max(1, round(width * scale)), max(1, round(height * scale))
    levels = [(level, list(group)) for level, group in groupby(contributions, lambda one: one.level)]
    cell = PANEL + GAP, size[1] + 2 * LINE + GAP
    lines = [-(-(len(group) + 1) // COLUMNS) for _, group in levels]  # of panels
    top = 3 * LINE
    canvas = Image.new("RGB", (COLUMNS * cell[0] + GAP, top + sum(lines) * cell[1] + len(lines) * LINE + GAP), "white")
    draw = ImageDraw.Draw(canvas)
    _head(canvas)
    for (level, group), count in zip(levels, lines, strict=True):
        draw.text((GAP, top), f"Level {level}", "black", font=ImageFont.load_default(15))
        mean = np.mean([one.change for one in group], axis=0)
        shown = [(mean, f"mean of {len(group)} token{'s' if len(group) > 1 else ''}")]
        shown += [(one.change, f"token {one.place}, row {one.row}, column {one.column}") for one in group]
        shares = [float(np.mean([one.share for one in group])), *(one.share for one in group)]
        for index, ((change, name), share) in enumerate(zip(shown, shares, strict=True)):
            left, upper = GAP + index % COLUMNS * cell[0], top + LINE + 4 + index // COLUMNS * cell[1]
            canvas.paste(_heat(pixels, change, size), (left, upper))
            text = f"{name}\n{100 * share:.3g} % of the pixels, by up to {change.max():.3g}"
            draw.multiline_text((left, upper + size[1] + 2), text, "#333333", font=ImageFont.load_default(12), spacing=2)
        top += LINE + count * cell[1]
    return canvas


def _head(canvas: Image.Image) -> None:
    """What the image shows, and its scale."""
    draw = ImageDraw.Draw(canvas)
    draw.text((GAP, 8), "Which pixels change with a token, and by how much of 255", "black", font=ImageFont.load_default(17))
    bar = np.broadcast_to(_colours(np.sqrt(np.linspace(0, 1, PANEL))), (LINE // 2, PANEL, 3))
    left = canvas.width - GAP - PANEL
    canvas.paste(Image.fromarray(bar.astype(np.uint8)), (left, 10))
    font = ImageFont.load_default(12)
    draw.text((left, 12 + LINE // 2), "0", "#333333", font=font)
    draw.text((left + PANEL, 12 + LINE // 2), "largest change of the panel", "#333333", font=font, anchor="ra")


def _colours(strength: NDArray[np.float64]) -> NDArray[np.float64]:
    """(..., ) from 0 to 1 -> (..., 3) colours."""
    stops = np.linspace(0, 1, len(HEAT))
    return np.stack([np.interp(strength, stops, channel) for channel in HEAT.T], axis=-1)


def _heat(pixels: Pixels, change: NDArray[np.float32], size: tuple[int, int]) -> Image.Image:
    """A map over the image, at the size of a panel. Strength is the root of the change, so that small ones are seen."""
    grey = np.asarray(Image.fromarray(pixels).convert("L").resize(size, Image.Resampling.BICUBIC), np.float64)[..., None]
    filtering = Image.Resampling.BOX if max(size) < max(pixels.shape) else Image.Resampling.NEAREST
    scaled = np.asarray(Image.fromarray(change).resize(size, filtering), np.float64)
    strength = np.sqrt(scaled / max(scaled.max(), 1e-9)).clip(0, 1)
    weight = np.minimum(1, 1.5 * strength)[..., None]
    return Image.fromarray(((1 - weight) * DIM * grey + weight * _colours(strength)).astype(np.uint8))
