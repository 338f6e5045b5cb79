"""What a fork breaks, mended in the child: a lock that another thread held would stay locked there for ever."""

from __future__ import annotations

import os
import threading
from collections.abc import Callable


def in_child(action: Callable[[], object]) -> None:
    """Has every forked child do this first. Windows has no forks."""
    if hasattr(os, "register_at_fork"):
        os.register_at_fork(after_in_child=action)


class Lock:
    """A lock for `with` statements that is free in a forked child. For modules: it lives as long as the process."""

    def __init__(self) -> None:
        self._renew()
        in_child(self._renew)

    def _renew(self) -> None:
        self._lock = threading.Lock()

    def __enter__(self) -> None:
        self._lock.acquire()

    def __exit__(self, *_: object) -> None:
        self._lock.release()
