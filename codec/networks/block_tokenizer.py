"""Images of any size to tokens and back, with a network for blocks of one size."""

from __future__ import annotations

from collections.abc import Sequence
from itertools import islice
from typing import Any, Protocol

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from bitstream.codebook_tokens import CodebookCode, CodebookPrefix, CodebookSequence, complete_prefix
from codec.models.base import Enough
from codec.models.published import PublishedConfig
from codec.networks.mosaic import Mosaic, block_starts, cut

CALL_PIXELS = 8 * 256**2  # maximum pixels of the blocks in a network call
GREY = 0.5  # colour of an image without known tokens


class BlockNetwork(Protocol):
    """A network that turns blocks into indices and back. N is `block_tokens`."""

    config: PublishedConfig

    def tokenize(self, pixels: Tensor) -> Tensor:
        """Indices (B, N) of blocks (B, 3, side, side) in [0, 1]."""

    def detokenize(self, indices: Tensor) -> Tensor:
        """Blocks (B, 3, side, side) in [0, 1] from the first n indices of each (B, n)."""

    def parameters(self) -> Any: ...


class BlockTokenizer:
    """A network for blocks and the code of its tokens, as the protocol `codec.models.base.Tokenizer`."""

    def __init__(self, network: BlockNetwork, code: CodebookCode) -> None:
        self.network = network
        self.code = code
        self.side = network.config.side
        self.device = next(iter(network.parameters())).device

    def tokenize(self, images: Sequence[NDArray[np.uint8]], enough: Sequence[Enough] | None = None) -> list[CodebookSequence]:
        """All tokens of images (H, W, 3). The network computes all tokens of a block together, so `enough` is ignored."""
        return [self._tokenize(image) for image in images]

    def detokenize(self, prefixes: Sequence[CodebookPrefix]) -> list[NDArray[np.uint8]]:
        """Pixels (H, W, 3) of images, from the known tokens of each."""
        return [from_unit(self.detokenize_image(prefix)) for prefix in prefixes]

    def _tokenize(self, image: NDArray[np.uint8]) -> CodebookSequence:
        layout = self.code.layout(image.shape[1], image.shape[0])
        return self.code.sequence(complete_prefix(layout, self.tokenize_image(to_unit(image))))

    def tokenize_image(self, pixels: NDArray[np.float32]) -> NDArray[np.int32]:
        """The indices (N, rows, columns) of the blocks of an image (3, H, W) in [0, 1]."""
        blocks = cut(pixels, self.side)
        indices = []
        while batch := list(islice(blocks, self._call_blocks)):
            indices.append(self.network.tokenize(torch.from_numpy(np.stack(batch)).to(self.device)).cpu().numpy())
        grid = [len(block_starts(length, self.side)) for length in pixels.shape[1:]]
        return np.concatenate(indices).T.reshape(-1, *grid).astype(np.int32)

    def detokenize_image(self, prefix: CodebookPrefix) -> NDArray[np.float32]:
        """An image (3, H, W) in [0, 1] from its known tokens. Blocks with too few tokens get the mean colour of the others."""
        config = self.network.config
        lengths = prefix.block_lengths.ravel()
        indices = prefix.indices.reshape(len(prefix.indices), -1)
        mosaic = Mosaic(prefix.layout.height, prefix.layout.width, self.side)
        colours = []
        decodable = [length for length in np.unique(lengths) if length and (config.tail_drop or length == config.block_tokens)]
        for length in decodable:
            blocks = np.flatnonzero(lengths == length)
            step = self._call_blocks
            for batch in np.split(blocks, range(step, len(blocks), step)):
                known = torch.from_numpy(indices[:length, batch].T.astype(np.int64)).to(self.device)
                for block, pixels in zip(batch, self.network.detokenize(known).cpu().numpy(), strict=True):
                    mosaic.add(int(block), pixels)
                    colours.append(pixels.mean((1, 2)))
        colour = np.mean(colours, 0) if colours else np.full(3, GREY)
        blank = np.broadcast_to(colour.astype(np.float32)[:, None, None], (3, self.side, self.side))
        for block in np.flatnonzero(~np.isin(lengths, decodable)):
            mosaic.add(int(block), blank)
        return mosaic.pixels

    @property
    def _call_blocks(self) -> int:
        return max(1, CALL_PIXELS // self.side**2)


def to_unit(image: NDArray[np.uint8]) -> NDArray[np.float32]:
    """Pixels (H, W, 3) in 0..255 as (3, H, W) in [0, 1], the input of the published networks."""
    return np.ascontiguousarray(image.transpose(2, 0, 1)).astype(np.float32) / np.float32(255)


def from_unit(pixels: NDArray[np.float32]) -> NDArray[np.uint8]:
    """The inverse of `to_unit`, rounded and clipped: (3, H, W) in [0, 1] to (H, W, 3) in 0..255."""
    return np.ascontiguousarray(np.round(pixels * 255).clip(0, 255).astype(np.uint8).transpose(1, 2, 0))
