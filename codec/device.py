"""The one place that decides device and precision."""

from __future__ import annotations

from functools import partial

import torch

from bitstream.errors import DeviceError
from codec.forks import in_child

# A forked child has none of the threads that torch computed with in its parent, and would wait for them for ever
# (https://github.com/pytorch/pytorch/issues/17199). With one thread it computes by itself, as suits a pool of processes.
in_child(partial(torch.set_num_threads, 1))


def pick_device(name: str = "auto") -> torch.device:
    """'auto', 'cpu', 'cuda' or 'cuda:N' -> device. Raises DeviceError for one that is unknown or missing: a device that was
    asked for is never silently replaced."""
    if name == "auto":
        return torch.device("cuda" if torch.cuda.is_available() else "cpu")
    kind, _, index = name.partition(":")
    if kind not in ("cpu", "cuda") or (index and (kind == "cpu" or not index.isdigit())):
        msg = f"unknown device {name!r}: use auto, cpu, cuda or cuda:N"
        raise DeviceError(msg)
    if kind == "cuda" and int(index or 0) >= torch.cuda.device_count():
        msg = f"device {name!r} does not exist ({torch.cuda.device_count()} CUDA devices found)"
        raise DeviceError(msg, ("device",))
    return torch.device(name)


def trains_in_bf16(device: torch.device) -> bool:
    """Whether bf16 is the fast precision there: on CUDA, and on processors with AVX512-bf16 or AMX (3-5 times faster than
    fp32). With AVX2 alone PyTorch emulates it, ten times slower than fp32."""
    if device.type == "cuda":
        return torch.cuda.is_bf16_supported()
    return bool(torch.cpu._is_avx512_bf16_supported() or torch.cpu._is_amx_tile_supported())
