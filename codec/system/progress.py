"""How far a long computation has come, for whoever wants to show it. No terminal and no torch.

Loops over tiles and over steps of refinement report what share of a pass over their images is done; the caller that started
them listens, in the same thread.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from contextvars import ContextVar

Listener = Callable[[float], None]
_listener: ContextVar[Listener | None] = ContextVar("listener", default=None)


@contextmanager
def listening(listener: Listener) -> Iterator[None]:
    """Hands what is reported within to `listener`: shares of network passes, which add up to their number."""
    token = _listener.set(listener)
    try:
        yield
    finally:
        _listener.reset(token)


def report(share: float) -> None:
    """A share of a pass of the network over its images is done."""
    if listener := _listener.get():
        listener(share)
