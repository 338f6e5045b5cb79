"""Checkpoints from a hub on this machine: the files that are needed, verified, continued, and found again without internet."""

from __future__ import annotations

import re
import shutil
import sys
from collections import namedtuple
from contextlib import suppress
from pathlib import Path

import pytest

from codec.errors import ModelError
from codec.models.catalogue import CATALOGUE, find_entry
from codec.models.download import PARTIAL, fetch_checkpoint
from codec.models.registry import FAMILIES, family
from tests.helpers import ROOT
from tests.helpers.commands import records, run

DATA = bytes(range(256)) * 5000
NAME = "a/model.one"


@pytest.fixture(autouse=True)
def quick(monkeypatch) -> None:
    monkeypatch.setattr("time.sleep", lambda _: None)  # huggingface_hub waits before it tries again


def files_below(folder: Path) -> set[str]:
    return {path.name for path in folder.rglob("*") if path.is_file() and "tessera" in path.parts}


def test_one_file_of_weights_and_the_configuration_are_downloaded(hub, tmp_path):
    hub.repositories[NAME] = {"model.safetensors": DATA, "pytorch_model.bin": b"-", "config.json": b"{}", "README.md": b"-"}
    steps: list[tuple[int, int]] = []
    found = fetch_checkpoint(NAME, lambda done, total: steps.append((done, total)))
    assert sorted(hub.downloads) == ["config.json", "model.safetensors"]
    assert (found.weights.read_bytes(), found.config.read_bytes()) == (DATA, b"{}")
    assert steps[-1] == (len(DATA), len(DATA))
    assert steps == sorted(set(steps))
    assert fetch_checkpoint(NAME) == found
    assert len(hub.downloads) == 2
    assert files_below(tmp_path) == {"model.safetensors", "config.json"}


def test_a_pickle_is_downloaded_if_there_are_no_safetensors(hub):
    hub.repositories[NAME] = {"pytorch_model.bin": DATA, "README.md": b"-"}
    found = fetch_checkpoint(NAME)
    assert (found.weights.read_bytes(), found.config) == (DATA, None)


def test_an_interrupted_download_is_continued(hub, tmp_path):
    hub.repositories[NAME] = {"model.safetensors": DATA}

    def interrupt(done: int, _: int) -> None:
        if done >= 500_000:
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        fetch_checkpoint(NAME, interrupt)
    (partial,) = (tmp_path / "cache").rglob(f"*{PARTIAL}")
    partial.write_bytes(DATA[:600_000])  # more, or less, may have arrived
    steps: list[int] = []
    assert fetch_checkpoint(NAME, lambda done, _: steps.append(done)).weights.read_bytes() == DATA
    assert hub.downloads == ["model.safetensors", "model.safetensors bytes=600000-"]
    assert min(steps) > 600_000
    assert not partial.exists()


def test_a_server_without_ranges_starts_again(hub, tmp_path):
    hub.repositories[NAME] = {"model.safetensors": DATA}
    folder = tmp_path / "cache" / "tessera" / "checkpoints" / NAME.replace("/", "--")
    folder.mkdir(parents=True)
    (folder / f"model.safetensors{PARTIAL}").write_bytes(DATA[:100])
    hub.ranges = False
    with suppress(ModelError):  # older versions of huggingface_hub append the whole file, and the next run starts again
        fetch_checkpoint(NAME)
    assert fetch_checkpoint(NAME).weights.read_bytes() == DATA


@pytest.mark.parametrize("wrong", [DATA[:-1] + b"x", DATA[:-1]], ids=["altered", "cut"])
def test_a_file_that_is_not_the_listed_one_is_refused_and_removed(hub, wrong, tmp_path):
    hub.repositories[NAME] = {"model.safetensors": DATA}
    hub.altered["model.safetensors"] = wrong
    with pytest.raises(ModelError, match=r"model\.safetensors"):
        fetch_checkpoint(NAME)
    assert not any((tmp_path / "cache").rglob("model.safetensors"))
    hub.altered.clear()
    assert fetch_checkpoint(NAME).weights.read_bytes() == DATA


def test_a_damaged_file_in_the_cache_is_downloaded_again(hub):
    hub.repositories[NAME] = {"model.safetensors": DATA, "config.json": b"{}"}
    found = fetch_checkpoint(NAME)
    found.weights.write_bytes(DATA[:-1] + b"x")
    found.config.write_bytes(b"[]")
    again = fetch_checkpoint(NAME)
    assert (again.weights.read_bytes(), again.config.read_bytes()) == (DATA, b"{}")


def test_a_file_in_the_cache_of_huggingface_hub_is_used(hub):
    from huggingface_hub import hf_hub_download

    hub.repositories[NAME] = {"model.safetensors": DATA}
    path = hf_hub_download(NAME, "model.safetensors")
    hub.downloads.clear()
    assert str(fetch_checkpoint(NAME).weights) == path
    assert hub.downloads == []


def test_without_internet_downloaded_files_are_used(hub, monkeypatch):
    repository = CATALOGUE["detailflow-16"].repository
    hub.repositories[repository] = {"checkpoints/128.pt": DATA, "config.json": b"{}"}
    found = fetch_checkpoint("detailflow-16")

    def unreachable(*_: object, **__: object) -> None:
        msg = "Name or service not known\nand more"
        raise OSError(msg)

    monkeypatch.setattr("huggingface_hub.HfApi.model_info", unreachable)
    assert fetch_checkpoint("detailflow-16") == fetch_checkpoint(repository) == found
    with pytest.raises(ModelError, match=r"cannot be reached.*https://huggingface\.co/ByteVisionLab/DetailFlow-32") as error:
        fetch_checkpoint("detailflow-32")
    assert "\n" not in str(error.value)


def test_a_broken_connection_names_the_next_step(hub, monkeypatch):
    hub.repositories[NAME] = {"model.safetensors": DATA}

    def broken(url: str, stream, **_: object) -> None:
        stream.write(DATA[:1000])
        msg = "connection reset"
        raise OSError(msg)

    monkeypatch.setattr("huggingface_hub.file_download.http_get", broken)
    with pytest.raises(ModelError, match="1,000 of 1,280,000 bytes"):
        fetch_checkpoint(NAME)
    monkeypatch.undo()


def test_a_full_disk_is_noticed_before_the_download(hub, monkeypatch):
    hub.repositories[NAME] = {"model.safetensors": DATA}
    usage = namedtuple("usage", "total used free")
    monkeypatch.setattr(shutil, "disk_usage", lambda _: usage(2000, 1000, 1000))
    with pytest.raises(ModelError, match="1,280,000 bytes"):
        fetch_checkpoint(NAME)
    assert hub.downloads == []


def test_the_named_file_of_a_repository_is_chosen(hub):
    files = {"c2i_B_256.pt": b"-", "vq_ds16_c2i.pt": DATA, "vq_ds8_c2i.pt": b"8"}
    hub.repositories["FoundationVision/LlamaGen"] = files
    assert fetch_checkpoint("llamagen-ds16").weights.read_bytes() == DATA
    assert fetch_checkpoint("llamagen-ds8").weights.read_bytes() == b"8"
    with pytest.raises(ModelError, match="llamagen-ds16 or llamagen-ds8"):
        fetch_checkpoint("FoundationVision/LlamaGen")
    del files["vq_ds8_c2i.pt"]
    with pytest.raises(ModelError, match=r"vq_ds8_c2i\.pt is not in the repository"):
        fetch_checkpoint("llamagen-ds8")


@pytest.mark.parametrize(
    ("source", "files", "words"),
    [
        ("a/b", {"README.md": b"-"}, "no weights in the repository"),
        ("a/b", {"one.bin": b"-", "two.bin": b"-"}, r"one\.bin, two\.bin"),
        ("a/c", {}, "a/c is not a public repository"),
        ("folder/model", {}, "not the name of a repository"),
        ("a/model.bin", {}, "not the name of a repository"),
        ("a/b/c", {}, "not the name of a repository"),
        ("model", {}, "not the name of a repository"),
    ],
)
def test_other_sources_are_refused(hub, tmp_path, source, files, words):
    (tmp_path / "folder").mkdir()
    hub.repositories["a/b"] = files
    with pytest.raises(ModelError, match=words) as error:
        fetch_checkpoint(source)
    assert "\n" not in str(error.value)


def test_without_huggingface_hub_the_error_names_the_extra(monkeypatch):
    monkeypatch.setitem(sys.modules, "huggingface_hub", None)
    with pytest.raises(ModelError, match=r"tessera-codec\[hub\]"):
        fetch_checkpoint("a/b")


def test_a_licence_for_research_only_is_accepted_before_the_download(hub):
    outcome = run("models", "import", "flextok-d12-d12")
    assert (outcome.exit_code, "--accept-licence" in outcome.stderr) == (1, True)
    assert hub.downloads == []


# The catalogue


def test_names_and_repositories_are_found():
    assert find_entry("one-d-piece-l-256") is find_entry("turing-motors/One-D-Piece-L-256")
    assert find_entry("FoundationVision/LlamaGen") is None
    assert find_entry("nosuch") is None
    places = [(entry.repository, entry.file) for entry in CATALOGUE.values()]
    assert len(set(places)) == len(places)


def test_tokens_and_bits_are_those_of_the_networks():
    from codec.detailflow.config import DetailFlowConfig
    from codec.grid.config import PUBLISHED

    for config in PUBLISHED:
        entry = CATALOGUE[config.name]
        levels = config.levels[0] if len(config.levels) == 1 else 2 ** len(config.levels)
        assert entry.tokens == (256 // config.cell) ** 2
        assert entry.bits == entry.tokens * (levels.bit_length() - 1)
    for tokens in (128, 256, 512):
        entry = CATALOGUE[DetailFlowConfig(tokens).name]
        assert (entry.tokens, entry.bits, entry.file) == (tokens, 13 * tokens, f"checkpoints/{tokens}.pt")


def test_the_page_on_tokenizers_has_the_figures_of_the_catalogue():
    rows = re.findall(
        r"^\| (`.+`) \| ([\d, to]+) \| ([\d., to]+) \|.*\|$", (ROOT / "docs" / "tokenizers.md").read_text(), re.MULTILINE
    )
    described = {}
    for names, tokens, rates in rows:
        for name in re.findall("`(.+?)`", names):
            described[name] = tokens, rates
            entry = CATALOGUE[name]
            assert str(entry.tokens) in re.findall(r"\d+", tokens), name
            low, high = (f(map(float, re.findall(r"[\d.]+", rates))) for f in (min, max))
            assert low - 0.0006 <= entry.bits / 256**2 <= high + 0.0006, name
    assert CATALOGUE.keys() - described.keys() == {"flextok-d18-d28-dfn"}  # trained on other images than ImageNet's


def test_families_have_the_kinds_that_they_are_listed_under():
    assert [family(kind).kind for kind in FAMILIES] == list(FAMILIES)


def test_licences_for_research_only_are_those_of_the_families():
    assert {entry.name.partition("-")[0] for entry in CATALOGUE.values() if entry.research_only} == {
        kind.split("-")[1] for kind in FAMILIES if getattr(family(kind), "licence", None)
    }


def test_available_checkpoints_are_listed(monkeypatch, tmp_path):
    outcome = run("models", "list", "--available", "--json")
    assert outcome.exit_code == 0
    listed = {record["name"]: record for record in records(outcome)}
    assert listed.keys() == CATALOGUE.keys()
    record = listed["maskbit-12"]
    assert (record["tokens"], record["bits"], record["prefixes"], record["installed"]) == (256, 3072, "untrained", False)
    assert record["encode_seconds"] == pytest.approx(136 * 1e6 / 256**2 / record["gflops"], abs=0.1)
    lines = run("models", "list", "--available").stdout.splitlines()
    assert len(lines) == len(CATALOGUE) + 2
    assert "estimate" in lines[-1]
