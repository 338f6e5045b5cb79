"""DetailFlow once more, in plain NumPy from the paper and the published tensors: one block at a time, float64."""

from __future__ import annotations

import numpy as np


class Reference:
    """Computes with tensors by the names in a checkpoint."""

    def __init__(self, tensors: dict[str, np.ndarray], patch: int, heads: int, decoder_heads: int, group: int) -> None:
        self.tensors = {name: array.astype(np.float64) for name, array in tensors.items()}
        self.patch, self.heads, self.decoder_heads, self.group = patch, heads, decoder_heads, group

    def linear(self, name: str, x: np.ndarray) -> np.ndarray:
        return x @ self.tensors[f"{name}.weight"].T + self.tensors[f"{name}.bias"]

    def layer_norm(self, name: str, x: np.ndarray) -> np.ndarray:
        x = (x - x.mean(-1, keepdims=True)) / np.sqrt(x.var(-1, keepdims=True) + 1e-6)
        return x * self.tensors[f"{name}.weight"] + self.tensors[f"{name}.bias"]

    def attention(self, name: str, x: np.ndarray, heads: int, seen: list[list[int]]) -> np.ndarray:
        """(L, W) -> (L, W), one head and one row after the other; `seen` lists the columns that each row sees."""
        queries, keys, values = (self.linear(f"{name}.{part}_proj", x) for part in "qkv")
        size = x.shape[1] // heads
        out = np.zeros_like(x)
        for head in range(heads):
            part = slice(head * size, (head + 1) * size)
            for row, columns in enumerate(seen):
                scores = keys[columns, part] @ queries[row, part] / np.sqrt(size)
                shares = np.exp(scores - scores.max())
                out[row, part] = shares / shares.sum() @ values[columns, part]
        return self.linear(f"{name}.out_proj", out)

    def layer(self, name: str, x: np.ndarray, heads: int, seen: list[list[int]]) -> np.ndarray:
        x = x + self.attention(f"{name}.self_attn", self.layer_norm(f"{name}.layer_norm1", x), heads, seen)
        y = self.linear(f"{name}.mlp.fc1", self.layer_norm(f"{name}.layer_norm2", x))
        y = y / 2 * (1 + np.tanh(np.sqrt(2 / np.pi) * (y + 0.044715 * y**3)))
        return x + self.linear(f"{name}.mlp.fc2", y)

    def transformer(self, name: str, x: np.ndarray, heads: int, seen: list[list[int]]) -> np.ndarray:
        number = 0
        while f"{name}.encoder.layers.{number}.mlp.fc1.bias" in self.tensors:
            x = self.layer(f"{name}.encoder.layers.{number}", x, heads, seen)
            number += 1
        return self.layer_norm(f"{name}.post_layernorm", x)

    def seen(self, patches: int, latents: int) -> list[list[int]]:
        """The columns that each row of the encoder sees."""
        rows = [list(range(patches)) for _ in range(patches)]
        for latent in range(latents):
            own = latent // self.group
            last = latent if own == 0 else self.group * (own + 1) - 1
            rows.append(list(range(patches + last + 1)))
        return rows

    def vectors(self, pixels: np.ndarray, latents: int) -> np.ndarray:
        """(3, side, side) in [0, 1] -> (latents, D): the first vectors, before quantization."""
        side, patch = pixels.shape[1], self.patch
        rows = [
            (2 * pixels - 1)[:, y : y + patch, x : x + patch].transpose(1, 2, 0).ravel()
            for y in range(0, side, patch)
            for x in range(0, side, patch)
        ]
        embeddings = "encoder.visual_model.embeddings"
        front = self.linear(f"{embeddings}.patch_embedding", np.array(rows))
        front = front + self.tensors[f"{embeddings}.position_embedding.weight"]
        back = (self.tensors["encoder.latent_tokens"] + self.tensors["encoder.latent_pos_embed"])[0, :latents]
        seen = self.seen(len(front), latents)
        x = self.transformer("encoder.visual_model", np.concatenate([front, back]), self.heads, seen)
        return self.linear("quant_conv", x[len(front) :])

    def codebook(self) -> np.ndarray:
        codes = self.tensors["quantize.embedding.weight"]
        return codes / np.linalg.norm(codes, axis=1, keepdims=True)

    def indices(self, vectors: np.ndarray) -> np.ndarray:
        """(n, D) -> (n,): the code of the smallest angle."""
        return (vectors / np.linalg.norm(vectors, axis=1, keepdims=True) @ self.codebook().T).argmax(1)

    def positions(self, grid: int) -> np.ndarray:
        """(grid * grid, W): the decoder's positions, resized by triangles as wide as the new distance between points."""
        table = self.tensors["decoder.visual_model.embeddings.position_embedding.weight"]
        old = round(len(table) ** 0.5)
        scale = old / grid
        centres = (np.arange(grid) + 0.5) * scale
        weights = np.maximum(0, 1 - np.abs(np.arange(old) + 0.5 - centres[:, None]) / scale)
        weights /= weights.sum(1, keepdims=True)
        return np.einsum("ia,jb,abw->ijw", weights, weights, table.reshape(old, old, -1)).reshape(grid**2, -1)

    def small_image(self, indices: np.ndarray, grid: int) -> np.ndarray:
        """(n,) -> pixels (3, grid * patch, grid * patch), about in [-1, 1]."""
        front = self.tensors["decoder.mask_token"][0] + self.positions(grid)
        back = self.linear("post_quant_conv", self.codebook()[indices])
        x = np.concatenate([front, back + self.tensors["decoder.latent_pos_embed"][0, : len(back)]])
        everything = [list(range(len(x)))] * len(x)
        x = self.transformer("decoder.visual_model", x, self.decoder_heads, everything)[: len(front)]
        patches = self.linear("decoder.to_pixel.model", x).reshape(grid, grid, self.patch, self.patch, 3)
        return np.concatenate(np.concatenate(patches, 1), 1).transpose(2, 0, 1)

    def pixels(self, indices: np.ndarray, grid: int, side: int) -> np.ndarray:
        """(n,) -> (3, side, side) in [0, 1], enlarged from a grid of patches."""
        small = self.small_image(indices, grid)
        if small.shape[1] != side:
            weights = cubic_weights(small.shape[1], side)
            small = np.einsum("ia,jb,cab->cij", weights, weights, small)
        return ((small + 1) / 2).clip(0, 1)


def cubic_weights(old: int, new: int) -> np.ndarray:
    """(new, old): cubic convolution with a = -0.75; the image continues with its edge."""
    weights = np.zeros((new, old))
    for target in range(new):
        centre = (target + 0.5) * old / new - 0.5
        for source in range(int(np.floor(centre)) - 1, int(np.floor(centre)) + 3):
            d = abs(centre - source)
            inner = 1.25 * d**3 - 2.25 * d**2 + 1
            outer = -0.75 * (d**3 - 5 * d**2 + 8 * d - 4)
            weights[target, min(old - 1, max(0, source))] += inner if d <= 1 else outer
    return weights
