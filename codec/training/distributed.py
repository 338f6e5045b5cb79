"""Processes that learn together: each takes steps by itself on crops of its own, and every few steps all go on from the mean of
what they have learned (local SGD, Stich, arXiv 1805.09767).

On a processor, two processes of one thread are half as fast again as one process of two threads: the many small layers of a
pyramid do not divide well. They are forked, so that the photos lie in memory once.
"""

from __future__ import annotations

import multiprocessing
import signal
import tempfile
from collections.abc import Callable, Sequence
from datetime import timedelta
from pathlib import Path

import torch
import torch.distributed as dist
from torch import Tensor

from codec.errors import UsageError

ROUND = 16  # steps from one mean to the next
PATIENCE = timedelta(days=7)  # that a process waits for the others: one of them may validate, or be suspended


class Team:
    """The processes of a training, seen from one of them. In a team of one there is nothing to exchange."""

    def __init__(self, rank: int = 0, size: int = 1) -> None:
        self.rank, self.size = rank, size
        self.round = ROUND if size > 1 else 1

    @property
    def leads(self) -> bool:
        """Whether this process logs, validates and writes for all."""
        return self.rank == 0

    def average(self, tensors: Sequence[Tensor]) -> None:
        """Makes float tensors, the same in number and shape in each process, their mean over the processes."""
        flat = torch.cat([tensor.flatten() for tensor in tensors])
        dist.all_reduce(flat)
        for tensor, part in zip(tensors, flat.div_(self.size).split([tensor.numel() for tensor in tensors]), strict=True):
            tensor.copy_(part.view(tensor.shape))

    def follow(self, *values: float) -> list[float]:
        """The numbers that the leading process gives."""
        told = torch.tensor(values, dtype=torch.float64)
        if self.size > 1:
            dist.broadcast(told, 0)
        return told.tolist()


def together(size: int, work: Callable[[Team], None]) -> None:
    """Calls `work` in `size` processes: this one, which leads, and forks of it. Before, torch must have computed in one thread
    alone, and without gradients. Raises UsageError where processes cannot be forked."""
    if size == 1:
        work(Team())
        return
    if "fork" not in multiprocessing.get_all_start_methods():
        msg = "this system cannot fork processes, so they cannot learn together"
        raise UsageError(msg)
    context = multiprocessing.get_context("fork")
    with tempfile.TemporaryDirectory() as folder:
        place = Path(folder)
        others = [context.Process(target=_member, args=(rank, size, place, work), daemon=True) for rank in range(1, size)]
        for process in others:
            process.start()
        try:
            _member(0, size, place, work)
            for process in others:
                process.join()
        finally:
            for process in others:
                process.kill()


def _member(rank: int, size: int, folder: Path, work: Callable[[Team], None]) -> None:
    if rank:  # the first one is asked to end, and tells the others
        for number in (signal.SIGINT, signal.SIGTERM):
            signal.signal(number, signal.SIG_IGN)
    dist.init_process_group("gloo", init_method=(folder / "meeting").as_uri(), rank=rank, world_size=size, timeout=PATIENCE)
    try:
        work(Team(rank, size))
    finally:
        dist.destroy_process_group()
