"""Pictures and tokens, whatever family of models: the protocol that `codec.api` knows, and nothing else of a network."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any, Protocol

import numpy as np
from numpy.typing import NDArray

from bitstream.code import Prefix
from bitstream.code import Sequence as AllTokens


class Tokenizer(Protocol):
    """A network in memory, ready to code."""

    def tokenize(self, pictures: Sequence[NDArray[np.uint8]]) -> list[Any]:
        """Pictures (H, W, 3) of any sizes -> all tokens of each, a `bitstream.code.Sequence`."""

    def detokenize(self, prefixes: Sequence[Any]) -> list[NDArray[np.uint8]]:
        """The inverse of `tokenize`, up to what tokens cannot carry: the first tokens of pictures, a `bitstream.code.Prefix`
        of this family each -> pixels (H, W, 3)."""


class Refiner(Protocol):
    """A tokenizer that can also search for better tokens of a picture, if given the time."""

    def refine(
        self,
        picture: NDArray[np.uint8],
        sequence: AllTokens,
        length: int,
        squared_error: Callable[[Prefix], float],
        sized: bool,
        steps: int,
    ) -> AllTokens:
        """A sequence whose first `length` tokens, or with `sized` those that fit into as many bytes, come closer to the picture
        (H, W, 3). `squared_error` is that of the picture that decodes from some tokens, summed over pixels 0..255."""
