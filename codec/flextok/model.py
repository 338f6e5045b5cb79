"""Model files of FlexTok: the network, its code, and the defaults of its sampler. No torch until a network is needed."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from numpy.typing import NDArray

from bitstream.digit_tokens import DigitCode, DigitPrefix, digit_code
from codec.errors import ModelError
from codec.flextok.config import FlextokConfig
from codec.models.digit_tables import measure_digits
from codec.models.published import PublishedModel

if TYPE_CHECKING:
    from torch import nn

    from codec.flextok.tokenizer import FlextokTokenizer
    from codec.models.checkpoint import Checkpoint


@dataclass(frozen=True)
class FlextokModel(PublishedModel):
    """A model file of this family."""

    kind = "tessera-flextok-1"
    samples = True
    search_tolerance = 0.1  # decoding a block takes 20 seconds to 4 minutes on a processor
    config_type = FlextokConfig
    code_arrays = ("tables", "picks", "classes", "ranks")
    licence = (
        "FlexTok's weights are licensed for research only, without commercial use (Apple Machine Learning Research Model "
        "License, https://github.com/apple/ml-flextok/blob/main/LICENSE_WEIGHTS)"
    )

    @classmethod
    def recognises(cls, checkpoint: Checkpoint) -> bool:
        from codec.flextok.checkpoint import recognises

        return recognises(checkpoint)

    @classmethod
    def checkpoint_config(cls, checkpoint: Checkpoint, variant: str | None) -> FlextokConfig:
        from codec.flextok.checkpoint import checkpoint_config

        return checkpoint_config(checkpoint)

    @classmethod
    def sources(cls, checkpoint: Checkpoint, config: FlextokConfig) -> dict[str, str]:
        from codec.flextok.checkpoint import sources

        return sources(checkpoint.shapes)

    @classmethod
    def build(cls, config: FlextokConfig) -> nn.Module:
        from codec.flextok.network import Flextok

        return Flextok(config)

    @classmethod
    def new_code(cls, config: FlextokConfig) -> DigitCode:
        return digit_code(config.levels, config.block_tokens, config.side)

    @classmethod
    def fingerprint_arrays(cls, config: FlextokConfig) -> tuple[str, ...]:
        """The encoder's last layer, which determines the digits: FSQ has no codebook."""
        return ("encoder.vectors.weight", "encoder.vectors.bias")

    def read_code(self, arrays: Mapping[str, NDArray[Any]]) -> DigitCode:
        tables, picks, classes, ranks = (arrays[name] for name in self.code_arrays)
        code = DigitCode(self.config.levels, tables, picks, classes, ranks, side=self.config.side)
        if code.block_tokens != self.config.block_tokens:
            msg = f"its code has {code.block_tokens} tokens, not {self.config.block_tokens}: get the file again"
            raise ModelError(msg)
        return code

    def measure(self, photos: Sequence[DigitPrefix]) -> tuple[DigitCode, float]:
        measurement = measure_digits(self.code, photos)
        return measurement.code, measurement.bits

    def tokenizer(self, runtime: str, device: str, tile: int | None = None) -> FlextokTokenizer:
        from codec.flextok.tokenizer import FlextokTokenizer

        return FlextokTokenizer(self.network(device), self.code)
