"""Converts the float entropy model of training to the integer model that files are coded with.

Weights and activations are rounded to 12 bits. The frequency tables are then measured on photos that are coded with the rounded
model, so they also absorb the cost of rounding.
"""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor, nn

from bitstream.block_order import BLOCK
from bitstream.entropy_model import COST_UNIT, PRECISION, IntegerLayer, LevelEntropyModel, frequencies_of
from bitstream.pyramid_tokens import Level, PyramidCode
from codec.models.pixels import to_network
from codec.pyramid.network import SCORE_RANGE, TABLES, Network, PyramidLevel, logistic_tables
from codec.pyramid.runtime.torch_backend import TorchBackend
from codec.pyramid.tokenizer import quantize

MAX_WEIGHT = 2047  # 12 bits and a sign
MAX_SHIFT = 24
DIGIT_UNIT = 4.0  # the float model reads digits / 4
ACTIVATION_UNIT = 128.0  # integer activations are float ones times 128, clipped to 12 bits
MIN_FREQUENCY = 16  # minimum for a symbol: one in a million
LOGISTIC_DIGITS = 30.0  # weight of a table's logistic start, as a number of counted digits


@torch.inference_mode()
def measure_tables(network: Network, photos: Tensor, rounds: int = 2) -> PyramidCode:
    """The integer code of a network, with tables counted on photos (N, side, side, 3) uint8, one block per photo. Tables affect
    rounding, so they are measured in more than one round."""
    code = quantize_entropy_model(network)
    layout = code.layout(BLOCK, BLOCK)
    device = next(network.parameters()).device
    for _ in range(rounds):
        counts: list[NDArray[np.float64]] = [np.zeros(model.frequencies.shape) for model in code.entropy_models]
        for photo in photos:
            latents = network.encoder(to_network(photo[None, :BLOCK, :BLOCK].to(device)))
            (sequence,) = quantize(TorchBackend(network), code, [layout], latents)
            for count, contexts, symbols in zip(counts, sequence.contexts, sequence.symbols, strict=True):
                entries = contexts.astype(np.int64) * count.shape[1] + symbols + count.shape[1] // 2
                count += np.bincount(entries.ravel(), minlength=count.size).reshape(count.shape)
        models = []
        for level, model, count in zip(code.levels, code.entropy_models, counts, strict=True):
            symmetric = (count + count[:, ::-1]) / 2  # mirrored photos and inverted contrasts make both signs equally likely
            frequencies, costs = tables_from(symmetric + LOGISTIC_DIGITS * signed_logistic_tables(level))
            models.append(replace(model, frequencies=frequencies, costs=costs))
        code = PyramidCode(code.levels, tuple(models))
    return code


def quantize_entropy_model(network: Network) -> PyramidCode:
    """The integer code of a network, with logistic tables."""
    models = []
    for level in network.levels:
        assert isinstance(level, PyramidLevel)
        first, *middle, last = (layer for layer in level.prior if isinstance(layer, nn.Conv2d))
        layers = (
            quantize_layer(first, DIGIT_UNIT, ACTIVATION_UNIT),
            *(quantize_layer(layer, ACTIVATION_UNIT, ACTIVATION_UNIT) for layer in middle),
            quantize_layer(last, ACTIVATION_UNIT, TABLES / SCORE_RANGE, TABLES / 2),
        )
        models.append(LevelEntropyModel(layers, *tables_from(signed_logistic_tables(level.level))))
    return PyramidCode(network.config.levels, tuple(models))


def quantize_layer(layer: nn.Conv2d, in_unit: float, out_unit: float, offset: float = 0.0) -> IntegerLayer:
    """The integer form of a float layer: reads integers x * in_unit, and returns integers y * out_unit + offset."""
    assert layer.bias is not None
    weight = layer.weight.detach().double().cpu().numpy() * out_unit / in_unit
    bias = layer.bias.detach().double().cpu().numpy() * out_unit + offset
    shift = min(MAX_SHIFT, max(0, int(np.floor(np.log2(MAX_WEIGHT / max(np.abs(weight).max(), 1e-9))))))
    scale = 2.0**shift
    return IntegerLayer(np.round(weight * scale).astype(np.int16), np.round(bias * scale).astype(np.int64), shift)


def signed_logistic_tables(level: Level) -> NDArray[np.float64]:
    """(tables, 2 limit + 1) probabilities of the digits -limit..limit, from `logistic_tables`."""
    absolute = logistic_tables(level).numpy()
    return np.concatenate([absolute[:, :0:-1] / 2, absolute[:, :1], absolute[:, 1:] / 2], 1)


def tables_from(weights: NDArray[np.float64]) -> tuple[NDArray[np.int32], NDArray[np.int32]]:
    """Counts or probabilities (tables, symbols) -> frequencies that sum to 2^24, and the expected cost of a digit per table."""
    frequencies = frequencies_of(weights, MIN_FREQUENCY)
    probability = frequencies / (1 << PRECISION)
    entropy = -(probability * np.log2(probability)).sum(1)
    return frequencies, np.round(COST_UNIT * entropy).astype(np.int32)
