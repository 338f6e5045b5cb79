"""Published checkpoints of TiTok and One-D-Piece: finding, reading and checking them.

Only data is read: safetensors, or files that PyTorch unpickles with `weights_only`. Every tensor must fit the network.
"""

from __future__ import annotations

import json
import os
import pickle
import re
import zipfile
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
TITOK_NAMES = ("TiTok-L-32", "TiTok-B-64", "TiTok-S-128")  # published and supported
VARIANT_OF_TOKENS = {32: "titok", 64: "titok", 128: "titok", 256: "one-d-piece"}  # published checkpoints
WEIGHTS_FILES = ("model.safetensors", "pytorch_model.bin")  # published names
WEIGHTS_SUFFIXES = (".safetensors", ".bin", ".pt", ".pth")
CONFIG_MAX = 1 << 20  # bytes of a config.json; published ones have 2 kB
MAX_NAMES = 3  # maximum number of tensors that a message lists
REPOSITORY = r"[\w-][\w.-]*/[\w-][\w.-]*"  # OWNER/NAME
INSTALL = "pip install 'tessera-codec[hub]'"
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
    try:
        if not path.exists():
            path = fetch_repository(str(source))
        if path.is_file():
            return _open_weights(path, None)
        if not path.is_dir():
            msg = f"{source}: neither a folder nor a file of weights: give the path of one"
            raise ModelError(msg)
        return _open_weights(_weights_file(path, str(source)), _read_config(path))
    except OSError as error:
        msg = f"{source}: cannot be read ({error.strerror or error}): check its permissions"
        raise ModelError(msg) from error


def _weights_file(folder: Path, source: str) -> Path:
    """The file of weights in a folder: the one with a published name, or the only one."""
    files = sorted(file for file in folder.iterdir() if file.suffix in WEIGHTS_SUFFIXES and file.is_file())
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


def fetch_repository(name: str) -> Path:
    """The folder of a Hugging Face repository, downloaded unless it is in the cache. Weights in files that are unpickled are
    downloaded only if there are no safetensors.

    Raises ModelError if `name` does not look like one (OWNER/NAME), if huggingface_hub is not installed, or if there is no
    network or no such repository."""
    owner, _, rest = name.partition("/")
    if not re.fullmatch(REPOSITORY, name) or Path(owner).exists() or Path(rest).suffix in WEIGHTS_SUFFIXES:
        msg = f"{name}: no such file or folder, and not the name of a repository: check the path, or give OWNER/NAME"
        raise ModelError(msg)
    try:
        from huggingface_hub import snapshot_download
        from huggingface_hub.errors import RepositoryNotFoundError
    except ImportError as error:
        msg = f"{name}: no such file or folder, and fetching a repository needs huggingface_hub: {INSTALL}"
        raise ModelError(msg) from error
    try:
        folder = Path(snapshot_download(name, allow_patterns=["config.json", "*.safetensors"]))
        if not any(folder.glob("*.safetensors")):
            pickles = [f"*{suffix}" for suffix in WEIGHTS_SUFFIXES]
            folder = Path(snapshot_download(name, allow_patterns=["config.json", *pickles]))
    except RepositoryNotFoundError as error:
        msg = f"{name}: no such file or folder here, and no such public repository on Hugging Face: check the name"
        raise ModelError(msg) from error
    except Exception as error:  # errors of huggingface_hub, requests or httpx, which have no common base class
        cause = (str(error) or type(error).__name__).splitlines()[0][:120].rstrip(".: ")
        msg = f"{name}: no such file or folder here, and no repository can be fetched ({cause}): check the name and the network"
        raise ModelError(msg) from error
    if not any(file.suffix in WEIGHTS_SUFFIXES for file in folder.glob("*")):  # there is no folder if no file matches
        msg = f"{name}: no weights in the repository: a file such as {' or '.join(WEIGHTS_FILES)} is needed"
        raise ModelError(msg)
    return folder


def _open_weights(path: Path, config: dict[str, Any] | None) -> Checkpoint:
    if path.suffix == ".safetensors":
        try:
            file = safe_open(path, "pt")
            shapes = {name: tuple(file.get_slice(name).get_shape()) for name in file.keys()}  # noqa: SIM118 (not a dict)
        except (SafetensorError, OSError) as error:
            msg = f"{path}: not a safetensors file ({error}): get it again"
            raise ModelError(msg) from error
        return Checkpoint(path, shapes, file.get_tensor, config)
    tensors = _unpickled(path)
    tensors = tensors.get("state_dict", tensors) if isinstance(tensors, dict) else tensors
    if not isinstance(tensors, dict):
        msg = f"{path}: holds a {type(tensors).__name__}: a dictionary of named tensors is needed"
        raise ModelError(msg)
    if others := [str(name) for name, value in tensors.items() if not (isinstance(name, str) and isinstance(value, Tensor))]:
        msg = f"{path}: holds more than named tensors ({_join_names(others)}): save the network's state_dict alone"
        raise ModelError(msg)
    return Checkpoint(path, {name: tuple(value.shape) for name, value in tensors.items()}, tensors.__getitem__, config)


def _unpickled(path: Path) -> Any:
    """The content of a file that torch.save has written. Nothing in it is run, and nothing is unpacked: torch stores its data
    as they are."""
    try:
        if zipfile.is_zipfile(path):
            with zipfile.ZipFile(path) as archive:
                if any(entry.compress_type != zipfile.ZIP_STORED for entry in archive.infolist()):
                    msg = f"{path}: packed, which torch never does: get it from its authors"
                    raise ModelError(msg)
        return torch.load(path, "cpu", weights_only=True)
    except ModelError:
        raise
    except pickle.UnpicklingError as error:
        msg = f"{path}: not only tensors, or damaged: unpickling it could run code; use safetensors"
        raise ModelError(msg) from error
    except Exception as error:  # torch.load raises almost anything for damaged bytes
        msg = f"{path}: not a file of weights ({type(error).__name__}): get it again"
        raise ModelError(msg) from error


def _read_config(folder: Path) -> dict[str, Any] | None:
    path = folder / "config.json"
    if not path.is_file():
        return None
    if path.stat().st_size > CONFIG_MAX:
        msg = f"{path}: too large for a configuration, of which {CONFIG_MAX:,} bytes are read: leave it out"
        raise ModelError(msg)
    try:
        config = json.loads(path.read_text("utf-8"))
        config = config.get("config", config)
        config["model"]["vq_model"].keys()
    except (OSError, ValueError, KeyError, AttributeError, TypeError, RecursionError) as error:
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
    """Raises ModelError for the unsupported kinds of network among these authors' other checkpoints."""
    vq = config["model"]["vq_model"]
    kinds: list[tuple[str, dict[str, Any]]] = [  # the kind, and the fields without which a network is of this kind
        ("a TiTok with continuous tokens", {"quantize_mode": "vq"}),
        ("a first stage without a decoder of pixels", {"finetune_decoder": True}),
        ("a later TiTok, trained in a single stage", {"is_legacy": True}),
        ("a TiTok with a decoder of another size", {"vit_dec_model_size": vq.get("vit_enc_model_size")}),
        ("a TiTok with another codebook", {"codebook_size": 4096, "token_size": 12, "use_l2_norm": True}),
        ("a TiTok with other patches", {"vit_enc_patch_size": 16, "vit_dec_patch_size": 16}),
    ]
    for kind, fields in kinds:
        for key, value in fields.items():
            if vq.get(key, value) != value:
                names = ", ".join(TITOK_NAMES)
                msg = f"{path}: {kind} ({key} is {vq[key]!r}), which is not supported: use {names} or a One-D-Piece"
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
        if tensor.layout != torch.strided or not tensor.is_floating_point() or not tensor.isfinite().all():
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
