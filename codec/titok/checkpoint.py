"""Published checkpoints of TiTok and One-D-Piece: finding, reading and checking them.

Only data is read: safetensors, or files that PyTorch unpickles with `weights_only`. Every tensor must fit the network.
"""

from __future__ import annotations

import json
import os
import pickle
import re
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError, safe_open
from torch import Tensor

from codec.errors import ModelError
from codec.titok.config import SIZES, TitokConfig, published_config
from codec.titok.network import Titok

VARIANTS = {"one-d-piece": True, "titok": False}  # whether trained with tail token drop
CONFIG_TYPES = {"one_d_piece": "one-d-piece", "titok": "titok"}  # variants by their name in a configuration
VARIANT_OF_TOKENS = {32: "titok", 64: "titok", 128: "titok", 256: "one-d-piece"}  # published checkpoints
WEIGHTS_FILES = ("model.safetensors", "pytorch_model.bin")  # published names
WEIGHTS_SUFFIXES = (".safetensors", ".bin", ".pt", ".pth")
MAX_NAMES = 3  # maximum number of tensors that a message lists
Shape = tuple[int, ...]


@dataclass(frozen=True)
class Checkpoint:
    """An open checkpoint, whose tensors are read one by one."""

    path: Path  # file of the weights
    shapes: Mapping[str, Shape]
    read: Callable[[str], Tensor]
    config: dict[str, Any] | None  # content of config.json, if there is one


def open_checkpoint(source: str | os.PathLike[str]) -> Checkpoint:
    """Opens a folder (weights, perhaps config.json), a file of weights, or a repository on Hugging Face by its name.

    Raises ModelError if there is no such checkpoint, or if it is damaged or contains anything but tensors."""
    path = Path(source)
    if not path.exists():
        if not re.fullmatch(r"[\w-][\w.-]*/[\w-][\w.-]*", str(source)):
            msg = f"{source}: no such file or folder, and not the name of a repository (OWNER/NAME)"
            raise ModelError(msg)
        path = fetch_repository(str(source))
    if path.is_file():
        return _open_weights(path, None)
    weights = next((path / name for name in WEIGHTS_FILES if (path / name).is_file()), None)
    if weights is None:
        candidates = sorted(file for file in path.iterdir() if file.suffix in WEIGHTS_SUFFIXES)
        if len(candidates) != 1:
            names = ", ".join(file.name for file in candidates) or "none"
            msg = f"{source}: one file of weights is expected in the folder, found: {names}; give its path"
            raise ModelError(msg)
        weights = candidates[0]
    return _open_weights(weights, _read_config(path))


def fetch_repository(name: str) -> Path:
    """The folder of a Hugging Face repository, downloaded unless it is in the cache.

    Raises ModelError if huggingface_hub is not installed, or if there is no network or no such repository."""
    try:
        from huggingface_hub import snapshot_download
    except ImportError as error:
        msg = f"{name}: fetching it needs huggingface_hub (pip install huggingface_hub); or get its files and give their folder"
        raise ModelError(msg) from error
    try:
        return Path(snapshot_download(name, allow_patterns=["config.json", "*.safetensors"]))
    except Exception as error:  # errors of huggingface_hub, requests or httpx, which have no common base class
        cause = (str(error) or type(error).__name__).splitlines()[0][:120]
        msg = f"{name}: cannot be fetched ({cause}): check the name and the network; or get its files and give their folder"
        raise ModelError(msg) from error


def _open_weights(path: Path, config: dict[str, Any] | None) -> Checkpoint:
    if path.suffix == ".safetensors":
        try:
            file = safe_open(path, "pt")
            shapes = {name: tuple(file.get_slice(name).get_shape()) for name in file.keys()}  # noqa: SIM118 (not a dict)
        except (SafetensorError, OSError) as error:
            msg = f"{path}: not a safetensors file ({error}): get it again"
            raise ModelError(msg) from error
        return Checkpoint(path, shapes, file.get_tensor, config)
    try:
        tensors = torch.load(path, "cpu", weights_only=True)
    except pickle.UnpicklingError as error:
        msg = f"{path}: not only tensors, or damaged: unpickling it could run code; use safetensors"
        raise ModelError(msg) from error
    except Exception as error:  # torch.load raises almost anything for damaged bytes
        msg = f"{path}: not a file of weights ({type(error).__name__})"
        raise ModelError(msg) from error
    if not isinstance(tensors, dict) or not all(isinstance(value, Tensor) for value in tensors.values()):
        msg = f"{path}: expected a dictionary of named tensors"
        raise ModelError(msg)
    return Checkpoint(path, {name: tuple(value.shape) for name, value in tensors.items()}, tensors.__getitem__, config)


def _read_config(folder: Path) -> dict[str, Any] | None:
    path = folder / "config.json"
    if not path.is_file():
        return None
    try:
        config = json.loads(path.read_text())
        config = config.get("config", config)
        config["model"]["vq_model"].keys()
    except (OSError, ValueError, KeyError, AttributeError, TypeError) as error:
        msg = f"{path}: not the configuration of a TiTok or One-D-Piece tokenizer ({type(error).__name__}: {error})"
        raise ModelError(msg) from error
    return config


def network_config(checkpoint: Checkpoint, variant: str | None = None) -> TitokConfig:
    """The network's configuration, from config.json or else from the shapes of the tensors.

    `variant` ("one-d-piece" or "titok") names the training method if neither the file nor the shapes determine it. Raises
    ModelError for an unknown size or variant, and for networks that are not supported."""
    if checkpoint.config is None:
        size, tokens, declared = *_size_and_tokens(checkpoint), None
    else:
        _check_supported(checkpoint.path, checkpoint.config)
        vq = checkpoint.config["model"]["vq_model"]
        size, tokens = vq.get("vit_enc_model_size"), vq.get("num_latent_tokens")
        config_type = checkpoint.config["model"].get("type")
        if config_type not in (None, *CONFIG_TYPES):
            msg = f"{checkpoint.path}: unknown type {config_type!r} in its configuration: known are {', '.join(CONFIG_TYPES)}"
            raise ModelError(msg)
        declared = CONFIG_TYPES.get(config_type)
        if not isinstance(size, str) or type(tokens) is not int:
            msg = f"{checkpoint.path}: size {size!r} and {tokens!r} tokens in its configuration"
            raise ModelError(msg)
    if declared and variant and declared != variant:
        msg = f"{checkpoint.path}: its configuration says {declared}, not {variant}"
        raise ModelError(msg)
    variant = variant or declared or VARIANT_OF_TOKENS.get(tokens)
    if variant not in VARIANTS:
        reason = variant or f"no published model has {tokens} tokens"
        msg = f"{checkpoint.path}: {reason}: say whether it is {' or '.join(VARIANTS)}"
        raise ModelError(msg)
    try:
        return published_config(size, tokens, VARIANTS[variant])
    except ModelError as error:
        msg = f"{checkpoint.path}: {error}"
        raise ModelError(msg) from error


def _size_and_tokens(checkpoint: Checkpoint) -> tuple[str, int]:
    """Size and number of tokens, from the shape of the latent tokens (N, W): each size has its own width."""
    shape = checkpoint.shapes.get("latent_tokens", ())
    for size, (width, _, _) in SIZES.items():
        if len(shape) == 2 and shape[1] == width:
            return size, shape[0]
    known = ", ".join(f"{width} ({size})" for size, (width, _, _) in SIZES.items())
    msg = f"{checkpoint.path}: unknown size: its latent_tokens have shape {shape}, and known widths are {known}"
    raise ModelError(msg)


def _check_supported(path: Path, config: dict[str, Any]) -> None:
    """Raises ModelError for the unsupported network variants in these authors' other checkpoints."""
    vq = config["model"]["vq_model"]
    expected = {
        "vit_dec_model_size": vq.get("vit_enc_model_size"),
        "vit_enc_patch_size": 16,
        "vit_dec_patch_size": 16,
        "codebook_size": 4096,
        "token_size": 12,
        "use_l2_norm": True,
        "finetune_decoder": True,  # false for first-stage checkpoints, which have no pixel decoder
        "quantize_mode": "vq",
        "is_legacy": True,
    }
    for key, value in expected.items():
        if vq.get(key, value) != value:
            msg = f"{path}: {key} is {vq[key]!r} in its configuration, and only {value!r} is supported"
            raise ModelError(msg)


def read_checkpoint(checkpoint: Checkpoint, config: TitokConfig) -> dict[str, Tensor]:
    """All tensors, in their stored type, float16 or float32. Raises ModelError unless all fit the network and are finite."""
    check_shapes(checkpoint.path, checkpoint.shapes, config)
    tensors = {}
    for name in checkpoint.shapes:
        try:
            tensor = checkpoint.read(name)
        except (SafetensorError, OSError) as error:
            msg = f"{checkpoint.path}: {name} cannot be read ({error}): get the file again"
            raise ModelError(msg) from error
        if not tensor.is_floating_point() or not tensor.isfinite().all():
            msg = f"{checkpoint.path}: {name} holds {tensor.dtype} or numbers that are not finite"
            raise ModelError(msg)
        tensors[name] = (tensor if tensor.dtype in (torch.float16, torch.float32) else tensor.float()).contiguous()
    return tensors


def check_shapes(path: Path, shapes: Mapping[str, Shape], config: TitokConfig) -> None:
    """Raises ModelError unless the tensors have exactly the names and shapes of the network's tensors."""
    with torch.device("meta"):  # takes no memory
        expected = {name: tuple(value.shape) for name, value in Titok(config).state_dict().items()}
    problems = {
        "missing": sorted(expected.keys() - shapes.keys()),
        "unexpected": sorted(shapes.keys() - expected.keys()),
        "of another shape": [
            f"{name} {shapes[name]} for {shape}" for name, shape in expected.items() if shapes.get(name, shape) != shape
        ],
    }
    if any(problems.values()):
        lists = [f"{problem}: {_join_names(names)}" for problem, names in problems.items() if names]
        msg = f"{path}: not the tensors of {config.name}; {'; '.join(lists)}"
        raise ModelError(msg)


def _join_names(names: list[str]) -> str:
    more = len(names) - MAX_NAMES
    return ", ".join(names[:MAX_NAMES]) + (f" and {more} more" if more > 0 else "")
