"""Pictures and tokens of TiTok and One-D-Piece."""

from __future__ import annotations

from collections.abc import Iterable, Sequence

import numpy as np
from numpy.typing import NDArray

from bitstream.flat import FlatCode, FlatPrefix, FlatSequence, whole_of
from codec.lengths import Enough
from codec.titok.blocks import detokenize_picture, tokenize_picture
from codec.titok.network import Titok


class TitokTokenizer:
    """A network and its code."""

    def __init__(self, network: Titok, code: FlatCode) -> None:
        self.network = network
        self.code = code

    def tokenize(self, pictures: Sequence[NDArray[np.uint8]], enough: Sequence[Enough] | None = None) -> list[FlatSequence]:
        """Pictures (H, W, 3) -> all their tokens: the network makes those of a block at once. The blocks of a picture share
        network calls."""
        return [self._tokenize(picture) for picture in pictures]

    def _tokenize(self, picture: NDArray[np.uint8]) -> FlatSequence:
        indices = tokenize_picture(self.network, to_unit(picture))
        return self.code.sequence(whole_of(self.code.layout(picture.shape[1], picture.shape[0]), indices))

    def detokenize(self, prefixes: Sequence[FlatPrefix]) -> list[NDArray[np.uint8]]:
        """The inverse of `tokenize`, for the tokens that are known -> pixels (H, W, 3)."""
        return [from_unit(detokenize_picture(self.network, prefix)) for prefix in prefixes]


def indices_of(network: Titok, pictures: Iterable[NDArray[np.uint8]]) -> NDArray[np.int32]:
    """Pictures (H, W, 3) -> the indices of all their blocks (blocks, N)."""
    none = np.empty((0, network.config.block_tokens), np.int32)
    found = (tokenize_picture(network, to_unit(picture)) for picture in pictures)
    return np.concatenate([none, *(indices.reshape(len(indices), -1).T for indices in found)])


def to_unit(picture: NDArray[np.uint8]) -> NDArray[np.float32]:
    """(H, W, 3) in 0..255 -> (3, H, W) in [0, 1], as the published networks expect it."""
    return np.ascontiguousarray(picture.transpose(2, 0, 1)).astype(np.float32) / np.float32(255)


def from_unit(pixels: NDArray[np.float32]) -> NDArray[np.uint8]:
    """The inverse of `to_unit`."""
    return np.ascontiguousarray(np.round(pixels * 255).clip(0, 255).astype(np.uint8).transpose(1, 2, 0))
