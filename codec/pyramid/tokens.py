"""Latents and tokens, for coding: the pyramid run with the integer prior, so that what is written can be read anywhere.

`tokenize` and `detokenize` are inverses up to quantization, and walk the levels in the same way. Learning has its own walk in
`codec.training.trainer`, with gradients and a float prior.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import TypeAlias

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from bitstream.coder import Tokens
from bitstream.layout import BLOCK_CELLS, Layout
from bitstream.prior import PRECISION, STRIP, Prior
from codec.pyramid.network import Network, PyramidLevel

Digits: TypeAlias = tuple[NDArray[np.int8], ...]  # (D, n, m) of a picture, a level each
Classes: TypeAlias = tuple[NDArray[np.uint8], ...]  # of each digit, likewise


def on_canvas(grids: Sequence[NDArray], layouts: Sequence[Layout], index: int, device: torch.device) -> Tensor:
    """Coded tokens (D, n, m), a picture each -> float (B, D, blocks x side, blocks x side), zero where tokens lie outside the
    picture."""
    side = layouts[0].levels[index].side
    rows, columns = (count * side for count in layouts[0].blocks)
    canvas = np.zeros((len(grids), len(grids[0]), rows, columns), np.float32)
    for out, grid in zip(canvas, grids, strict=True):
        out[:, : grid.shape[1], : grid.shape[2]] = grid
    return torch.from_numpy(canvas).to(device)


def blank(network: Network, layouts: Sequence[Layout], device: torch.device) -> tuple[Tensor, Tensor]:
    """Latents (B, C, h, w) and map of known tokens (B, 1, h, w) before the first level."""
    rows, columns = (count * BLOCK_CELLS for count in layouts[0].blocks)
    latents = torch.zeros(len(layouts), network.config.channels, rows, columns, device=device)
    return latents, torch.zeros(len(layouts), 1, rows, columns, device=device)


def price_table(prior: Prior, index: int) -> Tensor:
    """(classes, limit + 1) bits of an absolute digit, its sign included, under the level's tables."""
    frequencies = prior.priors[index].frequencies
    return torch.from_numpy(PRECISION - np.log2(frequencies[:, frequencies.shape[1] // 2 :])).float()


def round_digits(raw: Tensor, classes: NDArray[np.uint8], bits: Tensor, level: PyramidLevel) -> NDArray[np.int8]:
    """`choose_digits` over a whole level (D, n, m), some rows at a time to bound memory."""
    rows = max(1, STRIP // raw.shape[2])
    out = np.empty(classes.shape, np.int8)
    for top in range(0, raw.shape[1], rows):
        part = slice(top, top + rows)
        index = torch.from_numpy(classes[:, part]).to(raw.device).long()
        out[:, part] = level.round(raw[:, part], index, bits).to(torch.int8).cpu().numpy()
    return out


@torch.inference_mode()
def tokenize_batch(network: Network, prior: Prior, layouts: Sequence[Layout], latents: Tensor) -> list[tuple[Digits, Classes]]:
    """Latents (B, C, h, w) of canvases of one size -> for each picture the digits (D, n, m) of all its tokens, a level each,
    and the classes that the prior puts them in."""
    decoded, known = blank(network, layouts, latents.device)
    digits: list[list[NDArray[np.int8]]] = [[] for _ in layouts]
    classes: list[list[NDArray[np.uint8]]] = [[] for _ in layouts]
    for index, level in enumerate(network.levels):
        assert isinstance(level, PyramidLevel)
        predicted = level.predict(decoded, known)
        raw = level.analyse(latents - predicted)
        bits = price_table(prior, index).to(raw.device)
        for place, (layout, so_far) in enumerate(zip(layouts, digits, strict=True)):
            rows, columns = layout.grids[index]
            classes[place].append(prior.classes(index, prior.context(layout, index, so_far)))
            chosen = round_digits(raw[place, :, :rows, :columns], classes[place][-1], bits, level)
            so_far.append(chosen * layout.mask(index))
        keep = [layout.mask(index)[None] for layout in layouts]
        sent = on_canvas([so_far[-1] for so_far in digits], layouts, index, raw.device)
        decoded, known = level.update(decoded, known, predicted, sent, on_canvas(keep, layouts, index, raw.device))
    return [(tuple(so_far), tuple(under)) for so_far, under in zip(digits, classes, strict=True)]


def tokenize(network: Network, prior: Prior, layout: Layout, latents: Tensor) -> Digits:
    """The digits of `tokenize_batch` for one picture: latents (1, C, h, w)."""
    return tokenize_batch(network, prior, [layout], latents)[0][0]


@torch.inference_mode()
def detokenize_batch(
    network: Network, layouts: Sequence[Layout], tokens: Sequence[Tokens], device: torch.device
) -> tuple[Tensor, Tensor]:
    """Tokens of pictures whose canvases are of one size -> latents (B, C, h, w) and map of known tokens (B, 1, h, w)."""
    decoded, known = blank(network, layouts, device)
    for index, level in enumerate(network.levels):
        assert isinstance(level, PyramidLevel)
        if not any(part.known[index].any() for part in tokens):
            break
        predicted = level.predict(decoded, known)
        keep = on_canvas([part.known[index][None] for part in tokens], layouts, index, device)
        digits = on_canvas([part.digits[index] for part in tokens], layouts, index, device)
        decoded, known = level.update(decoded, known, predicted, digits, keep)
    return decoded, known


def detokenize(network: Network, layout: Layout, tokens: Tokens, device: torch.device) -> tuple[Tensor, Tensor]:
    """`detokenize_batch` for one picture."""
    return detokenize_batch(network, [layout], [tokens], device)
