"""Images of any size as blocks of one size, and back.

An image is covered by as few blocks as possible, so that few bits are spent twice. They are spread evenly: neighbours overlap
by what is left over, and images shorter than a block are padded by repeating their edge. When decoding, neighbours are
blended across a small band around the middle of their overlap; where the overlap is narrower than the band, each block
continues beyond its edge as its mirror image. Seams become soft that way, and may still show.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass, field
from itertools import islice, pairwise

import numpy as np
import torch
from numpy.typing import NDArray

from bitstream.codebook_tokens import CodebookPrefix
from codec.titok.network import Titok

PIXELS = 8 * 256**2  # per call of the network
GREY = 0.5  # of blocks of which nothing is known, where nothing is known of any


def starts(length: int, side: int) -> list[int]:
    """Where the blocks along one side of an image begin, in pixels."""
    count = -(-length // side)
    return [round(index * (length - side) / (count - 1)) for index in range(count)] if count > 1 else [0]


def cut(pixels: NDArray[np.float32], side: int) -> Iterator[NDArray[np.float32]]:
    """(3, H, W) -> blocks (3, side, side) in reading order."""
    _, height, width = pixels.shape
    missing = (0, 0), (0, max(0, side - height)), (0, max(0, side - width))
    padded = np.pad(pixels, missing, "edge") if side > min(height, width) else pixels
    for top in starts(height, side):
        for left in starts(width, side):
            yield padded[:, top : top + side, left : left + side]


@dataclass
class Mosaic:
    """An image that is put together from its blocks: the inverse of `cut`, up to rounding where neighbours overlap by more
    than the band across which they are blended."""

    height: int
    width: int
    side: int
    pixels: NDArray[np.float32] = field(init=False)  # (3, height, width)

    def __post_init__(self) -> None:
        self.pixels = np.zeros((3, self.height, self.width), np.float32)
        self.rows, self.columns = _shares(self.height, self.side), _shares(self.width, self.side)

    def add(self, index: int, block: NDArray[np.float32]) -> None:
        """Adds block number `index` (3, side, side), in reading order; every block exactly once, in any order."""
        (top, down), (left, across) = self.rows[index // len(self.columns)], self.columns[index % len(self.columns)]
        reach = _reach(self.side)
        wide = np.pad(block, ((0, 0), (reach, reach), (reach, reach)), "symmetric")
        first, second = max(0, top - reach), max(0, left - reach)  # of the image; the mirror image at its border is left out
        y, x = first - top + reach, second - left + reach
        part = wide[:, y : y + len(down), x : x + len(across)]
        self.pixels[:, first : first + len(down), second : second + len(across)] += part * (down[:, None] * across)


def _reach(side: int) -> int:
    """Pixels to each side of the middle of an overlap that are blended: 8 for blocks of 256."""
    return max(1, side // 32)


def _shares(length: int, side: int) -> list[tuple[int, NDArray[np.float32]]]:
    """For each block along a side of an image its start, and its share in every pixel from `_reach` before it to `_reach`
    after it, as far as these lie inside the image. All shares in a pixel add up to 1."""
    begin = starts(length, side)
    reach = _reach(side)
    middles = [(left + side + right) / 2 for left, right in pairwise(begin)]
    shares = []
    for index, start in enumerate(begin):
        at = np.arange(max(0, start - reach), min(length, start + side + reach)) + 0.5
        share = np.ones(len(at))
        if index > 0:
            share *= np.clip(0.5 + (at - middles[index - 1]) / (2 * reach), 0, 1)
        if index < len(middles):
            share *= np.clip(0.5 - (at - middles[index]) / (2 * reach), 0, 1)
        shares.append((start, share.astype(np.float32)))
    return shares


def _together(side: int) -> int:
    """Blocks per call of the network."""
    return max(1, PIXELS // side**2)


def tokenize_image(network: Titok, pixels: NDArray[np.float32]) -> NDArray[np.int32]:
    """An image (3, H, W) in [0, 1] -> the indices of its blocks (N, rows, columns)."""
    side = network.config.side
    blocks = cut(pixels, side)
    device = network.latent_tokens.device
    found = []
    while batch := list(islice(blocks, _together(side))):
        found.append(network.tokenize(torch.from_numpy(np.stack(batch)).to(device)).cpu().numpy())
    grid = [len(starts(length, side)) for length in pixels.shape[1:]]
    return np.concatenate(found).T.reshape(-1, *grid).astype(np.int32)


def detokenize_image(network: Titok, prefix: CodebookPrefix) -> NDArray[np.float32]:
    """The inverse of `tokenize_image`, up to what tokens cannot carry, for the tokens that are known.

    Blocks of which too few tokens are known for an image take the mean colour of the others."""
    config = network.config
    lengths = prefix.block_lengths.ravel()
    indices = prefix.indices.reshape(len(prefix.indices), -1)
    mosaic = Mosaic(prefix.layout.height, prefix.layout.width, config.side)
    means = []
    enough = [length for length in np.unique(lengths) if length and (config.tail_drop or length == config.block_tokens)]
    for length in enough:
        places = np.flatnonzero(lengths == length)
        step = _together(config.side)
        for batch in np.split(places, range(step, len(places), step)):
            known = torch.from_numpy(indices[:length, batch].T.astype(np.int64)).to(network.latent_tokens.device)
            for place, block in zip(batch, network.detokenize(known).cpu().numpy(), strict=True):
                mosaic.add(int(place), block)
                means.append(block.mean((1, 2)))
    colour = np.mean(means, 0) if means else np.full(3, GREY)
    blank = np.broadcast_to(colour.astype(np.float32)[:, None, None], (3, config.side, config.side))
    for place in np.flatnonzero(~np.isin(lengths, enough)):
        mosaic.add(int(place), blank)
    return mosaic.pixels
