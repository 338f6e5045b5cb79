"""What a runtime does for the pyramid: the parts of its network, as functions on arrays of the runtime's own kind. No torch.

Coding (`codec.pyramid.tokenizer`, `tiles` and `walk`) is written once, and knows of arrays only what NumPy's and torch's share:
shape, length, slices and arithmetic. So they stay where they were computed, on a GPU too, and cross over as bytes alone:
pixels in uint8, digits in int8.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, Protocol, TypeAlias

import numpy as np
from numpy.typing import NDArray

from codec.pyramid.config import NetworkConfig

Array: TypeAlias = Any  # float32, of NumPy or of torch


class Backend(Protocol):
    """A network in memory. Axes are those of `codec.pyramid.network`."""

    @property
    def config(self) -> NetworkConfig: ...

    @property
    def encoder_reach(self) -> int:
        """Cells around a cell that its latents depend on."""

    @property
    def decoder_reach(self) -> int:
        """Cells around a cell that its pixels depend on; even."""

    @property
    def pixel_reach(self) -> int:
        """Cells around a cell of which its pixels take features."""

    def zeros(self, *shape: int) -> Array: ...

    def array(self, values: NDArray[np.float32]) -> Array:
        """The values, where the runtime computes."""

    def join(self, arrays: Sequence[Array]) -> Array:
        """Arrays (B, ...) one after the other."""

    def encode(self, pixels: NDArray[np.uint8]) -> Array:
        """Pixels (B, 16h, 16w, 3) -> latents (B, C, h, w)."""

    def predict(self, index: int, latents: Array, known: Array) -> Array:
        """What the levels before a level say of the latents (B, C, h, w)."""

    def analyse(self, index: int, residual: Array) -> Array:
        """What is left of the latents (B, C, h, w) -> digits of a level before rounding (B, D, n, m)."""

    def choose(self, index: int, raw: Array, classes: NDArray[np.uint8], bits: NDArray[np.float32]) -> NDArray[np.int8]:
        """The digits to send for `raw` (D, n, m), by the class of each and the bits of its class (classes, limit + 1)."""

    def update(
        self, index: int, latents: Array, known: Array, predicted: Array, digits: Array, keep: Array
    ) -> tuple[Array, Array]:
        """Latents and known with a level's digits (B, D, n, m) added where `keep` (B, 1, n, m) is 1."""

    def features(self, latents: Array, known: Array) -> Array:
        """Latents (B, C, h, w) and map of known tokens (B, 1, h, w) -> what the decoder makes of them at 1/16 (B, F, h, w)."""

    def pixels(self, latents: Array, features: Array) -> NDArray[np.uint8]:
        """Latents (B, C, h, w) and features (B, F, h, w) -> pixels (B, 16h, 16w, 3)."""
