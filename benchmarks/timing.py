"""Speed: each codec alone in a process of its own, so that start-up and memory are its own too.

Times are the median of several runs after a warm-up, over whole files, with the threads of the process pinned.
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

from benchmarks.codecs.compressai_codecs import LearnedCoder
from benchmarks.codecs.registry import CoderOptions, make_coder
from benchmarks.codecs.vvc import VvcCoder
from benchmarks.measurements import Pixels, Speed
from codec.errors import TesseraError

RUNS = 5  # of each image
THREADS = ("OMP_NUM_THREADS", "MKL_NUM_THREADS", "OPENBLAS_NUM_THREADS")
LONGEST = 600.0  # seconds that one codec may take


def time_codec(name: str, options: CoderOptions, images: Sequence[Pixels], bpp: float, threads: int, folder: Path) -> Speed:
    """Speed of a codec on images near a rate, measured in a fresh process; `folder` takes the images there.

    Raises TesseraError where the process fails."""
    path = folder / "images.npz"
    if not path.exists():
        np.savez(path, *images)
    job = {"name": name, "options": asdict(options), "images": str(path), "bpp": bpp, "started": time.time()}
    environment = os.environ | dict.fromkeys(THREADS, str(threads))
    try:
        done = subprocess.run(
            [sys.executable, "-m", __spec__.name, json.dumps(job)],
            env=environment, capture_output=True, text=True, check=True, timeout=LONGEST,
        )  # fmt: skip
    except subprocess.CalledProcessError as error:
        last = (error.stderr.strip().splitlines() or ["it ended without a word"])[-1]
        msg = f"the speed of {name} could not be measured: {last}"
        raise TesseraError(msg) from error
    except subprocess.TimeoutExpired as error:
        msg = f"the speed of {name} could not be measured: it took more than {LONGEST:.0f} s"
        raise TesseraError(msg) from error
    return Speed(**json.loads(done.stdout.splitlines()[-1]))


def note(threads: int, images: Sequence[Pixels], bpp: float) -> str:
    """What the numbers hold for, in words."""
    height, width = images[0].shape[:2]
    share = f"{len(images)} images, the first of {width}x{height}" if len(images) > 1 else f"an image of {width}x{height}"
    plural = "s" if threads > 1 else ""
    return (
        f"{threads} thread{plural} on {processor()}, {share}, whole files near {bpp:g} bpp, median of {RUNS} runs each after a "
        "warm-up; start-up is from nothing to the first image coded and decoded"
    )


def processor() -> str:
    """The processor's name and the widest instructions that matter here."""
    try:
        lines = Path("/proc/cpuinfo").read_text().splitlines()
    except OSError:
        return platform.processor() or platform.machine()
    values = dict(line.partition(":")[::2] for line in lines if ":" in line)
    found = {key.strip(): value.strip() for key, value in values.items()}
    flags = found.get("flags", "").split()
    widest = next((flag for flag in ("amx_bf16", "avx512_bf16", "avx512f", "avx2") if flag in flags), "")
    return (
        f"{found.get('model name', platform.machine())} ({widest})" if widest else found.get("model name", platform.machine())
    )


def peak_memory() -> float:
    """Of this process since it began, MB. Linux's getrusage would count what the parent had before the fork."""
    try:
        status = Path("/proc/self/status").read_text()
        return int(next(line for line in status.splitlines() if line.startswith("VmHWM")).split()[1]) * 1024 / 1e6
    except (OSError, StopIteration):
        return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024 / 1e6


def main() -> None:
    """The child's side."""
    job = json.loads(sys.argv[1])
    with np.load(job["images"], allow_pickle=False) as arrays:
        images = [arrays[name] for name in arrays.files]
    coder = make_coder(job["name"], CoderOptions(**job["options"]))
    coder.decode(coder.encode(images[0], coder.settings[len(coder.settings) // 2]))
    startup = time.time() - job["started"]
    rates: dict[str, list[float]] = {"encode": [], "decode": []}
    words = []
    for pixels in images:
        area = pixels.shape[0] * pixels.shape[1]
        made = coder.fit(pixels, [int(job["bpp"] * area / 8)])[0]
        setting = made.number if made else coder.settings[0]
        words.append(f"{setting:.0f}")
        for _ in range(RUNS):
            start = time.perf_counter()
            data = coder.encode(pixels, setting)
            middle = time.perf_counter()
            coder.decode(data)
            end = time.perf_counter()
            rates["encode"].append(area / 1e6 / (middle - start))
            rates["decode"].append(area / 1e6 / (end - middle))
    memory = peak_memory()
    if isinstance(coder, LearnedCoder):
        coder.close()
    if isinstance(coder, LearnedCoder | VvcCoder):  # their work was done by processes of their own
        memory += resource.getrusage(resource.RUSAGE_CHILDREN).ru_maxrss * 1024 / 1e6
    speed = Speed(
        coder.name, median(rates["encode"]), median(rates["decode"]), startup,
        memory, "quality " + ", ".join(dict.fromkeys(words)),
    )  # fmt: skip
    sys.stdout.write(json.dumps(asdict(speed)) + "\n")


if __name__ == "__main__":
    main()
