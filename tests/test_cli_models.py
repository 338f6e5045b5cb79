"""`tessera models`: models are listed, found, and refused if they are damaged."""

from __future__ import annotations

import json
import os
import re
from contextlib import suppress
from pathlib import Path

import numpy as np
import pytest
from safetensors.numpy import load_file, save_file

from codec.errors import ModelError, TesseraError
from codec.models.base import write_model
from codec.models.registry import BUNDLED, installed_folder, open_model
from tests.helpers.commands import records, run

STANDARD = BUNDLED / "standard.safetensors"


def test_models_are_listed_and_found():
    expected = {
        "name": "standard", "stream_id": open_model().stream_id.hex(), "bytes": STANDARD.stat().st_size, "path": str(STANDARD),
        "error": None,
    }  # fmt: skip
    assert records(run("models", "list", "--json")) == [expected]
    assert run("models", "path").stdout == f"{STANDARD}\n"
    assert run("models", "check", "standard", STANDARD).exit_code == 0


def test_damaged_models_fail_and_others_are_still_checked(tmp_path):
    data = bytearray(STANDARD.read_bytes())
    entry = data.index(b'"prior.0.0.bias"')  # in the file's index
    offset = int(re.search(rb'"data_offsets":\[(\d+),', data[entry:])[1])
    data[8 + int.from_bytes(data[:8], "little") + offset] ^= 1
    (tmp_path / "bad.safetensors").write_bytes(data)
    (tmp_path / "cut.safetensors").write_bytes(data[:100])
    names = (tmp_path / "bad.safetensors", tmp_path / "cut.safetensors", "standard")
    outcome = run("models", "check", *names, "--json")
    assert outcome.exit_code == 1
    assert [record["status"] for record in records(outcome)] == ["failed", "failed", "done"]
    for name in ("nosuch", tmp_path / "cut.safetensors"):
        missing = run("models", "path", name)
        assert (missing.exit_code, missing.stdout, missing.stderr.count(str(name))) == (1, "", 1)


def test_weights_of_the_network_are_checked_before_use(tmp_path, photo):
    """Neither the stream id nor the index of the file covers them."""
    data = bytearray(STANDARD.read_bytes())
    start, index = 8 + int.from_bytes(data[:8], "little"), json.loads(data[8 : 8 + int.from_bytes(data[:8], "little")])
    offsets = [entry["data_offsets"] for name, entry in index.items() if name.startswith("decoder.")]
    first, last = max(offsets, key=lambda pair: pair[1] - pair[0])
    data[start + first : start + last] = bytes(last - first)
    ruined = tmp_path / "ruined.safetensors"
    ruined.write_bytes(data)
    photo.crop((0, 0, 64, 64)).save(tmp_path / "photo.png")
    assert run("models", "check", ruined).exit_code == 1
    assert run("encode", tmp_path / "photo.png", "--model", ruined).exit_code == 1
    assert not (tmp_path / "photo.tsr").exists()


def test_a_model_without_a_digest_is_refused_unless_it_is_known(tmp_path):
    metadata = {key: value for key, value in open_model().metadata.items() if key != "digest"}
    foreign = tmp_path / "foreign.safetensors"
    save_file(load_file(STANDARD), foreign, {"tessera": json.dumps(metadata | {"fingerprint": "00" * 32})})
    assert run("models", "check", foreign).exit_code == 1


def metadata_of(changes: dict) -> str:
    """The standard model's metadata with changes; None removes a key, and keys with dots are those of its configuration."""
    metadata = json.loads(json.dumps(open_model().metadata))
    for key, value in changes.items():
        *outer, name = key.split(".")
        target = metadata
        for part in outer:
            target = target[int(part) if part.isdigit() else part]
        if value is None:
            del target[name]
        else:
            target[int(name) if name.isdigit() else name] = value
    return json.dumps(metadata)


LEVEL = {"side": 1, "digits": 8, "limit": 40, "part": 0}
DAMAGED_METADATA = {
    "no JSON": "{",
    "a list": "[]",
    "deep": '{"kind": ' + "[" * 100_000,
    "huge": json.dumps({"kind": "x" * (2 << 20)}),
    **{
        f"{key}={value!r}"[:60]: metadata_of({key: value})
        for key, values in {
            "kind": [None, ["tessera-pyramid-1"], {}, 3, "", "x\ny"],
            "fingerprint": [None, "", "ab", 7, ["00" * 32], "zz" * 32, "00" * 33, "AB" * 32],
            "digest": [7, [], "", "00", {}],
            "network": [None, [], "x", 3, {}],
            "card": [None, [], "x"],
            "network.levels": [[], {}, 5, "x", [LEVEL], [LEVEL | {"side": 16}] * 99],
            "network.channels": [0, -1, 10**9, 1.5, "192", [192], True, 100],
            "network.encoder_depth": [-1, 10**9, None],
            "network.predicted_channels": [0, 1000],
            "network.prior_kernels": [[], [2], 3, ["3"], [3] * 1000],
            "network.steps": [[], [0.1], ["x"] * 14, [0] * 14, [float("nan")] * 14, [float("inf")] * 14],
            "network.levels.0": [{}, 7, LEVEL | {"extra": 1}, *(LEVEL | {"side": side} for side in (0, -1, 3, 16, "1", [1]))],
            "network.levels.1": [LEVEL | {"digits": digits} for digits in (0, 2, 10**9, "8")],
            "network.levels.2": [LEVEL | {"limit": limit} for limit in (0, -1, 128, 2**40)],
            "network.other": [1],
        }.items()
        for value in values
    },
}


@pytest.mark.parametrize("text", DAMAGED_METADATA.values(), ids=DAMAGED_METADATA)
def test_metadata_are_checked_when_a_model_is_opened(text, tmp_path):
    save_file({"a": np.zeros(1, np.float32)}, tmp_path / "a.safetensors", {"tessera": text})
    with pytest.raises(ModelError) as error:
        open_model(tmp_path / "a.safetensors")
    assert len(str(error.value)) < 1000
    assert "\n" not in str(error.value)


def saved(path: Path, arrays: dict[str, np.ndarray]) -> Path:
    """The standard model with other arrays, and with a digest and a fingerprint that fit them if they can."""
    metadata = open_model().metadata
    write_model(path, arrays, metadata)
    with suppress(TesseraError):
        write_model(path, arrays, metadata | {"fingerprint": open_model(path).actual_fingerprint})
    return path


@pytest.mark.parametrize(
    ("name", "change"),
    [
        ("prior.0.frequencies", lambda array: array.ravel()),
        ("prior.0.frequencies", lambda array: array[None]),
        ("prior.0.frequencies", lambda array: array[:0]),
        ("prior.0.frequencies", lambda array: array.astype(np.float32)),
        ("prior.0.costs", lambda array: array[0]),
        ("prior.0.shifts", lambda array: array[:0]),
        ("prior.0.shifts", lambda array: np.repeat(array, 1000)),
        ("prior.0.shifts", lambda array: array - 100),
        ("prior.0.0.weight", lambda array: array[..., 0]),
        ("prior.3.0.weight", lambda array: array[:, 1:]),
        ("prior.3.1.weight", lambda array: array[:, 1:]),
        ("prior.3.1.bias", lambda array: array[1:]),
        ("prior.3.1.bias", lambda array: np.full_like(array, np.iinfo(np.int64).min)),
        ("encoder.linear.weight", lambda array: np.full_like(array, np.nan)),
        ("decoder.linear.bias", lambda array: np.full_like(array, np.inf)),
        ("decoder.linear.bias", lambda array: array[1:]),
        ("decoder.linear.bias", lambda array: array.reshape(1, -1)),
        ("decoder.linear.bias", lambda array: None),
    ],
)
def test_arrays_that_cannot_code_an_image_are_found_by_a_check(name, change, tmp_path):
    arrays = load_file(STANDARD)
    array = change(arrays.pop(name))
    path = saved(tmp_path / "a.safetensors", arrays if array is None else arrays | {name: np.ascontiguousarray(array)})
    outcome = run("models", "check", path)
    assert (outcome.exit_code, outcome.stderr.count("\n")) == (1, 1), outcome.stderr
    assert "bug" not in outcome.stderr


def test_nothing_is_encoded_with_a_wrong_fingerprint(tmp_path, photo):
    write_model(tmp_path / "a.safetensors", load_file(STANDARD), open_model().metadata | {"fingerprint": "00" * 32})
    photo.crop((0, 0, 32, 32)).save(tmp_path / "a.png")
    assert run("tokens", encoded_path(tmp_path), "-o", tmp_path / "a.npz").exit_code == 0
    for arguments in (("encode", tmp_path / "a.png"), ("tokens", "--back", tmp_path / "a.npz")):
        outcome = run(*arguments, "-o", tmp_path / "b.tsr", "--model", tmp_path / "a.safetensors")
        assert (outcome.exit_code, "fingerprint" in outcome.stderr) == (1, True), outcome.stderr
        assert not (tmp_path / "b.tsr").exists()


def encoded_path(folder: Path) -> Path:
    assert run("encode", folder / "a.png", "-o", folder / "a.tsr").exit_code == 0
    return folder / "a.tsr"


def test_damaged_models_of_a_user_break_nothing_else(tmp_path, photo, monkeypatch):
    photo.crop((0, 0, 32, 32)).save(tmp_path / "a.png")
    path = encoded_path(tmp_path)
    monkeypatch.setenv("XDG_DATA_HOME", str(tmp_path / "data"))
    installed_folder().mkdir(parents=True)
    for index, text in enumerate(DAMAGED_METADATA.values()):
        save_file({"a": np.zeros(1, np.float32)}, installed_folder() / f"{index}.safetensors", {"tessera": text})
    (installed_folder() / "cut.safetensors").write_bytes(STANDARD.read_bytes()[:1000])
    (installed_folder() / "link.safetensors").symlink_to("nowhere")
    os.mkfifo(installed_folder() / "pipe.safetensors")
    assert run("info", path).exit_code == 0
    assert run("decode", path, "-o", tmp_path / "b.png").exit_code == 0
    listing = run("models", "list")
    assert (listing.exit_code, listing.stderr) == (0, "")
    sound, *damaged = listing.stdout.splitlines()
    assert sound.startswith("standard  ")
    assert len(damaged) == len(DAMAGED_METADATA) + 3
    assert all(line.partition("  ")[2].startswith("damaged: ") for line in damaged)
    assert str(tmp_path) not in listing.stdout  # the name says which
    errors = {record["name"]: record["error"] for record in records(run("models", "list", "--json"))}
    assert [name for name, error in errors.items() if error is None] == ["standard"]


def test_errors_name_a_model_once(tmp_path, monkeypatch):
    monkeypatch.setenv("XDG_DATA_HOME", str(tmp_path / "data"))
    installed_folder().mkdir(parents=True)
    model = installed_folder() / "other.safetensors"
    save_file({"a": np.zeros(1, np.float32)}, model, {"tessera": metadata_of({"kind": "x"})})
    monkeypatch.setattr(Path, "unlink", lambda *_, **__: os.unlink(tmp_path / "none"))
    for command in (("remove",), ("export", "-o", tmp_path / "graphs"), ("graphs",), ("path",), ("check",)):
        for name in ("other", model) if command != ("remove",) else ("other",):
            outcome = run("models", *command[:1], name, *command[1:])
            assert (outcome.exit_code, outcome.stderr.count("other")) == (1, 1), outcome.stderr
