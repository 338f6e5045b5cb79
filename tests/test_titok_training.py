"""Training of a One-D-Piece, of one smaller than `tiny`, so that each step takes milliseconds."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image

from cli.main import main
from codec.errors import ModelError, UsageError
from codec.models.registry import open_model
from codec.pyramid.training import PyramidTrainer
from codec.titok import config as titok_config
from codec.titok.config import SIZES, TINY, TitokConfig, new_config
from codec.titok.initialization import cosines
from codec.titok.training import TitokTrainer, TitokTraining, k_means, quantize, reconstruct, spread_lengths
from codec.training.photos import random_crops
from codec.training.run import trainer_of
from tests.helpers.commands import encoded, records, run

CPU = torch.device("cpu")
TINIER = TitokConfig(
    8, True, 32, 1, 2, side=16, patch=4, codebook=64, pixel_codebook=32, pixel_code=16,
    pixel_width=16, pixel_multipliers=(1, 1, 1), pixel_depth=1, pixel_groups=4, mixed=False,
)  # fmt: skip


@pytest.fixture(autouse=True)
def tinier(monkeypatch):
    monkeypatch.setattr(titok_config, "TINY", TINIER)


@pytest.fixture(scope="module")
def photos(photo) -> torch.Tensor:
    """Three squares of the bundled photo."""
    squares = [np.asarray(photo.crop((x, y, x + 320, y + 320))) for x, y in ((0, 0), (140, 40), (280, 80))]
    return torch.from_numpy(np.stack(squares))


def fresh(photos: torch.Tensor, **recipe) -> TitokTrainer:
    return TitokTrainer.from_scratch(photos, TitokTraining(**recipe), CPU)


@pytest.fixture(scope="module")
def blocks(photos) -> torch.Tensor:
    """Four blocks (4, 16, 16, 3) with some detail in each."""
    return torch.cat([photos[:1, y : y + 16, x : x + 16] for y, x in ((150, 60), (200, 180), (90, 250), (30, 120))])


@pytest.fixture(scope="module")
def trained(blocks) -> TitokTrainer:
    """A trainer after some seconds with four blocks."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(titok_config, "TINY", TINIER)
        trainer = fresh(blocks, steps=300, batch=8, rate=2e-3, average=0.98, frozen_encoder_crops=400)
    losses = [trainer.train_step(blocks, None) for _ in range(300)]
    assert np.mean(losses[-40:]) < 0.7 * np.mean(losses[:40])
    return trainer


def test_a_new_network_is_a_cosine_transform(photos, monkeypatch):
    """Before the first step and without a codebook, more tokens are closer, and the pixel decoder returns colours."""
    monkeypatch.setattr(titok_config, "TINY", TINY)
    network = fresh(photos).network
    x = random_crops(photos, 64, np.random.default_rng(0), TINY.side)
    with torch.no_grad():
        vectors = torch.nn.functional.normalize(network.encoder((x + 1) / 2, network.latent_tokens), dim=-1)
        errors = [float((reconstruct(network, vectors, [n]) - x).square().mean()) for n in (1, 2, 4, 8, 16)]
    variance = float((x - x.mean((0, 2, 3), keepdim=True)).square().mean())
    assert errors == sorted(errors, reverse=True)
    assert errors[0] < 0.7 * variance
    assert errors[-1] < 0.7 * errors[0]


def test_patterns_of_the_cosine_transform_are_orthogonal():
    patterns = cosines(4)
    assert torch.allclose(patterns @ patterns.t(), torch.eye(16), atol=1e-6)
    assert torch.allclose(patterns[0], torch.full((16,), 0.25))
    grids = patterns.reshape(16, 4, 4)
    changes = grids.diff(dim=1).abs().sum((1, 2)) + grids.diff(dim=2).abs().sum((1, 2))
    assert changes[1:4].max() < changes[-3:].min()  # low frequencies first


def test_k_means_finds_clusters():
    rng = np.random.default_rng(0)
    centres, noise = (torch.from_numpy(rng.normal(size=(count, 8))).float() for count in (3, 150))
    vectors = torch.nn.functional.normalize(torch.nn.functional.normalize(centres).repeat(50, 1) + 0.02 * noise)
    means = k_means(vectors, 12, rng)
    assert torch.allclose(means.norm(dim=1), torch.ones(12), atol=1e-5)
    assert ((vectors @ means.t()).max(1)[0] > 0.99).all()
    assert k_means(vectors[:5], 12, rng).shape == (12, 8)


def test_only_the_first_tokens_reach_the_decoder(photos):
    """Kept tokens have a gradient, dropped ones have none; each part of a batch keeps another number."""
    network = fresh(photos).network
    codes = torch.nn.functional.normalize(torch.randn(4, 8, TINIER.code), dim=-1).requires_grad_()
    reconstruct(network, codes, [3, 8]).square().sum().backward()
    kept = codes.grad.abs().sum(-1) > 0
    assert kept.tolist() == [[True] * 3 + [False] * 5] * 2 + [[True] * 8] * 2


def test_training_computes_the_same_as_coding(photos):
    network = fresh(photos).network.eval()
    x = random_crops(photos, 2, np.random.default_rng(0), TINIER.side)
    with torch.no_grad():
        quantized = quantize(network.quantize, network.encoder((x + 1) / 2, network.latent_tokens))
        y = reconstruct(network, quantized.codes, [5])
    indices = network.tokenize((x + 1) / 2)
    assert torch.equal(quantized.indices, indices)
    assert torch.allclose(((y + 1) / 2).clamp(0, 1), network.detokenize(indices[:, :5]), atol=2e-4)


def test_every_doubling_of_the_length_is_trained_equally_often():
    rng = np.random.default_rng(0)
    drawn = [spread_lengths(4, 255, rng) for _ in range(4000)]
    assert {lengths[0] for lengths in drawn} == {255}
    counts = np.bincount([length for lengths in drawn for length in lengths[1:]], minlength=257)
    assert counts[0] == counts[256] == 0
    doublings = [counts[2**i : 2 ** (i + 1)].sum() for i in range(8)]
    assert min(doublings) > 0.9 * 1500
    assert max(doublings) < 1.1 * 1500
    assert spread_lengths(1, 8, rng) == [8]


def test_gradients_pass_the_quantizer(photos):
    """The codebook loss has gradients for the codebook alone, the commitment loss for the encoder alone."""
    trainer = fresh(photos, frozen_encoder_crops=0)
    network = trainer.network
    vectors = torch.randn(2, 8, TINIER.code, requires_grad=True)
    quantized = quantize(network.quantize, vectors)
    assert torch.allclose(quantized.codes.norm(dim=-1), torch.ones(2, 8), atol=1e-5)
    (passed,) = torch.autograd.grad(quantized.codes[..., 0].sum(), vectors, retain_graph=True)
    assert passed.abs().sum() > 0
    codebook = network.quantize.embedding.weight
    for loss, expected in ((quantized.codebook_loss, [False, True]), (quantized.commitment_loss, [True, False])):
        gradients = torch.autograd.grad(loss, [vectors, codebook], retain_graph=True, allow_unused=True)
        assert [gradient is not None and bool(gradient.abs().sum() > 0) for gradient in gradients] == expected


def test_all_parameters_are_trained(photos):
    trainer = fresh(photos, frozen_encoder_crops=0)
    for _ in range(2):  # layers that start at zero block the gradient in the first step
        trainer.train_step(photos, None)
    parameters = trainer.network.named_parameters()
    assert [name for name, p in parameters if p.grad is None or not p.grad.abs().sum() > 0] == []


def test_unused_codes_are_replaced(photos):
    trainer = fresh(photos, steps=9)
    vectors = torch.nn.functional.normalize(torch.randn(2, 8, TINIER.code), dim=-1)
    before = trainer.network.quantize.embedding.weight.detach().clone()
    trainer.usage.counts[:60] = 1
    trainer.replace_unused_codes(vectors)
    after = trainer.network.quantize.embedding.weight.detach()
    assert torch.equal(after[:60], before[:60])
    nearest = (after[60:] @ vectors.flatten(0, 1).t()).max(1)[0]
    assert (nearest > 0.98).all()
    assert torch.equal(after[60:], trainer.ema.quantize.embedding.weight[60:])
    assert trainer.usage.counts.sum() == 0
    trainer.step = 9  # late in the schedule, all codes stay
    trainer.replace_unused_codes(vectors)
    assert torch.equal(after, trainer.network.quantize.embedding.weight)


def test_training_beats_one_colour_and_more_tokens_are_better(trained, blocks):
    metrics = trained.validate(blocks, None)
    psnrs = [metrics[f"psnr@{length}"] for length in (1, 2, 4, 8)]
    assert psnrs[-1] > metrics["psnr of one colour"] + 1  # 1.6 to 2.6 with other seeds
    assert psnrs[-1] > psnrs[0] + 0.7  # 1.3 to 1.8
    assert all(
        f"{length}: {psnr:.2f}" in trained.format_metrics(metrics) for length, psnr in zip((1, 2, 4, 8), psnrs, strict=True)
    )


def test_the_encoder_is_frozen_at_first(photos):
    trainer = fresh(photos, steps=9, batch=2, frozen_encoder_crops=4)
    before = trainer.network.encoder.patch_embed.weight.detach().clone()
    moved = []
    for _ in range(3):
        trainer.train_step(photos, None)
        moved.append(not torch.equal(before, trainer.network.encoder.patch_embed.weight))
    assert moved == [False, False, True]


def test_tiny_itself_learns(photos, monkeypatch):
    monkeypatch.setattr(titok_config, "TINY", TINY)
    block = photos[:1, 150:182, 60:92]
    trainer = fresh(block, steps=40, batch=4, rate=2e-3)
    losses = [trainer.train_step(block, None) for _ in range(40)]
    assert trainer.network.config == TINY
    assert np.mean(losses[-10:]) < 0.9 * np.mean(losses[:10])


def test_a_resumed_run_is_the_same_run(photos, tmp_path, monkeypatch):
    """Also across a replacement of unused codes."""
    monkeypatch.setattr("codec.titok.training.RESTART_STEPS", 4)
    config = {"steps": 20, "batch": 2, "frozen_encoder_crops": 8}
    straight, interrupted = fresh(photos, **config), fresh(photos, **config)
    for trainer in (straight, interrupted):
        for _ in range(3):
            trainer.train_step(photos, None)
    interrupted.save(tmp_path / "checkpoint.safetensors")
    torch.rand(7)  # as another process would have drawn
    resumed = TitokTrainer.resume(tmp_path / "checkpoint.safetensors", CPU)
    for trainer in (straight, resumed):
        for _ in range(3):
            trainer.train_step(photos, None)
    assert (resumed.step, resumed.config) == (straight.step, straight.config)
    for name, part in resumed.modules().items():
        expected = straight.modules()[name].state_dict()
        assert all(torch.equal(tensor, expected[key]) for key, tensor in part.state_dict().items()), name
    with pytest.raises(ModelError) as error:
        PyramidTrainer.resume(tmp_path / "checkpoint.safetensors", CPU)
    assert error.value.advice == ("family",)


def test_the_perceptual_loss_counts(photos):
    """Its weight is a factor on its part of the loss."""
    x = random_crops(photos, 4, np.random.default_rng(0), TINIER.side)
    losses = []
    for weight in (0.0, 1.0, 2.0):
        trainer = fresh(photos, perceptual=weight)
        losses.append(float(trainer.loss(x, lambda y, x: (y - x).square().mean((1, 2, 3))).detach()))
    assert losses[2] - losses[1] == pytest.approx(losses[1] - losses[0], rel=1e-4)
    assert losses[1] > losses[0]


def test_new_networks_have_published_sizes(monkeypatch):
    assert new_config(block_tokens=5) == replace(TINIER, block_tokens=5)
    monkeypatch.setattr(titok_config, "TINY", TINY)
    assert {size: new_config(size).name for size in SIZES} == {size: f"one-d-piece-{size[0]}-256" for size in SIZES}
    assert new_config("small", 64).name == "one-d-piece-s-64"
    assert new_config() == TINY
    assert TINY.name == "one-d-piece-t-16"
    assert TitokConfig.from_dict(TINY.to_dict()) == TINY
    with pytest.raises(ModelError, match="huge"):
        new_config("huge")


@pytest.fixture
def folder(tmp_path, photo) -> Path:
    (tmp_path / "photos").mkdir()
    for index in range(2):
        photo.crop((index * 150, 0, index * 150 + 330, 330)).save(tmp_path / "photos" / f"{index}.png")
    return tmp_path / "photos"


def test_the_command_trains_a_model_that_codes_images(tmp_path, photo, folder):
    """Then both the run and the model are trained further."""
    model, image, file = tmp_path / "m.safetensors", tmp_path / "a.png", tmp_path / "a.tsr"
    photo.crop((200, 100, 280, 150)).save(image)
    family = ("train", folder, "--family", "one-d-piece", "--vgg", "none", "--batch", 2)
    train = (*family, "--state", tmp_path / "state", "-o", model)
    outcome = run(*train, "--size", "tiny", "--steps", 3, "--json")
    assert outcome.exit_code == 0, outcome.output
    assert records(outcome)[0]["crops"] == 6
    opened = open_model(model)
    opened.check()
    assert opened.config == TINIER
    assert len(opened.code.tables) > 1  # measured: no longer all alike
    assert opened.metadata["card"]["training"]["commitment"] == 0.25
    sizes = []
    for tokens in (1, 5, 8):
        assert encoded(image, "--model", model, "--tokens", tokens)["tokens"] == tokens
        assert run("decode", file, "--model", model, "-o", tmp_path / "b.png", "-f").exit_code == 0
        with Image.open(tmp_path / "b.png") as decoded:
            assert decoded.size == (80, 50)
        sizes.append(file.stat().st_size)
    assert sizes == sorted(set(sizes))
    assert run(*train, "--restart", "--steps", 2).exit_code == 0
    assert open_model(model).metadata["card"]["crops"] == 10
    further = run(*family, "--state", tmp_path / "b", "--init", model, "--steps", 1)
    assert further.exit_code == 0, further.output
    assert TitokTrainer.resume(tmp_path / "b" / "checkpoint.safetensors", CPU).total_crops == 12


def test_the_command_offers_existing_families():
    offered = {option.name: option.type for option in main.commands["train"].params}
    for family in offered["family"].choices:
        assert trainer_of(family).family == family


@pytest.mark.parametrize(
    ("arguments", "code", "words"),
    [
        (("--family", "one-d-piece", "--lambda-scale", 1), 2, "--lambda-scale"),
        (("--size", "tiny", "--block-tokens", 9), 2, "--block-tokens and --size"),
        (("--family", "one-d-piece", "--size", "huge"), 2, "'huge'"),
        (("--set", "pattern"), 2, "pattern"),
        (("--set", "pattern=nan"), 2, "pattern=nan"),
        (("--set", "perceptual_every=0"), 2, "at least 1"),
        (("--set", "truncation_weights=1,2"), 2, "14 numbers"),
        (("--set", "lambdas=" + ",".join("0" * 14)), 2, "lambdas"),
        (("--set", "rate=1"), 2, "linear_rate, perceptual_weights,"),  # of the values that can be set; rate has an option
        (("-o", "-"), 2, "-o FILE"),
        (("-o", "."), 1, "folder"),
        (("--family", "one-d-piece", "--init", "standard"), 1, "tessera-pyramid-1"),
    ],
)
def test_wrong_options_are_refused(tmp_path, folder, arguments, code, words):
    outcome = run("train", folder, "--vgg", "none", "--state", tmp_path / "state", *arguments)
    assert outcome.exit_code == code, outcome.output
    assert words in outcome.stderr
    assert not (tmp_path / "state").exists()


def test_a_checkpoint_of_another_network_is_refused(tmp_path, folder, photos):
    trainer = fresh(photos)
    trainer.save(tmp_path / "checkpoint.safetensors")
    train = ("train", folder, "--vgg", "none", "--state", tmp_path)
    checkpoint = (tmp_path / "checkpoint.safetensors").read_bytes()
    assert run(*train).exit_code == 1  # another family
    assert run(*train, "--init", "standard").exit_code == 1
    assert run(*train, "--family", "one-d-piece", "--block-tokens", 4).exit_code == 2  # another size
    assert (tmp_path / "checkpoint.safetensors").read_bytes() == checkpoint
    trainer.check_network({"size": "tiny"}, "here")
    with pytest.raises(UsageError) as error:
        trainer.check_network({"size": "small"}, "here")
    assert error.value.advice == ("shape",)


def test_networks_without_tail_drop_are_not_trained(tmp_path, photos):
    trainer = fresh(photos)
    trainer.network.config = trainer.ema.config = replace(TINIER, tail_drop=False)
    trainer.write_model(tmp_path / "m.safetensors", photos, {})
    with pytest.raises(ModelError, match="titok-t-8"):
        TitokTrainer.from_model(str(tmp_path / "m.safetensors"), TitokTraining(), CPU)
