"""Trains a One-D-Piece (arXiv 2501.10064) on photographs, in one stage with pixels as the target.

The network starts as a cosine transform (`codec.titok.initialization`), its codebook as the k-means of the encoder's vectors.
The loss is the logarithm of the squared error, so smooth blocks count as in PSNR, plus perceptual distance, codebook loss
and commitment loss (VQ-VAE, 1711.00937). Vectors and codes are normalised to length 1 (ViT-VQGAN, 2110.04627), and gradients
pass the quantizer unchanged. By tail token drop, only the first n tokens reach the decoder: all tokens in one part of each
batch, and in the others an n whose logarithm is uniformly distributed. In the first half of the schedule, unused codes are
replaced by vectors of the encoder.
"""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Any, ClassVar, Self

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from codec.errors import ModelError
from codec.models.base import Model
from codec.models.pixels import from_network, to_network
from codec.models.registry import open_model
from codec.networks.codebook import Codebook
from codec.system.device import trains_in_bf16
from codec.titok.config import TitokConfig, new_config
from codec.titok.initialization import initialize
from codec.titok.model import TitokModel
from codec.titok.network import Titok
from codec.training.losses import PerceptualLoss
from codec.training.photos import random_crops
from codec.training.recipe import TrainingConfig
from codec.training.trainer import MOMENTS, Trainer

BATCH_LENGTHS = 4  # different numbers of kept tokens in a batch
RESTART_STEPS = 200  # steps without use until a code is replaced
RESTART_SHARE = 0.5  # first share of the schedule, during which unused codes are replaced
RESTART_NOISE = 0.02  # deviation per channel of codes that are placed at the same vector
KMEANS_VECTORS = 16384  # encoder vectors that initialise the codebook
KMEANS_ROUNDS = 10
KMEANS_BATCH = 16  # crops per call of the encoder
ERROR_FLOOR = 0.004  # squared error (30 dB) below which the logarithm is close to linear
ERROR_UNIT = 0.05  # squared error; at this value the loss and the error have the same slope
# Shares of the learning rate, by prefix of a parameter's name; the first match applies. The encoder starts close to its final
# state, and the codebook has to follow it.
RATE_SHARES = (("quantize.", 2.0), ("decoder.ffn.", 1.0), ("decoder.", 0.5), ("pixel_", 1.0), ("", 0.1))
BF16_WIDTH = 256  # smallest width that is faster in bf16, measured on processors with AMX


@dataclass(frozen=True)
class TitokTraining(TrainingConfig):
    """The recipe."""

    batch: int = 16
    rate: float = 1e-3  # chosen for tiny; the wider published networks were trained at 1e-4
    perceptual: float = 0.5
    frozen_encoder_crops: int = 4000  # crops before the encoder trains: at first, the pixel decoder has no useful gradients
    commitment: float = 0.25  # weight of the commitment loss; the codebook loss has weight 1


class TitokTrainer(Trainer):
    """A One-D-Piece in training, with usage counts of its codes."""

    family = "one-d-piece"
    can_average = False  # each process replaces unused codes by other vectors
    recipe: ClassVar[type[TrainingConfig]] = TitokTraining
    network_options = ("size", "block_tokens")
    network: Titok
    ema: Titok
    config: TitokTraining

    def __init__(self, network: Titok, config: TitokTraining, device: torch.device) -> None:
        super().__init__(network, config, device)
        self.usage = CodeUsage(network.config.codebook).to(device)

    @classmethod
    def configure(cls, **network_options: Any) -> TitokConfig:
        return new_config(**network_options)

    @classmethod
    def from_scratch(cls, photos: Tensor, config: TitokTraining, device: torch.device, **network_options: Any) -> Self:
        """A trainer of a cosine transform. Its codebook is the k-means of the transform's vectors for the photos."""
        torch.manual_seed(config.seed)
        network = Titok(cls.configure(**network_options))
        trainer = cls(network, config, device)
        count = -(-KMEANS_VECTORS // network.config.block_tokens)
        crops = random_crops(photos, count, trainer.rng, trainer.crop_side).to(device)
        initialize(trainer.network, (crops + 1) / 2)
        with torch.no_grad():
            vectors = torch.cat([F.normalize(trainer.encode(part), dim=-1) for part in crops.split(KMEANS_BATCH)])
            means = k_means(vectors.flatten(0, 1), network.config.codebook, trainer.rng)
            trainer.network.quantize.embedding.weight.copy_(means)
        trainer.ema.load_state_dict(trainer.network.state_dict())
        return trainer

    @classmethod
    def from_model(cls, name: str, config: TitokTraining, device: torch.device) -> Self:
        model = open_model(name)
        if not isinstance(model, TitokModel) or not model.config.tail_drop:
            kind = model.config.name if isinstance(model, TitokModel) else f"a model of kind {model.kind!r}"
            msg = f"{kind}, not a One-D-Piece: only such a model can be trained further"
            raise ModelError(msg, file=name)
        trainer = cls(model.network(torch.device("cpu")).requires_grad_(True), config, device)
        trainer.add_totals_of(model)
        return trainer

    @classmethod
    def build_network(cls, plain: dict[str, Any]) -> Titok:
        return Titok(TitokConfig.from_dict(plain))

    @property
    def network_config(self) -> TitokConfig:
        return self.network.config

    @property
    def crop_side(self) -> int:
        return self.network.config.side

    def parameter_groups(self) -> list[tuple[float, list[nn.Parameter]]]:
        groups: dict[float, list[nn.Parameter]] = {}
        for name, parameter in self.network.named_parameters():
            share = next(share for start, share in RATE_SHARES if name.startswith(start))
            groups.setdefault(share, []).append(parameter)
        return list(groups.items())

    def modules(self) -> dict[str, nn.Module]:
        return super().modules() | {"usage": self.usage}

    def encode(self, x: Tensor) -> Tensor:
        """The vectors (B, N, D) of crops (B, 3, side, side) in [-1, 1]."""
        return self.network.encoder((x + 1) / 2, self.network.latent_tokens)

    def loss(self, x: Tensor, perceptual: PerceptualLoss | None) -> Tensor:
        c = self.config
        lengths = spread_lengths(min(BATCH_LENGTHS, len(x)), self.network.config.block_tokens, self.rng)
        bf16 = self.network.config.width >= BF16_WIDTH and trains_in_bf16(x.device)
        with torch.autocast(x.device.type, torch.bfloat16, enabled=bf16):
            with torch.set_grad_enabled(self.total_crops >= c.frozen_encoder_crops):
                vectors = self.encode(x)
            if self.step and self.step % RESTART_STEPS == 0:
                self.replace_unused_codes(vectors.detach())
            quantized = quantize(self.network.quantize, vectors)
            y = reconstruct(self.network, quantized.codes, lengths).float()
            error = log_error((y - x).square().mean((1, 2, 3)))
            if perceptual:
                rows, columns = self.perceptual_window()
                error = error + c.perceptual * perceptual(y[:, :, rows, columns], x[:, :, rows, columns]).mean()
        self.usage.counts += torch.bincount(quantized.indices.flatten(), minlength=len(self.usage.counts))
        return error + quantized.codebook_loss + c.commitment * quantized.commitment_loss

    @torch.no_grad()
    def replace_unused_codes(self, vectors: Tensor) -> None:
        """Replaces codes that were not used since the last call by random vectors of the encoder (B, N, D), with noise.

        A codebook collapses otherwise, since an unused code has no gradient. In the later part of the schedule all codes stay,
        since the decoder has to learn their meaning."""
        if self.progress < RESTART_SHARE:
            unused = (self.usage.counts == 0).nonzero()[:, 0]
            weight = self.network.quantize.embedding.weight
            pool = F.normalize(vectors.float().flatten(0, 1), dim=-1)
            chosen = pool[torch.from_numpy(self.rng.integers(len(pool), size=len(unused))).to(pool.device)]
            noise = torch.from_numpy(self.rng.normal(0, RESTART_NOISE, chosen.shape)).to(chosen)
            weight[unused] = self.ema.quantize.embedding.weight[unused] = F.normalize(chosen + noise, dim=-1)
            for moment in MOMENTS:
                if moment in (state := self.optimizer.state[weight]):
                    state[moment][unused] = 0
        self.usage.counts.zero_()

    @torch.no_grad()
    def validate(self, photos: Tensor, perceptual: PerceptualLoss | None) -> dict[str, float]:
        """PSNR in dB and perceptual distance after 1, 2, 4... N tokens, means over blocks of the photos; PSNR of the mean
        colour of each block; number of codes that these blocks use."""
        network = self.ema.eval()
        x = to_network(spread_blocks(photos, self.crop_side))
        indices = network.tokenize((x + 1) / 2)
        metrics = {"psnr of one colour": psnr(x.mean((2, 3), keepdim=True), x)}
        for length in doubling_lengths(network.config.block_tokens):
            y = to_network(from_network(2 * network.detokenize(indices[:, :length]) - 1))
            metrics[f"psnr@{length}"] = psnr(y, x)
            if perceptual:
                metrics[f"vgg@{length}"] = float(perceptual(y, x).mean())
        return metrics | {"used": float(len(indices.unique()))}

    def format_metrics(self, metrics: dict[str, float]) -> str:
        points = (f"{name.removeprefix('psnr@')}: {value:.2f}" for name, value in metrics.items() if name.startswith("psnr@"))
        size = self.network.config.codebook
        flat = f"one colour per block: {metrics['psnr of one colour']:.2f}"
        return f"held out, PSNR by tokens: {' | '.join(points)} ({flat}); {metrics['used']:.0f} of {size} indices used"

    def write_model(self, path: Path, photos: Tensor, provenance: dict[str, Any]) -> Model:
        """Weights in fp16."""
        network = self.ema.half().float().eval()
        config = network.config
        weights = {name: value.half().cpu().numpy() for name, value in network.state_dict().items()}
        model = TitokModel.save(path, config, weights, TitokModel.new_code(config), provenance)
        return model.calibrate(photos.numpy(), str(self.device)).model


def psnr(y: Tensor, x: Tensor) -> float:
    """PSNR in dB of blocks (B, 3, side, side) in [-1, 1], averaged over blocks."""
    mse = (y - x).square().mean((1, 2, 3)).clamp(min=1e-6)
    return float(-10 * torch.log10(mse / 4).mean())


def spread_blocks(photos: Tensor, side: int) -> Tensor:
    """Blocks (M, side, side, 3) of photos (N, H, H, 3): up to 16 per photo, evenly spread."""
    margin = photos.shape[1] - side
    count = min(4, photos.shape[1] // side)
    starts = [margin * (2 * i + 1) // (2 * count) for i in range(count)]
    return torch.cat([photos[:, top : top + side, left : left + side] for top in starts for left in starts])


def doubling_lengths(block_tokens: int) -> list[int]:
    """1, 2, 4... and N."""
    return [*(2**power for power in range((block_tokens - 1).bit_length())), block_tokens]


class CodeUsage(nn.Module):
    """Number of uses of each code since the last check for unused ones."""

    counts: Tensor

    def __init__(self, size: int) -> None:
        super().__init__()
        self.register_buffer("counts", torch.zeros(size, dtype=torch.long))


@dataclass
class Quantized:
    """The encoder's vectors after quantization."""

    codes: Tensor  # (B, N, D), with the gradient of the vectors
    indices: Tensor  # (B, N)
    codebook_loss: Tensor  # squared distance of codes and vectors, mean over all channels, with a gradient for the codebook
    commitment_loss: Tensor  # the same, with a gradient for the encoder


def quantize(codebook: Codebook, vectors: Tensor) -> Quantized:
    """The nearest codes of vectors (B, N, D) of any length, with straight-through gradients."""
    with torch.autocast(vectors.device.type, enabled=False):  # float32, as for coding
        vectors = F.normalize(vectors.float(), dim=-1)
        indices = codebook.nearest(vectors.detach())
        codes = codebook.lookup(indices)
    straight = vectors + (codes - vectors).detach()
    return Quantized(straight, indices, F.mse_loss(codes, vectors.detach()), F.mse_loss(vectors, codes.detach()))


def reconstruct(network: Titok, codes: Tensor, lengths: list[int]) -> Tensor:
    """Pixels (B, 3, side, side), about in [-1, 1], from codes (B, N, D).

    `lengths` are numbers of tokens that reach the decoder; the batch is split evenly among them."""
    parts = codes.chunk(len(lengths))
    scores = torch.cat([network.decoder(part[:, :length]) for part, length in zip(parts, lengths, strict=True)])
    return 2 * network.pixel_decoder(network.pixel_quantize.mean(scores)) - 1


def spread_lengths(count: int, block_tokens: int, rng: np.random.Generator) -> list[int]:
    """`count` numbers of tokens to keep: N itself, and a random one from each of `count` - 1 ranges of equal ratio in 1..N."""
    exponents = (np.arange(count - 1) + rng.random(count - 1)) / max(1, count - 1)
    return [block_tokens, *(min(block_tokens, int((block_tokens + 1) ** exponent)) for exponent in exponents)]


def log_error(errors: Tensor) -> Tensor:
    """Mean logarithm of squared errors (B,), scaled such that its derivative is 1 at ERROR_UNIT."""
    return (ERROR_UNIT + ERROR_FLOOR) * torch.log1p(errors / ERROR_FLOOR).mean()


@torch.no_grad()
def k_means(vectors: Tensor, count: int, rng: np.random.Generator) -> Tensor:
    """`count` means (count, D) of vectors (M, D), all of length 1."""
    means = vectors[torch.from_numpy(rng.choice(len(vectors), count, replace=len(vectors) < count)).to(vectors.device)]
    for _ in range(KMEANS_ROUNDS):
        sums = torch.zeros_like(means).index_add_(0, (vectors @ means.t()).argmax(1), vectors)
        means = torch.where(sums.any(1, keepdim=True), F.normalize(sums, dim=1), means)
    return means
