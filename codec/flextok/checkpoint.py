"""The configuration of published FlexTok checkpoints: plain data in config.json, or in the metadata of the safetensors file.

Its keys are the parameters of the authors' modules. Sizes are taken from the shapes of the tensors.
"""

from __future__ import annotations

import ast
from collections.abc import Mapping
from itertools import count
from typing import Any

from codec.errors import ModelError
from codec.flextok.config import HEAD, MLP_RATIO, FlextokConfig
from codec.flextok.network import PUBLISHED_NAMES
from codec.models.checkpoint import Checkpoint, Shape

PARTS = ("vae", "encoder", "decoder", "regularizer")
METADATA_MAX = 1 << 16  # characters of each part
MARK = "encoder.module_dict.enc_register_module.registers"  # a tensor that only FlexTok has
SUPERFLUOUS = ("vae.logvar",)  # only for training
ENCODER, DECODER = ("encoder", "module_dict"), ("decoder", "module_dict")
# Supported values by path, and the authors' defaults for those that a configuration leaves out
SUPPORTED: dict[tuple[str, ...], tuple[Any, Any]] = {
    (*ENCODER, "enc_patch_emb", "patch_sizes"): ([2, 2], [2, 2]),
    (*ENCODER, "enc_register_module", "ordering_mode"): ("nested", "nested"),
    (*ENCODER, "enc_seq_packer", "mask_mode"): ("causal_last", "full"),
    (*ENCODER, "enc_to_latents", "use_mup_readout"): (False, False),
    (*DECODER, "dec_noise_patch_emb", "patch_sizes"): ([2, 2], [2, 2]),
    (*DECODER, "dec_seq_packer", "mask_mode"): ("full", "full"),
    (*DECODER, "dec_seq_packer", "per_subseq_embs"): (True, False),
    (*DECODER, "dec_to_patches", "use_mup_readout"): (False, False),
    (*DECODER, "dec_transformer", "adaLN_expansion"): (2, 1),
    **{
        (*path, key): (value, value)
        for path in ((*ENCODER, "enc_transformer"), (*DECODER, "dec_transformer"))
        for key, value in (("mlp_ratio", MLP_RATIO), ("gated_mlp", True), ("qk_norm", True))
    },
}


def recognises(checkpoint: Checkpoint) -> bool:
    """Whether the checkpoint is a FlexTok."""
    return MARK in checkpoint.shapes


def checkpoint_config(checkpoint: Checkpoint) -> FlextokConfig:
    """The network's configuration. Raises ModelError if the checkpoint does not state it, or if it is not supported."""
    try:
        stated = _stated(checkpoint)
        for path, (supported, default) in SUPPORTED.items():
            if (value := _lookup(stated, path, default)) != supported:
                msg = f"{'.'.join(path)} is {value!r}, and only {supported!r} is supported: use a published FlexTok"
                raise ModelError(msg)
        return _config(stated, checkpoint.shapes)
    except (AttributeError, KeyError, IndexError, TypeError, ValueError) as error:
        msg = f"not the configuration and tensors of a FlexTok ({type(error).__name__}: {error})"
        raise ModelError(msg) from error


def sources(shapes: Mapping[str, Shape]) -> dict[str, str]:
    """Names of tensors in a checkpoint, by their names in the network."""
    return {_own_name(name): name for name in shapes if name not in SUPERFLUOUS}


def _own_name(name: str) -> str:
    for own, published in PUBLISHED_NAMES.items():
        if name == published or name.startswith(f"{published}."):
            return own + name.removeprefix(published)
    return name


def _stated(checkpoint: Checkpoint) -> dict[str, Any]:
    """The configuration by part. In safetensors metadata, each part is the text of a Python literal."""
    config = checkpoint.config or {}
    config = config.get("config", config)
    if not config.keys() & PARTS and checkpoint.metadata.keys() & PARTS:
        if max(len(checkpoint.metadata.get(part, "")) for part in PARTS) > METADATA_MAX:
            msg = f"its metadata has more than {METADATA_MAX:,} characters: get the file again"
            raise ModelError(msg)
        try:
            config = {part: ast.literal_eval(checkpoint.metadata[part]) for part in PARTS}
        except (SyntaxError, RecursionError, MemoryError) as error:
            msg = f"its metadata is not a configuration ({type(error).__name__}): get the file again"
            raise ModelError(msg) from error
    if missing := [part for part in PARTS if part not in config]:
        msg = f"its configuration lacks {', '.join(missing)}: give a folder that also has config.json"
        raise ModelError(msg)
    return config


def _lookup(stated: Mapping[str, Any], path: tuple[str, ...], default: Any) -> Any:
    """The value at a path. Only its last key may be missing."""
    for key in path[:-1]:
        stated = stated[key]
    return stated.get(path[-1], default)


def _config(stated: Mapping[str, Any], shapes: Mapping[str, Shape]) -> FlextokConfig:
    tokens, encoder_width = shapes[MARK]
    decoder_width = shapes[PUBLISHED_NAMES["decoder.unknown"]][0]
    grid = shapes[PUBLISHED_NAMES["encoder.positions"]][-1]
    paths = (*ENCODER, "enc_transformer", "head_dim"), (*DECODER, "dec_transformer", "head_dim")
    heads = {_lookup(stated, path, HEAD) for path in paths}
    if len(heads) > 1:
        msg = f"its transformers have heads of {' and '.join(map(str, heads))} channels: use a published FlexTok"
        raise ModelError(msg)
    blocks = "vae.vae.encoder.down_blocks"
    resolutions = _count(shapes, blocks, "resnets.0.conv1.weight")
    return FlextokConfig(
        encoder_width=encoder_width,
        encoder_layers=_count(shapes, PUBLISHED_NAMES["encoder.blocks"], "attn.wq.weight"),
        decoder_width=decoder_width,
        decoder_layers=_count(shapes, PUBLISHED_NAMES["decoder.blocks"], "attn.wq.weight"),
        scale=_number(stated, ("vae", "scaling_factor"), None),
        max_time=_number(stated, (*DECODER, "dec_time_embedder", "max_timestep"), 1000.0),
        side=grid * 2 * 2 ** (resolutions - 1),
        block_tokens=tokens,
        levels=tuple(stated["regularizer"]["levels"]),
        head=heads.pop(),
        channels=shapes["vae.vae.post_quant_conv.weight"][0],
        vae_widths=tuple(shapes[f"{blocks}.{index}.resnets.0.conv1.weight"][0] for index in range(resolutions)),
        vae_depth=_count(shapes, f"{blocks}.0.resnets", "conv1.weight"),
    )


def _count(shapes: Mapping[str, Shape], modules: str, tensor: str) -> int:
    """The number of modules in a list, each of which has this tensor."""
    return next(index for index in count() if f"{modules}.{index}.{tensor}" not in shapes)


def _number(stated: Mapping[str, Any], path: tuple[str, ...], default: float | None) -> float:
    value = _lookup(stated, path, default)
    if isinstance(value, bool) or not isinstance(value, int | float):
        msg = f"{'.'.join(path)} is {value!r} in its configuration: a number is needed"
        raise ModelError(msg)
    return float(value)
