"""Records: JSON Lines or an array, with the same keys for every file of a command."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

import tessera
from cli.report import FIELDS
from tests.helpers.commands import records, run

KEYS = {
    "encode": {"reached", "measured", "reference", "notes"},
    "decode": {"partial", "reference"},
    "info": {
        "format", "stream_id", "whole", "length", "header_bytes", "section_bytes", "payload_bytes", "sections", "reference",
    },
    "tokens": {"length"},
}  # fmt: skip


@pytest.fixture
def folder(tmp_path, photo, monkeypatch) -> Path:
    """The current folder: an image, its file, and files that are neither."""
    crop = photo.crop((100, 100, 164, 148))
    crop.save(tmp_path / "a.png")
    (tmp_path / "a.tsr").write_bytes(tessera.encode(crop, tokens=30))
    (tmp_path / "bad.tsr").write_bytes(b"no image")
    (tmp_path / "bad.png").write_bytes(b"no image")
    (tmp_path / "empty").write_text("")
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
def test_records_of_files_that_fail_have_all_keys(folder, command, arguments):
    outcome = run(command, *arguments, "--json")
    assert outcome.exit_code == 1
    by_status = sorted(records(outcome), key=lambda record: record["status"])
    assert [record["status"] for record in by_status] == ["done", "failed", "failed"]
    assert [record["error"] is None for record in by_status] == [True, False, False]
    assert len({tuple(record) for record in by_status}) == 1
    assert tuple(by_status[0])[: len(FIELDS)] == FIELDS
    assert KEYS[command] <= by_status[0].keys()


def test_records_of_tokens_that_fail_have_all_keys(folder):
    done, failed = (records(run("tokens", name, "-f", "--json"))[0] for name in ("a.tsr", "bad.tsr"))
    assert (done["status"], failed["status"]) == ("done", "failed")
    assert done.keys() == failed.keys() >= KEYS["tokens"]


def test_a_record_describes_the_file(folder):
    (record,) = records(run("encode", "a.png", "-f", "-q", "75", "--json"))
    data = Path("a.tsr").read_bytes()
    assert record == record | {
        "input": "a.png", "output": "a.tsr", "status": "done", "width": 64, "height": 48, "bytes": len(data),
        "bpp": round(8 * len(data) / (64 * 48), 5), "quality": pytest.approx(75, abs=1), "model": "standard", "error": None,
    }  # fmt: skip
    assert record["seconds"] > 0


@pytest.mark.parametrize(
    "arguments", [("decode", "a.tsr", "-f"), ("info", "a.tsr"), ("tokens", "a.tsr"), ("models", "path"), ("models", "check")]
)
def test_json_is_one_object_per_file(folder, arguments):
    outcome = run(*arguments, "--json")
    assert (outcome.exit_code, len(records(outcome))) == (0, 1)


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
    array, lines = (run(*arguments, option) for option in ("--json-array", "--json"))
    objects = json.loads(array.stdout)
    assert len(objects) == count
    assert array.exit_code == lines.exit_code
    assert [list(one) for one in objects] == [list(one) for one in records(lines)]


def test_an_array_leaves_standard_output_to_itself(folder):
    outcome = run("encode", "a.png", "-o", "-", "--json-array")
    assert outcome.exit_code == 1
    assert json.loads(outcome.stdout)[0]["status"] == "failed"
