"""Import of checkpoints: published layouts, with seeded random tensors, become model files; others are refused."""

from __future__ import annotations

import io
import json
import os
import tracemalloc
import zipfile
from dataclasses import replace

import numpy as np
import pytest
import torch
from safetensors.torch import load_file, save_file

from bitstream.codebook_tokens import uniform_code
from codec.errors import FileError, ModelError
from codec.models import base
from codec.models import checkpoint as models_checkpoint
from codec.models.checkpoint import Checkpoint, check_shapes, open_checkpoint
from codec.models.installing import import_model
from codec.models.published import fingerprint
from codec.models.registry import open_model
from codec.titok import checkpoint as checkpoint_module
from codec.titok.checkpoint import network_config
from codec.titok.config import TitokConfig, published_config
from codec.titok.model import TitokModel
from codec.titok.network import Titok
from tests.helpers.commands import run
from tests.helpers.titok import PUBLISHED, SECOND_GENERATION, published_settings

TINY = TitokConfig(8, True, 16, 1, 2, side=32, codebook=64, pixel_codebook=20, pixel_code=8, pixel_width=32)


def transformer(name: str, width: int, layers: int, tokens: int) -> dict[str, tuple[int, ...]]:
    shapes = {
        f"{name}.class_embedding": (1, width),
        f"{name}.positional_embedding": (257, width),
        f"{name}.latent_token_positional_embedding": (tokens, width),
    }
    norms = [f"{name}.ln_pre", f"{name}.ln_post"]
    for layer in range(layers):
        block = f"{name}.transformer.{layer}"
        norms += [f"{block}.ln_1", f"{block}.ln_2"]
        shapes |= {f"{block}.attn.in_proj_weight": (3 * width, width), f"{block}.attn.in_proj_bias": (3 * width,)}
        shapes |= {f"{block}.attn.out_proj.weight": (width, width), f"{block}.attn.out_proj.bias": (width,)}
        shapes |= {f"{block}.mlp.c_fc.weight": (4 * width, width), f"{block}.mlp.c_fc.bias": (4 * width,)}
        shapes |= {f"{block}.mlp.c_proj.weight": (width, 4 * width), f"{block}.mlp.c_proj.bias": (width,)}
    return shapes | {f"{norm}.{part}": (width,) for norm in norms for part in ("weight", "bias")}


def pixel_decoder() -> dict[str, tuple[int, ...]]:
    """The decoder of MaskGIT's VQGAN: 512 channels at 16x16 down to 128 at 256x256."""
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
        for block, width in enumerate((inputs, outputs)):
            residual(f"up.{level}.block.{block}", width, outputs)
        if level:
            conv(f"up.{level}.upsample_conv", outputs, outputs)
    norm("norm_out", 128)
    conv("conv_out", 128, 3)
    return shapes


def published(name: str) -> dict[str, tuple[int, ...]]:
    """All names and shapes of the tensors in a published checkpoint."""
    second = name in SECOND_GENERATION
    _, width, layers, tokens = (PUBLISHED | SECOND_GENERATION)[name]
    codes, code, decoder_width, decoder_layers = (8192, 64, 1024, 24) if second else (4096, 12, width, layers)
    direct = {
        "decoder.ffn.0.weight": (768, 1024, 1, 1),
        "decoder.ffn.0.bias": (768,),
        "decoder.conv_out.weight": (3, 3, 3, 3),
        "decoder.conv_out.bias": (3,),
    }
    two_stages = {
        "decoder.ffn.0.weight": (2 * width, width, 1, 1),
        "decoder.ffn.0.bias": (2 * width,),
        "decoder.ffn.2.weight": (1024, 2 * width, 1, 1),
        "decoder.ffn.2.bias": (1024,),
        "pixel_quantize.embedding.weight": (1024, 256),
        **pixel_decoder(),
    }
    return {
        "latent_tokens": (tokens, width),
        **transformer("encoder", width, layers, tokens),
        "encoder.patch_embed.weight": (width, 3, 16, 16),
        "encoder.patch_embed.bias": (width,),
        "encoder.conv_out.weight": (code, width, 1, 1),
        "encoder.conv_out.bias": (code,),
        "quantize.embedding.weight": (codes, code),
        **transformer("decoder", decoder_width, decoder_layers, tokens),
        "decoder.decoder_embed.weight": (decoder_width, code),
        "decoder.decoder_embed.bias": (decoder_width,),
        "decoder.mask_token": (1, 1, decoder_width),
        **(direct if second else two_stages),
    }


@pytest.fixture
def checkpoint(tmp_path, monkeypatch):
    """A folder in the published layout, of a tiny network instead of a small one."""

    def config(size: str, block_tokens: int, tail_drop: bool, decoder: str | None) -> TitokConfig:
        return TINY if size == "small" else published_config(size, block_tokens, tail_drop, decoder)

    monkeypatch.setattr(checkpoint_module, "published_config", config)
    torch.manual_seed(1)
    folder = tmp_path / "checkpoint"
    folder.mkdir()
    save_file(Titok(TINY).state_dict(), folder / "model.safetensors")
    (folder / "config.json").write_text(json.dumps(published_settings("one-d-piece-s-256")))
    return folder


def check_refused(source, folder, words: str) -> None:
    """Asserts that the import raises one line with these words, and writes nothing."""
    with pytest.raises(ModelError, match=words) as error:
        TitokModel.import_checkpoint(open_checkpoint(source), folder)
    assert "\n" not in str(error.value)
    assert not folder.exists() or not list(folder.iterdir())


@pytest.mark.parametrize("name", [*PUBLISHED, *SECOND_GENERATION])
@pytest.mark.parametrize("from_config", [True, False])
def test_networks_have_the_tensors_of_the_published_checkpoints(name, from_config, tmp_path):
    shapes = published(name)
    checkpoint = Checkpoint(name, tmp_path, shapes, torch.zeros, published_settings(name) if from_config else None)
    config = network_config(checkpoint)
    assert config.name == name
    assert config.tail_drop == name.startswith("one")
    with torch.device("meta"):
        network = Titok(config)
    check_shapes(tmp_path, shapes, network, name)
    wrong = {("decoder.masks" if key == "decoder.mask_token" else key): shape for key, shape in shapes.items()}
    with pytest.raises(ModelError) as error:
        check_shapes(tmp_path, wrong | {"latent_tokens": (7, 7)}, network, name)
    assert all(tensor in str(error.value) for tensor in ("decoder.mask_token", "decoder.masks", "latent_tokens (7, 7)"))


def test_a_published_layout_imports_and_codes_a_block(tmp_path):
    """The small One-D-Piece in its published size."""
    generator = torch.Generator().manual_seed(0)
    tensors = {
        name: torch.empty(shape, dtype=torch.float16).uniform_(-0.1, 0.1, generator=generator)
        for name, shape in published("one-d-piece-s-256").items()
    }
    save_file(tensors, tmp_path / "model.safetensors")
    (tmp_path / "config.json").write_text(json.dumps({"config": published_settings("one-d-piece-s-256")}))
    model = TitokModel.import_checkpoint(open_checkpoint(tmp_path), tmp_path / "models")
    assert model.path == tmp_path / "models" / "one-d-piece-s-256.safetensors"
    assert model.code.tables[0, 0] == 2**24 // 4096
    network = model.network(torch.device("cpu"))
    assert all(torch.equal(value.half(), tensors[name]) for name, value in network.state_dict().items())
    indices = network.tokenize(torch.rand((1, 3, 256, 256), generator=generator))
    assert indices.shape == (1, 256)
    assert network.detokenize(indices[:, :3]).shape == (1, 3, 256, 256)


def test_a_model_has_the_tensors_of_its_checkpoint(checkpoint, tmp_path):
    model = TitokModel.import_checkpoint(open_checkpoint(checkpoint), tmp_path / "models")
    tensors = load_file(checkpoint / "model.safetensors")
    network = open_model(model.path).network(torch.device("cpu"))
    assert network.state_dict().keys() == tensors.keys()
    assert all(torch.equal(value, tensors[name]) for name, value in network.state_dict().items())
    assert model.metadata["card"] == {"source": "checkpoint"}
    codebook = tensors["quantize.embedding.weight"].numpy()
    assert model.metadata["fingerprint"] == fingerprint(TINY, {"codebook": codebook}, uniform_code(8, 64))


def test_torch_files_and_safetensors_become_the_same_model(checkpoint, tmp_path):
    from_safetensors = TitokModel.import_checkpoint(open_checkpoint(checkpoint), tmp_path / "models").metadata
    torch.save(load_file(checkpoint / "model.safetensors"), checkpoint / "pytorch_model.bin")
    (checkpoint / "model.safetensors").unlink()
    from_torch = TitokModel.import_checkpoint(open_checkpoint(checkpoint), tmp_path / "others").metadata
    assert from_torch["digest"] == from_safetensors["digest"]
    assert from_torch["fingerprint"] == from_safetensors["fingerprint"]


def test_the_fingerprint_covers_codebook_and_tables_alone(checkpoint, tmp_path):
    """A network with another decoder decodes the same files; one with another codebook or other tables does not."""
    before = TitokModel.import_checkpoint(open_checkpoint(checkpoint), tmp_path / "models").metadata
    tensors = load_file(checkpoint / "model.safetensors")
    codebook = tensors["quantize.embedding.weight"].numpy()
    save_file(tensors | {"decoder.mask_token": 2 * tensors["decoder.mask_token"]}, checkpoint / "model.safetensors")
    after = TitokModel.import_checkpoint(open_checkpoint(checkpoint), tmp_path / "models").metadata
    assert after["fingerprint"] == before["fingerprint"]
    assert after["digest"] != before["digest"]
    variants = [
        fingerprint(TINY, {"codebook": codebook * scale}, uniform_code(8, values))
        for scale, values in ((1, 64), (2, 64), (1, 32))
    ]
    assert len(set(variants)) == 3


class Harmful:
    def __reduce__(self):
        return os.mkdir, ("harm",)


def test_a_pickle_that_runs_code_is_refused(checkpoint, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    path = tmp_path / "pytorch_model.bin"
    torch.save(load_file(checkpoint / "model.safetensors") | {"latent_tokens": Harmful()}, path)
    check_refused(path, tmp_path / "models", "pytorch_model.bin")
    assert not (tmp_path / "harm").exists()


@pytest.mark.parametrize("data", [b"", b"nothing", bytes(range(256)) * 9, b"\x80\x02]q\x00."])
@pytest.mark.parametrize("suffix", ["safetensors", "bin"])
def test_files_without_tensors_are_refused(data, suffix, tmp_path):
    path = tmp_path / f"weights.{suffix}"
    path.write_bytes(data)
    check_refused(path, tmp_path / "models", rf"weights\.{suffix}")


@pytest.mark.parametrize(
    ("change", "words"),
    [
        ({"latent_tokens": torch.zeros(9, 16)}, r"latent_tokens \(9, 16\)"),
        ({"latent_tokens": None}, "missing: latent_tokens"),
        ({"extra": torch.zeros(1)}, "unexpected: extra"),
        ({f"extra.{i}": torch.zeros(1) for i in range(5)}, "extra.0, extra.1, extra.2 and 2 more"),
        ({"latent_tokens": torch.full((8, 16), torch.nan)}, "latent_tokens"),
        ({"latent_tokens": torch.zeros(8, 16, dtype=torch.int64)}, "latent_tokens holds torch.int64"),
    ],
)
def test_tensors_that_do_not_fit_are_refused(checkpoint, tmp_path, change, words):
    tensors = load_file(checkpoint / "model.safetensors") | change
    save_file({name: value for name, value in tensors.items() if value is not None}, checkpoint / "model.safetensors")
    check_refused(checkpoint, tmp_path / "models", words)


@pytest.mark.parametrize(
    ("change", "words"),
    [
        ({"vit_enc_model_size": "huge", "vit_dec_model_size": "huge"}, "'huge'"),
        ({"vit_dec_model_size": "large"}, "vit_dec_model_size"),
        ({"vit_enc_model_size": ["small"], "vit_dec_model_size": ["small"]}, "size"),
        ({"codebook_size": 8192}, "codebook_size is 8192"),
        ({"num_latent_tokens": "256"}, "'256' tokens"),
        ({"use_l2_norm": False}, "use_l2_norm"),
        ({"is_legacy": False}, "is_legacy"),
        ({"quantize_mode": "vae"}, "quantize_mode"),
        ({"finetune_decoder": False}, "finetune_decoder"),
    ],
)
def test_configurations_of_unsupported_networks_are_refused(checkpoint, tmp_path, change, words):
    settings = published_settings("one-d-piece-s-256")
    settings["model"]["vq_model"] |= change
    (checkpoint / "config.json").write_text(json.dumps(settings))
    check_refused(checkpoint, tmp_path / "models", words)


@pytest.mark.parametrize("text", ["", "[]", "{}", '{"model": {"vq_model": 3}}', '{"config": 1}'])
def test_other_json_files_are_refused(checkpoint, tmp_path, text):
    (checkpoint / "config.json").write_text(text)
    check_refused(checkpoint, tmp_path / "models", "config.json")


def test_an_unknown_type_variant_or_width_is_refused(checkpoint):
    opened = open_checkpoint(checkpoint)
    with pytest.raises(ModelError, match="one-d-piece, not titok"):
        network_config(opened, "titok")
    with pytest.raises(ModelError, match="'maskgit'"):
        network_config(replace(opened, config={"model": {"type": "maskgit", "vq_model": {}}}))
    with pytest.raises(ModelError, match=r"\(100, 640\)"):
        network_config(replace(opened, shapes={"latent_tokens": (100, 640)}, config=None))


def test_the_second_generation_is_told_by_its_codebook(tmp_path):
    """TiTok-SL-256 has as many tokens as a One-D-Piece, but needs all of them."""
    settings = published_settings("titok-sl-256")
    for stated in (settings, None):
        checkpoint = Checkpoint("x", tmp_path, published("titok-sl-256"), torch.zeros, stated)
        config = network_config(checkpoint)
        assert (config.name, config.tail_drop, config.unit, config.direct) == ("titok-sl-256", False, False, True)
        with pytest.raises(ModelError, match="titok, not one-d-piece"):
            network_config(checkpoint, "one-d-piece")
    for key, value in (("quantize_mode", "vae"), ("use_l2_norm", True), ("is_legacy", True), ("token_size", 12)):
        changed = {"model": {"vq_model": settings["model"]["vq_model"] | {key: value}}}
        with pytest.raises(ModelError, match=f"{key} is {value!r}"):
            network_config(replace(checkpoint, config=changed))


def test_a_decoder_that_needs_a_caption_is_refused(tmp_path):
    shapes = published("titok-bl-64") | {"decoder.text_guidance_proj.weight": (1024, 768)}
    with pytest.raises(ModelError, match="TA-TiTok"):
        network_config(Checkpoint("x", tmp_path, shapes, torch.zeros, None))


def test_an_unpublished_number_of_tokens_needs_a_variant(checkpoint):
    opened = open_checkpoint(checkpoint)
    unpublished = replace(opened, shapes={"latent_tokens": (100, 1024)}, config=None)
    with pytest.raises(ModelError, match="100 tokens"):
        network_config(unpublished)
    assert network_config(unpublished, "titok").name == "titok-l-100"
    assert network_config(unpublished, "one-d-piece").name == "one-d-piece-l-100"


def test_a_folder_without_a_single_file_of_weights_is_refused(tmp_path):
    folder = tmp_path / "folder"
    folder.mkdir()
    check_refused(folder, tmp_path / "models", "no weights")
    for name in ("a.bin", "b.pt"):
        (folder / name).write_bytes(b"x")
    check_refused(folder, tmp_path / "models", "a.bin, b.pt")
    check_refused(tmp_path / "no such file", tmp_path / "models", "no such file")


@pytest.fixture
def pickled(checkpoint) -> bytes:
    stream = io.BytesIO()
    torch.save(load_file(checkpoint / "model.safetensors"), stream)
    return stream.getvalue()


def test_the_command_imports_from_a_repository(checkpoint, hub, tmp_path, monkeypatch):
    monkeypatch.setenv("XDG_DATA_HOME", str(tmp_path / "data"))
    hub.repositories["a/b"] = {path.name: path.read_bytes() for path in checkpoint.iterdir()}
    assert run("models", "import", "a/b", "--name", "piece").exit_code == 0
    hub.repositories.clear()
    taken = run("models", "import", "c/d", "--name", "piece")  # noticed before anything is downloaded
    assert (taken.exit_code, "installed already" in taken.stderr) == (1, True)
    assert run("models", "check", "piece").exit_code == 0


def test_a_name_that_is_taken_is_noticed_before_the_weights_are_read(checkpoint, tmp_path, monkeypatch):
    monkeypatch.setenv("XDG_DATA_HOME", str(tmp_path / "data"))
    import_model(str(checkpoint))

    def refuse(*_: object) -> None:
        msg = "the weights are read"
        raise AssertionError(msg)

    monkeypatch.setattr(models_checkpoint, "read_tensors", refuse)
    with pytest.raises(ModelError) as error:
        import_model(str(checkpoint))
    assert error.value.advice == ("force",)


def test_messages_of_an_import_name_a_path_once(checkpoint):
    settings = published_settings("one-d-piece-s-256")
    settings["model"]["vq_model"] |= {"is_legacy": False}
    (checkpoint / "config.json").write_text(json.dumps(settings))
    for source in (checkpoint, f"{checkpoint}/", checkpoint / "none.bin", checkpoint / "config.json"):
        outcome = run("models", "import", source)
        assert (outcome.exit_code, outcome.stderr.count(checkpoint.name)) == (1, 1), outcome.stderr


def test_tensors_inside_a_training_state_are_found(checkpoint, tmp_path):
    tensors = load_file(checkpoint / "model.safetensors")
    torch.save({"state_dict": tensors, "epoch": 3}, tmp_path / "state.bin")
    assert open_checkpoint(tmp_path / "state.bin").shapes == open_checkpoint(checkpoint).shapes
    torch.save({"weights": tensors, "epoch": 3}, tmp_path / "other.bin")
    check_refused(tmp_path / "other.bin", tmp_path / "models", "weights, epoch")


def test_what_is_no_file_of_a_checkpoint_is_refused_in_bounded_memory(checkpoint, tmp_path):
    os.mkfifo(tmp_path / "pipe")
    os.mkfifo(tmp_path / "pipe.bin")
    for source in ("/dev/zero", tmp_path / "pipe", tmp_path / "pipe.bin"):
        check_refused(source, tmp_path / "models", "neither a folder nor a file")
    with (checkpoint / "config.json").open("wb") as file:
        file.truncate(300 << 20)
    tracemalloc.start()
    check_refused(checkpoint, tmp_path / "models", "config.json")
    assert tracemalloc.get_traced_memory()[1] < 8 << 20
    tracemalloc.stop()
    (checkpoint / "config.json").write_text("[" * 100_000)
    check_refused(checkpoint, tmp_path / "models", "config.json")


def test_packed_pickles_are_refused(pickled, tmp_path):
    """A bomb: torch stores tensors as they are, and would unpack others whole."""
    with (
        zipfile.ZipFile(io.BytesIO(pickled)) as source,
        zipfile.ZipFile(tmp_path / "a.bin", "w", zipfile.ZIP_DEFLATED) as packed,
    ):
        for entry in source.namelist():
            packed.writestr(entry, source.read(entry))
    check_refused(tmp_path / "a.bin", tmp_path / "models", "compressed")


def test_a_damaged_model_file_is_detected_before_use(checkpoint, tmp_path):
    path = TitokModel.import_checkpoint(open_checkpoint(checkpoint), tmp_path / "models").path
    data = bytearray(path.read_bytes())
    data[-100] ^= 1
    path.write_bytes(data)
    with pytest.raises(ModelError, match="damaged"):
        open_model(path).network(torch.device("cpu"))


@pytest.mark.parametrize("dtype", [np.float32, np.float16])
def test_a_network_holds_its_weights_once(tmp_path, dtype):
    """Also while it is loaded: neither the file nor arrays in half precision are in memory with its numbers."""
    config = replace(TINY, width=128, layers=4, heads=4)
    weights = {name: value.numpy().astype(dtype) for name, value in Titok(config).state_dict().items()}
    model = TitokModel.save(tmp_path / "m.safetensors", config, weights, TitokModel.new_code(config), {})
    size = 4 * sum(array.size for array in weights.values())
    half = size / 2 if dtype == np.float16 else 0  # of these, the copies in float32 are torch's, which are not counted
    model.network(torch.device("cpu"))  # imports of torch, once
    tracemalloc.start()
    try:
        network = model.network(torch.device("cpu"))
        held, peak = tracemalloc.get_traced_memory()
    finally:
        tracemalloc.stop()
    assert sum(value.nbytes for value in network.state_dict().values()) == size
    assert held < (0.1 if half else 1.1) * size
    assert peak < 1.2 * (half or size)


def test_a_full_disk_leaves_nothing(checkpoint, tmp_path, monkeypatch):
    def save_half(_: object, path, *__: object) -> None:
        path.write_bytes(b"half")
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(base, "save_file", save_half)
    with pytest.raises(FileError, match="No space left"):
        TitokModel.import_checkpoint(open_checkpoint(checkpoint), tmp_path / "models")
    assert list((tmp_path / "models").iterdir()) == []


def test_other_safetensors_are_not_models(tmp_path):
    save_file({"a": torch.from_numpy(np.zeros(3))}, tmp_path / "a.safetensors")
    with pytest.raises(ModelError, match=r"a\.safetensors"):
        open_model(tmp_path / "a.safetensors")


def test_the_kind_of_a_later_release_is_named(tmp_path):
    metadata = {"kind": "tessera-sketch-9", "fingerprint": "00" * 32, "digest": "00" * 32, "network": {}, "card": {}}
    save_file({"a": torch.zeros(1)}, tmp_path / "a.safetensors", {"tessera": json.dumps(metadata)})
    with pytest.raises(ModelError, match="tessera-sketch-9"):
        open_model(tmp_path / "a.safetensors")
