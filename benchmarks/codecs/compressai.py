"""Learned codecs of compressai's zoo, through their own compress() and decompress().

compressai runs in a process of its own: importing it takes seconds, and its rANS decoder can crash on bytes that it did not
write. Its strings identify neither the network nor the size of the image, so a file here has a header of 5 bytes, or of 6 to 9
if there are two strings. All numbers are big-endian.

| bytes | field |
|---|---|
| 1 | the codec's index in ZOO in the high four bits, quality in the low four |
| 2, 2 | width, height |
| 1-4 | length of the first string if a second follows, as a number of FORMAT.md, section 1 |
| rest | the strings |

Images are padded to multiples of 64 by repeating their last row and column; compressai's own evaluation pads with black, which
costs bits.
"""

from __future__ import annotations

import hashlib
import os
import signal
import socket
import threading
import warnings
from collections.abc import Callable, Sequence
from concurrent.futures import ProcessPoolExecutor
from concurrent.futures.process import BrokenProcessPool
from dataclasses import dataclass
from functools import cached_property, lru_cache
from http.client import HTTPException
from importlib.metadata import version
from importlib.util import find_spec
from multiprocessing import get_context
from pathlib import Path
from typing import Any, TypeVar

import numpy as np

from benchmarks import BenchError
from benchmarks.codecs.base import CodedFile, SettingSearch
from benchmarks.records import Pixels
from bitstream.container import read_number, write_number
from codec.errors import FormatError, ImageError
from codec.limits import check_size

T = TypeVar("T")
HUB = "https://compressai.s3.amazonaws.com/models/v1"
DOWNLOAD_TIMEOUT = 20  # seconds without a byte
HEADER = 5  # bytes before the strings and their lengths
MAX_SIDE = 0xFFFF  # pixels
MULTIPLE = 64  # pixels; sides are padded to multiples of it


@dataclass(frozen=True)
class Zoo:
    """A codec of compressai, trained for mean squared error."""

    title: str
    strings: int  # number of strings in a file
    stride: int  # pixels per position in the grid of the last string
    stem: str  # start of the names of its weights at compressai's hub
    digests: tuple[str, ...]  # hashes in these names, for quality 1, 2, ...

    @property
    def qualities(self) -> tuple[int, ...]:
        return tuple(range(1, len(self.digests) + 1))

    def hub_name(self, quality: int) -> str:
        return f"{self.stem}-{quality}-{self.digests[quality - 1]}.pth.tar"


ZOO = {
    "bmshj2018-factorized": Zoo(
        "Factorized prior (Balle 2018)", 1, 16, "bmshj2018-factorized-prior",
        ("446d5c7f", "87279a02", "5c6f152b", "1ed4405a", "866ba797", "9b02ea3a", "6dfd6734", "5232faa3"),
    ),
    "bmshj2018-hyperprior": Zoo(
        "Hyperprior (Balle 2018)", 2, 64, "bmshj2018-hyperprior",
        ("7eb97409", "93677231", "6d87be32", "de1b779c", "f8b614e1", "1ab9c41e", "3804dcbd", "a583f0cf"),
    ),
    "mbt2018-mean": Zoo(
        "Mean and scale hyperprior (Minnen 2018)", 2, 64, "mbt2018-mean",
        ("e522738d", "e54a039d", "723404a8", "6dba02a3", "d504e8eb", "a19628ab", "d5d441d1", "8089ae3e"),
    ),
    "cheng2020-attn": Zoo(
        "Attention (Cheng 2020)", 2, 64, "cheng2020_attn-mse",
        ("465f2b64", "e0805385", "2d07bbdf", "f7b0ccf2", "26c8920e", "730501f2"),
    ),
}  # fmt: skip


def pack(name: str, quality: int, width: int, height: int, strings: Sequence[bytes]) -> bytes:
    """A complete file. Raises ImageError if a side is too long for its header."""
    if max(width, height) > MAX_SIDE:
        msg = f"{width}x{height} is too large for {name} here: sides are 1 to {MAX_SIDE} pixels"
        raise ImageError(msg)
    header = bytes([list(ZOO).index(name) << 4 | quality]) + width.to_bytes(2, "big") + height.to_bytes(2, "big")
    return header + b"".join([*(write_number(len(string)) + string for string in strings[:-1]), strings[-1]])


def unpack(name: str, data: bytes) -> tuple[int, int, int, list[bytes]]:
    """The inverse of `pack`: quality, width, height and strings.

    Raises FormatError if the bytes are not a file of this codec, ImageError if the image is too large."""
    width, height = int.from_bytes(data[1:3], "big"), int.from_bytes(data[3:HEADER], "big")
    if len(data) <= HEADER or not width or not height or data[0] >> 4 != list(ZOO).index(name):
        msg = f"these {len(data)} bytes are not a file of {name}"
        raise FormatError(msg)
    quality = data[0] & 0xF
    if quality not in ZOO[name].qualities:
        msg = f"{name} has no quality {quality}: the file is damaged"
        raise FormatError(msg)
    check_size(width, height)
    strings, offset = [], HEADER
    for _ in range(ZOO[name].strings - 1):
        length, offset = read_number(data, offset)
        strings.append(data[offset : offset + length])
        offset += length
    if offset >= len(data):
        msg = f"the file of {name} is cut or damaged: a string in it has no end"
        raise FormatError(msg)
    return quality, width, height, [*strings, data[offset:]]


def weights_in(folder: Path, name: str) -> dict[int, Path]:
    """The files of a codec's weights by quality, named `NAME-QUALITY.pth.tar` or as at compressai's hub."""
    files: dict[int, Path] = {}
    for quality in ZOO[name].qualities:
        for file in (ZOO[name].hub_name(quality), f"{name}-{quality}.pth.tar"):  # the second is used if both exist
            if (folder / file).is_file():
                files[quality] = folder / file
    return files


def from_hub(name: str, quality: int) -> Path:
    """The file of weights in torch's cache, downloaded if it is missing. Raises BenchError if that fails."""
    import torch

    file = ZOO[name].hub_name(quality)
    path = Path(torch.hub.get_dir()) / "checkpoints" / file
    if path.is_file():
        return path
    default_timeout = socket.getdefaulttimeout()
    socket.setdefaulttimeout(DOWNLOAD_TIMEOUT)  # torch's downloader sets none
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        torch.hub.download_url_to_file(f"{HUB}/{file}", str(path), ZOO[name].digests[quality - 1], progress=False)
    except (OSError, HTTPException, RuntimeError) as error:
        msg = (
            f"the weights of {name} at quality {quality} cannot be downloaded from compressai's hub ({error}): "
            f"put {HUB}/{file} into a folder and name it with --compressai-weights"
        )
        raise BenchError(msg) from error
    finally:
        socket.setdefaulttimeout(default_timeout)
    return path


class CompressaiCodec:
    """A codec of ZOO, with weights from a folder or, if None, from compressai's hub.

    It computes with one thread unless OMP_NUM_THREADS is set. Several threads may call it; they take turns."""

    made_for = "squared error"

    def __init__(self, name: str, weights: Path | None = None) -> None:
        self.name = name
        self.title = ZOO[name].title
        self.weights = weights
        self.files = weights_in(weights, name) if weights else {}
        self._pool: ProcessPoolExecutor | None = None
        self._lock = threading.RLock()

    @property
    def settings(self) -> Sequence[int]:
        """The qualities that have weights."""
        return tuple(self.files) if self.weights else ZOO[self.name].qualities

    @cached_property
    def description(self) -> str:
        origin = "compressai's own weights"
        if self.weights:
            digest = hashlib.sha256()
            for quality, path in self.files.items():
                digest.update(bytes([quality]) + hashlib.sha256(path.read_bytes()).digest())
            origin = f"weights {digest.hexdigest()[:16]}"
        libraries = f"compressai {version('compressai')}, torch {version('torch')}"
        return f"{self.title}: {self.name} of {libraries}, {origin}, a header of 5 to 9 bytes"

    def check(self) -> None:
        """Raises BenchError if compressai or the weights are missing."""
        if find_spec("compressai") is None:
            msg = "compressai is not installed: pip install '.[bench]' in Tessera's repository"
            raise BenchError(msg)
        if not self.settings:
            example = f"{self.name}-1.pth.tar or {ZOO[self.name].hub_name(1)}"
            msg = f"no weights of {self.name} in {self.weights}: name its files as in {example}"
            raise BenchError(msg)
        self._run(_check, self.settings[0])

    def encode(self, pixels: Pixels, setting: float) -> bytes:
        """Pixels -> a complete file. Raises BenchError if compressai fails, ImageError for a side above 65535."""
        height, width = pixels.shape[:2]
        return pack(self.name, int(setting), width, height, self._run(_compress, int(setting), pixels))

    def decode(self, data: bytes) -> Pixels:
        """The inverse of `encode`. Raises FormatError for a damaged header, BenchError if compressai fails or crashes.
        Damage in the strings is rarely detected, since they have no checksum."""
        quality, width, height, strings = unpack(self.name, data)
        return self._run(_decompress, quality, strings, width, height)

    def fit(self, pixels: Pixels, budgets: Sequence[int]) -> list[CodedFile | None]:
        search = SettingSearch(self, pixels)
        return [search.fit(self.settings, budget) for budget in budgets]

    def close(self) -> None:
        """Ends the process. The next call starts another."""
        with self._lock:
            if self._pool:
                self._pool.shutdown()
            self._pool = None

    def _run(self, function: Callable[..., T], quality: int, *arguments: Any) -> T:
        """function(name, path of weights, *arguments) in the process. Raises BenchError if it fails or crashes; the next
        call starts another process."""
        with self._lock:
            if self.weights and quality not in self.files:
                msg = f"no weights of {self.name} at quality {quality} in {self.weights}"
                raise BenchError(msg)
            path = self.files[quality] if self.weights else from_hub(self.name, quality)
            if self._pool is None:
                self._pool = ProcessPoolExecutor(1, get_context("spawn"), initializer=_start)
            try:
                return self._pool.submit(function, self.name, path, *arguments).result()
            except BrokenProcessPool as error:
                self.close()
                msg = f"the process of {self.name} crashed: the file may be damaged, or memory too small"
                raise BenchError(msg) from error
            except Exception as error:  # compressai may raise anything; the benchmark continues with other codecs
                reason = (str(error).strip().splitlines() or [""])[0]
                msg = f"{self.name} failed with the weights {path.name} ({type(error).__name__}: {reason})"
                raise BenchError(msg) from error


# The functions below run in the process.


def _start() -> None:
    import torch

    signal.signal(signal.SIGINT, signal.SIG_DFL)  # an interrupt ends it without a traceback
    warnings.simplefilter("ignore")
    if "OMP_NUM_THREADS" not in os.environ:
        torch.set_num_threads(1)


@lru_cache(maxsize=8)
def _network(name: str, path: Path) -> Any:
    import torch

    state = torch.load(path, "cpu", weights_only=True)  # before the slow import: it may fail
    from compressai.zoo.image import model_architectures
    from compressai.zoo.pretrained import load_pretrained

    network = model_architectures[name].from_state_dict(load_pretrained(state.get("state_dict", state))).eval()
    network.update()  # computes the coder's tables if the file has none
    return network


def _check(name: str, path: Path) -> None:
    _network(name, path)


def _compress(name: str, path: Path, pixels: Pixels) -> list[bytes]:
    """Pixels (H, W, 3) -> strings."""
    import torch

    height, width = pixels.shape[:2]
    padded = np.pad(pixels, ((0, -height % MULTIPLE), (0, -width % MULTIPLE), (0, 0)), mode="edge")
    with torch.inference_mode():
        x = torch.from_numpy(padded).permute(2, 0, 1)[None].float() / 255
        return [string for (string,) in _network(name, path).compress(x)["strings"]]


def _decompress(name: str, path: Path, strings: list[bytes], width: int, height: int) -> Pixels:
    """The inverse of `_compress`."""
    import torch

    shape = [-(-side // MULTIPLE) * MULTIPLE // ZOO[name].stride for side in (height, width)]
    with torch.inference_mode():
        x = _network(name, path).decompress([[string] for string in strings], shape)["x_hat"]
        return (x[0, :, :height, :width] * 255).round().clamp(0, 255).to(torch.uint8).permute(1, 2, 0).contiguous().numpy()
