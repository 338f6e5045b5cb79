"""Where to stop: every rate is a prefix of one encoding, so quality and size are choices of a length."""

from __future__ import annotations

import math
from dataclasses import dataclass

import numpy as np

from bitstream.sequence import AnyCode, Layout
from codec.errors import UsageError

DEFAULT_QUALITY = 50
SLACK = 64  # bits: tokens that cost so many more than a budget has do not fit it, whatever the range coder saves at its end
DEFAULT_EFFORT = 3  # one pass of the network
EFFORT_STEPS = {4: 4, 5: 8, 6: 16, 7: 32, 8: 64, 9: 128}  # of refinement; none up to the default, which is as fast as it gets
RANGES: dict[str, tuple[float, float | None]] = {
    "quality": (0, 100),
    "tokens": (1, None),
    "target_size": (1, None),
    "target_bpp": (0, None),
    "target_psnr": (0, None),
    "target_lpips": (0, None),
}


@dataclass(frozen=True)
class Enough:
    """When an image has as many tokens as its target can need: so many, or as many as cost so many bits."""

    tokens: float = math.inf
    bits: float = math.inf

    def reached(self, tokens: int, bits: float) -> bool:
        """Whether so many tokens, which cost so many bits, are enough."""
        return tokens >= self.tokens or bits >= self.bits


@dataclass(frozen=True)
class Target:
    """How long a sequence should be: exactly one of these, or none for the default quality."""

    quality: float | None = None  # 0..100
    tokens: float | None = None  # per block of 256x256 pixels, from 1 to what the model has
    target_size: int | None = None  # bytes of the whole file, at most
    target_bpp: float | None = None  # bits per pixel of the whole file, at most
    target_psnr: float | None = None  # dB, at least
    target_lpips: float | None = None  # at most

    def __post_init__(self) -> None:
        given = [name for name, value in vars(self).items() if value is not None]
        if len(given) > 1:
            names = [name.replace("_", " ") for name in vars(self)]
            msg = f"give one of {', '.join(names[:-1])} and {names[-1]}, not {' and '.join(given)}"
            raise UsageError(msg)
        for name, (low, high) in RANGES.items():
            value = vars(self)[name]
            if value is not None and not (low <= value and (high is None or value <= high)):  # not a number is out, too
                label = name.replace("_", " ")
                msg = f"{label} {value:g} is out of range: {low} to {high}" if high else f"{label} {value:g} is too small"
                raise UsageError(msg)

    @property
    def searched(self) -> bool:
        """Whether images must be decoded, by the network, to find the length."""
        return self.target_psnr is not None or self.target_lpips is not None

    def budget(self, width: int, height: int) -> int | None:
        """Bytes that the whole file may take, or None where the target is no size."""
        if self.target_bpp is not None:
            return int(self.target_bpp * width * height / 8)
        return self.target_size

    def length(self, code: AnyCode, layout: Layout) -> int:
        """Tokens to keep, where the target is a quality or a number of tokens. Raises UsageError for more tokens per block than
        there are."""
        if self.tokens is None:
            quality = DEFAULT_QUALITY if self.quality is None else self.quality
            return layout.length_of(block_tokens_of_quality(code, quality))
        if self.tokens > code.block_tokens:
            msg = f"tokens {self.tokens:g} is out of range: 1 to {code.block_tokens}"
            raise UsageError(msg)
        return layout.length_of(self.tokens)

    def enough(self, code: AnyCode, layout: Layout) -> Enough:
        """What of a sequence is needed to find the length; all, where it is searched. Raises UsageError as `length` does."""
        if self.searched:
            return Enough()
        budget = self.budget(layout.width, layout.height)
        return Enough(self.length(code, layout)) if budget is None else Enough(bits=8 * budget + SLACK)


DEFAULT_TARGET = Target()


def block_tokens_of_quality(code: AnyCode, quality: float) -> float:
    """Tokens per block that a quality 0..100 stands for."""
    qualities, stops = zip(*code.quality_stops, strict=True)
    return float(np.interp(quality, qualities, stops))


def quality_of_block_tokens(code: AnyCode, block_tokens: float) -> float:
    """The inverse of `block_tokens_of_quality`; 0 and 100 beyond the ends."""
    qualities, stops = zip(*code.quality_stops, strict=True)
    return float(np.interp(block_tokens, stops, qualities))


def steps_of_effort(effort: int) -> int:
    """Steps of refinement that an effort 3..9 stands for. Raises UsageError for another: one pass of the network is the least
    that makes a file, and takes as long as it takes. (Encoding with the linear part of the network alone was tried as a lower
    effort: hardly faster, and 1.4 to 3 dB worse.)"""
    if effort not in range(DEFAULT_EFFORT, 10):
        msg = f"effort {effort} is out of range: {DEFAULT_EFFORT} to 9"
        raise UsageError(msg)
    return EFFORT_STEPS.get(effort, 0)
