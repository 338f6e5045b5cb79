"""Import of checkpoints in their published layouts, and the command with the models that result."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from PIL import Image

from codec.codec import Codec
from codec.errors import ModelError
from codec.grid import model as model_module
from codec.grid.names import AVERAGES
from codec.models.installing import import_model
from tests.helpers.commands import run
from tests.helpers.grid import NAMES, published_tensors, random_network, tiny

LAYOUTS = dict(zip(NAMES, (".bin", ".ckpt", ".ckpt", ".pt"), strict=True))


@pytest.fixture(autouse=True)
def small_published_networks(monkeypatch, tmp_path):
    monkeypatch.setattr(model_module, "PUBLISHED", tuple(tiny(name) for name in NAMES))
    monkeypatch.setenv("XDG_DATA_HOME", str(tmp_path / "data"))


def write_checkpoint(path, name, change=lambda tensors: None):
    """A file in the layout of the official one. Checkpoints of training also hold a discriminator, averages and an optimizer;
    the averages are those of the network with seed 0, and the tensors beside them of another."""
    tensors = dict(published_tensors(random_network(tiny(name))))
    if LAYOUTS[name] == ".ckpt":
        averages = {AVERAGES + key.replace(".", ""): value for key, value in tensors.items()}
        tensors = dict(published_tensors(random_network(tiny(name), seed=9))) | averages
        tensors |= {"loss.discriminator.main.0.weight": torch.ones(2, 2), f"{AVERAGES}decay": torch.tensor(0.999)}
    elif name.startswith("maskbit"):
        tensors |= {"quantize.bits_to_indices": torch.arange(12), "quantize.codebook": torch.ones(4096, 12)}
    else:
        tensors |= {"quantize.codebook_used": torch.zeros(65536)}
    change(tensors)
    training = {"epoch": 1, "optimizer_states": [{"state": {0: torch.ones(3)}}], "callbacks": {"a": {"b": None}}}
    content = {".bin": tensors, ".ckpt": training | {"state_dict": tensors}, ".pt": {"model": tensors}}[LAYOUTS[name]]
    torch.save(content, path / f"weights{LAYOUTS[name]}")
    return path


@pytest.mark.parametrize("name", NAMES)
def test_a_published_layout_becomes_a_model(name, tmp_path):
    model, _ = import_model(str(write_checkpoint(tmp_path, name)))
    assert model.name == name
    model.check()
    expected = random_network(tiny(name)).state_dict()
    assert all(torch.equal(tensor, expected[key]) for key, tensor in model.network("cpu").state_dict().items())


def test_the_command_encodes_and_decodes(tmp_path):
    import_model(str(write_checkpoint(tmp_path, "open-magvit2-f8")))
    image = tmp_path / "image.png"
    Image.fromarray(np.random.default_rng(0).integers(0, 256, (14, 20, 3)).astype(np.uint8)).save(image)
    compressed = image.with_suffix(".tsr")
    for arguments in (("encode", image, "--model", "open-magvit2-f8"), ("info", compressed), ("decode", compressed, "-f")):
        outcome = run(*arguments)
        assert outcome.exit_code == 0, outcome.output
    with Image.open(image) as decoded:
        assert decoded.size == (20, 14)


def test_prefixes_decode_to_complete_images(tmp_path):
    import_model(str(write_checkpoint(tmp_path, "maskbit-12")))
    codec = Codec(model="maskbit-12")
    image = Image.fromarray(np.random.default_rng(0).integers(0, 256, (16, 32, 3)).astype(np.uint8))
    for tokens in (1, 256):
        encoded = codec.encode(image, tokens=tokens)
        assert codec.decode(encoded.data).image.size == (32, 16)


@pytest.mark.parametrize(("name", "bits"), [("maskbit-12", 12), ("llamagen-ds16", 10)])
def test_tables_are_measured_on_photos(name, bits, tmp_path, photo):
    (photos := tmp_path / "photos").mkdir()
    for left in (0, 40):
        photo.crop((left, 0, left + 256, 256)).save(photos / f"{left}.png")
    model, calibration = import_model(str(write_checkpoint(tmp_path, name)), photos=[photos], device="cpu")
    assert calibration is not None
    assert calibration.bits < calibration.bits_before == pytest.approx(bits)
    model.check()
    assert (np.diff(model.code.ranks) != 1).any() == (name == "llamagen-ds16"), "similar vectors have close ranks"
    with Codec(model=name, device="cpu") as codec:
        encoded = codec.encode(photo.crop((40, 30, 168, 110)), quality=100)
        assert len(encoded.data) < 160 * bits / 8
        assert codec.decode(encoded.data).image.size == (128, 80)


@pytest.mark.parametrize(
    ("name", "change"),
    [
        ("maskbit-12", lambda tensors: tensors.pop("decoder.conv_in.weight")),
        ("maskbit-12", lambda tensors: tensors.update({"decoder.surprise": torch.ones(1)})),
        ("maskbit-12", lambda tensors: tensors.update({"encoder.conv_out.weight": torch.ones(13, 16, 1, 1)})),
        ("ibq-1024", lambda tensors: tensors.update({"quantize.embedding.weight": torch.ones(77, 256)})),
        ("open-magvit2-f8", lambda tensors: tensors.pop(f"{AVERAGES}decoderconv_inweight")),
        ("open-magvit2-f8", lambda tensors: tensors.update({"encoder.conv_in.weight": torch.ones(1)})),
        ("llamagen-ds16", lambda tensors: tensors.update({"quant_conv.bias": torch.full((8,), torch.nan)})),
        ("llamagen-ds16", lambda tensors: tensors.update({"encoder.conv_blocks.4.res.0.conv1.weight": torch.ones(1)})),
    ],
)
def test_other_networks_are_refused(name, change, tmp_path):
    with pytest.raises(ModelError):
        import_model(str(write_checkpoint(tmp_path, name, change)))
    assert not list((tmp_path / "data").rglob("*.safetensors"))


def test_checkpoints_without_averages_are_read_as_trained(tmp_path):
    def remove_averages(tensors):
        for name in [name for name in tensors if name.startswith(AVERAGES)]:
            del tensors[name]

    model, _ = import_model(str(write_checkpoint(tmp_path, "open-magvit2-f8", remove_averages)))
    expected = random_network(tiny("open-magvit2-f8"), seed=9).state_dict()
    assert all(torch.equal(tensor, expected[key]) for key, tensor in model.network("cpu").state_dict().items())


def test_the_stream_id_covers_the_codebook_and_not_the_decoder(tmp_path):
    def other(part):
        def change(tensors):
            tensors[part] = tensors[part] + 1

        return change

    parts = (None, "decoder.conv_in.weight", "quantize.embedding.weight")
    ids = []
    for index, part in enumerate(parts):
        (folder := tmp_path / str(index)).mkdir()
        change = other(part) if part else lambda tensors: None
        model, _ = import_model(str(write_checkpoint(folder, "llamagen-ds16", change)), name=f"model-{index}")
        ids.append(model.stream_id)
    assert ids[0] == ids[1] != ids[2]
