"""Download of the LPIPS weights from their publishers."""

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
from codec.metrics.lpips import combine_weights, installed_weights, read_weights
from codec.system.files import atomic_write

CHUNK = 1 << 20  # bytes per read
STALL_TIMEOUT = 60  # seconds without a byte


@dataclass(frozen=True)
class Download:
    """A file on the web."""

    url: str
    sha256: str
    size: int  # bytes


ALEXNET = Download(
    "https://download.pytorch.org/models/alexnet-owt-7be5be79.pth",
    "7be5be791159472b1fbf3c69796f7cb30dca7ad8466c2df70058c37116cdee02",
    244_408_911,
)
LINEAR = Download(
    "https://raw.githubusercontent.com/richzhang/PerceptualSimilarity/082bb24f84c091ea94de2867d34c4544f68e0963"
    "/lpips/weights/v0.1/alex.pth",
    "df73285e35b22355a2df87cdb6b70b343713b667eddbda73e1977e0c860835c0",
    6009,
)


def download_lpips(progress: Callable[[int], object]) -> Path:
    """The file of LPIPS weights in the user's data folder, downloaded if it is missing or damaged.

    `progress` is called with the number of bytes of each chunk. Raises ModelError if a file cannot be downloaded or is not the
    published one, FileError if the weights cannot be written."""
    path = installed_weights()
    with suppress(ModelError):
        if path.exists() and read_weights(path):
            return path
    weights = combine_weights(_download(ALEXNET, progress), _download(LINEAR, progress))
    with atomic_write(path) as temporary, temporary.open("wb") as stream:
        np.savez(stream, **{name: value.numpy() for name, value in weights.items()})  # type: ignore[arg-type]
    return path


def _download(source: Download, progress: Callable[[int], object]) -> dict[str, torch.Tensor]:
    """The tensors of a PyTorch file. The file is verified before it is parsed."""
    content = bytearray()
    try:
        with urllib.request.urlopen(source.url, timeout=STALL_TIMEOUT) as stream:
            while len(content) <= source.size and (chunk := stream.read(CHUNK)):
                content += chunk
                progress(len(chunk))
    except (OSError, ValueError) as error:  # URLError is an OSError
        cause = getattr(error, "reason", error)
        reason = getattr(cause, "strerror", None) or cause
        msg = f"{source.url} cannot be downloaded ({reason}): try again, or give the weights as a file"
        raise ModelError(msg) from error
    digest = hashlib.sha256(content).hexdigest()
    if digest != source.sha256:
        msg = f"{source.url} has SHA-256 {digest[:16]}, not {source.sha256[:16]}: it was cut or altered on its way, try again"
        raise ModelError(msg)
    return torch.load(io.BytesIO(content), "cpu", weights_only=True)
