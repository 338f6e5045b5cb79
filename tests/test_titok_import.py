"""Checkpoints of the published layouts, filled with seeded random tensors, become model files; others are refused whole."""

from __future__ import annotations

import json
import os
import sys
from types import SimpleNamespace

import numpy as np
import pytest
import torch
from safetensors.torch import load_file, save_file

from bitstream.codebook_tokens import uniform_code
from codec.errors import FileError, ModelError
from codec.models import base as model
from codec.models.registry import open_model
from codec.titok import checkpoint as convert
from codec.titok.checkpoint import Checkpoint, check_shapes, config_of, fetch_repository, open_checkpoint
from codec.titok.config import TitokConfig, sized
from codec.titok.importing import import_checkpoint
from codec.titok.model import fingerprint
from codec.titok.network import Titok

PUBLISHED = {  # name: (size, width, layers, tokens)
    "one-d-piece-s-256": ("small", 512, 8, 256),
    "one-d-piece-b-256": ("base", 768, 12, 256),
    "one-d-piece-l-256": ("large", 1024, 24, 256),
    "titok-l-32": ("large", 1024, 24, 32),
    "titok-b-64": ("base", 768, 12, 64),
    "titok-s-128": ("small", 512, 8, 128),
}
TINY = TitokConfig(8, True, 16, 1, 2, side=32, codebook=64, pixel_codebook=20, pixel_code=8, pixel_width=32)


def transformer(name: str, width: int, layers: int, tokens: int) -> dict[str, tuple[int, ...]]:
    shapes = {
        f"{name}.class_embedding": (1, width),
        f"{name}.positional_embedding": (257, width),
        f"{name}.latent_token_positional_embedding": (tokens, width),
    }
    norms = [f"{name}.ln_pre", f"{name}.ln_post"]
    for layer in range(layers):
        at = f"{name}.transformer.{layer}"
        norms += [f"{at}.ln_1", f"{at}.ln_2"]
        shapes |= {f"{at}.attn.in_proj_weight": (3 * width, width), f"{at}.attn.in_proj_bias": (3 * width,)}
        shapes |= {f"{at}.attn.out_proj.weight": (width, width), f"{at}.attn.out_proj.bias": (width,)}
        shapes |= {f"{at}.mlp.c_fc.weight": (4 * width, width), f"{at}.mlp.c_fc.bias": (4 * width,)}
        shapes |= {f"{at}.mlp.c_proj.weight": (width, 4 * width), f"{at}.mlp.c_proj.bias": (width,)}
    return shapes | {f"{norm}.{part}": (width,) for norm in norms for part in ("weight", "bias")}


def pixel_decoder() -> dict[str, tuple[int, ...]]:
    """Of MaskGIT's VQGAN: 512 channels at 16x16 down to 128 at 256x256."""
    shapes: dict[str, tuple[int, ...]] = {}

    def conv(name: str, inputs: int, outputs: int, bias: bool = True, size: int = 3) -> None:
        shapes[f"pixel_decoder.{name}.weight"] = (outputs, inputs, size, size)
        if bias:
            shapes[f"pixel_decoder.{name}.bias"] = (outputs,)

    def norm(name: str, width: int) -> None:
        shapes.update({f"pixel_decoder.{name}.{part}": (width,) for part in ("weight", "bias")})

    def residual(name: str, inputs: int, outputs: int) -> None:
        norm(f"{name}.norm1", inputs)
        conv(f"{name}.conv1", inputs, outputs, bias=False)
        norm(f"{name}.norm2", outputs)
        conv(f"{name}.conv2", outputs, outputs, bias=False)
        if inputs != outputs:
            conv(f"{name}.nin_shortcut", outputs, outputs, bias=False, size=1)

    conv("conv_in", 256, 512)
    residual("mid.0", 512, 512)
    residual("mid.1", 512, 512)
    for level, inputs, outputs in ((4, 512, 512), (3, 512, 256), (2, 256, 256), (1, 256, 128), (0, 128, 128)):
        residual(f"up.{level}.block.0", inputs, outputs)
        residual(f"up.{level}.block.1", outputs, outputs)
        if level:
            conv(f"up.{level}.upsample_conv", outputs, outputs)
    norm("norm_out", 128)
    conv("conv_out", 128, 3)
    return shapes


def published(name: str) -> dict[str, tuple[int, ...]]:
    """All names and shapes of a published checkpoint."""
    _, width, layers, tokens = PUBLISHED[name]
    return {
        "latent_tokens": (tokens, width),
        **transformer("encoder", width, layers, tokens),
        "encoder.patch_embed.weight": (width, 3, 16, 16),
        "encoder.patch_embed.bias": (width,),
        "encoder.conv_out.weight": (12, width, 1, 1),
        "encoder.conv_out.bias": (12,),
        "quantize.embedding.weight": (4096, 12),
        **transformer("decoder", width, layers, tokens),
        "decoder.decoder_embed.weight": (width, 12),
        "decoder.decoder_embed.bias": (width,),
        "decoder.mask_token": (1, 1, width),
        "decoder.ffn.0.weight": (2 * width, width, 1, 1),
        "decoder.ffn.0.bias": (2 * width,),
        "decoder.ffn.2.weight": (1024, 2 * width, 1, 1),
        "decoder.ffn.2.bias": (1024,),
        "pixel_quantize.embedding.weight": (1024, 256),
        **pixel_decoder(),
    }


def stated(name: str) -> dict:
    size, _, _, tokens = PUBLISHED[name]
    vq = {"codebook_size": 4096, "token_size": 12, "use_l2_norm": True, "commitment_cost": 0.25, "num_latent_tokens": tokens}
    vq |= {"vit_enc_model_size": size, "vit_dec_model_size": size, "vit_enc_patch_size": 16, "vit_dec_patch_size": 16}
    kind = {"type": "one_d_piece"} if name.startswith("one") else {}
    return {"model": {**kind, "vq_model": vq}, "dataset": {"preprocessing": {"crop_size": 256}}}


@pytest.fixture
def checkpoint(tmp_path, monkeypatch):
    """A folder as published, but of a tiny network that this test adds to the known sizes."""
    monkeypatch.setattr(convert, "sized", lambda size, tokens, drop: TINY if size == "small" else sized(size, tokens, drop))
    torch.manual_seed(1)
    folder = tmp_path / "checkpoint"
    folder.mkdir()
    save_file(Titok(TINY).state_dict(), folder / "model.safetensors")
    (folder / "config.json").write_text(json.dumps(stated("one-d-piece-s-256")))
    return folder


def refused(source, folder, said: str) -> None:
    """Importing says why not, in one line, and nothing is installed."""
    with pytest.raises(ModelError, match=said) as error:
        import_checkpoint(source, folder)
    assert "\n" not in str(error.value)
    assert not folder.exists() or not list(folder.iterdir())


@pytest.mark.parametrize("name", PUBLISHED)
@pytest.mark.parametrize("from_config", [True, False])
def test_names_and_shapes_are_those_of_the_published_checkpoints(name, from_config, tmp_path):
    shapes = published(name)
    checkpoint = Checkpoint(tmp_path, shapes, torch.zeros, stated(name) if from_config else None)
    config = config_of(checkpoint)
    assert config.name == name
    assert config.tail_drop == name.startswith("one")
    check_shapes(tmp_path, shapes, config)
    with pytest.raises(
        ModelError, match=r"missing: decoder.mask_token; unexpected: decoder.masks; of another shape: latent_tok"
    ):
        wrong = {("decoder.masks" if key == "decoder.mask_token" else key): shape for key, shape in shapes.items()}
        check_shapes(tmp_path, wrong | {"latent_tokens": (7, 7)}, config)


def test_a_published_layout_imports_and_codes_a_block(tmp_path):
    """The small One-D-Piece at its true size."""
    generator = torch.Generator().manual_seed(0)
    shapes = published("one-d-piece-s-256")
    tensors = {
        name: torch.empty(shape, dtype=torch.float16).uniform_(-0.1, 0.1, generator=generator) for name, shape in shapes.items()
    }
    save_file(tensors, tmp_path / "model.safetensors")
    (tmp_path / "config.json").write_text(json.dumps({"config": stated("one-d-piece-s-256")}))
    made = import_checkpoint(tmp_path, tmp_path / "models")
    assert made.path == tmp_path / "models" / "one-d-piece-s-256.safetensors"
    assert made.code.tables[0, 0] == 2**24 // 4096
    network = made.network(torch.device("cpu"))
    assert all(torch.equal(value.half(), tensors[name]) for name, value in network.state_dict().items())
    indices = network.tokenize(torch.rand((1, 3, 256, 256), generator=generator))
    assert indices.shape == (1, 256)
    assert network.detokenize(indices[:, :3]).shape == (1, 3, 256, 256)


def test_a_checkpoint_comes_back_as_it_was(checkpoint, tmp_path):
    made = import_checkpoint(checkpoint, tmp_path / "models")
    tensors = load_file(checkpoint / "model.safetensors")
    network = open_model(made.path).network(torch.device("cpu"))
    assert network.state_dict().keys() == tensors.keys()
    assert all(torch.equal(value, tensors[name]) for name, value in network.state_dict().items())
    assert made.metadata["card"] == {"source": "checkpoint"}
    assert (
        made.metadata["fingerprint"]
        == fingerprint(TINY, tensors["quantize.embedding.weight"].numpy(), uniform_code(8, 64)).hex()
    )


def test_a_torch_file_of_tensors_imports_to_the_same_model(checkpoint, tmp_path):
    whole = import_checkpoint(checkpoint, tmp_path / "models").metadata
    torch.save(load_file(checkpoint / "model.safetensors"), checkpoint / "pytorch_model.bin")
    (checkpoint / "model.safetensors").unlink()
    again = import_checkpoint(checkpoint, tmp_path / "others").metadata
    assert again["digest"] == whole["digest"]
    assert again["fingerprint"] == whole["fingerprint"]


def test_the_fingerprint_is_that_of_codebook_and_tables_alone(checkpoint, tmp_path):
    """A network whose decoder was trained on decodes the same files; another codebook or other tables do not."""
    before = import_checkpoint(checkpoint, tmp_path / "models").metadata
    tensors = load_file(checkpoint / "model.safetensors")
    codebook = tensors["quantize.embedding.weight"].numpy()
    save_file(tensors | {"decoder.mask_token": 2 * tensors["decoder.mask_token"]}, checkpoint / "model.safetensors")
    after = import_checkpoint(checkpoint, tmp_path / "models").metadata
    assert after["fingerprint"] == before["fingerprint"]
    assert after["digest"] != before["digest"]
    prints = [fingerprint(TINY, codebook * scale, uniform_code(8, values)) for scale, values in ((1, 64), (2, 64), (1, 32))]
    assert len(set(prints)) == 3


class Harmful:
    def __reduce__(self):
        return os.mkdir, ("harm",)


def test_a_pickle_with_code_in_it_is_refused_and_not_run(checkpoint, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    path = tmp_path / "pytorch_model.bin"
    torch.save(load_file(checkpoint / "model.safetensors") | {"latent_tokens": Harmful()}, path)
    refused(path, tmp_path / "models", "pytorch_model.bin: holds more than tensors, or is damaged: refused")
    assert not (tmp_path / "harm").exists()


@pytest.mark.parametrize("data", [b"", b"nothing", bytes(range(256)) * 9, b"\x80\x02]q\x00."])
@pytest.mark.parametrize("ending", ["safetensors", "bin"])
def test_files_that_hold_no_tensors_are_refused(data, ending, tmp_path):
    path = tmp_path / f"weights.{ending}"
    path.write_bytes(data)
    refused(path, tmp_path / "models", rf"weights\.{ending}: (not a|holds)")


@pytest.mark.parametrize(
    ("change", "said"),
    [
        ({"latent_tokens": torch.zeros(9, 16)}, r"of another shape: latent_tokens \(9, 16\) for \(8, 16\)"),
        ({"latent_tokens": None}, "missing: latent_tokens"),
        ({"extra": torch.zeros(1)}, "unexpected: extra"),
        ({f"extra.{i}": torch.zeros(1) for i in range(5)}, "unexpected: extra.0, extra.1, extra.2 and 2 more"),
        ({"latent_tokens": torch.full((8, 16), torch.nan)}, "latent_tokens holds torch.float32 or numbers that are not finite"),
        ({"latent_tokens": torch.zeros(8, 16, dtype=torch.int64)}, "latent_tokens holds torch.int64"),
    ],
)
def test_tensors_that_do_not_fit_are_refused(checkpoint, tmp_path, change, said):
    tensors = load_file(checkpoint / "model.safetensors") | change
    save_file({name: value for name, value in tensors.items() if value is not None}, checkpoint / "model.safetensors")
    refused(checkpoint, tmp_path / "models", said)


@pytest.mark.parametrize(
    ("change", "said"),
    [
        ({"vit_enc_model_size": "huge", "vit_dec_model_size": "huge"}, "unknown size 'huge': known are small, base, large"),
        ({"vit_dec_model_size": "large"}, "vit_dec_model_size is 'large' in its configuration, and only 'small'"),
        ({"vit_enc_model_size": ["small"], "vit_dec_model_size": ["small"]}, "size .*small"),
        ({"num_latent_tokens": "256"}, "'256' tokens"),
        ({"use_l2_norm": False}, "use_l2_norm is False"),
        ({"is_legacy": False}, "is_legacy is False"),
        ({"quantize_mode": "vae"}, "quantize_mode is 'vae'"),
        ({"finetune_decoder": False}, "finetune_decoder is False"),
    ],
)
def test_configurations_of_other_networks_are_refused(checkpoint, tmp_path, change, said):
    plain = stated("one-d-piece-s-256")
    plain["model"]["vq_model"] |= change
    (checkpoint / "config.json").write_text(json.dumps(plain))
    refused(checkpoint, tmp_path / "models", said)


@pytest.mark.parametrize("text", ["", "[]", "{}", '{"model": {"vq_model": 3}}', '{"config": 1}'])
def test_a_configuration_of_something_else_is_refused(checkpoint, tmp_path, text):
    (checkpoint / "config.json").write_text(text)
    refused(checkpoint, tmp_path / "models", r"config.json: not the configuration of a TiTok or One-D-Piece tokenizer")


def test_an_unknown_type_or_family_is_refused(checkpoint):
    opened = open_checkpoint(checkpoint)
    with pytest.raises(ModelError, match="its configuration says one-d-piece, not titok"):
        config_of(opened, "titok")
    with pytest.raises(ModelError, match="unknown type 'maskgit'"):
        config_of(Checkpoint(opened.path, opened.shapes, opened.read, {"model": {"type": "maskgit", "vq_model": {}}}))
    odd = Checkpoint(opened.path, {"latent_tokens": (100, 512)}, opened.read, None)
    with pytest.raises(ModelError, match="100 tokens, a number of no published model: say whether it is one-d-piece or titok"):
        config_of(odd)
    assert config_of(odd, "titok").name in ("titok-s-100", TINY.name)
    with pytest.raises(ModelError, match=r"unknown size: its latent_tokens have shape \(100, 640\)"):
        config_of(Checkpoint(opened.path, {"latent_tokens": (100, 640)}, opened.read, None))


def test_a_folder_without_one_file_of_weights_is_refused(tmp_path):
    empty = tmp_path / "empty"
    empty.mkdir()
    refused(empty, tmp_path / "models", "one file of weights is expected in the folder, found: none")
    for name in ("a.bin", "b.pt"):
        (empty / name).write_bytes(b"x")
    refused(empty, tmp_path / "models", "found: a.bin, b.pt")
    refused(tmp_path / "no such file", tmp_path / "models", "no such file or folder, and not the name of a repository")


def test_a_repository_is_fetched_by_its_name(checkpoint, tmp_path, monkeypatch):
    asked = []

    def snapshot(name: str, allow_patterns: list[str]) -> str:
        asked.append((name, allow_patterns))
        return str(checkpoint)

    monkeypatch.chdir(tmp_path)
    monkeypatch.setitem(sys.modules, "huggingface_hub", SimpleNamespace(snapshot_download=snapshot))
    made = import_checkpoint("turing-motors/One-D-Piece-S-256", tmp_path / "models")
    assert asked == [("turing-motors/One-D-Piece-S-256", ["config.json", "*.safetensors"])]
    assert made.metadata["card"] == {"source": "turing-motors/One-D-Piece-S-256"}


def test_without_the_library_or_a_network_the_error_says_what_to_do(monkeypatch):
    monkeypatch.setitem(sys.modules, "huggingface_hub", None)
    with pytest.raises(ModelError, match=r"a/b: fetching it needs huggingface_hub \(pip install huggingface_hub\)"):
        fetch_repository("a/b")

    def offline(*_: object, **__: object) -> str:
        msg = "Name or service not known\nmore"
        raise ConnectionError(msg)

    monkeypatch.setitem(sys.modules, "huggingface_hub", SimpleNamespace(snapshot_download=offline))
    with pytest.raises(ModelError, match=r"a/b: cannot be fetched \(Name or service not known\): check the name") as error:
        fetch_repository("a/b")
    assert "\n" not in str(error.value)


def test_a_damaged_model_file_is_found_before_it_is_used(checkpoint, tmp_path):
    path = import_checkpoint(checkpoint, tmp_path / "models").path
    data = bytearray(path.read_bytes())
    data[-100] ^= 1
    path.write_bytes(data)
    with pytest.raises(ModelError, match="damaged, its weights hash to"):
        open_model(path).network(torch.device("cpu"))


def test_a_full_disk_leaves_nothing(checkpoint, tmp_path, monkeypatch):
    def full(_: object, path, *__: object) -> None:
        path.write_bytes(b"half")
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(model, "save_file", full)
    with pytest.raises(FileError, match=r"cannot write .*No space left"):
        import_checkpoint(checkpoint, tmp_path / "models")
    assert list((tmp_path / "models").iterdir()) == []


def test_other_safetensors_are_no_models(tmp_path):
    save_file({"a": torch.from_numpy(np.zeros(3))}, tmp_path / "a.safetensors")
    with pytest.raises(ModelError, match="not a Tessera model"):
        open_model(tmp_path / "a.safetensors")


def test_a_kind_of_a_later_release_is_named(tmp_path):
    plain = {"kind": "tessera-sketch-9", "fingerprint": "00" * 32, "network": {}, "card": {}}
    save_file({"a": torch.zeros(1)}, tmp_path / "a.safetensors", {"tessera": json.dumps(plain)})
    with pytest.raises(
        ModelError, match="a model of kind 'tessera-sketch-9', and this release knows tessera-pyramid-1, tessera-t"
    ):
        open_model(tmp_path / "a.safetensors")
