"""The decoder in JavaScript (docs/viewer/), written from FORMAT.md: in a browser it reads the same tokens as the library."""

from __future__ import annotations

import base64
import json
import lzma
import zlib
from collections.abc import Iterator
from dataclasses import asdict
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from safetensors.numpy import save_file

from bitstream.container import CRC_BYTES, File, read_file, read_header, write_file
from bitstream.pyramid_tokens import PyramidCode, complete_prefix
from bitstream.range_coder import encode_tokens
from codec.errors import FormatError
from codec.image.metadata import unpack
from codec.models.registry import model_for, open_model
from codec.results import read_tokens
from tests.helpers import ROOT
from tests.helpers.browser import browser, opened, served
from tests.helpers.tokens import random_digits

GOLDEN = ROOT / "tests" / "golden"
NAMES = sorted(path.relative_to(GOLDEN).with_suffix("").as_posix() for path in GOLDEN.rglob("*.tsr"))
SEED = 7
PAGE = '<!doctype html><link rel="icon" href="data:,"><script type="module" src="tests.js"></script>'


@pytest.fixture(scope="module")
def folder(tmp_path_factory) -> Path:
    """What the page is served from: the modules and the bundled model."""
    folder = tmp_path_factory.mktemp("served")
    (folder / "viewer").symlink_to(ROOT / "docs" / "viewer")
    (folder / "standard").symlink_to(open_model().path)
    (folder / "tests.js").symlink_to(ROOT / "tests" / "helpers" / "viewer_tokens.js")
    (folder / "index.html").write_text(PAGE)
    return folder


@pytest.fixture(scope="module")
def page(folder) -> Iterator[Any]:
    with browser() as chromium, served(folder) as address, opened(chromium, address) as page:
        yield page


def text_of(data: bytes) -> str:
    return base64.b64encode(data).decode()


def check(grids: list, digits: tuple[np.ndarray, ...], known: tuple[np.ndarray, ...]) -> None:
    """Asserts that what the page read is these digits and places of known tokens, level by level."""
    assert len(grids) == len(digits)
    for (drawn, there), expected, places in zip(grids, digits, known, strict=True):
        assert np.array_equal(drawn, expected.ravel())
        assert np.array_equal(there, places.ravel())


@pytest.mark.parametrize("name", NAMES)
def test_golden_tokens_are_read_exactly(page, name):
    data = (GOLDEN / f"{name}.tsr").read_bytes()
    file = read_file(data)
    read = page.evaluate("([model, text]) => read(model, text)", ["standard", text_of(data)])
    assert read["state"] == "whole"
    arrays = GOLDEN / f"{name}.npz"
    if arrays.exists():
        with np.load(arrays) as stored:
            levels = range(len(read["grids"]))
            digits, known = (tuple(stored[f"{kind}_{index}"] for index in levels) for kind in ("digits", "known"))
    else:
        tokens = read_tokens(file, model_for(file.stream_id).code)
        digits, known = tokens.digits, tokens.known
    check(read["grids"], digits, known)


@pytest.mark.parametrize("name", ["block-tiny", "pixel", "wide-bytes", "sections/cut-out"])
def test_every_prefix_has_the_same_certain_tokens(page, name):
    data = (GOLDEN / f"{name}.tsr").read_bytes()
    code = model_for(read_file(data).stream_id).code
    counts = page.evaluate("([model, text]) => prefixes(model, text)", ["standard", text_of(data)])
    expected = []
    for size in range(counts["bytes"], len(data)):
        expected.append(read_tokens(read_file(data[:size]), code, allow_partial=True).length)
    assert counts["alone"] == expected
    assert counts["foretold"] == expected


def test_the_first_tokens_are_those_of_a_prefix(page):
    data = (GOLDEN / "wide-bytes.tsr").read_bytes()
    tokens = read_tokens(read_file(data[:200]), open_model().code, allow_partial=True)
    grids = page.evaluate("([m, text, n]) => firstOf(m, text, n)", ["standard", text_of(data), tokens.length])
    check(grids, tokens.digits, tokens.known)


@pytest.mark.parametrize(("width", "height"), [(1, 1), (300, 200), (256, 511), (1030, 20)])
def test_halves_of_grids_and_other_priors(page, folder, made_up_code: PyramidCode, width, height):
    """Levels in halves, which the bundled model need not have, and digits at their limits."""
    layout = made_up_code.layout(width, height)
    digits = random_digits(made_up_code, layout, SEED)
    payload = encode_tokens(made_up_code.sequence(complete_prefix(layout, digits)), layout.tokens)
    name = f"made-up-{len(made_up_code.levels)}"
    write_model(folder / name, made_up_code)
    data = write_file(File(width, height, b"\x12\x34", layout.tokens, payload))
    read = page.evaluate("([model, text]) => read(model, text)", [name, text_of(data)])
    check(read["grids"], digits, tuple(layout.masks[index] for index in range(len(layout.levels))))


def write_model(path: Path, code: PyramidCode) -> None:
    """The part of a model file that says what tokens are, as FORMAT.md names it."""
    levels = [asdict(level) for level in code.levels]
    plain = {"kind": "tessera-pyramid-1", "fingerprint": "1234", "network": {"levels": levels}}
    arrays = {}
    for index, level in enumerate(code.entropy_models):
        arrays[f"prior.{index}.shifts"] = np.array([layer.shift for layer in level.layers], np.int32)
        arrays |= {f"prior.{index}.frequencies": level.frequencies, f"prior.{index}.costs": level.costs}
        for depth, layer in enumerate(level.layers):
            arrays |= {f"prior.{index}.{depth}.weight": layer.weight, f"prior.{index}.{depth}.bias": layer.bias}
    save_file({name: np.ascontiguousarray(array) for name, array in arrays.items()}, path, {"tessera": json.dumps(plain)})


def expected_of(data: bytes) -> list:
    """What the library says of such bytes: the page's word for it, and how many tokens it can show."""
    try:
        file = read_file(data)
        tokens = read_tokens(file, open_model().code, allow_partial=True)
    except FormatError as error:
        if "not a .tsr" in str(error) or "of version" in str(error):
            return ["format", 0]
        return ["cut" if "cut" in str(error) else "damaged", 0]
    return ["whole" if file.complete else "cut", tokens.length]


def mutations() -> list[bytes]:
    """Golden files with bits turned over, ends cut off and bytes behind them; half of them with a checksum that holds again."""
    rng = np.random.default_rng(SEED)
    made = []
    for name in ("block-tiny", "odd-good", "pixel", "sections/cut-out"):
        data = (GOLDEN / f"{name}.tsr").read_bytes()
        for round in range(60):
            changed = bytearray(data)
            changed[int(rng.integers(2, len(data)))] ^= 1 << int(rng.integers(8))
            end = len(data) if round % 3 else int(rng.integers(len(data)))
            made.append(mended(bytes(changed[:end])) if round % 2 else bytes(changed[:end]))
        made += [data + bytes(rng.integers(0, 256, size, np.uint8)) for size in (1, 2, 5, 40)]
        made += [data[:size] for size in range(20)]
    return made


def mended(data: bytes) -> bytes:
    """The same with the checksum that its other bytes have; as it is where its header cannot be read."""
    try:
        end = read_header(data).bytes
    except FormatError:
        return data
    checksum = zlib.crc32(data[end:], zlib.crc32(data[: end - CRC_BYTES])).to_bytes(4, "big")[-CRC_BYTES:]
    return data[: end - CRC_BYTES] + checksum + data[end:]


def test_damage_is_told_as_the_library_tells_it(page):
    files = mutations()
    told = page.evaluate("([model, texts]) => kinds(model, texts)", ["standard", [text_of(data) for data in files]])
    expected = [expected_of(data) for data in files]
    assert {kind for kind, _ in expected} == {"format", "damaged", "cut", "whole"}
    assert [pair for pair in zip(files, told, expected, strict=True) if pair[1] != pair[2]] == []


def streams() -> list[bytes]:
    """LZMA2 streams of text, noise, a plane and long repeats, under several settings; then with bits turned over and cut."""
    rng = np.random.default_rng(SEED)
    text = (ROOT / "FORMAT.md").read_bytes()[:5000]
    plane = (np.hypot(*np.mgrid[-40:40, -40:40]) * 6).clip(0, 255).astype(np.uint8).tobytes()
    made = []
    for content in (b"", b"a", text, rng.bytes(3000), plane, rng.bytes(700) + text + rng.bytes(700) + 3 * text, b"abc" * 3000):
        for lc, lp, pb in ((0, 0, 0), (3, 0, 2), (1, 2, 3)):
            settings = {"id": lzma.FILTER_LZMA2, "preset": 6, "dict_size": 1 << 20, "lc": lc, "lp": lp, "pb": pb}
            made.append(lzma.compress(content, lzma.FORMAT_RAW, filters=[settings]))
    for stream in [stream for stream in made if len(stream) > 8]:
        for _ in range(6):
            damaged = bytearray(stream)
            damaged[int(rng.integers(len(stream)))] ^= 1 << int(rng.integers(8))
            made.append(bytes(damaged))
        made += [stream[: int(rng.integers(len(stream)))], stream + b"\0", stream[:-1] + stream]
    return made


def test_sections_unpack_as_in_the_library(page):
    """Also the damaged ones: what one side refuses, the other does."""
    most = 20_000
    packed = streams()
    expected: list[bytes | None] = []
    for stream in packed:
        try:
            expected.append(unpack(stream, most, "content"))
        except FormatError:
            expected.append(None)
    told = page.evaluate("([texts, most]) => unpacked(texts, most)", [[text_of(stream) for stream in packed], most])
    assert [None if text is None else base64.b64decode(text) for text in told] == expected
    assert None in expected and len(expected) - expected.count(None) > 21
