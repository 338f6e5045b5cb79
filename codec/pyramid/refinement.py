"""Effort: the latents of one image, refined by gradient through the frozen decoder and prior, for the length that is wanted.

What the encoder gives is good for all images and all lengths; this image at this length can do better. Each step codes the
latents as they will be coded, decodes them, and moves them against the gradient of

    squared error + slope x bits

where the slope is what a bit buys around the wanted length. Rounding passes gradients straight through; a digit's price pulls
with the slope of its table (as in training). The best step is kept, so that the sum never gets worse. The file's format, and
the time to decode it, are the same.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from bitstream.block_order import CELL
from bitstream.pyramid_tokens import PyramidCode, PyramidLayout, PyramidSequence
from bitstream.sequence import Prefix
from codec.models.pixels import HALF, to_network
from codec.pyramid.network import Network, PyramidLevel, straight_through
from codec.pyramid.residual_decoder import on_canvas, price_table, residual_decoder_for
from codec.pyramid.runtime.torch_backend import TorchBackend
from codec.pyramid.tiles import encode_pixels, tile_cells, tiles
from codec.pyramid.tokenizer import PyramidTokenizer, quantize
from codec.system.context import report_progress

RATE = 0.014  # of Adam, in latent units, for one step; it falls with the root of their number
AROUND = (0.8, 1.25)  # times the length: what is compared to learn what a bit buys
TILE = 2048  # pixels; of one tile, with its halo, a step holds the decoder's activations: about 400 bytes per pixel


class PyramidRefiner(PyramidTokenizer):
    """A tokenizer in torch, which can refine too."""

    def __init__(self, network: Network, code: PyramidCode, tile: int | None = None) -> None:
        super().__init__(TorchBackend(network), code, tile)
        self.network = network

    def refine(
        self,
        image: NDArray[np.uint8],
        sequence: PyramidSequence,
        length: int,
        squared_error: Callable[[Prefix], float],
        sized: bool,
        steps: int,
    ) -> PyramidSequence:
        """A better sequence for this length, as `codec.models.tokenizer.Refiner` has it, by gradient descent on the latents."""
        goal = goal_of(sequence, length, lambda length: squared_error(sequence.first(length)), sized)
        if goal is None:
            return sequence
        layout = sequence.layout
        latents = encode_pixels(self.parts, [layout], [image], self.tile)
        better = refine(self.network, self.code, layout, image, latents, goal, steps)
        return quantize(self.parts, self.code, [layout], better)[0]


@dataclass(frozen=True)
class Goal:
    """What an image is refined for: so many tokens, or as many as so many bits hold."""

    slope: float  # squared error of pixels in [-1, 1], over the whole image, that a bit is worth
    length: int | None = None
    bits: float | None = None


def goal_of(sequence: PyramidSequence, length: int, squared_error: Callable[[int], float], sized: bool) -> Goal | None:
    """The goal of an image that would be cut to `length` tokens; with `sized` its bytes are what counts, not its tokens. None
    where more tokens bring nothing. `squared_error` is that of the image that decodes from so many tokens, summed over
    pixels 0..255."""
    bits = sequence.bits().cumsum()
    shorter, longer = (min(len(bits), max(1, round(factor * length))) for factor in AROUND)
    gain = (squared_error(shorter) - squared_error(longer)) / HALF**2
    cost = float(bits[longer - 1] - bits[shorter - 1])
    if gain <= 0 or cost <= 0:
        return None
    return Goal(gain / cost, bits=float(bits[length - 1])) if sized else Goal(gain / cost, length=length)


@dataclass(frozen=True)
class Walked:
    """What became of latents on their way through all levels up to the goal."""

    latents: Tensor  # (1, C, h, w)
    known: Tensor  # (1, 1, h, w)
    bits: Tensor  # ()


def refine(
    network: Network,
    code: PyramidCode,
    layout: PyramidLayout,
    pixels: NDArray[np.uint8],
    latents: Tensor,
    goal: Goal,
    steps: int,
) -> Tensor:
    """Latents (1, C, h, w) of a canvas with the image (H, W, 3) -> better ones."""
    original = to_network(torch.tensor(pixels, device=latents.device)[None])
    moved = latents.clone().requires_grad_(True)
    rate = RATE * steps**-0.5
    optimizer = torch.optim.Adam([moved], betas=(0.9, 0.99))
    dither = torch.Generator(latents.device).manual_seed(0)  # the same image is refined alike each time
    best, lowest = latents, float("inf")
    for step in range(steps + 1):
        walked = walk(network, code, layout, moved, goal, dither)
        error, gradient = _error(network, layout, walked, original, step < steps)
        loss = error + goal.slope * float(walked.bits.detach())
        report_progress(1)
        if loss < lowest:
            best, lowest = moved.detach().clone(), loss
        if step < steps:
            optimizer.zero_grad()
            torch.autograd.backward([walked.latents, goal.slope * walked.bits], [gradient, None])
            optimizer.param_groups[0]["lr"] = rate * 0.5 * (1 + np.cos(np.pi * step / (steps + 1)))
            optimizer.step()
    return best


def walk(
    network: Network, code: PyramidCode, layout: PyramidLayout, latents: Tensor, goal: Goal, dither: torch.Generator
) -> Walked:
    """Codes latents (1, C, h, w) as `codec.pyramid.tokenizer.quantize` does, as far as the goal goes, with gradients."""
    digits: list[NDArray[np.int8]] = []
    bits = latents.new_zeros(())
    lengths = layout.split(layout.tokens if goal.length is None else goal.length)
    left = float("inf") if goal.bits is None else goal.bits
    parts = TorchBackend(network)
    steps = residual_decoder_for(parts, [layout])
    for index, predicted in steps.levels():
        level = network.levels[index]
        assert isinstance(level, PyramidLevel)
        rows, columns = layout.grids[index]
        raw = level.analyse(latents - predicted)
        inside = raw[0, :, :rows, :columns]
        classes = code.classes(layout, index, digits)
        table = parts.array(price_table(code, index))
        sent, price = _round(level, inside, torch.from_numpy(classes).to(raw.device).long(), table, dither)
        order = code.order(index, classes)
        spent = price.detach().sum(0).flatten().cpu().numpy()[order].cumsum()
        count = min(lengths[index], int(np.searchsorted(spent, left, side="right")))
        left -= float(spent[count - 1]) if count else 0.0
        keep = np.zeros((1, rows, columns), np.bool_)
        keep.ravel()[order[:count]] = True
        digits.append(sent.detach().to(torch.int8).cpu().numpy() * keep)
        bits = bits + (price * torch.from_numpy(keep).to(price.device)).sum()
        through = torch.nn.functional.pad(sent, (0, raw.shape[3] - columns, 0, raw.shape[2] - rows))[None]
        steps.add(through, parts.array(on_canvas([keep], [layout], index)))
        if count < len(order):
            break
    return Walked(steps.latents, steps.known, bits)


def _round(level: PyramidLevel, raw: Tensor, classes: Tensor, bits: Tensor, dither: torch.Generator) -> tuple[Tensor, Tensor]:
    """Digits before rounding (D, n, m), and their classes -> digits to send, with the gradient of `raw`, and the bits of each,
    with the gradient of its price at a dithered place."""
    width = bits.shape[1]
    with torch.no_grad():
        sent = level.round(raw, classes, bits)
        row = classes * width
        price = bits.flatten()[row + sent.abs().long()]
        dithered = (raw + torch.rand(raw.shape, generator=dither, device=raw.device) - 0.5).abs()
        below = dithered.floor().clamp(max=width - 2).long()
        rise = (bits.flatten()[row + below + 1] - bits.flatten()[row + below]).clamp(min=0)
    magnitude = raw.abs()
    return straight_through(raw, sent, level.level.limit), price + rise * (magnitude - magnitude.detach())


def _error(network: Network, layout: PyramidLayout, walked: Walked, original: Tensor, learn: bool) -> tuple[float, Tensor]:
    """Squared error of the image that is decoded, in all, and its gradient in the latents; by tiles, so that the decoder's
    activations are held for one of them at a time."""
    gradient = torch.zeros_like(walked.latents)
    total = 0.0
    rows, columns = gradient.shape[2:]
    for ys, xs, inner_ys, inner_xs in tiles(rows, columns, tile_cells(TILE), network.decoder.reach):
        top, left = (ys.start + inner_ys.start) * CELL, (xs.start + inner_xs.start) * CELL
        if top >= layout.height or left >= layout.width:
            continue
        part = walked.latents[:, :, ys, xs].detach().requires_grad_(learn)
        decoded = network.decoder(part, walked.known[:, :, ys, xs])
        decoded = decoded[:, :, inner_ys.start * CELL : inner_ys.stop * CELL, inner_xs.start * CELL : inner_xs.stop * CELL]
        wanted = original[:, :, top : top + decoded.shape[2], left : left + decoded.shape[3]]
        error = (decoded[:, :, : wanted.shape[2], : wanted.shape[3]].clamp(-1, 1) - wanted).pow(2).sum()
        total += float(error.detach())
        if learn:
            gradient[:, :, ys, xs] += torch.autograd.grad(error, part)[0]
    return total, gradient
