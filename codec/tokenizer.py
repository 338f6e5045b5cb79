"""Pictures and tokens, whatever family of models: the protocol that `codec.api` knows, and nothing else of a network."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any, Protocol

import numpy as np
from numpy.typing import NDArray

from bitstream.code import Prefix
from bitstream.code import Sequence as Tokens
from codec.lengths import Enough


class Tokenizer(Protocol):
    """A network in memory, ready to code."""

    def tokenize(self, pictures: Sequence[NDArray[np.uint8]], enough: Sequence[Enough] | None = None) -> list[Any]:
        """Pictures (H, W, 3) of any sizes -> the tokens of each, a `bitstream.code.Sequence`: all of them or, where that saves
        time, the first ones, at least as many as are `enough`."""

    def detokenize(self, prefixes: Sequence[Any]) -> list[NDArray[np.uint8]]:
        """The inverse of `tokenize`, up to what tokens cannot carry: the first tokens of pictures, a `bitstream.code.Prefix`
        of this family each -> pixels (H, W, 3)."""


class Refiner(Protocol):
    """A tokenizer that can also search for better tokens of a picture, if given the time."""

    def refine(
        self,
        picture: NDArray[np.uint8],
        sequence: Tokens,
        length: int,
        squared_error: Callable[[Prefix], float],
        sized: bool,
        steps: int,
    ) -> Tokens:
        """A sequence whose first `length` tokens, or with `sized` those that fit into as many bytes, come closer to the picture
        (H, W, 3). `squared_error` is that of the picture that decodes from some tokens, summed over pixels 0..255."""
