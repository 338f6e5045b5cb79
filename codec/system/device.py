"""Selects the device and the runtime: torch on CUDA, ONNX Runtime on processors. Imports neither before it is needed, since
`import torch` takes longer than coding a photo."""

from __future__ import annotations

import ctypes
import os
import sys
from collections.abc import Sequence
from importlib.util import find_spec
from pathlib import Path
from typing import TYPE_CHECKING, Any

from codec.errors import DeviceError, ModelError, UsageError
from codec.options import RUNTIMES

if TYPE_CHECKING:
    import torch

ONNX, TORCH = "onnx", "torch"
PACKAGES = {ONNX: "onnxruntime", TORCH: "torch"}
INSTALL = {ONNX: "pip install onnxruntime", TORCH: "pip install 'tessera-codec[torch]'"}


def pick_device(name: str = "auto") -> str:
    """Returns 'cpu', 'cuda' or 'cuda:N' for a device name; 'auto' is the first CUDA device, or else the processor.

    Raises DeviceError if the device is unknown or missing: a requested device is never silently replaced."""
    if name == "auto":
        return "cuda" if _has_gpu_driver() and is_installed(TORCH) and _count_cuda_devices() else "cpu"
    kind, _, index = name.partition(":")
    if kind not in ("cpu", "cuda") or (index and (kind == "cpu" or not index.isdigit())):
        msg = f"unknown device {name!r}: use auto, cpu, cuda or cuda:N"
        raise DeviceError(msg)
    if kind == "cuda" and not is_installed(TORCH):
        msg = f"device {name!r} needs torch, which is not installed: {INSTALL[TORCH]}"
        raise DeviceError(msg, ("device",))
    if kind == "cuda" and int(index or 0) >= (count := _count_cuda_devices()):
        msg = f"device {name!r} does not exist ({count} CUDA devices found)"
        raise DeviceError(msg, ("device",))
    return name


def pick_runtime(name: str, device: str, supported: Sequence[str], reason: str) -> str:
    """Returns 'onnx' or 'torch' for a runtime name; 'auto' is torch on CUDA, or else the first installed one of `supported`.

    `reason` explains in error messages why ONNX Runtime is not supported. Raises UsageError if the runtime is unknown or not
    supported, ModelError if it is not installed."""
    if name not in RUNTIMES:
        msg = f"unknown runtime {name!r}: use {', '.join(RUNTIMES)}"
        raise UsageError(msg)
    if name == ONNX and device != "cpu":
        msg = f"runtime onnx does not support device {device!r}: use runtime torch"
        raise UsageError(msg, ("runtime",))
    if name == ONNX and ONNX not in supported:
        msg = f"runtime onnx is not supported: {reason}"
        raise UsageError(msg, ("runtime",))
    candidates = [name] if name != "auto" else [TORCH] if device != "cpu" else list(supported)
    for candidate in candidates:
        if is_installed(candidate):
            return candidate
    explanation = f"; {reason}" if ONNX not in supported else ""
    msg = f"{PACKAGES[candidates[0]]} is not installed{explanation}: {INSTALL[candidates[0]]}"
    raise ModelError(msg, ("runtime",) if name != "auto" else ())


def is_installed(runtime: str) -> bool:
    """Whether the package of a runtime is installed. Does not import it."""
    package = PACKAGES[runtime]
    if package in sys.modules:  # None there means that the import is blocked, which find_spec reports as ValueError
        return sys.modules[package] is not None
    return find_spec(package) is not None


def load_onnxruntime() -> Any:
    """Imports ONNX Runtime, with its telemetry off.

    From 1.29 on, its wheels store a device id and events in the user's cache when they are loaded, and send them. The variable
    prevents all of that, in child processes too; the function stops events if the program had imported ONNX Runtime before.
    Source: docs/Privacy.md of ONNX Runtime; tried with 1.27 to 1.32."""
    os.environ["ORT_DISABLE_TELEMETRY"] = "1"
    import onnxruntime

    onnxruntime.disable_telemetry_events()
    return onnxruntime


def require_torch(purpose: str) -> None:
    """Raises ModelError if torch is not installed; `purpose` begins the message."""
    if not is_installed(TORCH):
        msg = f"{purpose} needs torch, which is not installed: {INSTALL[TORCH]}"
        raise ModelError(msg)


def trains_in_bf16(device: torch.device) -> bool:
    """Whether bf16 is faster than fp32 for training: on CUDA, and on processors with AVX512-bf16 or AMX (3-5 times).

    With AVX2 alone, PyTorch emulates it and is ten times slower than in fp32."""
    import torch

    if device.type == "cuda":
        return torch.cuda.is_bf16_supported()
    return bool(torch.cpu._is_avx512_bf16_supported() or torch.cpu._is_amx_tile_supported())


def _has_gpu_driver() -> bool:
    """Whether an NVIDIA or AMD driver is installed. Without one, torch finds no CUDA device."""
    try:
        ctypes.CDLL("nvcuda.dll" if sys.platform == "win32" else "libcuda.so.1")
    except OSError:
        return Path("/dev/kfd").exists()  # the AMD driver; torch calls AMD devices CUDA, too
    return True


def _count_cuda_devices() -> int:
    import torch

    return torch.cuda.device_count() if torch.cuda.is_available() else 0
