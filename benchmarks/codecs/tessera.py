"""Tessera itself: one encoding of an image, cut for each budget."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np

from benchmarks.codecs.base import CodedFile
from benchmarks.records import TESSERA, Pixels
from codec.codec import Codec
from codec.errors import TargetError
from codec.options import DEFAULT_EFFORT


class TesseraCodec:
    name = TESSERA
    title = "Tessera"

    def __init__(self, codec: Codec) -> None:
        self.codec = codec

    @property
    def description(self) -> str:
        model = self.codec.model
        return (
            f"Tessera, model {model.name}, fingerprint {model.metadata['fingerprint'][:16]}, effort {DEFAULT_EFFORT}, on "
            f"{self.codec.device}{'' if self.codec.runtime == 'auto' else f' with {self.codec.runtime}'}"
        )

    @property
    def made_for(self) -> str:
        own = self.codec.model.metadata["kind"].startswith("tessera-")
        return "squared error, features of VGG19, colour" if own else "the training objective of the checkpoint"

    @property
    def settings(self) -> Sequence[int]:
        return range(0, 101, 10)

    def check(self) -> None:
        self.codec.model  # noqa: B018 (opens the model file)

    def encode(self, pixels: Pixels, setting: float) -> bytes:
        return self.codec.encode(pixels, quality=setting).data

    def decode(self, data: bytes) -> Pixels:
        return np.asarray(self.codec.decode(data).image)

    def fit(self, pixels: Pixels, budgets: Sequence[int]) -> list[CodedFile | None]:
        (sequence,) = self.codec.tokenize([pixels])
        files: list[CodedFile | None] = []
        for budget in budgets:
            try:
                file = self.codec.write(sequence, target_size=budget)
                files.append(CodedFile(file.data, f"{file.block_tokens:.1f} tokens per block", file.quality))
            except TargetError:
                files.append(None)
        return files
