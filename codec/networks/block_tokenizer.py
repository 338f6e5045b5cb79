"""Images of any size to tokens and back, with a network for blocks of one size."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from itertools import islice
from typing import Any, Protocol

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from bitstream.codebook_tokens import CodebookPrefix, complete_prefix
from bitstream.sequence import AnyCode, TokenSequence
from codec.models.base import Enough
from codec.models.published import PublishedConfig
from codec.networks.mosaic import assemble, block_starts, cut


class BlockNetwork(Protocol):
    """A network that turns blocks into indices and back. N is `block_tokens`."""

    config: PublishedConfig

    def tokenize(self, pixels: Tensor) -> Tensor:
        """Indices (B, N), or digits (B, N, D), of blocks (B, 3, side, side) in [0, 1]."""

    def detokenize(self, indices: Tensor, /) -> Tensor:
        """Blocks (B, 3, side, side) in [0, 1] from the first n indices of each (B, n)."""

    def parameters(self) -> Any: ...


class BlockTokenizer:
    """A network for blocks and the code of its tokens, as the protocol `codec.models.base.Tokenizer`."""

    call_pixels = 8 * 256**2  # maximum pixels of the blocks in a network call
    complete_prefix: Callable[[Any, NDArray[np.int32]], Any] = staticmethod(complete_prefix)  # all tokens of an image

    def __init__(self, network: BlockNetwork, code: AnyCode) -> None:
        self.network = network
        self.code = code
        self.side = network.config.side
        self.device = next(iter(network.parameters())).device
        self.call_blocks = max(1, self.call_pixels // self.side**2)

    def tokenize(self, images: Sequence[NDArray[np.uint8]], enough: Sequence[Enough] | None = None) -> list[Any]:
        """All tokens of images (H, W, 3). The network computes all tokens of a block together, so `enough` is ignored."""
        return [self._tokenize(image) for image in images]

    def detokenize(self, prefixes: Sequence[Any]) -> list[NDArray[np.uint8]]:
        """Pixels (H, W, 3) of images, from the known tokens of each."""
        return [from_unit(self.detokenize_image(prefix)) for prefix in prefixes]

    def _tokenize(self, image: NDArray[np.uint8]) -> TokenSequence:
        layout = self.code.layout(image.shape[1], image.shape[0])
        return self.code.sequence(self.complete_prefix(layout, self.tokenize_image(to_unit(image))))

    def tokenize_image(self, pixels: NDArray[np.float32]) -> NDArray[np.int32]:
        """The tokens (N, rows, columns) or (D, N, rows, columns) of the blocks of an image (3, H, W) in [0, 1]."""
        blocks = cut(pixels, self.side)
        tokens = []
        while batch := list(islice(blocks, self.call_blocks)):
            tokens.append(self.network.tokenize(torch.from_numpy(np.stack(batch)).to(self.device)).cpu().numpy())
        grid = [len(block_starts(length, self.side)) for length in pixels.shape[1:]]
        complete = np.concatenate(tokens).T.astype(np.int32)  # the last axis is that of the blocks
        return complete.reshape(*complete.shape[:-1], *grid)

    def detokenize_image(self, prefix: CodebookPrefix) -> NDArray[np.float32]:
        """An image (3, H, W) in [0, 1] from its known tokens. Blocks with too few tokens get the mean colour of the others."""
        return assemble(prefix.layout.height, prefix.layout.width, self.side, self._decoded_blocks(prefix))

    def _decoded_blocks(self, prefix: CodebookPrefix) -> Iterator[tuple[int, NDArray[np.float32]]]:
        """Yields the number and the pixels (3, side, side) of each block that has enough tokens."""
        config = self.network.config
        lengths = prefix.block_lengths.ravel()
        indices = prefix.indices.reshape(len(prefix.indices), -1)
        decodable = [length for length in np.unique(lengths) if length and (config.tail_drop or length == config.block_tokens)]
        for length in decodable:
            blocks = np.flatnonzero(lengths == length)
            step = self.call_blocks
            for batch in np.split(blocks, range(step, len(blocks), step)):
                known = torch.from_numpy(indices[:length, batch].T.astype(np.int64)).to(self.device)
                yield from zip(batch.tolist(), self.network.detokenize(known).cpu().numpy(), strict=True)


def to_unit(image: NDArray[np.uint8]) -> NDArray[np.float32]:
    """Pixels (H, W, 3) in 0..255 as (3, H, W) in [0, 1], the input of the published networks."""
    return np.ascontiguousarray(image.transpose(2, 0, 1)).astype(np.float32) / np.float32(255)


def from_unit(pixels: NDArray[np.float32]) -> NDArray[np.uint8]:
    """The inverse of `to_unit`, rounded and clipped: (3, H, W) in [0, 1] to (H, W, 3) in 0..255."""
    return np.ascontiguousarray(np.round(pixels * 255).clip(0, 255).astype(np.uint8).transpose(1, 2, 0))
