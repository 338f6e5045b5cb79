"""The codecs that a benchmark compares, each through its real encoder, each whole file counted.

`SCALES` are what the downscaled variants choose from: at low rates, shrinking an image before coding and enlarging it after is
a far stronger opponent than the codec at the image's own size.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from PIL import Image

from benchmarks.codecs.base import CodedFile, Coder
from benchmarks.codecs.pillow_codecs import PILLOW_CODERS, QUICK_PILLOW_CODERS
from benchmarks.codecs.vvc import QUICK_VVC, VVC
from benchmarks.measurements import Pixels
from codec.codec import Codec
from codec.errors import TargetError
from codec.rate_control import DEFAULT_EFFORT, Target

SCALES = (1.0, 0.75, 0.5, 0.35, 0.25, 0.125)
SCALED = "-scaled"  # ending of a downscaled variant's name
LEARNED_NAMES = ("bmshj2018-factorized", "bmshj2018-hyperprior", "mbt2018-mean", "cheng2020-attn")  # in compressai's zoo
CLASSICAL = (*PILLOW_CODERS, VVC)
QUICK_CODERS = (*QUICK_PILLOW_CODERS, QUICK_VVC)
QUICK_NAMES = tuple(coder.name for coder in QUICK_CODERS)
NATIVE_NAMES = ("tessera", *(coder.name for coder in CLASSICAL), *LEARNED_NAMES, *QUICK_NAMES)
SCALED_NAMES = tuple(coder.name + SCALED for coder in CLASSICAL)


class TesseraCoder:
    """Tessera itself: one encoding, cut for each budget."""

    name = "tessera"
    title = "Tessera"

    def __init__(self, codec: Codec) -> None:
        self.codec = codec

    @property
    def description(self) -> str:
        model = self.codec.model
        return (
            f"Tessera, model {model.name}, fingerprint {model.metadata['fingerprint'][:16]}, effort {DEFAULT_EFFORT}, on "
            f"{self.codec.device}{'' if self.codec.runtime == 'auto' else f' with {self.codec.runtime}'}"
        )

    @property
    def aim(self) -> str:
        own = self.codec.model.metadata["kind"].startswith("tessera-")
        return "squared error, features of VGG19, colour" if own else "what the makers of the checkpoint chose"

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
        sequence = self.codec.sequence(pixels)
        made: list[CodedFile | None] = []
        for budget in budgets:
            try:
                cut = self.codec.cut(sequence, Target(target_size=budget))
                made.append(CodedFile(cut.data, f"{cut.block_tokens:.1f} tokens per block", cut.quality))
            except TargetError:
                made.append(None)
        return made


@dataclass(frozen=True)
class CoderOptions:
    """What codecs need beside an image."""

    model: str | None = None  # of Tessera: name or path
    device: str = "auto"
    learned_weights: str | None = None  # folder of compressai's weights
    runtime: str = "auto"  # of Tessera


def make_coder(name: str, options: CoderOptions) -> Coder:
    """The codec of a name in NATIVE_NAMES. Raises CodecMissingError where it cannot run here."""
    coder: Coder
    if name == TesseraCoder.name:
        coder = TesseraCoder(Codec(options.model, options.device, runtime=options.runtime))
    elif name in LEARNED_NAMES:
        from benchmarks.codecs.compressai_codecs import LearnedCoder

        coder = LearnedCoder(name, Path(options.learned_weights) if options.learned_weights else None)
    else:
        coder = next(coder for coder in (*CLASSICAL, *QUICK_CODERS) if coder.name == name)
    coder.check()
    return coder


def shrink(pixels: Pixels, scale: float) -> Pixels:
    """The image at a scale, by a Lanczos filter."""
    height, width = pixels.shape[:2]
    size = max(1, round(width * scale)), max(1, round(height * scale))
    return pixels if scale == 1 else np.asarray(Image.fromarray(pixels).resize(size, Image.Resampling.LANCZOS))


def enlarge(pixels: Pixels, width: int, height: int) -> Pixels:
    """The way back to a size, by a bicubic filter."""
    if pixels.shape[:2] == (height, width):
        return pixels
    return np.asarray(Image.fromarray(pixels).resize((width, height), Image.Resampling.BICUBIC))


def at_all_scales(coder: Coder, pixels: Pixels, budget: int) -> Iterator[tuple[CodedFile, Pixels]]:
    """At each scale, the best file within `budget` bytes and its image at the original size."""
    height, width = pixels.shape[:2]
    for scale in SCALES:
        if made := coder.fit(shrink(pixels, scale), [budget])[0]:
            yield made, enlarge(coder.decode(made.data), width, height)
