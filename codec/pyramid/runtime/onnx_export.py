"""The network as ONNX graphs, for runtimes without torch: ONNX Runtime in Python, and in a web page.

A folder holds, for every level I, what `PyramidLevel` computes

    encoder.onnx             pixels (B, 3, 16h, 16w) in [-1, 1] -> latents (B, C, h, w)
    level-I.predict.onnx     latents, known -> predicted (B, C, h, w)
    level-I.analyse.onnx     residual (B, C, h, w) -> raw (B, D, n, m): digits before rounding
    level-I.update.onnx      latents, known, predicted, digits (B, D, n, m), keep (B, 1, n, m) -> latents, known
    decoder.features.onnx    latents, known (B, 1, h, w) -> features (B, F, h, w)
    decoder.pixels.onnx      latents, features -> pixels

and `model.safetensors`: the integer prior, under the names of a model file, and the model's metadata, with the SHA-256 of each
graph, the reach in cells of the encoder, of the decoder and of its second graph, and as `exported` the digest of the model
file. All axes but the channels are free; canvases are whole blocks, as everywhere. Weights are stored in fp16, as in the model
file, and computed with in float32. Each graph is checked against torch.
"""

from __future__ import annotations

import hashlib
import json
import logging
import warnings
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from safetensors.numpy import load_file, save
from torch import Tensor, nn
from torch.export import Dim

from bitstream.block_order import BLOCK_CELLS, CELL
from codec.errors import ModelError
from codec.models.base import Model, digest_of
from codec.models.pixels import HALF
from codec.pyramid.model import PyramidModel
from codec.pyramid.network import Network, PyramidLevel

OPSET = 20
TOLERANCE = 1e-4  # of the largest value: what float32 gives in another order of addition. Half a step of 255 is 4e-3
MODEL_FILE = "model.safetensors"
TRACED, CHECKED = (2, 3), (1, 2)  # blocks of the canvases that graphs are made and checked with
IMAGES, ROWS, COLUMNS = (Dim(name) for name in ("pictures", "rows", "columns"))


MADE: dict[str, Callable[[Tensor], Tensor]] = {  # how made-up inputs differ from normally distributed numbers
    "keep": lambda value: (value > 0).float(),
    "pixels": lambda value: value.clamp(-1, 1),
    "bytes": lambda value: (value.clamp(-1, 1) * HALF + HALF).to(torch.uint8),
}


class Method(nn.Module):
    """A method of a module as a module of its own."""

    def __init__(self, module: nn.Module, name: str) -> None:
        super().__init__()
        self.module, self.name = module, name

    def forward(self, *inputs: Tensor) -> Any:
        return getattr(self.module, self.name)(*inputs)


@dataclass(frozen=True)
class Graph:
    """One part of the network that becomes a file."""

    name: str
    module: nn.Module
    inputs: dict[str, tuple[int, int]]  # channels, and places along the side of a block
    outputs: tuple[str, ...]
    level: int | None = None  # whose part it is
    unit: int = BLOCK_CELLS  # places along the side of a block of which the inputs' are multiples
    decodes: bool = True  # whether decoding needs it

    def arguments(self, images: int, blocks: tuple[int, int]) -> tuple[Tensor, ...]:
        """Made-up inputs, the same in every run."""
        random = torch.Generator().manual_seed(0)
        made = []
        for name, (channels, side) in self.inputs.items():
            value = torch.randn(images, channels, blocks[0] * side, blocks[1] * side, generator=random)
            made.append(MADE[name](value) if name in MADE else value)
        return tuple(made)

    def axes(self) -> tuple[dict[int, Any], ...]:
        """Which axes of the inputs are free, and how their sizes hang together."""
        factors = [side // self.unit for _, side in self.inputs.values()]
        return tuple({0: IMAGES, 2: _times(ROWS, factor), 3: _times(COLUMNS, factor)} for factor in factors)


def _times(axis: Any, factor: int) -> Any:
    return axis if factor == 1 else factor * axis  # torch takes a product with 1 for another size


def graphs_of(network: Network) -> Iterator[Graph]:
    """All parts, in the order in which coding comes to them."""
    channels, cells = network.config.channels, BLOCK_CELLS
    state = {"latents": (channels, cells), "known": (1, cells)}
    yield Graph("encoder", network.encoder, {"pixels": (3, cells * CELL)}, ("latents",), decodes=False)
    for index, level in enumerate(network.levels):
        assert isinstance(level, PyramidLevel)
        name, side = f"level-{index}", level.level.side
        sent = {"predicted": (channels, cells), "digits": (level.level.digits, side), "keep": (1, side)}
        residual = {"residual": (channels, cells)}
        yield Graph(f"{name}.predict", level.predict, state, ("predicted",), index)
        yield Graph(f"{name}.analyse", Method(level, "analyse"), residual, ("raw",), index, side, decodes=False)
        yield Graph(f"{name}.update", Method(level, "update"), state | sent, ("refined", "more_known"), index, side)
    features = {"latents": (channels, cells), "features": (network.config.decoder_width16, cells)}
    yield Graph("decoder.features", Method(network.decoder, "features"), state, ("features",), unit=cells // 2)  # even: 1/32
    yield Graph("decoder.pixels", Method(network.decoder, "pixels"), features, ("pixels",))


def exported(model: Model) -> PyramidModel:
    """A model that has graphs. Raises ModelError for those of other families."""
    if not isinstance(model, PyramidModel):
        msg = f"{model.name}: only models of kind {PyramidModel.kind} are exported, not {model.kind}"
        raise ModelError(msg)
    return model


def export(model: PyramidModel, folder: Path, *, encodes: bool = True, step: Callable[[], None] = lambda: None) -> list[Path]:
    """Writes the graphs of a model and its `model.safetensors` into a folder that is not there yet, or is empty, and says which
    files they are. Without `encodes` those that only encoding needs are left out. Calls `step` after each graph; there are
    3 for each level, and 3.

    Raises ModelError where a package is missing, the folder holds something, or ONNX Runtime and torch disagree."""
    onnxruntime = packages()
    if folder.exists() and any(folder.iterdir()):
        msg = f"{folder} is not empty: name a new folder"
        raise ModelError(msg)
    folder.mkdir(parents=True, exist_ok=True)
    network = model.network(torch.device("cpu")).to(memory_format=torch.contiguous_format)  # type: ignore[call-overload]
    written = []
    for graph in graphs_of(network):
        if encodes or graph.decodes:
            content = _halved(traced(graph)).SerializeToString()
            _check(graph, onnxruntime.InferenceSession(content, providers=["CPUExecutionProvider"]))
            written.append(folder / f"{graph.name}.onnx")
            written[-1].write_bytes(content)
        step()
    decoder = network.decoder
    reach = {"encoder": network.encoder.reach, "decoder": decoder.reach, "pixels": decoder.pixel_reach}
    return [*written, _write_integers(model, folder / MODEL_FILE, written, reach)]


def packages() -> Any:
    """onnxruntime. Raises ModelError where that, or what torch's exporter needs, is missing."""
    try:
        import onnx  # noqa: F401
        import onnxruntime
        import onnxscript  # noqa: F401 (torch's exporter asks for it, late and in other words)
    except ModuleNotFoundError as error:
        msg = f"export needs {error.name}, which is not installed: pip install onnx onnxruntime onnxscript"
        raise ModelError(msg) from error
    return onnxruntime


@torch.inference_mode()
def traced(graph: Graph) -> Any:
    """The ModelProto of a graph, with weights in float32."""
    with _quiet():
        program = torch.onnx.export(
            graph.module.eval(),
            graph.arguments(2, TRACED),
            dynamo=True,
            opset_version=OPSET,
            dynamic_shapes=graph.axes() if not isinstance(graph.module, Method) else (graph.axes(),),
            input_names=list(graph.inputs),
            output_names=list(graph.outputs),
            verbose=False,
        )
    assert program is not None
    return program.model_proto


def _halved(proto: Any) -> Any:
    """The same graph with its weights in fp16, where that changes none, and a Cast behind each, which runtimes compute once;
    without the exporter's notes on the program that made it. The scales of a Resize, at most 4 numbers, stay as they are."""
    from onnx import TensorProto, helper, numpy_helper

    graph, casts = proto.graph, []
    for weight in graph.initializer:
        values = numpy_helper.to_array(weight)
        if values.dtype == np.float32 and values.size > 4 and np.array_equal(half := values.astype(np.float16), values):
            casts.append(helper.make_node("Cast", [f"{weight.name}.half"], [weight.name], to=TensorProto.FLOAT))
            weight.CopyFrom(numpy_helper.from_array(half, f"{weight.name}.half"))
    nodes = list(graph.node)
    del graph.node[:]
    graph.node.extend([*casts, *nodes])
    return plain(proto)


def plain(proto: Any) -> Any:
    """The same graph without the exporter's notes on the program that made it."""
    graph = proto.graph
    del graph.value_info[:], proto.metadata_props[:], graph.metadata_props[:]
    for part in (*graph.node, *graph.input, *graph.output, *graph.initializer):
        part.doc_string = ""
        del part.metadata_props[:]
    return proto


def _check(graph: Graph, session: Any) -> None:
    """Raises ModelError unless a runtime computes what torch does, on a canvas of another size than the graph was made with."""
    arguments = graph.arguments(1, CHECKED)
    with torch.inference_mode():
        expected = graph.module(*arguments)
    given = dict(zip(graph.inputs, (argument.numpy() for argument in arguments), strict=True))
    expected = expected if isinstance(expected, tuple) else (expected,)
    for name, mine, theirs in zip(graph.outputs, expected, session.run(list(graph.outputs), given), strict=True):
        error = float(np.abs(mine.numpy() - theirs).max()) / max(1.0, float(mine.abs().max()))
        if not error <= TOLERANCE:
            msg = f"{graph.name}: {name} differs by {error:.1e} of its largest value between torch and ONNX Runtime"
            raise ModelError(msg)


def _write_integers(model: Model, path: Path, graphs: list[Path], reach: dict[str, int]) -> Path:
    """The prior, which is no graph, and all that is said of the model."""
    model.verify()
    arrays = {name: array for name, array in load_file(model.path).items() if name.startswith("prior.")}
    digests = {graph.name: hashlib.sha256(graph.read_bytes()).hexdigest() for graph in graphs}
    plain = model.metadata | {"exported": model.digest, "graphs": digests, "reach": reach}
    plain["digest"] = digest_of(arrays, arrays.__getitem__)
    path.write_bytes(save(arrays, {"tessera": json.dumps(plain)}))
    return path


@contextmanager
def _quiet() -> Iterator[None]:
    """The exporter notes on every graph that torchvision is not there, and warns of its own imports."""
    log = logging.getLogger("torch.onnx")
    before = log.level
    log.setLevel(logging.ERROR)
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            yield
    finally:
        log.setLevel(before)
