"""What the documents say is what happens: README commands run, and its tables are the code's."""

from __future__ import annotations

import json
import os
import re
import subprocess
import sys
from pathlib import Path

import click
import pytest
from PIL import Image

from benchmarks.tools.tables import delta_table, rate_table
from bitstream.pyramid_tokens import QUALITY_STOPS
from cli.main import main
from codec.models.registry import open_model
from codec.pyramid.config import NetworkConfig
from codec.pyramid.network import Network
from codec.rate_control import block_tokens_of_quality
from tests.helpers import PHOTO, ROOT

README = (ROOT / "README.md").read_text()
LIMIT_MACS = 60_000  # a pixel, encode and decode together
LIMIT_PARAMETERS = 24_000_000
LIMIT_BYTES = 25_000_000


def block(language: str) -> str:
    return re.search(rf"```{language}\n(.*?)```", README, re.DOTALL)[1]


@pytest.fixture
def folder(tmp_path) -> Path:
    """A folder with photo.png, and a `tessera` on the path."""
    with Image.open(PHOTO) as photo:
        photo.convert("RGB").resize((300, 200)).save(tmp_path / "photo.png")
    (tmp_path / "bin").mkdir()
    tool = tmp_path / "bin" / "tessera"
    tool.write_text(f'#!/bin/sh\nPYTHONPATH="{ROOT}" exec "{sys.executable}" -m cli "$@"\n')
    tool.chmod(0o755)
    return tmp_path


def test_shell_commands_run(folder):
    environment = {**os.environ, "PATH": f"{folder / 'bin'}:{os.environ['PATH']}"}
    done = subprocess.run(
        ["bash", "-euo", "pipefail", "-c", block("sh")],
        cwd=folder,
        env=environment,
        capture_output=True,
        text=True,
        check=False,
    )
    assert done.returncode == 0, done.stderr
    assert {path.name for path in folder.iterdir()} == {
        "bin", "photo.png", "photo.tsr", "small.tsr", "small.png", "again.png", "preview.png", "small.npz",
    }  # fmt: skip
    assert (folder / "small.tsr").stat().st_size <= 2000
    for name in ("small.png", "again.png", "preview.png"):
        with Image.open(folder / name) as image:
            assert image.size == (300, 200)


def test_the_first_commands_run_as_they_stand_after_set_up(folder):
    head = "\n".join(README.splitlines()[:30])
    commands = re.findall(r"^\.venv/bin/tessera .*$", head, re.MULTILINE)
    assert len(commands) == 3
    assert "**Good at**" in head and "**Bad at**" in head
    (folder / ".venv").mkdir()
    (folder / "bin").rename(folder / ".venv" / "bin")
    (folder / "docs").mkdir()
    (folder / "docs" / PHOTO.name).write_bytes(PHOTO.read_bytes())
    done = subprocess.run(["bash", "-euc", "\n".join(commands)], cwd=folder, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    assert (folder / "small.tsr").stat().st_size <= 2000
    with Image.open(folder / "small.png") as decoded, Image.open(PHOTO) as photo:
        assert decoded.size == photo.size


def test_python_example_runs(folder, monkeypatch):
    monkeypatch.chdir(folder)
    names: dict = {}
    exec(block("python"), names)
    assert names["image"].size == (300, 200)
    assert 8 * len(names["blobs"][0]) / 60000 <= 0.04


def test_make_targets_that_the_readme_names_exist():
    makefile = (ROOT / "Makefile").read_text()
    for target in set(re.findall(r"^make (\w+)", README, re.MULTILINE)):
        assert re.search(rf"^{target}:", makefile, re.MULTILINE), target
    assert "make test" in (ROOT / ".ci" / "run").read_text()


def test_quality_table_is_the_codes():
    rows = [line.strip("|").split("|") for line in README.splitlines() if line.startswith(("| quality", "| tokens per 256"))]
    table = list(zip(*([int(cell) for cell in row[1:]] for row in rows), strict=True))
    assert table == [(quality, round(block_tokens_of_quality(open_model().code, quality))) for quality, _ in table]
    assert {quality for quality, _ in table} >= {quality for quality, _ in QUALITY_STOPS}


def options_of(command: click.Command) -> set[str]:
    """Those of a command and of all below it."""
    below = command.commands.values() if isinstance(command, click.Group) else ()
    own = {option for parameter in command.params for option in parameter.opts}
    return own.union(*(options_of(child) for child in below))


def test_flags_that_the_readme_uses_exist():
    known = options_of(main)
    fenced = re.findall(r"^```(\w*)\n(.*?)^```", README, re.DOTALL | re.MULTILINE)
    text = "\n".join(block for language, block in fenced if language in ("", "sh"))
    text = re.sub(r"^ray .*", "", text, flags=re.MULTILINE)  # Ray's own command
    for flag in set(re.findall(r"(?<=\s)--?[a-z][a-z-]*", text)) - {"-c"}:
        assert flag in known, flag


def test_format_table_is_the_models():
    text = (ROOT / "FORMAT.md").read_text()
    rows = re.findall(r"^\| (\d+) \| (\d+) \| (\d) \| (\d+) \| (\d+) \|$", text, re.MULTILINE)
    levels = open_model().config.levels
    assert [tuple(map(int, row)) for row in rows] == [(i, o.side, o.part, o.digits, o.limit) for i, o in enumerate(levels)]


def test_the_model_stays_within_its_limits():
    model = open_model()
    network = Network(NetworkConfig.from_dict(model.metadata["network"]))
    assert sum(p.numel() for p in network.parameters()) <= LIMIT_PARAMETERS
    assert macs_per_pixel(network) <= LIMIT_MACS
    assert model.path.stat().st_size <= LIMIT_BYTES


def macs_per_pixel(network: Network) -> float:
    """Multiply-accumulates per pixel of one encode and one decode, for a block; levels are counted in both."""
    import torch
    from torch import nn

    from codec.pyramid.runtime.torch_backend import TorchBackend
    from codec.pyramid.tokenizer import dequantize, quantize

    total = 0

    def count(layer: nn.Module, inputs: tuple, output: torch.Tensor) -> None:
        nonlocal total
        places = (inputs[0] if isinstance(layer, nn.ConvTranspose2d) else output).shape
        total += places[2] * places[3] * layer.weight.numel()

    for layer in network.modules():
        if isinstance(layer, (nn.Conv2d, nn.ConvTranspose2d)):
            layer.register_forward_hook(count)
    code = open_model().code
    layout = code.layout(256, 256)
    with torch.inference_mode():
        (sequence,) = quantize(TorchBackend(network), code, [layout], network.encoder(torch.zeros(1, 3, 256, 256)))
        network.decoder(*dequantize(TorchBackend(network), [sequence.first(layout.tokens)]))
    assert total > 0
    return total / 65536


@pytest.mark.parametrize("name", ["README.md", "MODEL.md"])
def test_tables_of_quality_are_those_of_the_benchmark(name):
    text = (ROOT / name).read_text()
    folder = ROOT / "benchmarks" / "results" / "kodak"
    for table in (rate_table(folder), delta_table(folder)):
        assert "\n".join(table) in text


def test_the_benchmark_is_of_the_shipped_model():
    study = json.loads((ROOT / "benchmarks" / "results" / "kodak" / "tessera.json").read_text())
    assert open_model().metadata["fingerprint"][:16] in study["description"]
