"""Does a classifier still see the same thing? How often its verdict on a decoded picture agrees with that on the original.

The original's own verdict is the reference, not a label: the question is what coding changes, and any photo can be asked.
"""

from __future__ import annotations

import warnings
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn

from benchmarks.results import Pixels
from bitstream.errors import ModelError, TesseraError, UsageError
from codec.api import Codec
from codec.lengths import Target

DEFAULT = "mobilenet_v3_small"
TOP = 5


@dataclass(frozen=True)
class Recognition:
    """How often a classifier agrees at one length: means over all pictures."""

    tokens: float  # a block of 256x256 pixels
    bpp: float  # of the whole files
    top1: float  # share of pictures whose likeliest class is the original's
    top5: float  # share of pictures among whose five likeliest classes is the original's likeliest


@dataclass(frozen=True)
class Classifier:
    """A network (B, 3, h, w) -> (B, classes) scores, and what makes its input of a picture (3, H, W), uint8."""

    name: str
    network: nn.Module
    prepare: Callable[[Tensor], Tensor]

    @torch.inference_mode()
    def likeliest(self, pixels: Pixels) -> list[int]:
        """The five likeliest classes of a picture (H, W, 3), likeliest first; fewer where there are not so many."""
        picture = torch.from_numpy(pixels.copy()).permute(2, 0, 1)
        scores = self.network.eval()(self.prepare(picture)[None])[0]
        return scores.topk(min(TOP, len(scores))).indices.tolist()


def load_classifier(name: str = DEFAULT, weights: Path | None = None) -> Classifier:
    """A classifier of torchvision by its name there, with the weights' own preprocessing.

    `weights` is a file of its state dict; by default torchvision's best for it, from the torch cache. Nothing is downloaded.
    Raises UsageError for a name that is none, TesseraError without torchvision, ModelError where weights cannot be had."""
    models = _torchvision_models()
    names = models.list_models(module=models)
    if name not in names:
        msg = f"{name!r} is no classifier of torchvision: choose from {', '.join(names)}"
        raise UsageError(msg)
    best = models.get_model_weights(name).DEFAULT
    file = weights or Path(torch.hub.get_dir()) / "checkpoints" / Path(best.url).name
    if not file.is_file():
        where = f"the weights {weights} are" if weights else f"the weights of {name} are"
        msg = f"{where} not there: put {best.url} into {file.parent}"
        raise ModelError(msg)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # some builders remark on how they draw weights, which are replaced here
        network = models.get_model(name, weights=None)
    try:
        network.load_state_dict(torch.load(file, "cpu", weights_only=True))
    except Exception as error:  # torch.load raises whatever the bytes lead it to
        reason = (str(error).strip().splitlines() or [""])[0]
        msg = f"{file} does not hold weights of {name} ({type(error).__name__}: {reason}): {best.url} has them"
        raise ModelError(msg) from error
    if hasattr(network, "transform_input"):
        network.transform_input = True  # GoogLeNet's and Inception's weights want it, as torchvision's own loading knows
    return Classifier(name, network.eval(), best.transforms())


def _torchvision_models() -> Any:
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore", FutureWarning)  # torchvision compiles with what newer torch calls outdated
            import torchvision.models
    except (ImportError, RuntimeError) as error:  # RuntimeError: it was built for another torch
        msg = f"recognition needs torchvision ({error}): pip install '.[bench]' in Tessera's repository"
        raise TesseraError(msg) from error
    return torchvision.models


def recognition(
    codec: Codec,
    pictures: Iterable[Pixels],
    classifier: Classifier,
    lengths: Sequence[float],
    progress: Callable[[], None] = lambda: None,
) -> list[Recognition]:
    """Agreement on pictures (H, W, 3) at each length, in tokens per block, shortest first.

    Top-1 agreement: the likeliest class of the decoded picture is that of the original. Top-5 agreement: the original's
    likeliest class is among the decoded picture's five likeliest. `progress` is called after each picture. Raises UsageError
    for lengths out of range, TesseraError without pictures."""
    targets = [Target(tokens=length) for length in sorted(set(lengths))]
    found: list[list[tuple[float, bool, bool]]] = [[] for _ in targets]
    for pixels in pictures:
        original = classifier.likeliest(pixels)[0]
        layout, sequence = codec.sequence(pixels)
        for target, rows in zip(targets, found, strict=True):
            made = codec.cut(layout, sequence, target)
            seen = classifier.likeliest(np.asarray(codec.decode(made.data)))
            rows.append((made.bpp, seen[0] == original, original in seen))
        progress()
    if not all(found):
        msg = "no pictures to recognise: name some"
        raise TesseraError(msg)
    return [
        Recognition(float(target.tokens or 0), *(float(mean) for mean in np.mean(rows, axis=0)))
        for target, rows in zip(targets, found, strict=True)
    ]
