"""LPIPS: it falls with similarity, agrees with torchmetrics, and refuses files that are not its weights."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import ImageFilter

from codec.errors import ModelError
from codec.metrics.lpips import ALEXNET, LPIPS, read_weights
from tests.helpers.weights import ALEXNET_WIDTHS, write_lpips_weights


def test_lpips_falls_with_similarity(photo, lpips_weights):
    lpips = LPIPS(lpips_weights)
    original = np.asarray(photo)
    slight, strong = (np.asarray(photo.filter(ImageFilter.GaussianBlur(radius))) for radius in (1, 4))
    assert lpips.distance(original, original) == 0
    assert 0.01 < lpips.distance(slight, original) < lpips.distance(strong, original) < 1


def test_features_of_an_image_can_be_kept(photo, lpips_weights):
    lpips = LPIPS(lpips_weights)
    original, blurred = np.asarray(photo), np.asarray(photo.filter(ImageFilter.GaussianBlur(1)))
    distance = lpips.compare(lpips.image_features(blurred), lpips.image_features(original))
    assert float(distance) == lpips.distance(blurred, original)


def test_files_that_are_not_lpips_weights_are_refused(tmp_path):
    np.savez(tmp_path / "other.npz", a=np.zeros(3))
    (tmp_path / "text.npz").write_text("not an archive")
    for name in ("other.npz", "text.npz", "missing.npz"):
        with pytest.raises(ModelError, match=name):
            LPIPS(tmp_path / name)


def test_without_any_weights_the_command_that_downloads_them_is_named(tmp_path, monkeypatch):
    monkeypatch.setenv("TORCH_HOME", str(tmp_path))
    with pytest.raises(ModelError, match="tessera models fetch lpips"):
        LPIPS()


def fill_torch_cache(folder: Path) -> None:
    """Writes a made-up AlexNet to the path at which torchvision looks for it. LPIPS does not use its classifier: zeros."""
    with np.load(write_lpips_weights(folder / "alexnet.npz", ALEXNET_WIDTHS)) as arrays:
        state = {name: torch.from_numpy(arrays[name]) for name in arrays.files if name.startswith("features.")}
    for layer, (rows, columns) in {1: (4096, 9216), 4: (4096, 4096), 6: (1000, 4096)}.items():
        state |= {f"classifier.{layer}.weight": torch.zeros(rows, columns), f"classifier.{layer}.bias": torch.zeros(rows)}
    (folder / "hub" / "checkpoints").mkdir(parents=True)
    torch.save(state, folder / "hub" / "checkpoints" / ALEXNET)


@pytest.mark.learned
@pytest.mark.filterwarnings("ignore::FutureWarning", "ignore::UserWarning", "ignore::DeprecationWarning")
def test_lpips_agrees_with_torchmetrics(tmp_path, monkeypatch):
    monkeypatch.setenv("TORCH_HOME", str(tmp_path))
    fill_torch_cache(tmp_path)
    from torchmetrics.functional.image.lpips import learned_perceptual_image_patch_similarity

    torch.manual_seed(123)  # the images of torchmetrics' documentation
    images, references = ((torch.rand(10, 3, 100, 100) * 2) - 1 for _ in range(2))
    references[:, :, :50] = 0.25  # a flat area, in which features are close to zero
    distances = LPIPS()(images, references)
    expected = learned_perceptual_image_patch_similarity(images, references, net_type="alex", reduction="mean")
    assert float(distances.mean()) == pytest.approx(float(expected), abs=1e-6)
    np.savez(tmp_path / "lpips.npz", **{name: value.numpy() for name, value in read_weights().items()})
    assert torch.equal(LPIPS(tmp_path / "lpips.npz")(images, references), distances)
