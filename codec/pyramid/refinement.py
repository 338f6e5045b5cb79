"""Refinement of one image for one length: gradient descent on its latents through the frozen decoder and entropy model.

The encoder is trained for all images and lengths; better latents may exist for one image at one length. Each step codes the
latents, decodes them and follows the gradient of

    squared error + lambda x bits

Lambda is measured on the image's own rate-distortion curve around the length. Rounding passes gradients straight through, and
the cost of a digit has the slope of its frequency table, as in training, but without its growth beyond the largest digit. The
best step is kept, so the loss never increases. The file format and the time to decode stay the same.
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
from codec.pyramid.network import Network, PyramidLevel, choose_digits, straight_through
from codec.pyramid.reference import PyramidReferencer
from codec.pyramid.runtime.torch_backend import TorchBackend
from codec.pyramid.tiles import encode_pixels, tiles
from codec.pyramid.tokenizer import digit_bits, pad_to_canvas, quantize
from codec.system.context import report_progress

RATE = 0.014  # learning rate of Adam for one step, in latent units; divided by the square root of the number of steps
LENGTH_FACTORS = (0.8, 1.25)  # two lengths that lambda is measured between, relative to the length
TILE = 2048  # pixels; a step holds the decoder's activations of one tile with its halo, about 400 bytes per pixel


@dataclass(frozen=True)
class PyramidRefiner(PyramidReferencer):
    """A tokenizer in torch that also refines."""

    backend: TorchBackend

    @property
    def network(self) -> Network:
        return self.backend.network

    def refine(
        self,
        image: NDArray[np.uint8],
        sequence: PyramidSequence,
        length: int,
        squared_error: Callable[[Prefix], float],
        match_bytes: bool,
        steps: int,
    ) -> PyramidSequence:
        """See `codec.models.base.Refiner`."""
        goal = goal_of(sequence, length, lambda length: squared_error(sequence.first(length)), match_bytes)
        if goal is None:
            return sequence
        latents = encode_pixels(self.backend, [sequence.layout], [image], self.tile)
        refined = refine(self.network, self.code, sequence.layout, image, latents, goal, steps)
        return quantize(self.backend, self.code, [sequence.layout], refined)[0]


@dataclass(frozen=True)
class Goal:
    """The rate to refine for, a number of tokens or of bits, and its lambda."""

    rdo_lambda: float  # squared error per bit, for pixels in [-1, 1], summed over the image
    length: int | None = None
    bits: float | None = None


def goal_of(sequence: PyramidSequence, length: int, squared_error: Callable[[int], float], match_bytes: bool) -> Goal | None:
    """The goal for the first `length` tokens of an image, in bits if `match_bytes`. None if more tokens do not lower the
    error. `squared_error` maps a number of tokens to the squared error of the decoded image, summed over values of 0 to 255."""
    bits = sequence.bits().cumsum()
    shorter, longer = (min(len(bits), max(1, round(factor * length))) for factor in LENGTH_FACTORS)
    gain = (squared_error(shorter) - squared_error(longer)) / HALF**2
    cost = float(bits[longer - 1] - bits[shorter - 1])
    if gain <= 0 or cost <= 0:
        return None
    return Goal(gain / cost, bits=float(bits[length - 1])) if match_bytes else Goal(gain / cost, length=length)


def refine(
    network: Network,
    code: PyramidCode,
    layout: PyramidLayout,
    pixels: NDArray[np.uint8],
    latents: Tensor,
    goal: Goal,
    steps: int,
) -> Tensor:
    """Refined latents (1, C, h, w) of the canvas of an image (H, W, 3), starting from the encoder's `latents`."""
    original = to_network(torch.tensor(pixels, device=latents.device)[None])
    variable = latents.clone().requires_grad_(True)
    rate = RATE * steps**-0.5
    optimizer = torch.optim.Adam([variable], betas=(0.9, 0.99))
    dither = torch.Generator(latents.device).manual_seed(0)  # refinement is deterministic
    best, lowest = latents, float("inf")
    for step in range(steps + 1):
        coded = quantize_with_gradient(network, code, layout, variable, goal, dither)
        error, gradient = _squared_error(network, layout, coded, original, step < steps)
        loss = error + goal.rdo_lambda * float(coded.bits.detach())
        report_progress(1)
        if loss < lowest:
            best, lowest = variable.detach().clone(), loss
        if step < steps:
            optimizer.zero_grad()
            torch.autograd.backward([coded.latents, goal.rdo_lambda * coded.bits], [gradient, None])
            optimizer.param_groups[0]["lr"] = rate * 0.5 * (1 + np.cos(np.pi * step / (steps + 1)))
            optimizer.step()
    return best


@dataclass(frozen=True)
class Coded:
    """Latents after quantization and dequantization."""

    latents: Tensor  # (1, C, h, w)
    known: Tensor  # (1, 1, h, w)
    bits: Tensor  # ()


def quantize_with_gradient(
    network: Network, code: PyramidCode, layout: PyramidLayout, latents: Tensor, goal: Goal, dither: torch.Generator
) -> Coded:
    """Codes latents (1, C, h, w) as `quantize` does, up to the goal, with gradients."""
    backend = TorchBackend(network)
    decoded, known = backend.zeros(*latents.shape), backend.zeros(1, 1, *latents.shape[2:])
    digits: list[NDArray[np.int8]] = []
    bits = latents.new_zeros(())
    lengths = layout.split(layout.tokens if goal.length is None else goal.length)
    budget = float("inf") if goal.bits is None else goal.bits
    for index, level in enumerate(network.levels):
        assert isinstance(level, PyramidLevel)
        predicted = level.predict(decoded, known)
        rows, columns = layout.grids[index]
        raw = level.analyse(latents - predicted)
        contexts = code.contexts(layout, index, digits)
        tables = torch.from_numpy(contexts).to(raw.device).long()
        table_bits = torch.from_numpy(digit_bits(code, index)).to(raw.device)
        chosen, cost = _choose_with_gradient(level, raw[0, :, :rows, :columns], tables, table_bits, dither)
        order = code.order(layout, index, contexts)
        spent = cost.detach().sum(0).flatten().cpu().numpy()[order].cumsum()
        count = min(lengths[index], int(np.searchsorted(spent, budget, side="right")))
        budget -= float(spent[count - 1]) if count else 0.0
        keep = np.zeros((1, rows, columns), np.bool_)
        keep.ravel()[order[:count]] = True
        digits.append(np.where(keep, chosen.detach().to(torch.int8).cpu().numpy(), 0))
        bits = bits + (cost * torch.from_numpy(keep).to(cost.device)).sum()
        padded = torch.nn.functional.pad(chosen, (0, raw.shape[3] - columns, 0, raw.shape[2] - rows))[None]
        decoded, known = backend.update(index, decoded, known, predicted, padded, pad_to_canvas([keep], [layout], index))
        if count < len(order):
            break
    return Coded(decoded, known, bits)


def _choose_with_gradient(
    level: PyramidLevel, raw: Tensor, contexts: Tensor, bits: Tensor, dither: torch.Generator
) -> tuple[Tensor, Tensor]:
    """Digits before rounding (D, n, m) -> rounded digits with the gradient of `raw`, and the cost of each with the slope of its
    table at a dithered magnitude."""
    width = bits.shape[1]
    with torch.no_grad():
        chosen = choose_digits(raw, contexts, bits, level.level.limit, level.rdo_lambda)
        rows, table = contexts * width, bits.flatten()
        cost = table[rows + chosen.abs().long()]
        dithered = (raw + torch.rand(raw.shape, generator=dither, device=raw.device) - 0.5).abs()
        below = dithered.floor().clamp(max=width - 2).long()
        slope = (table[rows + below + 1] - table[rows + below]).clamp(min=0)
    magnitude = raw.abs()
    return straight_through(raw, chosen, level.level.limit), cost + slope * (magnitude - magnitude.detach())


def _squared_error(
    network: Network, layout: PyramidLayout, coded: Coded, original: Tensor, with_gradient: bool
) -> tuple[float, Tensor]:
    """The squared error of the decoded image, summed over its pixels, and its gradient in the latents. The decoder runs in
    tiles, so that the activations of one tile at a time are in memory."""
    gradient = torch.zeros_like(coded.latents)
    total = 0.0
    rows, columns = gradient.shape[2:]
    for (ys, inner_ys), (xs, inner_xs) in tiles(rows, columns, TILE, network.config.decoder_radius):
        top, left = (ys.start + inner_ys.start) * CELL, (xs.start + inner_xs.start) * CELL
        if top >= layout.height or left >= layout.width:
            continue
        latents = coded.latents[:, :, ys, xs].detach().requires_grad_(with_gradient)
        decoded = network.decoder(latents, coded.known[:, :, ys, xs])
        decoded = decoded[:, :, inner_ys.start * CELL : inner_ys.stop * CELL, inner_xs.start * CELL : inner_xs.stop * CELL]
        target = original[:, :, top : top + decoded.shape[2], left : left + decoded.shape[3]]
        error = (decoded[:, :, : target.shape[2], : target.shape[3]].clamp(-1, 1) - target).pow(2).sum()
        total += float(error.detach())
        if with_gradient:
            gradient[:, :, ys, xs] += torch.autograd.grad(error, latents)[0]
    return total, gradient
