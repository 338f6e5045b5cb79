"""FlexTok once more, in plain NumPy from the paper and the published tensors: one block at a time, float64."""

from __future__ import annotations

from itertools import product

import numpy as np


def normalized(x: np.ndarray) -> np.ndarray:
    return (x - x.mean(-1, keepdims=True)) / np.sqrt(x.var(-1, keepdims=True) + 1e-5)


def silu(x: np.ndarray) -> np.ndarray:
    return x / (1 + np.exp(-x))


def softmax(x: np.ndarray) -> np.ndarray:
    x = np.exp(x - x.max(-1, keepdims=True))
    return x / x.sum(-1, keepdims=True)


class Reference:
    """Computes with tensors by their published names. Patches have 2 x 2 latents."""

    def __init__(self, tensors: dict[str, np.ndarray], levels: tuple[int, ...], head: int, groups: int) -> None:
        self.tensors = {name: array.astype(np.float64) for name, array in tensors.items()}
        self.levels, self.head, self.groups = levels, head, groups

    def get(self, name: str) -> np.ndarray:
        return self.tensors[name]

    def linear(self, name: str, x: np.ndarray) -> np.ndarray:
        return x @ self.get(f"{name}.weight").T + self.tensors.get(f"{name}.bias", 0)

    def count(self, name: str) -> int:
        """Modules in a list."""
        return 1 + max(int(key[len(name) + 1 :].split(".")[0]) for key in self.tensors if key.startswith(f"{name}."))

    # Transformers

    def attention(self, name: str, x: np.ndarray, mask: np.ndarray) -> np.ndarray:
        """(L, W) -> (L, W), one head after the other; `mask` (L, L) says which tokens see which."""
        queries, keys, values = (self.linear(f"{name}.{part}", x) for part in ("wq", "wk", "wv"))
        out = []
        for start in range(0, x.shape[1], self.head):
            part = slice(start, start + self.head)
            scores = normalized(queries[:, part]) @ normalized(keys[:, part]).T * 8 / self.head
            out.append(softmax(np.where(mask, scores, -np.inf)) @ values[:, part])
        return self.linear(f"{name}.proj", np.concatenate(out, 1))

    def mlp(self, name: str, x: np.ndarray) -> np.ndarray:
        return self.linear(f"{name}.fc2", silu(self.linear(f"{name}.fc1", x)) * self.linear(f"{name}.fc3", x))

    def patches(self, latents: np.ndarray) -> np.ndarray:
        """(C, h, h) -> (P, 4 C)."""
        _, rows, columns = latents.shape
        return np.array(
            [
                [latents[c, y + dy, x + dx] for dy, dx, c in product(range(2), range(2), range(len(latents)))]
                for y, x in product(range(0, rows, 2), range(0, columns, 2))
            ]
        )

    def positions(self, name: str) -> np.ndarray:
        table = self.get(name)[0]  # (W, g, g)
        return table.reshape(len(table), -1).T

    # Encoder

    def vectors(self, latents: np.ndarray) -> np.ndarray:
        """Latents (C, h, h) -> (N, D), before quantization."""
        modules = "encoder.module_dict"
        patches = self.linear(f"{modules}.enc_patch_emb.patch_proj", self.patches(latents))
        patches = patches + self.positions(f"{modules}.enc_posemb_module.posembs")
        registers = self.get(f"{modules}.enc_register_module.registers")
        x, count = np.concatenate([patches, registers]), len(patches)
        seen, sees = np.meshgrid(np.arange(len(x)), np.arange(len(x)))
        mask = (seen < count) | (seen <= sees)
        for layer in range(self.count(f"{modules}.enc_transformer.blocks")):
            name = f"{modules}.enc_transformer.blocks.{layer}"
            x = x + self.attention(f"{name}.attn", normalized(x), mask)
            x = x + self.mlp(f"{name}.mlp", normalized(x))
        return self.linear(f"{modules}.enc_to_latents.proj", normalized(x[count:]))

    def digits(self, vectors: np.ndarray) -> np.ndarray:
        """(N, D) vectors -> (N, D) digits."""
        out = np.zeros(vectors.shape, np.int64)
        for d, level in enumerate(self.levels):
            half, offset = (level - 1) * 1.001 / 2, 0.5 if level % 2 == 0 else 0.0
            bounded = np.tanh(vectors[:, d] + np.arctanh(offset / half)) * half - offset
            out[:, d] = np.round(bounded) + level // 2
        return out

    # Decoder

    def velocity(self, latents: np.ndarray, time: float, digits: np.ndarray | None, known: int, max_time: float) -> np.ndarray:
        """(C, h, h) -> (C, h, h). Without digits (N, D), unconditional."""
        modules = "decoder.module_dict"
        table = self.get(f"{modules}.dec_registers_posemb_module.posembs")[0, 0].T  # (N, W)
        if digits is None:
            registers = np.repeat(self.get(f"{modules}.dec_latent_dropout.nullcond")[None], len(table), 0)
        else:
            half = np.array(self.levels) // 2
            registers = self.linear(f"{modules}.dec_from_latents.proj", (digits - half) / half) + table
            registers[known:] = self.get(f"{modules}.dec_nested_dropout.dropout_mask_token")
        patches = self.linear(f"{modules}.dec_noise_patch_emb.patch_proj", self.patches(latents))
        patches = patches + self.positions(f"{modules}.dec_patches_posemb_module.posembs")
        x, count = np.concatenate([patches, registers]), len(patches)
        angles = time * 1000 / max_time * np.exp(-np.log(256) * np.arange(128) / 128)
        embedding = silu(self.linear(f"{modules}.dec_time_embedder.mlp.0", np.concatenate([np.cos(angles), np.sin(angles)])))
        embedding = silu(self.linear(f"{modules}.dec_time_embedder.mlp.2", embedding))
        everything = np.ones((len(x), len(x)), bool)
        for layer in range(self.count(f"{modules}.dec_transformer.blocks")):
            name = f"{modules}.dec_transformer.blocks.{layer}"
            rows = self.linear(f"{name}.adaLN_modulation.1", embedding).reshape(2, 6, -1)
            gate_attn, gate_mlp, shift_attn, scale_attn, shift_mlp, scale_mlp = (
                np.where(np.arange(len(x))[:, None] < count, rows[0, part], rows[1, part]) for part in range(6)
            )
            x = x + gate_attn * self.attention(f"{name}.attn", normalized(x) * (1 + scale_attn) + shift_attn, everything)
            x = x + gate_mlp * self.mlp(f"{name}.mlp", normalized(x) * (1 + scale_mlp) + shift_mlp)
        shift, scale = np.split(self.linear(f"{modules}.dec_to_patches.adaLN_modulation.1", embedding), 2)
        out = self.linear(f"{modules}.dec_to_patches.proj", normalized(x[:count]) * (1 + scale) + shift)
        grid, channels = latents.shape[1] // 2, len(latents)
        result = np.zeros_like(latents)
        for patch, (row, column) in zip(out, product(range(grid), range(grid)), strict=True):
            for value, (dy, dx, c) in zip(patch, product(range(2), range(2), range(channels)), strict=True):
                result[c, 2 * row + dy, 2 * column + dx] = value
        return result

    def sample(
        self, noise: np.ndarray, digits: np.ndarray, known: int, steps: int, guidance: float, max_time: float
    ) -> np.ndarray:
        """Latents (C, h, h) from noise, by Euler's method with projected guidance."""
        x, average = noise.astype(np.float64), 0.0
        for step in range(steps, 0, -1):
            conditional = self.velocity(x, step / steps, digits, known, max_time)
            velocity = conditional
            if guidance != 1:
                average = conditional - self.velocity(x, step / steps, None, known, max_time) - 0.5 * average
                difference = average * min(1, 2.5 / np.sqrt((average**2).sum()))
                parallel = (difference * conditional).sum() / (conditional**2).sum() * conditional
                velocity = conditional + (guidance - 1) * (difference - parallel)
            x = x - velocity / steps
        return x

    # Autoencoder

    def conv(self, name: str, x: np.ndarray, stride: int = 1, before: int | None = None) -> np.ndarray:
        """(I, h, w) -> (O, h, w), zero outside; `before` zeros above and left, as many below and right unless `stride` is 2."""
        weight = self.get(f"{name}.weight")
        size = weight.shape[2]
        first = size // 2 if before is None else before
        last = size - 1 - first if stride == 1 else 1
        padded = np.pad(x, ((0, 0), (first, last), (first, last)))
        rows, columns = (length // stride for length in x.shape[1:])
        total = np.zeros((len(weight), rows, columns))
        for dy, dx in product(range(size), range(size)):
            window = padded[:, dy : dy + stride * rows : stride, dx : dx + stride * columns : stride]
            total += np.tensordot(weight[:, :, dy, dx], window, 1)
        return total + self.get(f"{name}.bias")[:, None, None]

    def group_norm(self, name: str, x: np.ndarray) -> np.ndarray:
        groups = x.reshape(self.groups, -1)
        groups = (groups - groups.mean(1, keepdims=True)) / np.sqrt(groups.var(1, keepdims=True) + 1e-6)
        return groups.reshape(x.shape) * self.get(f"{name}.weight")[:, None, None] + self.get(f"{name}.bias")[:, None, None]

    def residual_block(self, name: str, x: np.ndarray) -> np.ndarray:
        y = self.conv(f"{name}.conv1", silu(self.group_norm(f"{name}.norm1", x)))
        y = self.conv(f"{name}.conv2", silu(self.group_norm(f"{name}.norm2", y)))
        return y + (self.conv(f"{name}.conv_shortcut", x) if f"{name}.conv_shortcut.weight" in self.tensors else x)

    def middle(self, name: str, x: np.ndarray) -> np.ndarray:
        x = self.residual_block(f"{name}.resnets.0", x)
        y = self.group_norm(f"{name}.attentions.0.group_norm", x).reshape(len(x), -1).T
        queries, keys, values = (self.linear(f"{name}.attentions.0.{part}", y) for part in ("to_q", "to_k", "to_v"))
        y = softmax(queries @ keys.T / np.sqrt(len(x))) @ values
        x = x + self.linear(f"{name}.attentions.0.to_out.0", y).T.reshape(x.shape)
        return self.residual_block(f"{name}.resnets.1", x)

    def latents(self, pixels: np.ndarray) -> np.ndarray:
        """Pixels (3, H, W) in [-1, 1] -> (C, h, w), not scaled."""
        name = "vae.vae.encoder"
        x = self.conv(f"{name}.conv_in", pixels)
        for level in range(self.count(f"{name}.down_blocks")):
            block = f"{name}.down_blocks.{level}"
            for index in range(self.count(f"{block}.resnets")):
                x = self.residual_block(f"{block}.resnets.{index}", x)
            if f"{block}.downsamplers.0.conv.weight" in self.tensors:
                x = self.conv(f"{block}.downsamplers.0.conv", x, stride=2, before=0)
        x = self.conv(f"{name}.conv_out", silu(self.group_norm(f"{name}.conv_norm_out", self.middle(f"{name}.mid_block", x))))
        moments = self.conv("vae.vae.quant_conv", x)
        return moments[: len(moments) // 2]

    def pixels(self, latents: np.ndarray) -> np.ndarray:
        """(C, h, w), not scaled -> pixels (3, H, W), not clipped."""
        name = "vae.vae.decoder"
        x = self.conv(f"{name}.conv_in", self.conv("vae.vae.post_quant_conv", latents))
        x = self.middle(f"{name}.mid_block", x)
        for level in range(self.count(f"{name}.up_blocks")):
            block = f"{name}.up_blocks.{level}"
            for index in range(self.count(f"{block}.resnets")):
                x = self.residual_block(f"{block}.resnets.{index}", x)
            if f"{block}.upsamplers.0.conv.weight" in self.tensors:
                x = self.conv(f"{block}.upsamplers.0.conv", x.repeat(2, 1).repeat(2, 2))
        return self.conv(f"{name}.conv_out", silu(self.group_norm(f"{name}.conv_norm_out", x)))
