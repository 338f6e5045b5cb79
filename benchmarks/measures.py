"""The yardsticks of a benchmark: how far a decoded image is from its original, by numbers that are cached one by one.

A measure says what its values depend on, so that a result is taken from the cache only where it would come out the same. What
a network sees of an original is kept by the study and handed to each of its samples.
"""

from __future__ import annotations

import hashlib
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from typing import Any, Protocol

import torch
from torch import nn

from benchmarks.measurements import METRICS, Pixels
from benchmarks.metrics import SMALLEST_LPIPS, SMALLEST_MS_SSIM, SMALLEST_SSIMULACRA2, colour_error, ms_ssim, ssimulacra2
from benchmarks.recognition import DEFAULT, TOP, Classifier, Lite0Features, load_classifier
from bitstream.errors import CodecMissingError
from codec.metrics.lpips import LPIPS
from codec.search import psnr

ARITHMETIC = "1"  # of the metrics written here: to be raised when it changes
SMALLEST_FEATURES = 32  # pixels: the last stage has a place to look at


class Measure(Protocol):
    """One yardstick."""

    @property
    def keys(self) -> tuple[str, ...]:
        """The metrics of METRICS that it measures."""

    @property
    def least(self) -> int:
        """Pixels that the shorter side of an image must have."""

    @property
    def basis(self) -> str:
        """What its values depend on beside the images."""

    def see(self, original: Pixels) -> Any:
        """What is kept of an original while its samples are measured."""

    def values(self, image: Pixels, original: Pixels, seen: Any) -> Mapping[str, float]:
        """The metrics of a decoded image; `seen` is what `see` made of its original."""


@dataclass(frozen=True)
class Formula:
    """A metric of two images without weights."""

    key: str
    formula: Callable[[Pixels, Pixels], float]
    least: int = 1
    basis: str = ARITHMETIC

    @property
    def keys(self) -> tuple[str, ...]:
        return (self.key,)

    def see(self, original: Pixels) -> None:
        return None

    def values(self, image: Pixels, original: Pixels, seen: Any) -> Mapping[str, float]:
        return {self.key: self.formula(image, original)}


@dataclass(frozen=True)
class Distance:
    """The distance of what a network sees: LPIPS, or a classifier's features."""

    key: str
    network: LPIPS | Lite0Features
    least: int
    basis: str

    @property
    def keys(self) -> tuple[str, ...]:
        return (self.key,)

    def see(self, original: Pixels) -> list[torch.Tensor]:
        return self.network.look(original)

    def values(self, image: Pixels, original: Pixels, seen: list[torch.Tensor]) -> Mapping[str, float]:
        return {self.key: float(self.network.between(self.network.look(image), seen))}


@dataclass(frozen=True)
class Agreement:
    """Whether a classifier sees the same: 100 or 0, so that a mean is a share in percent.

    Top-1: the likeliest class of the decoded image is that of the original. Top-5: the original's likeliest class is among
    the decoded image's five likeliest. The original's own verdict is the reference, not a label: any photo can be asked."""

    classifier: Classifier
    basis: str
    keys: tuple[str, ...] = ("top1", "top5")
    least: int = 1

    def see(self, original: Pixels) -> int:
        return self.classifier.likeliest(original)[0]

    def values(self, image: Pixels, original: Pixels, seen: int) -> Mapping[str, float]:
        found = self.classifier.likeliest(image)[:TOP]
        return {"top1": 100.0 * (found[0] == seen), "top5": 100.0 * (seen in found)}


@dataclass(frozen=True)
class MeasureOptions:
    """Where measures find their weights, and which classifier is asked."""

    lpips_weights: str | None = None
    classifier: str = DEFAULT
    classifier_weights: str | None = None


def make_measure(key: str, options: MeasureOptions) -> Measure:
    """The measure of a metric. Raises ModelError without its weights, CodecMissingError without its package, UsageError for a
    classifier that is none."""
    if key == "lpips":
        network = LPIPS(Path(options.lpips_weights) if options.lpips_weights else None)
        return Distance(key, network, SMALLEST_LPIPS, _digest(network))
    if key == "features":
        features = Lite0Features(load_classifier(DEFAULT).network)
        return Distance(key, features, SMALLEST_FEATURES, _digest(features))
    if key in ("top1", "top5"):
        weights = Path(options.classifier_weights) if options.classifier_weights else None
        classifier = load_classifier(options.classifier, weights)
        return Agreement(classifier, f"{classifier.name} {_digest(classifier.network)}")
    return _formula(key)


def _formula(key: str) -> Measure:
    if key == "ms_ssim":
        return Formula(key, ms_ssim, SMALLEST_MS_SSIM, f"{ARITHMETIC} {version('pytorch-msssim')}")
    if key == "ssimulacra2":
        try:
            return Formula(key, ssimulacra2, SMALLEST_SSIMULACRA2, version("ssimulacra2"))
        except PackageNotFoundError as error:
            msg = "SSIMULACRA2 needs ssimulacra2: pip install ssimulacra2"
            raise CodecMissingError(msg) from error
    return Formula(key, {"psnr": psnr, "colour": colour_error}[key])


def _digest(network: nn.Module) -> str:
    weights = hashlib.sha256()
    for value in network.state_dict().values():
        weights.update(value.cpu().numpy().tobytes())
    return weights.hexdigest()[:16]


def possible(measures: Iterable[Measure], width: int, height: int) -> list[Measure]:
    """The measures that an image is large enough for."""
    return [measure for measure in measures if min(width, height) >= measure.least]


def in_order(keys: Iterable[str]) -> tuple[str, ...]:
    """Metrics as tables show them."""
    wanted = set(keys)
    return tuple(key for key in METRICS if key in wanted)
