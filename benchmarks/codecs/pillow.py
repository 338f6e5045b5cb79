"""Codecs that Pillow, or a plugin of Pillow, writes and reads: JPEG, WebP, AVIF, HEIC, JPEG XL.

Each codec runs at the effort of its makers' published results or at its tool's default effort, and at a quick one:

| codec | effort | quick |
|---|---|---|
| JPEG | libjpeg-turbo with optimised Huffman tables | without |
| WebP | method 6, its slowest | method 2 |
| AVIF | speed 4: slower ones gain 0.1 dB on Kodak's kodim15, avifenc's default of 6 loses 0.3 dB | speed 8 |
| HEIC | x265 preset slow, libheif's default; `placebo` gains nothing | ultrafast |
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

from benchmarks import BenchError
from benchmarks.codecs.base import CodedFile, SettingSearch
from benchmarks.records import QUICK, Pixels

# Plugins for formats that Pillow lacks: distribution -> module, and the function that registers it with Pillow
PLUGINS: Mapping[str, tuple[str, Callable[[Any], object]]] = {
    "pillow-jxl-plugin": ("pillow_jxl", lambda module: None),  # its import registers it
    "pillow-heif": ("pillow_heif", lambda module: module.register_heif_opener()),
}


@dataclass(frozen=True)
class PillowCodec:
    name: str
    title: str
    made_for: str
    format: str  # Pillow's name for it
    feature: str  # name of the library in `PIL.features`, or of the distribution in PLUGINS
    lowest: int  # quality
    highest: int
    options: Mapping[str, Any]  # fixed settings of the encoder

    @property
    def description(self) -> str:
        fixed: dict[str, Any] = {}
        for key, value in self.options.items():
            fixed |= value if isinstance(value, Mapping) else {key: value}
        words = ", ".join(f"{key} {value}" for key, value in fixed.items())
        return f"{self.title}: {self.feature} {self._version()} through Pillow {PIL.__version__}, {words}"

    @property
    def settings(self) -> Sequence[int]:
        return range(max(5, self.lowest), self.highest, 5)  # the settings of compressai's published curves

    def check(self) -> None:
        self._version()

    def _version(self) -> str:
        """The version of the library. Raises BenchError if it is not installed."""
        if self.feature in PLUGINS:
            module, register = PLUGINS[self.feature]
            try:
                register(import_module(module))
                return version(self.feature)
            except (ImportError, PackageNotFoundError) as error:
                msg = f"{self.title} needs {self.feature}: pip install {self.feature}"
                raise BenchError(msg) from error
        library_version = features.version(self.feature)
        if library_version is None:
            msg = f"{self.title} is missing from this Pillow ({PIL.__version__}): install a build with {self.feature}"
            raise BenchError(msg)
        return library_version

    def encode(self, pixels: Pixels, setting: float) -> bytes:
        stream = io.BytesIO()
        try:
            Image.fromarray(pixels).save(stream, self.format, **self.options, **self._quality(setting))
        except (OSError, ValueError, RuntimeError) as error:
            height, width = pixels.shape[:2]
            msg = f"{self.title} failed on an image of {width}x{height} at quality {setting:g} ({error})"
            raise BenchError(msg) from error
        return stream.getvalue()

    def _quality(self, setting: float) -> dict[str, Any]:
        """The options of the encoder for a setting."""
        return {"quality": int(setting)}

    def decode(self, data: bytes) -> Pixels:
        return np.asarray(Image.open(io.BytesIO(data)).convert("RGB"))

    def fit(self, pixels: Pixels, budgets: Sequence[int]) -> list[CodedFile | None]:
        search = SettingSearch(self, pixels)
        return [search.fit(range(self.lowest, self.highest + 1), budget) for budget in budgets]


JPEG = PillowCodec("jpeg", "JPEG", "the eye (fixed tables)", "JPEG", "libjpeg_turbo", 1, 95, {"optimize": True})
WEBP = PillowCodec("webp", "WebP", "squared error, then the eye", "WEBP", "webp", 0, 100, {"method": 6})
AVIF = PillowCodec("avif", "AVIF", "the eye (libaom's tune iq)", "AVIF", "avif", 0, 100, {"speed": 4, "max_threads": 1})
AVIF_PSNR = replace(
    AVIF,
    name="avif-psnr",
    title="AVIF for PSNR",
    made_for="squared error",
    options={**AVIF.options, "advanced": {"tune": "psnr"}},
)
HEIC = PillowCodec(
    "heic", "HEIC", "SSIM (x265's tune)", "HEIF", "pillow-heif", 0, 100, {"enc_params": {"preset": "slow", "tune": "ssim"}}
)
JXL = PillowCodec("jxl", "JPEG XL", "butteraugli", "JXL", "pillow-jxl-plugin", 0, 99, {"effort": 7, "num_threads": 1})


def _quick(codec: PillowCodec, **options: Any) -> PillowCodec:
    return replace(codec, name=codec.name + QUICK, title=f"{codec.title}, quick", options={**codec.options, **options})


QUICK_PILLOW_CODECS = (
    _quick(JPEG, optimize=False),
    _quick(WEBP, method=2),
    _quick(AVIF, speed=8),
    _quick(AVIF_PSNR, speed=8),
    _quick(HEIC, enc_params={"preset": "ultrafast", "tune": "ssim"}),
    _quick(JXL, effort=3),
)
