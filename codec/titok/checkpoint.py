"""Published checkpoints of TiTok and One-D-Piece: which configuration their tensors and their config.json belong to."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from codec.errors import ModelError
from codec.models.checkpoint import Checkpoint
from codec.titok.config import SIZES, TitokConfig, published_config

VARIANTS = {"one-d-piece": True, "titok": False}  # whether trained with tail token drop
CONFIG_TYPES = {"one_d_piece": "one-d-piece", "titok": "titok"}  # variants by their name in a configuration
TITOK_NAMES = ("TiTok-L-32", "TiTok-B-64", "TiTok-S-128")  # published and supported
VARIANT_OF_TOKENS = {32: "titok", 64: "titok", 128: "titok", 256: "one-d-piece"}  # published checkpoints


def network_config(checkpoint: Checkpoint, variant: str | None = None) -> TitokConfig:
    """The network's configuration, from config.json or else from the shapes of the tensors.

    `variant` ("one-d-piece" or "titok") names the training method if neither the file nor the shapes determine it. Raises
    ModelError for an unknown size or variant, and for networks that are not supported."""
    if checkpoint.config is None:
        size, tokens, declared = *_size_and_tokens(checkpoint), None
    else:
        model = _model_settings(checkpoint)
        vq = model["vq_model"]
        _check_supported(checkpoint.path, vq)
        size, tokens = vq.get("vit_enc_model_size"), vq.get("num_latent_tokens")
        config_type = model.get("type")
        if config_type not in (None, *CONFIG_TYPES):
            msg = f"{checkpoint.path}: unknown type {config_type!r} in its configuration: known are {', '.join(CONFIG_TYPES)}"
            raise ModelError(msg)
        declared = CONFIG_TYPES.get(str(config_type))
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


def _model_settings(checkpoint: Checkpoint) -> dict[str, Any]:
    """The part on the model in a published config.json. Raises ModelError if it has none."""
    config = checkpoint.config or {}
    try:
        model = config.get("config", config)["model"]
        model["vq_model"].keys()
    except (KeyError, AttributeError, TypeError) as error:
        msg = (
            f"{checkpoint.path.parent / 'config.json'}: not the configuration of a TiTok or One-D-Piece tokenizer "
            f"({type(error).__name__}: {error})"
        )
        raise ModelError(msg) from error
    return model


def _check_supported(path: Path, vq: dict[str, Any]) -> None:
    """Raises ModelError for the unsupported kinds of network among these authors' other checkpoints."""
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
