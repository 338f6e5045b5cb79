"""The network of a model from before checkerboards, as a checkpoint that `tessera train` continues: each refinement becomes two
halves that start as copies of it, and priors start anew. What came of it is in `benchmarks/training-log.md`.

    python -m benchmarks.tools.halve old.safetensors .data/train/checkpoint.safetensors --perceptual 1.5 --patch 96
"""

from __future__ import annotations

import argparse
from dataclasses import replace
from pathlib import Path

import torch
from safetensors.torch import load_file
from torch import Tensor

from bitstream.block_order import BLOCK_CELLS, CELL
from codec.errors import ModelError
from codec.models.base import read_metadata
from codec.pyramid.config import NetworkConfig
from codec.pyramid.network import Network
from codec.pyramid.training import PyramidTrainer, PyramidTraining

INTO = ("encoder.linear.", "encoder.correction.7.", ".predict.4.", ".smooth.", ".expand.")  # layers whose outputs are channels
OUT_OF = ("decoder.linear.weight", "decoder.stem.0.weight", ".predict.0.weight", ".project.weight")  # whose inputs are


def flat_first(weight: Tensor, count: int) -> Tensor:
    """The order of channels (C,) that puts the `count` nearest to flat colours first, of a decoder's linear transform
    (768, C, 1, 1); the others stay where they are, as far as they can."""
    cells = weight[:, :, 0, 0].reshape(3, CELL**2, -1)
    uneven = (cells - cells.mean(1, keepdim=True)).square().sum((0, 1)) / cells.square().sum((0, 1))
    order = torch.arange(len(uneven))
    for place, channel in enumerate(sorted(uneven.argsort()[:count].tolist())):
        order[place], order[channel] = order[channel].clone(), order[place].clone()
    return order


def reorder(name: str, value: Tensor, order: Tensor) -> Tensor:
    """A parameter after the latents' channels changed their order; coarse levels have four sub-cells per channel."""
    channels = len(order)
    if any(part in name for part in INTO):
        repeats = len(value) // channels
        return value.reshape(channels, repeats, *value.shape[1:])[order].reshape(value.shape)
    if any(part in name for part in OUT_OF):
        repeats = max(1, value.shape[1] // channels)
        latents, rest = value[:, : repeats * channels], value[:, repeats * channels :]
        moved = latents.reshape(len(value), channels, repeats, *value.shape[2:])[:, order].reshape(latents.shape)
        return torch.cat([moved, rest], 1)
    return value


def halved(config: NetworkConfig, old: dict[str, Tensor]) -> Network:
    """The network in the shape that runs from nothing have, with the widths that it had."""
    standard = NetworkConfig()
    sources = [index for index, level in enumerate(config.levels) for _ in range(2 if level.side == BLOCK_CELLS else 1)]
    if len(sources) != len(standard.levels):
        msg = f"{len(config.levels)} levels, which do not become {len(standard.levels)}"
        raise ModelError(msg)
    shape = {
        name: getattr(standard, name)
        for name in ("levels", "steps", "bit_worth", "flat_channels", "prior_width", "prior_kernels")
    }
    network = Network(replace(config, **shape))
    state = network.state_dict()
    order = flat_first(old["decoder.linear.weight"], standard.flat_channels)
    for name in state:
        _, _, rest = name.partition("levels.")
        index, _, part = rest.partition(".")
        if part.startswith("prior"):
            continue
        source = f"levels.{sources[int(index)]}.{part}" if rest else name
        state[name] = reorder(name, old[source], order)
    network.load_state_dict(state)
    network.keep_flat()
    return network


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("model", type=Path, help="a model without halves; its digest is not looked at")
    parser.add_argument("checkpoint", type=Path, help="where to write")
    parser.add_argument("--steps", type=int, default=400_000)
    parser.add_argument("--rate", type=float, default=4e-4)
    parser.add_argument("--perceptual", type=float, default=1.0)
    parser.add_argument("--patch", type=int, default=96)
    given = parser.parse_args()
    metadata = read_metadata(given.model)
    weights = {name: value.float() for name, value in load_file(given.model).items() if not name.startswith("prior.")}
    recipe = PyramidTraining(steps=given.steps, rate=given.rate, perceptual=given.perceptual, patch=given.patch)
    trainer = PyramidTrainer(halved(NetworkConfig.from_dict(metadata["network"]), weights), recipe, torch.device("cpu"))
    trainer.total_crops, trainer.total_minutes = metadata["card"]["crops"], metadata["card"]["minutes"]
    given.checkpoint.parent.mkdir(parents=True, exist_ok=True)
    trainer.save(given.checkpoint)


if __name__ == "__main__":
    main()
