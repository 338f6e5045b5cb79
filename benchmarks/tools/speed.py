"""Time and memory of whole commands, and of Tessera's network and coder without their start-up, by size of image.

python -m benchmarks.tools.speed photo.png --threads 2

Each command runs in a fresh process, several times; the fastest run counts, since whatever else a machine does only ever slows
one. Images of more than 50 megapixels run once. Peak memory is the largest resident set of the process, or of the small one
that starts it (12 MB), whichever is larger. Within one process (`in process`) the model is loaded and one image of that size
coded first. Tools that are not installed are left out (Debian: webp, libavif-bin, libjxl-tools).
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

from benchmarks.timing import THREADS, processor

SIZES = ((768, 512), (1920, 1080), (4000, 3000), (12240, 8160))
LARGE = 50_000_000  # pixels; larger images run once
# A process starts with the largest resident set of the one that forks it, so a small one forks, and says what it found.
START = """
import os, subprocess, sys, time
start = time.perf_counter()
process = subprocess.Popen(sys.argv[1:], stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)
_, status, usage = os.wait4(process.pid, 0)
seconds = time.perf_counter() - start
print(os.waitstatus_to_exitcode(status), seconds, usage.ru_utime + usage.ru_stime, usage.ru_maxrss * 1024 / 1e6)
"""
RUNTIMES = ("onnx", "torch")
TOOLS = {  # name: encoder, decoder, ending of files
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
ENDINGS = {"WebP": "webp", "AVIF": "avif", "JPEG XL": "jxl"}
INSIDE = """
import json, sys, time
import numpy as np
from PIL import Image
from codec.codec import Codec
from codec.rate_control import Target
path, runtime, runs = sys.argv[1], sys.argv[2], int(sys.argv[3])
pixels = np.asarray(Image.open(path).convert("RGB"))
codec = Codec(device="cpu", runtime=runtime)
data = codec.encode(pixels)
codec.decode(data)
times = {"encode": [], "decode": [], "read": [], "tokenize": []}
for _ in range(runs):
    start = time.perf_counter(); data = codec.encode(pixels)
    times["encode"].append(time.perf_counter() - start)
    start = time.perf_counter(); codec.decode(data)
    times["decode"].append(time.perf_counter() - start)
    start = time.perf_counter(); codec.read(data)
    times["read"].append(time.perf_counter() - start)
    prepared = codec.prepare(pixels)
    start = time.perf_counter(); codec.tokenize([prepared], Target())
    times["tokenize"].append(time.perf_counter() - start)
print(json.dumps({name: min(found) for name, found in times.items()}))
"""


@dataclass(frozen=True)
class Run:
    """One command, from its start to its end."""

    seconds: float
    cpu: float  # seconds of processor time
    peak: float  # MB


def run(command: Sequence[str], threads: int, runs: int) -> Run:
    """The fastest of some runs. Raises CalledProcessError where one fails."""
    environment = os.environ | dict.fromkeys(THREADS, str(threads))
    best: Run | None = None
    for _ in range(runs):
        told = subprocess.run([sys.executable, "-S", "-c", START, *command], env=environment, check=True, capture_output=True)
        code, *numbers = told.stdout.split()
        if int(code):
            raise subprocess.CalledProcessError(int(code), command)
        made = Run(*map(float, numbers))
        best = made if best is None or made.seconds < best.seconds else best
    assert best
    return best


def head(*cells: str) -> str:
    return f"| {' | '.join(cells)} |\n|{'---|' * len(cells)}\n"


def row(name: str, size: str, encode: Run, decode: Run, length: int) -> str:
    cells = [name, size, f"{encode.seconds:.2f} ({encode.cpu:.2f})", f"{decode.seconds:.2f} ({decode.cpu:.2f})"]
    return f"| {' | '.join([*cells, f'{encode.peak:.0f}', f'{decode.peak:.0f}', f'{length:,}'])} |"


def tool(name: str, png: Path, threads: int, runs: int) -> str | None:
    """A table row of another codec's tools; None where they are not there."""
    encoder, decoder = TOOLS[name]
    if not shutil.which(encoder[0]) or not shutil.which(decoder[0]):
        return None
    file = png.with_suffix(f".{ENDINGS[name]}")
    names = {"png": str(png), "file": str(file), "out": str(png.with_suffix(".out.png")), "threads": str(threads)}
    encode, decode = (run([part.format(**names) for part in command], threads, runs) for command in (encoder, decoder))
    return row(f"{name} (`{encoder[0]}`)", size_of(png), encode, decode, file.stat().st_size)


def tessera(runtime: str, png: Path, threads: int, runs: int) -> str:
    file = png.with_suffix(f".{runtime}.tsr")
    common = [sys.executable, "-m", "cli"]
    rest = ["--runtime", runtime, "--device", "cpu", "-j", str(threads), "-f"]
    encode = run([*common, "encode", str(png), "-o", str(file), *rest], threads, runs)
    decode = run([*common, "decode", str(file), "-o", str(png.with_suffix(".out.png")), *rest], threads, runs)
    return row(f"Tessera, {runtime}", size_of(png), encode, decode, file.stat().st_size)


def inside(runtime: str, png: Path, threads: int, runs: int) -> str:
    environment = os.environ | dict.fromkeys(THREADS, str(threads))
    command = [sys.executable, "-c", INSIDE, str(png), runtime, str(runs)]
    done = subprocess.run(command, env=environment, check=True, capture_output=True, text=True)
    found = json.loads(done.stdout.splitlines()[-1])
    numbers = " | ".join(f"{found[name]:.3f}" for name in ("encode", "tokenize", "decode", "read"))
    return f"| Tessera, {runtime} | {size_of(png)} | {numbers} |"


def size_of(png: Path) -> str:
    with Image.open(png) as image:
        return f"{image.width}x{image.height}"


def runs_of(png: Path, runs: int) -> int:
    with Image.open(png) as image:
        return 1 if image.width * image.height > LARGE else runs


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("photo", type=Path)
    parser.add_argument("--threads", type=int, default=2)
    parser.add_argument("--runs", type=int, default=3)
    parser.add_argument("--sizes", type=int, default=len(SIZES), help="how many of them")
    given = parser.parse_args()
    say = sys.stdout.write
    say(f"{given.threads} threads on {processor()}, fastest of {given.runs} runs; processor seconds in parentheses\n\n")
    with tempfile.TemporaryDirectory() as folder:
        images = []
        with Image.open(given.photo) as opened:
            photo = opened.convert("RGB")
        for width, height in SIZES[: given.sizes]:
            images.append(Path(folder) / f"{width}x{height}.png")
            photo.resize((width, height), Image.Resampling.LANCZOS).save(images[-1])
        say(head("whole command", "image", "encode, s", "decode, s", "encode, MB", "decode, MB", "bytes"))
        for png in images:
            runs = runs_of(png, given.runs)
            for runtime in RUNTIMES:
                say(tessera(runtime, png, given.threads, runs) + "\n")
            for name in TOOLS:
                if line := tool(name, png, given.threads, runs):
                    say(line + "\n")
        say("\n" + head("in process", "image", "encode, s", "its network and prior, s", "decode, s", "its tokens, s"))
        for png in images:
            for runtime in RUNTIMES:
                say(inside(runtime, png, given.threads, runs_of(png, given.runs)) + "\n")


if __name__ == "__main__":
    main()
