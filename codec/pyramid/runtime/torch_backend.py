"""The pyramid's network in torch, on any torch device."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from codec.models.pixels import from_network, to_network
from codec.pyramid.network import Network, PyramidLevel, choose_digits
from codec.pyramid.runtime.backend import TRIM_CELLS
from codec.system.process import trim_heap


class TorchBackend:
    """`codec.pyramid.runtime.backend.Backend` of a network. Gradients pass through `predict`, `analyse` and `update`."""

    def __init__(self, network: Network) -> None:
        self.network = network
        self.config = network.config
        self.device = next(network.parameters()).device

    def zeros(self, *shape: int) -> Tensor:
        return torch.zeros(shape, device=self.device)

    def array(self, values: NDArray) -> Tensor:
        return torch.from_numpy(values.astype(np.float32)).to(self.device)

    @torch.inference_mode()
    def encode(self, pixels: NDArray[np.uint8]) -> Tensor:
        return self.network.encoder(to_network(torch.from_numpy(pixels).to(self.device)))

    def predict(self, index: int, latents: Tensor, known: Tensor) -> Tensor:
        return self._level(index).predict(latents, known)

    def analyse(self, index: int, residual: Tensor) -> Tensor:
        return self._level(index).analyse(residual)

    def choose(
        self, raw: Tensor, contexts: NDArray[np.uint8], bits: NDArray[np.float32], limit: int, rdo_lambda: float
    ) -> NDArray[np.int8]:
        tables = torch.from_numpy(contexts).to(self.device).long()
        digits = choose_digits(raw, tables, torch.from_numpy(bits).to(self.device), limit, rdo_lambda)
        return digits.to(torch.int8).cpu().numpy()

    def update(
        self,
        index: int,
        latents: Tensor,
        known: Tensor,
        predicted: Tensor,
        digits: Tensor | NDArray[np.float32],
        keep: Tensor | NDArray[np.float32],
    ) -> tuple[Tensor, Tensor]:
        digits, keep = (torch.as_tensor(array, device=self.device) for array in (digits, keep))
        result = self._level(index).update(latents, known, predicted, digits, keep)
        if known.numel() > TRIM_CELLS:
            trim_heap()
        return result

    @torch.inference_mode()
    def features(self, latents: Tensor, known: Tensor) -> Tensor:
        return self.network.decoder.features(latents, known)

    @torch.inference_mode()
    def pixels(
        self, latents: Tensor, features: Tensor, detail: float = 0.0, noise: Sequence[NDArray[np.uint8]] = ()
    ) -> NDArray[np.uint8]:
        decoder = self.network.decoder
        if detail:
            arrays = (torch.from_numpy(array).to(self.device) for array in noise)
            image = decoder.textured(latents, features, detail, *arrays)
        else:
            image = decoder.pixels(latents, features)
        return from_network(image).cpu().numpy()

    def _level(self, index: int) -> PyramidLevel:
        level = self.network.levels[index]
        assert isinstance(level, PyramidLevel)
        return level
