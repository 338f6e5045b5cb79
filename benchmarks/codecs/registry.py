"""The codecs of a benchmark by name."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

from benchmarks.codecs.base import BenchCodec
from benchmarks.codecs.jpeg2000 import JPEG2000
from benchmarks.codecs.pillow import AVIF, AVIF_PSNR, HEIC, JPEG, JXL, QUICK_PILLOW_CODECS, WEBP
from benchmarks.codecs.vvc import QUICK_VVC, VVC
from benchmarks.records import SCALED, TESSERA

COMPRESSAI_NAMES = ("bmshj2018-factorized", "bmshj2018-hyperprior", "mbt2018-mean", "cheng2020-attn")
CLASSICAL = (JPEG, WEBP, AVIF, AVIF_PSNR, HEIC, JPEG2000, JXL, VVC)
QUICK_CODECS = (*QUICK_PILLOW_CODECS, QUICK_VVC)
QUICK_NAMES = tuple(codec.name for codec in QUICK_CODECS)
NATIVE_NAMES = (TESSERA, *(codec.name for codec in CLASSICAL), *COMPRESSAI_NAMES, *QUICK_NAMES)
SCALED_NAMES = tuple(codec.name + SCALED for codec in CLASSICAL)  # the same codecs at the best of several scales


@dataclass(frozen=True)
class BenchCodecOptions:
    """The user's choices for Tessera and for the codecs of compressai."""

    model: str | None = None  # Tessera: name or path
    device: str = "auto"  # Tessera
    compressai_weights: str | None = None  # folder
    runtime: str = "auto"  # Tessera


def open_codec(name: str, options: BenchCodecOptions) -> BenchCodec:
    """Opens a codec; `name` is one of NATIVE_NAMES. Raises BenchError if it cannot run here."""
    codec: BenchCodec
    if name == TESSERA:
        from benchmarks.codecs.tessera import TesseraCodec
        from codec.codec import Codec

        codec = TesseraCodec(Codec(options.model, options.device, runtime=options.runtime))
    elif name in COMPRESSAI_NAMES:
        from benchmarks.codecs.compressai import CompressaiCodec

        codec = CompressaiCodec(name, Path(options.compressai_weights) if options.compressai_weights else None)
    else:
        codec = next(codec for codec in (*CLASSICAL, *QUICK_CODECS) if codec.name == name)
    codec.check()
    return codec
