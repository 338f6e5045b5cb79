"""Import of checkpoints: the published layout, with random tensors, becomes a model file; others are refused."""

from __future__ import annotations

import json
import os
from pathlib import Path

import pytest
import torch

from codec.detailflow import model as model_module
from codec.detailflow.config import DetailFlowConfig, published_config
from codec.detailflow.model import DetailFlowModel
from codec.detailflow.network import DetailFlow, resize_positions
from codec.errors import ModelError
from codec.models.checkpoint import Checkpoint, check_shapes, open_checkpoint
from codec.models.registry import open_model
from tests.helpers.commands import records, run
from tests.helpers.detailflow import TINY, published_settings, published_tensors, seeded, write_checkpoint


def layers(name: str, count: int, width: int, hidden: int) -> dict[str, tuple[int, ...]]:
    """Names and shapes of the tensors of SigLIP 2's layers."""
    shapes = {}
    for number in range(count):
        layer = f"{name}.visual_model.encoder.layers.{number}"
        linear = {f"self_attn.{part}_proj": (width, width) for part in ("q", "k", "v", "out")}
        linear |= {"mlp.fc1": (hidden, width), "mlp.fc2": (width, hidden)}
        for part, shape in linear.items():
            shapes |= {f"{layer}.{part}.weight": shape, f"{layer}.{part}.bias": shape[:1]}
        for norm in ("layer_norm1", "layer_norm2"):
            shapes |= {f"{layer}.{norm}.{part}": (width,) for part in ("weight", "bias")}
    return shapes | {f"{name}.visual_model.post_layernorm.{part}": (width,) for part in ("weight", "bias")}


def published(tokens: int) -> dict[str, tuple[int, ...]]:
    """All names and shapes of the tensors in a published checkpoint."""
    embeddings = "visual_model.embeddings"
    return {
        "encoder.latent_tokens": (1, tokens, 1152),
        "encoder.latent_pos_embed": (1, tokens, 1152),
        "encoder.refined_tokens": (1, tokens, 1152),
        f"encoder.{embeddings}.patch_embedding.weight": (1152, 768),
        f"encoder.{embeddings}.patch_embedding.bias": (1152,),
        f"encoder.{embeddings}.position_embedding.weight": (256, 1152),
        **layers("encoder", 12, 1152, 4304),
        "decoder.mask_token": (1, 1, 768),
        "decoder.latent_pos_embed": (1, tokens, 768),
        f"decoder.{embeddings}.position_embedding.weight": (256, 768),
        **layers("decoder", 12, 768, 3072),
        "decoder.to_pixel.model.weight": (768, 768),
        "decoder.to_pixel.model.bias": (768,),
        **{f"{name}.weight": shape for name, shape in (("quant_conv", (8, 1152)), ("post_quant_conv", (768, 8)))},
        **{f"{name}.bias": (width,) for name, width in (("quant_conv", 8), ("post_quant_conv", 768))},
        "quantize.embedding.weight": (8192, 8),
        "quantize.codebook_used": (65536,),
        "refine_conv.weight": (1152, 8),
        "refine_conv.bias": (1152,),
        "global_token_proj.0.weight": (1024, 8),
        "projection.0.weight": (2048, 768),
        **{f"repa_model.{name}": shape for name, shape in layers("visual_model", 27, 1152, 4304).items()},
    }


@pytest.fixture
def checkpoint(tmp_path, monkeypatch) -> Path:
    """A folder in the published layout, of a tiny network."""
    monkeypatch.setattr(model_module, "published_config", lambda block_tokens: TINY)
    return write_checkpoint(tmp_path / "checkpoint")


def imported(source: Path, folder: Path) -> DetailFlowModel:
    return DetailFlowModel.import_checkpoint(open_checkpoint(source), folder)


def check_refused(source: Path, folder: Path, words: str) -> None:
    """Asserts that the import raises one line with these words, and writes nothing."""
    with pytest.raises(ModelError, match=words) as error:
        imported(source, folder)
    assert "\n" not in str(error.value)
    assert not folder.exists() or not list(folder.iterdir())


@pytest.mark.parametrize("tokens", [128, 256, 512])
@pytest.mark.parametrize("from_config", [True, False])
def test_networks_have_the_tensors_of_the_published_checkpoints(tokens, from_config, tmp_path):
    settings = published_settings(tokens) if from_config else None
    checkpoint = Checkpoint("x", tmp_path, published(tokens), torch.zeros, settings)
    assert DetailFlowModel.recognises(checkpoint)
    config = DetailFlowModel.checkpoint_config(checkpoint, None)
    assert config == published_config(tokens)
    sources = DetailFlowModel.sources(checkpoint, config)
    with torch.device("meta"):
        network = DetailFlow(config)
    shapes = {name: checkpoint.shapes[source] for name, source in sources.items()}
    resized = {f"decoder.resized_positions.{grid - 1}": (grid**2, 768) for grid in range(1, 16)}
    check_shapes(tmp_path, shapes | resized, network, config.name)
    assert 269e6 < sum(value.numel() for value in network.state_dict().values()) < 274e6


@pytest.mark.parametrize("dtype", [torch.float32, torch.float16])
def test_a_model_has_the_tensors_of_its_checkpoint(checkpoint, tmp_path, dtype):
    tensors = {name: value.to(dtype) for name, value in published_tensors(seeded()).items()}
    write_checkpoint(checkpoint, tensors)
    model = imported(checkpoint, tmp_path / "models")
    assert model.path == tmp_path / "models" / "detailflow-4.safetensors"
    network = open_model(model.path).network(torch.device("cpu"))
    found = published_tensors(network)
    assert found.keys() == tensors.keys()
    assert all(torch.equal(value, tensors[name].float()) for name, value in found.items())
    table = tensors["decoder.visual_model.embeddings.position_embedding.weight"]
    for grid, resized in enumerate(network.decoder.resized_positions, 1):
        assert torch.equal(resized, resize_positions(table, grid))


def test_what_only_training_used_is_dropped_and_named(checkpoint, tmp_path, monkeypatch):
    tensors = published_tensors(seeded())
    extra = {"repa_model.visual_model.post_layernorm.bias": torch.zeros(9), "encoder.refined_tokens": torch.zeros(1, 16, 24)}
    write_checkpoint(checkpoint, tensors | extra | {"quantize.codebook_used": torch.zeros(99)})
    monkeypatch.setenv("XDG_DATA_HOME", str(tmp_path))
    outcome = run("models", "import", checkpoint, "--json")
    (record,) = records(outcome)
    assert record["left_out"] == ["encoder.refined_tokens", "quantize.codebook_used", "repa_model"]
    model = open_model(record["output"])
    size = sum(value.numel() for value in seeded().state_dict().values())
    assert sum(value.numel() for value in model.network("cpu").state_dict().values()) == size


def test_a_file_and_a_folder_become_the_same_model(checkpoint, tmp_path):
    digests = {
        imported(source, tmp_path / str(number)).metadata["digest"]
        for number, source in enumerate((checkpoint, checkpoint / "checkpoints" / "16.pt"))
    }
    assert len(digests) == 1


def test_the_fingerprint_covers_codebook_and_tables_alone(checkpoint, tmp_path):
    """A network with another decoder decodes the same files; one with another codebook does not."""
    tensors = published_tensors(seeded())
    before = imported(checkpoint, tmp_path / "models").metadata
    fingerprints = []
    for name in ("decoder.mask_token", "quantize.embedding.weight"):
        write_checkpoint(checkpoint, tensors | {name: tensors[name] + 1})
        after = imported(checkpoint, tmp_path / "models").metadata
        assert after["digest"] != before["digest"]
        fingerprints.append(after["fingerprint"])
    assert fingerprints[0] == before["fingerprint"]
    assert fingerprints[1] != before["fingerprint"]


@pytest.mark.parametrize(
    ("change", "words"),
    [
        ({"encoder.latent_pos_embed": torch.zeros(1, 9, 24)}, r"encoder.latent_pos_embed \(1, 9, 24\)"),
        ({"decoder.mask_token": None}, "missing: decoder.mask_token"),
        ({"decoder.something": torch.zeros(1)}, "unexpected: decoder.something"),
        ({"text_model.weight": torch.zeros(1)}, "unexpected: text_model.weight"),
        ({"quant_conv.bias": torch.full((8,), torch.nan)}, "quant_conv.bias"),
        ({"quant_conv.bias": torch.zeros(8, dtype=torch.int64)}, "quant_conv.bias holds torch.int64"),
    ],
)
def test_tensors_that_do_not_fit_are_refused(checkpoint, tmp_path, change, words):
    tensors = published_tensors(seeded()) | change
    write_checkpoint(checkpoint, {name: value for name, value in tensors.items() if value is not None})
    check_refused(checkpoint, tmp_path / "models", words)


@pytest.mark.parametrize(
    ("key", "value"),
    [("group_size", 4), ("causal_num", 16), ("enc_type", "cnn"), ("encoder_model", "siglip2"), ("max_image_size", 512),
     ("causal_decoder", True), ("codebook_l2_norm", False), ("dec_patch_size", [16])],
)  # fmt: skip
def test_configurations_of_unsupported_networks_are_refused(checkpoint, tmp_path, key, value):
    (checkpoint / "config.json").write_text(json.dumps(published_settings(16) | {key: value}))
    check_refused(checkpoint, tmp_path / "models", f"{key} is ")


def test_an_impossible_number_of_tokens_is_refused(tmp_path):
    for shape in ((1, 100, 1152), (100, 1152)):
        checkpoint = Checkpoint("x", tmp_path, {"encoder.latent_tokens": shape}, torch.zeros, None)
        with pytest.raises(ModelError, match="configuration"):
            DetailFlowModel.checkpoint_config(checkpoint, None)


class Harmful:
    def __reduce__(self):
        return os.mkdir, ("harm",)


def test_a_pickle_that_runs_code_is_refused(checkpoint, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    path = checkpoint / "checkpoints" / "16.pt"
    torch.save({"model": published_tensors(seeded()), "args": Harmful()}, path)
    check_refused(path, tmp_path / "models", r"16\.pt")
    assert not (tmp_path / "harm").exists()


def test_other_networks_are_not_recognised(tmp_path):
    for name in ("latent_tokens", "encoder.conv_in.weight"):
        assert not DetailFlowModel.recognises(Checkpoint("x", tmp_path, {name: (1, 16, 24)}, torch.zeros, None))
    assert DetailFlowConfig.from_dict(published_config(128).to_dict()) == published_config(128)
