"""Time and memory of complete commands by size of image, and of Tessera without start-up. For docs/speed.md, "Whole commands".

    python -m benchmarks.tools.speed photo.png --threads 2

Each command runs several times in a new process. The fastest run counts, because other work on the machine can only slow a run
down. Images of more than 50 megapixels run once. Peak memory is the largest resident set of the process, or of the small
process that starts it (12 MB) if that is larger. In the second table the model is loaded and an image of the same size is coded
before the clock starts. Tools that are not installed are left out (Debian: webp, libavif-bin, libjxl-tools).
"""

from __future__ import annotations

import argparse
import json
import os
import shutil
import subprocess
import sys
import tempfile
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from PIL import Image

from benchmarks.timing import THREAD_VARIABLES, processor

SIZES = ((768, 512), (1920, 1080), (4000, 3000), (12240, 8160))
LARGE = 50_000_000  # pixels; larger images run once
# A process inherits the peak resident set of the one that forks it, so a small one forks and reports.
START = """
import os, subprocess, sys, time
start = time.perf_counter()
process = subprocess.Popen(sys.argv[1:], stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)
_, status, usage = os.wait4(process.pid, 0)
seconds = time.perf_counter() - start
print(os.waitstatus_to_exitcode(status), seconds, usage.ru_utime + usage.ru_stime, usage.ru_maxrss * 1024 / 1e6)
"""
RUNTIMES = ("onnx", "torch")
TOOLS = {  # name: encoder, decoder
    "WebP": (
        ["cwebp", "-quiet", "-mt", "-q", "50", "{png}", "-o", "{file}"],
        ["dwebp", "-quiet", "-mt", "{file}", "-o", "{out}"],
    ),
    "AVIF": (
        ["avifenc", "-j", "{threads}", "--min", "28", "--max", "36", "{png}", "{file}"],
        ["avifdec", "-j", "{threads}", "{file}", "{out}"],
    ),
    "JPEG XL": (
        ["cjxl", "--quiet", "--num_threads={threads}", "-q", "50", "{png}", "{file}"],
        ["djxl", "--quiet", "--num_threads={threads}", "{file}", "{out}"],
    ),
}
SUFFIXES = {"WebP": "webp", "AVIF": "avif", "JPEG XL": "jxl"}
IN_PROCESS = """
import json, sys, time
import numpy as np
from PIL import Image
from codec.codec import Codec
from codec.image.source import read_source
from codec.options import DEFAULT_QUALITY
path, runtime, runs = sys.argv[1], sys.argv[2], int(sys.argv[3])
pixels = np.asarray(Image.open(path).convert("RGB"))
codec = Codec(device="cpu", runtime=runtime)
codec.decode(codec.encode(pixels).data)
times = {"encode": [], "decode": [], "read": [], "tokenize": []}
for _ in range(runs):
    start = time.perf_counter(); data = codec.encode(pixels).data
    times["encode"].append(time.perf_counter() - start)
    start = time.perf_counter(); codec.decode(data)
    times["decode"].append(time.perf_counter() - start)
    start = time.perf_counter(); codec.read(data)
    times["read"].append(time.perf_counter() - start)
    source = read_source(pixels)
    start = time.perf_counter(); codec.tokenize([source], quality=DEFAULT_QUALITY)
    times["tokenize"].append(time.perf_counter() - start)
print(json.dumps({name: min(seconds) for name, seconds in times.items()}))
"""


@dataclass(frozen=True)
class Run:
    """One run of a command."""

    seconds: float
    cpu: float  # seconds of processor time
    peak: float  # MB


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("photo", type=Path)
    parser.add_argument("--threads", type=int, default=2)
    parser.add_argument("--runs", type=int, default=3)
    parser.add_argument("--sizes", type=int, default=len(SIZES), metavar="N", help="measure the N smallest sizes")
    arguments = parser.parse_args()
    threads, write = arguments.threads, sys.stdout.write
    write(f"{threads} threads on {processor()}, fastest of {arguments.runs} runs; processor seconds in parentheses\n\n")
    with tempfile.TemporaryDirectory() as folder:
        images = {}  # path -> runs
        with Image.open(arguments.photo) as image:
            photo = image.convert("RGB")
        for width, height in SIZES[: arguments.sizes]:
            path = Path(folder) / f"{width}x{height}.png"
            photo.resize((width, height), Image.Resampling.LANCZOS).save(path)
            images[path] = 1 if width * height > LARGE else arguments.runs
        write(table_head("whole command", "image", "encode, s", "decode, s", "encode, MB", "decode, MB", "bytes"))
        for png, runs in images.items():
            for runtime in RUNTIMES:
                write(tessera_row(runtime, png, threads, runs) + "\n")
            for name in TOOLS:
                if line := tool_row(name, png, threads, runs):
                    write(line + "\n")
        write("\n" + table_head("in process", "image", "encode, s", "tokenize, s", "decode, s", "read tokens, s"))
        for png, runs in images.items():
            for runtime in RUNTIMES:
                write(in_process_row(runtime, png, threads, runs) + "\n")


def table_head(*cells: str) -> str:
    return f"| {' | '.join(cells)} |\n|{'---|' * len(cells)}\n"


def tessera_row(runtime: str, png: Path, threads: int, runs: int) -> str:
    file = png.with_suffix(f".{runtime}.tsr")
    command = [sys.executable, "-m", "cli"]
    options = ["--runtime", runtime, "--device", "cpu", "-j", str(threads), "-f"]
    encode = fastest([*command, "encode", str(png), "-o", str(file), *options], threads, runs)
    decode = fastest([*command, "decode", str(file), "-o", str(png.with_suffix(".out.png")), *options], threads, runs)
    return command_row(f"Tessera, {runtime}", png, encode, decode, file)


def tool_row(name: str, png: Path, threads: int, runs: int) -> str | None:
    """The row of another codec's tools; None if they are not installed."""
    encoder, decoder = TOOLS[name]
    if not shutil.which(encoder[0]) or not shutil.which(decoder[0]):
        return None
    file = png.with_suffix(f".{SUFFIXES[name]}")
    names = {"png": str(png), "file": str(file), "out": str(png.with_suffix(".out.png")), "threads": str(threads)}
    encode, decode = (fastest([word.format(**names) for word in command], threads, runs) for command in (encoder, decoder))
    return command_row(f"{name} (`{encoder[0]}`)", png, encode, decode, file)


def command_row(name: str, png: Path, encode: Run, decode: Run, file: Path) -> str:
    seconds = [f"{run.seconds:.2f} ({run.cpu:.2f})" for run in (encode, decode)]
    cells = [name, png.stem, *seconds, f"{encode.peak:.0f}", f"{decode.peak:.0f}", f"{file.stat().st_size:,}"]
    return f"| {' | '.join(cells)} |"


def fastest(command: Sequence[str], threads: int, runs: int) -> Run:
    """The fastest of several runs. Raises CalledProcessError if one fails."""
    environment = os.environ | dict.fromkeys(THREAD_VARIABLES, str(threads))
    results = []
    for _ in range(runs):
        process = subprocess.run(
            [sys.executable, "-S", "-c", START, *command], env=environment, check=True, capture_output=True
        )
        code, *numbers = process.stdout.split()
        if int(code):
            raise subprocess.CalledProcessError(int(code), command)
        results.append(Run(*map(float, numbers)))
    return min(results, key=lambda run: run.seconds)


def in_process_row(runtime: str, png: Path, threads: int, runs: int) -> str:
    environment = os.environ | dict.fromkeys(THREAD_VARIABLES, str(threads))
    command = [sys.executable, "-c", IN_PROCESS, str(png), runtime, str(runs)]
    process = subprocess.run(command, env=environment, check=True, capture_output=True, text=True)
    seconds = json.loads(process.stdout.splitlines()[-1])
    numbers = " | ".join(f"{seconds[name]:.3f}" for name in ("encode", "tokenize", "decode", "read"))
    return f"| Tessera, {runtime} | {png.stem} | {numbers} |"


if __name__ == "__main__":
    main()
