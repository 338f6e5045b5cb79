"""Image quality: PSNR here, free of torch; LPIPS in `codec.metrics.lpips`."""

from __future__ import annotations

import math

import numpy as np
from numpy.typing import NDArray


def psnr(image: NDArray[np.uint8], original: NDArray[np.uint8]) -> float:
    """Peak signal-to-noise ratio over all channels, in dB; infinite for equal images."""
    error = np.square(image.astype(np.float32) - original).mean(dtype=np.float64)
    return float(10 * np.log10(255**2 / error)) if error else math.inf
