"""Coding without torch, as in a plain installation: all but CUDA, effort above 3, LPIPS, training and other families.

The subprocesses here cannot import torch, so these tests hold whether or not it is installed."""

from __future__ import annotations

import json
import os
import shutil
import subprocess
import sys
from pathlib import Path
from zipfile import ZipFile

import numpy as np
import pytest
from PIL import Image

from codec.errors import ModelError
from codec.models.registry import BUNDLED, open_model
from codec.pyramid.runtime.graph_templates import INDEX, SUFFIX
from tests.helpers import PHOTO, ROOT

pytestmark = pytest.mark.light
BLOCK_TORCH = "import sys; sys.modules['torch'] = None\n"  # makes its import fail
INSTALL = "pip install 'tessera-codec[torch]'"


def run_python(code: str, *arguments: object) -> subprocess.CompletedProcess[str]:
    command = [sys.executable, "-c", BLOCK_TORCH + code, *map(str, arguments)]
    return subprocess.run(command, cwd=ROOT, capture_output=True, text=True, check=False)


def run_command(*arguments: object) -> subprocess.CompletedProcess[str]:
    return run_python("from cli.main import main; main(prog_name='tessera')", *arguments)


@pytest.fixture(scope="module")
def folder(tmp_path_factory, photo) -> Path:
    """Images in a folder and its subfolder."""
    folder = tmp_path_factory.mktemp("images")
    (folder / "below").mkdir()
    for name, side in (("a.png", 90), ("b.png", 257), ("below/c.png", 1)):
        photo.resize((side, side)).save(folder / name)
    return folder


def test_folders_are_encoded_and_decoded(folder, tmp_path):
    small, back = tmp_path / "small", tmp_path / "back"
    encoding = run_command("encode", "-r", folder, "--output-dir", small, "--target-size", 900, "--quiet")
    assert (encoding.returncode, encoding.stderr) == (0, "")
    assert sorted(path.relative_to(small).as_posix() for path in small.rglob("*.tsr")) == ["a.tsr", "b.tsr", "below/c.tsr"]
    assert all(path.stat().st_size <= 900 for path in small.rglob("*.tsr"))
    decoding = run_command("decode", "-r", small, "--output-dir", back, "--quiet")
    assert (decoding.returncode, decoding.stderr) == (0, "")
    for name in ("a.png", "b.png", "below/c.png"):
        with Image.open(folder / name) as before, Image.open(back / name) as after:
            error = np.asarray(before).astype(float) - np.asarray(after)
            assert np.sqrt(np.square(error).mean()) < 40


def test_python_and_pillow():
    code = f"""
import io
import numpy as np
from PIL import Image
import tessera, tessera.pillow
photo = Image.open({str(PHOTO)!r}).convert("RGB").crop((100, 100, 400, 300))
data = tessera.encode(photo, target_bpp=0.1)
assert len(data) <= 0.1 * 300 * 200 / 8
decoded = np.asarray(tessera.decode(data)).astype(int)
assert np.array_equal(np.asarray(Image.open(io.BytesIO(data))), decoded)
assert np.abs(decoded - np.asarray(photo)).mean() < 25
assert len(tessera.encode(photo, target_psnr=20)) < len(tessera.encode(photo, target_psnr=24))
with tessera.Codec(tile=256) as tiled:
    assert np.abs(np.asarray(tiled.decode(data).image).astype(int) - decoded).max() <= 1
"""
    process = run_python(code)
    assert process.returncode == 0, process.stderr


@pytest.mark.parametrize(
    ("options", "exit_code", "remedy"),
    [
        (["--runtime", "torch"], 1, INSTALL),
        (["--effort", "5"], 1, INSTALL),
        (["--device", "cuda"], 2, INSTALL),
        (["--effort", "5", "--runtime", "onnx"], 2, "--runtime"),
        (["--device", "cuda", "--runtime", "onnx"], 2, INSTALL),
        (["--target-lpips", "0.4"], 1, INSTALL),
    ],
)
def test_options_that_need_torch_name_it(folder, tmp_path, options, exit_code, remedy):
    process = run_command("encode", folder / "a.png", "-o", tmp_path / "a.tsr", *options)
    assert process.returncode == exit_code
    assert "torch" in process.stderr
    assert remedy in process.stderr
    assert "Traceback" not in process.stderr
    assert not (tmp_path / "a.tsr").exists()


@pytest.mark.parametrize(
    "command",
    [
        ["train", str(PHOTO), "--steps", "1"],
        ["models", "import", str(PHOTO)],
        ["models", "fetch", "lpips"],
        ["models", "graphs"],
    ],
)
def test_commands_that_need_torch_name_it(command):
    process = run_command(*command)
    assert process.returncode == 1
    assert process.stderr.endswith(f"{INSTALL}\n")
    assert "Traceback" not in process.stderr


def test_a_model_without_graphs_names_the_command_that_makes_them(folder, tmp_path):
    shutil.copy(BUNDLED / "standard.safetensors", tmp_path / "mine.safetensors")
    process = run_command("encode", folder / "a.png", "-o", tmp_path / "a.tsr", "--model", tmp_path / "mine.safetensors")
    assert process.returncode == 1
    assert f"tessera models graphs {tmp_path}/mine.safetensors" in process.stderr
    assert INSTALL in process.stderr


def test_damaged_files_are_refused():
    data = bytearray((ROOT / "tests" / "golden" / "block-tiny.tsr").read_bytes())
    data[-1] ^= 1
    code = "import sys, tessera\ntry: tessera.decode(bytes.fromhex(sys.argv[1]))\nexcept tessera.FormatError: sys.exit(7)"
    process = run_python(code, data.hex())
    assert process.returncode == 7, process.stderr


@pytest.mark.parametrize("damaged", [True, False])
def test_graphs_of_another_network_are_refused(tmp_path, damaged):
    shutil.copy(BUNDLED / "standard.safetensors", tmp_path / "mine.safetensors")
    graphs = tmp_path / f"mine{SUFFIX}"
    if damaged:
        graphs.write_bytes(b"no zip file")
    else:
        write_graphs_of_another_shape(graphs)
    with pytest.raises(ModelError, match="tessera models graphs"):
        open_model(tmp_path / "mine.safetensors").tokenizer("onnx", "cpu")


def write_graphs_of_another_shape(path: Path) -> None:
    """Writes the bundled model's graphs, with the index of a network that has more channels."""
    with ZipFile(BUNDLED / f"standard{SUFFIX}") as bundled, ZipFile(path, "w") as changed:
        for name in bundled.namelist():
            content = bundled.read(name)
            if name == INDEX:
                index = json.loads(content)
                index["network"]["channels"] += 1
                content = json.dumps(index).encode()
            changed.writestr(name, content)


def test_nothing_is_stored_in_the_home_folder_and_nothing_is_sent(folder, tmp_path):
    home, calls = tmp_path / "home", tmp_path / "calls"
    home.mkdir()
    calls.write_text("")
    command = [sys.executable, "-m", "cli", "encode", str(folder / "a.png"), "-o", str(tmp_path / "a.tsr")]
    if strace := shutil.which("strace"):
        command = [strace, "-f", "-qq", "-e", "trace=connect,sendto,sendmsg", "-o", str(calls), *command]
    variables = {"HOME": str(home), "PATH": os.environ["PATH"]}
    outcome = subprocess.run(command, cwd=ROOT, env=variables, capture_output=True, text=True, check=False)
    assert outcome.returncode == 0
    assert len(outcome.stderr.splitlines()) == 1, outcome.stderr
    assert list(home.rglob("*")) == []
    assert "AF_INET" not in calls.read_text()


NO_HOME = """
import os, pwd
os.environ.pop("HOME", None)
os.environ.pop("XDG_DATA_HOME", None)
os.environ.pop("XDG_CACHE_HOME", None)
def no_entry(uid):
    raise KeyError(uid)
pwd.getpwuid = no_entry
"""


@pytest.mark.skipif(os.name == "nt", reason="Windows always has a home folder")
@pytest.mark.parametrize("arguments", [["--version"], ["models", "list"], ["encode"], ["info"]], ids=lambda a: a[0])
def test_a_user_without_a_home_folder_has_no_installed_models_and_nothing_else_is_missing(folder, tmp_path, arguments):
    code = f"{NO_HOME}from cli.main import main; main(prog_name='tessera')"
    files = {
        "encode": [folder / "a.png", "-o", tmp_path / "a.tsr"],
        "info": [ROOT / "tests" / "golden" / "pixel.tsr"],
    }
    command = [sys.executable, "-c", code, *arguments, *files.get(arguments[0], [])]
    outcome = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, check=False)
    assert outcome.returncode == 0, outcome.stderr
    assert "Traceback" not in outcome.stderr


def test_a_home_folder_that_cannot_be_read_has_no_models():
    too_long = "/" + 300 * "x"  # an error for the superuser too, unlike a lack of permissions
    variables = {**os.environ, "XDG_DATA_HOME": too_long}
    command = [sys.executable, "-m", "cli", "models", "list"]
    outcome = subprocess.run(command, cwd=ROOT, env=variables, capture_output=True, text=True, check=False)
    assert (outcome.returncode, outcome.stderr) == (0, "")


def test_without_a_home_folder_installing_is_refused_on_one_line(folder):
    outcome = run_python(f"{NO_HOME}from cli.main import main; main(prog_name='tessera')", "models", "remove", "any")
    assert (outcome.returncode, len(outcome.stderr.splitlines())) == (1, 1)
