"""Importing FlexTok checkpoints: configuration, names, shapes, licence, and what the model file keeps."""

from __future__ import annotations

import json

import numpy as np
import pytest
import torch
from safetensors import safe_open
from safetensors.torch import load_file, save_file

from codec.errors import ModelError
from codec.flextok.model import FlextokModel
from codec.models.checkpoint import open_checkpoint
from codec.models.installing import import_model
from codec.models.registry import installed_folder, open_model
from tests.helpers.flextok import TINY, published_settings, published_tensors, seeded, write_checkpoint


@pytest.fixture(autouse=True)
def data_folder(tmp_path, monkeypatch):
    monkeypatch.setenv("XDG_DATA_HOME", str(tmp_path / "data"))


@pytest.fixture
def checkpoint(tmp_path):
    return write_checkpoint(tmp_path / "checkpoint")


def test_a_folder_is_imported(checkpoint):
    model, calibration = import_model(str(checkpoint), accept_licence=True)
    assert isinstance(model, FlextokModel)
    assert (model.name, calibration) == ("flextok-d2-d2", None)
    assert model.config == TINY
    assert model.code.levels == TINY.levels
    assert "research" in model.metadata["card"]["licence"]
    model.check()
    network = model.network("cpu")
    for name, value in seeded().state_dict().items():
        assert torch.equal(network.state_dict()[name], value)


def test_an_import_may_set_defaults_of_sampling(checkpoint):
    model, _ = import_model(str(checkpoint), accept_licence=True, sampling={"steps": 3, "seed": 5})
    assert (model.config.steps, model.config.guidance, model.config.seed) == (3, TINY.guidance, 5)
    with pytest.raises(ModelError):
        import_model(str(checkpoint), name="b", accept_licence=True, sampling={"steps": 0})


def test_the_licence_must_be_accepted(checkpoint):
    with pytest.raises(ModelError) as caught:
        import_model(str(checkpoint))
    assert caught.value.advice == ("accept_licence",)
    assert not list(installed_folder().glob("*"))


def test_a_configuration_in_the_metadata(tmp_path):
    """The authors store each part as the text of a Python literal."""
    path = tmp_path / "model.safetensors"
    metadata = {part: str(value) for part, value in published_settings().items()}
    save_file(published_tensors(seeded()), path, metadata | {"_target_": "flextok.flextok_wrapper.FlexTok"})
    assert FlextokModel.checkpoint_config(open_checkpoint(path), None) == TINY
    for wrong in ("__import__('os')", "[" * 9000, "'" + "a" * 70000 + "'", "1", "{}"):
        save_file(published_tensors(seeded()), path, metadata | {"vae": wrong})
        with pytest.raises(ModelError):
            FlextokModel.checkpoint_config(open_checkpoint(path), None)


def test_weights_keep_their_stored_type(tmp_path):
    for dtype, kept in ((torch.float16, np.float16), (torch.bfloat16, np.float32)):
        folder = write_checkpoint(tmp_path / str(kept.__name__), dtype=dtype)
        model, _ = import_model(str(folder), name=kept.__name__, accept_licence=True)
        with safe_open(model.path, "numpy") as file:
            assert file.get_tensor("encoder.vectors.weight").dtype == kept
        weight = load_file(folder / "model.safetensors")["encoder.module_dict.enc_to_latents.proj.weight"]
        assert torch.equal(model.network("cpu").encoder.vectors.weight, weight.float())


@pytest.mark.parametrize("kind", ["missing", "unexpected", "shape", "number"])
def test_tensors_that_do_not_fit_are_refused(checkpoint, kind):
    file = checkpoint / "model.safetensors"
    tensors = load_file(file)
    name = "decoder.module_dict.dec_to_patches.proj.bias"
    if kind == "missing":
        del tensors[name]
    elif kind == "unexpected":
        tensors["decoder.module_dict.other.weight"] = torch.zeros(2)
    else:
        tensors[name] = torch.zeros(3) if kind == "shape" else tensors[name] * float("nan")
    save_file(tensors, file)
    with pytest.raises(ModelError, match=r"model.safetensors"):
        import_model(str(checkpoint), accept_licence=True)
    assert not list(installed_folder().glob("*"))


@pytest.mark.parametrize(
    ("path", "value"),
    [
        (("vae", "scaling_factor"), None),
        (("vae", "scaling_factor"), True),
        (("regularizer", "levels"), "888555"),
        (("regularizer", "levels"), [8, 8]),
        (("encoder", "module_dict", "enc_seq_packer", "mask_mode"), "causal"),
        (("encoder", "module_dict", "enc_transformer", "head_dim"), 8),
        (("decoder", "module_dict", "dec_transformer", "adaLN_expansion"), 1),
        (("decoder", "module_dict", "dec_to_patches", "use_mup_readout"), True),
        (("decoder", "module_dict", "dec_time_embedder"), None),
        (("decoder", "module_dict"), []),
        (("decoder",), None),
    ],
    ids=lambda value: value[-1] if isinstance(value, tuple) else None,
)
def test_configurations_that_are_not_supported_are_refused(checkpoint, path, value):
    settings = published_settings()
    part = settings
    for key in path[:-1]:
        part = part[key]
    part[path[-1]] = value
    (checkpoint / "config.json").write_text(json.dumps(settings))
    with pytest.raises(ModelError):
        import_model(str(checkpoint), accept_licence=True)


def test_a_checkpoint_without_configuration_is_refused(checkpoint):
    (checkpoint / "config.json").unlink()
    with pytest.raises(ModelError, match=r"config\.json"):
        import_model(str(checkpoint), accept_licence=True)


def test_models_with_the_same_encoder_decode_each_others_files(tmp_path):
    network = seeded()
    fingerprints = []
    for name in ("own", "other-decoder", "other-encoder"):
        if name == "other-decoder":
            network.decoder.codes.weight.data += 1
        elif name == "other-encoder":
            network.encoder.vectors.weight.data += 1
        import_model(str(write_checkpoint(tmp_path / name, network)), name=name, accept_licence=True)
        fingerprints.append(open_model(name).fingerprint)
    assert fingerprints[0] == fingerprints[1] != fingerprints[2]
