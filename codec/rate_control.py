"""Rate control: how many tokens of an image its file keeps.

Every rate is a prefix of one encoding, so quality and size are choices of a length. A quality or a number of tokens is a length
by itself; a size is filled up to the last token that fits; PSNR and LPIPS are searched for by decoding. No torch.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, Any, NoReturn, TypeAlias

import numpy as np
from numpy.typing import NDArray

from bitstream.container import ALPHA, File, overhead, payload_max
from bitstream.range_coder import encode_tokens, fit_tokens
from bitstream.sequence import AnyCode, Difference, Layout, Prefix, TokenSequence
from codec.errors import TargetError, UsageError
from codec.image.colour import remove_colour_if_grey
from codec.image.metadata import LABELS, fit_alpha
from codec.metrics import psnr
from codec.models.base import Enough, Model, Refiner, Tokenizer
from codec.options import DEFAULT_QUALITY, TARGETS
from codec.reading import incomplete_block

if TYPE_CHECKING:
    from codec.image.source import Source

Distance: TypeAlias = Callable[[NDArray[np.uint8], NDArray[np.uint8]], float]
NO_DETAIL = 0.0  # decodes without texture
MIN_LPIPS_SIDE = 31  # pixels; at this size AlexNet's last stage has one position

SLACK = 64  # bits: tokens that cost this much more than a budget cannot fit it, even if the range coder saves bits at its end
ALPHA_SHARE = 3  # transparency may take a third of a size before its quality is lowered
BRACKET = 1.1  # ratio of the bits of the first two lengths of a search that starts at a guess
MARGIN = 0.02  # minimum distance of a guess from both ends of the bracket, as a share of it


@dataclass(frozen=True)
class Target:
    """The target among the encoding options."""

    kind: str  # one of TARGETS
    value: float

    @classmethod
    def of(cls, options: Mapping[str, Any]) -> Target:
        """The target in the options, or else the default quality."""
        for kind in TARGETS:
            if (value := options.get(kind)) is not None:
                return cls(kind, value)
        return cls("quality", DEFAULT_QUALITY)

    @property
    def searched(self) -> bool:
        """Whether images must be decoded to find the length."""
        return self.kind in ("target_psnr", "target_lpips")

    @property
    def sized(self) -> bool:
        """Whether it is a size."""
        return self.kind in ("target_size", "target_bpp")

    def budget(self, width: int, height: int) -> int | None:
        """Bytes that the complete file may take, or None if the target is not a size."""
        if self.kind == "target_bpp":
            return int(self.value * width * height / 8)
        return int(self.value) if self.kind == "target_size" else None

    def length(self, code: AnyCode, layout: Layout) -> int:
        """Tokens to keep for a quality or a number of tokens. Raises UsageError for more tokens per block than the model
        has."""
        if self.kind == "quality":
            return layout.length_of(block_tokens_of_quality(code, self.value))
        if self.value > code.block_tokens:
            msg = f"tokens {self.value:g} is out of range: 1 to {code.block_tokens}"
            raise UsageError(msg)
        return layout.length_of(self.value)

    def typical(self, code: AnyCode, layout: Layout) -> int:
        """Number of tokens for a quality or token target; for any other target, the number for the default quality."""
        target = self if self.kind in ("quality", "tokens") else Target("quality", DEFAULT_QUALITY)
        return target.length(code, layout)

    def enough(self, code: AnyCode, layout: Layout) -> Enough:
        """The part of a sequence that the target can need. Raises UsageError as `length` does."""
        if self.searched:
            return Enough()
        budget = self.budget(layout.width, layout.height)
        return Enough(self.length(code, layout)) if budget is None else Enough(bits=8 * budget + SLACK)


def block_tokens_of_quality(code: AnyCode, quality: float) -> float:
    """Tokens per block for a quality 0..100."""
    qualities, stops = zip(*code.quality_stops, strict=True)
    return float(np.interp(quality, qualities, stops))


def quality_of_block_tokens(code: AnyCode, block_tokens: float) -> float:
    """The inverse of `block_tokens_of_quality`; 0 and 100 beyond the ends."""
    qualities, stops = zip(*code.quality_stops, strict=True)
    return float(np.interp(block_tokens, stops, qualities))


@dataclass(frozen=True)
class SearchResult:
    """The result of a search."""

    length: int
    reached: bool
    value: float  # the measure at this length


@dataclass(frozen=True)
class Decoder:
    """Measures what a number of tokens loses. The networks are loaded when they are first needed."""

    model: Model
    tokenizer: Callable[[], Tokenizer]
    lpips: Callable[[], Distance]

    def distance(self, target: Target, source: Source) -> Distance:
        """The measure of a PSNR or LPIPS target. Raises TargetError if the image is too small for LPIPS."""
        if target.kind == "target_psnr":
            return psnr
        if min(source.width, source.height) < MIN_LPIPS_SIDE:
            size = f"{source.width}x{source.height}"
            msg = f"LPIPS needs sides of at least {MIN_LPIPS_SIDE} pixels, not {size}: use target psnr"
            raise TargetError(msg)
        return self.lpips()

    def measure(
        self, sequence: TokenSequence, length: int, distance: Distance, source: Source, detail: float | None = None
    ) -> float:
        """The distance between an image and the first `length` of its tokens. `detail` is an option of models with texture."""
        tokenizer: Any = self.tokenizer()
        (pixels,) = tokenizer.detokenize([sequence.first(length)], **({} if detail is None else {"detail": detail}))
        return distance(remove_colour_if_grey(pixels, source.greyness), source.pixels)


def choose_tokens(
    sequence: TokenSequence, source: Source | None, target: Target, decoder: Decoder
) -> tuple[File, SearchResult | None]:
    """The file with the tokens that the target asks for, and the search for them if the target is PSNR or LPIPS.

    Raises TargetError if no tokens fit or LPIPS cannot be measured, UsageError if the sequence has too few tokens, TypeError
    if `source` is missing and its pixels are needed."""
    layout, code, difference = sequence.layout, decoder.model.code, sequence.difference
    fields = (source.sections, source.space, source.greyness) if source else ()
    alone = File(layout.width, layout.height, decoder.model.stream_id, layout.tokens, b"", *fields)
    file = replace(alone, reference=difference.reference) if difference else alone
    budget = target.budget(layout.width, layout.height)
    if budget is not None:
        return fill_budget(file, sequence, budget, source.alpha if source else None, code), None
    matched = difference if target.kind == "quality" else None
    if not target.searched and not matched:
        return with_tokens(file, sequence, target.length(code, layout), code), None
    if source is None:
        msg = "a target of PSNR or LPIPS, or a quality with a reference, needs the image to compare with"
        raise TypeError(msg)
    if matched:
        alone = with_tokens(alone, matched.alone, target.length(code, layout), code)
        return _match(alone, matched, file, sequence, source, decoder), None
    search = _search(sequence, target, source, decoder)
    return with_tokens(file, sequence, search.length, code), search


def refine_tokens(
    sequence: TokenSequence, source: Source, target: Target, decoder: Decoder, refiner: Refiner, steps: int
) -> TokenSequence:
    """A better sequence for the length that the target asks for, after `steps` gradient steps of a `Refiner`."""
    try:
        length = choose_tokens(sequence, source, target, decoder)[0].length
    except TargetError:  # raised again when the sequence is written
        return sequence

    def squared_error(prefix: Prefix) -> float:
        decoded = remove_colour_if_grey(refiner.detokenize([prefix], detail=NO_DETAIL)[0], source.greyness)
        return float(np.square(decoded.astype(np.float32) - source.pixels).sum(dtype=np.float64))

    sized = target.budget(source.width, source.height) is not None
    return refiner.refine(source.pixels, sequence, length, squared_error, sized, steps)


def _match(alone: File, difference: Difference, file: File, sequence: TokenSequence, source: Source, decoder: Decoder) -> File:
    """The shortest file of a sequence that is not worse than the image coded alone, or `alone` if that is smaller. Both are
    decoded without texture, which would hide differences."""
    wanted = decoder.measure(difference.alone, alone.length, psnr, source, NO_DETAIL)
    length = min_length(sequence, decoder.model.code)
    # If nothing has changed, more tokens can make an image worse.
    if decoder.measure(sequence, length, psnr, source, NO_DETAIL) < wanted:
        search = _search(sequence, Target("target_psnr", wanted), source, decoder, difference.guess, NO_DETAIL)
        if not search.reached:
            return alone
        length = search.length
    file = with_tokens(file, sequence, length, decoder.model.code)
    sizes = [overhead(either, len(either.payload)) + len(either.payload) for either in (alone, file)]
    return file if sizes[1] < sizes[0] else alone


def _search(
    sequence: TokenSequence,
    target: Target,
    source: Source,
    decoder: Decoder,
    guess: int | None = None,
    detail: float | None = None,
) -> SearchResult:
    """The length for a PSNR or LPIPS target of images decoded with `detail`. The search starts at `guess`, if there is one."""
    if sequence.length < sequence.layout.tokens:
        _refuse_incomplete(sequence)
    distance = decoder.distance(target, source)
    return shortest(
        lambda length: decoder.measure(sequence, length, distance, source, detail),
        target.value,
        sequence.bits().cumsum(),
        min_length(sequence, decoder.model.code),
        higher_is_better=target.kind == "target_psnr",
        tolerance=decoder.model.search_tolerance * (1 if guess is None else 2),  # of the images of a folder, most have guesses
        guess=guess,
    )


def with_tokens(file: File, sequence: TokenSequence, length: int, code: AnyCode) -> File:
    """The file with the first `length` tokens, without trailing tokens that have no effect. Raises UsageError if the sequence
    has fewer, or the model cannot decode that few."""
    if length > sequence.length:
        _refuse_incomplete(sequence)
    length = sequence.layout.length_of(sequence.layout.block_tokens_of(length))
    if length < min_length(sequence, code):
        raise UsageError(incomplete_block(code, sequence.layout.block_tokens_of(length)))
    return replace(file, length=length, payload=encode_tokens(sequence, length))


def fill_budget(file: File, sequence: TokenSequence, budget: int, alpha: NDArray[np.uint8] | None, code: AnyCode) -> File:
    """The file with as many tokens as fit `budget` bytes. `alpha` (H, W) is the transparency whose section may be made smaller;
    None if it has to stay.

    Raises TargetError if not even the smallest file fits, UsageError if the sequence has too few tokens."""
    max_payload = min(budget, payload_max(file.width, file.height))
    available = budget - overhead(file, max_payload)
    if alpha is not None:
        kept = len(dict(file.sections)[ALPHA])
        file = replace(file, sections=fit_alpha(file.sections, alpha, (available + kept) // ALPHA_SHARE))
        available = budget - overhead(file, max_payload)
    length, payload = fit_tokens(sequence, available) if available >= 0 else (0, b"")
    if length == sequence.length < sequence.layout.tokens:  # more tokens might fit
        _refuse_incomplete(sequence)
    if length >= min_length(sequence, code):
        useful = sequence.layout.length_of(sequence.layout.block_tokens_of(length))
        return replace(file, length=useful, payload=payload if useful == length else encode_tokens(sequence, useful))
    smallest = with_tokens(file, sequence, min_length(sequence, code), code)
    size = overhead(smallest, len(smallest.payload)) + len(smallest.payload)
    if size <= budget:
        return smallest
    reason = f"{budget} bytes are too few" if budget else "the rate allows less than one byte"
    msg = f"{reason} for a {file.width}x{file.height} image: the smallest file has {size} bytes"
    kinds = [kind for kind, _ in file.sections]
    if kinds:
        msg += f", {file.section_bytes} of them for its {' and '.join(LABELS[kind] for kind in kinds)}"
    advice = (*(["strip"] if set(kinds) - {ALPHA} else []), *(["background"] if ALPHA in kinds else []))
    raise TargetError(msg, advice)


def min_length(sequence: TokenSequence, code: AnyCode) -> int:
    """The smallest number of tokens that decodes to an image."""
    return 1 if code.tail_drop else sequence.layout.tokens


def _refuse_incomplete(sequence: TokenSequence) -> NoReturn:
    tokens = f"{sequence.length} of the image's {sequence.layout.tokens} tokens"
    msg = f"the target may need more than {tokens}: tokenize with this target, or without one"
    raise UsageError(msg)


def shortest(
    measure: Callable[[int], float],
    wanted: float,
    bits: NDArray[np.float64],
    min_length: int,
    *,
    higher_is_better: bool,
    tolerance: float = 0.005,
    guess: int | None = None,
) -> SearchResult:
    """The shortest length, at least `min_length`, whose measure is `wanted` or better. `bits` (tokens,) is the cost of all
    tokens up to each length.

    Quality rises with length, but not with every token. The search returns a length that reaches the target and has been
    decoded and measured; a length whose bits are smaller by at most `tolerance` (a share) has been measured too, and misses
    the target. If no length reaches the target, returns all tokens. The search starts at `guess`, if there is one."""
    values: dict[int, float] = {}

    def margin(length: int) -> float:
        if length not in values:
            values[length] = measure(length)
        return values[length] - wanted if higher_is_better else wanted - values[length]

    low, high = min_length, len(bits)
    if guess is not None:
        low, high = _bracket(margin, bits, low, high, guess)
    above = margin(high)
    if above < 0 or high == low:
        return SearchResult(high, above >= 0, values[high])
    below = margin(low)
    if below >= 0:
        return SearchResult(low, True, values[low])
    side = 0  # last guess: 1 above the target, -1 below
    while high - low > 1 and bits[high - 1] > (1 + tolerance) * bits[low - 1]:
        # The Illinois method on the logarithm of bits, since measures are nearly linear in it: 7 decodings where bisection
        # needs 11. An infinite PSNR gives no direction.
        share = below / (below - above) if math.isfinite(above) else 0.5
        share = min(1 - MARGIN, max(MARGIN, share))
        guess = bits[low - 1] ** (1 - share) * bits[high - 1] ** share
        middle = min(high - 1, max(low + 1, int(np.searchsorted(bits, guess)) + 1))
        value = margin(middle)
        if value >= 0:
            high, above, below, side = middle, value, below / (2 if side == 1 else 1), 1
        else:
            low, below, above, side = middle, value, above / (2 if side == -1 else 1), -1
    return SearchResult(high, True, values[high])


def _bracket(margin: Callable[[int], float], bits: NDArray[np.float64], low: int, high: int, guess: int) -> tuple[int, int]:
    """Lengths on both sides of the target, from `low` to `high`, or both at one end: steps away from a guess, which double."""
    near = min(high, max(low, guess))
    reached, factor = margin(near) >= 0, BRACKET
    while near != (low if reached else high):
        bound = bits[near - 1] / factor if reached else bits[near - 1] * factor
        index = int(np.searchsorted(bits, bound)) + 1
        far = max(low, min(near - 1, index)) if reached else min(high, max(near + 1, index))
        if (margin(far) >= 0) != reached:
            return min(near, far), max(near, far)
        near, factor = far, factor**2
    return near, near
