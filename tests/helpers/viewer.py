"""Sites with the viewer of this checkout and the runtime that `make viewer` downloaded, and the images that they draw."""

from __future__ import annotations

import base64
import io
import os
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image

from bitstream.container import CRC_BYTES, checksum, read_header
from codec.errors import FormatError
from tests.helpers import GOLDEN, ROOT

SOURCES = ROOT / "docs" / "viewer"
BUILT = ROOT / "viewer"
NAMES = sorted(path.relative_to(GOLDEN).with_suffix("").as_posix() for path in GOLDEN.rglob("*.tsr"))
BLANK = '<!doctype html><link rel="icon" href="data:,"><script type="module" src="test.js"></script>'


def make_site(folder: Path) -> None:
    """Links the viewer without models into a folder, and adds `test.html`, an empty page with the functions of viewer_page.js.
    If the viewer is not built, the test is skipped, or fails if the environment variable CI is set."""
    if not (BUILT / "models" / "index.json").exists() and not os.environ.get("CI"):
        pytest.skip("the viewer is not built: make viewer")
    sources = [source for ending in ("js", "html", "css") for source in SOURCES.glob(f"*.{ending}")]
    for source in (*sources, BUILT / "runtime"):
        assert source.exists(), "the viewer is not built: make viewer"
        (folder / source.name).symlink_to(source)
    (folder / "test.js").symlink_to(ROOT / "tests" / "helpers" / "viewer_page.js")
    (folder / "test.html").write_text(BLANK)


def drawn(page: Any, data: bytes, *sizes: int) -> list[Image.Image]:
    """Images that `test.html` draws from the first bytes of a file, one for each of `sizes`, by default from all bytes."""
    page.wait_for_function("() => Boolean(window.draw)")
    text = base64.b64encode(data).decode()
    images = page.evaluate("([text, sizes]) => draw(text, sizes)", [text, sizes or [None]])["images"]
    return [Image.open(io.BytesIO(bytes(content))) for content in images]


def alike(image: Image.Image, expected: Image.Image) -> bool:
    """Whether modes, sizes and opacity are equal, and colours within 1/255."""
    assert (image.mode, image.size) == (expected.mode, expected.size)
    distance = np.abs(np.asarray(image).astype(int) - np.asarray(expected))
    return distance.max() <= 1 and (not image.mode.endswith("A") or distance[..., -1].max() == 0)


def with_checksum(data: bytes) -> bytes:
    """The file with a right checksum, or unchanged if its header cannot be read."""
    try:
        end = read_header(data).header_bytes
    except FormatError:
        return data
    head, body = data[: end - CRC_BYTES], data[end:]
    return head + checksum(head, body) + body
