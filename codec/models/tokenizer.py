"""Images and tokens, whatever family of models: the protocol that `codec.codec` knows, and nothing else of a network."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any, Protocol

import numpy as np
from numpy.typing import NDArray

from bitstream.sequence import Prefix, TokenSequence
from codec.rate_control import Enough


class Tokenizer(Protocol):
    """A network in memory, ready to code."""

    def tokenize(self, images: Sequence[NDArray[np.uint8]], enough: Sequence[Enough] | None = None) -> list[Any]:
        """Images (H, W, 3) of any sizes -> the tokens of each, a `bitstream.sequence.TokenSequence`: all of them or, where
        that saves time, the first ones, at least as many as are `enough`."""

    def detokenize(self, prefixes: Sequence[Any]) -> list[NDArray[np.uint8]]:
        """The inverse of `tokenize`, up to what tokens cannot carry: the first tokens of images, a `bitstream.sequence.Prefix`
        of this family each -> pixels (H, W, 3)."""


class Refiner(Protocol):
    """A tokenizer that can also search for better tokens of an image, if given the time."""

    def refine(
        self,
        image: NDArray[np.uint8],
        sequence: TokenSequence,
        length: int,
        squared_error: Callable[[Prefix], float],
        sized: bool,
        steps: int,
    ) -> TokenSequence:
        """A sequence whose first `length` tokens, or with `sized` those that fit into as many bytes, come closer to the image
        (H, W, 3). `squared_error` is that of the image that decodes from some tokens, summed over pixels 0..255."""
