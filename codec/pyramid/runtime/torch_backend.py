"""The parts of a pyramid's network in torch, on any of its devices."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from codec.models.pixels import from_network, to_network
from codec.pyramid.config import NetworkConfig
from codec.pyramid.network import Network, PyramidLevel


class TorchBackend:
    """`codec.pyramid.runtime.backend.Backend` of a network; gradients pass through where the network has them."""

    def __init__(self, network: Network) -> None:
        self.network = network
        self._device = next(network.parameters()).device

    @property
    def config(self) -> NetworkConfig:
        return self.network.config

    @property
    def encoder_reach(self) -> int:
        return self.network.encoder.reach

    @property
    def decoder_reach(self) -> int:
        return self.network.decoder.reach

    @property
    def pixel_reach(self) -> int:
        return self.network.decoder.pixel_reach

    def zeros(self, *shape: int) -> Tensor:
        return torch.zeros(shape, device=self._device)

    def array(self, values: NDArray[np.float32]) -> Tensor:
        return torch.from_numpy(values).to(self._device)

    def join(self, arrays: Sequence[Tensor]) -> Tensor:
        return torch.cat(list(arrays))

    @torch.inference_mode()
    def encode(self, pixels: NDArray[np.uint8]) -> Tensor:
        return self.network.encoder(to_network(torch.from_numpy(pixels).to(self._device)))

    def predict(self, index: int, latents: Tensor, known: Tensor) -> Tensor:
        return self._level(index).predict(latents, known)

    def analyse(self, index: int, residual: Tensor) -> Tensor:
        return self._level(index).analyse(residual)

    def choose(self, index: int, raw: Tensor, classes: NDArray[np.uint8], bits: NDArray[np.float32]) -> NDArray[np.int8]:
        under = torch.from_numpy(classes).to(self._device).long()
        return self._level(index).round(raw, under, self.array(bits)).to(torch.int8).cpu().numpy()

    def update(
        self, index: int, latents: Tensor, known: Tensor, predicted: Tensor, digits: Tensor, keep: Tensor
    ) -> tuple[Tensor, Tensor]:
        return self._level(index).update(latents, known, predicted, digits, keep)

    @torch.inference_mode()
    def features(self, latents: Tensor, known: Tensor) -> Tensor:
        return self.network.decoder.features(latents, known)

    @torch.inference_mode()
    def pixels(self, latents: Tensor, features: Tensor) -> NDArray[np.uint8]:
        return from_network(self.network.decoder.pixels(latents, features)).cpu().numpy()

    def _level(self, index: int) -> PyramidLevel:
        level = self.network.levels[index]
        assert isinstance(level, PyramidLevel)
        return level
