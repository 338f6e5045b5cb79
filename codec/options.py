"""Every option of encoding and decoding, defined once.

The fields of these classes are the keywords of `encode`, `decode` and `Codec`; `cli.options` turns the same fields into flags
of the command, and docs/python.md has the tables that `cli.manual` makes of them. Imports nothing slow, since `--help` needs
it.
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass
from functools import cache
from typing import Annotated, Any, TypedDict, get_type_hints

from codec.errors import UsageError

MAX_PIXELS = 500_000_000
DEFAULT_QUALITY = 50
DEFAULT_EFFORT = 3  # one pass of the network, the fastest that makes a file
MODEL_DEFAULT = "the model's own"
MAX_STEPS, MAX_GUIDANCE, MAX_SEED = 1000, 100, 2**32 - 1  # limits of sampling
RUNTIMES = ("auto", "onnx", "torch")
LOCAL, AUTO = "local", "auto"  # addresses of Ray: start it on this machine; find the one that runs on it
REFINEMENT_STEPS = {4: 4, 5: 8, 6: 16, 7: 32, 8: 64, 9: 128}  # gradient steps by effort


@dataclass(frozen=True)
class Option:
    """The definition of an option, for validation, the command and the documentation."""

    help: str  # a sentence without a full stop
    minimum: float | None = None
    maximum: float | None = None
    positive: bool = False  # the minimum itself is not allowed
    flags: tuple[str, ...] = ()  # short flags, in addition to --the-name
    metavar: str | None = None
    kind: str = ""  # kind of the flag's argument, if not clear from the type: size, pixels, colour, path, model, device
    choices: tuple[str, ...] = ()
    default: str | None = None  # description in words; None to print no default
    flag: bool = True  # whether the command has a flag for it

    def check(self, name: str, value: Any) -> None:
        """Raises UsageError if the value is out of range."""
        label = name.replace("_", " ")
        if self.choices and value not in self.choices:
            msg = f"unknown {label} {value!r}: use {', '.join(self.choices)}"
            raise UsageError(msg)
        if self.minimum is None:
            return
        if value == math.inf:
            msg = f"{label} {value:g} is not finite: give a number"
            raise UsageError(msg)
        below = not (value > self.minimum if self.positive else value >= self.minimum)  # NaN is below, too
        if self.maximum is not None and (below or value > self.maximum):
            msg = f"{label} {value:g} is out of range: {self.minimum:g} to {self.maximum:g}"
            raise UsageError(msg)
        if below:
            msg = f"{label} {value:g} is too small"
            raise UsageError(msg)


class EncodeOptions(TypedDict, total=False):
    """Options of encoding. At most one of the first six, the targets, may be given."""

    quality: Annotated[
        float | None,
        Option(
            "Quality; higher values give better images and larger files",
            0,
            100,
            flags=("-q",),
            metavar="0-100",
            default=str(DEFAULT_QUALITY),
        ),
    ]
    tokens: Annotated[float | None, Option("Keep N tokens per block of 256x256 pixels", 1, metavar="N")]
    target_size: Annotated[
        int | None, Option("Make the best image that fits in SIZE bytes, such as 4k or 1500", 1, metavar="SIZE", kind="size")
    ]
    target_bpp: Annotated[
        float | None, Option("Make the best image that fits in X bits per pixel", 0, positive=True, metavar="X")
    ]
    target_psnr: Annotated[float | None, Option("Make the smallest file with at least this PSNR, in dB", 0, metavar="DB")]
    target_lpips: Annotated[float | None, Option("Make the smallest file with at most this LPIPS (AlexNet)", 0, metavar="X")]
    effort: Annotated[
        int,
        Option(
            "Effort; 3 is a single pass of the network; higher values refine the tokens of each image, which is slower and "
            "gives a better image for the same size",
            DEFAULT_EFFORT,
            9,
            flags=("-e",),
            metavar="3-9",
            default=str(DEFAULT_EFFORT),
        ),
    ]
    reference: Annotated[
        object,
        Option(
            "Encode as a difference from this image (a .tsr file or any other image); decoding needs it too. Modes for "
            "folders: first, the first image of the folder; previous, the image before; auto, a similar image if that saves "
            "bytes",
            metavar="FILE|MODE",
            kind="path",
        ),
    ]
    allow_damaged: Annotated[bool, Option("Accept a cut or damaged image; missing pixels are grey or black")]
    strip: Annotated[bool, Option("Drop the colour profile and convert colours to sRGB")]
    keep_exif: Annotated[bool, Option("Keep EXIF and XMP; excludes strip")]
    background: Annotated[
        str | None,
        Option(
            "Flatten transparency onto this colour, such as white or '#204060'",
            metavar="COLOR",
            kind="colour",
            default="keep transparency",
        ),
    ]
    alpha_quality: Annotated[
        int | None,
        Option(
            "Quality of transparency; 100 is lossless", 0, 100, metavar="0-100", default="75, or lower to fit a target size"
        ),
    ]


class DecodeOptions(TypedDict, total=False):
    """Options of decoding."""

    tokens: Annotated[float | None, Option("Decode at most N tokens per block of 256x256 pixels", 1, metavar="N")]
    allow_partial: Annotated[bool, Option("Accept a file that was cut short")]
    reference: Annotated[
        object,
        Option(
            "The reference of the files, or the folder that contains it",
            metavar="PATH",
            kind="path",
            default="found by its name in the folder of the file",
        ),
    ]
    detail: Annotated[
        float | None,
        Option(
            "Strength of invented texture; 0 is closest to the original",
            0,
            1,
            metavar="0-1",
            default=MODEL_DEFAULT,
        ),
    ]
    steps: Annotated[
        int | None,
        Option(
            "Sampling steps of models such as FlexTok; more are slower and better",
            1,
            MAX_STEPS,
            metavar="N",
            default=MODEL_DEFAULT,
        ),
    ]
    guidance: Annotated[
        float | None,
        Option(
            "Strength of guidance when sampling; 1 is none, and twice as fast",
            1,
            MAX_GUIDANCE,
            metavar="X",
            default=MODEL_DEFAULT,
        ),
    ]
    seed: Annotated[int | None, Option("Seed of invented detail", 0, MAX_SEED, metavar="N", default=MODEL_DEFAULT)]


class CodecOptions(TypedDict, total=False):
    """Model, device and limits: the keyword arguments of `Codec`."""

    model: Annotated[
        str | None,
        Option(
            "The name of a model (see `tessera models list`) or the path of a model file",
            metavar="NAME|PATH",
            kind="model",
            default="standard to encode, and the one that wrote the file to decode",
        ),
    ]
    device: Annotated[str, Option("Device to compute on", metavar="auto|cpu|cuda[:N]", kind="device", default="auto")]
    runtime: Annotated[
        str,
        Option("Runtime; auto selects ONNX Runtime on processors and torch on CUDA", choices=RUNTIMES, default="auto"),
    ]
    tile: Annotated[
        int | None,
        Option(
            "Largest tile side in pixels, for models that compute large images in tiles",
            1,
            default="2048 to encode, 1024 to decode",
            flag=False,
        ),
    ]
    max_pixels: Annotated[int, Option("Refuse larger images", 1, metavar="N", kind="pixels", default="500M")]
    lpips_weights: Annotated[
        str | None,
        Option(
            "AlexNet and LPIPS weights, for an LPIPS target",
            metavar="PATH",
            kind="path",
            default="the file that `tessera models fetch lpips` downloads",
        ),
    ]


SAMPLING = ("steps", "guidance", "seed")  # options of decoding for models that sample
MODEL_OPTIONS = ("detail", *SAMPLING)  # options of decoding that only some models have
TARGETS = ("quality", "tokens", "target_size", "target_bpp", "target_psnr", "target_lpips")
REFERENCE_MODES = ("first", "previous", "auto")  # values of `reference` for many images, see `codec.parallel.series`
EXCLUSIVE = (TARGETS, ("strip", "keep_exif"))  # groups of options that contradict each other


@cache
def definitions(options: type) -> dict[str, tuple[Any, Option]]:
    """The type and the definition of each option of one of the classes above, by name."""
    hints = get_type_hints(options, include_extras=True)
    return {name: (hint.__origin__, hint.__metadata__[0]) for name, hint in hints.items()}


def check_options(options: type, values: Mapping[str, Any]) -> None:
    """Raises TypeError for a keyword that the class does not have, UsageError for a value out of range or a contradiction."""
    known = definitions(options)
    for name, value in values.items():
        if name not in known:
            msg = f"unexpected option {name!r}: known are {', '.join(known)}"
            raise TypeError(msg)
        if value is not None:
            kind, option = known[name]
            option.check(name, value)
            if kind in (int, int | None) and value % 1:
                msg = f"{name.replace('_', ' ')} {value:g} is not a whole number"
                raise UsageError(msg)
    for group in EXCLUSIVE:
        names = [name.replace("_", " ") for name in group if name in known and values.get(name) not in (None, False)]
        if len(names) > 1:
            msg = f"{' and '.join(names)} contradict each other: give one of them"
            raise UsageError(msg)


def has_target(values: Mapping[str, Any]) -> bool:
    """Whether one of the targets is given."""
    return any(values.get(name) is not None for name in TARGETS)


def with_target(values: EncodeOptions) -> EncodeOptions:
    """The same options, with the default quality if they have no target."""
    return values if has_target(values) else {**values, "quality": DEFAULT_QUALITY}


def is_mode(reference: object) -> bool:
    """Whether a reference is one of REFERENCE_MODES, and not an image."""
    return isinstance(reference, str) and reference in REFERENCE_MODES
