"""Memory that was freed goes back to the system. No torch."""

from __future__ import annotations

import ctypes
import sys
from collections.abc import Callable


def trim() -> None:
    """Gives pages that are free back to the system, where the C library has a call for it: glibc.

    Once an array of up to 32 MB has been freed, its heap takes all that are no larger, and what is allocated between them
    leaves holes that stay: an encode of 12 megapixels held 2.0 GB, of which it used 0.6 at most."""
    if _trim:
        _trim(0)


def _find() -> Callable[[int], int] | None:
    try:
        return ctypes.CDLL(None).malloc_trim if sys.platform == "linux" else None
    except (OSError, AttributeError):
        return None


_trim = _find()
