"""The context of a network computation: its number of threads and its progress listener. Both apply to one thread."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from contextvars import ContextVar

ProgressListener = Callable[[float], None]
_threads: ContextVar[int | None] = ContextVar("threads", default=None)
_listener: ContextVar[ProgressListener | None] = ContextVar("listener", default=None)


@contextmanager
def network_context(threads: int | None = None, listener: ProgressListener | None = None) -> Iterator[None]:
    """Networks that this thread runs in the block compute with `threads` threads and report their progress to `listener`."""
    tokens = _threads.set(threads), _listener.set(listener)
    try:
        yield
    finally:
        _threads.reset(tokens[0])
        _listener.reset(tokens[1])


def context_threads() -> int | None:
    """The number of threads for networks that this thread runs; None outside of `network_context`."""
    return _threads.get()


class ImageProgress:
    """Progress on one image, as a share of it. Less than all of it is reported before the image is complete."""

    MAX_REPORTED = 0.95

    def __init__(self, passes: float, listener: ProgressListener | None) -> None:
        """`passes` is the cost of the image in network passes."""
        self._passes = passes
        self._listener = listener
        self.reported = 0.0

    def __call__(self, passes: float) -> None:
        """Reports that the network has made `passes` over the image since the last call."""
        share = min(passes / self._passes, self.MAX_REPORTED - self.reported)
        self.reported += share
        if self._listener:
            self._listener(share)


def report_progress(share: float) -> None:
    """Tells the listener, if there is one, that this share of a network pass over its images is complete.

    Tiles and steps of refinement report; the shares of one pass add up to 1."""
    if listener := _listener.get():
        listener(share)
