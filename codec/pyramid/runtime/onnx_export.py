"""The network as ONNX graphs: with weights for web pages and other runtimes (`export`), or without (`write_graph_templates`).

`export` writes a folder with, for every level I of `PyramidLevel`,

    encoder.onnx             pixels (B, 3, 16h, 16w) in [-1, 1] -> latents (B, C, h, w)
    level-I.predict.onnx     latents, known -> predicted (B, C, h, w)
    level-I.analyse.onnx     residual (B, C, h, w) -> raw (B, D, n, m): digits before rounding
    level-I.update.onnx      latents, known, predicted, digits (B, D, n, m), keep (B, 1, n, m) -> latents, known
    decoder.features.onnx    latents, known (B, 1, h, w) -> features (B, F, h, w)
    decoder.pixels.onnx      latents, features -> pixels
    decoder.textured.onnx    latents, features, detail (1,), noise -> pixels; if there is texture. `noise` is as in
                             `codec.pyramid.noise.texture_noise`

and `model.safetensors`: the integer entropy model under the names of a model file, and the model's metadata with the SHA-256 of
each graph, the receptive-field radii in cells (`reach`) and the digest of the model file (`exported`). All axes but the
channels are free; canvases are whole blocks. Weights are stored in fp16, as in the model file, and used in float32. Each graph
is compared with torch.
"""

from __future__ import annotations

import hashlib
import json
import logging
import re
import warnings
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any
from zipfile import ZIP_DEFLATED, ZipFile, ZipInfo

import numpy as np
import torch
from safetensors.numpy import load_file, save
from torch import Tensor, nn
from torch.export import Dim

from bitstream.block_order import BLOCK, BLOCK_CELLS, CELL
from codec.errors import ModelError
from codec.models.base import digest_of
from codec.models.pixels import HALF
from codec.pyramid.config import NetworkConfig
from codec.pyramid.model import PyramidModel
from codec.pyramid.network import Encoder, Network, PyramidLevel
from codec.pyramid.noise import NOISE_CHANNELS, SCALES
from codec.pyramid.runtime.graph_templates import (
    INDEX,
    PATCH,
    graph_name,
    graph_shape,
    graph_templates_path,
    space_to_depth,
)
from codec.system.device import load_onnxruntime
from codec.system.files import atomic_write

OPSET = 20
TOLERANCE = 1e-4  # share of the largest value; float32 sums in another order differ by this. Half a step of 255 is 4e-3
MODEL_FILE = "model.safetensors"
TRACED_BLOCKS, CHECKED_BLOCKS = (2, 3), (1, 2)  # sizes of the canvases for tracing and checking graphs
IMAGES, ROWS, COLUMNS = (Dim(name) for name in ("pictures", "rows", "columns"))
SMALL = 4  # constants of up to this many numbers stay in the graph, such as the scales of a Resize
EXAMPLES: dict[str, Callable[[Tensor], Tensor]] = {  # conversions of normally distributed numbers to values of an input
    "keep": lambda value: (value > 0).float(),
    "pixels": lambda value: value.clamp(-1, 1),
    "detail": lambda value: torch.full_like(value, 0.7),
    **dict.fromkeys(("noise8", "noise4", "noise2", "noise1"), lambda value: (value * 50 + 128).clamp(0, 255).to(torch.uint8)),
    "bytes": lambda value: (value.clamp(-1, 1) * HALF + HALF).to(torch.uint8),
}


def export(model: PyramidModel, folder: Path, *, encodes: bool = True, step: Callable[[], None] = lambda: None) -> list[Path]:
    """Writes the graphs of a model and its `model.safetensors` into a new or empty folder, and returns their paths. Without
    `encodes`, leaves out the graphs that only encoding needs. Calls `step` after each graph: 3 per level, and 3 more.

    Raises ModelError if a package is missing, if the folder is not empty, or if ONNX Runtime and torch disagree."""
    onnxruntime = import_onnxruntime()
    if folder.exists() and any(folder.iterdir()):
        msg = f"{folder} is not empty: name a new folder"
        raise ModelError(msg)
    folder.mkdir(parents=True, exist_ok=True)
    network = model.network("cpu").to(memory_format=torch.contiguous_format)  # type: ignore[call-overload]
    paths = []
    for graph in graphs_of(network):
        if encodes or graph.decodes:
            content = _with_half_weights(trace(graph)).SerializeToString()
            _check(graph, onnxruntime.InferenceSession(content, providers=["CPUExecutionProvider"]))
            paths.append(folder / f"{graph.name}.onnx")
            paths[-1].write_bytes(content)
        step()
    _write_entropy_model(model, folder / MODEL_FILE, paths)
    return [*paths, folder / MODEL_FILE]


def write_graph_templates(model: PyramidModel, step: Callable[[], None] = lambda: None) -> Path:
    """Writes the graph templates of a model beside its file, replacing existing ones, and returns their path. Calls `step`
    after each graph, as `export` does. `codec.pyramid.runtime.graph_templates.read_graph_templates` reads them.

    Raises ModelError if a package is missing, and FileError if the file cannot be written."""
    import_onnxruntime()
    network = model.network("cpu").to(memory_format=torch.contiguous_format)  # type: ignore[call-overload]
    templates: dict[str, tuple[bytes, list[str]]] = {}
    for graph in graphs_of(network):
        name, prefix = _template_of(graph, model.config)
        if name == "encoder":
            inputs = {"bytes": (3 * PATCH**2, BLOCK // PATCH)}
            graph = replace(graph, module=EncoderFromBytes(network.encoder), inputs=inputs)
        elif name in ("decoder.pixels", "decoder.textured"):
            graph = replace(graph, module=PixelsToBytes(network.decoder, name.partition(".")[2]))
        if name not in templates:
            parameters = dict(graph.module.named_parameters(remove_duplicate=False))
            templates[name] = _without_weights(trace(graph), parameters, prefix)
        step()
    index = {"network": graph_shape(model.config), "weights": {name: names for name, (_, names) in templates.items()}}
    path = graph_templates_path(model.path)
    with atomic_write(path) as temporary, ZipFile(temporary, "w") as file:
        file.writestr(ZipInfo(INDEX), json.dumps(index), ZIP_DEFLATED)  # no timestamps, so the same graphs give the same file
        for name, (content, _) in templates.items():
            file.writestr(ZipInfo(f"{name}.onnx"), content, ZIP_DEFLATED)
    return path


def import_onnxruntime() -> Any:
    """Imports ONNX Runtime. Raises ModelError if it, or a package that torch's exporter needs, is not installed."""
    try:
        import onnx  # noqa: F401
        import onnxscript  # noqa: F401 (torch's own error comes late and does not name it)

        return load_onnxruntime()
    except ModuleNotFoundError as error:
        msg = f"export needs {error.name}, which is not installed: pip install onnx onnxruntime onnxscript"
        raise ModelError(msg) from error


@dataclass(frozen=True)
class Graph:
    """A part of the network, to be exported as one graph."""

    name: str
    module: nn.Module
    inputs: dict[str, tuple[int, int]]  # channels, and number of positions along the side of a block; 0 for a vector
    outputs: tuple[str, ...]
    level: int | None = None
    unit: int = BLOCK_CELLS  # sizes of inputs are multiples of this number of positions along a block
    decodes: bool = True  # whether decoding needs it

    def examples(self, images: int, blocks: tuple[int, int]) -> tuple[Tensor, ...]:
        """Random inputs, the same in every run."""
        random = torch.Generator().manual_seed(0)
        values = []
        for name, (channels, side) in self.inputs.items():
            count = 1 if name.startswith("noise") else images
            shape = (count, channels, blocks[0] * side, blocks[1] * side) if side else (channels,)
            value = torch.randn(shape, generator=random)
            values.append(EXAMPLES[name](value) if name in EXAMPLES else value)
        return tuple(values)

    def free_axes(self) -> tuple[dict[int, Any], ...]:
        """The free axes of the inputs, in the form that torch's exporter takes."""
        axes = []
        for name, (_, side) in self.inputs.items():
            images = {} if name.startswith("noise") else {0: IMAGES}
            sides = {axis: _times(size, side // self.unit) for axis, size in ((2, ROWS), (3, COLUMNS)) if side}
            axes.append(images | sides if side else {})
        return tuple(axes)


def _times(axis: Any, factor: int) -> Any:
    return axis if factor == 1 else factor * axis  # torch takes a product with 1 for another size


def graphs_of(network: Network) -> Iterator[Graph]:
    """All graphs, in the order of their use in coding."""
    channels, cells = network.config.channels, BLOCK_CELLS
    state = {"latents": (channels, cells), "known": (1, cells)}
    yield Graph("encoder", network.encoder, {"pixels": (3, cells * CELL)}, ("latents",), decodes=False)
    for index, level in enumerate(network.levels):
        assert isinstance(level, PyramidLevel)
        name, side = f"level-{index}", level.level.side
        tokens = {"predicted": (channels, cells), "digits": (level.level.digits, side), "keep": (1, side)}
        residual = {"residual": (channels, cells)}
        yield Graph(f"{name}.predict", level.predict, state, ("predicted",), index)
        yield Graph(f"{name}.analyse", Method(level, "analyse"), residual, ("raw",), index, side, decodes=False)
        yield Graph(f"{name}.update", Method(level, "update"), state | tokens, ("refined", "more_known"), index, side)
    features = {"latents": (channels, cells), "features": (network.config.decoder_width16, cells)}
    yield Graph("decoder.features", Method(network.decoder, "features"), state, ("features",), unit=cells // 2)  # even: 1/32
    yield Graph("decoder.pixels", Method(network.decoder, "pixels"), features, ("pixels",))
    if network.decoder.texture:
        noise = {f"noise{scale}": (NOISE_CHANNELS, cells * CELL // scale) for scale in SCALES} | {"noise1": (1, cells * CELL)}
        textured = features | {"detail": (1, 0)} | noise
        yield Graph("decoder.textured", Method(network.decoder, "textured"), textured, ("pixels",))


class Method(nn.Module):
    """Wraps a method of a module as a module."""

    def __init__(self, module: nn.Module, name: str) -> None:
        super().__init__()
        self.module, self.name = module, name

    def forward(self, *inputs: Tensor) -> Any:
        return getattr(self.module, self.name)(*inputs)


class EncoderFromBytes(nn.Module):
    """The encoder, for uint8 pixels (B, 3 x 8 x 8, H/8, W/8) from `space_to_depth`."""

    def __init__(self, encoder: Encoder) -> None:
        super().__init__()
        side = CELL // PATCH
        self.linear = nn.Conv2d(3 * PATCH**2, len(encoder.linear.weight), side, side)
        self.linear.weight.data = torch.from_numpy(space_to_depth(encoder.linear.weight.detach().numpy()))
        self.linear.bias = encoder.linear.bias
        self.requires_grad_(False)
        self.module = encoder

    def forward(self, pixels: Tensor) -> Tensor:
        x = pixels.float() * (1 / HALF) - 1
        return self.linear(x) + self.module.correction[1:](x)


class PixelsToBytes(Method):
    """`Decoder.pixels` or `textured` with uint8 output (B, 3, H, W)."""

    def forward(self, *inputs: Tensor) -> Tensor:
        x = super().forward(*inputs)
        return (x * HALF + HALF).round().clamp(0, 255).to(torch.uint8)


def _template_of(graph: Graph, config: NetworkConfig) -> tuple[str, str]:
    """The name of a graph's template, and the prefix of its weight names, before the module's parameter names."""
    module, _, part = graph.name.partition(".")
    if graph.level is None:
        return graph.name, f"{module}."
    return graph_name(part, config.levels[graph.level]), "" if isinstance(graph.module, Method) else f"{part}."


@torch.inference_mode()
def trace(graph: Graph) -> Any:
    """The ModelProto of a graph, with weights in float32."""
    with _quiet():
        program = torch.onnx.export(
            graph.module.eval(),
            graph.examples(2, TRACED_BLOCKS),
            dynamo=True,
            opset_version=OPSET,
            dynamic_shapes=(graph.free_axes(),) if isinstance(graph.module, Method) else graph.free_axes(),
            input_names=list(graph.inputs),
            output_names=list(graph.outputs),
            verbose=False,
        )
    assert program is not None
    return program.model_proto


@contextmanager
def _quiet() -> Iterator[None]:
    """Silences the exporter, which reports for every graph that torchvision is missing, and warns about its own imports."""
    log = logging.getLogger("torch.onnx")
    before = log.level
    log.setLevel(logging.ERROR)
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            yield
    finally:
        log.setLevel(before)


def _with_half_weights(proto: Any) -> Any:
    """The graph with its weights in fp16, if this is exact. A Cast follows each weight; runtimes compute it once."""
    from onnx import TensorProto, helper, numpy_helper

    graph, casts = proto.graph, []
    for weight in graph.initializer:
        values = numpy_helper.to_array(weight)
        if values.dtype == np.float32 and values.size > SMALL and np.array_equal(half := values.astype(np.float16), values):
            casts.append(helper.make_node("Cast", [f"{weight.name}.half"], [weight.name], to=TensorProto.FLOAT))
            weight.CopyFrom(numpy_helper.from_array(half, f"{weight.name}.half"))
    nodes = list(graph.node)
    del graph.node[:]
    graph.node.extend([*casts, *nodes])
    return _without_notes(proto)


def _without_weights(proto: Any, parameters: Mapping[str, Tensor], prefix: str) -> tuple[bytes, list[str]]:
    """The graph with its weights as external initializers, and the names of the weights in the model file: `prefix` and the
    parameter names of the module, without the prefixes of wrapper modules."""
    from onnx import TensorProto, numpy_helper

    names = []
    for weight in proto.graph.initializer:
        values = numpy_helper.to_array(weight)
        if weight.name not in parameters:
            if values.size > SMALL:  # the exporter changed this weight, so the graph would store it
                msg = f"graph: {weight.name} of shape {values.shape} does not match any array in the model file"
                raise ModelError(msg)
            continue
        assert np.array_equal(values, parameters[weight.name].numpy())
        names.append(prefix + re.sub(r"^(module\.)+", "", weight.name))
        for node in proto.graph.node:
            for i, name in enumerate(node.input):
                if name == weight.name:
                    node.input[i] = names[-1]
        empty = TensorProto(name=names[-1], data_type=weight.data_type, dims=weight.dims, data_location=TensorProto.EXTERNAL)
        empty.external_data.add(key="location", value="model")
        weight.CopyFrom(empty)
    return _without_notes(proto).SerializeToString(), names


def _without_notes(proto: Any) -> Any:
    """The graph without the exporter's notes on the traced program."""
    graph = proto.graph
    del graph.value_info[:], proto.metadata_props[:], graph.metadata_props[:]
    for entry in (*graph.node, *graph.input, *graph.output, *graph.initializer):
        entry.doc_string = ""
        del entry.metadata_props[:]
    return proto


def _check(graph: Graph, session: Any) -> None:
    """Raises ModelError unless ONNX Runtime computes the same as torch, on a canvas of another size than in tracing."""
    inputs = graph.examples(1, CHECKED_BLOCKS)
    with torch.inference_mode():
        expected = graph.module(*inputs)
    expected = expected if isinstance(expected, tuple) else (expected,)
    outputs = session.run(list(graph.outputs), dict(zip(graph.inputs, (value.numpy() for value in inputs), strict=True)))
    for name, wanted, output in zip(graph.outputs, expected, outputs, strict=True):
        error = float(np.abs(wanted.numpy() - output).max()) / max(1.0, float(wanted.abs().max()))
        if not error <= TOLERANCE:
            msg = f"{graph.name}: {name} differs by {error:.1e} of its largest value between torch and ONNX Runtime"
            raise ModelError(msg)


def _write_entropy_model(model: PyramidModel, path: Path, graphs: list[Path]) -> None:
    """Writes the entropy model, which has no graph, and all metadata."""
    model.verify()
    arrays = {name: array for name, array in load_file(model.path).items() if name.startswith("prior.")}
    config = model.config
    metadata = model.metadata | {
        "exported": model.digest,
        "graphs": {graph.name: hashlib.sha256(graph.read_bytes()).hexdigest() for graph in graphs},
        "reach": {"encoder": config.encoder_radius, "decoder": config.decoder_radius, "pixels": config.pixel_radius},
        "digest": digest_of(arrays, arrays.__getitem__),
    }
    path.write_bytes(save(arrays, {"tessera": json.dumps(metadata)}))
