"""Builds the viewer into a folder that can be put on any web host: `make viewer`.

    python docs/viewer/build.py FOLDER ONNXRUNTIME_WEB

The folder gets the page and its modules, the wasm build of ONNX Runtime from its npm package, the decoder graphs of all bundled
models, and an example. Existing graphs of the same model are kept, because their export takes a minute.
"""

from __future__ import annotations

import json
import shutil
import sys
from pathlib import Path

from codec.codec import Codec
from codec.models.registry import BUNDLED, open_model
from codec.pyramid.model import PyramidModel, as_pyramid
from codec.pyramid.runtime.onnx_export import MODEL_FILE, export

HERE = Path(__file__).parent
PHOTO = HERE.parent / "photo.webp"
EXAMPLE_BYTES = 10_000
RUNTIME = ("ort.wasm.min.mjs", "ort-wasm-simd-threaded.mjs", "ort-wasm-simd-threaded.wasm")


def main(folder: Path, runtime: Path) -> None:
    (folder / "runtime").mkdir(parents=True, exist_ok=True)
    for source in (*HERE.glob("*.html"), *HERE.glob("*.js"), *HERE.glob("*.css")):
        shutil.copy(source, folder)
    for name in RUNTIME:
        shutil.copy(runtime / "dist" / name, folder / "runtime")
    models = {path.stem: as_pyramid(open_model(path)) for path in sorted(BUNDLED.glob("*.safetensors"))}
    for model in models.values():
        add_graphs(model, folder / "models" / model.stream_id.hex())
    names = {model.stream_id.hex(): name for name, model in models.items()}
    (folder / "models" / "index.json").write_text(json.dumps(names))
    shutil.copy(PHOTO, folder / "example.webp")
    (folder / "example.tsr").write_bytes(Codec(device="cpu").encode(PHOTO, target_size=EXAMPLE_BYTES).data)
    megabytes = sum(path.stat().st_size for path in folder.rglob("*") if path.is_file()) / 1e6
    sys.stderr.write(f"{folder}: {megabytes:.1f} MB\n")


def add_graphs(model: PyramidModel, folder: Path) -> None:
    if (folder / MODEL_FILE).exists() and open_model(folder / MODEL_FILE).metadata["exported"] == model.digest:
        return
    shutil.rmtree(folder, ignore_errors=True)
    export(model, folder, encodes=False)


if __name__ == "__main__":
    main(*map(Path, sys.argv[1:]))
