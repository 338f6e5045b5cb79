"""Vector quantization by the nearest vector of a codebook."""

from __future__ import annotations

import torch.nn.functional as F
from torch import Tensor, nn


class Codebook(nn.Module):
    """V vectors of length D, looked up by index. With `unit`, they and the vectors to quantize are scaled to norm 1."""

    def __init__(self, size: int, width: int, unit: bool = True) -> None:
        super().__init__()
        self.embedding = nn.Embedding(size, width)
        self.unit = unit

    def nearest(self, vectors: Tensor) -> Tensor:
        """Indices (...) of the codebook's vectors nearest to vectors (..., D), by Euclidean distance."""
        vectors, codes = self._scaled(vectors), self._scaled(self.embedding.weight)
        distances = vectors.square().sum(-1, keepdim=True) + codes.square().sum(-1) - 2 * vectors @ codes.t()
        return distances.argmin(-1)

    def lookup(self, indices: Tensor) -> Tensor:
        """The vectors (..., D) of indices (...)."""
        return self._scaled(self.embedding(indices))

    def _scaled(self, vectors: Tensor) -> Tensor:
        return F.normalize(vectors, dim=-1) if self.unit else vectors
