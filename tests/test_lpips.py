"""LPIPS: falls with likeness, is torchmetrics' to the last digit that matters, and says where its weights could come from."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import ImageFilter

from codec.errors import ModelError
from codec.metrics.lpips import ALEXNET, LPIPS, read_weights
from tests.helpers.weights import ALEXNET_WIDTHS, write_lpips_weights


def test_lpips_falls_with_likeness(photo, lpips_weights):
    lpips = LPIPS(lpips_weights)
    original = np.asarray(photo)
    blurred = [np.asarray(photo.filter(ImageFilter.GaussianBlur(radius))) for radius in (1, 4)]
    assert lpips.distance(original, original) == 0
    assert 0.01 < lpips.distance(blurred[0], original) < lpips.distance(blurred[1], original) < 1
    kept = lpips.look(original)
    assert float(lpips.between(lpips.look(blurred[0]), kept)) == lpips.distance(blurred[0], original)


def test_a_file_that_is_no_lpips_is_refused(tmp_path):
    with pytest.raises(ModelError, match=r"LPIPS weights cannot be read from .*none\.npz"):
        LPIPS(tmp_path / "none.npz")
    np.savez(tmp_path / "other.npz", a=np.zeros(3))
    with pytest.raises(ModelError, match=r"\('features.0.weight'\): run .*, or give an .npz of"):
        LPIPS(tmp_path / "other.npz")


def test_an_empty_torch_cache_is_named(tmp_path, monkeypatch):
    monkeypatch.setenv("TORCH_HOME", str(tmp_path))
    with pytest.raises(
        ModelError, match=r"neither at .*alex\.npz nor in the torch cache .* run `tessera models fetch lpips`, or"
    ):
        LPIPS()


def seed_cache(folder: Path) -> None:
    """Puts a made-up AlexNet where torchvision looks for it; the classifier, which LPIPS does not use, is zeros."""
    with np.load(write_lpips_weights(folder / "alexnet.npz", ALEXNET_WIDTHS)) as arrays:
        state = {name: torch.from_numpy(arrays[name]) for name in arrays.files if name.startswith("features.")}
    for layer, (rows, columns) in {1: (4096, 9216), 4: (4096, 4096), 6: (1000, 4096)}.items():
        state |= {f"classifier.{layer}.weight": torch.zeros(rows, columns), f"classifier.{layer}.bias": torch.zeros(rows)}
    (folder / "hub" / "checkpoints").mkdir(parents=True)
    torch.save(state, folder / "hub" / "checkpoints" / ALEXNET)


@pytest.mark.learned
@pytest.mark.filterwarnings("ignore::FutureWarning", "ignore::UserWarning", "ignore::DeprecationWarning")
def test_it_is_what_torchmetrics_computes(tmp_path, monkeypatch):
    monkeypatch.setenv("TORCH_HOME", str(tmp_path))
    seed_cache(tmp_path)
    from torchmetrics.functional.image.lpips import learned_perceptual_image_patch_similarity as theirs

    torch.manual_seed(123)  # the documented example's images
    one, other = ((torch.rand(10, 3, 100, 100) * 2) - 1 for _ in range(2))
    other[:, :, :50] = 0.25  # and something flat, where features are all but zero
    ours = LPIPS()(one, other)
    expected = theirs(one, other, net_type="alex", reduction="mean")
    assert float(ours.mean()) == pytest.approx(float(expected), abs=1e-6)
    np.savez(tmp_path / "lpips.npz", **{name: value.numpy() for name, value in read_weights().items()})
    assert torch.equal(LPIPS(tmp_path / "lpips.npz")(one, other), ours)
