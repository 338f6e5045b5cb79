"""A short run of the fuzzer, all its findings of the past, and proof that it notices each kind of fault."""

from __future__ import annotations

import time

import numpy as np
import psutil
import pytest
from PIL import Image

from bitstream import container
from bitstream.container import read_file, read_header
from codec.codec import Codec
from codec.results import Stored
from tests.fuzz.check import FINDINGS, Checker, Finding, corpus
from tests.fuzz.mutate import FORGED, PLAIN, mutation
from tests.fuzz.run import run

COUNT = 400


@pytest.fixture(scope="module")
def checker():
    before = Image.MAX_IMAGE_PIXELS
    yield Checker()
    Image.MAX_IMAGE_PIXELS = before


def test_mutations_are_the_same_in_every_run():
    files = corpus()
    assert len(files) >= 10
    first, second = ([mutation(files, 7, index) for index in range(200)] for _ in range(2))
    assert first == second
    assert first != [mutation(files, 8, index) for index in range(200)]
    assert len({data for data, _ in first}) > 150


def test_forged_files_have_a_valid_checksum():
    rng = np.random.default_rng(0)
    complete = 0
    for data in corpus() * 5:
        for forge in FORGED:
            forged = forge(data, rng)
            try:
                complete += read_file(forged).complete
            except container.FormatError:
                continue
    assert complete > 0.6 * 5 * len(corpus()) * len(FORGED)
    assert len(set(PLAIN)) == 8


def test_damaged_files_raise_our_errors_alone(checker):
    files = corpus()
    findings = []
    for index in range(COUNT):
        data, forged = mutation(files, 0, index)
        findings += checker.check(data, forged=forged, decode=index % 100 == 0)
    assert findings == []


@pytest.mark.parametrize("path", sorted(FINDINGS.glob("*.bin")), ids=lambda path: path.stem)
def test_past_findings_stay_fixed(checker, path):
    assert checker.check(path.read_bytes(), forged=True, decode=True) == []


def kinds(findings: list[Finding]) -> set[str]:
    return {finding.kind for finding in findings}


def test_an_error_of_another_kind_is_noticed(checker, monkeypatch):
    def broken(*_: object, **__: object) -> Stored:
        msg = "planted"
        raise KeyError(msg)

    monkeypatch.setattr(Codec, "read", broken)
    assert kinds(checker.check(corpus()[0], forged=False, decode=False)) == {"exception"}


def test_a_command_that_breaks_is_noticed(checker, monkeypatch):
    def broken(*_: object, **__: object) -> None:
        msg = "planted"
        raise KeyError(msg)

    monkeypatch.setattr("cli.info._model_values", broken)
    assert checker.check(corpus()[0], forged=False, decode=False) == []
    assert kinds(checker.check(corpus()[0], forged=False, decode=True)) == {"exception"}


def test_a_silent_wrong_decode_is_noticed(checker, monkeypatch):
    data = next(data for data in corpus() if len(data) > 60)
    changed = data[:-3] + bytes([data[-3] ^ 4]) + data[-2:]
    assert checker.check(changed, forged=False, decode=False) == []
    header = read_header(changed)
    end = header.header_bytes - header.reference_bytes
    monkeypatch.setattr(container, "checksum", lambda head, body: changed[end - container.CRC_BYTES : end])
    assert kinds(checker.check(changed, forged=False, decode=False)) == {"silent"}


def test_slow_and_memory_hungry_decoding_is_noticed(checker, monkeypatch):
    read = Codec.read
    blocks = []

    def slow(self: Codec, *arguments: object, **options: object) -> Stored:
        end = time.process_time() + 1.1
        while time.process_time() < end:
            pass
        return read(self, *arguments, **options)

    def hungry(self: Codec, *arguments: object, **options: object) -> Stored:
        unused = max(0, checker.base - psutil.Process().memory_info().rss)  # memory that the process had before and returned
        blocks.append(np.ones(unused + (300 << 20), np.uint8))
        blocks.clear()
        return read(self, *arguments, **options)

    monkeypatch.setattr(Codec, "read", slow)
    assert kinds(checker.check(corpus()[0], forged=False, decode=False)) == {"hang"}
    monkeypatch.setattr(Codec, "read", hungry)
    assert "memory" in kinds(checker.check(corpus()[0], forged=False, decode=False))


def test_the_runner_counts_from_another_process():
    assert run(0, 20, verbose=False) == []
