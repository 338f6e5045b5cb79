"""Fetches the weights of LPIPS from where they are published, checks them, and keeps the part that is needed."""

from __future__ import annotations

import hashlib
import io
import urllib.request
from collections.abc import Callable
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch

from codec.errors import ModelError
from codec.metrics.lpips import combined, read_weights, user_weights
from codec.system.files import atomic_write

PIECE = 1 << 20  # bytes read at a time
PATIENCE = 60  # seconds without a byte before a fetch is given up


@dataclass(frozen=True)
class Source:
    """A file on the web."""

    url: str
    sha256: str
    size: int  # bytes


ALEXNET = Source(
    "https://download.pytorch.org/models/alexnet-owt-7be5be79.pth",
    "7be5be791159472b1fbf3c69796f7cb30dca7ad8466c2df70058c37116cdee02",
    244_408_911,
)
LINEAR = Source(
    "https://raw.githubusercontent.com/richzhang/PerceptualSimilarity/082bb24f84c091ea94de2867d34c4544f68e0963"
    "/lpips/weights/v0.1/alex.pth",
    "df73285e35b22355a2df87cdb6b70b343713b667eddbda73e1977e0c860835c0",
    6009,
)


def fetch_lpips(alexnet: Source = ALEXNET, linear: Source = LINEAR, progress: Callable[[int], object] = lambda _: None) -> Path:
    """Writes the 10 MB that LPIPS needs into the user's data folder, whole or not at all, unless they are there -> their path.

    `progress` is called with the number of bytes that have just arrived. Raises ModelError where a file cannot be fetched, is
    not the one that was published, and FileError where it cannot be written."""
    path = user_weights()
    with suppress(ModelError):
        if path.exists() and read_weights(path):
            return path
    weights = combined(_read(alexnet, progress), _read(linear, progress))
    with atomic_write(path) as temporary, temporary.open("wb") as stream:
        np.savez(stream, **{name: value.numpy() for name, value in weights.items()})  # type: ignore[arg-type]
    return path


def _read(source: Source, progress: Callable[[int], object]) -> dict[str, torch.Tensor]:
    """The tensors in a file of PyTorch's, which is checked before it is looked into."""
    received = bytearray()
    try:
        with urllib.request.urlopen(source.url, timeout=PATIENCE) as stream:
            while len(received) <= source.size and (piece := stream.read(PIECE)):
                received += piece
                progress(len(piece))
    except (OSError, ValueError) as error:  # URLError is an OSError
        cause = getattr(error, "reason", error)
        reason = getattr(cause, "strerror", None) or cause
        msg = f"{source.url} cannot be fetched ({reason}): try again, or give the weights as a file (README.md says which)"
        raise ModelError(msg) from error
    found = hashlib.sha256(received).hexdigest()
    if found != source.sha256:
        msg = f"{source.url} has SHA-256 {found[:16]}, not {source.sha256[:16]}: it was cut or altered on its way, try again"
        raise ModelError(msg)
    return torch.load(io.BytesIO(received), "cpu", weights_only=True)
