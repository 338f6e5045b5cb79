"""How near the encoding of a folder comes to what the network alone can do, and in how much memory.

OPENBLAS_NUM_THREADS=1 python -m benchmarks.tools.pipeline photos/ --limit 300

Both code the same images in turns, some at a time, so that whatever else the machine does slows both. The network alone is
given pixels that were read beforehand, in the same threads and batches, and its tokens are thrown away; the pipeline reads
files and writes files. A processor second is one of work on one core, which other work on the machine does not lengthen much.
"""

from __future__ import annotations

import argparse
import resource
import sys
import tempfile
import time
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch

from bitstream.block_order import blocks_of
from codec.codec import Codec
from codec.image.reading import read_image
from codec.parallel.pipeline import Limits, Stages, encode_all, overlap
from codec.rate_control import Target
from codec.results import Prepared


@dataclass
class Clock:
    """Pixels, and the seconds that they took by the clock and of the processor."""

    pixels: int = 0
    seconds: float = 0.0
    work: float = 0.0

    def time(self, pixels: int, call: Callable[[], None]) -> None:
        seconds, work = time.perf_counter(), time.process_time()
        call()
        self.seconds += time.perf_counter() - seconds
        self.work += time.process_time() - work
        self.pixels += pixels

    def __str__(self) -> str:
        return f"{self.pixels / 1e6 / self.seconds:.3f} MP/s, {self.pixels / 1e6 / self.work:.3f} MP per processor second"


def network_alone(codec: Codec, images: list[Prepared], limits: Limits) -> None:
    """Pixels to tokens: encoder and levels, with the integer prior that rounding asks for."""

    def compute(items: list[Prepared]) -> list[Any]:
        return codec.tokenize(items, Target())

    def alike(item: Prepared) -> tuple[int, int]:
        return blocks_of(item.width, item.height)

    stages = Stages(lambda image, _: image, compute, lambda *_: None, alike, lambda: codec)
    _drain(overlap(images, stages, limits))


def whole_pipeline(codec: Codec, files: list[Path], folder: Path, limits: Limits) -> None:
    """Files to files."""
    _drain(
        encode_all(
            files,
            lambda: codec,
            lambda path: path.read_bytes(),
            lambda path, made: (folder / f"{path.stem}.tsr").write_bytes(made.data),
            limits=limits,
        )
    )


def _drain(outcomes: Any) -> None:
    for outcome in outcomes:
        if outcome.error:
            raise outcome.error


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("folder", type=Path, help="images")
    parser.add_argument("--limit", type=int, help="only so many images")
    parser.add_argument("--turn", type=int, default=50, help="images per turn")
    parser.add_argument("--device", default="auto")
    parser.add_argument("--batch", type=int, help="images per network call")
    parser.add_argument("--jobs", type=int, help="reading and writing threads")
    given = parser.parse_args()
    files = sorted(path for path in given.folder.iterdir() if path.is_file())[: given.limit]
    codec = Codec(device=given.device)
    limits = Limits(batch=given.batch, **({"threads": given.jobs} if given.jobs else {}))
    alone, whole = Clock(), Clock()
    with tempfile.TemporaryDirectory() as made:
        folder = Path(made)
        whole_pipeline(codec, files[:4], folder, limits)  # warm-up
        for start in range(0, len(files), given.turn):
            turn = files[start : start + given.turn]
            images = [codec.prepare(read_image(path.read_bytes())) for path in turn]
            pixels = sum(image.width * image.height for image in images)
            alone.time(pixels, lambda images=images: network_alone(codec, images, limits))  # type: ignore[misc]
            del images
            whole.time(pixels, lambda turn=turn: whole_pipeline(codec, turn, folder, limits))  # type: ignore[misc]
    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1e3
    sys.stdout.write(
        f"{codec.device}, {torch.get_num_threads()} threads, {len(files)} images, {whole.pixels / 1e6:.1f} MP\n"
        f"network alone:  {alone}\n"
        f"whole pipeline: {whole}\n"
        f"share: {alone.seconds / whole.seconds:.0%} by the clock, {alone.work / whole.work:.0%} of processor time\n"
        f"peak memory: {peak:.0f} MB\n"
    )


if __name__ == "__main__":
    main()
