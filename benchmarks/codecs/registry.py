"""The codecs of a benchmark by name."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

from benchmarks.codecs.base import BenchCodec
from benchmarks.codecs.jpeg2000 import JPEG2000
from benchmarks.codecs.pillow import AVIF, AVIF_PSNR, HEIC, JPEG, JXL, QUICK_PILLOW_CODECS, WEBP
from benchmarks.codecs.vvc import QUICK_VVC, VVC
from benchmarks.records import QUICK, SCALED, TESSERA, TESSERA_PSNR
from codec.errors import UsageError

COMPRESSAI_NAMES = ("bmshj2018-factorized", "bmshj2018-hyperprior", "mbt2018-mean", "cheng2020-attn")
CLASSICAL = (JPEG, WEBP, AVIF, AVIF_PSNR, HEIC, JPEG2000, JXL, VVC)
QUICK_CODECS = (*QUICK_PILLOW_CODECS, QUICK_VVC)
QUICK_NAMES = tuple(codec.name for codec in QUICK_CODECS)
NATIVE_NAMES = (TESSERA, TESSERA_PSNR, *(codec.name for codec in CLASSICAL), *COMPRESSAI_NAMES, *QUICK_NAMES)
SCALED_NAMES = tuple(codec.name + SCALED for codec in CLASSICAL)  # the same codecs at the best of several scales
NAMES = (*NATIVE_NAMES, *SCALED_NAMES)


@dataclass(frozen=True)
class BenchCodecOptions:
    """The user's choices for Tessera and for the codecs of compressai."""

    model: str | None = None  # Tessera: name or path
    device: str = "auto"  # Tessera
    compressai_weights: str | None = None  # folder
    runtime: str = "auto"  # Tessera


def model_names() -> list[str]:
    """The bundled and installed models that `--codecs` can name."""
    from codec.models.registry import model_files

    stems = dict.fromkeys(path.stem for path in model_files())
    return [name for name in stems if name not in NAMES and not name.endswith((SCALED, QUICK))]


def split_name(name: str) -> tuple[str, int | None]:
    """The model in a name of `--codecs`, and its tokens per block: `detailflow-32@64` is detailflow-32 with 64.

    Raises UsageError if the part after @ is not a number."""
    model, at, tokens = name.partition("@")
    if at and not (tokens.isascii() and tokens.isdecimal() and len(tokens) < 8):
        msg = f"{name!r}: write a number of tokens per block after @"
        raise UsageError(msg)
    return model, int(tokens) if at else None


def open_codec(name: str, options: BenchCodecOptions) -> BenchCodec:
    """Opens a codec: one of NATIVE_NAMES, a model, or a model at one length.

    Raises BenchError if it cannot run here, ModelError if a model cannot be used, UsageError if it has no such length."""
    codec: BenchCodec
    model, tokens = split_name(name)
    own = model in (TESSERA, TESSERA_PSNR)
    if own or name not in NATIVE_NAMES:
        from benchmarks.codecs.tessera import TesseraCodec
        from codec.codec import Codec
        from codec.models.registry import open_model

        runtime = options.runtime
        if not own and runtime not in open_model(model).runtimes:
            runtime = "auto"
        model_name = options.model if own else model
        detail = 0.0 if model == TESSERA_PSNR else None
        codec = TesseraCodec(Codec(model_name, options.device, runtime=runtime), name, tokens, detail)
    elif name in COMPRESSAI_NAMES:
        from benchmarks.codecs.compressai import CompressaiCodec

        codec = CompressaiCodec(name, Path(options.compressai_weights) if options.compressai_weights else None)
    else:
        codec = next(codec for codec in (*CLASSICAL, *QUICK_CODECS) if codec.name == name)
    codec.check()
    return codec
