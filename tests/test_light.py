"""Coding without torch, as a plain installation does: everything but CUDA, effort above 3, LPIPS, training and other families.

Processes here find no torch, whether or not it is installed, so that these tests hold with and without it."""

from __future__ import annotations

import shutil
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from codec.errors import ModelError
from codec.models.registry import BUNDLED
from codec.pyramid.runtime.graph_templates import SUFFIX
from tests.helpers import PHOTO, ROOT

pytestmark = pytest.mark.light
WITHOUT = "import sys; sys.modules['torch'] = None\n"  # importing it fails


def python(code: str, *arguments: object) -> subprocess.CompletedProcess[str]:
    command = [sys.executable, "-c", WITHOUT + code, *map(str, arguments)]
    return subprocess.run(command, cwd=ROOT, capture_output=True, text=True, check=False)


def tessera(*arguments: object) -> subprocess.CompletedProcess[str]:
    return python("from cli.main import main; main(prog_name='tessera')", *arguments)


@pytest.fixture(scope="module")
def folder(tmp_path_factory, photo) -> Path:
    """Images in a folder and one below it."""
    place = tmp_path_factory.mktemp("images")
    (place / "below").mkdir()
    for name, side in (("a.png", 90), ("b.png", 257), ("below/c.png", 1)):
        photo.resize((side, side)).save(place / name)
    return place


def test_folders_there_and_back(folder, tmp_path):
    done = tessera("encode", "-r", folder, "--output-dir", tmp_path / "small", "--target-size", 900, "--quiet")
    assert (done.returncode, done.stderr) == (0, "")
    made = sorted(path.relative_to(tmp_path / "small").as_posix() for path in (tmp_path / "small").rglob("*.tsr"))
    assert made == ["a.tsr", "b.tsr", "below/c.tsr"]
    assert all(path.stat().st_size <= 900 for path in (tmp_path / "small").rglob("*.tsr"))
    done = tessera("decode", "-r", tmp_path / "small", "--output-dir", tmp_path / "back", "--quiet")
    assert (done.returncode, done.stderr) == (0, "")
    for name in ("a.png", "b.png", "below/c.png"):
        with Image.open(folder / name) as before, Image.open(tmp_path / "back" / name) as after:
            error = np.asarray(before).astype(float) - np.asarray(after)
            assert np.sqrt(np.square(error).mean()) < 40


def test_python_and_pillow(tmp_path):
    code = f"""
import io
import numpy as np
from PIL import Image
import codec, codec.pillow
photo = Image.open({str(PHOTO)!r}).convert("RGB")
data = codec.encode(photo, target_bpp=0.1)
assert len(data) <= 0.1 * 600 * 400 / 8
drawn = np.asarray(codec.decode(data)).astype(int)
assert np.array_equal(np.asarray(Image.open(io.BytesIO(data))), drawn)
assert np.abs(drawn - np.asarray(photo)).mean() < 25
assert len(codec.encode(photo, target_psnr=20)) < len(codec.encode(photo, target_psnr=24))
with codec.Codec(tile=256) as tiled:
    assert np.abs(np.asarray(tiled.decode(data)).astype(int) - drawn).max() <= 1
"""
    done = python(code)
    assert done.returncode == 0, done.stderr


@pytest.mark.parametrize(
    ("options", "said"),
    [
        (["--runtime", "torch"], "torch is not installed: pip install 'tessera-codec[torch]'"),
        (["--effort", "5"], "torch is not installed; effort above 3 needs torch: pip install 'tessera-codec[torch]'"),
        (["--device", "cuda"], "device 'cuda' needs torch, which is not installed: pip install 'tessera-codec[torch]'"),
        (["--effort", "5", "--runtime", "onnx"], "runtime onnx cannot do it: effort above 3 needs torch"),
        (["--device", "cuda", "--runtime", "onnx"], "needs torch"),
        (["--target-lpips", "0.4"], "LPIPS needs torch, which is not installed: pip install 'tessera-codec[torch]'"),
    ],
)
def test_what_needs_torch_says_so(folder, tmp_path, options, said):
    done = tessera("encode", folder / "a.png", "-o", tmp_path / "a.tsr", *options)
    assert done.returncode in (1, 2)
    assert said in done.stderr
    assert "Traceback" not in done.stderr
    assert not (tmp_path / "a.tsr").exists()


@pytest.mark.parametrize(
    ("command", "said"),
    [
        (["train", str(PHOTO), "--steps", "1"], "train"),
        (["models", "import", str(PHOTO)], "importing a model"),
        (["models", "fetch", "lpips"], "LPIPS"),
        (["models", "graphs"], "making graphs"),
    ],
)
def test_commands_that_need_torch_say_so(command, said):
    done = tessera(*command)
    assert done.returncode == 1
    assert f"{said} needs torch, which is not installed: pip install 'tessera-codec[torch]'\n" in done.stderr
    assert "Traceback" not in done.stderr


def test_a_model_without_graphs_says_how_to_make_them(folder, tmp_path):
    shutil.copy(BUNDLED / "standard.safetensors", tmp_path / "mine.safetensors")
    done = tessera("encode", folder / "a.png", "-o", tmp_path / "a.tsr", "--model", tmp_path / "mine.safetensors")
    assert done.returncode == 1
    assert f"`tessera models graphs {tmp_path}/mine.safetensors` makes them" in done.stderr
    assert "pip install 'tessera-codec[torch]'" in done.stderr


def test_damaged_files_are_refused(codec):
    data = bytearray((ROOT / "tests" / "golden" / "block-tiny.tsr").read_bytes())
    data[-1] ^= 1
    code = "import sys, codec\ntry: codec.decode(bytes.fromhex(sys.argv[1]))\nexcept codec.FormatError: sys.exit(7)"
    done = python(code, data.hex())
    assert done.returncode == 7, done.stderr


@pytest.mark.parametrize("content", [b"no zip file", None])
def test_graphs_of_another_network_are_refused(tmp_path, content):
    from codec.models.registry import open_model

    shutil.copy(BUNDLED / "standard.safetensors", tmp_path / "mine.safetensors")
    graphs = tmp_path / f"mine{SUFFIX}"
    if content is None:
        other_shape(graphs)
    else:
        graphs.write_bytes(content)
    with pytest.raises(ModelError, match="tessera models graphs"):
        open_model(tmp_path / "mine.safetensors").tokenizer("onnx", "cpu")


def other_shape(path: Path) -> None:
    """The bundled model's graphs, said to be of a network with more channels."""
    import json
    from zipfile import ZipFile

    with ZipFile(BUNDLED / f"standard{SUFFIX}") as old, ZipFile(path, "w") as new:
        for name in old.namelist():
            content = old.read(name)
            if name == "index.json":
                index = json.loads(content)
                index["network"]["channels"] += 1
                content = json.dumps(index).encode()
            new.writestr(name, content)
