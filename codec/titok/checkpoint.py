"""From a published checkpoint of TiTok or One-D-Piece to a model file of ours: read, check every tensor, write.

Only data is read: safetensors, or what PyTorch unpickles with `weights_only`. Nothing is written unless all of it fits.
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
from codec.titok.config import SIZES, TitokConfig, sized
from codec.titok.network import Titok

FAMILIES = {"one-d-piece": True, "titok": False}  # whether trained with tail token drop
STATED = {"one_d_piece": "one-d-piece", "titok": "titok"}  # what configurations call them
BY_TOKENS = {32: "titok", 64: "titok", 128: "titok", 256: "one-d-piece"}  # of the published checkpoints
WEIGHTS = ("model.safetensors", "pytorch_model.bin")  # as published
ENDINGS = (".safetensors", ".bin", ".pt", ".pth")
SHOWN = 3  # names of tensors that a message lists in full
Shape = tuple[int, ...]


@dataclass(frozen=True)
class Checkpoint:
    """A checkpoint, opened; tensors are read when they are asked for."""

    path: Path  # of the weights
    shapes: Mapping[str, Shape]
    read: Callable[[str], Tensor]
    stated: dict[str, Any] | None  # its configuration, where there is one


def open_checkpoint(source: str | os.PathLike[str]) -> Checkpoint:
    """A folder (weights, and perhaps config.json), a file of weights, or the name of a repository on Hugging Face.

    Raises ModelError where there is none, it is damaged, or it holds anything but tensors."""
    path = Path(source)
    if not path.exists():
        if not re.fullmatch(r"[\w-][\w.-]*/[\w-][\w.-]*", str(source)):
            msg = f"{source}: no such file or folder, and not the name of a repository (OWNER/NAME)"
            raise ModelError(msg)
        path = fetch_repository(str(source))
    if path.is_file():
        return _open_weights(path, None)
    weights = next((path / name for name in WEIGHTS if (path / name).is_file()), None)
    if weights is None:
        found = sorted(file for file in path.iterdir() if file.suffix in ENDINGS)
        if len(found) != 1:
            names = ", ".join(file.name for file in found) or "none"
            msg = f"{source}: one file of weights is expected in the folder, found: {names}; give its path"
            raise ModelError(msg)
        weights = found[0]
    return _open_weights(weights, _read_config(path))


def fetch_repository(name: str) -> Path:
    """Fetches a repository from Hugging Face, or finds it in its cache -> its folder. Raises ModelError without
    huggingface_hub, without a network, or where there is no such repository."""
    try:
        from huggingface_hub import snapshot_download
    except ImportError as error:
        msg = f"{name}: fetching it needs huggingface_hub (pip install huggingface_hub); or get its files and give their folder"
        raise ModelError(msg) from error
    try:
        return Path(snapshot_download(name, allow_patterns=["config.json", "*.safetensors"]))
    except Exception as error:  # its own errors, and those of requests or httpx: they share no base
        cause = (str(error) or type(error).__name__).splitlines()[0][:120]
        msg = f"{name}: cannot be fetched ({cause}): check the name and the network; or get its files and give their folder"
        raise ModelError(msg) from error


def _open_weights(path: Path, stated: dict[str, Any] | None) -> Checkpoint:
    if path.suffix == ".safetensors":
        try:
            file = safe_open(path, "pt")
            shapes = {name: tuple(file.get_slice(name).get_shape()) for name in file.keys()}  # noqa: SIM118 (not a dict)
        except (SafetensorError, OSError) as error:
            msg = f"{path}: not a safetensors file ({error}): get it again"
            raise ModelError(msg) from error
        return Checkpoint(path, shapes, file.get_tensor, stated)
    try:
        tensors = torch.load(path, "cpu", weights_only=True)
    except pickle.UnpicklingError as error:
        msg = f"{path}: holds more than tensors, or is damaged: refused, since unpickling it could run code; use safetensors"
        raise ModelError(msg) from error
    except Exception as error:  # damaged bytes make it raise almost anything
        msg = f"{path}: not a file of weights ({type(error).__name__})"
        raise ModelError(msg) from error
    if not isinstance(tensors, dict) or not all(isinstance(value, Tensor) for value in tensors.values()):
        msg = f"{path}: holds something other than tensors by name"
        raise ModelError(msg)
    return Checkpoint(path, {name: tuple(value.shape) for name, value in tensors.items()}, tensors.__getitem__, stated)


def _read_config(folder: Path) -> dict[str, Any] | None:
    path = folder / "config.json"
    if not path.is_file():
        return None
    try:
        plain = json.loads(path.read_text())
        plain = plain.get("config", plain)
        plain["model"]["vq_model"].keys()
    except (OSError, ValueError, KeyError, AttributeError, TypeError) as error:
        msg = f"{path}: not the configuration of a TiTok or One-D-Piece tokenizer ({type(error).__name__}: {error})"
        raise ModelError(msg) from error
    return plain


def config_of(checkpoint: Checkpoint, family: str | None = None) -> TitokConfig:
    """The configuration that the checkpoint states, or else the one that follows from the shapes of its tensors.

    `family` ("one-d-piece" or "titok") says how it was trained where nothing else does. Raises ModelError for an unknown size
    or family, and for kinds of networks that are not supported."""
    stated = checkpoint.stated
    if stated is None:
        size, tokens, found = *_size_and_tokens(checkpoint), None
    else:
        _check_supported(checkpoint.path, stated)
        vq = stated["model"]["vq_model"]
        size, tokens = vq.get("vit_enc_model_size"), vq.get("num_latent_tokens")
        found = stated["model"].get("type")
        if found not in (None, *STATED):
            msg = f"{checkpoint.path}: unknown type {found!r} in its configuration: known are {', '.join(STATED)}"
            raise ModelError(msg)
        found = STATED.get(found)
        if not isinstance(size, str) or type(tokens) is not int:
            msg = f"{checkpoint.path}: size {size!r} and {tokens!r} tokens in its configuration"
            raise ModelError(msg)
    if found and family and found != family:
        msg = f"{checkpoint.path}: its configuration says {found}, not {family}"
        raise ModelError(msg)
    family = family or found or BY_TOKENS.get(tokens)
    if family not in FAMILIES:
        kinds = " or ".join(FAMILIES)
        msg = f"{checkpoint.path}: {family or f'{tokens} tokens, a number of no published model'}: say whether it is {kinds}"
        raise ModelError(msg)
    try:
        return sized(size, tokens, FAMILIES[family])
    except ModelError as error:
        msg = f"{checkpoint.path}: {error}"
        raise ModelError(msg) from error


def _size_and_tokens(checkpoint: Checkpoint) -> tuple[str, int]:
    """What the shape of the latent tokens (N, W) says: each size has its own width."""
    shape = checkpoint.shapes.get("latent_tokens", ())
    for size, (width, _, _) in SIZES.items():
        if len(shape) == 2 and shape[1] == width:
            return size, shape[0]
    known = ", ".join(f"{width} ({size})" for size, (width, _, _) in SIZES.items())
    msg = f"{checkpoint.path}: unknown size: its latent_tokens have shape {shape}, and known widths are {known}"
    raise ModelError(msg)


def _check_supported(path: Path, stated: dict[str, Any]) -> None:
    """Raises ModelError for networks that other members of the family have, under other names or with another meaning."""
    vq = stated["model"]["vq_model"]
    expected = {
        "vit_dec_model_size": vq.get("vit_enc_model_size"),
        "vit_enc_patch_size": 16,
        "vit_dec_patch_size": 16,
        "codebook_size": 4096,
        "token_size": 12,
        "use_l2_norm": True,
        "finetune_decoder": True,  # false: a first stage, without the pixel decoder
        "quantize_mode": "vq",
        "is_legacy": True,
    }
    for key, value in expected.items():
        if vq.get(key, value) != value:
            msg = f"{path}: {key} is {vq[key]!r} in its configuration, and only {value!r} is supported"
            raise ModelError(msg)


def expected_shapes(config: TitokConfig) -> dict[str, Shape]:
    """The names and shapes of all tensors of a network, without the memory that they would take."""
    with torch.device("meta"):
        return {name: tuple(value.shape) for name, value in Titok(config).state_dict().items()}


def check_shapes(path: Path, shapes: Mapping[str, Shape], config: TitokConfig) -> None:
    """Raises ModelError that lists what is missing, unexpected, or of another shape than the network has."""
    expected = expected_shapes(config)
    problems = {
        "missing": sorted(expected.keys() - shapes.keys()),
        "unexpected": sorted(shapes.keys() - expected.keys()),
        "of another shape": [
            f"{name} {shapes[name]} for {shape}" for name, shape in expected.items() if shapes.get(name, shape) != shape
        ],
    }
    if any(problems.values()):
        parts = [f"{what}: {_some(names)}" for what, names in problems.items() if names]
        msg = f"{path}: not the tensors of {config.name}; {'; '.join(parts)}"
        raise ModelError(msg)


def _some(names: list[str]) -> str:
    more = len(names) - SHOWN
    return ", ".join(names[:SHOWN]) + (f" and {more} more" if more > 0 else "")


def read_checkpoint(checkpoint: Checkpoint, config: TitokConfig) -> dict[str, Tensor]:
    """All tensors, in float16 or float32 as they are stored. Raises ModelError unless every one fits the network."""
    check_shapes(checkpoint.path, checkpoint.shapes, config)
    state = {}
    for name in checkpoint.shapes:
        try:
            tensor = checkpoint.read(name)
        except (SafetensorError, OSError) as error:
            msg = f"{checkpoint.path}: {name} cannot be read ({error}): get the file again"
            raise ModelError(msg) from error
        if not tensor.is_floating_point() or not tensor.isfinite().all():
            msg = f"{checkpoint.path}: {name} holds {tensor.dtype} or numbers that are not finite"
            raise ModelError(msg)
        state[name] = (tensor if tensor.dtype in (torch.float16, torch.float32) else tensor.float()).contiguous()
    return state
