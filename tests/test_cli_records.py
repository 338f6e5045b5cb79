"""What commands report: records as JSON Lines or as an array, all with the same keys; progress; threads."""

from __future__ import annotations

import json
import os

import pytest
import torch
from click.testing import CliRunner, Result

from cli.main import main
from cli.progress import Bar
from codec.codec import Codec
from codec.parallel.pipeline import Limits, Stages, decode_all, encode_all, overlap
from codec.system.device import threads_here

README_KEYS = {
    "encode": {"reached", "measured", "notes"},
    "decode": {"partial"},
    "info": {
        "format", "stream_id", "whole", "length", "header_bytes", "section_bytes", "payload_bytes", "sections",
    },
    "tokens": {"length"},
}  # fmt: skip


def run(*arguments) -> Result:
    return CliRunner().invoke(main, [str(argument) for argument in arguments])


@pytest.fixture
def folder(tmp_path, photo, codec, monkeypatch):
    """a.png, its file, and what is neither."""
    crop = photo.crop((100, 100, 164, 148))
    crop.save(tmp_path / "a.png")
    (tmp_path / "a.tsr").write_bytes(codec.encode(crop, tokens=30))
    (tmp_path / "bad.tsr").write_bytes(b"no image")
    (tmp_path / "bad.png").write_bytes(b"no image")
    monkeypatch.chdir(tmp_path)
    return tmp_path


@pytest.mark.parametrize(
    ("command", "arguments"),
    [
        ("encode", ("a.png", "bad.png", "none.png", "-f", "--tokens", "9")),
        ("decode", ("a.tsr", "bad.tsr", "none.tsr", "--output-dir", "out")),
        ("info", ("a.tsr", "bad.tsr", "none.tsr")),
    ],
)
def test_records_of_failed_files_have_all_keys(folder, command, arguments):
    said = run(command, *arguments, "--json")
    assert said.exit_code == 1
    told = [json.loads(line) for line in said.stdout.splitlines()]
    assert sorted(record["status"] for record in told) == ["done", "failed", "failed"]
    assert len({tuple(record) for record in told}) == 1
    assert README_KEYS[command] <= told[0].keys()


def test_failed_tokens_have_all_keys(folder):
    made, failed = (json.loads(run("tokens", name, "-f", "--json").stdout) for name in ("a.tsr", "bad.tsr"))
    assert (made["status"], failed["status"]) == ("done", "failed")
    assert made.keys() == failed.keys() >= README_KEYS["tokens"]


@pytest.mark.parametrize(
    ("arguments", "count"),
    [
        (("encode", "a.png", "bad.png", "-f", "--tokens", "9"), 2),
        (("decode", "a.tsr", "--output-dir", "out", "-f"), 1),
        (("info", "a.tsr", "bad.tsr", "a.tsr"), 3),
        (("models", "list"), 1),
        (("models", "check", "standard", "standard"), 2),
        (("encode", "--files-from", "empty"), 0),
    ],
)
def test_an_array_holds_the_same_records(folder, arguments, count):
    (folder / "empty").write_text("")
    array = run(*arguments, "--json-array")
    lines = run(*arguments, "--json")
    told = json.loads(array.stdout)
    assert len(told) == count
    assert array.exit_code == lines.exit_code
    for one, other in zip(told, map(json.loads, lines.stdout.splitlines()), strict=True):
        assert list(one) == list(other)


def test_an_array_leaves_standard_output_to_itself(folder):
    said = run("encode", "a.png", "-o", "-", "--json-array")
    assert said.exit_code == 1
    assert json.loads(said.stdout)[0]["error"] == "--json and -o - both need standard output: name an output file"


def test_progress_moves_within_a_image(folder, codec):
    tiled = Codec(device="cpu", tile=32)
    stored: dict[str, bytes] = {}

    def moved(effort: int) -> list[float]:
        shares: list[float] = []
        (outcome,) = encode_all(
            ["a"],
            lambda: tiled,
            lambda _: (folder / "a.png").read_bytes(),
            lambda name, made: stored.__setitem__(name, made.data),
            effort=effort,
            limits=Limits(1),
            progress=shares.append,
        )
        assert outcome.error is None
        assert sum(shares) == pytest.approx(outcome.reported)
        assert 0 < sum(shares) < 1
        return shares

    assert len(moved(3)) >= 6  # tiles
    assert len(moved(5)) > len(moved(4)) > len(moved(3))  # steps
    shares: list[float] = []
    (outcome,) = decode_all(["a"], lambda: tiled, stored.get, lambda *_: 1, limits=Limits(1), progress=shares.append)
    assert len(shares) >= 6
    assert sum(shares) == pytest.approx(outcome.reported)


def test_the_bar_hears_of_it(folder, monkeypatch):
    moves: list[float] = []
    monkeypatch.setattr(Bar, "advance", lambda self, steps, note=None: moves.append(steps))
    assert run("encode", "a.png", "-f", "--tokens", "9").exit_code == 0
    assert 0 < moves[0] < 1
    assert moves[-1] == 1  # a finished image is counted as one, in place of its parts
    assert sum(moves) == pytest.approx(1)


@pytest.mark.parametrize(("jobs", "threads"), [(1, 1), (2, 2)])
def test_jobs_limit_the_threads_of_the_network(codec, jobs, threads):
    before = torch.get_num_threads()
    torch.set_num_threads(3)
    seen: list[int] = []

    def compute(items: list[int]) -> list[int]:
        seen.append(threads_here())
        return items

    stages = Stages(lambda job, admit: job, compute, lambda *_: None, lambda item: item, lambda: codec)
    try:
        assert len(list(overlap([1], stages, Limits(threads=jobs)))) == 1
        assert torch.get_num_threads() == 3
    finally:
        torch.set_num_threads(before)
    assert seen == [threads]


def test_numpy_leaves_the_cores_to_jobs(folder, monkeypatch):
    for jobs in ("1", "3"):
        monkeypatch.setenv("OPENBLAS_NUM_THREADS", "")  # so that it is as before at the end
        monkeypatch.delenv("OPENBLAS_NUM_THREADS")
        assert run("encode", "a.png", "-f", "--tokens", "9", "-j", jobs).exit_code == 0
        assert os.environ["OPENBLAS_NUM_THREADS"] == jobs
