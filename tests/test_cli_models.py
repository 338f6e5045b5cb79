"""`tessera models`: models are listed, found, and refused if they are damaged."""

from __future__ import annotations

import json
import re

from safetensors.numpy import load_file, save_file

from codec.models.registry import BUNDLED, open_model
from tests.helpers.commands import records, run

STANDARD = BUNDLED / "standard.safetensors"


def test_models_are_listed_and_found():
    expected = {
        "name": "standard", "stream_id": open_model().stream_id.hex(), "bytes": STANDARD.stat().st_size, "path": str(STANDARD),
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
