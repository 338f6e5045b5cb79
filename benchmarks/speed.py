"""Speed of whole-file encoding and decoding, in megapixels a second, after warm-up; start-up and file reading apart.

python -m benchmarks.speed ../shared/kodak --threads 2
"""

from __future__ import annotations

import argparse
import sys
import time
from pathlib import Path
from statistics import median

import torch

from codec.api import Codec
from codec.images import read_image, to_pixels


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("pictures", type=Path, nargs="+", help="pictures, or folders of them")
    parser.add_argument("--quality", type=float, nargs="+", default=[25, 50, 75, 100])
    parser.add_argument("--device", default="auto")
    parser.add_argument("--threads", type=int)
    parser.add_argument("--limit", type=int, default=8, help="only so many pictures")
    given = parser.parse_args()
    if given.threads:
        torch.set_num_threads(given.threads)
    files = [f for p in given.pictures for f in (sorted(p.glob("*.*")) if p.is_dir() else [p])][: given.limit]
    originals = [to_pixels(read_image(path.read_bytes())) for path in files]
    codec = Codec(device=given.device)
    codec.decode(codec.encode(originals[0]))
    sys.stdout.write(f"{codec.device}, {torch.get_num_threads()} threads, median of {len(files)} pictures, MP/s\n")
    for quality in given.quality:
        speeds = []
        for pixels in originals:
            megapixels = pixels.shape[0] * pixels.shape[1] / 1e6
            times = [time.perf_counter()]
            data = codec.encode(pixels, quality=quality)
            times.append(time.perf_counter())
            codec.decode(data)
            times.append(time.perf_counter())
            speeds.append((megapixels / (times[1] - times[0]), megapixels / (times[2] - times[1])))
        encode, decode = (median(column) for column in zip(*speeds, strict=True))
        sys.stdout.write(f"quality {quality:g}: encode {encode:.2f}, decode {decode:.2f}\n")


if __name__ == "__main__":
    main()
