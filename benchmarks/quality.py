"""Rate and quality of a model on a folder of pictures, beside WebP and JPEG at the same bytes.

    python -m benchmarks.quality ../shared/kodak --lpips ../shared/perceptual/lpips_alex.npz --json quality.json

Every rate is that of the whole file, header included, and no budget is exceeded. WebP (method 6) and JPEG (libjpeg-turbo,
optimised Huffman) get the best of six scales, Lanczos down and bicubic up, chosen for each picture, budget and metric apart: a
stronger opponent than the codec at native size, and the only one there is at the lowest rates. A picture that does not fit at
any scale and quality counts for nothing in the mean, and the table says how many fitted.
"""

from __future__ import annotations

import argparse
import io
import json
import sys
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import numpy as np
import torch
from PIL import Image

from benchmarks.metrics import ms_ssim, psnr
from benchmarks.results import Pixels
from codec.api import Codec
from codec.images import read_image, to_pixels
from codec.lengths import Target
from codec.lpips import LPIPS

BUDGETS = (0.0147, 0.0244, 0.0443, 0.0806, 0.153, 0.4)  # bits a pixel
SCALES = (1.0, 0.75, 0.5, 0.35, 0.25, 0.125)
BETTER: dict[str, Callable[..., float]] = {"lpips": min, "psnr": max, "ms_ssim": max}
SAVE: dict[str, dict[str, Any]] = {"webp": {"method": 6}, "jpeg": {"optimize": True}}
Row = dict[str, float]


def measure(picture: Pixels, original: Pixels, lpips: LPIPS | None) -> Row:
    row = {"psnr": psnr(picture, original)}
    if min(original.shape[:2]) > 160:
        row["ms_ssim"] = ms_ssim(picture, original)
    if lpips:
        row["lpips"] = lpips.distance(picture, original)
    return row


def tessera_rows(codec: Codec, original: Pixels, targets: list[Target], lpips: LPIPS | None) -> Iterator[Row]:
    """What each target gives: one encoding, cut for each, each file decoded anew."""
    layout, sequence = codec.sequence(original)
    for target in targets:
        made = codec.cut(layout, sequence, target)
        decoded = codec.decompress(made.data)
        yield {"bpp": made.bpp, "tokens": made.tokens} | measure(np.asarray(decoded.image), original, lpips)


def classical_bytes(image: Image.Image, kind: str, quality: int) -> bytes:
    stream = io.BytesIO()
    image.save(stream, kind, quality=quality, **SAVE[kind])
    return stream.getvalue()


def best_quality(image: Image.Image, kind: str, budget: int) -> bytes | None:
    """The file of highest quality, 0..95, within `budget` bytes."""
    low, high, best = 0, 95, None
    while low <= high:
        middle = (low + high) // 2
        data = classical_bytes(image, kind, middle)
        if len(data) <= budget:
            low, best = middle + 1, data
        else:
            high = middle - 1
    return best


def classical_pictures(original: Pixels, kind: str, budget: int) -> Iterator[tuple[bytes, Pixels]]:
    """At each scale, the best file within `budget` bytes and its picture at the original size."""
    height, width = original.shape[:2]
    for scale in SCALES:
        size = max(1, round(width * scale)), max(1, round(height * scale))
        small = Image.fromarray(original).resize(size, Image.Resampling.LANCZOS)
        if data := best_quality(small, kind, budget):
            large = Image.open(io.BytesIO(data)).convert("RGB").resize((width, height), Image.Resampling.BICUBIC)
            yield data, np.asarray(large)


def classical_row(original: Pixels, kind: str, budget: float, lpips: LPIPS | None) -> Row | None:
    """The best of all scales for a budget in bits a pixel, for each metric apart; None where nothing fits."""
    pixels = original.shape[0] * original.shape[1]
    rows = [
        {"bpp": 8 * len(data) / pixels} | measure(picture, original, lpips)
        for data, picture in classical_pictures(original, kind, int(budget * pixels / 8))
    ]
    return {name: BETTER.get(name, max)(row[name] for row in rows) for name in rows[0]} if rows else None


def mean(rows: list[Row]) -> Row:
    return {name: float(np.mean([row[name] for row in rows])) for name in rows[0]} | {"pictures": len(rows)}


def evaluate(
    codec: Codec, pictures: list[Path], targets: list[Target], lpips: LPIPS | None, opponents: list[str]
) -> dict[str, list[Row | None]]:
    """Means over all pictures: a list with a row for each target, for each codec. Opponents need targets in bits a pixel."""
    rows: dict[str, list[list[Row]]] = {name: [[] for _ in targets] for name in ("tessera", *opponents)}
    for number, path in enumerate(pictures, 1):
        original = to_pixels(read_image(path.read_bytes()))
        for place, row in enumerate(tessera_rows(codec, original, targets, lpips)):
            rows["tessera"][place].append(row)
        for kind in opponents:
            for place, target in enumerate(targets):
                if found := classical_row(original, kind, target.target_bpp or 0, lpips):
                    rows[kind][place].append(found)
        sys.stderr.write(f"\r{number} of {len(pictures)} pictures")
    sys.stderr.write("\n")
    return {name: [mean(part) if part else None for part in parts] for name, parts in rows.items()}


def markdown(results: dict[str, list[Row | None]], heading: list[str]) -> str:
    """A table for MODEL.md: bits a pixel, LPIPS / PSNR / MS-SSIM in each cell."""
    lines = ["| " + " | ".join(heading) + " |", "|---" * len(heading) + "|"]
    spent = [f"{row['bpp']:.4f}" if row else "" for row in results["tessera"]]
    lines.append("| tessera, bpp | " + " | ".join(spent) + " |")
    total = max((int(row["pictures"]) for row in results["tessera"] if row), default=0)
    for name, rows in results.items():
        cells = []
        for row in rows:
            values = (
                [f"{row[m]:.{d}f}" for m, d in (("lpips", 3), ("psnr", 2), ("ms_ssim", 3)) if m in row]
                if row
                else ["none fits"]
            )
            few = f" ({int(row['pictures'])} fit)" if row and row["pictures"] < total else ""
            cells.append(" / ".join(values) + few)
        lines.append(f"| {name} | " + " | ".join(cells) + " |")
    return "\n".join(lines)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("pictures", type=Path, nargs="+", help="pictures, or folders of them")
    parser.add_argument("--model", help="name or path; default: the bundled one")
    parser.add_argument("--lpips", type=Path, help="npz of LPIPS weights; without it LPIPS is left out")
    parser.add_argument("--budgets", type=float, nargs="+", default=BUDGETS, help="bits a pixel")
    parser.add_argument("--quality", type=float, nargs="+", help="settings of --quality instead of budgets, without opponents")
    parser.add_argument("--opponents", nargs="*", default=["webp", "jpeg"], choices=["webp", "jpeg"])
    parser.add_argument("--limit", type=int, help="only so many pictures")
    parser.add_argument("--threads", type=int, help="processor threads")
    parser.add_argument("--json", type=Path, help="write the numbers here too")
    given = parser.parse_args()
    if given.threads:
        torch.set_num_threads(given.threads)
    files = [f for p in given.pictures for f in (sorted(p.glob("*.*")) if p.is_dir() else [p])][: given.limit]
    lpips = LPIPS(given.lpips) if given.lpips else None
    if given.quality:
        targets, opponents = [Target(quality=value) for value in given.quality], []
        heading = ["quality", *(f"{value:g}" for value in given.quality)]
    else:
        targets, opponents = [Target(target_bpp=value) for value in given.budgets], given.opponents
        heading = ["bpp at most", *(f"{value:g}" for value in given.budgets)]
    with Codec(given.model) as codec:
        results = evaluate(codec, files, targets, lpips, opponents)
    if given.json:
        given.json.write_text(json.dumps({"targets": heading, "results": results}, indent=1) + "\n")
    sys.stdout.write(markdown(results, heading) + "\n")


if __name__ == "__main__":
    main()
