"""The context of a network computation: its number of threads and its progress listener. Both apply to one thread."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from contextvars import ContextVar

from codec.options import DEFAULT_EFFORT, REFINEMENT_STEPS, EncodeOptions

ENCODE_PASSES, DECODE_PASSES = 2.0, 1.2  # cost of coding an image, in network passes that report progress
SEARCH_PASSES = 9  # additional passes of a search for a PSNR or LPIPS target
REFERENCE_PASSES = 8  # additional passes with a reference, most of them of a search for the quality
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


def encode_passes(options: EncodeOptions) -> float:
    """Cost of encoding an image, in network passes over it."""
    steps = REFINEMENT_STEPS.get(options.get("effort", DEFAULT_EFFORT), 0)
    searched = options.get("target_psnr") is not None or options.get("target_lpips") is not None
    if options.get("reference") is not None:
        return ENCODE_PASSES + REFERENCE_PASSES
    return ENCODE_PASSES + (steps + 3 if steps else 0) + (SEARCH_PASSES if searched else 0)


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
