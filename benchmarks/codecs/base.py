"""What a benchmark needs of a codec, and how a file is fitted to a budget by a setting.

A codec has a *setting*, a whole number that buys more bytes the higher it is, and is fitted to a budget by taking the highest
setting whose file is no larger.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field
from math import log
from typing import Protocol

from benchmarks.measurements import Pixels


@dataclass(frozen=True)
class CodedFile:
    """A file, and the setting that made it, in words and as the number that makes it again."""

    data: bytes
    setting: str
    number: float


class Coder(Protocol):
    """A codec."""

    @property
    def name(self) -> str:
        """As --codecs has it."""

    @property
    def title(self) -> str:
        """As people know it."""

    @property
    def aim(self) -> str:
        """What it was trained on, or what its encoder decides by: a codec looks good in the measure that it was made for."""

    @property
    def description(self) -> str:
        """Encoder, version and fixed settings."""

    @property
    def settings(self) -> Sequence[int]:
        """Its own settings, lowest rate first: where a published curve would have its points."""

    def check(self) -> None:
        """Raises CodecMissingError where it cannot run."""

    def encode(self, pixels: Pixels, setting: float) -> bytes:
        """Pixels -> a whole file."""

    def decode(self, data: bytes) -> Pixels:
        """The inverse of `encode`."""

    def fit(self, pixels: Pixels, budgets: Sequence[int]) -> list[CodedFile | None]:
        """For each budget in bytes the best file that is no larger; None where there is none."""


@dataclass
class Sizes:
    """The files of one image at settings tried so far: fitting several budgets shares them."""

    coder: Coder
    pixels: Pixels
    files: dict[int, bytes] = field(default_factory=dict)

    def at(self, setting: int) -> bytes:
        if setting not in self.files:
            self.files[setting] = self.coder.encode(self.pixels, setting)
        return self.files[setting]

    def fit(self, choices: Sequence[int], budget: int) -> CodedFile | None:
        """The highest of the `choices`, which ascend, whose file is within the budget.

        Between two settings that were tried, the next one is where the budget would lie if sizes grew exponentially; where that
        does not halve the gap, its middle. High settings are slow, so the first is a low one."""
        sizes = {place: len(self.files[choice]) for place, choice in enumerate(choices) if choice in self.files}
        low = max((place for place, size in sizes.items() if size <= budget), default=-1)
        high = min((place for place, size in sizes.items() if size > budget and place > low), default=len(choices))
        halve = False
        while high - low > 1:
            middle = (low + high) // 2 if low in sizes or high in sizes else len(choices) // 4
            if low in sizes and high in sizes and not halve:
                share = log(max(1, budget) / max(1, sizes[low])) / log(sizes[high] / max(1, sizes[low]))
                middle = min(high - 1, max(low + 1, low + round(share * (high - low))))
            gap, sizes[middle] = high - low, len(self.at(choices[middle]))
            low, high = (middle, high) if sizes[middle] <= budget else (low, middle)
            halve = 2 * (high - low) > gap
        return CodedFile(self.files[choices[low]], f"quality {choices[low]}", choices[low]) if low >= 0 else None
