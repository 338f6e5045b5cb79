"""What a benchmark needs of a codec, and how a file is fitted to a budget by a setting.

A codec has a *setting*, a whole number that buys more bytes the higher it is, and is fitted to a budget by taking the highest
setting whose file is no larger.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Protocol

from benchmarks.results import Pixels


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
    """The files of one picture at settings tried so far: fitting several budgets shares them."""

    coder: Coder
    pixels: Pixels
    files: dict[int, bytes] = field(default_factory=dict)

    def at(self, setting: int) -> bytes:
        if setting not in self.files:
            self.files[setting] = self.coder.encode(self.pixels, setting)
        return self.files[setting]

    def fit(self, choices: Sequence[int], budget: int) -> CodedFile | None:
        """The highest of the `choices`, which ascend, whose file is within the budget, by bisection."""
        low, high, best = 0, len(choices) - 1, None
        while low <= high:
            middle = (low + high) // 2
            data = self.at(choices[middle])
            if len(data) <= budget:
                low, best = middle + 1, CodedFile(data, f"quality {choices[middle]}", choices[middle])
            else:
                high = middle - 1
        return best
