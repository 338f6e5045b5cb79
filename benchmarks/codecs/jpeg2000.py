"""JPEG 2000 (OpenJPEG through Pillow), which has no effort to choose."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np

from benchmarks.codecs.base import CodedFile, SettingSearch
from benchmarks.codecs.pillow import PillowCodec
from benchmarks.records import Pixels


class Jpeg2000Codec(PillowCodec):
    """The encoder takes a compression ratio. Setting s is a ratio of 10^(3.4 - s/200): from 2512 (0.01 bpp) in steps of 1.2
    %."""

    @property
    def settings(self) -> Sequence[int]:
        return range(100, 601, 50)

    def _quality(self, setting: float) -> dict[str, Any]:
        return {"quality_layers": [10 ** (3.4 - setting / 200)]}

    def fit(self, pixels: Pixels, budgets: Sequence[int]) -> list[CodedFile | None]:
        """Starts at the setting that should meet the budget and goes up while files fit, or down until one fits: few trials."""
        search = SettingSearch(self, pixels)
        files: list[CodedFile | None] = []
        for budget in budgets:
            expected = 200 * (3.4 - np.log10(pixels.size / max(1, budget)))
            setting = int(np.clip(expected, self.lowest, self.highest))
            if len(search.encode(setting)) <= budget:
                while setting < self.highest and len(search.encode(setting + 1)) <= budget:
                    setting += 1
            else:
                while setting > self.lowest and len(search.encode(setting)) > budget:
                    setting -= 1
            data = search.encode(setting)
            files.append(CodedFile(data, f"quality {setting}", setting) if len(data) <= budget else None)
        return files


JPEG2000 = Jpeg2000Codec(
    "jpeg2000", "JPEG 2000", "squared error", "JPEG2000", "jpg_2000", 0, 680,
    {"quality_mode": "rates", "irreversible": True, "no_jp2": True},
)  # fmt: skip
