"""Published checkpoints of any family, whose tensors are read one by one.

No code in a file is run: only safetensors are read, and files that torch unpickles with `weights_only`.
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

NESTED = ("state_dict", "model")  # keys under which training checkpoints hold the network's tensors
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
    config: dict[str, Any] | None  # content of config.json; None without it
    metadata: Mapping[str, str] = field(default_factory=dict)  # text in the header of a safetensors file


def open_checkpoint(source: str | os.PathLike[str], progress: Progress | None = None) -> Checkpoint:
    """Opens a checkpoint: a file of weights, or a folder that holds one and, optionally, config.json. If there is no such path,
    `source` is a name in `codec.models.catalogue` or a repository on Hugging Face, which `fetch_checkpoint` downloads.

    Raises ModelError if there is no such checkpoint, or if it is damaged or contains anything but tensors."""
    path = Path(source)
    try:
        if not path.exists():
            files = fetch_checkpoint(str(source), progress)
            return _open_weights(files.repository, files.weights, _read_config(files.config))
        if path.is_file():
            return _open_weights(path.name, path, None)
        if not path.is_dir():
            msg = "neither a folder nor a file of weights: give the path of one"
            raise ModelError(msg, file=source)
        return _open_weights(path.name, _weights_file(path, str(source)), _read_config(path / CONFIG))
    except OSError as error:
        msg = f"cannot be read ({error.strerror or error}): check its permissions"
        raise ModelError(msg, file=source) from error


def _weights_file(folder: Path, source: str) -> Path:
    """The file of weights in a folder: the one with a published name, or the only one."""
    paths = [*folder.iterdir(), *(folder / "checkpoints").glob("*")]  # the second as in DetailFlow
    files = sorted(path for path in paths if path.suffix in WEIGHTS_SUFFIXES and path.is_file())
    chosen = next((file for name in WEIGHTS_FILES for file in files if file.name == name), None)
    if chosen is None and len(files) == 1:
        chosen = files[0]
    if chosen is None and not files:
        msg = f"no weights in it: a file such as {' or '.join(WEIGHTS_FILES)} is needed"
        raise ModelError(msg, file=source)
    if chosen is None:
        msg = f"has several files of weights, {_join_names([file.name for file in files])}: give the path of one"
        raise ModelError(msg, file=source)
    return chosen


def _open_weights(source: str, path: Path, config: dict[str, Any] | None) -> Checkpoint:
    if path.suffix == ".safetensors":
        try:
            with safe_open(path, "pt") as file:
                shapes = {name: tuple(file.get_slice(name).get_shape()) for name in file.keys()}  # noqa: SIM118 (not a dict)
                return Checkpoint(source, path, shapes, partial(_read_tensor, path), config, file.metadata() or {})
        except (SafetensorError, OSError) as error:
            msg = f"not a safetensors file ({error}): get it again"
            raise ModelError(msg, file=path) from error
    tensors = _unpickled(path)
    for key in NESTED:
        tensors = tensors.get(key, tensors) if isinstance(tensors, dict) else tensors
    if not isinstance(tensors, dict):
        msg = f"holds a {type(tensors).__name__}: a dictionary of named tensors is needed"
        raise ModelError(msg, file=path)
    if others := [str(name) for name, value in tensors.items() if not (isinstance(name, str) and isinstance(value, Tensor))]:
        msg = f"holds more than named tensors ({_join_names(others)}): save the network's state_dict alone"
        raise ModelError(msg, file=path)
    shapes = {name: tuple(value.shape) for name, value in tensors.items()}
    return Checkpoint(source, path, shapes, tensors.__getitem__, config)


def _read_tensor(path: Path, name: str) -> Tensor:
    """Opens the file for this tensor alone: otherwise the pages that were read would stay in memory with the tensors."""
    with safe_open(path, "pt") as file:
        return file.get_tensor(name)


def _unpickled(path: Path) -> Any:
    """The content of a file that torch.save has written. No code in it is run. Compressed files, which could be of any size
    once unpacked, are refused: torch writes none."""
    try:
        if zipfile.is_zipfile(path):
            with zipfile.ZipFile(path) as archive:
                if any(entry.compress_type != zipfile.ZIP_STORED for entry in archive.infolist()):
                    msg = "compressed, as torch never writes it: get the file from its authors"
                    raise ModelError(msg, file=path)
        return torch.load(path, "cpu", weights_only=True, mmap=zipfile.is_zipfile(path))
    except ModelError:
        raise
    except pickle.UnpicklingError as error:
        msg = "holds more than tensors, or is damaged; to unpickle it could run code: use a safetensors file"
        raise ModelError(msg, file=path) from error
    except Exception as error:  # torch.load raises almost anything for damaged bytes
        msg = f"not a file of weights ({type(error).__name__}): get it again"
        raise ModelError(msg, file=path) from error


def _read_config(path: Path | None) -> dict[str, Any] | None:
    if path is None or not path.is_file():
        return None
    if path.stat().st_size > CONFIG_MAX:
        msg = f"more than {CONFIG_MAX:,} bytes, so not a configuration: leave it out"
        raise ModelError(msg, file=path)
    try:
        config = json.loads(path.read_text("utf-8"))
    except (ValueError, RecursionError) as error:
        msg = f"not a configuration ({type(error).__name__}: {error}): leave it out"
        raise ModelError(msg, file=path) from error
    if not isinstance(config, dict):
        msg = f"not a configuration, but a {type(config).__name__}: leave it out"
        raise ModelError(msg, file=path)
    return config


def read_tensors(checkpoint: Checkpoint, names: Mapping[str, str]) -> dict[str, Tensor]:
    """The tensors of a checkpoint by their names in the network, which `names` maps to their names in the checkpoint.

    They are float16 or float32; tensors of other floating-point types are converted to float32. Raises ModelError if one cannot
    be read, holds other than floating-point numbers, or is not finite."""
    tensors = {}
    for name, source in names.items():
        try:
            tensor = checkpoint.read(source)
        except (SafetensorError, OSError) as error:
            msg = f"{source} cannot be read ({error}): get the file again"
            raise ModelError(msg, file=checkpoint.path) from error
        if tensor.layout != torch.strided or not tensor.is_floating_point():
            msg = f"{source} holds {tensor.dtype} ({tensor.layout}): floating-point numbers are needed"
            raise ModelError(msg, file=checkpoint.path)
        if not _is_finite(tensor):
            msg = f"{source} holds numbers that are not finite: get the file again"
            raise ModelError(msg, file=checkpoint.path)
        tensors[name] = (tensor if tensor.dtype in (torch.float16, torch.float32) else tensor.float()).contiguous()
    return tensors


def _is_finite(tensor: Tensor) -> bool:
    """Whether all numbers of a floating-point tensor are finite. `Tensor.isfinite` would make temporary copies, and the
    allocator would keep their memory."""
    numbers = tensor.float() if tensor.itemsize == 1 else tensor  # torch cannot compare numbers of 8 bits
    return tensor.numel() == 0 or bool(torch.stack(torch.aminmax(numbers)).isfinite().all())


def check_shapes(path: Path, shapes: Mapping[str, Shape], network: nn.Module, model_name: str) -> None:
    """Raises ModelError unless the tensors of a file, given as shapes by name, have the names and shapes of the network's."""
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
        msg = f"not the tensors of {model_name}; {'; '.join(lists)}"
        raise ModelError(msg, file=path)


def _join_names(names: list[str]) -> str:
    more = len(names) - MAX_NAMES
    return ", ".join(names[:MAX_NAMES]) + (f" and {more} more" if more > 0 else "")
