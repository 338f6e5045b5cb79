"""TiTok and One-D-Piece once more, in plain NumPy from the papers and the published tensors: one block at a time, float64."""

from __future__ import annotations

from math import erf

import numpy as np


class Reference:
    """Computes with tensors by their published names. `heads` are those of the encoder and of the decoder."""

    def __init__(self, tensors: dict[str, np.ndarray], heads: tuple[int, int], side: int, patch: int) -> None:
        self.tensors = {name: array.astype(np.float64) for name, array in tensors.items()}
        self.heads = dict(zip(("encoder", "decoder"), heads, strict=True))
        self.side, self.patch = side, patch
        self.grid = side // patch
        self.second = "pixel_decoder.conv_in.weight" not in tensors  # whether of TiTok's second generation

    def get(self, name: str) -> np.ndarray:
        return self.tensors[name]

    def linear(self, name: str, x: np.ndarray) -> np.ndarray:
        weight = self.get(f"{name}.weight")
        return x @ weight.reshape(len(weight), -1).T + self.get(f"{name}.bias")

    def layer_norm(self, name: str, x: np.ndarray) -> np.ndarray:
        x = (x - x.mean(-1, keepdims=True)) / np.sqrt(x.var(-1, keepdims=True) + 1e-5)
        return x * self.get(f"{name}.weight") + self.get(f"{name}.bias")

    def patches(self, pixels: np.ndarray) -> np.ndarray:
        """(3, side, side) -> (P, W): the inner product of every patch with every filter."""
        weight = self.get("encoder.patch_embed.weight")
        out = []
        for row in range(self.grid):
            for column in range(self.grid):
                y, x = row * self.patch, column * self.patch
                out.append((weight * pixels[:, y : y + self.patch, x : x + self.patch]).sum((1, 2, 3)))
        return np.array(out) + self.get("encoder.patch_embed.bias")

    def attention(self, name: str, x: np.ndarray) -> np.ndarray:
        """(L, W) -> (L, W), one head after the other."""
        width = x.shape[1]
        queries, keys, values = np.split(x @ self.get(f"{name}.in_proj_weight").T + self.get(f"{name}.in_proj_bias"), 3, axis=1)
        heads = self.heads[name.split(".")[0]]
        size = width // heads
        out = []
        for head in range(heads):
            part = slice(head * size, (head + 1) * size)
            scores = queries[:, part] @ keys[:, part].T / np.sqrt(size)
            shares = np.exp(scores - scores.max(1, keepdims=True))
            out.append(shares / shares.sum(1, keepdims=True) @ values[:, part])
        return self.linear(f"{name}.out_proj", np.concatenate(out, 1))

    def attention_block(self, name: str, x: np.ndarray) -> np.ndarray:
        x = x + self.attention(f"{name}.attn", self.layer_norm(f"{name}.ln_1", x))
        hidden = self.linear(f"{name}.mlp.c_fc", self.layer_norm(f"{name}.ln_2", x))
        hidden = hidden * 0.5 * (1 + np.vectorize(erf)(hidden / np.sqrt(2)))
        return x + self.linear(f"{name}.mlp.c_proj", hidden)

    def transformer(self, name: str, patches: np.ndarray, latents: np.ndarray) -> np.ndarray:
        """All tokens, class embedding first, after all layers."""
        front = np.concatenate([self.get(f"{name}.class_embedding"), patches]) + self.get(f"{name}.positional_embedding")
        back = latents + self.get(f"{name}.latent_token_positional_embedding")[: len(latents)]
        x = self.layer_norm(f"{name}.ln_pre", np.concatenate([front, back]))
        layer = 0
        while f"{name}.transformer.{layer}.ln_1.weight" in self.tensors:
            x = self.attention_block(f"{name}.transformer.{layer}", x)
            layer += 1
        return x

    def vectors(self, pixels: np.ndarray) -> np.ndarray:
        """(3, side, side) -> (N, D), before quantization."""
        x = self.transformer("encoder", self.patches(pixels), self.get("latent_tokens"))
        latents = self.layer_norm("encoder.ln_post", x[1 + self.grid**2 :])
        if self.second:
            return self.linear("encoder.conv_out", latents)
        memory = latents.ravel()  # token after token, read as if it were number after number
        count, width = latents.shape
        as_read = np.array([[memory[number * count + token] for number in range(width)] for token in range(count)])
        return self.linear("encoder.conv_out", as_read)

    def codebook(self) -> np.ndarray:
        codes = self.get("quantize.embedding.weight")
        return codes if self.second else codes / np.linalg.norm(codes, axis=1, keepdims=True)

    def indices(self, vectors: np.ndarray) -> np.ndarray:
        """(N, D) -> (N,): the vector of the codebook at the smallest angle or, in the second generation, distance."""
        if self.second:
            return np.square(vectors[:, None] - self.codebook()).sum(2).argmin(1)
        return (vectors / np.linalg.norm(vectors, axis=1, keepdims=True) @ self.codebook().T).argmax(1)

    def decoded(self, indices: np.ndarray) -> np.ndarray:
        """(n,) -> (P, W): the decoder's patches."""
        latents = self.linear("decoder.decoder_embed", self.codebook()[indices])
        masks = np.repeat(self.get("decoder.mask_token")[0], self.grid**2, 0)
        return self.layer_norm("decoder.ln_post", self.transformer("decoder", masks, latents)[1 : 1 + self.grid**2])

    def scores(self, indices: np.ndarray) -> np.ndarray:
        """(n,) -> (P, V) for the second codebook."""
        return self.linear("decoder.ffn.2", np.tanh(self.linear("decoder.ffn.0", self.decoded(indices))))

    def direct_pixels(self, indices: np.ndarray) -> np.ndarray:
        """(n,) -> (3, side, side), not clipped: each patch by row, column and channel, then a convolution."""
        patches = self.linear("decoder.ffn.0", self.decoded(indices)).reshape(self.grid, self.grid, self.patch, self.patch, 3)
        return self.conv("decoder.conv_out", np.concatenate(np.concatenate(patches, 1), 1).transpose(2, 0, 1))

    def soft_lookup(self, scores: np.ndarray) -> np.ndarray:
        """(P, V) -> (D, g, g)."""
        shares = np.exp(scores - scores.max(1, keepdims=True))
        mean = shares / shares.sum(1, keepdims=True) @ self.get("pixel_quantize.embedding.weight")
        return mean.T.reshape(-1, self.grid, self.grid)

    def conv(self, name: str, x: np.ndarray) -> np.ndarray:
        """(I, h, w) -> (O, h, w), zero outside."""
        weight = self.get(f"{name}.weight")
        size = weight.shape[2]
        padded = np.pad(x, ((0, 0), (size // 2, size // 2), (size // 2, size // 2)))
        total = np.zeros((len(weight), *x.shape[1:]))
        for dy in range(size):
            for dx in range(size):
                total += np.tensordot(weight[:, :, dy, dx], padded[:, dy : dy + x.shape[1], dx : dx + x.shape[2]], 1)
        return total + self.tensors.get(f"{name}.bias", np.zeros(len(weight)))[:, None, None]

    def norm_swish(self, name: str, x: np.ndarray) -> np.ndarray:
        """Normalised in 32 groups of channels, then x * sigmoid(x)."""
        groups = x.reshape(32, -1)
        groups = (groups - groups.mean(1, keepdims=True)) / np.sqrt(groups.var(1, keepdims=True) + 1e-6)
        x = groups.reshape(x.shape) * self.get(f"{name}.weight")[:, None, None] + self.get(f"{name}.bias")[:, None, None]
        return x / (1 + np.exp(-x))

    def residual_block(self, name: str, x: np.ndarray) -> np.ndarray:
        y = self.conv(f"{name}.conv1", self.norm_swish(f"{name}.norm1", x))
        y = self.conv(f"{name}.conv2", self.norm_swish(f"{name}.norm2", y))
        if f"{name}.nin_shortcut.weight" in self.tensors:
            return y + self.conv(f"{name}.nin_shortcut", y)
        return y + x

    def pixel_decoder(self, x: np.ndarray) -> np.ndarray:
        """(D, g, g) -> (3, side, side), not clipped."""
        x = self.conv("pixel_decoder.conv_in", x)
        for index in range(2):
            x = self.residual_block(f"pixel_decoder.mid.{index}", x)
        for level in (4, 3, 2, 1, 0):
            for index in range(2):
                x = self.residual_block(f"pixel_decoder.up.{level}.block.{index}", x)
            if level:
                x = self.conv(f"pixel_decoder.up.{level}.upsample_conv", x.repeat(2, 1).repeat(2, 2))
        return self.conv("pixel_decoder.conv_out", self.norm_swish("pixel_decoder.norm_out", x))

    def pixels(self, indices: np.ndarray) -> np.ndarray:
        if self.second:
            return self.direct_pixels(indices)
        return self.pixel_decoder(self.soft_lookup(self.scores(indices)))
