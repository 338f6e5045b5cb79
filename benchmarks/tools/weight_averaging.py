"""Averages the weights of models that were trained one from another. The average is often better than each model ("model
soups", arXiv 2203.05482).

    python -m benchmarks.tools.weight_averaging OUT.safetensors --photos train-0.tar --rdo-lambda 0.06,0.06,... \\
        a.safetensors=0.5 b.safetensors=0.5

Weights are averaged in fp32 and rounded to fp16. The integer entropy model is then derived again, with tables measured on
photos.
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
from codec.models.registry import open_model
from codec.pyramid.integer_model import measure_tables
from codec.pyramid.model import PyramidModel, as_pyramid, save_pyramid
from codec.pyramid.network import Network
from codec.training.photos import load_photos


def average(shares: Mapping[str, float], rdo_lambda: Sequence[float] = ()) -> Network:
    """The network with the weighted mean of the models' weights. `shares` maps the name or path of a model to its weight in the
    mean; they need not add up to 1.

    `rdo_lambda`, one value per level, replaces `bit_worth` of the configuration. Raises ModelError unless the models have
    the same configuration otherwise."""
    networks = {name: as_pyramid(open_model(name)).network("cpu") for name in shares}
    configs = {name: network.config.to_dict() | {"bit_worth": ()} for name, network in networks.items()}
    first, *others = networks
    for name in others:
        if configs[name] != configs[first]:
            msg = f"{name} has another configuration than {first}: only models trained one from another can be averaged"
            raise ModelError(msg)
    config = networks[first].config
    network = Network(replace(config, bit_worth=tuple(rdo_lambda) or config.bit_worth))
    total = sum(shares.values())
    with torch.no_grad():
        states: list[tuple[float, dict[str, Tensor]]] = [(shares[n] / total, networks[n].state_dict()) for n in shares]
        network.load_state_dict({key: sum(share * state[key] for share, state in states) for key in states[0][1]})
    return network.half().float().eval()


def save_average(network: Network, photos: Tensor, path: Path, shares: Mapping[str, float], made_by: str) -> PyramidModel:
    """Writes an average as a model file, with tables measured on photos (N, side, side, 3) uint8. Its training metadata is
    copied from the model trained longest."""
    cards = [open_model(name).metadata["card"] for name in shares]
    card = dict(max(cards, key=lambda card: card["crops"])) | {"made_by": made_by, "table_photos": len(photos)}
    return save_pyramid(path, network, measure_tables(network, photos), card)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("output", type=Path)
    parser.add_argument("models", nargs="+", metavar="MODEL=SHARE")
    parser.add_argument("--photos", type=Path, nargs="+", required=True, help="training photos: folders, tar files, images")
    parser.add_argument("--tables", type=int, default=400, help="number of photos to measure the entropy model's tables on")
    parser.add_argument("--rdo-lambda", default="", help="lambda of rounding, squared steps per bit, one value per level")
    arguments = parser.parse_args()
    shares = {name: float(share) for name, _, share in (text.rpartition("=") for text in arguments.models)}
    network = average(shares, [float(value) for value in arguments.rdo_lambda.split(",") if value])
    photos, _ = load_photos(arguments.photos)
    photos = photos[:: max(1, len(photos) // arguments.tables)][: arguments.tables]
    made_by = " ".join(["python -m benchmarks.tools.weight_averaging", *sys.argv[1:]])
    model = save_average(network, photos, arguments.output, shares, made_by)
    sys.stdout.write(f"{model.path}: stream id {model.stream_id.hex()}\n")


if __name__ == "__main__":
    main()
