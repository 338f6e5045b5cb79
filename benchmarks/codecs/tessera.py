"""Tessera's models: one encoding of an image, cut for each budget."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Sequence
from typing import ClassVar

import numpy as np

from benchmarks import BenchError
from benchmarks.codecs.base import CodedFile
from benchmarks.records import TESSERA, TESSERA_PSNR, Pixels
from codec.codec import Codec
from codec.errors import TargetError, UsageError
from codec.options import DEFAULT_EFFORT
from codec.pyramid.model import PyramidModel
from codec.rate_control import quality_of_block_tokens
from codec.results import Encoded


class TesseraCodec:
    """A model at every length or, with `tokens`, at this number of tokens per block. `detail` is the strength of its texture.

    Only the network of the model that was used last is in memory, since many published models would not fit."""

    _loaded: ClassVar[Codec | None] = None

    def __init__(self, codec: Codec, name: str = TESSERA, tokens: int | None = None, detail: float | None = None) -> None:
        self.codec = codec
        self.name = name
        title = "Tessera" if name in (TESSERA, TESSERA_PSNR) else name
        self.title = title if detail is None else f"{title}, detail {detail:g}"
        self.tokens = tokens
        self.detail = detail

    @property
    def description(self) -> str:
        model = self.codec.model
        digest = hashlib.sha256(json.dumps(model.metadata, sort_keys=True).encode()).hexdigest()  # covers the weights' digest
        return (
            f"Tessera, model {model.name}, stream id {model.stream_id.hex()}, digest {digest[:16]}, effort {DEFAULT_EFFORT}, "
            f"{f'{self.tokens} tokens per block, ' if self.tokens else ''}"
            f"{'' if self.detail is None else f'detail {self.detail:g}, '}on {self.codec.device}"
            f"{'' if self.codec.runtime == 'auto' else f' with {self.codec.runtime}'}"
        )

    @property
    def made_for(self) -> str:
        own = isinstance(self.codec.model, PyramidModel)
        objective = "squared error" if self.detail == 0 else "squared error, features of VGG19, colour"
        return objective if own else "the training objective of the checkpoint"

    @property
    def settings(self) -> Sequence[int]:
        code = self.codec.model.code
        tokens = self.tokens or (None if code.tail_drop else code.block_tokens)
        return (round(quality_of_block_tokens(code, tokens)),) if tokens else range(0, 101, 10)

    def check(self) -> None:
        """Raises ModelError if the model cannot be used, UsageError if it has no such length, BenchError if no texture."""
        code = self.codec.model.code
        if self.detail is not None and "detail" not in self.codec.model.decode_options:
            msg = f"{self.codec.model.name} has no texture, so {self.name} is the same as {TESSERA}"
            raise BenchError(msg)
        if self.tokens is not None and not 1 <= self.tokens <= code.block_tokens:
            msg = f"{self.codec.model.name} has 1 to {code.block_tokens} tokens per block, not {self.tokens}"
            raise UsageError(msg)
        if self.tokens and not code.tail_drop and self.tokens != code.block_tokens:
            msg = f"{self.codec.model.name} has only one length, {code.block_tokens} tokens per block: leave out @{self.tokens}"
            raise UsageError(msg)

    def encode(self, pixels: Pixels, setting: float) -> bytes:
        self._release_others()
        if self.tokens:
            return self.codec.encode(pixels, tokens=self.tokens).data
        return self.codec.encode(pixels, quality=setting).data

    def decode(self, data: bytes) -> Pixels:
        self._release_others()
        return np.asarray(self.codec.decode(data, detail=self.detail).image)

    def fit(self, pixels: Pixels, budgets: Sequence[int]) -> list[CodedFile | None]:
        self._release_others()
        if self.tokens:
            only = _coded(self.codec.encode(pixels, tokens=self.tokens))
            return [only if len(only.data) <= budget else None for budget in budgets]
        (sequence,) = self.codec.tokenize([pixels])
        files: list[CodedFile | None] = []
        for budget in budgets:
            try:
                files.append(_coded(self.codec.write(sequence, target_size=budget)))
            except TargetError:
                files.append(None)
        return files

    def _release_others(self) -> None:
        if TesseraCodec._loaded not in (None, self.codec):
            TesseraCodec._loaded.release()
        TesseraCodec._loaded = self.codec


def _coded(file: Encoded) -> CodedFile:
    return CodedFile(file.data, f"{file.block_tokens:.1f} tokens per block", file.quality or 0.0)
