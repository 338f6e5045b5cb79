"""The one place that decides where to compute, and with what: torch on CUDA, ONNX Runtime on processors. Imports neither until
it must: `import torch` takes longer than coding a photo."""

from __future__ import annotations

import ctypes
import os
import sys
import threading
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from importlib.util import find_spec
from pathlib import Path
from typing import TYPE_CHECKING

from bitstream.errors import DeviceError, ModelError, UsageError

if TYPE_CHECKING:
    import torch

ONNX, TORCH = "onnx", "torch"
RUNTIMES = ("auto", ONNX, TORCH)
PACKAGES = {ONNX: "onnxruntime", TORCH: "torch"}
INSTALL = {ONNX: "pip install onnxruntime", TORCH: "pip install 'tessera-codec[torch]'"}
_share = threading.local()


def pick_device(name: str = "auto") -> str:
    """'auto', 'cpu', 'cuda' or 'cuda:N' -> one of the last three. Raises DeviceError for one that is unknown or missing: a
    device that was asked for is never silently replaced."""
    if name == "auto":
        return "cuda" if _has_gpu_driver() and has(TORCH) and _cuda_devices() else "cpu"
    kind, _, index = name.partition(":")
    if kind not in ("cpu", "cuda") or (index and (kind == "cpu" or not index.isdigit())):
        msg = f"unknown device {name!r}: use auto, cpu, cuda or cuda:N"
        raise DeviceError(msg)
    if kind == "cuda" and not has(TORCH):
        msg = f"device {name!r} needs torch, which is not installed: {INSTALL[TORCH]}"
        raise DeviceError(msg, ("device",))
    if kind == "cuda" and int(index or 0) >= (count := _cuda_devices()):
        msg = f"device {name!r} does not exist ({count} CUDA devices found)"
        raise DeviceError(msg, ("device",))
    return name


def pick_runtime(asked: str, device: str, offered: Sequence[str], why: str) -> str:
    """The runtime to use of those that a model offers, the best one first: torch on CUDA. `why` says what only torch can do, or
    how to make a model work without. Raises UsageError for one that is unknown or cannot do what is asked, ModelError for one
    that is not installed."""
    if asked not in RUNTIMES:
        msg = f"unknown runtime {asked!r}: use {', '.join(RUNTIMES)}"
        raise UsageError(msg)
    if asked == ONNX and device != "cpu":
        msg = f"ONNX Runtime computes on the processor here, not on {device}: use runtime torch"
        raise UsageError(msg, ("runtime",))
    if asked == ONNX and ONNX not in offered:
        msg = f"runtime onnx cannot do it: {why}"
        raise UsageError(msg, ("runtime",))
    wanted = [asked] if asked != "auto" else [TORCH] if device != "cpu" else list(offered)
    for name in wanted:
        if has(name):
            return name
    reason = f"; {why}" if ONNX not in offered else ""
    msg = f"{PACKAGES[wanted[0]]} is not installed{reason}: {INSTALL[wanted[0]]}"
    raise ModelError(msg, ("runtime",) if asked != "auto" else ())


def has(runtime: str) -> bool:
    """Whether a runtime is installed; does not import it."""
    package = PACKAGES[runtime]
    if package in sys.modules:  # find_spec would ask it, and None there means that it cannot be imported
        return sys.modules[package] is not None
    return find_spec(package) is not None


def require_torch(what: str) -> None:
    """Raises ModelError where torch, which `what` needs, is not installed."""
    if not has(TORCH):
        msg = f"{what} needs torch, which is not installed: {INSTALL[TORCH]}"
        raise ModelError(msg)


@contextmanager
def using_threads(count: int) -> Iterator[None]:
    """Networks that this thread runs within compute with so many threads."""
    before = threads_here()
    _share.count = count
    try:
        yield
    finally:
        _share.count = before


def threads_here() -> int | None:
    """How many threads networks should compute with that this thread runs; None where nobody has said."""
    return getattr(_share, "count", None)


def cores() -> int:
    """Threads that this process should have busy at most: OMP_NUM_THREADS, or the cores that it may run on."""
    given = os.environ.get("OMP_NUM_THREADS", "")
    if given.isdigit() and int(given):
        return int(given)
    return len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1


def threads_of_process() -> int:
    """What torch computes with, where it was imported, and else `cores`."""
    torch = sys.modules.get(TORCH)
    return torch.get_num_threads() if torch else cores()


def set_torch_threads(count: int) -> None:
    """Says what torch computes with in this thread, where it was imported."""
    if torch := sys.modules.get(TORCH):
        torch.set_num_threads(count)


def trains_in_bf16(device: torch.device) -> bool:
    """Whether bf16 is the fast precision there: on CUDA, and on processors with AVX512-bf16 or AMX (3-5 times faster than
    fp32). With AVX2 alone PyTorch emulates it, ten times slower than fp32."""
    import torch

    if device.type == "cuda":
        return torch.cuda.is_bf16_supported()
    return bool(torch.cpu._is_avx512_bf16_supported() or torch.cpu._is_amx_tile_supported())


def _has_gpu_driver() -> bool:
    """Whether a driver is there without which torch finds no CUDA device: NVIDIA's, or AMD's under the same name."""
    try:
        ctypes.CDLL("nvcuda.dll" if sys.platform == "win32" else "libcuda.so.1")
    except OSError:
        return Path("/dev/kfd").exists()
    return True


def _cuda_devices() -> int:
    import torch

    return torch.cuda.device_count() if torch.cuda.is_available() else 0
