"""Quality of a model or training checkpoint on held-out photographs, which decides between trials. For
benchmarks/training-curve.csv, its plot, and the tables of benchmarks/training-log.md.

    python -m benchmarks.tools.held_out checkpoint.safetensors --photos photos.tar --lpips lpips_alex.npz --csv curve.csv

Codes the middle block of each photograph as a complete file at each budget. Prints LPIPS, PSNR in dB and the colour error;
`--csv` appends a row to a file, and `--plot` plots that file. Kodak is only for the final tables, never for this.
"""

from __future__ import annotations

import argparse
import csv
import sys
import tempfile
from pathlib import Path

import numpy as np
import torch
from torch import Tensor

from benchmarks.metrics import colour_error
from bitstream.block_order import BLOCK
from codec.codec import Codec
from codec.errors import ModelError
from codec.metrics import psnr
from codec.metrics.lpips import LPIPS
from codec.models.registry import Model, open_model
from codec.pyramid.training import PyramidTrainer
from codec.training.photos import load_photos

BUDGETS = (0.0244, 0.0443, 0.0806, 0.153, 0.4)  # bits per pixel
METRICS = ("lpips", "psnr", "colour")
TABLE_PHOTOS = 200  # photographs for the tables of an exported model


def model_of(path: Path, photos: Tensor, folder: Path) -> Model:
    """Opens a model file. A training checkpoint is first exported to `folder`."""
    try:
        return open_model(path)
    except ModelError:
        trainer = PyramidTrainer.resume(path, torch.device("cpu"))
        chosen = photos[:: max(1, len(photos) // TABLE_PHOTOS)][:TABLE_PHOTOS]
        return trainer.export(chosen, folder / f"{path.stem}-{trainer.total_crops}.safetensors", "benchmarks.tools.held_out")


def measure(model: Model, photos: Tensor, lpips: LPIPS) -> dict[str, float]:
    """Means over photographs (N, side, side, 3) uint8, by `metric@budget`."""
    first = (photos.shape[1] - BLOCK) // 2
    codec = Codec(str(model.path), device="cpu")
    rows = []
    for photo in photos[:, first : first + BLOCK, first : first + BLOCK].numpy():
        (sequence,) = codec.tokenize([photo])
        row: dict[str, float] = {}
        for budget in BUDGETS:
            decoded = np.asarray(codec.decode(codec.write(sequence, target_bpp=budget).data).image)
            values = (lpips.distance(decoded, photo), psnr(decoded, photo), colour_error(decoded, photo))
            row |= {f"{name}@{budget}": value for name, value in zip(METRICS, values, strict=True)}
        rows.append(row)
    return {key: float(np.mean([row[key] for row in rows])) for key in rows[0]}


def add_row(path: Path, row: dict[str, float | str]) -> None:
    new = not path.exists()
    with path.open("a", newline="") as stream:
        writer = csv.DictWriter(stream, row, lineterminator="\n")
        if new:
            writer.writeheader()
        writer.writerow({key: value if isinstance(value, str) else f"{value:.5g}" for key, value in row.items()})


def plot(table: Path, image: Path, budget: float = 0.0443) -> None:
    """Plots LPIPS and PSNR at one budget against the number of training crops, a line per name."""
    import matplotlib

    matplotlib.use("agg")
    from matplotlib import pyplot

    with table.open(newline="") as stream:
        rows = list(csv.DictReader(stream))
    figure, axes = pyplot.subplots(1, 2, figsize=(10, 4), layout="constrained")
    for axis, (name, title) in zip(axes, (("lpips", "LPIPS (lower is better)"), ("psnr", "PSNR, dB")), strict=True):
        for run in dict.fromkeys(row["name"] for row in rows):
            points = [(int(row["crops"]) / 1000, float(row[f"{name}@{budget}"])) for row in rows if row["name"] == run]
            axis.plot(*zip(*sorted(points), strict=True), marker="o", label=run)
        axis.set(xlabel="crops seen, thousands", ylabel=f"{title}, at {budget} bits per pixel")
        axis.grid(alpha=0.3)
    axes[0].legend()
    figure.savefig(image, dpi=110)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("model", type=Path, help="a model file or a training checkpoint")
    parser.add_argument("--photos", type=Path, nargs="+", required=True, help="folders, tar files and images")
    parser.add_argument("--lpips", type=Path, required=True, help=".npz with LPIPS weights")
    parser.add_argument("--every", type=int, default=1, metavar="N", help="measure one of N photographs")
    parser.add_argument("--name", default="", help="name of the run in the CSV and the plot")
    parser.add_argument("--csv", type=Path, help="file to append a row to")
    parser.add_argument("--plot", type=Path, help="image to plot the CSV to")
    arguments = parser.parse_args()
    photos, held_out = load_photos(arguments.photos)
    with tempfile.TemporaryDirectory() as folder:
        model = model_of(arguments.model, photos, Path(folder))
        held_out = held_out[:: arguments.every]
        means = measure(model, held_out, LPIPS(arguments.lpips))
    card = model.metadata["card"]
    for name in METRICS:
        sys.stdout.write(f"{name:6} " + "  ".join(f"{budget}: {means[f'{name}@{budget}']:.3f}" for budget in BUDGETS) + "\n")
    if arguments.csv:
        run = {"name": arguments.name} | {key: str(card[key]) for key in ("crops", "minutes")} | {"photos": str(len(held_out))}
        add_row(arguments.csv, {**run, **means})
    if arguments.csv and arguments.plot:
        plot(arguments.csv, arguments.plot)


if __name__ == "__main__":
    main()
