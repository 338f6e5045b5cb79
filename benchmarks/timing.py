"""Speed of a codec, measured in a process of its own, so that start-up time and memory are the codec's alone.

Times are medians of several runs after a warm-up, over complete files, with a fixed number of threads.
"""

from __future__ import annotations

import json
import os
import platform
import resource
import subprocess
import sys
import time
from collections.abc import Sequence
from dataclasses import asdict
from pathlib import Path
from statistics import median

import numpy as np

from benchmarks.codecs.compressai import CompressaiCodec
from benchmarks.codecs.registry import BenchCodecOptions, open_codec
from benchmarks.codecs.vvc import VvcCodec
from benchmarks.records import Pixels, Speed
from codec.errors import TesseraError

RUNS = 5  # runs per image
THREAD_VARIABLES = ("OMP_NUM_THREADS", "MKL_NUM_THREADS", "OPENBLAS_NUM_THREADS")
TIMEOUT = 600.0  # seconds for one codec


def time_codec(
    name: str, options: BenchCodecOptions, images: Sequence[Pixels], bpp: float, threads: int, folder: Path
) -> Speed:
    """Speed of a codec on images near a rate, measured in a new process, which reads the images from `folder`.

    Raises TesseraError if the process fails or takes too long."""
    path = folder / "images.npz"
    if not path.exists():
        np.savez(path, *images)
    job = {"name": name, "options": asdict(options), "images": str(path), "bpp": bpp, "started": time.time()}
    environment = os.environ | dict.fromkeys(THREAD_VARIABLES, str(threads))
    try:
        process = subprocess.run(
            [sys.executable, "-m", __spec__.name, json.dumps(job)],
            env=environment, capture_output=True, text=True, check=True, timeout=TIMEOUT,
        )  # fmt: skip
    except subprocess.CalledProcessError as error:
        reason = (error.stderr.strip().splitlines() or ["no message"])[-1]
        msg = f"the speed of {name} could not be measured: {reason}"
        raise TesseraError(msg) from error
    except subprocess.TimeoutExpired as error:
        msg = f"the speed of {name} could not be measured: it took more than {TIMEOUT:.0f} s"
        raise TesseraError(msg) from error
    return Speed(**json.loads(process.stdout.splitlines()[-1]))


def note(threads: int, images: Sequence[Pixels], bpp: float) -> str:
    """The conditions of the measurement, for readers."""
    height, width = images[0].shape[:2]
    share = f"{len(images)} images, the first of {width}x{height}" if len(images) > 1 else f"an image of {width}x{height}"
    plural = "s" if threads > 1 else ""
    return (
        f"{threads} thread{plural} on {processor()}, {share}, whole files near {bpp:g} bpp, median of {RUNS} runs each after a "
        "warm-up; start-up ends when the first image is coded and decoded"
    )


def processor() -> str:
    """The processor's name and its widest vector instructions."""
    try:
        lines = Path("/proc/cpuinfo").read_text().splitlines()
    except OSError:
        return platform.processor() or platform.machine()
    pairs = (line.partition(":")[::2] for line in lines)
    values = {key.strip(): value.strip() for key, value in pairs}
    name, flags = values.get("model name", platform.machine()), values.get("flags", "").split()
    widest = next((flag for flag in ("amx_bf16", "avx512_bf16", "avx512f", "avx2") if flag in flags), "")
    return f"{name} ({widest})" if widest else name


def peak_memory() -> float:
    """Peak memory of this process, MB. On Linux, getrusage would include the memory of the parent before the fork."""
    try:
        status = Path("/proc/self/status").read_text()
        return int(next(line for line in status.splitlines() if line.startswith("VmHWM")).split()[1]) * 1024 / 1e6
    except (OSError, StopIteration):
        return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024 / 1e6


def main() -> None:
    """Runs in the new process: reads a job from its argument and prints the speed as JSON."""
    job = json.loads(sys.argv[1])
    with np.load(job["images"], allow_pickle=False) as arrays:
        images = [arrays[name] for name in arrays.files]
    codec = open_codec(job["name"], BenchCodecOptions(**job["options"]))
    codec.decode(codec.encode(images[0], codec.settings[len(codec.settings) // 2]))
    startup = time.time() - job["started"]
    rates: dict[str, list[float]] = {"encode": [], "decode": []}
    settings = []
    for pixels in images:
        area = pixels.shape[0] * pixels.shape[1]
        file = codec.fit(pixels, [int(job["bpp"] * area / 8)])[0]
        setting = file.number if file else codec.settings[0]
        settings.append(f"{setting:.0f}")
        for _ in range(RUNS):
            start = time.perf_counter()
            data = codec.encode(pixels, setting)
            middle = time.perf_counter()
            codec.decode(data)
            end = time.perf_counter()
            rates["encode"].append(area / 1e6 / (middle - start))
            rates["decode"].append(area / 1e6 / (end - middle))
    memory = peak_memory()
    if isinstance(codec, CompressaiCodec):
        codec.close()
    if isinstance(codec, CompressaiCodec | VvcCodec):  # these run in processes of their own
        memory += resource.getrusage(resource.RUSAGE_CHILDREN).ru_maxrss * 1024 / 1e6
    speed = Speed(
        codec.name, median(rates["encode"]), median(rates["decode"]), startup,
        memory, "quality " + ", ".join(dict.fromkeys(settings)),
    )  # fmt: skip
    sys.stdout.write(json.dumps(asdict(speed)) + "\n")


if __name__ == "__main__":
    main()
