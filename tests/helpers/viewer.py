"""Sites with the modules of the viewer as they are now and the runtime that `make viewer` fetched, and what browsers draw."""

from __future__ import annotations

import base64
import io
import os
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image

from tests.helpers import ROOT

SOURCES = ROOT / "docs" / "viewer"
BUILT = ROOT / "viewer"
BLANK = '<!doctype html><link rel="icon" href="data:,"><script type="module" src="test.js"></script>'


def lay(folder: Path) -> None:
    """Puts all but models into a folder, and `test.html`, a page without anything on it that has the decoder at hand. Where the
    viewer is not built a test is skipped, but fails where CI is set, so that it cannot be lost there."""
    if not (BUILT / "models" / "index.json").exists() and not os.environ.get("CI"):
        pytest.skip("the viewer is not built: make viewer")
    sources = [source for ending in ("js", "html", "css") for source in SOURCES.glob(f"*.{ending}")]
    for source in (*sources, BUILT / "runtime"):
        assert source.exists(), "the viewer is not built: make viewer"
        (folder / source.name).symlink_to(source)
    (folder / "test.js").symlink_to(ROOT / "tests" / "helpers" / "viewer_page.js")
    (folder / "test.html").write_text(BLANK)


def drawn(page: Any, data: bytes, *sizes: int) -> list[Image.Image]:
    """What `test.html` makes of a file's first bytes, of all of them where no size is given."""
    page.wait_for_function("() => Boolean(window.draw)")
    text = base64.b64encode(data).decode()
    images = page.evaluate("([text, sizes]) => draw(text, sizes)", [text, sizes or [None]])["images"]
    return [Image.open(io.BytesIO(bytes(content))) for content in images]


def alike(mine: Image.Image, theirs: Image.Image) -> bool:
    """Whether modes and sizes are the same, opacity exactly, and colours within 1/255."""
    assert (mine.mode, mine.size) == (theirs.mode, theirs.size)
    distance = np.abs(np.asarray(mine).astype(int) - np.asarray(theirs))
    return distance.max() <= 1 and (not mine.mode.endswith("A") or distance[..., -1].max() == 0)
