"""Published checkpoints of TiTok and One-D-Piece: which configuration their tensors and their config.json belong to."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from codec.errors import ModelError
from codec.models.checkpoint import Checkpoint, Shape
from codec.models.published import CODEBOOK
from codec.titok.config import SIZES, TitokConfig, published_config

VARIANTS = {"one-d-piece": True, "titok": False}  # whether trained with tail token drop
CONFIG_TYPES = {"one_d_piece": "one-d-piece", "titok": "titok"}  # variants by their name in a configuration
VARIANT_OF_TOKENS = {32: "titok", 64: "titok", 128: "titok", 256: "one-d-piece"}  # published ones of the first generation
SUPPORTED = "One-D-Piece, TiTok-L-32, -B-64 and -S-128, and the TiTok of one stage with 8192 vectors: BL-64, BL-128, SL-256"
SECOND_CODEBOOK = (8192, 64)  # shape of the codebook in TiTok's second generation, trained in one stage
CAPTION = "decoder.text_guidance_proj.weight"  # a tensor of TA-TiTok
BOTH = {"quantize_mode": "vq", "vit_enc_patch_size": 16, "vit_dec_patch_size": 16}  # settings of both generations
FIRST = BOTH | {"is_legacy": True, "finetune_decoder": True, "codebook_size": 4096, "token_size": 12, "use_l2_norm": True}
SECOND = BOTH | {"is_legacy": False, "finetune_decoder": False, "codebook_size": 8192, "token_size": 64, "use_l2_norm": False}


def network_config(checkpoint: Checkpoint, variant: str | None = None) -> TitokConfig:
    """The network's configuration, from config.json or else from the shapes of the tensors.

    `variant` ("one-d-piece" or "titok") names the training method if neither the file nor the shapes determine it. Raises
    ModelError for an unknown size or variant, and for networks that are not supported."""
    if CAPTION in checkpoint.shapes:
        msg = f"a TA-TiTok, whose decoder needs a caption: supported are {SUPPORTED}"
        raise ModelError(msg)
    # Only the codebook identifies the second generation: TiTok-SL-256 has as many tokens as One-D-Piece.
    second = checkpoint.shapes.get(CODEBOOK) == SECOND_CODEBOOK
    stated = checkpoint.config is not None
    size, decoder, tokens, declared = _stated(checkpoint, second) if stated else _shaped(checkpoint.shapes)
    variant = _variant(variant, "titok" if second else declared, tokens)
    return published_config(size, tokens, VARIANTS[variant], decoder if second else None)


def _stated(checkpoint: Checkpoint, second: bool) -> tuple[str, str, int, str | None]:
    """Sizes of encoder and decoder, number of tokens and variant in config.json. Raises ModelError for a configuration that no
    supported checkpoint has."""
    model = _model_settings(checkpoint)
    vq = model["vq_model"]
    for key, value in (SECOND if second else FIRST).items():
        if vq.get(key, value) != value:
            msg = f"a TiTok whose {key} is {vq[key]!r}, which is not supported: supported are {SUPPORTED}"
            raise ModelError(msg)
    size, tokens, config_type = vq.get("vit_enc_model_size"), vq.get("num_latent_tokens"), model.get("type")
    decoder = vq.get("vit_dec_model_size", size)
    if config_type not in (None, *CONFIG_TYPES):
        msg = f"unknown type {config_type!r} in its configuration: known are {', '.join(CONFIG_TYPES)}"
        raise ModelError(msg)
    if not isinstance(size, str) or not isinstance(decoder, str) or type(tokens) is not int:
        msg = f"its configuration has sizes {size!r} and {decoder!r}, and {tokens!r} tokens: supported are {SUPPORTED}"
        raise ModelError(msg)
    if decoder != size and not second:
        msg = f"vit_dec_model_size is {decoder!r}, for an encoder of size {size!r}: supported are {SUPPORTED}"
        raise ModelError(msg)
    return size, decoder, tokens, CONFIG_TYPES[config_type] if config_type else None


def _shaped(shapes: Mapping[str, Shape]) -> tuple[str, str, int, None]:
    """The same from the shapes of the latent tokens (N, W) and of the mask token (1, 1, W): each size has its own width."""
    latent_tokens = shapes.get("latent_tokens", ())
    sizes = {width: size for size, (width, _, _) in SIZES.items()}
    size = sizes.get(latent_tokens[-1]) if len(latent_tokens) == 2 else None
    if size is None:
        known = ", ".join(f"{width} ({size})" for width, size in sizes.items())
        msg = f"unknown size: its latent_tokens have shape {latent_tokens}, and known widths are {known}"
        raise ModelError(msg)
    decoder = sizes.get(shapes.get("decoder.mask_token", latent_tokens)[-1], size)
    return size, decoder, latent_tokens[0], None


def _variant(wanted: str | None, declared: str | None, tokens: int) -> str:
    """Raises ModelError if nothing determines the variant, or if the checkpoint contradicts the wanted one."""
    if declared and wanted and declared != wanted:
        msg = f"its configuration says {declared}, not {wanted}"
        raise ModelError(msg)
    variant = wanted or declared or VARIANT_OF_TOKENS.get(tokens)
    if variant not in VARIANTS:
        reason = variant or f"no published model has {tokens} tokens"
        msg = f"{reason}: state its training method, {' or '.join(VARIANTS)}"
        raise ModelError(msg)
    return variant


def _model_settings(checkpoint: Checkpoint) -> dict[str, Any]:
    """The part on the model in a published config.json. Raises ModelError if it has none."""
    config = checkpoint.config or {}
    try:
        model = config.get("config", config)["model"]
        model["vq_model"].keys()
    except (KeyError, AttributeError, TypeError) as error:
        msg = f"not the configuration of a TiTok or One-D-Piece tokenizer ({type(error).__name__}: {error})"
        raise ModelError(msg, file=checkpoint.path.parent / "config.json") from error
    return model
