"""Averages of models."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import pytest
import torch

from codec.codec import Codec
from codec.errors import ModelError
from codec.models.registry import open_model
from codec.pyramid import weight_averaging as soup
from codec.pyramid.model import save_pyramid


@pytest.fixture(scope="module")
def doubled(tmp_path_factory):
    """The standard model with all weights of its decoder twice as large."""
    model = open_model()
    network = model.network(torch.device("cpu"))
    for weight in network.decoder.parameters():
        weight.mul_(2)
    path = tmp_path_factory.mktemp("soup") / "doubled.safetensors"
    save_pyramid(path, network, model.code, model.metadata["card"])
    return path


def test_weights_are_means_by_share(doubled):
    standard = open_model().network(torch.device("cpu")).state_dict()
    mixed = soup.average({"standard": 1, str(doubled): 3}).state_dict()
    for name, weight in standard.items():
        expected = 1.75 * weight if name.startswith("decoder.") else weight
        assert torch.allclose(mixed[name], expected.half().float(), rtol=2**-9, atol=1e-6), name


def test_models_of_other_configurations_are_refused(monkeypatch, doubled):
    real = open_model(doubled).network(torch.device("cpu"))
    real.config = replace(real.config, channels=64)
    monkeypatch.setattr(soup, "open_pyramid", lambda name: open_model() if name == "standard" else Other())

    class Other:
        def network(self, _):
            return real

    with pytest.raises(ModelError, match="doubled has another configuration than standard"):
        soup.average({"standard": 0.5, "doubled": 0.5})


def test_the_file_is_a_model(tmp_path, monkeypatch, photo, doubled):
    photo.save(tmp_path / "photo.png")
    out = tmp_path / "mixed.safetensors"
    levels = len(open_model().code.levels)
    worth = ",".join(["0.1"] * levels)
    arguments = [str(out), "standard=99", f"{doubled}=1", "--photos", str(tmp_path / "photo.png"), "--bit-worth", worth]
    monkeypatch.setattr("sys.argv", ["soup", *arguments])
    soup.main()
    model = open_model(out)
    model.check()
    assert model.network(torch.device("cpu")).config.bit_worth == (0.1,) * levels
    assert model.metadata["card"]["made_by"].startswith("python -m codec.pyramid.weight_averaging ")
    assert model.metadata["card"]["crops"] == open_model().metadata["card"]["crops"]
    assert model.metadata["card"]["table_photos"] == 1
    image = photo.crop((0, 0, 100, 80))
    with Codec(model=str(out), device="cpu") as codec:
        drawn = codec.decode(codec.encode(image, tokens=1365))
    assert np.abs(np.asarray(drawn).astype(int) - np.asarray(image)).mean() < 10
