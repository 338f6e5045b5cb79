"""Threads of torch: as many as the caller has said, and one in a forked child."""

from __future__ import annotations

from functools import partial

import torch

from codec.system.device import set_torch_threads, threads_here
from codec.system.forks import in_child

# A forked child has none of the threads that torch computed with in its parent, and would wait for them for ever
# (https://github.com/pytorch/pytorch/issues/17199). With one thread it computes by itself, as suits a pool of processes.
in_child(partial(torch.set_num_threads, 1))


def follow_threads() -> None:
    """Has torch compute in this thread with as many threads as `codec.system.device.using_threads` says."""
    count = threads_here()
    if count is not None:
        torch.get_num_threads()  # a thread's first call sets its number to the last one set anywhere
        set_torch_threads(count)
