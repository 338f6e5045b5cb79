"""The networks of MaskBit, Open-MAGVIT2, IBQ and LlamaGen, computed from tensors under their published names.

Nothing is shared with `codec.grid`. Each function follows its network's official code, one image (1, 3, H, W) at a time."""

from __future__ import annotations

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor

Tensors = dict[str, Tensor]


def conv(t: Tensors, name: str, x: Tensor, stride: int = 1, padding: int | None = None) -> Tensor:
    weight = t[f"{name}.weight"]
    pixels = weight.shape[2] // 2 if padding is None else padding
    return F.conv2d(x, weight, t.get(f"{name}.bias"), stride, pixels)


def norm(t: Tensors, name: str, x: Tensor, groups: int) -> Tensor:
    """A group norm, in NumPy."""
    grouped = x.numpy().astype(np.float64).reshape(groups, -1)
    grouped = (grouped - grouped.mean(1, keepdims=True)) / np.sqrt(grouped.var(1, keepdims=True) + 1e-6)
    y = torch.from_numpy(grouped.reshape(x.shape)).float()
    if f"{name}.weight" not in t:
        return y
    return y * t[f"{name}.weight"][:, None, None] + t[f"{name}.bias"][:, None, None]


def swish(x: Tensor) -> Tensor:
    return x * torch.sigmoid(x)


def residual(t: Tensors, name: str, x: Tensor, groups: int, from_output: bool = False) -> Tensor:
    y = conv(t, f"{name}.conv1", swish(norm(t, f"{name}.norm1", x, groups)))
    y = conv(t, f"{name}.conv2", swish(norm(t, f"{name}.norm2", y, groups)))
    if f"{name}.nin_shortcut.weight" in t:
        return y + conv(t, f"{name}.nin_shortcut", y if from_output else x)
    return y + x


def attention(t: Tensors, name: str, x: Tensor, groups: int) -> Tensor:
    y = norm(t, f"{name}.norm", x, groups)
    q, k, v = (conv(t, f"{name}.{letter}", y)[0].flatten(1).numpy() for letter in "qkv")  # (C, positions)
    scores = q.T @ k / np.sqrt(len(q))
    weights = np.exp(scores - scores.max(1, keepdims=True))
    weights /= weights.sum(1, keepdims=True)
    attended = torch.from_numpy(v @ weights.T).float().reshape(x.shape)
    return x + conv(t, f"{name}.proj_out", attended)


def count(t: Tensors, start: str) -> int:
    """Number of numbered modules whose names begin in this way."""
    return len({name[len(start) :].split(".")[0] for name in t if name.startswith(start)})


def halve(t: Tensors, name: str, x: Tensor) -> Tensor:
    return conv(t, name, F.pad(x, (0, 1, 0, 1)), 2, 0)


def double(x: Tensor) -> Tensor:
    return x.repeat_interleave(2, 2).repeat_interleave(2, 3)


def maskbit(t: Tensors, pixels: Tensor, groups: int) -> tuple[Tensor, Tensor]:
    """Bits (D, h, w), and pixels decoded from them."""
    x = conv(t, "encoder.conv_in", pixels)
    for level in range(count(t, "encoder.down.")):
        for block in range(count(t, f"encoder.down.{level}.res_blocks.")):
            x = residual(t, f"encoder.down.{level}.res_blocks.{block}", x, groups, True)
        if f"encoder.down.{level}.down_conv.weight" in t:
            x = halve(t, f"encoder.down.{level}.down_conv", x)
    for block in range(count(t, "encoder.mid.res_blocks.")):
        x = residual(t, f"encoder.mid.res_blocks.{block}", x, groups, True)
    bits = (conv(t, "encoder.conv_out", swish(norm(t, "encoder.norm_out", x, groups))) > 0).float()
    x = conv(t, "decoder.conv_in", 2 * bits - 1)
    for block in range(count(t, "decoder.mid.res_blocks.")):
        x = residual(t, f"decoder.mid.res_blocks.{block}", x, groups, True)
    for level in range(count(t, "decoder.up.")):  # coarse to fine
        for block in range(count(t, f"decoder.up.{level}.res_blocks.")):
            x = residual(t, f"decoder.up.{level}.res_blocks.{block}", x, groups, True)
        if f"decoder.up.{level}.upsample_conv.weight" in t:
            x = conv(t, f"decoder.up.{level}.upsample_conv", double(x))
    return bits[0], conv(t, "decoder.conv_out", swish(norm(t, "decoder.norm_out", x, groups))).clamp(0, 1)


def magvit2(t: Tensors, pixels: Tensor, groups: int) -> tuple[Tensor, Tensor]:
    """Bits (D, h, w), and pixels decoded from them."""
    x = conv(t, "encoder.conv_in", 2 * pixels - 1)
    for level in range(count(t, "encoder.down.")):
        for block in range(count(t, f"encoder.down.{level}.block.")):
            x = residual(t, f"encoder.down.{level}.block.{block}", x, groups)
        if f"encoder.down.{level}.downsample.weight" in t:
            x = conv(t, f"encoder.down.{level}.downsample", x, 2)
    for block in range(count(t, "encoder.mid_block.")):
        x = residual(t, f"encoder.mid_block.{block}", x, groups)
    bits = (conv(t, "encoder.conv_out", swish(norm(t, "encoder.norm_out", x, groups))) > 0).float()
    code = (2 * bits - 1)[0].flatten(1).double().numpy()
    deviation = torch.from_numpy(np.sqrt(code.var(1, ddof=1) + 1e-6)).float()
    mean = torch.from_numpy(code.mean(1)).float()
    x = conv(t, "decoder.conv_in", 2 * bits - 1)
    for block in range(count(t, "decoder.mid_block.")):
        x = residual(t, f"decoder.mid_block.{block}", x, groups)
    for level in reversed(range(count(t, "decoder.up."))):
        name = f"decoder.adaptive.{level}"
        scale = t[f"{name}.gamma.weight"] @ deviation + t[f"{name}.gamma.bias"]
        shift = t[f"{name}.beta.weight"] @ mean + t[f"{name}.beta.bias"]
        x = scale[:, None, None] * norm(t, f"{name}.gn", x, groups) + shift[:, None, None]
        for block in range(count(t, f"decoder.up.{level}.block.")):
            x = residual(t, f"decoder.up.{level}.block.{block}", x, groups)
        if level:
            x = conv(t, f"decoder.up.{level}.upsample.conv1", x)
            _, width, rows, columns = x.shape
            wide = torch.zeros(1, width // 4, 2 * rows, 2 * columns)
            for part in range(4):
                wide[:, :, part // 2 :: 2, part % 2 :: 2] = x[:, part * width // 4 : (part + 1) * width // 4]
            x = wide
    y = conv(t, "decoder.conv_out", swish(norm(t, "decoder.norm_out", x, groups)))
    return bits[0], (y.clamp(-1, 1) + 1) / 2


def ibq(t: Tensors, pixels: Tensor, groups: int) -> tuple[Tensor, Tensor]:
    """Indices (1, h, w), and pixels decoded from them."""
    last = count(t, "encoder.down.") - 1
    stages = [f"encoder.down.{level}" for level in range(last + 1)], [f"decoder.up.{last - i}" for i in range(last + 1)]
    return taming(t, pixels, groups, stages, "block", ("block_1", "attn_1", "block_2"), unit=False)


def llamagen(t: Tensors, pixels: Tensor, groups: int) -> tuple[Tensor, Tensor]:
    """Indices (1, h, w), and pixels decoded from them."""
    levels = range(count(t, "encoder.conv_blocks."))
    stages = [f"encoder.conv_blocks.{level}" for level in levels], [f"decoder.conv_blocks.{level}" for level in levels]
    return taming(t, pixels, groups, stages, "res", ("0", "1", "2"), unit=True)


def taming(
    t: Tensors,
    pixels: Tensor,
    groups: int,
    stages: tuple[list[str], list[str]],
    block_name: str,
    middle: tuple[str, str, str],
    unit: bool,
) -> tuple[Tensor, Tensor]:
    def stage(name: str, x: Tensor) -> Tensor:
        for block in range(count(t, f"{name}.{block_name}.")):
            x = residual(t, f"{name}.{block_name}.{block}", x, groups)
            if f"{name}.attn.{block}.q.weight" in t:
                x = attention(t, f"{name}.attn.{block}", x, groups)
        return x

    def mid(side: str, x: Tensor) -> Tensor:
        x = residual(t, f"{side}.mid.{middle[0]}", x, groups)
        return residual(t, f"{side}.mid.{middle[2]}", attention(t, f"{side}.mid.{middle[1]}", x, groups), groups)

    x = conv(t, "encoder.conv_in", 2 * pixels - 1)
    for name in stages[0]:
        x = stage(name, x)
        if f"{name}.downsample.conv.weight" in t:
            x = halve(t, f"{name}.downsample.conv", x)
    x = conv(t, "encoder.conv_out", swish(norm(t, "encoder.norm_out", mid("encoder", x), groups)))
    z = conv(t, "quant_conv", x)[0]
    codebook = t["quantize.embedding.weight"].double()
    if unit:
        codebook = codebook / codebook.norm(dim=1, keepdim=True)
        z = z / z.norm(dim=0)
        scores = -torch.cdist(z.flatten(1).T.double(), codebook)
    else:
        scores = z.flatten(1).T.double() @ codebook.T
    indices = scores.argmax(1)
    vectors = codebook[indices].T.reshape(1, -1, *z.shape[1:]).float()
    x = mid("decoder", conv(t, "decoder.conv_in", conv(t, "post_quant_conv", vectors)))
    for name in stages[1]:
        x = stage(name, x)
        if f"{name}.upsample.conv.weight" in t:
            x = conv(t, f"{name}.upsample.conv", double(x))
    y = conv(t, "decoder.conv_out", swish(norm(t, "decoder.norm_out", x, groups)))
    return indices.reshape(1, *z.shape[1:]), (y.clamp(-1, 1) + 1) / 2
