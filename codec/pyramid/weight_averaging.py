"""Averages of models that were trained one from another: often better than each ("model soups", arXiv 2203.05482).

    python -m codec.pyramid.weight_averaging OUT.safetensors --photos train-0.tar --bit-worth 0.06,0.06,... \\
        a.safetensors=0.5 b.safetensors=0.5

Weights are averaged in fp32 and rounded to fp16; then the prior is made anew: integers, and tables measured on photos.
"""

from __future__ import annotations

import argparse
import sys
from collections.abc import Mapping, Sequence
from dataclasses import replace
from pathlib import Path

import torch
from torch import Tensor

from codec.errors import ModelError
from codec.pyramid.integer_model import measure_tables
from codec.pyramid.model import PyramidModel, save_pyramid
from codec.pyramid.network import Network
from codec.pyramid.training import open_pyramid
from codec.training.photos import load_photos


def average(models: Mapping[str, float], bit_worth: Sequence[float] = ()) -> Network:
    """The network whose weights are the mean of those of models, by their shares, which need not add up to 1.

    `bit_worth` replaces that of the configuration, which all models must have in common but for it. Raises ModelError."""
    opened = {name: open_pyramid(name).network(torch.device("cpu")) for name in models}
    configs = {name: replace(network.config, bit_worth=()) for name, network in opened.items()}
    first, *others = opened
    for name in others:
        if configs[name] != configs[first]:
            msg = f"{name} has another configuration than {first}: only models trained one from another can be averaged"
            raise ModelError(msg)
    config = opened[first].config
    network = Network(replace(config, bit_worth=tuple(bit_worth) or config.bit_worth))
    total = sum(models.values())
    with torch.no_grad():
        states: list[tuple[float, dict[str, Tensor]]] = [(models[n] / total, opened[n].state_dict()) for n in models]
        network.load_state_dict({key: sum(share * state[key] for share, state in states) for key in states[0][1]})
    return network.half().float().eval()


def save_average(network: Network, photos: Tensor, path: Path, models: Mapping[str, float], made_by: str) -> PyramidModel:
    """Writes an average as a model file: its prior in integers, tables measured on photos (N, side, side, 3) uint8. What is
    said of its training is that of the model trained longest."""
    cards = [open_pyramid(name).metadata["card"] for name in models]
    card = dict(max(cards, key=lambda card: card["crops"])) | {"made_by": made_by, "table_photos": len(photos)}
    return save_pyramid(path, network, measure_tables(network, photos), card)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("output", type=Path)
    parser.add_argument("models", nargs="+", metavar="MODEL=SHARE")
    parser.add_argument("--photos", type=Path, nargs="+", required=True, help="training photos: folders, tar files, images")
    parser.add_argument("--tables", type=int, default=400, help="photos that the prior's tables are measured on")
    parser.add_argument("--bit-worth", default="", help="squared error that a bit is worth when rounding, a level each")
    given = parser.parse_args()
    models = {name: float(share) for name, _, share in (part.rpartition("=") for part in given.models)}
    network = average(models, [float(part) for part in given.bit_worth.split(",") if part])
    photos, _ = load_photos(given.photos)
    photos = photos[:: max(1, len(photos) // given.tables)][: given.tables]
    made = save_average(
        network, photos, given.output, models, " ".join(["python -m codec.pyramid.weight_averaging", *sys.argv[1:]])
    )
    sys.stdout.write(f"{made.path}: stream id {made.stream_id.hex()}\n")


if __name__ == "__main__":
    main()
