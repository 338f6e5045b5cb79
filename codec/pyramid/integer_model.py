"""From the float prior that training knows to the integer prior that files are coded with.

Weights are rounded to 12 bits and activations to 12 bits; then the tables of each class are measured on photographs coded
with that very prior, so rounding costs no bits beyond them.
"""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn

from bitstream.block_order import BLOCK
from bitstream.entropy_model import COST_UNIT, PRECISION, IntegerLayer, LevelEntropyModel, frequencies_of
from bitstream.pyramid_tokens import Level, PyramidCode
from codec.models.pixels import to_network
from codec.pyramid.network import CLASSES, SCORE_RANGE, Network, PyramidLevel, logistic_tables
from codec.pyramid.runtime.torch_backend import TorchBackend
from codec.pyramid.tokenizer import quantize

WEIGHT_MAX = 2047  # 12 bits and a sign
DIGIT_UNIT = 4.0  # the float prior reads digits / 4
ACTIVATION_UNIT = 128.0  # integer activations are float ones times 128, clipped to 12 bits
RAREST = 16  # frequency of a symbol, at least: one in a million
STARTING_DIGITS = 30.0  # that the logistic start of a table is worth against counted ones


def quantize_layer(layer: Any, in_unit: float, out_unit: float, offset: float = 0.0) -> IntegerLayer:
    """A float layer y = W x + b on x = integer / in_unit, to integers out_unit * y + offset, weights in 12 bits."""
    weight = layer.weight.detach().double().cpu().numpy() * out_unit / in_unit
    bias = layer.bias.detach().double().cpu().numpy() * out_unit + offset
    shift = max(0, int(np.floor(np.log2(WEIGHT_MAX / max(np.abs(weight).max(), 1e-9)))))
    shift = min(shift, 24)
    scale = 2.0**shift
    return IntegerLayer(np.round(weight * scale).astype(np.int16), np.round(bias * scale).astype(np.int64), shift)


def quantize_entropy_model(network: Network) -> PyramidCode:
    """The integer prior of a network, with tables as the logistic has them."""
    priors = []
    for level in network.levels:
        assert isinstance(level, PyramidLevel)
        first, *middle, last = (layer for layer in level.prior if isinstance(layer, nn.Conv2d))
        layers = (
            quantize_layer(first, DIGIT_UNIT, ACTIVATION_UNIT),
            *(quantize_layer(layer, ACTIVATION_UNIT, ACTIVATION_UNIT) for layer in middle),
            quantize_layer(last, ACTIVATION_UNIT, CLASSES / SCORE_RANGE, CLASSES / 2),
        )
        priors.append(LevelEntropyModel(layers, *tables_from(signed_logistic(level.level))))
    return PyramidCode(network.config.levels, tuple(priors))


def signed_logistic(level: Level) -> np.ndarray:
    """(classes, 2 limit + 1) probabilities of the digits -limit..limit before photos have been counted."""
    absolute = logistic_tables(level).numpy()
    return np.concatenate([absolute[:, :0:-1] / 2, absolute[:, :1], absolute[:, 1:] / 2], 1)


def tables_from(weights: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Counts or probabilities (classes, symbols) -> frequencies that sum to 2^24, none zero, and expected costs."""
    frequencies = frequencies_of(weights, RAREST)
    probability = frequencies / (1 << PRECISION)
    entropy = -(probability * np.log2(probability)).sum(1)
    return frequencies, np.round(COST_UNIT * entropy).astype(np.int32)


@torch.inference_mode()
def measure_tables(network: Network, photos: Tensor, rounds: int = 2) -> PyramidCode:
    """The integer prior with tables counted on photos (N, side, side, 3) uint8, a block of each. Tables steer rounding,
    hence more than one round."""
    code = quantize_entropy_model(network)
    layout = code.layout(BLOCK, BLOCK)
    device = next(network.parameters()).device
    for _ in range(rounds):
        counts = [np.zeros(p.frequencies.shape) for p in code.priors]
        for photo in photos:
            latents = network.encoder(to_network(photo[None, :BLOCK, :BLOCK].to(device)))
            (sequence,) = quantize(TorchBackend(network), code, [layout], latents)
            parts = zip(code.levels, sequence.classes, sequence.symbols, strict=True)
            for index, (level, classes, digits) in enumerate(parts):
                place = classes.astype(np.int64) * (2 * level.limit + 1) + digits + level.limit
                counts[index] += np.bincount(place.ravel(), minlength=counts[index].size).reshape(counts[index].shape)
        fresh = []
        for part, seen, level in zip(code.priors, counts, code.levels, strict=True):
            even = (seen + seen[:, ::-1]) / 2  # signs are even by symmetry of mirrored photos and inverted contrasts
            frequencies, costs = tables_from(even + STARTING_DIGITS * signed_logistic(level))
            fresh.append(replace(part, frequencies=frequencies, costs=costs))
        code = PyramidCode(code.levels, tuple(fresh))
    return code
