"""The published checkpoints that `tessera models import` knows by a short name. Plain data, no torch.

Names of files and licences are those of the official repositories. Parameters and GFLOP are counted on the networks; GFLOP
include the search in the codebook. Sizes of downloads are those that the authors state, or four bytes per parameter; Hugging
Face states the exact size when the download starts.
"""

from __future__ import annotations

from dataclasses import dataclass

GFLOPS = 200  # speed of the processor in estimates, in GFLOP/s; two to four cores of a desktop reach it with torch
MEGAPIXEL_BLOCKS = 1e6 / 256**2  # blocks of 256x256 pixels in a megapixel
APACHE, MIT, APPLE = "Apache-2.0", "MIT", "Apple, research only"


@dataclass(frozen=True)
class Entry:
    """A published checkpoint. Tokens, bits and GFLOP are those of a block of 256x256 pixels; bits are before entropy coding."""

    name: str  # short name, under which it is installed
    repository: str  # on Hugging Face
    file: str | None  # weights in the repository; None if the name is usual, or the only one
    download: float | None  # GB, rounded; None if the file holds an unknown amount of training state
    parameters: float  # millions, of the encoder and decoder
    tokens: int
    bits: int
    prefixes: str  # whether prefixes decode: "yes", "no", or "untrained" if the network was not trained for them
    licence: str  # licence of the weights
    encode_gflop: float
    decode_gflop: float

    @property
    def encode_seconds(self) -> float:
        """Estimated seconds to encode a megapixel at GFLOPS."""
        return self.encode_gflop * MEGAPIXEL_BLOCKS / GFLOPS

    @property
    def decode_seconds(self) -> float:
        """Estimated seconds to decode a megapixel at GFLOPS."""
        return self.decode_gflop * MEGAPIXEL_BLOCKS / GFLOPS

    @property
    def research_only(self) -> bool:
        """Whether the licence forbids commercial use."""
        return self.licence == APPLE


_ENTRIES = (
    Entry("titok-l-32", "yucornetto/tokenizer_titok_l32_imagenet", None, 2.6, 641, 32, 384, "no", APACHE, 183, 372),
    Entry("titok-b-64", "yucornetto/tokenizer_titok_b64_imagenet", None, 0.82, 205, 64, 768, "no", APACHE, 59, 246),
    Entry("titok-s-128", "yucornetto/tokenizer_titok_s128_imagenet", None, 0.33, 84, 128, 1536, "no", APACHE, 22, 209),
    Entry("titok-bl-64", "yucornetto/tokenizer_titok_bl64_vq8k_imagenet", None, 1.6, 390, 64, 832, "no", APACHE, 59, 204),
    Entry("titok-bl-128", "yucornetto/tokenizer_titok_bl128_vq8k_imagenet", None, 1.6, 390, 128, 1664, "no", APACHE, 71, 248),
    Entry("titok-sl-256", "yucornetto/tokenizer_titok_sl256_vq8k_imagenet", None, 1.3, 330, 256, 3328, "no", APACHE, 30, 336),
    Entry("one-d-piece-s-256", "turing-motors/One-D-Piece-S-256", None, 0.34, 84, 256, 3072, "yes", APACHE, 30, 218),
    Entry("one-d-piece-b-256", "turing-motors/One-D-Piece-B-256", None, 0.82, 205, 256, 3072, "yes", APACHE, 97, 285),
    Entry("one-d-piece-l-256", "turing-motors/One-D-Piece-L-256", None, 2.6, 642, 256, 3072, "yes", APACHE, 336, 525),
    Entry("detailflow-16", "ByteVisionLab/DetailFlow-16", "checkpoints/128.pt", 2.8, 271, 128, 1664, "yes", APACHE, 149, 71),
    Entry("detailflow-32", "ByteVisionLab/DetailFlow-32", "checkpoints/256.pt", 2.8, 272, 256, 3328, "yes", APACHE, 202, 97),
    Entry("detailflow-64", "ByteVisionLab/DetailFlow-64", "checkpoints/512.pt", 2.8, 273, 512, 6656, "yes", APACHE, 314, 153),
    *(
        Entry(f"maskbit-{bits}", f"markweber/maskbit_tokenizer_{bits}bit", None, 0.22, 54, 256, 256 * bits, "untrained", APACHE,
              136, 186)
        for bits in (10, 12, 14, 16, 18)
    ),
    *(
        Entry(f"ibq-{vectors}", f"TencentARC/IBQ-Tokenizer-{vectors}", f"imagenet256_{vectors}.ckpt", None, parameters, 256,
              256 * bits, "untrained", APACHE, encode_gflop, 380)
        for vectors, bits, parameters, encode_gflop in (
            (1024, 10, 107, 266), (8192, 13, 109, 266), (16384, 14, 111, 268), (262144, 18, 174, 300)
        )
    ),
    *(
        Entry(f"ibq-{vectors}-pretrain", f"TencentARC/IBQ-Tokenizer-{vectors}-Pretrain", f"IBQ_pretrain_{vectors}.ckpt", None,
              parameters, 256, 256 * bits, "untrained", APACHE, encode_gflop, 380)
        for vectors, bits, parameters, encode_gflop in ((16384, 14, 111, 268), (262144, 18, 174, 300))
    ),
    Entry("open-magvit2-f16", "TencentARC/Open-MAGVIT2-Tokenizer-256-resolution", "imagenet_256_L.ckpt", None, 115, 256, 4608,
          "untrained", APACHE, 266, 317),
    Entry("open-magvit2-f16-pretrain", "TencentARC/Open-MAGVIT2-Tokenizer-262144-Pretrain", "pretrain256_262144.ckpt", None,
          115, 256, 4608, "untrained", APACHE, 266, 317),
    Entry("open-magvit2-f8", "TencentARC/Open-MAGVIT2-Tokenizer-128-resolution", "imagenet_128_L.ckpt", None, 112, 1024, 18432,
          "untrained", APACHE, 426, 571),
    Entry("llamagen-ds16", "FoundationVision/LlamaGen", "vq_ds16_c2i.pt", 0.29, 72, 256, 3584, "untrained", MIT, 138, 253),
    Entry("llamagen-ds8", "FoundationVision/LlamaGen", "vq_ds8_c2i.pt", 0.28, 70, 1024, 14336, "untrained", MIT, 229, 475),
    # Decoding takes 20 steps with guidance, which computes the network twice per step.
    Entry("flextok-d12-d12", "EPFL-VILAB/flextok_d12_d12_in1k", None, 1.4, 342, 256, 4087, "yes", APPLE, 370, 4493),
    Entry("flextok-d18-d18", "EPFL-VILAB/flextok_d18_d18_in1k", None, 3.8, 950, 256, 4087, "yes", APPLE, 588, 13248),
    Entry("flextok-d18-d28", "EPFL-VILAB/flextok_d18_d28_in1k", None, 10.2, 2541, 256, 4087, "yes", APPLE, 588, 46966),
    Entry("flextok-d18-d28-dfn", "EPFL-VILAB/flextok_d18_d28_dfn", None, 10.2, 2541, 256, 4087, "yes", APPLE, 588, 46966),
)  # fmt: skip
CATALOGUE = {entry.name: entry for entry in _ENTRIES}


def find_entry(source: str) -> Entry | None:
    """The checkpoint with this short name, or in this repository; None if it is unknown, or if the repository holds several."""
    matching = [entry for entry in _ENTRIES if source in (entry.name, entry.repository)]
    return matching[0] if len(matching) == 1 else None
