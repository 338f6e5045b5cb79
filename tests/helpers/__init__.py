"""What several test files use; fixtures are in conftest.py."""

from __future__ import annotations

from importlib.util import find_spec
from pathlib import Path

ROOT = Path(__file__).parent.parent.parent
PHOTO = ROOT / "docs" / "photo.webp"
GOLDEN = ROOT / "tests" / "golden"
HAS_TORCH = find_spec("torch") is not None
