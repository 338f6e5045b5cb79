"""The metrics of a benchmark: presentation, formula and evaluator of each.

PSNR and LPIPS are computed by `codec`, class agreement by a network of `benchmarks.classifiers`. A decoded image and its
original have the same size: (H, W, 3), RGB, uint8.
"""

from __future__ import annotations

import hashlib
import io
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from typing import Any, Protocol

import numpy as np
import torch
from numpy.lib.stride_tricks import sliding_window_view
from numpy.typing import NDArray
from PIL import Image
from pytorch_msssim import ms_ssim as torch_ms_ssim
from torch import nn

from benchmarks import BenchError
from benchmarks.classifiers import DEFAULT, TOP, Classifier, Lite0Features, load_classifier
from benchmarks.records import Pixels
from codec.metrics import psnr
from codec.metrics.lpips import LPIPS

FORMULA_VERSION = "1"  # raise it when a formula in this file changes, so that cached values are not used
COLOUR_SIDE = 16  # pixels: a wrong colour is hardly seen in smaller spots
SRGB_TO_XYZ = ((0.4124564, 0.3575761, 0.1804375), (0.2126729, 0.7151522, 0.0721750), (0.0193339, 0.1191920, 0.9503041))  # D65

# Peaks of the mean spectrum
LUMA = (0.299, 0.587, 0.114)  # BT.601
PEAK_WINDOW = 64  # pixels; a texture of up to 16 pixels repeats at least four times in it
PEAK_STEP = 32  # pixels between windows, which overlap by half since they are weighted by a Hann window
PEAK_AREA = 9  # frequencies on each side of the square that a peak is compared with
PEAK_COUNT = 10  # the spectrum is symmetric: five frequencies, each with its mirror image

# Minimum length of an image's shorter side, in pixels
MIN_SIDE_MS_SSIM = 161  # five scales of an 11x11 window
MIN_SIDE_SSIMULACRA2 = 8  # one scale
MIN_SIDE_PEAKS = 256  # 49 windows: fewer leave a mean spectrum that is rough by itself
MIN_SIDE_LPIPS = 31  # one position in the last stage of AlexNet
MIN_SIDE_FEATURES = 32  # one position in the last stage of EfficientNet-Lite0


@dataclass(frozen=True)
class Metric:
    """The presentation of a metric, and its direction."""

    key: str  # key in Tessera's own data
    title: str
    unit: str
    digits: int  # after the decimal point
    best: Callable[..., float]  # min or max
    json: str  # key in the JSON that compressai's plot tool reads
    how: str  # description of the computation, for readers
    default: bool = True  # measured if no metrics are named
    has_bd_rate: bool = True

    @property
    def arrow(self) -> str:
        return "higher is better" if self.best is max else "lower is better"


METRICS = {
    metric.key: metric
    for metric in (
        Metric("lpips", "LPIPS", "", 3, min, "lpips-rgb", "v0.1 on AlexNet"),
        Metric("psnr", "PSNR", "dB", 2, max, "psnr-rgb", "over all channels"),
        Metric("ms_ssim", "MS-SSIM", "", 4, max, "ms-ssim-rgb", "by pytorch-msssim, the mean of the channels"),
        Metric("colour", "Colour error", "", 2, min, "cielab-16", "mean distance in CIELAB of the means of 16x16 pixels"),
        Metric(
            "peaks", "Peaks", "dB", 1, min, "spectral-peaks", "of the mean spectrum of windows of 64x64 pixels, luma",
            has_bd_rate=False,
        ),
        Metric(
            "features", "Lite0 features", "", 4, min, "lite0-rgb",
            "distance of unit-normalised features of EfficientNet-Lite0, mean of five stages", default=False,
        ),
        Metric(
            "ssimulacra2", "SSIMULACRA2", "", 1, max, "ssimulacra2", "version 2.1 by the package ssimulacra2", default=False
        ),
        Metric(
            "top1", "Top-1 agreement", "%", 0, max, "top1", "images whose likeliest class is the original's",
            default=False, has_bd_rate=False,
        ),
        Metric(
            "top5", "Top-5 agreement", "%", 0, max, "top5",
            "images whose five likeliest classes include the original's likeliest", default=False, has_bd_rate=False,
        ),
    )
}  # fmt: skip


class Evaluator(Protocol):
    """Computes one or several metrics of decoded images."""

    @property
    def keys(self) -> tuple[str, ...]:
        """The keys in METRICS of the metrics that it computes."""

    @property
    def min_side(self) -> int:
        """The minimum length of an image's shorter side, in pixels."""

    @property
    def fingerprint(self) -> str:
        """Identifies the code and weights that the values depend on. A cached value is used only if it is equal."""

    def prepare(self, original: Pixels) -> Any:
        """The part of the computation that depends on the original alone. It is done once for all decoded images."""

    def evaluate(self, image: Pixels, original: Pixels, prepared: Any) -> Mapping[str, float]:
        """The metrics of a decoded image; `prepared` is the result of `prepare(original)`."""


@dataclass(frozen=True)
class Formula:
    """A metric without weights."""

    key: str
    formula: Callable[[Pixels, Pixels], float]  # decoded image, original -> value
    min_side: int = 1
    fingerprint: str = FORMULA_VERSION

    @property
    def keys(self) -> tuple[str, ...]:
        return (self.key,)

    def prepare(self, original: Pixels) -> None:
        return None

    def evaluate(self, image: Pixels, original: Pixels, prepared: None) -> Mapping[str, float]:
        return {self.key: self.formula(image, original)}


@dataclass(frozen=True)
class FeatureDistance:
    """The distance of a network's features: LPIPS, or the features of a classifier."""

    key: str
    network: LPIPS | Lite0Features
    min_side: int
    fingerprint: str

    @property
    def keys(self) -> tuple[str, ...]:
        return (self.key,)

    def prepare(self, original: Pixels) -> list[torch.Tensor]:
        return self.network.image_features(original)

    def evaluate(self, image: Pixels, original: Pixels, prepared: list[torch.Tensor]) -> Mapping[str, float]:
        return {self.key: float(self.network.compare(self.network.image_features(image), prepared))}


@dataclass(frozen=True)
class ClassAgreement:
    """Whether a classifier recognises the same class in the decoded image: 100 or 0, so that a mean is a percentage.

    The reference is the likeliest class of the original, not a label, so any photograph can be used. Top-1: it is the likeliest
    class of the decoded image. Top-5: it is among that image's five likeliest."""

    classifier: Classifier
    fingerprint: str
    keys: tuple[str, ...] = ("top1", "top5")
    min_side: int = 1

    def prepare(self, original: Pixels) -> int:
        return self.classifier.likeliest(original)[0]

    def evaluate(self, image: Pixels, original: Pixels, prepared: int) -> Mapping[str, float]:
        classes = self.classifier.likeliest(image)[:TOP]
        return {"top1": 100.0 * (classes[0] == prepared), "top5": 100.0 * (prepared in classes)}


@dataclass(frozen=True)
class MetricOptions:
    """The classifier, and the files of weights. None: the default file."""

    lpips_weights: str | None = None
    classifier: str = DEFAULT
    classifier_weights: str | None = None


def open_evaluator(key: str, options: MetricOptions) -> Evaluator:
    """The evaluator that computes a metric.

    Raises ModelError if its weights are missing, BenchError if its package is, UsageError for an unknown classifier."""
    match key:
        case "lpips":
            lpips = LPIPS(Path(options.lpips_weights) if options.lpips_weights else None)
            return FeatureDistance(key, lpips, MIN_SIDE_LPIPS, _digest(lpips))
        case "features":
            features = Lite0Features(load_classifier(DEFAULT).network)
            return FeatureDistance(key, features, MIN_SIDE_FEATURES, _digest(features))
        case "top1" | "top5":
            weights = Path(options.classifier_weights) if options.classifier_weights else None
            classifier = load_classifier(options.classifier, weights)
            return ClassAgreement(classifier, f"{classifier.name} {_digest(classifier.network)}")
        case "ms_ssim":
            return Formula(key, ms_ssim, MIN_SIDE_MS_SSIM, f"{FORMULA_VERSION} {version('pytorch-msssim')}")
        case "ssimulacra2":
            try:
                return Formula(key, ssimulacra2, MIN_SIDE_SSIMULACRA2, version("ssimulacra2"))
            except PackageNotFoundError as error:
                msg = "SSIMULACRA2 needs ssimulacra2: pip install ssimulacra2"
                raise BenchError(msg) from error
        case "psnr":
            return Formula(key, psnr)
        case "peaks":
            return Formula(key, lambda image, _: peaks(image), MIN_SIDE_PEAKS)
        case _:
            return Formula(key, colour_error)


def _digest(network: nn.Module) -> str:
    digest = hashlib.sha256()
    for value in network.state_dict().values():
        digest.update(value.cpu().numpy().tobytes())
    return digest.hexdigest()[:16]


def ms_ssim(image: Pixels, original: Pixels) -> float:
    """MS-SSIM (Wang et al. 2003) on RGB, mean of the channels, computed by the library that compressai uses for its curves.
    Both sides must be at least MIN_SIDE_MS_SSIM pixels."""
    x, y = (torch.from_numpy(p.astype(np.float32)).permute(2, 0, 1)[None] for p in (image, original))
    return float(torch_ms_ssim(x, y, data_range=255.0))


def ssimulacra2(image: Pixels, original: Pixels) -> float:
    """SSIMULACRA 2.1 (Sneyers, cloudinary/ssimulacra2) as ported in the package ssimulacra2: 100 for the original, 90 if no
    difference is visible, 50 for medium quality; low qualities are far below 0."""
    from ssimulacra2 import compute_ssimulacra2

    files = []
    for pixels in (original, image):
        files.append(io.BytesIO())
        Image.fromarray(pixels).save(files[-1], "PPM")
    return float(compute_ssimulacra2(*files))


def colour_error(image: Pixels, original: Pixels) -> float:
    """Mean distance in CIELAB (CIE 1976) between the mean colours of squares of 16x16 pixels; squares at the right and bottom
    edges may be smaller."""
    rows, columns = (np.arange(0, side, COLOUR_SIDE) for side in original.shape[:2])

    def means(pixels: Pixels) -> NDArray[np.float64]:
        sums = np.add.reduceat(np.add.reduceat(pixels.astype(np.float64), rows, 0), columns, 1)
        counts = np.outer(np.diff(rows, append=pixels.shape[0]), np.diff(columns, append=pixels.shape[1]))
        return cielab(sums / counts[..., None])

    return float(np.linalg.norm(means(image) - means(original), axis=-1).mean())


def peaks(image: Pixels) -> float:
    """Height of the peaks of an image's mean spectrum in dB: 0 for a plain colour, 1 to 3 for noise and photographs, over 10
    for a texture that is woven the same way everywhere. There is no comparison with an original, so this is not a measure of
    quality by itself. Both sides must be at least MIN_SIDE_PEAKS pixels.

    Decoders that upsample in learned steps draw a texture that is fixed to the grid of the steps. It shows as peaks of the
    spectrum averaged over many windows (Welch 1967), as in generated images (Frank et al. 2020, "Leveraging Frequency Analysis
    for Deep Fake Image Recognition"). The mean is one of logarithms, so a strong texture in one place, as photographs
    have, does not count as one that is everywhere.

    A peak is measured above the median of its 9x9 neighbours. The value is the mean of the ten highest. Frequencies up to 1/16
    per pixel are left out, since the spectrum of photographs is steep there; those of horizontal and vertical lines too, since
    edges in photographs have them.
    """
    luma = image @ np.array(LUMA)
    hann = np.outer(np.hanning(PEAK_WINDOW), np.hanning(PEAK_WINDOW))
    rows = []
    for top in range(0, luma.shape[0] - PEAK_WINDOW + 1, PEAK_STEP):  # row by row, to limit memory
        row = luma[top : top + PEAK_WINDOW]
        windows = sliding_window_view(row, PEAK_WINDOW, axis=1)[:, ::PEAK_STEP].swapaxes(0, 1)
        windows = windows - windows.mean((1, 2), keepdims=True)  # brightness is not texture
        power = np.abs(np.fft.fft2(windows * hann)) ** 2 + 1  # 1 is far below rounding to 8 bits; flat areas have a logarithm
        rows.append(10 * np.log10(power).mean(0))
    spectrum = np.mean(rows, 0)  # every row has the same number of windows
    padded = np.pad(spectrum, PEAK_AREA // 2, mode="wrap")
    above = spectrum - np.median(sliding_window_view(padded, (PEAK_AREA, PEAK_AREA)), (2, 3))
    frequencies = np.abs(np.fft.fftfreq(PEAK_WINDOW))
    textured = np.hypot(*np.meshgrid(frequencies, frequencies)) > 1 / 16
    oblique = frequencies > 1.5 / PEAK_WINDOW  # a Hann window spreads a line over one frequency on either side
    return float(np.sort(above[textured & np.outer(oblique, oblique)])[-PEAK_COUNT:].mean())


def cielab(colours: NDArray[np.float64]) -> NDArray[np.float64]:
    """sRGB (..., 3) in 0..255 -> CIELAB (..., 3) with the white point D65 (CIE 15, IEC 61966-2-1), L in 0..100."""
    encoded = colours / 255
    linear = np.where(encoded <= 0.04045, encoded / 12.92, ((encoded + 0.055) / 1.055) ** 2.4)
    matrix = np.array(SRGB_TO_XYZ)
    ratio = linear @ (matrix / matrix.sum(1, keepdims=True)).T
    x, y, z = np.moveaxis(np.where(ratio > (6 / 29) ** 3, np.cbrt(ratio), ratio / (3 * (6 / 29) ** 2) + 4 / 29), -1, 0)
    return np.stack([116 * y - 16, 500 * (x - y), 200 * (y - z)], -1)
