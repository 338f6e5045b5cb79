"""The codecs that a benchmark compares, each through its real encoder, each whole file counted.

A codec has a *setting*, a whole number that buys more bytes the higher it is, and is fitted to a budget by taking the highest
setting whose file is no larger. `SCALES` are what the downscaled variants choose from: at low rates, shrinking a picture
before coding and enlarging it after is a far stronger opponent than the codec at the picture's own size.
"""

from __future__ import annotations

import io
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from typing import Any, Protocol

import numpy as np
import PIL
from PIL import Image, features

from benchmarks.results import Pixels
from bitstream.errors import CodecMissingError, TargetError
from codec.api import Codec
from codec.lengths import Target, quality_of_block_tokens

SCALES = (1.0, 0.75, 0.5, 0.35, 0.25, 0.125)
SCALED = "-scaled"  # ending of a downscaled variant's name


@dataclass(frozen=True)
class CodedFile:
    """A file, and the setting that made it, in words and as the number that makes it again."""

    data: bytes
    setting: str
    number: float


class Coder(Protocol):
    """What a benchmark needs of a codec."""

    @property
    def name(self) -> str:
        """As --codecs has it."""

    @property
    def title(self) -> str:
        """As people know it."""

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


@dataclass(frozen=True)
class PillowCoder:
    """A codec that Pillow, or a plugin of Pillow, writes and reads."""

    name: str
    title: str
    format: str  # as Pillow has it
    feature: str  # of Pillow, or the distribution that brings the plugin
    lowest: int  # of the encoder's quality
    highest: int
    options: Mapping[str, Any]  # fixed settings of the encoder

    @property
    def description(self) -> str:
        fixed = ", ".join(f"{key} {value}" for key, value in self.options.items())
        return f"{self.title}: {self.feature} {self._version()} through Pillow {PIL.__version__}, {fixed}"

    @property
    def settings(self) -> Sequence[int]:
        return [*range(max(5, self.lowest), self.highest, 5)]  # as compressai's published curves have them

    def _version(self) -> str:
        if self.feature == JXL_PLUGIN:
            try:
                import pillow_jxl  # noqa: F401 (registers itself)

                return version(JXL_PLUGIN)
            except (ImportError, PackageNotFoundError) as error:
                msg = f"{self.title} needs {JXL_PLUGIN}: pip install {JXL_PLUGIN}"
                raise CodecMissingError(msg) from error
        found = features.version(self.feature)
        if found is None:
            msg = f"{self.title} is missing from this Pillow ({PIL.__version__}): install a build with {self.feature}"
            raise CodecMissingError(msg)
        return found

    def check(self) -> None:
        self._version()

    def encode(self, pixels: Pixels, setting: float) -> bytes:
        stream = io.BytesIO()
        try:
            Image.fromarray(pixels).save(stream, self.format, **self.options, **self._quality(setting))
        except (OSError, ValueError, RuntimeError) as error:
            height, width = pixels.shape[:2]
            msg = f"{self.title} failed on a picture of {width}x{height} at quality {setting:g} ({error})"
            raise CodecMissingError(msg) from error
        return stream.getvalue()

    def _quality(self, setting: float) -> dict[str, Any]:
        return {"quality": int(setting)}

    def decode(self, data: bytes) -> Pixels:
        return np.asarray(Image.open(io.BytesIO(data)).convert("RGB"))

    def fit(self, pixels: Pixels, budgets: Sequence[int]) -> list[CodedFile | None]:
        sizes = Sizes(self, pixels)
        return [sizes.fit(range(self.lowest, self.highest + 1), budget) for budget in budgets]


class Jpeg2000Coder(PillowCoder):
    """JPEG 2000 is told a compression ratio; here setting s means a ratio of 10^(3.4 - s/200): from 2512 (0.01 bpp) in steps
    of 1.2 %."""

    @property
    def settings(self) -> Sequence[int]:
        return [*range(100, 601, 50)]

    def _quality(self, setting: float) -> dict[str, Any]:
        return {"quality_layers": [10 ** (3.4 - setting / 200)]}

    def fit(self, pixels: Pixels, budgets: Sequence[int]) -> list[CodedFile | None]:
        """From the setting that should meet the budget, up as long as it fits, else down until it does: a few trials each."""
        sizes = Sizes(self, pixels)
        made: list[CodedFile | None] = []
        for budget in budgets:
            wanted = 200 * (3.4 - np.log10(pixels.size / max(1, budget)))
            setting = int(np.clip(wanted, self.lowest, self.highest))
            if len(sizes.at(setting)) <= budget:
                while setting < self.highest and len(sizes.at(setting + 1)) <= budget:
                    setting += 1
            else:
                while setting > self.lowest and len(sizes.at(setting)) > budget:
                    setting -= 1
            data = sizes.at(setting)
            made.append(CodedFile(data, f"quality {setting}", setting) if len(data) <= budget else None)
        return made


JXL_PLUGIN = "pillow-jxl-plugin"
PILLOW_CODERS = (
    PillowCoder("jpeg", "JPEG", "JPEG", "libjpeg_turbo", 1, 95, {"optimize": True}),
    PillowCoder("webp", "WebP", "WEBP", "webp", 0, 100, {"method": 6}),
    PillowCoder("avif", "AVIF", "AVIF", "avif", 0, 100, {"speed": 6, "max_threads": 1}),
    Jpeg2000Coder(
        "jpeg2000", "JPEG 2000", "JPEG2000", "jpg_2000", 0, 680,
        {"quality_mode": "rates", "irreversible": True, "no_jp2": True},
    ),
    PillowCoder("jxl", "JPEG XL", "JXL", JXL_PLUGIN, 0, 99, {"effort": 7, "num_threads": 1}),
)  # fmt: skip
LEARNED_NAMES = ("bmshj2018-factorized", "bmshj2018-hyperprior", "mbt2018-mean", "cheng2020-attn")  # in compressai's zoo
NATIVE_NAMES = ("tessera", *(coder.name for coder in PILLOW_CODERS), *LEARNED_NAMES)
SCALED_NAMES = tuple(coder.name + SCALED for coder in PILLOW_CODERS)


class TesseraCoder:
    """Tessera itself: one encoding, cut for each budget."""

    name = "tessera"
    title = "Tessera"

    def __init__(self, codec: Codec) -> None:
        self.codec = codec

    @property
    def description(self) -> str:
        model = self.codec.model
        return f"Tessera, model {model.name}, fingerprint {model.metadata['fingerprint'][:16]}, on {self.codec.device}"

    @property
    def settings(self) -> Sequence[int]:
        return [*range(0, 101, 10)]

    def check(self) -> None:
        self.codec.model  # noqa: B018 (must open)

    def encode(self, pixels: Pixels, setting: float) -> bytes:
        return self.codec.encode(pixels, quality=setting)

    def decode(self, data: bytes) -> Pixels:
        return np.asarray(self.codec.decode(data))

    def fit(self, pixels: Pixels, budgets: Sequence[int]) -> list[CodedFile | None]:
        layout, sequence = self.codec.sequence(pixels)
        made: list[CodedFile | None] = []
        for budget in budgets:
            try:
                cut = self.codec.cut(layout, sequence, Target(target_size=budget))
                made.append(CodedFile(cut.data, f"{cut.tokens:.1f} tokens per block", quality_of_block_tokens(cut.tokens)))
            except TargetError:
                made.append(None)
        return made


@dataclass(frozen=True)
class CoderOptions:
    """What codecs need beside a picture."""

    model: str | None = None  # of Tessera: name or path
    device: str = "auto"
    learned_weights: str | None = None  # folder of compressai's weights


def make_coder(name: str, options: CoderOptions) -> Coder:
    """The codec of a name in NATIVE_NAMES. Raises CodecMissingError where it cannot run here."""
    coder: Coder
    if name == TesseraCoder.name:
        coder = TesseraCoder(Codec(options.model, options.device))
    elif name in LEARNED_NAMES:
        from benchmarks.learned import LearnedCoder

        coder = LearnedCoder(name, Path(options.learned_weights) if options.learned_weights else None)
    else:
        coder = next(coder for coder in PILLOW_CODERS if coder.name == name)
    coder.check()
    return coder


def shrink(pixels: Pixels, scale: float) -> Pixels:
    """The picture at a scale, by a Lanczos filter."""
    height, width = pixels.shape[:2]
    size = max(1, round(width * scale)), max(1, round(height * scale))
    return pixels if scale == 1 else np.asarray(Image.fromarray(pixels).resize(size, Image.Resampling.LANCZOS))


def enlarge(pixels: Pixels, width: int, height: int) -> Pixels:
    """The way back to a size, by a bicubic filter."""
    if pixels.shape[:2] == (height, width):
        return pixels
    return np.asarray(Image.fromarray(pixels).resize((width, height), Image.Resampling.BICUBIC))


def at_all_scales(coder: Coder, pixels: Pixels, budget: int) -> Iterator[tuple[CodedFile, Pixels]]:
    """At each scale, the best file within `budget` bytes and its picture at the original size."""
    height, width = pixels.shape[:2]
    for scale in SCALES:
        if made := coder.fit(shrink(pixels, scale), [budget])[0]:
            yield made, enlarge(coder.decode(made.data), width, height)
