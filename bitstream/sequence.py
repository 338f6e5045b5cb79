"""Token protocols, the same for all families of models. Pipelines, rate control, `info`, `tokens` and Pillow use
nothing else of a family.

The tokens of an image are a `TokenSequence`, in coding order: the order of a file. Its first tokens are a `Prefix`, and every
prefix decodes to an image. A `Code` lays tokens out over an image and reads prefixes from bytes; `bitstream.range_coder` writes
them. The implementations are `bitstream.pyramid_tokens`, `bitstream.codebook_tokens` and `bitstream.digit_tokens`.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from typing import Any, Protocol, TypeAlias, TypeVar

import numpy as np
from numpy.typing import NDArray

from bitstream.reference import Reference

L = TypeVar("L", bound="Layout")
P = TypeVar("P", bound="Prefix")


class Layout(Protocol):
    """The token positions of one image of width x height pixels."""

    @property
    def width(self) -> int: ...

    @property
    def height(self) -> int: ...

    @property
    def tokens(self) -> int:
        """Tokens of the complete sequence."""

    def length_of(self, block_tokens: float) -> int:
        """Length of the prefix that keeps this many tokens per block of 256x256 pixels."""

    def block_tokens_of(self, length: int) -> float:
        """The inverse of `length_of`, up to its rounding."""


class Prefix(Protocol):
    """The first tokens of an image."""

    @property
    def layout(self) -> Layout: ...

    @property
    def length(self) -> int:
        """Number of tokens."""


class TokenSequence(Protocol):
    """The tokens of an image in coding order: all, or as many as the target needs."""

    @property
    def layout(self) -> Layout: ...

    @property
    def length(self) -> int:
        """Number of tokens; fewer than `layout.tokens` if the target needs no more."""

    @property
    def difference(self) -> Difference | None:
        """The reference of the tokens, if they are not those of the image itself."""

    def bits(self) -> NDArray[np.float64]:
        """(tokens,) cost of each token under the tables of the code."""

    def chunks(self, first: int, last: int) -> Iterator[tuple[NDArray[np.int32], NDArray[np.float64]]]:
        """Yields the symbols (S,) of tokens first..last-1, counted from 0, and the frequencies less one (S, values) in the
        table of each symbol, some tokens at a time."""

    def first(self, length: int) -> Prefix:
        """The first `length` tokens, as `Code.decode` returns them."""


class Base(Protocol):
    """The latents of a reference, of the type that the network computes with."""

    @property
    def uses(self) -> NDArray[np.bool_]:
        """(h, w) mask of the cells that use the reference."""


@dataclass(frozen=True, eq=False)
class Difference:
    """The reference of an image's tokens, and the tokens of the image without it."""

    reference: Reference
    base: Base
    alone: TokenSequence  # the tokens of the image without the reference
    guess: int  # length with about the error that the image without the reference has with its typical length


class Code(Protocol[L, P]):
    """The layout, the order and the tables of a model's tokens."""

    @property
    def block_tokens(self) -> int:
        """Maximum number of tokens per block of 256x256 pixels."""

    @property
    def tail_drop(self) -> bool:
        """Whether the first tokens alone decode to an image (tail token drop, One-D-Piece, arXiv 2501.10064). Otherwise a
        block decodes from all of its tokens or not at all."""

    @property
    def quality_stops(self) -> tuple[tuple[float, float], ...]:
        """Pairs of a quality 0..100 and its tokens per block; linear in between."""

    def layout(self, width: int, height: int) -> L:
        """The token positions of an image."""

    def sequence(self, complete: P) -> TokenSequence:
        """The sequence of these tokens. Unknown tokens count as zero."""

    def decode(self, layout: L, payload: bytes, length: int, partial: bool = False) -> P:
        """The inverse of `sequence` and `bitstream.range_coder.encode_tokens`.

        With `partial` the payload may have been cut: only tokens that do not depend on the missing bytes are read, so the
        prefix may be shorter than `length`. Raises FormatError for bytes that no encoder writes."""

    def to_arrays(self, prefix: P) -> dict[str, NDArray[Any]]:
        """Tokens as plain arrays by name."""

    def from_arrays(self, layout: L, arrays: Mapping[str, NDArray[Any]]) -> P:
        """The inverse of `to_arrays`, for arrays of the right types and shapes. Raises FormatError if a value is out
        of range."""

    def array_types(self, layout: L) -> dict[str, tuple[str, tuple[int, ...]]]:
        """Type and shape of each array of `to_arrays`."""


AnyCode: TypeAlias = Code[Any, Any]
