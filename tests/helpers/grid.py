"""Small networks of the family `grid`, with random tensors under published names."""

from __future__ import annotations

from dataclasses import replace

import torch
from torch import Tensor

from codec.grid.config import PUBLISHED, GridConfig
from codec.grid.names import NAMINGS, Naming
from codec.grid.network import Grid

BY_NAME = {config.name: config for config in PUBLISHED}
NAMES = ("maskbit-12", "open-magvit2-f8", "ibq-1024", "llamagen-ds16")  # one of each kind


def tiny(name: str) -> GridConfig:
    """A published network with fewer channels, blocks and resolutions: cells of 8 pixels."""
    config = replace(BY_NAME[name], width=8, groups=4, multipliers=(1, 1, 2, 2), encoder_depth=2)
    config = replace(config, decoder_depth=min(config.decoder_depth, 3))
    return replace(config, codebook=1024) if config.codebook else config


def naming_of(config: GridConfig) -> Naming:
    return next(naming for naming in NAMINGS if config.name.startswith(naming.family))


def random_network(config: GridConfig, seed: int = 0) -> Grid:
    """Random tensors that keep activations near 1, so that every part has an effect."""
    generator = torch.Generator().manual_seed(seed)
    network = Grid(config).requires_grad_(False).eval()
    for name, tensor in network.state_dict().items():
        noise = torch.randn(tensor.shape, generator=generator)
        if tensor.ndim > 1:
            tensor.copy_(noise * (1 if name.startswith("quantize") else tensor[0].numel() ** -0.5))
        else:
            tensor.copy_(noise * 0.3 + ("norm" in name and name.endswith("weight")))
    return network


def published_tensors(network: Grid) -> dict[str, Tensor]:
    """The network's tensors under their published names."""
    naming, stages = naming_of(network.config), len(network.config.multipliers)
    return {naming.published(name, stages): tensor for name, tensor in network.state_dict().items()}
