"""Latents and tokens, for coding: the pyramid run with the integer prior, so that what is written can be read anywhere.

`tokenize` and `detokenize` are inverses up to quantization, and walk the levels in the same way. Learning has its own walk in
`codec.training`, with gradients and a float prior.
"""

from __future__ import annotations

import numpy as np
import torch
import torch.nn.functional as F
from numpy.typing import NDArray
from torch import Tensor

from bitstream.coder import Tokens
from bitstream.layout import BLOCK_CELLS, Layout
from bitstream.prior import PRECISION, STRIP, Prior
from codec.network import Network, Pyramid


def on_canvas(grid: NDArray, layout: Layout, index: int, device: torch.device) -> Tensor:
    """Coded tokens (D, n, m) -> float (1, D, blocks x side, blocks x side), zero where tokens lie outside the picture."""
    side = layout.levels[index].side
    rows, columns = (count * side for count in layout.blocks)
    tensor = torch.from_numpy(np.ascontiguousarray(grid)).to(device).float()
    return F.pad(tensor, (0, columns - grid.shape[2], 0, rows - grid.shape[1]))[None]


def blank(network: Network, layout: Layout, device: torch.device) -> tuple[Tensor, Tensor]:
    """Latents (1, C, h, w) and map of known tokens (1, 1, h, w) before the first level."""
    rows, columns = (count * BLOCK_CELLS for count in layout.blocks)
    latents = torch.zeros(1, network.config.channels, rows, columns, device=device)
    return latents, torch.zeros(1, 1, rows, columns, device=device)


def price_table(prior: Prior, index: int) -> Tensor:
    """(classes, limit + 1) bits of an absolute digit, its sign included, under the level's tables."""
    frequencies = prior.priors[index].frequencies
    return torch.from_numpy(PRECISION - np.log2(frequencies[:, frequencies.shape[1] // 2 :])).float()


def round_digits(raw: Tensor, classes: NDArray[np.uint8], bits: Tensor, level: Pyramid) -> NDArray[np.int8]:
    """`choose_digits` over a whole level (D, n, m), some rows at a time to bound memory."""
    rows = max(1, STRIP // raw.shape[2])
    out = np.empty(classes.shape, np.int8)
    for top in range(0, raw.shape[1], rows):
        part = slice(top, top + rows)
        index = torch.from_numpy(classes[:, part]).to(raw.device).long()
        out[:, part] = level.round(raw[:, part], index, bits).to(torch.int8).cpu().numpy()
    return out


@torch.inference_mode()
def tokenize(network: Network, prior: Prior, layout: Layout, latents: Tensor) -> tuple[NDArray[np.int8], ...]:
    """Latents (1, C, h, w) of a whole canvas -> digits (D, n, m) of all tokens, a level each."""
    decoded, known = blank(network, layout, latents.device)
    digits: list[NDArray[np.int8]] = []
    for index, level in enumerate(network.levels):
        assert isinstance(level, Pyramid)
        rows, columns = layout.grids[index]
        predicted = level.predict(decoded, known)
        raw = level.analyse(latents - predicted)[0, :, :rows, :columns]
        classes = prior.classes(index, prior.context(layout, index, digits))
        digits.append(round_digits(raw, classes, price_table(prior, index).to(raw.device), level))
        keep = on_canvas(np.ones((1, rows, columns), np.bool_), layout, index, raw.device)
        decoded, known = level.update(decoded, known, predicted, on_canvas(digits[-1], layout, index, raw.device), keep)
    return tuple(digits)


@torch.inference_mode()
def detokenize(network: Network, layout: Layout, tokens: Tokens, device: torch.device) -> tuple[Tensor, Tensor]:
    """Tokens -> latents (1, C, h, w) and map of known tokens (1, 1, h, w) of the whole canvas."""
    decoded, known = blank(network, layout, device)
    for index, level in enumerate(network.levels):
        assert isinstance(level, Pyramid)
        if not tokens.known[index].any():
            break
        predicted = level.predict(decoded, known)
        keep = on_canvas(tokens.known[index][None], layout, index, device)
        decoded, known = level.update(decoded, known, predicted, on_canvas(tokens.digits[index], layout, index, device), keep)
    return decoded, known
