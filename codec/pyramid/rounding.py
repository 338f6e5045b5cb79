"""Rounding in NumPy: digit for digit what `codec.pyramid.network.choose_digits` gives in torch. No torch."""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray


def choose_digits(
    raw: NDArray[np.float32], classes: NDArray[np.uint8], bits: NDArray[np.float32], limit: int, bit_worth: float
) -> NDArray[np.int8]:
    """Rate-distortion optimised rounding of `raw`, in steps, of any shape: the smaller magnitude wins where the bits that it
    saves under `bits` (classes, limit + 1), at `bit_worth` squared steps each, outweigh its error."""
    magnitude = np.abs(raw)
    near = np.minimum(np.rint(magnitude), np.float32(limit))
    less = np.maximum(near - np.float32(1), np.float32(0))
    at = classes.astype(np.intp) * bits.shape[1]
    flat = bits.ravel()
    saved = flat[at + near.astype(np.intp)] - flat[at + less.astype(np.intp)]
    error = np.square(magnitude - less) - np.square(magnitude - near)
    return (np.sign(raw) * np.where(error < np.float32(bit_worth) * saved, less, near)).astype(np.int8)
