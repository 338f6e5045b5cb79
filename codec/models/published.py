"""Model files of published tokenizers: the network's arrays under their own names, and the arrays of the code under `code.*`.

Each family extends `PublishedModel`: it recognises its checkpoints, reads their configuration, and names the tensors that the
network needs. The fingerprint covers what determines the meaning of tokens: the tables of the code, the size of blocks, and the
arrays that tokens refer to, such as a codebook. Two models that agree in these decode each other's files. No torch until a
network is needed.
"""

from __future__ import annotations

import hashlib
from abc import abstractmethod
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import TYPE_CHECKING, Any, ClassVar, Protocol, Self

import numpy as np
from numpy.typing import NDArray
from safetensors import SafetensorError

from bitstream.codebook_tokens import CodebookCode, uniform_code
from bitstream.sequence import AnyCode
from codec.errors import ModelError, naming
from codec.models.base import Model, Tokenizer, read_metadata, write_model
from codec.models.coding_tables import measure_code
from codec.options import SAMPLING
from codec.system.device import TORCH

if TYPE_CHECKING:
    import torch
    from torch import nn

    from codec.models.checkpoint import Checkpoint

CODEBOOK = "quantize.embedding.weight"


class PublishedConfig(Protocol):
    """The configuration of a network, a frozen dataclass of plain data."""

    @property
    def name(self) -> str:
        """Name of the model, such as one-d-piece-s-256."""

    @property
    def block_tokens(self) -> int:
        """Tokens of a block."""

    @property
    def side(self) -> int:
        """Pixels along the side of a block."""

    @property
    def tail_drop(self) -> bool:
        """Whether any prefix of a block's tokens decodes."""

    @classmethod
    def from_dict(cls, plain: dict[str, Any]) -> Self: ...

    def to_dict(self) -> dict[str, Any]: ...


@dataclass(frozen=True)
class PublishedModel(Model):
    """A model file of a published tokenizer. By default its tokens are indices into one codebook, N in a row per block."""

    config_type: ClassVar[type[Any]]  # a PublishedConfig
    code_arrays: ClassVar[tuple[str, ...]] = ("tables", "table_of", "classes")  # fields of the code that the file holds
    derived: ClassVar[tuple[str, ...]] = ()  # prefixes of the names of tensors that `derive` returns
    samples: ClassVar[bool] = False  # whether decoding draws detail at random, in several passes of the network
    licence: ClassVar[str | None] = None  # conditions that a user has to accept before an import

    # Defined by each family

    @property
    def decode_options(self) -> tuple[str, ...]:
        return SAMPLING if self.samples else ()

    @classmethod
    @abstractmethod
    def recognises(cls, checkpoint: Checkpoint) -> bool:
        """Whether a checkpoint is of this family, from the names of its tensors or its configuration."""

    @classmethod
    @abstractmethod
    def checkpoint_config(cls, checkpoint: Checkpoint, variant: str | None) -> Any:
        """The configuration of a checkpoint that the family recognises. Raises ModelError if it is not supported."""

    @classmethod
    @abstractmethod
    def build(cls, config: Any) -> nn.Module:
        """The network with uninitialised or random weights, on torch's default device."""

    @classmethod
    def sources(cls, checkpoint: Checkpoint, config: Any) -> dict[str, str]:
        """The name in the checkpoint of each tensor, by its name in the network. Only tensors that are known to be superfluous
        are left out: an import refuses all other names that the network does not have."""
        return {name: name for name in checkpoint.shapes}

    @classmethod
    def derive(cls, config: Any, weights: dict[str, torch.Tensor]) -> dict[str, torch.Tensor]:
        """The network's tensors that no checkpoint holds, computed from `weights`, those that it does hold, by name."""
        return {}

    @classmethod
    def new_code(cls, config: Any) -> AnyCode:
        """The code whose tables make all tokens equally likely."""
        return uniform_code(config.block_tokens, config.codebook, config.side, config.tail_drop)

    @classmethod
    def fingerprint_arrays(cls, config: Any) -> tuple[str, ...]:
        """Names of the network's arrays that the fingerprint covers, in this order: those that give tokens their meaning."""
        return (CODEBOOK,)

    def read_code(self, arrays: Mapping[str, NDArray[Any]]) -> AnyCode:
        """The code with these arrays, by their names in `code_arrays`. Raises ModelError if they do not fit each other or the
        network."""
        tables, table_of, classes = (arrays[name] for name in self.code_arrays)
        if (tables.dtype, table_of.dtype, classes.dtype) != (np.int32, np.int32, np.uint8):
            msg = f"its code has arrays of {tables.dtype}, {table_of.dtype} and {classes.dtype}: get the file again"
            raise ModelError(msg)
        code = CodebookCode(tables, table_of, classes, self.config.side, self.config.tail_drop)
        if (code.block_tokens, code.values) != (self.config.block_tokens, self.config.codebook):
            expected = f"{self.config.block_tokens} tokens of {self.config.codebook}"
            msg = f"its code has {code.block_tokens} tokens of {code.values} values, not {expected}: get the file again"
            raise ModelError(msg)
        return code

    def tokenizer(self, runtime: str, device: str, tile: int | None = None) -> Tokenizer:
        from codec.networks.block_tokenizer import BlockTokenizer

        return BlockTokenizer(self.network(device), self.code)

    # Shared by all families

    @cached_property
    def config(self) -> Any:
        return self.config_type.from_dict(self.metadata["network"])

    @cached_property
    def code(self) -> Any:
        with self.arrays() as file:
            try:
                arrays = {name: file.get_tensor(f"code.{name}") for name in self.code_arrays}
            except SafetensorError as error:
                msg = f"the code is incomplete ({error})"
                raise ModelError(msg) from error
            return self.read_code(arrays)

    @cached_property
    def actual_fingerprint(self) -> str:
        with self.arrays() as file:
            return fingerprint(
                self.config, {name: file.get_tensor(name) for name in self.fingerprint_arrays(self.config)}, self.code
            )

    def network(self, device: str | torch.device) -> Any:
        """The network in float32 on `device`. Raises ModelError if the file is damaged or does not fit its configuration."""
        import torch

        from codec.models.checkpoint import check_shapes

        self.verify()
        with torch.device("meta"):  # takes no memory
            network = self.build(self.config)
        weights = self._weights()
        check_shapes(self.path, {name: array.shape for name, array in weights.items()}, network, self.config.name)
        # An array in half precision leaves memory as soon as it has its copy in float32.
        tensors = {name: torch.from_numpy(weights.pop(name)).float() for name in list(weights)}
        network.load_state_dict(tensors, assign=True)
        return network.requires_grad_(False).eval().to(device)

    def _weights(self) -> dict[str, NDArray[Any]]:
        """The network's arrays in their stored types. The file is opened for each array: otherwise the pages that were read
        would stay in memory with the copies, and take as much again."""
        with self.arrays() as file:
            names = [name for name in file.keys() if not name.startswith("code.")]  # noqa: SIM118 (not a dict)
        weights = {}
        for name in names:
            with self.arrays() as file:
                weights[name] = file.get_tensor(name)
        return weights

    @classmethod
    def import_checkpoint(cls, checkpoint: Checkpoint, path: Path, config: Any = None) -> Self:
        """Writes the model file of a checkpoint that the family recognises. All tokens cost the same until `calibrate` has
        measured tables.

        `path` is the new file, or a folder in which the file gets the model's own name. `config` is the checkpoint's, or that
        with changes. Raises ModelError, and writes nothing, if the checkpoint is not supported."""
        import torch

        from codec.models.checkpoint import check_shapes, read_tensors

        if config is None:
            with naming(checkpoint.path):
                config = cls.checkpoint_config(checkpoint, None)
        sources = cls.sources(checkpoint, config)
        with torch.device("meta"):
            network = cls.build(config)
        shapes = {name: checkpoint.shapes[source] for name, source in sources.items() if source in checkpoint.shapes}
        shapes |= {name: tuple(value.shape) for name, value in network.state_dict().items() if name.startswith(cls.derived)}
        check_shapes(checkpoint.path, shapes, network, config.name)
        weights = read_tensors(checkpoint, sources)
        weights |= cls.derive(config, weights)
        arrays = {name: tensor.numpy() for name, tensor in weights.items()}
        target = path if path.suffix else path / f"{config.name}.safetensors"
        provenance: dict[str, Any] = {"source": checkpoint.source}
        provenance |= {"licence": cls.licence} if cls.licence else {}
        provenance |= {"left_out": left_out} if (left_out := _left_out(checkpoint, sources)) else {}
        return cls.save(target, config, arrays, cls.new_code(config), provenance)

    def calibrate(self, images: Iterable[NDArray[np.uint8]], device: str) -> Calibration:
        """Measures the coding tables on photos (H, W, 3), and rewrites the model file. This changes the stream id: files that
        were encoded before need the old model. Raises ImageError if there are too few photos."""
        tokenizer = self.tokenizer(TORCH, device)
        sequences = [tokenizer.tokenize([image])[0] for image in images]
        code, bits = self.measure([sequence.first(sequence.layout.tokens) for sequence in sequences])
        costs = np.concatenate([sequence.bits() for sequence in sequences])
        model = self.save(
            self.path, self.config, self._weights(), code, self.metadata["card"] | {"calibrated_on_photos": len(sequences)}
        )
        return Calibration(model, bits, float(costs.mean()))

    def measure(self, photos: Sequence[Any]) -> tuple[AnyCode, float]:
        """The code with the cheapest tables for photos, given as complete prefixes, and its mean bits per token."""
        blocks = [prefix.indices.reshape(len(prefix.indices), -1).T for prefix in photos]
        numbers = np.repeat(np.arange(len(blocks)), [len(rows) for rows in blocks])
        empty = np.empty((0, self.config.block_tokens), np.int32)
        with self.arrays() as file:
            codebook = file.get_tensor(CODEBOOK).astype(np.float32)
        measurement = measure_code(self.code, np.concatenate([empty, *blocks]), numbers, codebook)
        return measurement.code, measurement.bits

    @classmethod
    def save(
        cls, path: Path, config: Any, weights: Mapping[str, NDArray[Any]], code: AnyCode, provenance: dict[str, Any]
    ) -> Self:
        """Writes a model file atomically. `provenance` is plain data on how the model was made."""
        metadata = {
            "kind": cls.kind,
            "fingerprint": fingerprint(config, {name: weights[name] for name in cls.fingerprint_arrays(config)}, code),
            "network": config.to_dict(),
            "card": provenance,
        }
        write_model(path, {**weights, **{f"code.{name}": getattr(code, name) for name in cls.code_arrays}}, metadata)
        return cls(path, read_metadata(path))


@dataclass(frozen=True)
class Calibration:
    """A model whose coding tables were measured on photos."""

    model: Model
    bits: float  # mean cost of a token on these photos
    bits_before: float


def _left_out(checkpoint: Checkpoint, sources: Mapping[str, str]) -> list[str]:
    """Names of the checkpoint's tensors that the model does without, sorted. Modules of which it needs no tensor are listed by
    the first part of the name alone."""
    kept = {source.partition(".")[0] for source in sources.values()}
    names = checkpoint.shapes.keys() - sources.values()
    return sorted({name if (part := name.partition(".")[0]) in kept else part for name in names})


def fingerprint(config: PublishedConfig, arrays: Mapping[str, NDArray[Any]], code: Any) -> str:
    """SHA-256 of the code, the side of blocks, and these arrays of the network, in 64 hexadecimal digits. FORMAT.md, sections 8
    and 9."""
    digest = hashlib.sha256(code.fingerprint)
    digest.update(np.array([config.side, config.tail_drop], ">i4").tobytes())
    for array in arrays.values():
        digest.update(np.array(array.shape, ">i4").tobytes())
        digest.update(np.ascontiguousarray(array, "<f4").data)  # no copy of a codebook of 268 MB
    return digest.hexdigest()
