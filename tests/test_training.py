from __future__ import annotations

import csv
from dataclasses import replace

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from PIL import Image

from codec.codec import Codec
from codec.errors import ImageError, ModelError, TesseraError
from codec.models.registry import open_model
from codec.pyramid.config import NetworkConfig
from codec.pyramid.integer_model import measure_tables, quantize_entropy_model
from codec.pyramid.model import save_pyramid
from codec.pyramid.network import TABLES, Network, choose_digits, logistic_tables
from codec.pyramid.runtime.torch_backend import TorchBackend
from codec.pyramid.tokenizer import dequantize, quantize
from codec.pyramid.training import PyramidTrainer, PyramidTraining, code_for_training, karhunen_loeve, priced
from codec.system.device import pick_device
from codec.training.losses import Cosine, local_distance, pattern_distance
from codec.training.photos import is_held_out, load_photos, random_crops, read_square
from codec.training.run import Run
from codec.training.trainer import CHECKPOINT, train
from tests.helpers.commands import run
from tests.helpers.networks import CPU, TINY
from tests.helpers.weights import write_vgg_weights


@pytest.fixture(scope="module")
def photos(photo) -> torch.Tensor:
    """Four squares of the bundled photo."""
    squares = [np.asarray(photo.crop((x, y, x + 320, y + 320))) for x, y in ((0, 0), (140, 40), (280, 80), (200, 0))]
    return torch.from_numpy(np.stack(squares))


def klt_network(photos: torch.Tensor, config: NetworkConfig = TINY) -> Network:
    torch.manual_seed(0)
    network = Network(config)
    network.start_from_klt(*karhunen_loeve(photos, config.channels, np.random.default_rng(0), crops=20))
    return network


def test_a_network_starts_as_a_klt_codec(photos):
    """Before training, all tokens together decode to a good image."""
    network = klt_network(photos).eval()
    x = random_crops(photos, 2, np.random.default_rng(1))
    trainer = PyramidTrainer(network, PyramidTraining(), CPU)
    with torch.no_grad():
        coded = code_for_training(network, trainer.prices, network.encoder(x), torch.full((2,), float(len(network.levels))))
        y = network.decoder(coded.latents, coded.known)
    assert 10 * torch.log10(4 / (y - x).pow(2).mean()) > 28


def test_flat_areas_have_no_pattern(photos):
    """The first three channels alone code a flat colour. Components that are not exactly flat show as dots."""
    mean, components = karhunen_loeve(photos, TINY.channels, np.random.default_rng(0), 20)
    assert torch.allclose(components @ components.t(), torch.eye(TINY.channels), atol=1e-4)
    for colour in ((1.0, 1.0, 1.0), (-1.0, -1.0, -1.0), (0.2, -0.4, 0.9)):
        patch = torch.tensor(colour)[:, None].expand(3, 256).flatten()
        coefficients = components @ (patch - mean)
        assert coefficients[3:].abs().max() < 1e-3
        assert torch.allclose(coefficients[:3] @ components[:3] + mean, patch, atol=1e-4)


def test_crops_hold_colours_that_photos_lack():
    """A network trained on photographs alone decoded pure blue as yellow."""
    grey = torch.from_numpy(np.random.default_rng(0).integers(100, 156, (4, 320, 320, 1), np.uint8)).expand(-1, -1, -1, 3)
    crops = random_crops(grey, 400, np.random.default_rng(0), 16)
    assert crops.min() == -1 and crops.max() == 1
    chroma = (crops.amax(1) - crops.amin(1)).flatten(1).amax(1)
    assert 8 < (chroma > 1).sum() < 40
    one_colour = (crops.flatten(2).std(2) == 0).all(1)
    assert 4 < one_colour.sum() < 24


def test_more_levels_are_closer(photos):
    network = klt_network(photos).eval()
    x = random_crops(photos, 2, np.random.default_rng(1))
    trainer = PyramidTrainer(network, PyramidTraining(), CPU)
    errors = []
    with torch.no_grad():
        latents = network.encoder(x)
        for stop in (1.0, 4.0, 6.5, 10.0, 14.0):
            coded = code_for_training(network, trainer.prices, latents, torch.full((2,), stop))
            errors.append(float((coded.latents - latents).pow(2).mean()))
    assert errors == sorted(errors, reverse=True)


def test_training_lowers_the_loss(photos):
    trainer = PyramidTrainer(klt_network(photos), PyramidTraining(steps=12, batch=2, rate=2e-3), CPU)
    losses = [trainer.train_step(photos, None) for _ in range(12)]
    assert all(np.isfinite(losses))
    moved = [name for name, p in trainer.network.named_parameters() if p.grad is not None and p.grad.abs().sum() > 0]
    assert {name.split(".")[0] for name in moved} == {"encoder", "levels", "decoder"}
    assert any(".prior." in name for name in moved)


def test_training_keeps_flat_colours_flat(photos):
    trainer = PyramidTrainer(klt_network(photos), PyramidTraining(steps=12, batch=2, rate=2e-2), CPU)
    before = trainer.network.decoder.linear.weight.detach().clone()
    for _ in range(2):
        trainer.train_step(photos, None)
    linear = trainer.network.decoder.linear
    for weights in (linear.weight.detach()[:, :3, 0, 0], linear.bias.detach()[:, None]):
        cells = weights.reshape(3, 256, -1)
        assert torch.allclose(cells, cells[:, :1].expand_as(cells), atol=1e-7)
    moved = (linear.weight.detach() - before).abs().amax((0, 2, 3))
    assert (moved[:3] > 0).all()
    assert (moved[3:] > 0).any()


def test_digits_past_their_limit_do_not_push_the_encoder_further(photos):
    """Their error has no gradient; the gradient of their price pulls them back."""
    trainer = PyramidTrainer(klt_network(photos).train(), PyramidTraining(), CPU)
    latents = (1e6 * torch.randn(1, TINY.channels, 16, 16)).requires_grad_()
    coded = code_for_training(trainer.network, trainer.prices, latents, torch.tensor([float(len(trainer.network.levels))]))
    (error,) = torch.autograd.grad((coded.latents - 1e6).pow(2).sum(), latents, retain_graph=True)
    assert (error == 0).all()
    (price,) = torch.autograd.grad(torch.stack(coded.bits).sum(), latents)
    assert float((price * latents.detach()).sum()) > 0


def test_larger_digits_are_never_cheaper_to_the_encoder():
    """Also if the last entry of the table, which counts all larger digits, is the cheapest."""
    torch.manual_seed(0)
    bits = torch.tensor([[0.1, 9.0, 1.0]] * TABLES)
    raw = torch.tensor([3.0, -3.0, 40.0, -40.0, 1.7, -1.7]).requires_grad_()
    digits = raw.detach().round().clamp(-2, 2)
    cost = priced(raw, digits, torch.full((6,), 20.0), bits, with_gradient=True)
    assert torch.allclose(cost, torch.ones(6))
    (slope,) = torch.autograd.grad(cost.sum(), raw)
    assert (slope * raw.detach() >= 0).all()
    assert slope[2] > slope[0] > 0 > slope[1] > slope[3]


def test_a_resumed_run_is_the_same_run(photos, tmp_path):
    config = PyramidTraining(steps=6, batch=1)
    straight = PyramidTrainer(klt_network(photos), config, CPU)
    for _ in range(4):
        straight.train_step(photos, None)
    broken = PyramidTrainer(klt_network(photos), config, CPU)
    for _ in range(2):
        broken.train_step(photos, None)
    broken.save(tmp_path / "checkpoint.safetensors")
    torch.rand(7)  # another process has another random state
    resumed = PyramidTrainer.resume(tmp_path / "checkpoint.safetensors", CPU)
    for _ in range(2):
        resumed.train_step(photos, None)
    assert (resumed.step, resumed.total_crops, resumed.progress) == (4, 4, 4 / 6)
    for module in ("network", "ema", "prices"):
        expected = getattr(straight, module).state_dict()
        for name, tensor in getattr(resumed, module).state_dict().items():
            assert torch.equal(tensor, expected[name]), (module, name)


def test_a_new_schedule_keeps_the_weights(photos, tmp_path):
    trainer = PyramidTrainer(klt_network(photos), PyramidTraining(steps=2, batch=1), CPU)
    trainer.train_step(photos, None)
    trainer.save(tmp_path / "c.safetensors")
    again = PyramidTrainer.resume(tmp_path / "c.safetensors", CPU, replace(trainer.config, steps=9))
    assert (again.step, again.total_crops) == (0, 1)
    assert torch.equal(again.network.decoder.linear.weight, trainer.network.decoder.linear.weight)


def test_a_new_schedule_in_minutes_forgets_the_steps_of_the_old_one(photos, tmp_path):
    PyramidTrainer(klt_network(photos), PyramidTraining(steps=2, batch=1), CPU).save(tmp_path / CHECKPOINT)
    run = Run(
        photos=(),
        trainer=PyramidTrainer,
        output=None,
        init=None,
        vgg=None,
        threads=None,
        processes=1,
        state=str(tmp_path),
        restart=True,
        table_photos=1,
        device="cpu",
        validate_minutes=20,
        network_options={},
        recipe={"minutes": 3.0},
        command="tessera train",
    )
    trainer = run.start(photos, CPU, print)
    trainer.schedule_minutes = 1.5
    assert trainer.progress == 0.5


def test_the_loop_writes_checkpoint_and_logs(photos, tmp_path, monkeypatch):
    monkeypatch.setattr("codec.training.trainer.CHECKPOINT_MINUTES", 0.0)
    trainer = PyramidTrainer(klt_network(photos), PyramidTraining(steps=2, batch=1), CPU)
    lines: list[str] = []
    train(trainer, photos, photos[:1], None, tmp_path, lines.append, validate_minutes=0.0)
    assert trainer.progress == 1
    with (tmp_path / "log.csv").open() as stream:
        assert [row["crops"] for row in csv.DictReader(stream)] == ["1", "2"]
    with (tmp_path / "validation.csv").open() as stream:
        assert float(next(csv.DictReader(stream))["psnr@0.4"]) > 15
    assert any("levels end at" in line for line in lines)
    assert PyramidTrainer.resume(tmp_path / "checkpoint.safetensors", CPU).step == 2


def test_the_integer_entropy_model_costs_no_more_than_the_float_one(photos):
    """For the shipped model, on images that its tables were not measured on."""
    network = open_model().network(CPU)
    code = open_model().code
    layout = code.layout(256, 256)
    integer = floating = 0.0
    for photo in photos:
        x = torch.from_numpy(photo.numpy()[None, :256, :256].copy()).permute(0, 3, 1, 2).float() / 127.5 - 1
        with torch.inference_mode():
            (sequence,) = quantize(TorchBackend(network), code, [layout], network.encoder(x))
            integer += sequence.bits().sum()
            digits = sequence.first(layout.tokens).digits
            for index, level in enumerate(network.levels):
                planes = torch.from_numpy(code.planes(layout, index, list(digits[:index]))).float()[None]
                contexts = level.prior(planes)[0].floor().clamp(0, TABLES - 1).long().numpy()
                frequencies = code.entropy_models[index].frequencies
                floating += (24 - np.log2(frequencies[contexts, digits[index].astype(int) + level.level.limit])).sum()
    assert integer <= 1.01 * floating


def test_tokens_and_latents_invert_up_to_quantization(codec, photo):
    network, code = codec.tokenizer(refining=True).network, codec.model.code
    layout = code.layout(256, 256)
    x = torch.from_numpy(np.asarray(photo)[None, 50:306, 50:306].copy()).permute(0, 3, 1, 2).float() / 127.5 - 1
    with torch.inference_mode():
        latents = network.encoder(x)
    (sequence,) = quantize(TorchBackend(network), code, [layout], latents)
    again, mask = dequantize(TorchBackend(network), [sequence.first(layout.tokens)])
    assert float((again - latents).pow(2).mean()) < 0.3 * float(latents.pow(2).mean())
    assert torch.allclose(mask, torch.full_like(mask, 9 / 5))


def test_rounding_prefers_cheaper_digits():
    bits = torch.tensor([[0.1, 4.0, 6.0]])
    raw = torch.tensor([0.6, -0.9, 1.6, 2.4, -7.0, 0.1])
    contexts = torch.zeros(6, dtype=torch.long)
    assert choose_digits(raw, contexts, bits, 2, 0.12).tolist() == [0, -1, 1, 2, -2, 0]
    assert choose_digits(raw, contexts, torch.zeros(1, 3), 2, 0.12).tolist() == [1, -1, 2, 2, -2, 0]


def test_logistic_tables_are_probabilities():
    for level in TINY.levels:
        tables = logistic_tables(level)
        assert tables.shape == (TABLES, level.limit + 1)
        assert torch.allclose(tables.sum(1), torch.ones(TABLES, dtype=torch.float64))
        assert (tables >= 0).all()


def test_model_files_round_trip(photos, tmp_path):
    network = klt_network(photos).half().float().eval()
    code = measure_tables(network, photos, rounds=1)
    model = save_pyramid(tmp_path / "m.safetensors", network, code, {"crops": 7})
    model.check()
    assert model.metadata["digest"] == model.digest
    again = open_model(tmp_path / "m.safetensors")
    assert again.config == TINY
    assert again.metadata["card"] == {"crops": 7}
    for saved, read in zip(code.entropy_models, again.code.entropy_models, strict=True):
        assert np.array_equal(saved.frequencies, read.frequencies)
        assert all(np.array_equal(a.weight, b.weight) for a, b in zip(saved.layers, read.layers, strict=True))
    for name, tensor in again.network(CPU).state_dict().items():
        assert torch.equal(tensor, network.state_dict()[name])
    data = bytearray((tmp_path / "m.safetensors").read_bytes())
    data[-1] ^= 1  # the last array belongs to the entropy model
    (tmp_path / "bad.safetensors").write_bytes(data)
    with pytest.raises(ModelError):
        open_model(tmp_path / "bad.safetensors").check()


def test_unknown_and_missing_settings_are_refused():
    plain = TINY.to_dict()
    assert NetworkConfig.from_dict(plain) == TINY
    with pytest.raises(TypeError, match="widht"):
        NetworkConfig.from_dict({**plain, "widht": 3})
    del plain["channels"]
    with pytest.raises(TypeError, match="channels"):
        NetworkConfig.from_dict(plain)


@pytest.mark.parametrize("content", [b"", b"junk" * 9, b"\x08" + bytes(7) + b"{}      "])
def test_a_file_that_is_not_a_model_is_refused(tmp_path, content):
    (tmp_path / "m.safetensors").write_bytes(content)
    with pytest.raises(ModelError, match="not a"):
        open_model(tmp_path / "m.safetensors")


def test_measured_tables_are_cheaper_than_the_logistic(photos):
    network = klt_network(photos).half().float().eval()
    cost = []
    for code in (quantize_entropy_model(network), measure_tables(network, photos)):
        with torch.inference_mode():
            x = photos[:1, :256, :256].permute(0, 3, 1, 2).float() / 127.5 - 1
            (sequence,) = quantize(TorchBackend(network), code, [code.layout(256, 256)], network.encoder(x))
        cost.append(sequence.bits().sum())
    assert cost[1] < 0.95 * cost[0]


def test_train_command_from_photos_to_a_decoded_image(tmp_path, photo, monkeypatch):
    """From photos to a model file that codes an image; then the run continues, and another starts from the model."""
    monkeypatch.setattr("codec.pyramid.training.STANDARD", TINY)
    (tmp_path / "photos").mkdir()
    for index in range(3):
        photo.crop((index * 90, 0, index * 90 + 330, 330)).save(tmp_path / "photos" / f"{index}.png")
    (tmp_path / "photos" / "notes.txt").write_text("not a photo")
    arguments = [
        "train",
        str(tmp_path / "photos"),
        "--state",
        str(tmp_path / "state"),
        "-o",
        str(tmp_path / "m.safetensors"),
        "--tables",
        "2",
    ]
    first = run(*arguments, "--steps", "2", "--batch", "1")
    assert first.exit_code == 0, first.output
    assert "2 crops in 0 minutes" in first.stderr
    assert "training on squared error and colour alone" in first.stderr
    assert "vgg19-dcbb9e9d.pth cannot be downloaded (no network in tests), and is not in " in first.stderr
    second = run(*arguments, "--restart", "--steps", "3", "--vgg", "none")
    assert second.exit_code == 0, second.output
    assert "training on squared error and colour alone" in second.stderr
    model = open_model(tmp_path / "m.safetensors")
    assert model.metadata["card"]["crops"] == 5
    codec = Codec(str(tmp_path / "m.safetensors"), device="cpu")
    assert codec.decode(codec.encode(photo, quality=50).data).image.size == photo.size
    further = run(
        "train",
        str(tmp_path / "photos"),
        "--state",
        str(tmp_path / "b"),
        "--init",
        str(tmp_path / "m.safetensors"),
        "--steps",
        "1",
        "--batch",
        "1",
        "--set",
        "perceptual_every=2",
        "--set",
        "truncation_weights=0,0,0,1" + ",0" * 10,
        "--validate-minutes",
        "1e-9",
    )
    assert further.exit_code == 0, further.output
    assert "held out, PSNR/VGG" in further.stderr
    config = PyramidTrainer.resume(tmp_path / "b" / CHECKPOINT, CPU).config
    assert (config.perceptual_every, config.truncation_weights) == (2, (0, 0, 0, 1, *[0] * 10))


def test_photos_are_read_from_files_and_tars(tmp_path, photo):
    import tarfile

    photo.crop((0, 0, 300, 200)).save(tmp_path / "small.png")
    assert read_square((tmp_path / "small.png").read_bytes()).shape == (320, 320, 3)
    assert read_square(b"no image") is None
    with tarfile.open(tmp_path / "a.tar", "w") as archive:
        archive.add(tmp_path / "small.png", "x/small.png")
    train, held = load_photos([tmp_path / "a.tar", tmp_path / "small.png"])
    assert train.shape == (2, 320, 320, 3)
    assert torch.equal(held, train[:1])
    with pytest.raises(ImageError, match="no photographs found"):
        load_photos([tmp_path / "nowhere.txt"]) if (tmp_path / "nowhere.txt").write_text("x") else None


def test_a_share_of_photos_is_held_out():
    held = sum(is_held_out(f"{index}.avif") for index in range(6400))
    assert 60 < held < 140


def test_devices_are_never_replaced():
    assert pick_device("cpu") == "cpu"
    for name in ("cuda:99", "tpu", "cpu:1", "cuda:x"):
        with pytest.raises(TesseraError, match=name):
            pick_device(name)


def test_cosine_equals_that_of_torch():
    generator = torch.Generator().manual_seed(0)
    features, reference = (torch.randn(2, 6, 5, 4, generator=generator).relu() for _ in range(2))
    weight = torch.rand(2, 5, 4, generator=generator)
    features[0, :, 0, 0] = reference[1, :, 2, 1] = 0  # zero vectors have no angle and no gradient
    features.requires_grad_()
    results = []
    for cosine in (Cosine.apply, lambda a, b: F.cosine_similarity(a, b, dim=1)):
        value = cosine(features, reference)
        (gradient,) = torch.autograd.grad((value * weight).sum(), features)
        results.append((value.detach(), gradient * (features > 0)))
    for tensor, expected in zip(*results, strict=True):
        assert torch.allclose(tensor, expected, atol=1e-6)
    assert results[0][0][0, 0, 0] == results[0][0][1, 2, 1] == 0
    assert results[0][1].abs().max() > 0.1


def test_local_statistics_prefer_moved_texture_to_a_blur():
    """Features compared position by position prefer the blur."""
    generator = torch.Generator().manual_seed(0)
    texture, other = 1 + 0.5 * torch.randn(2, 1, 16, 32, 32, generator=generator)
    blur = torch.ones_like(texture).requires_grad_(True)
    assert local_distance(texture, texture, 8) == 0
    assert local_distance(other, texture, 8) < 0.5 * local_distance(blur, texture, 8)
    assert Cosine.apply(other, texture).mean() < Cosine.apply(blur, texture).mean()
    local_distance(blur, texture, 8).sum().backward()
    assert blur.grad.isfinite().all()


def test_the_perceptual_loss_of_blur_is_higher_than_of_noise(photos, tmp_path):
    from codec.training.losses import PerceptualLoss

    loss = PerceptualLoss(write_vgg_weights(tmp_path / "vgg.npz"))
    x = random_crops(photos, 2, np.random.default_rng(0))
    blurred = torch.nn.functional.avg_pool2d(x, 9, 1, 4)
    noisy = x + 0.01 * torch.randn_like(x)
    assert (loss(x, x) < 0.02 * loss(blurred, x)).all()  # not 0 if all features of a position are 0: they have no angle
    assert (loss(noisy, x) < 0.5 * loss(blurred, x)).all()


def test_the_pattern_distance_ignores_texture_and_brightness():
    generator = torch.Generator().manual_seed(0)
    x = torch.rand(1, 3, 64, 64, generator=generator)
    dots = torch.zeros(1, 3, 64, 64)
    dots[..., ::8, ::8] = 0.8
    noise = 0.1 * torch.randn(1, 3, 64, 64, generator=generator)  # of the same energy
    assert float(pattern_distance(x + dots, x)) == pytest.approx(0.64 * 63 / 4096, rel=1e-3)
    assert float(pattern_distance(x + noise, x)) < 0.05 * float(pattern_distance(x + dots, x))
    assert float(pattern_distance(x + 0.3, x)) == pytest.approx(0, abs=1e-9)


def test_a_file_without_vgg_features_is_refused(tmp_path):
    from codec.training.losses import PerceptualLoss

    np.savez(tmp_path / "x.npz", a=np.zeros(3))
    torch.save({"features.0.weight": torch.zeros(3)}, tmp_path / "x.pth")
    (tmp_path / "y.pth").write_bytes(b"nothing")
    for name in ("x.npz", "x.pth", "y.pth", "missing.npz"):
        with pytest.raises(ModelError, match=name):
            PerceptualLoss(tmp_path / name)


def torchvision_layout(seed: int) -> torch.nn.Sequential:
    """The first three stages of torchvision's VGG19, up to conv3_4 and its ReLU, with random weights."""
    torch.manual_seed(seed)
    layers: list[torch.nn.Module] = []
    channels = 3
    for width, depth in ((64, 2), (128, 2), (256, 4)):
        for _ in range(depth):
            layers += [torch.nn.Conv2d(channels, width, 3, padding=1), torch.nn.ReLU()]
            channels = width
        layers.append(torch.nn.MaxPool2d(2))
    return torch.nn.Sequential(*layers[:-1])


def test_vgg_equals_torchvisions(tmp_path, monkeypatch, photos):
    """Weights from torch's cache give the same features as torch's own layers."""
    from codec.training.losses import PerceptualLoss
    from codec.training.vgg import torchvision_vgg

    network = torchvision_layout(3)
    monkeypatch.setenv("TORCH_HOME", str(tmp_path))
    path = tmp_path / "hub" / "checkpoints" / "vgg19-dcbb9e9d.pth"
    path.parent.mkdir(parents=True)
    torch.save({f"features.{name}": value for name, value in network.state_dict().items()}, path)
    loss = PerceptualLoss(torchvision_vgg())
    assert "BSD-3-Clause" in loss.origin
    x = random_crops(photos, 1, np.random.default_rng(0))[..., :64, :64]
    mean, deviation = (torch.tensor(v).view(1, 3, 1, 1) for v in ((0.485, 0.456, 0.406), (0.229, 0.224, 0.225)))
    y = ((x + 1) / 2 - mean) / deviation
    expected = []
    for index, layer in enumerate(network):
        y = layer(y)
        if index in (3, 8, 17):  # after the ReLU of conv1_2, conv2_2 and conv3_4
            expected.append(y)
    for feature, other in zip(loss.features(x), expected, strict=True):
        assert torch.allclose(feature, other, rtol=1e-3, atol=1e-4)


def test_grey_training_images_become_rgb(photo, tmp_path):
    Image.new("L", (400, 400), 128).save(tmp_path / "grey.png")
    assert read_square((tmp_path / "grey.png").read_bytes()).tolist()[0][0] == [128, 128, 128]
