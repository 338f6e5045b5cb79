"""Model files: safetensors with plain metadata, a fingerprint and a digest. Each family of models extends `Model`. No torch.

The fingerprint covers everything that determines the meaning of tokens. Any model with the same fingerprint decodes a file, so
a better encoder or decoder may come later. The digest covers all arrays and is verified before any is used: damage would
otherwise show only in the images.
"""

from __future__ import annotations

import hashlib
import json
import math
import re
from abc import ABC, abstractmethod
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Any, ClassVar, Protocol

import numpy as np
from numpy.typing import NDArray
from safetensors import SafetensorError, safe_open
from safetensors.numpy import save_file

from bitstream.container import STREAM_ID_BYTES
from bitstream.reference import Reference
from bitstream.sequence import AnyCode, Base, Prefix, TokenSequence
from codec.errors import FileError, ModelError
from codec.system.device import TORCH
from codec.system.files import atomic_write

HASH = "[0-9a-f]{64}"
METADATA: dict[str, Any] = {"kind": r"[\w.-]{1,64}", "fingerprint": HASH, "digest": HASH, "network": dict, "card": dict}
METADATA_MAX = 1 << 20  # bytes
ARRAY_TYPES = {"F16", "F32", "I16", "I32", "I64", "U8"}


@dataclass(frozen=True)
class Model(ABC):
    """A model file whose metadata was read; arrays are read when they are needed."""

    path: Path
    metadata: dict[str, Any]

    kind: ClassVar[str]  # name of the family in its files' metadata
    companions: ClassVar[tuple[str, ...]] = ()  # suffixes of files beside the model file, which are removed with it
    refines: ClassVar[bool] = False  # whether its tokenizers are also of type `Refiner`
    tiles: ClassVar[bool] = False  # whether it can compute an image in tiles of any size
    refers: ClassVar[bool] = False  # whether its tokenizers are also of type `Referencer`
    search_tolerance: ClassVar[float] = 0.005  # share of a file's bits; larger if decoding is slow

    @property
    def name(self) -> str:
        return self.path.stem

    @property
    def runtimes(self) -> tuple[str, ...]:
        """The supported runtimes, the faster one on processors first."""
        return (TORCH,)

    @property
    def why_only_torch(self) -> str:
        """For error messages: the reason if ONNX Runtime is not supported, and the remedy if there is one."""
        return f"models of kind {self.kind} are computed with torch alone"

    @property
    def decode_options(self) -> tuple[str, ...]:
        """The keywords of its tokenizers' `detokenize`, from `codec.options.MODEL_OPTIONS`."""
        return ()

    @property
    def fingerprint(self) -> str:
        """64 hexadecimal digits that identify the meaning of tokens."""
        return self.metadata["fingerprint"]

    @property
    def stream_id(self) -> bytes:
        """The start of the fingerprint. It identifies the model in a .tsr file."""
        return bytes.fromhex(self.fingerprint)[:STREAM_ID_BYTES]

    @cached_property
    def digest(self) -> str:
        """SHA-256 of all arrays in the file, as `digest_of` computes it. About 1 s per gigabyte."""
        with self.arrays() as file:
            return digest_of(file.keys(), file.get_tensor)

    def verify(self) -> None:
        """Raises ModelError unless the arrays have the digest in the metadata."""
        if self.digest != (expected := self.metadata["digest"]):
            msg = f"damaged, its weights hash to {self.digest[:16]} and not to {expected[:16]}: get the file again"
            raise ModelError(msg, file=self.path)

    def check(self) -> None:
        """Raises ModelError unless the arrays have the digest and the fingerprint in the metadata. Computes them only once."""
        self.verify()
        if (actual := self.actual_fingerprint) != self.fingerprint:
            msg = f"damaged, its fingerprint is {actual[:16]} and not {self.fingerprint[:16]}: get the file again"
            raise ModelError(msg, file=self.path)

    def check_finite(self) -> None:
        """Raises ModelError if a number in the arrays is infinite or not a number."""
        with self.arrays() as file:
            for name in file.keys():  # noqa: SIM118 (not a dict)
                if not np.isfinite(file.get_tensor(name)).all():
                    msg = f"{name} holds numbers that are not finite: get the file again"
                    raise ModelError(msg, file=self.path)

    @contextmanager
    def arrays(self) -> Iterator[Any]:
        """The open file, a `safetensors.safe_open`. Raises ModelError if it cannot be read, also within the block."""
        try:
            with safe_open(self.path, "numpy") as file:
                yield file
        except ModelError as error:
            error.about(self.path)
            raise
        except (SafetensorError, OSError) as error:
            msg = f"not a model file, or incomplete ({error})"
            raise ModelError(msg, file=self.path) from error

    @property
    @abstractmethod
    def config(self) -> Any:
        """The configuration of the network, a dataclass of plain data. Raises TypeError or ValueError if it does not parse."""

    @property
    @abstractmethod
    def code(self) -> AnyCode:
        """The code of the tokens. Raises ModelError if the file is damaged, or its arrays do not fit the configuration."""

    @property
    @abstractmethod
    def actual_fingerprint(self) -> str:
        """The fingerprint of the configuration and arrays in the file."""

    @abstractmethod
    def tokenizer(self, runtime: str, device: str, tile: int | None = None) -> Tokenizer:
        """The network in float32, on a device and one of `runtimes`. `tile` is the largest side of tiles, in pixels.

        Raises ModelError as `code` does."""


@dataclass(frozen=True)
class Enough:
    """A stopping rule for encoders: this many tokens, or tokens that cost this many bits, whichever comes first."""

    tokens: float = math.inf
    bits: float = math.inf

    def reached(self, tokens: int, bits: float) -> bool:
        return tokens >= self.tokens or bits >= self.bits


class Tokenizer(Protocol):
    """A network in memory that turns images into tokens and back."""

    def tokenize(self, images: Sequence[NDArray[np.uint8]], enough: Sequence[Enough] | None = None) -> list[Any]:
        """The tokens of images (H, W, 3) of any sizes, a `TokenSequence` each: all tokens or, if that saves time, the first
        tokens, until they are `enough`."""

    def detokenize(self, prefixes: Sequence[Any]) -> list[NDArray[np.uint8]]:
        """The inverse of `tokenize`, with losses: the pixels (H, W, 3) of each `Prefix`. Some also take
        `Model.decode_options`."""


class Refiner(Tokenizer, Protocol):
    """A tokenizer that also searches for better tokens of an image."""

    def detokenize(self, prefixes: Sequence[Any], *, detail: float | None = None) -> list[NDArray[np.uint8]]:
        """See `Tokenizer`. A `detail` of 0 is closest to the original."""

    def refine(
        self,
        image: NDArray[np.uint8],
        sequence: TokenSequence,
        length: int,
        squared_error: Callable[[Prefix], float],
        match_bytes: bool,
        steps: int,
    ) -> TokenSequence:
        """A sequence whose first `length` tokens decode to pixels closer to `image` (H, W, 3), after `steps` gradient steps.

        With `match_bytes`, the refined sequence keeps the tokens that fit the same number of bytes instead. `squared_error`
        decodes a prefix and returns its squared error, summed over values of 0 to 255."""


@dataclass(frozen=True, eq=False)
class ReferenceImage:
    """An image from which others are coded as a difference, in the memory of a network."""

    hash: bytes  # as in `bitstream.reference.Reference`
    of_pixels: bool  # whether it is an image file and not a .tsr file
    name: str  # file name without its folder; may be empty
    size: tuple[int, int]  # height and width
    base: Any  # from `Referencer.base_of`
    pixels: Callable[[], NDArray[np.uint8]]  # (H, W, 3), decoded when they are first needed


class Referencer(Tokenizer, Protocol):
    """A tokenizer that also codes an image as a difference from another."""

    def base_of(self, reference: Any) -> Base:
        """Returns the base of a reference, given as a `Prefix` or as pixels (H, W, 3). Its type is private to the tokenizer."""

    def pixels_of(self, base: Any) -> NDArray[np.uint8]:
        """The pixels (H, W, 3) that a base stands for."""

    def tokenize_against(
        self, image: NDArray[np.uint8], reference: ReferenceImage, enough: Enough, typical: int
    ) -> TokenSequence:
        """The tokens of the difference between an image (H, W, 3) and a reference, or of the image alone if no block uses the
        reference. A block uses it if its rate-distortion cost is lower with it; lambda is that of the image encoded alone with
        `typical` tokens, or with `enough` if those are fewer."""

    def add_reference(self, prefix: Any, stored: Reference, reference: ReferenceImage) -> Prefix:
        """A prefix that `detokenize` decodes to the image, for the prefix and the reference that its file holds."""


def read_metadata(path: Path) -> dict[str, Any]:
    """The metadata of a model file, checked against METADATA. Raises ModelError if it is not a model file."""
    try:
        with safe_open(path, "numpy") as file:
            text = (file.metadata() or {})["tessera"]
            types = {file.get_slice(name).get_dtype() for name in file.keys()}  # noqa: SIM118 (not a dict)
        if len(text) > METADATA_MAX:
            msg = f"{len(text):,} bytes of metadata, and {METADATA_MAX:,} are allowed"
            raise ValueError(msg)
        metadata = json.loads(text, parse_constant=_refuse_constant)
        _check_metadata(metadata, types)
    except (SafetensorError, OSError) as error:
        msg = f"not a model file ({error})"
        raise ModelError(msg, file=path) from error
    except (KeyError, TypeError, ValueError, RecursionError) as error:
        msg = f"not a Tessera model ({type(error).__name__}: {error})"
        raise ModelError(msg, file=path) from error
    return metadata


def _refuse_constant(name: str) -> None:
    msg = f"{name} in the metadata"
    raise ValueError(msg)


def _check_metadata(metadata: Any, types: set[str]) -> None:
    """Raises ValueError unless the metadata fit METADATA, and the arrays' types ARRAY_TYPES."""
    if not isinstance(metadata, dict):
        msg = "the metadata is not an object"
        raise ValueError(msg)
    for key, expected in METADATA.items():
        value = metadata.get(key)
        fits = isinstance(value, dict) if expected is dict else isinstance(value, str) and re.fullmatch(expected, value)
        if not fits:
            msg = f"{key} is missing or malformed"
            raise ValueError(msg)
    if others := types - ARRAY_TYPES:
        msg = f"arrays of type {', '.join(sorted(others))}"
        raise ValueError(msg)


def write_model(path: Path, arrays: Mapping[str, NDArray], metadata: Mapping[str, Any]) -> None:
    """Writes a model file atomically. Raises FileError if it cannot be written.

    `metadata` is plain data: kind, fingerprint, network (its configuration) and card (how the model was made). The digest is
    added."""
    contiguous = {name: np.ascontiguousarray(array) for name, array in arrays.items()}  # safetensors ignores strides
    ordered = {
        "kind": metadata["kind"],
        "fingerprint": metadata["fingerprint"],
        "digest": digest_of(contiguous, contiguous.__getitem__),
        "network": metadata["network"],
        "card": metadata["card"],
    }
    try:
        with atomic_write(path) as temporary:
            save_file(contiguous, temporary, {"tessera": json.dumps(ordered)})
    except SafetensorError as error:  # safetensors raises it for a full disk, too
        msg = f"cannot write {path} ({error}): check space and permissions"
        raise FileError(msg) from error


def digest_of(names: Iterable[str], array_of: Callable[[str], NDArray]) -> str:
    """SHA-256 of arrays in the order of their names: for each, a line with its name, type and shape, then its bytes."""
    digest = hashlib.sha256()
    for name in sorted(names):
        array = array_of(name)
        digest.update(f"{name} {array.dtype.str} {array.shape}\n".encode())
        digest.update(np.ascontiguousarray(array).data)
    return digest.hexdigest()
