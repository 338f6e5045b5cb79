"""`benchmarks.tools.weight_averaging`: averages of models."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import pytest
import torch

from benchmarks.tools import weight_averaging
from codec.codec import Codec
from codec.errors import ModelError
from codec.models.registry import open_model
from codec.pyramid.model import save_pyramid
from codec.pyramid.network import Network


@pytest.fixture(scope="module")
def doubled(tmp_path_factory):
    """The standard model with all weights of its decoder twice as large."""
    model = open_model()
    network = model.network(torch.device("cpu"))
    for weight in network.decoder.parameters():
        weight.mul_(2)
    path = tmp_path_factory.mktemp("models") / "doubled.safetensors"
    save_pyramid(path, network, model.code, model.metadata["card"])
    return path


def test_weights_are_weighted_means(doubled):
    standard = open_model().network(torch.device("cpu")).state_dict()
    averaged = weight_averaging.average({"standard": 1, str(doubled): 3}).state_dict()
    for name, weight in standard.items():
        expected = 1.75 * weight if name.startswith("decoder.") else weight
        assert torch.allclose(averaged[name], expected.half().float(), rtol=2**-9, atol=1e-6), name


def test_models_of_other_configurations_are_refused(tmp_path):
    standard = open_model()
    network = Network(replace(standard.config, encoder_depth=1))
    path = tmp_path / "shallow.safetensors"
    save_pyramid(path, network, standard.code, {})
    with pytest.raises(ModelError, match="shallow"):
        weight_averaging.average({"standard": 0.5, str(path): 0.5})


def test_the_command_writes_a_model(tmp_path, monkeypatch, photo, doubled):
    photo.save(tmp_path / "photo.png")
    out = tmp_path / "averaged.safetensors"
    levels = len(open_model().code.levels)
    rdo_lambda = ",".join(["0.1"] * levels)
    arguments = [str(out), "standard=99", f"{doubled}=1", "--photos", str(tmp_path / "photo.png"), "--rdo-lambda", rdo_lambda]
    monkeypatch.setattr("sys.argv", ["weight_averaging", *arguments])
    weight_averaging.main()
    model = open_model(out)
    model.check()
    assert model.network(torch.device("cpu")).config.bit_worth == (0.1,) * levels
    assert model.metadata["card"]["made_by"].startswith("python -m benchmarks.tools.weight_averaging ")
    assert model.metadata["card"]["crops"] == open_model().metadata["card"]["crops"]
    assert model.metadata["card"]["table_photos"] == 1
    image = photo.crop((0, 0, 100, 80))
    with Codec(model=str(out), device="cpu") as codec:
        drawn = codec.decode(codec.encode(image, tokens=1365).data).image
    assert np.abs(np.asarray(drawn).astype(int) - np.asarray(image)).mean() < 10
