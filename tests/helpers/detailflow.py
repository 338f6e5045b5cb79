"""Tiny DetailFlows with random tensors."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from codec.detailflow.config import DetailFlowConfig
from codec.detailflow.network import DetailFlow, resize_positions

TINY = DetailFlowConfig(
    block_tokens=16, side=64, group=4, codebook=512, width=24, layers=2, heads=3, hidden=40, decoder_width=32,
    decoder_layers=2, decoder_heads=4, decoder_hidden=48,
)  # fmt: skip
PUBLISHED_PARTS = {  # how the published names of tensors differ from those of the network
    "encoder.layers.": "encoder.visual_model.encoder.layers.",
    "encoder.patch_embedding.": "encoder.visual_model.embeddings.patch_embedding.",
    "encoder.position_embedding.": "encoder.visual_model.embeddings.position_embedding.",
    "encoder.post_layernorm.": "encoder.visual_model.post_layernorm.",
    "decoder.layers.": "decoder.visual_model.encoder.layers.",
    "decoder.position_embedding.": "decoder.visual_model.embeddings.position_embedding.",
    "decoder.post_layernorm.": "decoder.visual_model.post_layernorm.",
    "decoder.to_pixel.": "decoder.to_pixel.model.",
}


def seeded(config: DetailFlowConfig = TINY) -> DetailFlow:
    """A network with random tensors, also in norms and biases, and pixels around mid-grey."""
    torch.manual_seed(7)
    network = DetailFlow(config)
    for name, value in network.named_parameters():
        noise = torch.randn_like(value)
        if "norm" in name:
            value.data = 1 + 0.3 * noise if name.endswith("weight") else 0.3 * noise
        elif name.endswith("bias"):
            value.data = 0.2 * noise
        elif "self_attn" in name or "patch_embedding" in name:
            value.data *= 4
    network.decoder.to_pixel.weight.data *= 0.5
    table = network.decoder.position_embedding.weight.data
    for grid, resized in enumerate(network.decoder.resized_positions, 1):
        resized.data = resize_positions(table, grid)
    return network.requires_grad_(False).eval()


def published_tensors(network: DetailFlow) -> dict[str, Tensor]:
    """The network's tensors under their published names, without those that checkpoints do not have."""
    tensors = {}
    for name, value in network.state_dict().items():
        if not name.startswith("decoder.resized_positions."):
            start = next((start for start in PUBLISHED_PARTS if name.startswith(start)), "")
            tensors[PUBLISHED_PARTS.get(start, "") + name.removeprefix(start)] = value.clone()
    return tensors


def published_settings(tokens: int) -> dict[str, Any]:
    """The content of a published config.json, without settings of training."""
    return {
        "image_size": 256, "max_image_size": 256, "codebook_size": 8192, "codebook_embed_dim": 8, "codebook_l2_norm": True,
        "num_codebooks": 1, "enc_type": "siglip2", "dec_type": "siglip2", "encoder_model": "siglip2_base",
        "decoder_model": "siglip2_base", "num_latent_tokens": tokens, "enc_patch_size": 16, "dec_patch_size": 16, "repa": False,
        "causal_encoder": True, "causal_decoder": False, "group_size": 8, "causal_num": None,
    }  # fmt: skip


def write_checkpoint(folder: Path, tensors: dict[str, Tensor] | None = None) -> Path:
    """A folder in the published layout, by default of the network `seeded`."""
    (folder / "checkpoints").mkdir(parents=True, exist_ok=True)
    torch.save({"model": tensors or published_tensors(seeded())}, folder / "checkpoints" / f"{TINY.block_tokens}.pt")
    (folder / "config.json").write_text(json.dumps(published_settings(TINY.block_tokens)))
    return folder
