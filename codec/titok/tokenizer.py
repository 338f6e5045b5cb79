"""Images to tokens of TiTok and One-D-Piece, and back."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from itertools import islice

import numpy as np
import torch
from numpy.typing import NDArray

from bitstream.codebook_tokens import CodebookCode, CodebookPrefix, CodebookSequence, complete_prefix
from codec.models.base import Enough
from codec.titok.mosaic import Mosaic, block_starts, cut
from codec.titok.network import Titok

CALL_PIXELS = 8 * 256**2  # maximum pixels per network call
GREY = 0.5  # colour of an image without known tokens


class TitokTokenizer:
    """A network and its code, as the protocol `codec.models.base.Tokenizer`."""

    def __init__(self, network: Titok, code: CodebookCode) -> None:
        self.network = network
        self.code = code

    def tokenize(self, images: Sequence[NDArray[np.uint8]], enough: Sequence[Enough] | None = None) -> list[CodebookSequence]:
        """All tokens of images (H, W, 3). The network computes all tokens of a block together, so `enough` is ignored."""
        sequences = []
        for image in images:
            height, width, _ = image.shape
            indices = tokenize_image(self.network, to_unit(image))
            sequences.append(self.code.sequence(complete_prefix(self.code.layout(width, height), indices)))
        return sequences

    def detokenize(self, prefixes: Sequence[CodebookPrefix]) -> list[NDArray[np.uint8]]:
        """Pixels (H, W, 3) of images, from the known tokens of each."""
        return [from_unit(detokenize_image(self.network, prefix)) for prefix in prefixes]


def tokenize_blocks(network: Titok, images: Iterable[NDArray[np.uint8]]) -> tuple[NDArray[np.int32], NDArray[np.int64]]:
    """The indices (blocks, N) of all blocks of images (H, W, 3), and the number (blocks,) of each block's image."""
    indices = [tokenize_image(network, to_unit(image)) for image in images]
    empty = np.empty((0, network.config.block_tokens), np.int32)
    blocks = [grid.reshape(len(grid), -1).T for grid in indices]
    return np.concatenate([empty, *blocks]), np.repeat(np.arange(len(blocks)), [len(rows) for rows in blocks])


def tokenize_image(network: Titok, pixels: NDArray[np.float32]) -> NDArray[np.int32]:
    """The indices (N, rows, columns) of the blocks of an image (3, H, W) in [0, 1]."""
    side = network.config.side
    blocks = cut(pixels, side)
    device = network.latent_tokens.device
    indices = []
    while batch := list(islice(blocks, _call_blocks(side))):
        indices.append(network.tokenize(torch.from_numpy(np.stack(batch)).to(device)).cpu().numpy())
    grid = [len(block_starts(length, side)) for length in pixels.shape[1:]]
    return np.concatenate(indices).T.reshape(-1, *grid).astype(np.int32)


def detokenize_image(network: Titok, prefix: CodebookPrefix) -> NDArray[np.float32]:
    """An image (3, H, W) in [0, 1] from its known tokens. Blocks with too few tokens get the mean colour of the others."""
    config = network.config
    lengths = prefix.block_lengths.ravel()
    indices = prefix.indices.reshape(len(prefix.indices), -1)
    mosaic = Mosaic(prefix.layout.height, prefix.layout.width, config.side)
    colours = []
    decodable = [length for length in np.unique(lengths) if length and (config.tail_drop or length == config.block_tokens)]
    for length in decodable:
        blocks = np.flatnonzero(lengths == length)
        step = _call_blocks(config.side)
        for batch in np.split(blocks, range(step, len(blocks), step)):
            known = torch.from_numpy(indices[:length, batch].T.astype(np.int64)).to(network.latent_tokens.device)
            for block, pixels in zip(batch, network.detokenize(known).cpu().numpy(), strict=True):
                mosaic.add(int(block), pixels)
                colours.append(pixels.mean((1, 2)))
    colour = np.mean(colours, 0) if colours else np.full(3, GREY)
    blank = np.broadcast_to(colour.astype(np.float32)[:, None, None], (3, config.side, config.side))
    for block in np.flatnonzero(~np.isin(lengths, decodable)):
        mosaic.add(int(block), blank)
    return mosaic.pixels


def _call_blocks(side: int) -> int:
    return max(1, CALL_PIXELS // side**2)


def to_unit(image: NDArray[np.uint8]) -> NDArray[np.float32]:
    """Pixels (H, W, 3) in 0..255 as (3, H, W) in [0, 1], the input of the published networks."""
    return np.ascontiguousarray(image.transpose(2, 0, 1)).astype(np.float32) / np.float32(255)


def from_unit(pixels: NDArray[np.float32]) -> NDArray[np.uint8]:
    """The inverse of `to_unit`."""
    return np.ascontiguousarray(np.round(pixels * 255).clip(0, 255).astype(np.uint8).transpose(1, 2, 0))
