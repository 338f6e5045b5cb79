"""Graph templates: the graphs of a pyramid's network without its weights, in a zip file beside the model file. No torch.

    encoder.onnx                pixels (B, 3 x 8 x 8, 2h, 2w) uint8, from `space_to_depth` -> latents (B, C, h, w)
    predict.onnx                latents, known -> predicted
    analyse-SIDE-DIGITS.onnx    residual -> raw
    update-SIDE-DIGITS.onnx     latents, known, predicted, digits, keep -> latents, known
    decoder.features.onnx       latents, known -> features (B, F, h, w)
    decoder.pixels.onnx         latents, features -> pixels (B, 3, 16h, 16w) uint8
    decoder.textured.onnx       latents, features, detail (1,), noise -> pixels (B, 3, 16h, 16w) uint8, if there is texture;
                                `noise` is as in `codec.pyramid.noise.texture_noise`

`index.json` holds the part of the configuration that the graphs depend on, and for each graph the names of the arrays that it
takes from a model file, in float32, as external initializers. Names of a level's arrays lack the prefix `levels.I.`, so levels
of one shape share a graph. The weights themselves are in the model file alone. These files are written by
`codec.pyramid.runtime.onnx_export.write_graph_templates`.
"""

from __future__ import annotations

import json
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any
from zipfile import ZIP_DEFLATED, ZIP_STORED, ZipFile

from numpy.typing import NDArray

from bitstream.pyramid_tokens import Level
from codec.errors import ModelError
from codec.pyramid.config import NetworkConfig

SUFFIX = ".graphs.zip"
INDEX = "index.json"
PATCH = 8  # side in pixels of the patches that become channels in the input of the encoder graph
COMMAND = "tessera models graphs"  # writes graph templates
ZIP_MAX, INDEX_MAX, GRAPHS_MAX = 1 << 23, 1 << 20, 1 << 24  # bytes of the file, and unpacked: a hundred times what graphs take
PACKINGS = (ZIP_STORED, ZIP_DEFLATED)  # zipfile unpacks others without a limit
NOT_IN_GRAPHS = ("steps", "bit_worth", "prior_width", "prior_kernels", "detail")  # fields without effect on the graphs


@dataclass(frozen=True)
class GraphTemplates:
    """The graphs of one configuration."""

    graphs: dict[str, bytes]  # ONNX files by graph name
    weight_names: dict[str, tuple[str, ...]]  # arrays that each graph takes, by its name


def graph_templates_path(model: Path) -> Path:
    return model.with_suffix(SUFFIX)


def graph_name(part: str, level: Level) -> str:
    """The graph of a level's part: 'predict', 'analyse' or 'update'."""
    return part if part == "predict" else f"{part}-{level.side}-{level.digits}"


def graph_shape(config: NetworkConfig) -> dict:
    """The part of the configuration that the graphs depend on, as plain data."""
    fields = {name: value for name, value in asdict(config).items() if name not in NOT_IN_GRAPHS}
    return fields | {"levels": [[level.side, level.digits] for level in config.levels], "side": PATCH}


def space_to_depth(array: NDArray[Any]) -> NDArray[Any]:
    """(B, 3, H, W) -> (B, 3 x 8 x 8, H/8, W/8): the pixels of a patch become channels.

    NumPy reorders bytes far faster than ONNX Runtime reorders floats. With its kernel (C, 3, 16, 16) reordered in the same
    way, the encoder's linear transform has a kernel of 2x2."""
    count, channels, height, width = array.shape
    split = array.reshape(count, channels, height // PATCH, PATCH, width // PATCH, PATCH).transpose(0, 1, 3, 5, 2, 4)
    return split.reshape(count, channels * PATCH**2, height // PATCH, width // PATCH)


def read_graph_templates(path: Path, config: NetworkConfig) -> GraphTemplates:
    """Raises ModelError if the file cannot be read, or if its graphs are for another configuration."""
    try:
        if path.stat().st_size > ZIP_MAX:
            msg = f"more than {ZIP_MAX:,} bytes"
            raise ValueError(msg)
        with ZipFile(path) as file:
            index = json.loads(_read_entry(file, INDEX, INDEX_MAX))
            weight_names = {name: tuple(names) for name, names in index["weights"].items()}
            graphs: dict[str, bytes] = {}
            left = GRAPHS_MAX
            for name in weight_names:
                graphs[name] = _read_entry(file, f"{name}.onnx", left)
                left -= len(graphs[name])
            shape = index["network"]
    except Exception as error:  # readers of zip and JSON raise errors of many types
        msg = f"not graphs of a model ({type(error).__name__}: {error}): write them with `{COMMAND}`"
        raise ModelError(msg, file=path) from error
    if shape != json.loads(json.dumps(graph_shape(config))):
        msg = f"its graphs do not fit the model file's network: write them again with `{COMMAND}`"
        raise ModelError(msg, file=path)
    return GraphTemplates(graphs, weight_names)


def _read_entry(file: ZipFile, name: str, limit: int) -> bytes:
    """Raises ValueError if the entry has more than `limit` bytes."""
    entry = file.getinfo(name)
    if entry.file_size > limit or entry.compress_type not in PACKINGS:
        msg = f"{name} unpacks to {entry.file_size:,} bytes by method {entry.compress_type}"
        raise ValueError(msg)
    with file.open(entry) as stream:  # without a size, zipfile unpacks more than the entry states
        return stream.read(entry.file_size + 1)
