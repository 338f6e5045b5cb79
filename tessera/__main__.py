"""The `tessera` command, installed or in a checkout."""

from __future__ import annotations

import atexit
import gc
import sys
from pathlib import Path

ROOT = Path(__file__).parent.parent
if (ROOT / "pyproject.toml").is_file():  # a checkout, whose folders have names as general as `cli`: they come before others
    sys.path.insert(0, str(ROOT))


def main() -> None:
    from cli.main import main

    atexit.register(gc.freeze)  # or Python searches all objects for garbage before it ends: a twentieth of the whole time
    main()


if __name__ == "__main__":
    main()
