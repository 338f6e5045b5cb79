"""Forks, threads and memory of this process. Torch is used only if something else has imported it."""

from __future__ import annotations

import ctypes
import os
import sys
import threading
from collections.abc import Callable
from functools import cache, partial

from codec.system.context import context_threads


def after_fork_in_child(action: Callable[[], object]) -> None:
    """Registers an action that every forked child runs first. Windows has no forks."""
    if hasattr(os, "register_at_fork"):
        os.register_at_fork(after_in_child=action)


def fork_safe_lock() -> threading.Lock:
    """A lock that is free in a forked child, even if another thread of the parent held it. For module-level locks only: it is
    never freed."""
    lock = threading.Lock()
    after_fork_in_child(lock._at_fork_reinit)  # type: ignore[attr-defined]  # `logging` does the same
    return lock


def usable_cores() -> int:
    """OMP_NUM_THREADS, or the number of cores that this process may run on."""
    setting = os.environ.get("OMP_NUM_THREADS", "")
    if setting.isdigit() and int(setting):
        return int(setting)
    return len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1


def process_threads() -> int:
    """The number of threads that torch computes with, or `usable_cores` if torch is not imported."""
    torch = sys.modules.get("torch")
    return torch.get_num_threads() if torch else usable_cores()


def set_torch_threads(count: int) -> None:
    """Sets the number of threads that torch computes with in this thread, if torch is imported."""
    if torch := sys.modules.get("torch"):
        torch.set_num_threads(count)


def follow_context_threads() -> None:
    """Makes torch compute in this thread with the number of threads that `network_context` sets."""
    import torch

    _keep_torch_usable_after_fork()
    if (count := context_threads()) is not None:
        torch.get_num_threads()  # the first call in a thread resets its number to the last one set in any thread
        torch.set_num_threads(count)


@cache
def _keep_torch_usable_after_fork() -> None:
    """A forked child has none of its parent's torch threads and would wait for them for ever
    (https://github.com/pytorch/pytorch/issues/17199). With one thread torch computes without them, which suits a process
    pool."""
    after_fork_in_child(partial(set_torch_threads, 1))


def trim_heap() -> None:
    """Returns free pages to the system, if the C library is glibc.

    Once an array of up to 32 MB is freed, glibc serves all smaller ones from its heap, and small blocks between them keep
    free pages from being returned: encoding 12 megapixels held 2.0 GB but used at most 0.6 GB."""
    if sys.platform == "linux" and (malloc_trim := getattr(ctypes.CDLL(None), "malloc_trim", None)):
        malloc_trim(0)
