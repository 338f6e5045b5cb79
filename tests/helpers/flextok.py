"""Tiny FlexTok networks, and their checkpoints in the published layout."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import save_file

from codec.flextok.config import FlextokConfig
from codec.flextok.network import Flextok, published_name

TINY = FlextokConfig(
    encoder_width=32, encoder_layers=2, decoder_width=48, decoder_layers=2, scale=0.5, max_time=1.0, side=32, block_tokens=8,
    levels=(8, 5, 4), head=16, channels=4, vae_widths=(32, 64), vae_depth=1,
)  # fmt: skip


def seeded(config: FlextokConfig = TINY) -> Flextok:
    """A network with random tensors, also in norms and biases, whose modulation is far from zero."""
    torch.manual_seed(7)
    network = Flextok(config)
    for name, value in network.named_parameters():
        noise = torch.randn_like(value)
        if "norm" in name:
            value.data = 1 + 0.3 * noise if name.endswith("weight") else 0.3 * noise
        elif "modulation" in name or name.endswith("bias"):
            value.data = 0.2 * noise
        elif "position" in name or name.endswith(("registers", "unknown", "unconditional")):
            value.data = 0.5 * noise
    network.encoder.vectors.weight.data *= 3
    network.vae.decoder.conv_out.weight.data *= 0.3
    return network.requires_grad_(False).eval()


def published_tensors(network: Flextok) -> dict[str, torch.Tensor]:
    """The tensors under their names in a published checkpoint."""
    return {published_name(name): value.contiguous() for name, value in network.state_dict().items()}


def published_settings(config: FlextokConfig = TINY) -> dict[str, Any]:
    """The configuration of a published checkpoint, as far as it is read."""
    transformer = {"head_dim": config.head, "mlp_ratio": 4.0, "gated_mlp": True, "qk_norm": True}
    encoder = {
        "enc_patch_emb": {"patch_sizes": [2, 2]},
        "enc_register_module": {"ordering_mode": "nested"},
        "enc_seq_packer": {"mask_mode": "causal_last"},
        "enc_transformer": transformer,
        "enc_to_latents": {"use_mup_readout": False},
    }
    decoder = {
        "dec_noise_patch_emb": {"patch_sizes": [2, 2]},
        "dec_seq_packer": {"mask_mode": "full", "per_subseq_embs": True},
        "dec_time_embedder": {"max_timestep": config.max_time},
        "dec_transformer": transformer | {"adaLN_expansion": 2},
        "dec_to_patches": {"use_mup_readout": False},
    }
    return {
        "vae": {"scaling_factor": config.scale},
        "encoder": {"module_dict": encoder},
        "decoder": {"module_dict": decoder},
        "regularizer": {"levels": list(config.levels)},
    }


def write_checkpoint(folder: Path, network: Flextok | None = None, dtype: torch.dtype = torch.float32) -> Path:
    """A folder in the published layout: model.safetensors and config.json."""
    network = network or seeded()
    folder.mkdir()
    tensors = {name: value.to(dtype) for name, value in published_tensors(network).items()}
    save_file(tensors, folder / "model.safetensors", {"format": "pt"})
    (folder / "config.json").write_text(json.dumps(published_settings(network.config)))
    return folder
