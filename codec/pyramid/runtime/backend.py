"""The interface of the runtimes: the steps of a pyramid's network, as methods on arrays of the runtime's own type. No torch.

`codec.pyramid.tokenizer` and `tiles` use only the array operations that NumPy and torch share: shape, length, slices and
arithmetic. So arrays stay on the device that computed them, and only pixels (uint8) and digits (int8) leave it.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, Protocol, TypeAlias

import numpy as np
from numpy.typing import NDArray

from codec.pyramid.config import NetworkConfig

Array: TypeAlias = Any  # float32, of NumPy or of torch
TRIM_CELLS = 8192  # 2 megapixels; after smaller updates, `trim_heap` is not worth its cost


class Backend(Protocol):
    """A network in memory. `codec.pyramid.network` explains the axes."""

    config: NetworkConfig

    def zeros(self, *shape: int) -> Array: ...

    def array(self, values: NDArray) -> Array:
        """Copies values to this runtime."""

    def encode(self, pixels: NDArray[np.uint8]) -> Array:
        """Pixels (B, 16h, 16w, 3) -> latents (B, C, h, w)."""

    def predict(self, index: int, latents: Array, known: Array) -> Array:
        """Predicts the latents (B, C, h, w) from the levels before; level `index` codes the difference to this prediction."""

    def analyse(self, index: int, residual: Array) -> Array:
        """Difference to the predicted latents (B, C, h, w) -> digits of level `index` before rounding (B, D, n, m)."""

    def choose(
        self, raw: Array, contexts: NDArray[np.uint8], bits: NDArray[np.float32], limit: int, rdo_lambda: float
    ) -> NDArray[np.int8]:
        """Rounds `raw` (D, n, m) to digits, as `codec.pyramid.network.choose_digits` does."""

    def update(
        self, index: int, latents: Array, known: Array, predicted: Array, digits: Array, keep: Array
    ) -> tuple[Array, Array]:
        """Adds the digits (B, D, n, m) of level `index` to latents and map of known tokens where `keep` (B, 1, n, m) is 1.
        Digits and `keep` may be NumPy arrays in any runtime."""

    def features(self, latents: Array, known: Array) -> Array:
        """Latents (B, C, h, w) and map of known tokens (B, 1, h, w) -> the decoder's features at 1/16 (B, F, h, w)."""

    def pixels(
        self, latents: Array, features: Array, detail: float = 0.0, noise: Sequence[NDArray[np.uint8]] = ()
    ) -> NDArray[np.uint8]:
        """Latents (B, C, h, w) and features (B, F, h, w) -> pixels (B, 16h, 16w, 3), with texture of strength `detail` from
        the `noise` of these cells (`codec.pyramid.noise.texture_noise`)."""
