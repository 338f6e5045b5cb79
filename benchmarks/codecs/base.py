"""The interface of a codec in a benchmark, and the search for the setting that meets a size in bytes.

A codec has a *setting*, an integer: a higher setting gives a larger and better file. The best file within a budget has the
highest setting that fits.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from math import log
from typing import Protocol

import numpy as np
from PIL import Image

from benchmarks.records import Pixels

# At low rates, an image that is shrunk before coding and enlarged after decoding is far closer to its original than one coded
# at its own size, so downscaled variants choose from these scales.
SCALES = (1.0, 0.75, 0.5, 0.35, 0.25, 0.125)


@dataclass(frozen=True)
class CodedFile:
    """A file, and the setting that made it: in words, and as a number for `BenchCodec.encode`."""

    data: bytes
    setting: str
    number: float


class BenchCodec(Protocol):
    """A codec that a benchmark measures through its own encoder and decoder."""

    @property
    def name(self) -> str:
        """The codec's name in `--codecs`."""

    @property
    def title(self) -> str:
        """The codec's display name."""

    @property
    def made_for(self) -> str:
        """The objective of its training or of its encoder. The codec does well in similar metrics."""

    @property
    def description(self) -> str:
        """Encoder, version and fixed settings. Cached files are used only if it is equal."""

    @property
    def settings(self) -> Sequence[int]:
        """The settings of a published curve, lowest rate first."""

    def check(self) -> None:
        """Raises BenchError if the codec cannot run here."""

    def encode(self, pixels: Pixels, setting: float) -> bytes:
        """Pixels -> a complete file."""

    def decode(self, data: bytes) -> Pixels:
        """The inverse of `encode`."""

    def fit(self, pixels: Pixels, budgets: Sequence[int]) -> list[CodedFile | None]:
        """For each budget, in bytes, the best file that is no larger; None if there is none."""


@dataclass
class SettingSearch:
    """Searches the settings of a codec for one image. Files are kept, so that several budgets share them."""

    codec: BenchCodec
    pixels: Pixels
    files: dict[int, bytes] = field(default_factory=dict)  # setting -> file

    def encode(self, setting: int) -> bytes:
        if setting not in self.files:
            self.files[setting] = self.codec.encode(self.pixels, setting)
        return self.files[setting]

    def fit(self, settings: Sequence[int], budget: int) -> CodedFile | None:
        """The file of the highest setting within the budget. `settings` ascend.

        The next setting is interpolated between two tried ones, as if sizes grew exponentially. If that does not halve the
        gap between them, the middle is tried next. High settings are slow, so the search begins with a low one."""
        sizes = {index: len(self.files[setting]) for index, setting in enumerate(settings) if setting in self.files}
        low = max((index for index, size in sizes.items() if size <= budget), default=-1)
        high = min((index for index, size in sizes.items() if size > budget and index > low), default=len(settings))
        halve = False
        while high - low > 1:
            middle = (low + high) // 2 if low in sizes or high in sizes else len(settings) // 4
            if low in sizes and high in sizes and not halve:
                share = log(max(1, budget) / max(1, sizes[low])) / log(sizes[high] / max(1, sizes[low]))
                middle = min(high - 1, max(low + 1, low + round(share * (high - low))))
            gap, sizes[middle] = high - low, len(self.encode(settings[middle]))
            low, high = (middle, high) if sizes[middle] <= budget else (low, middle)
            halve = 2 * (high - low) > gap
        return CodedFile(self.files[settings[low]], f"quality {settings[low]}", settings[low]) if low >= 0 else None


def shrink(pixels: Pixels, scale: float) -> Pixels:
    """The image at a scale, by a Lanczos filter."""
    height, width = pixels.shape[:2]
    size = max(1, round(width * scale)), max(1, round(height * scale))
    return pixels if scale == 1 else np.asarray(Image.fromarray(pixels).resize(size, Image.Resampling.LANCZOS))


def enlarge(pixels: Pixels, width: int, height: int) -> Pixels:
    """The image at a larger size, by a bicubic filter."""
    if pixels.shape[:2] == (height, width):
        return pixels
    return np.asarray(Image.fromarray(pixels).resize((width, height), Image.Resampling.BICUBIC))


def fit_at_all_scales(codec: BenchCodec, pixels: Pixels, budget: int) -> Iterator[tuple[CodedFile, Pixels]]:
    """For each scale, the best file within `budget` bytes and its decoded image at the original's size."""
    height, width = pixels.shape[:2]
    for scale in SCALES:
        if file := codec.fit(shrink(pixels, scale), [budget])[0]:
            yield file, enlarge(codec.decode(file.data), width, height)
