"""What all model files have in common: safetensors with plain metadata, a fingerprint and a digest. No torch.

The fingerprint covers what fixes the meaning of tokens: files that were written under it can be read by any model that has it,
and a better encoder or decoder for it may come later. The digest covers all arrays, and is verified before any of them is
used: damage would otherwise show only in the images.
"""

from __future__ import annotations

import hashlib
import json
from abc import ABC, abstractmethod
from collections.abc import Callable, Iterable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import TYPE_CHECKING, Any, ClassVar

import numpy as np
from numpy.typing import NDArray
from safetensors import SafetensorError, safe_open
from safetensors.numpy import save_file

from bitstream.container import STREAM_ID_BYTES
from bitstream.sequence import AnyCode
from codec.errors import FileError, ModelError
from codec.system.device import TORCH
from codec.system.files import atomic_write

if TYPE_CHECKING:
    from codec.models.tokenizer import Tokenizer


@dataclass(frozen=True)
class Model(ABC):
    """A model file, opened; arrays are read when they are asked for. Each family of models has a class of its own."""

    path: Path
    metadata: dict[str, Any]

    kind: ClassVar[str]  # in the metadata of the family's files
    refines: ClassVar[bool] = False  # whether its tokenizers are `codec.models.tokenizer.Refiner`s
    tiles: ClassVar[bool] = False  # whether images can be worked on in tiles of any size

    @property
    def name(self) -> str:
        return self.path.stem

    @property
    def runtimes(self) -> tuple[str, ...]:
        """What its networks can be computed with, on a processor the better one first."""
        return (TORCH,)

    @property
    def needs_torch(self) -> str:
        """Why that is torch alone, if it is, and what can be done."""
        return f"models of kind {self.kind} are computed with torch alone"

    @property
    def fingerprint(self) -> str:
        """64 hexadecimal digits that identify the meaning of tokens."""
        return self.metadata["fingerprint"]

    @property
    def stream_id(self) -> bytes:
        """The bytes by which a file names the model that wrote it: the first of the fingerprint."""
        return bytes.fromhex(self.fingerprint)[:STREAM_ID_BYTES]

    @cached_property
    def digest(self) -> str:
        """SHA-256 of all arrays in the file: names, types, shapes and values. About 1 s per gigabyte."""
        with self.arrays() as file:
            return digest_of(file.keys(), file.get_tensor)

    @property
    def stated_digest(self) -> str | None:
        """The digest that the file states."""
        return self.metadata.get("digest")

    def verify(self) -> None:
        """Raises ModelError unless the arrays have the digest that the file states."""
        stated = self.stated_digest
        if stated is None:
            msg = f"{self.path}: states no digest, without which damage goes unnoticed: make the file again with this release"
            raise ModelError(msg)
        if self.digest != stated:
            msg = f"{self.path}: damaged, its weights hash to {self.digest[:16]} and not to {stated[:16]}: get the file again"
            raise ModelError(msg)

    def check(self) -> None:
        """Raises ModelError unless the arrays have the digest and the fingerprint that the file states."""
        self.verify()
        if (actual := self.compute_fingerprint()) != self.fingerprint:
            msg = f"{self.path}: its fingerprint is {actual[:16]}, and it states {self.fingerprint[:16]}: damaged"
            raise ModelError(msg)

    @contextmanager
    def arrays(self) -> Iterator[Any]:
        """The file, open, as `safetensors.safe_open` has it. Raises ModelError where it cannot be read, now or within."""
        try:
            with safe_open(self.path, "numpy") as file:
                yield file
        except (SafetensorError, OSError) as error:
            msg = f"{self.path}: not a model file, or incomplete ({error})"
            raise ModelError(msg) from error

    @property
    @abstractmethod
    def config(self) -> Any:
        """The configuration of its network, a dataclass of plain data. Raises TypeError or ValueError where it does not
        parse."""

    @property
    @abstractmethod
    def code(self) -> AnyCode:
        """What its tokens mean. Raises ModelError where the file is damaged, or its arrays do not fit the configuration."""

    @abstractmethod
    def compute_fingerprint(self) -> str:
        """The fingerprint of what is in the file."""

    @classmethod
    def import_checkpoint(cls, source: str, path: Path, variant: str | None = None) -> Model | None:
        """Writes the model file of a published checkpoint: a file, a folder, or the name of a repository. `variant` says how it
        was trained where nothing else does. None where the family has no published checkpoints. Raises ModelError, and writes
        nothing, for what is none. A `path` that is a folder gets a file with the model's own name."""
        return None

    def calibrated(self, images: Iterable[NDArray[np.uint8]], device: str) -> Calibrated | None:
        """Measures the tables on photos (H, W, 3), and writes the file again with them; None where tables are measured when the
        model is trained. Raises ModelError, or ImageError for too few photos."""
        return None

    @abstractmethod
    def tokenizer(self, runtime: str, device: str, tile: int | None = None) -> Tokenizer:
        """The network in float32, ready to code with one of its `runtimes` on `device`; `tile` is for families that have
        tiles. Raises ModelError as `code` does."""


@dataclass(frozen=True)
class Calibrated:
    """A model whose tables were measured on photos."""

    model: Model
    bits: float  # per token, of photos like these
    bits_before: float


def digest_of(names: Iterable[str], array_of: Callable[[str], NDArray]) -> str:
    """SHA-256 over arrays in the order of their names: of each its name, type and shape on a line, then its bytes."""
    digest = hashlib.sha256()
    for name in sorted(names):
        array = array_of(name)
        digest.update(f"{name} {array.dtype.str} {array.shape}\n".encode())
        digest.update(np.ascontiguousarray(array).data)
    return digest.hexdigest()


def read_metadata(path: Path) -> dict[str, Any]:
    """The metadata of a model file. Raises ModelError where it is none."""
    try:
        with safe_open(path, "numpy") as file:
            plain = json.loads((file.metadata() or {})["tessera"])
            plain["kind"], bytes.fromhex(plain["fingerprint"]), plain["network"], plain["card"]  # all must be there
            return plain
    except (SafetensorError, OSError) as error:
        msg = f"{path}: not a model file ({error})"
        raise ModelError(msg) from error
    except (KeyError, TypeError, ValueError) as error:
        msg = f"{path}: not a Tessera model ({type(error).__name__}: {error})"
        raise ModelError(msg) from error


def write_model(path: Path, arrays: Mapping[str, NDArray], metadata: dict[str, Any]) -> None:
    """Writes a model file, whole or not at all. `metadata` is plain data: kind, fingerprint, network (the configuration) and
    card (how the model was made); the digest is added. Raises FileError where it cannot be written."""
    lying = {name: np.ascontiguousarray(array) for name, array in arrays.items()}  # safetensors writes memory as it lies
    plain = {
        "kind": metadata["kind"],
        "fingerprint": metadata["fingerprint"],
        "digest": digest_of(lying, lying.__getitem__),
        "network": metadata["network"],
        "card": metadata["card"],
    }
    try:
        with atomic_write(path) as temporary:
            save_file(lying, temporary, {"tessera": json.dumps(plain)})
    except SafetensorError as error:  # also of the disk
        msg = f"cannot write {path} ({error}): check space and permissions"
        raise FileError(msg) from error
