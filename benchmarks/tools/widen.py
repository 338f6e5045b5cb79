"""The network of a model with more latent channels and more digits in its last levels, as a checkpoint that `tessera train`
continues. The new channels hold what is left of photos when all tokens are decoded, as far as so few linear functions of the
pixels can tell it (reduced-rank regression, Izenman 1975). What came of it is in `benchmarks/training-log.md`.

    python -m benchmarks.tools.widen standard .data/train/checkpoint.safetensors --photos train-*.tar --perceptual 1.5
"""

from __future__ import annotations

import argparse
import math
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from bitstream.block_order import BLOCK, CELL
from bitstream.pyramid_tokens import grids_before
from codec.codec import Codec
from codec.errors import ModelError
from codec.models.pixels import to_network
from codec.pyramid.config import NetworkConfig
from codec.pyramid.network import SCORE_RANGE, Network, PyramidLevel
from codec.pyramid.training import STANDARD, PyramidTrainer, PyramidTraining, open_pyramid
from codec.training.photos import load_photos

UNIT = 4.0  # latents are coefficients of unit vectors divided by this
RIDGE = 1e-4  # added to the variance of pixels, so that what hardly varies is not inverted


def widened(old: NetworkConfig) -> NetworkConfig:
    """The levels and channels that runs from nothing have, with the widths that the network had."""
    digits = [level.digits for level in old.levels]
    wanted = [level.digits for level in STANDARD.levels]
    if len(digits) != len(wanted) or any(mine > other for mine, other in zip(digits, wanted, strict=True)):
        msg = f"levels of {digits} digits, which do not become {wanted}"
        raise ModelError(msg)
    return replace(old, levels=STANDARD.levels, channels=STANDARD.channels, predicted_channels=old.channels)


def grow(name: str, old: Tensor, fresh: Tensor, places: list[int]) -> Tensor:
    """A parameter of the wider network, `fresh`, with the old one in it. `places` says where inputs of a prior's first layer,
    digits of several grids, have gone."""
    grown = fresh.clone()
    if ".prior.0.weight" in name:
        grown.zero_()
        grown[:, places] = old
    elif name == "decoder.stem.0.weight":  # latents, and then the map of known tokens
        grown.zero_()
        grown[:, : old.shape[1] - 1], grown[:, -1] = old[:, :-1], old[:, -1]
    else:
        if name.startswith("decoder.") or ".expand." in name or name.startswith("encoder.correction."):
            grown.zero_()
        grown[tuple(slice(length) for length in old.shape)] = old
    return grown


def expect(prior: nn.Sequential, first: int, spread: Tensor) -> None:
    """Gives digits from `first` on the class of the logistic tables that fits their standard deviation `spread`, in steps,
    whatever is around them: the inverse of `logistic_tables` in `codec.pyramid.network`."""
    scale = (spread * math.sqrt(3) / math.pi - 0.05).clamp(min=1e-3)
    last: Any = prior[-1]
    last.weight.data[first:] = 0
    last.bias.data[first:] = (torch.log(torch.expm1(scale)) + 0.5).clamp(-SCORE_RANGE / 2, SCORE_RANGE / 2)


def left_over(model: str, photos: Tensor, count: int) -> tuple[Tensor, Tensor, Tensor]:
    """What a model with all its tokens leaves of photos (N, side, side, 3), from their patches of 16x16 pixels: a linear
    transform (count, 768) of pixels in [-1, 1], their mean (768,), and the patches (768, count) that its results stand for."""
    codec = Codec(model, device="cpu")
    first = (photos.shape[1] - BLOCK) // 2

    def patches(pixels: np.ndarray) -> Tensor:
        x = torch.from_numpy(pixels.astype(np.float64)).permute(2, 0, 1)[None] / 127.5
        return F.pixel_unshuffle(x, CELL)[0].flatten(1).t()

    shown, missed = [], []
    for photo in photos[:, first : first + BLOCK, first : first + BLOCK].numpy():
        decoded = np.asarray(codec.decode(codec.encode(photo, quality=100)))
        shown.append(patches(photo))
        missed.append(shown[-1] - patches(decoded))
    x, r = torch.cat(shown) - 1, torch.cat(missed)
    mean = x.mean(0)
    x = x - mean
    covariance = x.t() @ x / len(x) + RIDGE * torch.eye(x.shape[1])
    transform = torch.linalg.solve(covariance, x.t() @ r / len(x)).t()
    vectors, _, _ = torch.linalg.svd(transform @ torch.linalg.cholesky(covariance))
    return vectors[:, :count].t() @ transform, mean, vectors[:, :count]


def wide(old: Network, config: NetworkConfig, analysis: Tensor, mean: Tensor, synthesis: Tensor, spread: Tensor) -> Network:
    """The network in a wider configuration. Its new channels are what `left_over` found, and have the standard deviations
    `spread` in photos; its new digits are these channels, in steps."""
    network = Network(config)
    state, before = network.state_dict(), old.state_dict()
    channels = old.config.channels
    for name, fresh in state.items():
        places: list[int] = []
        if ".prior.0.weight" in name:
            start = 0
            for grid in grids_before(config.levels, int(name.split(".")[1])):
                places += range(start, start + old.config.levels[grid[0]].digits)
                start += config.levels[grid[0]].digits
        state[name] = grow(name, before[name], fresh, places or [0])
    state["encoder.linear.weight"][channels:] = (analysis / UNIT).view(-1, 3, CELL, CELL)
    state["encoder.linear.bias"][channels:] = -(analysis @ mean) / UNIT
    state["decoder.linear.weight"][:, channels:, 0, 0] = synthesis * UNIT
    network.load_state_dict(state)
    for level, was, step in zip(network.levels, old.config.levels, config.steps, strict=True):
        assert isinstance(level, PyramidLevel)
        added = level.level.digits - was.digits
        if not added:
            continue
        level.project.weight.data[was.digits :] = 0
        level.project.bias.data[was.digits :] = 0  # type: ignore[union-attr]
        level.expand.weight.data[:, was.digits :] = 0
        for new in range(added):
            level.project.weight.data[was.digits + new, channels + new] = 1 / step
            level.expand.weight.data[channels + new, was.digits + new] = step
        expect(level.prior, was.digits, spread[:added] / step)
    return network


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("model", help="name or path")
    parser.add_argument("checkpoint", type=Path, help="where to write")
    parser.add_argument("--photos", type=Path, nargs="+", required=True, help="training photos: folders, tar files, images")
    parser.add_argument("--count", type=int, default=200, help="photos to look at")
    parser.add_argument("--steps", type=int, default=400_000)
    parser.add_argument("--rate", type=float, default=4e-4)
    parser.add_argument("--perceptual", type=float, default=1.0)
    given = parser.parse_args()
    model = open_pyramid(given.model)
    old, config = model.network(torch.device("cpu")), widened(model.config)
    photos, _ = load_photos(given.photos)
    photos = photos[:: max(1, len(photos) // given.count)][: given.count]
    count = config.channels - model.config.channels
    analysis, mean, synthesis = (part.float() for part in left_over(given.model, photos, count))
    patches = F.pixel_unshuffle(to_network(photos[:, :BLOCK, :BLOCK]), CELL).permute(0, 2, 3, 1).flatten(0, 2)
    network = wide(old, config, analysis, mean, synthesis, ((patches - mean) @ analysis.t() / UNIT).std(0))
    recipe = PyramidTraining(steps=given.steps, rate=given.rate, perceptual=given.perceptual)
    trainer = PyramidTrainer(network.requires_grad_(True), recipe, torch.device("cpu"))
    trainer.count_from(model)
    given.checkpoint.parent.mkdir(parents=True, exist_ok=True)
    trainer.save(given.checkpoint)


if __name__ == "__main__":
    main()
