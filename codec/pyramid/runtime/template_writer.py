"""Writes the graph templates of a model from the graphs that `codec.pyramid.runtime.onnx_export` traces."""

from __future__ import annotations

import json
import re
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any
from zipfile import ZIP_DEFLATED, ZipFile, ZipInfo

import numpy as np
import torch
from torch import Tensor, nn

from bitstream.block_order import BLOCK, CELL
from codec.errors import ModelError
from codec.models.pixels import HALF
from codec.pyramid.model import PyramidModel
from codec.pyramid.network import Encoder
from codec.pyramid.runtime.graph_templates import INDEX, SIDE, graph_templates_path, name_of, over_places, shape_of
from codec.pyramid.runtime.onnx_export import Method, graphs_of, packages, plain, traced
from codec.system.files import atomic_write


class FromPixels(nn.Module):
    """The encoder from uint8 (B, 3 x 8 x 8, H/8, W/8), pixels of 8x8 as channels: NumPy moves bytes into that order far faster
    than ONNX Runtime moves floats. The linear transform of 16x16 pixels becomes one of 2x2 such places."""

    def __init__(self, encoder: Encoder) -> None:
        super().__init__()
        side = CELL // SIDE
        self.linear = nn.Conv2d(3 * SIDE**2, len(encoder.linear.weight), side, side)
        self.linear.weight.data = torch.from_numpy(over_places(encoder.linear.weight.detach().numpy()))
        self.linear.bias = encoder.linear.bias
        self.requires_grad_(False)
        self.module = encoder

    def forward(self, pixels: Tensor) -> Tensor:
        x = pixels.float() * (1 / HALF) - 1
        return self.linear(x) + self.module.correction[1:](x)


class ToPixels(nn.Module):
    """The end of the decoder to uint8 (B, 3, H, W)."""

    def __init__(self, pixels: nn.Module) -> None:
        super().__init__()
        self.module = pixels

    def forward(self, latents: Tensor, features: Tensor) -> Tensor:
        x = self.module(latents, features)
        return (x * HALF + HALF).round().clamp(0, 255).to(torch.uint8)


def write_graph_templates(model: PyramidModel, step: Callable[[], None] = lambda: None) -> Path:
    """Writes the graphs without weights that ONNX Runtime codes with, beside a model file, and says where. They take the place
    of those that are there. Calls `step` after each graph.

    Raises ModelError where a package is missing, FileError where the file cannot be written."""
    packages()
    network = model.network("cpu").to(memory_format=torch.contiguous_format)  # type: ignore[call-overload]
    made: dict[str, tuple[bytes, list[str]]] = {}
    for graph in graphs_of(network):
        part, name, prefix = graph, graph.name, f"{graph.name.split('.')[0]}."
        if graph.level is not None:
            method = graph.name.split(".")[1]
            name = name_of(method, model.config.levels[graph.level])
            prefix = "" if isinstance(graph.module, Method) else f"{method}."
        elif graph.outputs == ("pixels",):
            part = replace(graph, module=ToPixels(graph.module))
        elif not graph.decodes:
            part = replace(graph, module=FromPixels(network.encoder), inputs={"bytes": (3 * SIDE**2, BLOCK // SIDE)})
        if name not in made:
            made[name] = _emptied(traced(part), dict(part.module.named_parameters(remove_duplicate=False)), prefix)
        step()
    index = {
        "network": shape_of(model.config),
        "reach": {
            "encoder_reach": network.encoder.reach,
            "decoder_reach": network.decoder.reach,
            "pixel_reach": network.decoder.pixel_reach,
        },
        "weights": {name: names for name, (_, names) in made.items()},
    }
    path = graph_templates_path(model.path)
    with atomic_write(path) as temporary, ZipFile(temporary, "w") as file:
        file.writestr(ZipInfo(INDEX), json.dumps(index), ZIP_DEFLATED)  # without a time: the same graphs give the same file
        for name, (content, _) in made.items():
            file.writestr(ZipInfo(f"{name}.onnx"), content, ZIP_DEFLATED)
    return path


def _emptied(proto: Any, parameters: dict[str, Tensor], prefix: str) -> tuple[bytes, list[str]]:
    """A graph whose weights are to be given from outside, and their names in the model file: `prefix` and the names of the
    module's parameters, less what the wrappers here add to them."""
    from onnx import TensorProto, numpy_helper

    names = []
    for weight in proto.graph.initializer:
        values = numpy_helper.to_array(weight)
        if weight.name not in parameters:
            if values.size > 4:  # a changed weight: it would be in there twice
                msg = f"graph: {weight.name} of shape {values.shape} is no array of the model file"
                raise ModelError(msg)
            continue
        assert np.array_equal(values, parameters[weight.name].numpy())
        name = prefix + re.sub(r"^(module\.)+", "", weight.name)
        _rename(proto.graph, weight.name, name)
        empty = TensorProto(name=name, data_type=weight.data_type, dims=weight.dims, data_location=TensorProto.EXTERNAL)
        empty.external_data.add(key="location", value="model")
        weight.CopyFrom(empty)
        names.append(name)
    return plain(proto).SerializeToString(), names


def _rename(graph: Any, old: str, new: str) -> None:
    for node in graph.node:
        for place, name in enumerate(node.input):
            if name == old:
                node.input[place] = new
