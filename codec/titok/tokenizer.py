"""Images and tokens of TiTok and One-D-Piece."""

from __future__ import annotations

from collections.abc import Iterable, Sequence

import numpy as np
from numpy.typing import NDArray

from bitstream.codebook_tokens import CodebookCode, CodebookPrefix, CodebookSequence, complete_prefix
from codec.rate_control import Enough
from codec.titok.mosaic import detokenize_image, tokenize_image
from codec.titok.network import Titok


class TitokTokenizer:
    """A network and its code."""

    def __init__(self, network: Titok, code: CodebookCode) -> None:
        self.network = network
        self.code = code

    def tokenize(self, images: Sequence[NDArray[np.uint8]], enough: Sequence[Enough] | None = None) -> list[CodebookSequence]:
        """Images (H, W, 3) -> all their tokens: the network makes those of a block at once. The blocks of an image share
        network calls."""
        return [self._tokenize(image) for image in images]

    def _tokenize(self, image: NDArray[np.uint8]) -> CodebookSequence:
        indices = tokenize_image(self.network, to_unit(image))
        return self.code.sequence(complete_prefix(self.code.layout(image.shape[1], image.shape[0]), indices))

    def detokenize(self, prefixes: Sequence[CodebookPrefix]) -> list[NDArray[np.uint8]]:
        """The inverse of `tokenize`, for the tokens that are known -> pixels (H, W, 3)."""
        return [from_unit(detokenize_image(self.network, prefix)) for prefix in prefixes]


def indices_of(network: Titok, images: Iterable[NDArray[np.uint8]]) -> NDArray[np.int32]:
    """Images (H, W, 3) -> the indices of all their blocks (blocks, N)."""
    none = np.empty((0, network.config.block_tokens), np.int32)
    found = (tokenize_image(network, to_unit(image)) for image in images)
    return np.concatenate([none, *(indices.reshape(len(indices), -1).T for indices in found)])


def to_unit(image: NDArray[np.uint8]) -> NDArray[np.float32]:
    """(H, W, 3) in 0..255 -> (3, H, W) in [0, 1], as the published networks expect it."""
    return np.ascontiguousarray(image.transpose(2, 0, 1)).astype(np.float32) / np.float32(255)


def from_unit(pixels: NDArray[np.float32]) -> NDArray[np.uint8]:
    """The inverse of `to_unit`."""
    return np.ascontiguousarray(np.round(pixels * 255).clip(0, 255).astype(np.uint8).transpose(1, 2, 0))
