"""Training in several processes by local SGD (Stich, arXiv 1805.09767): each process takes steps on crops of its own, and every
SYNC_STEPS steps all processes continue from the mean of their states.

On a CPU, two processes of one thread each are 1.5 times as fast as one process of two threads, since the many small layers of
a pyramid parallelise badly. The processes are forked and share the photos in memory.
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

SYNC_STEPS = 16  # steps between two means
PEER_TIMEOUT = timedelta(days=7)  # long, since another process may be validating or suspended


class ProcessGroup:
    """A training run's processes, as seen by the process with this rank. A group of one process exchanges nothing."""

    def __init__(self, rank: int = 0, world_size: int = 1) -> None:
        self.rank, self.world_size = rank, world_size
        self.sync_steps = SYNC_STEPS if world_size > 1 else 1

    @property
    def is_leader(self) -> bool:
        """Whether this process logs, validates and writes checkpoints for all."""
        return self.rank == 0

    def average(self, tensors: Sequence[Tensor]) -> None:
        """Replaces float tensors, the same in number and shape in each process, by their mean over the processes."""
        flat = torch.cat([tensor.flatten() for tensor in tensors])
        dist.all_reduce(flat)
        means = flat.div_(self.world_size).split([tensor.numel() for tensor in tensors])
        for tensor, mean in zip(tensors, means, strict=True):
            tensor.copy_(mean.view(tensor.shape))

    def broadcast(self, *values: float) -> list[float]:
        """Returns the leader's `values` in every process."""
        numbers = torch.tensor(values, dtype=torch.float64)
        if self.world_size > 1:
            dist.broadcast(numbers, 0)
        return numbers.tolist()


def run_distributed(world_size: int, work: Callable[[ProcessGroup], None]) -> None:
    """Calls `work` in `world_size` processes: in this one, the leader, and in forks of it.

    Before this call, torch must have run in a single thread and without gradients. Raises UsageError if the system cannot
    fork."""
    if world_size == 1:
        work(ProcessGroup())
        return
    if "fork" not in multiprocessing.get_all_start_methods():
        msg = "this system cannot fork, so a model cannot be trained in several processes"
        raise UsageError(msg, ("processes",))
    context = multiprocessing.get_context("fork")
    with tempfile.TemporaryDirectory() as folder:
        rendezvous = Path(folder) / "rendezvous"
        forks = [
            context.Process(target=_run_rank, args=(rank, world_size, rendezvous, work), daemon=True)
            for rank in range(1, world_size)
        ]
        for process in forks:
            process.start()
        try:
            _run_rank(0, world_size, rendezvous, work)
            for process in forks:
                process.join()
        finally:
            for process in forks:
                process.kill()


def _run_rank(rank: int, world_size: int, rendezvous: Path, work: Callable[[ProcessGroup], None]) -> None:
    if rank:  # signals stop the leader, which stops the others
        for number in (signal.SIGINT, signal.SIGTERM):
            signal.signal(number, signal.SIG_IGN)
    dist.init_process_group("gloo", init_method=rendezvous.as_uri(), rank=rank, world_size=world_size, timeout=PEER_TIMEOUT)
    try:
        work(ProcessGroup(rank, world_size))
    finally:
        dist.destroy_process_group()
