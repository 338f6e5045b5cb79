"""The codecs that Pillow, or a plugin of Pillow, writes and reads: JPEG, WebP, AVIF, HEIC, JPEG 2000, JPEG XL.

Each has the effort at which its makers publish or which its own tool takes by default, and most also a quick one:

| codec | effort | quick |
|---|---|---|
| JPEG | libjpeg-turbo with optimised Huffman tables | without |
| WebP | method 6, its slowest | method 2 |
| AVIF | speed 4: slower ones brought 0.1 dB on Kodak's kodim15, avifenc's default of 6 costs 0.3 dB | speed 8 |
| HEIC | x265 preset slow, libheif's default; `placebo` brought nothing | ultrafast |
| JPEG 2000 | has none | |
| JPEG XL | effort 7, cjxl's default | effort 3 |
"""

from __future__ import annotations

import io
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from importlib import import_module
from importlib.metadata import PackageNotFoundError, version
from typing import Any

import numpy as np
import PIL
from PIL import Image, features

from benchmarks.codecs.base import CodedFile, Sizes
from benchmarks.measurements import Pixels
from codec.errors import CodecMissingError

QUICK = "-quick"  # ending of a variant's name
# What brings a format that Pillow itself lacks: distribution -> module, and what to call so that Pillow knows it
PLUGINS: Mapping[str, tuple[str, Callable[[Any], object]]] = {
    "pillow-jxl-plugin": ("pillow_jxl", lambda module: None),  # registers itself
    "pillow-heif": ("pillow_heif", lambda module: module.register_heif_opener()),
}


@dataclass(frozen=True)
class PillowCoder:
    """A codec that Pillow, or a plugin of Pillow, writes and reads."""

    name: str
    title: str
    aim: str
    format: str  # as Pillow has it
    feature: str  # of Pillow, or the distribution in PLUGINS
    lowest: int  # of the encoder's quality
    highest: int
    options: Mapping[str, Any]  # fixed settings of the encoder

    @property
    def description(self) -> str:
        plain = {key: value for option in self.options.items() for key, value in _flat(*option)}
        fixed = ", ".join(f"{key} {value}" for key, value in plain.items())
        return f"{self.title}: {self.feature} {self._version()} through Pillow {PIL.__version__}, {fixed}"

    @property
    def settings(self) -> Sequence[int]:
        return [*range(max(5, self.lowest), self.highest, 5)]  # as compressai's published curves have them

    def _version(self) -> str:
        if self.feature in PLUGINS:
            module, register = PLUGINS[self.feature]
            try:
                register(import_module(module))
                return version(self.feature)
            except (ImportError, PackageNotFoundError) as error:
                msg = f"{self.title} needs {self.feature}: pip install {self.feature}"
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
            msg = f"{self.title} failed on an image of {width}x{height} at quality {setting:g} ({error})"
            raise CodecMissingError(msg) from error
        return stream.getvalue()

    def _quality(self, setting: float) -> dict[str, Any]:
        return {"quality": int(setting)}

    def decode(self, data: bytes) -> Pixels:
        return np.asarray(Image.open(io.BytesIO(data)).convert("RGB"))

    def fit(self, pixels: Pixels, budgets: Sequence[int]) -> list[CodedFile | None]:
        sizes = Sizes(self, pixels)
        return [sizes.fit(range(self.lowest, self.highest + 1), budget) for budget in budgets]


def _flat(key: str, value: Any) -> list[tuple[str, Any]]:
    return list(value.items()) if isinstance(value, Mapping) else [(key, value)]


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


def quick(coder: PillowCoder, **options: Any) -> PillowCoder:
    """The codec at its quick setting."""
    return replace(coder, name=coder.name + QUICK, title=f"{coder.title}, quick", options={**coder.options, **options})


_AVIF = PillowCoder("avif", "AVIF", "the eye (libaom's tune iq)", "AVIF", "avif", 0, 100, {"speed": 4, "max_threads": 1})
PILLOW_CODERS = (
    PillowCoder("jpeg", "JPEG", "the eye (fixed tables)", "JPEG", "libjpeg_turbo", 1, 95, {"optimize": True}),
    PillowCoder("webp", "WebP", "squared error, then the eye", "WEBP", "webp", 0, 100, {"method": 6}),
    _AVIF,
    replace(
        _AVIF, name="avif-psnr", title="AVIF for PSNR", aim="squared error",
        options={**_AVIF.options, "advanced": {"tune": "psnr"}},
    ),
    PillowCoder(
        "heic", "HEIC", "SSIM (x265's tune)", "HEIF", "pillow-heif", 0, 100, {"enc_params": {"preset": "slow", "tune": "ssim"}}
    ),
    Jpeg2000Coder(
        "jpeg2000", "JPEG 2000", "squared error", "JPEG2000", "jpg_2000", 0, 680,
        {"quality_mode": "rates", "irreversible": True, "no_jp2": True},
    ),
    PillowCoder("jxl", "JPEG XL", "butteraugli", "JXL", "pillow-jxl-plugin", 0, 99, {"effort": 7, "num_threads": 1}),
)  # fmt: skip
_BY_NAME = {coder.name: coder for coder in PILLOW_CODERS}
QUICK_PILLOW_CODERS = (
    quick(_BY_NAME["jpeg"], optimize=False),
    quick(_BY_NAME["webp"], method=2),
    quick(_BY_NAME["avif"], speed=8),
    quick(_BY_NAME["avif-psnr"], speed=8),
    quick(_BY_NAME["heic"], enc_params={"preset": "ultrafast", "tune": "ssim"}),
    quick(_BY_NAME["jxl"], effort=3),
)
