"""The decoder in JavaScript (docs/viewer/), written from FORMAT.md, reads the same tokens in a browser as the library."""

from __future__ import annotations

import base64
import json
import lzma
import struct
from collections.abc import Iterator
from dataclasses import asdict
from pathlib import Path
from threading import Event
from typing import Any

import numpy as np
import pytest
from safetensors.numpy import save_file

from bitstream.container import File, read_file, write_file
from bitstream.pyramid_tokens import PyramidCode, complete_prefix
from bitstream.range_coder import encode_tokens
from codec.errors import FormatError
from codec.image.metadata import unpack
from codec.models.registry import model_for, open_model
from codec.reading import read_tokens
from tests.helpers import GOLDEN, ROOT
from tests.helpers.browser import Handler, browser, opened, served
from tests.helpers.tokens import random_digits
from tests.helpers.viewer import NAMES, with_checksum

SEED = 7
PAGE = '<!doctype html><link rel="icon" href="data:,"><script type="module" src="tests.js"></script>'


@pytest.fixture(scope="module")
def folder(tmp_path_factory) -> Path:
    """A site with the modules and the bundled model."""
    folder = tmp_path_factory.mktemp("served")
    (folder / "viewer").symlink_to(ROOT / "docs" / "viewer")
    (folder / "standard").symlink_to(open_model().path)
    (folder / "tests.js").symlink_to(ROOT / "tests" / "helpers" / "viewer_tokens.js")
    (folder / "index.html").write_text(PAGE)
    return folder


class Endless(Handler):
    """Files of a folder, and a file that never ends: `head`, then zeros for as long as they are read."""

    head = b""
    sent = 0
    ended = Event()

    def do_GET(self) -> None:  # noqa: N802 (the name that http.server calls)
        if not self.path.startswith("/endless"):
            return super().do_GET()
        self.send_response(200)
        self.end_headers()
        Endless.sent = 0
        try:
            self.wfile.write(self.head)
            while Endless.sent < 1 << 28:
                self.wfile.write(bytes(1 << 16))
                Endless.sent += 1 << 16
        except OSError:  # the page has ended the download
            pass
        Endless.ended.set()
        return None


@pytest.fixture(scope="module")
def page(folder) -> Iterator[Any]:
    with browser() as chromium, served(folder, Endless) as address, opened(chromium, address) as page:
        yield page


def base64_of(data: bytes) -> str:
    return base64.b64encode(data).decode()


def check(grids: list, digits: tuple[np.ndarray, ...], known: tuple[np.ndarray, ...]) -> None:
    """Asserts that the page read these digits and known tokens, level by level."""
    assert len(grids) == len(digits)
    for (read_digits, read_known), level, level_known in zip(grids, digits, known, strict=True):
        assert np.array_equal(read_digits, level.ravel())
        assert np.array_equal(read_known, level_known.ravel())


@pytest.mark.parametrize("name", NAMES)
def test_golden_tokens_are_read_exactly(page, name):
    data = (GOLDEN / f"{name}.tsr").read_bytes()
    file = read_file(data)
    read = page.evaluate("([model, text]) => read(model, text)", ["standard", base64_of(data)])
    assert read["state"] == "complete"
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
    counts = page.evaluate("([model, text]) => prefixes(model, text)", ["standard", base64_of(data)])
    expected = []
    for size in range(counts["headerBytes"], len(data)):
        expected.append(read_tokens(read_file(data[:size]), code, allow_partial=True).length)
    assert counts["byReading"] == expected
    assert counts["byEnds"] == expected


def test_the_first_tokens_are_those_of_a_prefix(page):
    data = (GOLDEN / "wide-bytes.tsr").read_bytes()
    tokens = read_tokens(read_file(data[:200]), open_model().code, allow_partial=True)
    grids = page.evaluate("([m, text, n]) => firstOf(m, text, n)", ["standard", base64_of(data), tokens.length])
    check(grids, tokens.digits, tokens.known)


@pytest.mark.parametrize(("width", "height"), [(1, 1), (300, 200), (256, 511), (1030, 20)])
def test_made_up_levels_and_entropy_models(page, folder, made_up_code: PyramidCode, width, height):
    """Levels that the bundled model does not have, with and without a checkerboard, and digits at their limits."""
    layout = made_up_code.layout(width, height)
    digits = random_digits(made_up_code, layout, SEED)
    payload = encode_tokens(made_up_code.sequence(complete_prefix(layout, digits)), layout.tokens)
    name = f"made-up-{len(made_up_code.levels)}"
    write_model(folder / name, made_up_code)
    data = write_file(File(width, height, b"\x12\x34", layout.tokens, payload))
    read = page.evaluate("([model, text]) => read(model, text)", [name, base64_of(data)])
    check(read["grids"], digits, layout.masks)


def write_model(path: Path, code: PyramidCode) -> None:
    """Writes the part of a model file that FORMAT.md describes."""
    levels = [asdict(level) for level in code.levels]
    metadata = {"kind": "tessera-pyramid-1", "fingerprint": "1234", "network": {"levels": levels}}
    arrays = {}
    for index, model in enumerate(code.entropy_models):
        arrays[f"prior.{index}.shifts"] = np.array([layer.shift for layer in model.layers], np.int32)
        arrays |= {f"prior.{index}.frequencies": model.frequencies, f"prior.{index}.costs": model.costs}
        for depth, layer in enumerate(model.layers):
            arrays |= {f"prior.{index}.{depth}.weight": layer.weight, f"prior.{index}.{depth}.bias": layer.bias}
    save_file({name: np.ascontiguousarray(array) for name, array in arrays.items()}, path, {"tessera": json.dumps(metadata)})


def expected_of(data: bytes) -> list:
    """State or kind of error of a file, in the words of the page, and number of tokens, both from the library."""
    try:
        file = read_file(data)
        tokens = read_tokens(file, open_model().code, allow_partial=True)
    except FormatError as error:
        if "not a .tsr" in str(error) or "of version" in str(error):
            return ["format", 0]
        return ["cut" if "cut" in str(error) else "damaged", 0]
    return ["complete" if file.complete else "cut", tokens.length]


def mutations() -> list[bytes]:
    """Golden files with flipped bits, cut ends and surplus bytes, half of them with a right checksum."""
    rng = np.random.default_rng(SEED)
    files = []
    for name in ("block-tiny", "odd-good", "pixel", "sections/cut-out"):
        data = (GOLDEN / f"{name}.tsr").read_bytes()
        for round in range(60):
            changed = bytearray(data)
            changed[int(rng.integers(2, len(data)))] ^= 1 << int(rng.integers(8))
            end = len(data) if round % 3 else int(rng.integers(len(data)))
            files.append(with_checksum(bytes(changed[:end])) if round % 2 else bytes(changed[:end]))
        files += [data + bytes(rng.integers(0, 256, size, np.uint8)) for size in (1, 2, 5, 40)]
        files += [data[:size] for size in range(20)]
    return files


def test_damage_is_reported_as_in_the_library(page):
    files = mutations()
    reported = page.evaluate("([model, texts]) => kinds(model, texts)", ["standard", [base64_of(data) for data in files]])
    expected = [expected_of(data) for data in files]
    assert {kind for kind, _ in expected} == {"format", "damaged", "cut", "complete"}
    assert [pair for pair in zip(files, reported, expected, strict=True) if pair[1] != pair[2]] == []


def streams() -> list[bytes]:
    """LZMA2 streams of text, noise, a plane and long repeats under several settings, then with flipped bits, cut, or longer."""
    rng = np.random.default_rng(SEED)
    text = (ROOT / "FORMAT.md").read_bytes()[:5000]
    plane = (np.hypot(*np.mgrid[-40:40, -40:40]) * 6).clip(0, 255).astype(np.uint8).tobytes()
    packed = []
    for content in (b"", b"a", text, rng.bytes(3000), plane, rng.bytes(700) + text + rng.bytes(700) + 3 * text, b"abc" * 3000):
        for lc, lp, pb in ((0, 0, 0), (3, 0, 2), (1, 2, 3)):
            settings = {"id": lzma.FILTER_LZMA2, "preset": 6, "dict_size": 1 << 20, "lc": lc, "lp": lp, "pb": pb}
            packed.append(lzma.compress(content, lzma.FORMAT_RAW, filters=[settings]))
    for stream in [stream for stream in packed if len(stream) > 8]:
        for _ in range(6):
            damaged = bytearray(stream)
            damaged[int(rng.integers(len(stream)))] ^= 1 << int(rng.integers(8))
            packed.append(bytes(damaged))
        packed += [stream[: int(rng.integers(len(stream)))], stream + b"\0", stream[:-1] + stream]
    return packed


def test_sections_unpack_as_in_the_library(page):
    """Both refuse the same streams."""
    max_size = 20_000
    packed = streams()
    expected: list[bytes | None] = []
    for stream in packed:
        try:
            expected.append(unpack(stream, max_size, "content"))
        except FormatError:
            expected.append(None)
    reported = page.evaluate(
        "([texts, maxSize]) => unpacked(texts, maxSize)", [[base64_of(stream) for stream in packed], max_size]
    )
    assert [None if text is None else base64.b64decode(text) for text in reported] == expected
    assert None in expected and len(expected) - expected.count(None) > 21


BOMB = b"\xd4\x54\x12\xab\xcd" + bytes.fromhex("00ffffff 00000001") + bytes(4)  # 16777216x2: 12.9 GB of contexts


def problem(page: Any, call: str, data: bytes) -> str:
    """The kind of the error in a call with the bytes `data`, or an empty string."""
    return page.evaluate(
        f"""async (text) => {{
          const data = Uint8Array.from(atob(text), (letter) => letter.charCodeAt(0));
          const [container, extras] = await Promise.all(["container", "extras"].map((name) => import(`./viewer/${{name}}.js`)));
          try {{ {call}; return ""; }} catch (error) {{ return error.kind ?? String(error); }}
        }}""",
        base64_of(data),
    )


@pytest.mark.parametrize(
    ("width", "height", "kind"),
    [
        (1 << 24, 2, "large"), (2, 1 << 24, "large"), (1 << 24, 1 << 24, "large"), (7000, 6000, "large"),
        (65535, 1, ""), (6000, 6000, ""), (1, 1, ""),
    ],
)  # fmt: skip
def test_sizes_are_limited_before_anything_is_allocated(page, width, height, kind):
    sides = (width - 1).to_bytes(4, "big") + (height - 1).to_bytes(4, "big")
    data = b"\xd4\x54\x12\xab\xcd" + sides + bytes(4)
    assert problem(page, "container.bytesAllowed(data)", data) == kind


def exif_of(entries: int, count: int) -> bytes:
    """EXIF with many tags for one text, that of the description."""
    tags = b"".join(struct.pack("<HHII", 0x10E, 2, count, 14 + 12 * entries) for _ in range(entries))
    return b"II*\0" + struct.pack("<I", 8) + struct.pack("<H", entries) + tags + bytes(4) + b"a" * count


def test_many_tags_of_one_text_become_one_note(page):
    exif = exif_of(65535, 700_000)
    notes = page.evaluate(
        """async (text) => {
          const data = Uint8Array.from(atob(text), (letter) => letter.charCodeAt(0));
          return (await import("./viewer/extras.js")).notesOf(data).map(([label, words]) => [label, words.length]);
        }""",
        base64_of(exif),
    )
    assert notes == [["Description", 1000]]


DOWNLOAD = """async (stop) => {
  const { download } = await import("./viewer/decoder.js");
  let most = 0;
  try {
    for await (const { bytes } of download("endless.tsr")) {
      most = bytes.length;
      if (stop) break;
    }
  } catch (error) {
    return [error.kind ?? String(error), most];
  }
  return ["", most];
}"""


@pytest.mark.parametrize(
    ("head", "stop", "kind"),
    [
        (BOMB, False, "large"),  # refused by its header
        (b"GIF89a" + bytes(90), False, "format"),
        (b"\xd4\x54\x10\xab\xcd\x0f\x0f" + bytes(90), False, "damaged"),  # 16x16: longer than such a file can be
        (b"\xd4\x54\x11\xab\xcd\x0f\xff\x0f\xff" + bytes(90), True, ""),  # 4096x4096: 67 MB are allowed, but the page stops
    ],
    ids=["size", "format", "surplus", "closed"],
)
def test_a_download_ends_when_its_file_is_refused_or_closed(page, head, stop, kind):
    Endless.head = head
    Endless.ended.clear()
    assert page.evaluate(DOWNLOAD, stop)[0] == kind
    assert Endless.ended.wait(30)
    assert Endless.sent < 1 << 26  # what the browser and the system keep in buffers
