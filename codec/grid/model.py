"""Model files of convolutional tokenizers. No torch until a network is needed."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import numpy as np
from numpy.typing import NDArray

from bitstream.digit_tokens import DigitCode, DigitPrefix, grid_code
from codec.errors import ModelError
from codec.grid.config import PUBLISHED, GridConfig
from codec.grid.names import AVERAGES, NAMINGS, Naming
from codec.models.digit_tables import measure_digits
from codec.models.published import CODEBOOK, PublishedModel

if TYPE_CHECKING:
    from codec.grid.network import Grid
    from codec.grid.tokenizer import GridTokenizer
    from codec.models.checkpoint import Checkpoint

LATENTS = "encoder.conv_out.weight"  # (C, ...), with a channel for each bit of a token if there is no codebook


@dataclass(frozen=True)
class GridModel(PublishedModel):
    """A model file of this family."""

    kind = "tessera-grid-1"
    tiles = True
    config_type = GridConfig
    code_arrays = ("tables", "picks", "classes", "ranks")

    @classmethod
    def recognises(cls, checkpoint: Checkpoint) -> bool:
        return _naming(checkpoint) is not None

    @classmethod
    def checkpoint_config(cls, checkpoint: Checkpoint, variant: str | None) -> GridConfig:
        """See `PublishedModel`. The published configuration with as many resolutions, and bits or vectors."""
        naming = _naming(checkpoint)
        assert naming is not None
        start = f"encoder.{naming.stages[0]}."
        stages = {name[len(start) :].partition(".")[0] for name in checkpoint.shapes if name.startswith(start)}
        configs = [config for config in PUBLISHED if config.name.startswith(naming.family)]
        for config in configs:
            tensor, size = (CODEBOOK, config.codebook) if config.codebook else (LATENTS, config.code)
            if checkpoint.shapes.get(tensor, (0,))[0] == size and len(stages) == len(config.multipliers):
                return config
        known = ", ".join(config.name for config in configs)
        msg = f"not a supported network of its kind: use {known}"
        raise ModelError(msg)

    @classmethod
    def sources(cls, checkpoint: Checkpoint, config: GridConfig) -> dict[str, str]:
        import torch

        naming = _naming(checkpoint)
        assert naming is not None
        with torch.device("meta"):
            names = cls.build(config).state_dict()
        published = {name: naming.published(name, len(config.multipliers)) for name in names}
        unknown = checkpoint.shapes.keys() - published.values()
        if any(name.startswith(AVERAGES) for name in checkpoint.shapes):
            trained = published
            published = {name: AVERAGES + source.replace(".", "") for name, source in trained.items()}
            shapes = checkpoint.shapes
            unknown |= {trained[name] for name, mean in published.items() if shapes.get(trained[name]) != shapes.get(mean)}
        # An unexpected tensor may have the network's name of another tensor, so its name is marked.
        return published | {f"{name} (in the file)": name for name in unknown if not name.startswith(naming.superfluous)}

    @classmethod
    def build(cls, config: GridConfig) -> Grid:
        from codec.grid.network import Grid

        return Grid(config)

    @classmethod
    def new_code(cls, config: GridConfig) -> DigitCode:
        return grid_code(config.levels, config.cell)

    @classmethod
    def fingerprint_arrays(cls, config: GridConfig) -> tuple[str, ...]:
        """The codebook or, without one, the encoder's last layer, which determines the bits."""
        return (CODEBOOK,) if config.codebook else (LATENTS, "encoder.conv_out.bias")

    def read_code(self, arrays: Mapping[str, NDArray[Any]]) -> DigitCode:
        tables, picks, classes, ranks = (arrays[name] for name in self.code_arrays)
        return DigitCode(self.config.levels, tables, picks, classes, ranks, self.config.cell)

    def measure(self, photos: Sequence[DigitPrefix]) -> tuple[DigitCode, float]:
        measurement = measure_digits(self.code, photos, self._compared_vectors())
        return measurement.code, measurement.bits

    def _compared_vectors(self) -> NDArray[np.float32] | None:
        """The codebook (V, D) as the quantizer compares it: of length 1 for unit vectors; None for bits."""
        if not self.config.codebook:
            return None
        with self.arrays() as file:
            vectors: NDArray[np.float32] = file.get_tensor(CODEBOOK).astype(np.float32)
        if self.config.quantizer == "unit-vector":
            vectors /= np.maximum(np.linalg.norm(vectors, axis=1, keepdims=True), 1e-12)
        return vectors

    def tokenizer(self, runtime: str, device: str, tile: int | None = None) -> GridTokenizer:
        from codec.grid.tokenizer import GridTokenizer

        return GridTokenizer(self.network(device), self.code, tile)


def _naming(checkpoint: Checkpoint) -> Naming | None:
    return next((naming for naming in NAMINGS if naming.marker in checkpoint.shapes), None)
