"""Published checkpoints of any family: opening them, and reading tensors one by one.

Only data is read: safetensors, or files that PyTorch unpickles with `weights_only`. Every tensor must fit the network.
"""

from __future__ import annotations

import json
import os
import pickle
import zipfile
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from functools import partial
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError, safe_open
from torch import Tensor, nn

from codec.errors import ModelError
from codec.models.download import CONFIG, WEIGHTS_FILES, WEIGHTS_SUFFIXES, Progress, fetch_checkpoint

NESTED = ("state_dict", "model")  # keys of training checkpoints under which the network's tensors are
CONFIG_MAX = 1 << 20  # bytes of a config.json; published ones have 2 kB
MAX_NAMES = 3  # maximum number of tensors that a message lists
Shape = tuple[int, ...]


@dataclass(frozen=True)
class Checkpoint:
    """An open checkpoint, whose tensors are read one by one."""

    source: str  # name of the repository, the folder or the file, without the folders above it
    path: Path  # file of the weights
    shapes: Mapping[str, Shape]
    read: Callable[[str], Tensor]
    config: dict[str, Any] | None  # content of config.json, if there is one
    metadata: Mapping[str, str] = field(default_factory=dict)  # of a safetensors file


def open_checkpoint(source: str | os.PathLike[str], progress: Progress | None = None) -> Checkpoint:
    """Opens a folder (weights, perhaps config.json) or a file of weights, or downloads a checkpoint by its short name in
    `codec.models.catalogue` or by its repository on Hugging Face.

    Raises ModelError if there is no such checkpoint, or if it is damaged or contains anything but tensors."""
    path = Path(source)
    try:
        if not path.exists():
            files = fetch_checkpoint(str(source), progress)
            return _open_weights(files.repository, files.weights, _read_config(files.config))
        if path.is_file():
            return _open_weights(path.name, path, None)
        if not path.is_dir():
            msg = f"{source}: neither a folder nor a file of weights: give the path of one"
            raise ModelError(msg)
        return _open_weights(path.name, _weights_file(path, str(source)), _read_config(path / CONFIG))
    except OSError as error:
        msg = f"{source}: cannot be read ({error.strerror or error}): check its permissions"
        raise ModelError(msg) from error


def _weights_file(folder: Path, source: str) -> Path:
    """The file of weights in a folder: the one with a published name, or the only one."""
    paths = [*folder.iterdir(), *(folder / "checkpoints").glob("*")]  # the second as in DetailFlow
    files = sorted(path for path in paths if path.suffix in WEIGHTS_SUFFIXES and path.is_file())
    chosen = next((file for name in WEIGHTS_FILES for file in files if file.name == name), None)
    if chosen is None and len(files) == 1:
        chosen = files[0]
    if chosen is None and not files:
        msg = f"{source}: no weights in it: a file such as {' or '.join(WEIGHTS_FILES)} is needed"
        raise ModelError(msg)
    if chosen is None:
        msg = f"{source}: has several files of weights, {_join_names([file.name for file in files])}: give the path of one"
        raise ModelError(msg)
    return chosen


def _open_weights(source: str, path: Path, config: dict[str, Any] | None) -> Checkpoint:
    if path.suffix == ".safetensors":
        try:
            with safe_open(path, "pt") as file:
                shapes = {name: tuple(file.get_slice(name).get_shape()) for name in file.keys()}  # noqa: SIM118 (not a dict)
                return Checkpoint(source, path, shapes, partial(_read_tensor, path), config, file.metadata() or {})
        except (SafetensorError, OSError) as error:
            msg = f"{path}: not a safetensors file ({error}): get it again"
            raise ModelError(msg) from error
    tensors = _unpickled(path)
    for key in NESTED:
        tensors = tensors.get(key, tensors) if isinstance(tensors, dict) else tensors
    if not isinstance(tensors, dict):
        msg = f"{path}: holds a {type(tensors).__name__}: a dictionary of named tensors is needed"
        raise ModelError(msg)
    if others := [str(name) for name, value in tensors.items() if not (isinstance(name, str) and isinstance(value, Tensor))]:
        msg = f"{path}: holds more than named tensors ({_join_names(others)}): save the network's state_dict alone"
        raise ModelError(msg)
    shapes = {name: tuple(value.shape) for name, value in tensors.items()}
    return Checkpoint(source, path, shapes, tensors.__getitem__, config)


def _read_tensor(path: Path, name: str) -> Tensor:
    """The file is opened for each tensor: the pages that were read would otherwise stay in memory, and double it."""
    with safe_open(path, "pt") as file:
        return file.get_tensor(name)


def _unpickled(path: Path) -> Any:
    """The content of a file that torch.save has written. Nothing in it is run, and nothing is unpacked: torch stores its data
    as they are."""
    try:
        if zipfile.is_zipfile(path):
            with zipfile.ZipFile(path) as archive:
                if any(entry.compress_type != zipfile.ZIP_STORED for entry in archive.infolist()):
                    msg = f"{path}: packed, which torch never does: get it from its authors"
                    raise ModelError(msg)
        return torch.load(path, "cpu", weights_only=True, mmap=zipfile.is_zipfile(path))
    except ModelError:
        raise
    except pickle.UnpicklingError as error:
        msg = f"{path}: not only tensors, or damaged: unpickling it could run code; use safetensors"
        raise ModelError(msg) from error
    except Exception as error:  # torch.load raises almost anything for damaged bytes
        msg = f"{path}: not a file of weights ({type(error).__name__}): get it again"
        raise ModelError(msg) from error


def _read_config(path: Path | None) -> dict[str, Any] | None:
    if path is None or not path.is_file():
        return None
    if path.stat().st_size > CONFIG_MAX:
        msg = f"{path}: too large for a configuration, of which {CONFIG_MAX:,} bytes are read: leave it out"
        raise ModelError(msg)
    try:
        config = json.loads(path.read_text("utf-8"))
    except (ValueError, RecursionError) as error:
        msg = f"{path}: not a configuration ({type(error).__name__}: {error}): leave it out"
        raise ModelError(msg) from error
    if not isinstance(config, dict):
        msg = f"{path}: not a configuration, but a {type(config).__name__}: leave it out"
        raise ModelError(msg)
    return config


def read_tensors(checkpoint: Checkpoint, names: Mapping[str, str]) -> dict[str, Tensor]:
    """The tensors, float16 or float32, under the names of the network, given their `names` in the checkpoint by those.

    Tensors of other floating-point types become float32. Raises ModelError if one cannot be read or is not finite."""
    tensors = {}
    for name, source in names.items():
        try:
            tensor = checkpoint.read(source)
        except (SafetensorError, OSError) as error:
            msg = f"{checkpoint.path}: {source} cannot be read ({error}): get the file again"
            raise ModelError(msg) from error
        if tensor.layout != torch.strided or not tensor.is_floating_point() or not _is_finite(tensor):
            msg = f"{checkpoint.path}: {source} holds {tensor.dtype} or numbers that are not finite"
            raise ModelError(msg)
        tensors[name] = (tensor if tensor.dtype in (torch.float16, torch.float32) else tensor.float()).contiguous()
    return tensors


def _is_finite(tensor: Tensor) -> bool:
    """Whether all numbers are finite, of any floating-point type. `Tensor.isfinite` makes temporary copies, whose memory the
    allocator would keep."""
    numbers = tensor.float() if tensor.itemsize == 1 else tensor  # torch compares no numbers of 8 bits
    return tensor.numel() == 0 or bool(torch.stack(torch.aminmax(numbers)).isfinite().all())


def check_shapes(path: Path, shapes: Mapping[str, Shape], network: nn.Module, model_name: str) -> None:
    """Raises ModelError unless the tensors have exactly the names and shapes of the network's tensors."""
    expected = {name: tuple(value.shape) for name, value in network.state_dict().items()}
    problems = {
        "missing": sorted(expected.keys() - shapes.keys()),
        "unexpected": sorted(shapes.keys() - expected.keys()),
        "of another shape": [
            f"{name} {shapes[name]} for {shape}" for name, shape in expected.items() if shapes.get(name, shape) != shape
        ],
    }
    if any(problems.values()):
        lists = [f"{problem}: {_join_names(names)}" for problem, names in problems.items() if names]
        msg = f"{path}: not the tensors of {model_name}; {'; '.join(lists)}"
        raise ModelError(msg)


def _join_names(names: list[str]) -> str:
    more = len(names) - MAX_NAMES
    return ", ".join(names[:MAX_NAMES]) + (f" and {more} more" if more > 0 else "")
