"""The documentation: its commands run, its links lead somewhere, and its tables are those of the code and of the measurements.

After a change of `codec/options.py`, this writes the tables of options again:

    python -m tests.test_docs
"""

from __future__ import annotations

import json
import os
import re
import shlex
import subprocess
import sys
import tomllib
from collections import Counter
from collections.abc import Iterator
from dataclasses import fields
from importlib.util import find_spec
from pathlib import Path

import click
import pytest
import torch
from PIL import Image
from torch import nn

import tessera
from benchmarks.codecs.registry import BenchCodecOptions, open_codec
from benchmarks.tools.tables import COLOUR, MORE, RECOGNITION, delta_table, rate_table, short_table
from bitstream.pyramid_tokens import QUALITY_STOPS
from cli.main import main
from cli.manual import option_table
from codec import options
from codec.models.registry import open_model
from codec.pyramid.config import NetworkConfig
from codec.pyramid.network import Network
from codec.pyramid.noise import texture_noise
from codec.pyramid.runtime.torch_backend import TorchBackend
from codec.pyramid.tokenizer import dequantize, quantize
from codec.pyramid.training import PyramidTraining
from codec.rate_control import block_tokens_of_quality
from tests.helpers import PHOTO, ROOT
from tests.helpers.commands import run

PAGES = sorted([*ROOT.glob("*.md"), *ROOT.glob("docs/*.md")])
LOGS = sorted(ROOT.glob("benchmarks/*.md"))
README, JSON, PYTHON = ROOT / "README.md", ROOT / "docs" / "json.md", ROOT / "docs" / "python.md"
RESULTS = ROOT / "benchmarks" / "results"
BLOCK = re.compile(r"^```([^\n]*)\n(.*?)^```", re.DOTALL | re.MULTILINE)
OPTIONS = re.compile(r"(<!-- options: (\w+) -->\n).*?(<!-- /options -->)", re.DOTALL)
SIZE = (240, 160)  # of photo.png
MAX_MACS = 60_000  # per pixel, encoding and decoding together
MAX_PARAMETERS = 24_000_000
MAX_BYTES = 25_000_000


def by_name(page: Path) -> str:
    return str(page.relative_to(ROOT))


def blocks(page: Path, *kinds: str) -> list[tuple[str, str]]:
    """The code blocks of these kinds, with their kinds."""
    return [(kind, text) for kind, text in BLOCK.findall(page.read_text()) if kind in kinds]


def prose(page: Path) -> str:
    """A page without its code blocks."""
    return BLOCK.sub("", page.read_text())


# Commands


@pytest.fixture
def folder(tmp_path, monkeypatch) -> Path:
    """The current folder: photo.png, photos/ with two images, and a `tessera` on PATH."""
    (tmp_path / "bin").mkdir()
    tool = tmp_path / "bin" / "tessera"
    tool.write_text(f'#!/bin/sh\nPYTHONPATH="{ROOT}" exec "{sys.executable}" -m cli "$@"\n')
    tool.chmod(0o755)
    (tmp_path / "photos" / "more").mkdir(parents=True)
    with Image.open(PHOTO) as photo:
        image = photo.convert("RGB")
    image.resize(SIZE).save(tmp_path / "photo.png")
    image.crop((0, 0, 160, 120)).save(tmp_path / "photos" / "a.png")
    image.crop((200, 100, 360, 220)).save(tmp_path / "photos" / "more" / "b.png")
    monkeypatch.setenv("PATH", f"{tmp_path / 'bin'}:{os.environ['PATH']}")
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))
    monkeypatch.chdir(tmp_path)
    return tmp_path


@pytest.mark.parametrize("page", [page for page in PAGES if blocks(page, "sh", "python")], ids=by_name)
def test_code_blocks_run(page, folder):
    names: dict[str, object] = {}
    for kind, text in blocks(page, "sh", "python"):
        if kind == "python":
            exec(compile(text, by_name(page), "exec"), names)
            continue
        result = subprocess.run(["bash", "-euo", "pipefail", "-c", text], capture_output=True, text=True, check=False)
        assert result.returncode == 0, f"{text}\n{result.stderr}"
        for name in re.findall(r" -o (\w\S*)", text):
            assert (folder / name).stat().st_size > 0
            if name.endswith(".png"):
                with Image.open(folder / name) as image:
                    assert image.size == SIZE
        for name, size in re.findall(r"-o (\S+\.tsr) --target-size (\d)k", text):
            assert (folder / name).stat().st_size <= 1000 * int(size)


def commands(text: str) -> Iterator[list[str]]:
    """The simple commands in lines of shell, without comments and redirections."""
    for line in text.replace("\\\n", " ").splitlines():
        words = shlex.split(re.sub(r"[<>]\s*\S+", " ", line), comments=True)
        while "|" in words:
            yield words[: words.index("|")]
            words = words[words.index("|") + 1 :]
        if words:
            yield words


def leaves(command: click.Command) -> list[click.Command]:
    if isinstance(command, click.Group):
        return [leaf for child in command.commands.values() for leaf in leaves(child)]
    return [command]


@pytest.mark.parametrize("page", [page for page in PAGES if blocks(page, "sh no-run")], ids=by_name)
def test_commands_that_are_not_run_are_valid(page, folder, monkeypatch):
    """Their words are parsed by click, and make's targets, extras and modules exist."""
    for leaf in leaves(main):
        monkeypatch.setattr(leaf, "callback", lambda **_: None)
    for _, text in blocks(page, "sh no-run"):
        for words in commands(text):
            check_command(words)


def check_command(words: list[str]) -> None:
    match words:
        case ["tessera", *arguments]:
            result = run(*arguments)
            assert result.exit_code == 0, f"{shlex.join(words)}\n{result.output}"
        case ["make", target, *_]:
            assert re.search(rf"^{target}:", (ROOT / "Makefile").read_text(), re.MULTILINE), target
        case ["pip", "install", *packages]:
            extras = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]["optional-dependencies"]
            for package in packages:
                named = re.fullmatch(r"\.(?:\[(\w+)\])?", package)
                assert named, package
                assert named[1] is None or named[1] in extras
        case ["python" | "python3", "-m", module, *_]:
            assert find_spec(module), module
        case [".", script]:
            assert script == ".venv/bin/activate"
        case _:
            assert words[0] == "ray", words


def option_names(command: click.Command) -> set[str]:
    """The options of a command and of all below it."""
    below = command.commands.values() if isinstance(command, click.Group) else ()
    own = {name for parameter in command.params for name in (*parameter.opts, *parameter.secondary_opts)}
    return own.union(*(option_names(child) for child in below)) | {"-h", "--help"}


OTHER_OPTIONS = {  # in the text of pages, of other programs
    "--count", "--commands", "--every", "--without", "--photos", "--lpips", "--plot", "--short-plot", "-m",
}  # fmt: skip


@pytest.mark.parametrize("page", [page for page in PAGES if page.name != "changes.md"], ids=by_name)
def test_commands_and_options_in_the_text_exist(page):
    known = option_names(main)
    for span in re.findall(r"`([^`]+)`", prose(page)):
        words = span.split()
        if words[0] == "tessera" and len(words) > 1 and not words[1].startswith("-"):
            assert words[1].strip(",") in main.commands, span
        if words[:2] == ["python", "-m"]:
            assert find_spec(words[2]), span
        if words[0] in ("tessera", "python") or words[0].startswith("-"):
            flags = set(re.findall(r"(?<!\S)(?:--[a-z][a-z-]*|-[a-zA-Z](?!\w))", span))
            assert flags <= known | OTHER_OPTIONS, span


@pytest.mark.parametrize("page", PAGES, ids=by_name)
def test_files_in_the_text_exist(page):
    rooms = "bitstream|codec|benchmarks|cli|docs|tests|tessera"
    for name in re.findall(rf"`((?:{rooms})/[^`\s]*)`", prose(page)):
        assert "NAME" in name or (ROOT / name).exists(), name


def test_training_values_exist():
    names = {field.name for field in fields(PyramidTraining)}
    for page in (ROOT / "docs" / "training.md", ROOT / "benchmarks" / "training-log.md"):
        values = re.findall(r"--set\s+([a-z_]+)=", page.read_text())
        assert values
        assert names.issuperset(values), page


def test_changed_names_are_the_new_ones():
    """The right column of docs/changes.md exists, and the left one does not."""
    rows = re.findall(r"^\| (.+) \| (.+) \|$", (ROOT / "docs" / "changes.md").read_text(), re.MULTILINE)
    methods = re.compile(r"`Codec\.(\w+)")
    former = {name for before, _ in rows for name in methods.findall(before)} - {"encode", "decode"}
    current = {name for _, now in rows for name in methods.findall(now)}
    assert former and current
    assert [name for name in former if hasattr(tessera.Codec, name)] == []
    assert [name for name in current if not hasattr(tessera.Codec, name)] == []
    for _, now in rows:
        for module in re.findall(r"`((?:bitstream|codec|benchmarks)\.[\w.]+)`", now):
            assert find_spec(module), module
    known = option_names(main)
    for before, now in rows:
        assert not known.intersection(re.findall(r"--[a-z-]+", before))
        assert known.issuperset(re.findall(r"--[a-z-]+", now))


# Links and structure


def anchors(page: Path) -> set[str]:
    """The anchors that GitHub gives the headings of a page."""
    headings = re.findall(r"^#+ (.+)$", prose(page), re.MULTILINE)
    return {re.sub(r"[^\w\- ]", "", heading.lower()).replace(" ", "-") for heading in headings}


@pytest.mark.parametrize("page", [*PAGES, *LOGS], ids=by_name)
def test_links_lead_somewhere(page):
    for link in re.findall(r"\]\(([^)\s]+)\)", prose(page)):
        if link.startswith("https://"):
            continue
        name, _, anchor = link.partition("#")
        target = (page.parent / name).resolve() if name else page
        assert target.exists(), link
        assert not anchor or anchor in anchors(target), link


@pytest.mark.parametrize("page", [page for page in PAGES if page != README], ids=by_name)
def test_every_page_is_linked_from_readme(page):
    assert f"({by_name(page)}" in README.read_text()


def test_readme_is_short():
    assert len(README.read_text().splitlines()) <= 150


def test_every_image_in_docs_has_its_source():
    sources = (ROOT / "docs" / "SOURCES.md").read_text()
    images = [path.name for pattern in ("*.webp", "*.png") for path in (ROOT / "docs").glob(pattern)]
    assert images
    assert [name for name in images if f"| [{name}]({name}) |" not in sources] == []


def test_the_path_of_an_image_names_functions():
    ((_, diagram),) = [block for block in blocks(README, "") if "read_source" in block[1]]
    steps = re.findall(r"^  \|  (\w+) +(\w+)? +(\S+\.py(?:, \S+\.py)*) ", diagram, re.MULTILINE)
    assert len(steps) == 5
    for *names, paths in steps:
        text = "".join((ROOT / path).read_text() for path in paths.split(", "))
        for name in filter(None, names):
            assert f"def {name}(" in text, f"{paths}: {name}"


def test_no_table_stands_in_two_pages():
    rows = Counter()
    for page in [*PAGES, *LOGS]:
        lines = {line for line in prose(page).splitlines() if line.startswith("|") and line.count("|") > 2}
        rows.update(line for line in lines if re.search(r"\w", line) and not line.startswith("| bpp at most"))
    assert [row for row, count in rows.items() if count > 1] == []


# Tables


def with_option_tables(text: str) -> str:
    """A page in which each block of options has the table of its class in `codec/options.py`."""

    def table(match: re.Match[str]) -> str:
        return match[1] + "\n".join(option_table(getattr(options, match[2]))) + "\n" + match[3]

    return OPTIONS.sub(table, text)


def test_option_tables_are_generated():
    text = PYTHON.read_text()
    assert len(OPTIONS.findall(text)) == 3
    assert text == with_option_tables(text), "run: python -m tests.test_docs"


@pytest.mark.parametrize(
    ("page", "table"),
    [
        ("README.md", short_table(RESULTS / "kodak")),
        ("docs/benchmarks.md", rate_table(RESULTS / "kodak")),
        ("docs/benchmarks.md", delta_table(RESULTS / "kodak")),
        ("docs/benchmarks.md", rate_table(RESULTS / "kodak", COLOUR)),
        ("docs/benchmarks.md", rate_table(RESULTS / "kodak", RECOGNITION)),
        ("docs/benchmarks.md", rate_table(RESULTS / "kodak-third", MORE)),
        ("docs/benchmarks.md", rate_table(RESULTS / "clic")),
    ],
)
def test_tables_of_quality_are_those_of_the_benchmark(page, table):
    rows = list(table)
    assert len(rows) > 3
    assert "\n".join(rows) in (ROOT / page).read_text()


def test_the_benchmark_is_of_the_shipped_model():
    for name in ("tessera", "tessera-psnr"):
        study = json.loads((RESULTS / "kodak" / f"{name}.json").read_text())
        assert study["description"] == open_codec(name, BenchCodecOptions(device="cpu")).description


def test_quality_table_is_that_of_the_code():
    lines = (ROOT / "docs" / "targets.md").read_text().splitlines()
    rows = [line.strip("|").split("|") for line in lines if line.startswith(("| quality", "| tokens per 256"))]
    table = list(zip(*([int(cell) for cell in row[1:]] for row in rows), strict=True))
    assert table == [(quality, round(block_tokens_of_quality(open_model().code, quality))) for quality, _ in table]
    assert {quality for quality, _ in table} >= {quality for quality, _ in QUALITY_STOPS}


def test_format_table_is_that_of_the_model():
    text = (ROOT / "FORMAT.md").read_text()
    rows = re.findall(r"^\| (\d+) \| (\d+) \| (\d) \| (\d+) \| (\d+) \|$", text, re.MULTILINE)
    levels = open_model().config.levels
    assert [tuple(map(int, row)) for row in rows] == [(i, o.side, o.part, o.digits, o.limit) for i, o in enumerate(levels)]


@pytest.mark.parametrize("command", ["encode", "decode", "info", "tokens"])
def test_records_have_the_keys_of_the_page(command, folder, codec):
    (folder / "photo.tsr").write_bytes(codec.encode("photo.png", tokens=9).data)
    name = "photo.png" if command == "encode" else "photo.tsr"
    result = run(command, name, "--json", *(["-f"] if command != "info" else []))
    assert result.exit_code == 0, result.output
    rows = re.findall(r"^\| ([^|]+) \| ([^|]+) \| [^|]+ \|$", JSON.read_text(), re.MULTILINE)
    keys = {key for cell, users in rows if users == "all" or command in users for key in re.findall(r"`(\w+)`", cell)}
    assert json.loads(result.stdout).keys() == keys
    ((_, example),) = blocks(JSON, "json")
    assert command != "encode" or json.loads(example).keys() == keys


def test_exit_codes_are_listed():
    text = JSON.read_text()
    for code in (0, 1, 2, 130, 143):
        assert re.search(rf"^\| {code} \| \w", text, re.MULTILINE), code


# The library


def test_public_names_are_documented():
    text = PYTHON.read_text()
    for name in set(tessera.__all__) - {"__version__"}:
        assert re.search(rf"`(tessera\.)?{name}\b", text), name
    for name, value in vars(tessera.Codec).items():
        if callable(value) and not name.startswith("_"):
            assert re.search(rf"`{name}\(", text), name


@pytest.mark.parametrize("page", PAGES, ids=by_name)
def test_names_of_the_library_exist(page):
    for name in set(re.findall(r"`tessera\.([A-Za-z_]\w*)", prose(page))):
        assert hasattr(tessera, name) or find_spec(f"tessera.{name}"), name


# The model card


def test_the_model_is_as_large_as_the_card_says():
    model = open_model()
    card = (ROOT / "MODEL.md").read_text()
    network = Network(NetworkConfig.from_dict(model.metadata["network"]))
    parameters, size = sum(p.numel() for p in network.parameters()), model.path.stat().st_size
    encode, decode = macs_per_pixel(network)
    assert parameters <= MAX_PARAMETERS
    assert encode + decode <= MAX_MACS
    assert size <= MAX_BYTES
    assert f"`{model.stream_id.hex()}`" in card
    assert f"{parameters / 1e6:.1f} M parameters" in card
    assert f"{encode / 1000:.0f} thousand multiply-accumulates per pixel to encode and {decode / 1000:.0f} to decode" in card
    assert f"{size / 1e6:.1f} MB" in card
    assert f"{model.code.block_tokens} per block" in card


def macs_per_pixel(network: Network) -> tuple[float, float]:
    """Multiply-accumulates per pixel of encoding and of decoding a block with all levels."""
    counts = [0, 0]
    phase = 0

    def count(layer: nn.Module, inputs: tuple[torch.Tensor, ...], output: torch.Tensor) -> None:
        height, width = (inputs[0] if isinstance(layer, nn.ConvTranspose2d) else output).shape[2:]
        counts[phase] += height * width * layer.weight.numel()

    for layer in network.modules():
        if isinstance(layer, (nn.Conv2d, nn.ConvTranspose2d)):
            layer.register_forward_hook(count)
    code = open_model().code
    layout = code.layout(256, 256)
    with torch.inference_mode():
        (sequence,) = quantize(TorchBackend(network), code, [layout], network.encoder(torch.zeros(1, 3, 256, 256)))
        phase = 1
        latents, known = dequantize(TorchBackend(network), [sequence.first(layout.tokens)])
        noise = (torch.from_numpy(plane) for plane in texture_noise(0, slice(0, 16), slice(0, 16)))
        network.decoder.textured(latents, network.decoder.features(latents, known), 1.0, *noise)
    encode, decode = (number / 65536 for number in counts)
    return encode, decode


if __name__ == "__main__":
    PYTHON.write_text(with_option_tables(PYTHON.read_text()))
