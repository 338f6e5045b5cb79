"""Learning a One-D-Piece (arXiv 2501.10064) from photographs, in one stage with pixels as the target.

It starts as a cosine transform (`start.py`) whose codebook is the k-means of its vectors. Loss: logarithm of the squared
error, so that smooth blocks count as they do in PSNR + perceptual distance + codebook and commitment loss (VQ-VAE, 1711.00937).
Encoder and codebook are scaled to length 1 (ViT-VQGAN, 2110.04627), and gradients pass the quantizer as if it were not there.
Tail token drop: only the first n tokens reach the decoder, in a part of each batch all, in the others each doubling of n
equally often. Vectors of the codebook that nothing is near to are moved to where something is, in the schedule's first half.
"""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Any, ClassVar, Self

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from bitstream.codebook_tokens import uniform_code
from codec.errors import ModelError
from codec.models.pixels import from_network, to_network
from codec.models.registry import open_model
from codec.system.device import trains_in_bf16
from codec.titok.coding_tables import measure_code
from codec.titok.config import TitokConfig, trained
from codec.titok.initialization import start
from codec.titok.model import TitokModel, save_titok
from codec.titok.network import Codebook, Titok
from codec.titok.tokenizer import indices_of
from codec.training.losses import PerceptualLoss
from codec.training.photos import random_crops
from codec.training.trainer import Trainer, TrainingConfig

LENGTHS = 4  # different lengths in a batch
RESTART_STEPS = 200  # a vector of the codebook that was not used in so many is moved
RESTARTED = 0.5  # share of the schedule in which that is done
START_VECTORS = 16384  # of the encoder, from which the codebook starts
TOGETHER = 16  # crops per call of the encoder, before training
MEANS = 10  # rounds of k-means
SPREAD = 0.02  # of vectors that start at the same place, per number
FLOOR = 0.004  # squared error that counts as little as none: 30 dB
TYPICAL = 0.05  # squared error where the loss is as steep as it
# Of the rate, for parameters by the beginning of their names, the first that fits. The encoder starts close to what it becomes,
# and the codebook has to follow it.
SHARES = (("quantize.", 2.0), ("decoder.ffn.", 1.0), ("decoder.", 0.5), ("pixel_", 1.0), ("", 0.1))
WIDE = 256  # width from which bf16 pays: measured on processors with AMX


@dataclass(frozen=True)
class TitokTraining(TrainingConfig):
    """The recipe."""

    batch: int = 16
    rate: float = 1e-3  # for tiny; the published networks, which are wider, were trained at 1e-4
    perceptual: float = 0.5
    wait: int = 4000  # crops before the encoder learns too: until then the pixel decoder's gradients say little
    commitment: float = 0.25  # weight of the pull of the encoder towards the codebook, against that of the codebook


class Usage(nn.Module):
    """How often each vector of a codebook was used since the last look."""

    counts: Tensor

    def __init__(self, size: int) -> None:
        super().__init__()
        self.register_buffer("counts", torch.zeros(size, dtype=torch.long))


@dataclass
class Quantized:
    """What became of the encoder's vectors."""

    codes: Tensor  # (B, N, D) of the codebook; their gradient is that of the vectors
    indices: Tensor  # (B, N)
    distance: Tensor  # squared, of the codebook from the vectors, mean over all numbers; moves the codebook
    commitment: Tensor  # the same; moves the encoder


@torch.no_grad()
def k_means(vectors: Tensor, count: int, rng: np.random.Generator) -> Tensor:
    """Vectors (M, D) of length 1 -> as many as wanted (count, D), each in the middle of those that are nearest to it."""
    means = vectors[torch.from_numpy(rng.choice(len(vectors), count, replace=len(vectors) < count)).to(vectors.device)]
    for _ in range(MEANS):
        sums = torch.zeros_like(means).index_add_(0, (vectors @ means.t()).argmax(1), vectors)
        means = torch.where(sums.any(1, keepdim=True), F.normalize(sums, dim=1), means)
    return means


def quantize(codebook: Codebook, vectors: Tensor) -> Quantized:
    """Vectors (B, N, D) of any length -> the nearest of the codebook, with straight-through gradients."""
    with torch.autocast(vectors.device.type, enabled=False):  # as exactly as when coding
        vectors = F.normalize(vectors.float(), dim=-1)
        indices = codebook.nearest(vectors.detach())
        codes = codebook.lookup(indices)
    straight = vectors + (codes - vectors).detach()
    return Quantized(straight, indices, F.mse_loss(codes, vectors.detach()), F.mse_loss(vectors, codes.detach()))


def reconstruct(network: Titok, codes: Tensor, lengths: list[int]) -> Tensor:
    """Codes (B, N, D) -> pixels (B, 3, side, side) in about [-1, 1]. The batch is split evenly, and of each part only the first
    tokens of its length reach the decoder."""
    parts = codes.chunk(len(lengths))
    scores = torch.cat([network.decoder(part[:, :length]) for part, length in zip(parts, lengths, strict=True)])
    return 2 * network.pixel_decoder(network.pixel_quantize.mean(scores)) - 1


def spread_lengths(count: int, block_tokens: int, rng: np.random.Generator) -> list[int]:
    """`count` lengths in 1..N: N itself, and one at random from each of `count` - 1 ranges, each as many times longer."""
    places = (np.arange(count - 1) + rng.random(count - 1)) / max(1, count - 1)
    return [block_tokens, *(min(block_tokens, int((block_tokens + 1) ** place)) for place in places)]


def logarithm(errors: Tensor) -> Tensor:
    """Squared errors (B,) -> their logarithms, on average, scaled such that a step at TYPICAL is as much as there."""
    return (TYPICAL + FLOOR) * torch.log1p(errors / FLOOR).mean()


class TitokTrainer(Trainer):
    """A One-D-Piece in training."""

    family = "one-d-piece"
    averages = False  # a vector of the codebook that nobody uses is moved elsewhere in each process
    recipe: ClassVar[type[TrainingConfig]] = TitokTraining
    shape = ("size", "block_tokens")
    network: Titok
    average: Titok
    config: TitokTraining

    def __init__(self, network: Titok, config: TitokTraining, device: torch.device) -> None:
        super().__init__(network, config, device)
        self.usage = Usage(network.config.codebook).to(device)

    @classmethod
    def shaped(cls, **shape: Any) -> TitokConfig:
        return trained(**shape)

    @classmethod
    def fresh(cls, photos: Tensor, config: TitokTraining, device: torch.device, **shape: Any) -> Self:
        """A cosine transform, and a codebook of the vectors that the encoder makes of the photos."""
        torch.manual_seed(config.seed)
        network = Titok(cls.shaped(**shape))
        trainer = cls(network, config, device)
        crops = random_crops(photos, -(-START_VECTORS // network.config.block_tokens), trainer.rng, trainer.side).to(device)
        start(trainer.network, (crops + 1) / 2)
        with torch.no_grad():
            vectors = torch.cat([F.normalize(trainer.encode(part), dim=-1) for part in crops.split(TOGETHER)])
            means = k_means(vectors.flatten(0, 1), network.config.codebook, trainer.rng)
            trainer.network.quantize.embedding.weight.copy_(means)
        trainer.average.load_state_dict(trainer.network.state_dict())
        return trainer

    @classmethod
    def continued(cls, name: str, config: TitokTraining, device: torch.device) -> Self:
        model = open_model(name)
        if not isinstance(model, TitokModel) or not model.config.tail_drop:
            kind = model.config.name if isinstance(model, TitokModel) else f"a model of kind {model.kind!r}"
            msg = f"{name}: {kind}, not a One-D-Piece: only that can be trained further"
            raise ModelError(msg)
        trainer = cls(model.network(torch.device("cpu")).requires_grad_(True), config, device)
        trainer.count_from(model)
        return trainer

    @classmethod
    def build(cls, plain: dict[str, Any]) -> Titok:
        return Titok(TitokConfig.from_dict(plain))

    @property
    def network_config(self) -> TitokConfig:
        return self.network.config

    @property
    def side(self) -> int:
        return self.network.config.side

    def groups(self) -> list[tuple[float, list[nn.Parameter]]]:
        found: dict[float, list[nn.Parameter]] = {}
        for name, parameter in self.network.named_parameters():
            share = next(share for beginning, share in SHARES if name.startswith(beginning))
            found.setdefault(share, []).append(parameter)
        return list(found.items())

    def parts(self) -> dict[str, nn.Module]:
        return super().parts() | {"usage": self.usage}

    def encode(self, x: Tensor) -> Tensor:
        """Crops (B, 3, side, side) in [-1, 1] -> vectors (B, N, D)."""
        return self.network.encoder((x + 1) / 2, self.network.latent_tokens)

    def loss(self, x: Tensor, perceptual: PerceptualLoss | None) -> Tensor:
        c = self.config
        lengths = spread_lengths(min(LENGTHS, len(x)), self.network.config.block_tokens, self.rng)
        bf16 = self.network.config.width >= WIDE and trains_in_bf16(x.device)
        with torch.autocast(x.device.type, torch.bfloat16, enabled=bf16):
            with torch.set_grad_enabled(self.total_crops >= c.wait):
                vectors = self.encode(x)
            if self.step and self.step % RESTART_STEPS == 0:
                self.restart(vectors.detach())
            coded = quantize(self.network.quantize, vectors)
            y = reconstruct(self.network, coded.codes, lengths).float()
            error = logarithm((y - x).square().mean((1, 2, 3)))
            if perceptual:
                rows, columns = self.window()
                error = error + c.perceptual * perceptual(y[:, :, rows, columns], x[:, :, rows, columns]).mean()
        self.usage.counts += torch.bincount(coded.indices.flatten(), minlength=len(self.usage.counts))
        return error + coded.distance + c.commitment * coded.commitment

    @torch.no_grad()
    def restart(self, vectors: Tensor) -> None:
        """Moves vectors of the codebook that were not used since the last call to some of the encoder's (B, N, D): a codebook
        collapses otherwise, since what is not used has no gradient. Later all stay where they are: the decoder has to learn
        what each means."""
        if self.progress < RESTARTED:
            self.move((self.usage.counts == 0).nonzero()[:, 0], vectors)
        self.usage.counts.zero_()

    def move(self, indices: Tensor, vectors: Tensor) -> None:
        """Puts these vectors of the codebook (K,) near randomly chosen ones of (B, N, D), in the average too."""
        weight = self.network.quantize.embedding.weight
        pool = F.normalize(vectors.float().flatten(0, 1), dim=-1)
        chosen = pool[torch.from_numpy(self.rng.integers(len(pool), size=len(indices))).to(pool.device)]
        noise = torch.from_numpy(self.rng.normal(0, SPREAD, chosen.shape)).to(chosen)
        weight[indices] = self.average.quantize.embedding.weight[indices] = F.normalize(chosen + noise, dim=-1)
        for moment in ("exp_avg", "exp_avg_sq"):
            if moment in (state := self.optimizer.state[weight]):
                state[moment][indices] = 0

    @torch.no_grad()
    def validate(self, photos: Tensor, perceptual: PerceptualLoss | None) -> dict[str, float]:
        """PSNR (dB) and perceptual distance of blocks of each photo after 1, 2, 4... N tokens, each the mean over blocks; PSNR
        of one colour per block, its mean; and how many vectors of the codebook these blocks use."""
        network = self.average.eval()
        x = to_network(spread_blocks(photos, self.side))
        indices = network.tokenize((x + 1) / 2)
        metrics = {"psnr of one colour": psnr(x.mean((2, 3), keepdim=True), x)}
        for length in lengths_shown(network.config.block_tokens):
            y = to_network(from_network(2 * network.detokenize(indices[:, :length]) - 1))
            metrics[f"psnr@{length}"] = psnr(y, x)
            if perceptual:
                metrics[f"vgg@{length}"] = float(perceptual(y, x).mean())
        return metrics | {"used": float(len(indices.unique()))}

    def describe(self, metrics: dict[str, float]) -> str:
        points = (f"{name.removeprefix('psnr@')}: {value:.2f}" for name, value in metrics.items() if name.startswith("psnr@"))
        size = self.network.config.codebook
        one = f"one colour per block: {metrics['psnr of one colour']:.2f}"
        return f"held out, PSNR by tokens: {' | '.join(points)} ({one}); {metrics['used']:.0f} of {size} indices used"

    def write_model(self, path: Path, photos: Tensor, card: dict[str, Any]) -> TitokModel:
        """Weights in fp16."""
        network = self.average.half().float().eval()
        config = network.config
        uniform = uniform_code(config.block_tokens, config.codebook, config.side, config.tail_drop)
        codebook = network.quantize.embedding.weight.cpu().numpy()
        measured = measure_code(uniform, indices_of(network, photos.numpy()), codebook)
        state = {name: value.half().cpu().numpy() for name, value in network.state_dict().items()}
        return save_titok(path, config, state, measured.code, card)


def psnr(y: Tensor, x: Tensor) -> float:
    """In dB, the mean over blocks (B, 3, side, side) in [-1, 1]."""
    mse = (y - x).square().mean((1, 2, 3)).clamp(min=1e-6)
    return float(-10 * torch.log10(mse / 4).mean())


def spread_blocks(photos: Tensor, side: int) -> Tensor:
    """Photos (N, H, H, 3) -> blocks (M, side, side, 3), at most 16 of each, evenly spread."""
    free = photos.shape[1] - side
    along = min(4, photos.shape[1] // side)
    places = [free * (2 * i + 1) // (2 * along) for i in range(along)]
    return torch.cat([photos[:, top : top + side, left : left + side] for top in places for left in places])


def lengths_shown(block_tokens: int) -> list[int]:
    """1, 2, 4... and N."""
    return [*(2**power for power in range((block_tokens - 1).bit_length())), block_tokens]
