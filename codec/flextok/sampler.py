"""The sampler of a rectified flow (arXiv 2209.03003): Euler's method from noise to latents, with guidance.

Guidance is adaptive projected guidance (APG, 2410.02416): of the difference between the conditional and the unconditional
velocity, only the part orthogonal to the conditional one is amplified, its norm is bounded, and it has a negative momentum.
"""

from __future__ import annotations

from collections.abc import Callable

import torch
from torch import Tensor

MOMENTUM = -0.5
MAX_NORM = 2.5  # maximum norm of the difference, over all latents of a block
AXES = (1, 2, 3)
TINY = 1e-12  # so that a velocity of zero has no direction

Velocities = Callable[[Tensor, float], tuple[Tensor, Tensor | None]]


def sample(
    velocities: Velocities, noise: Tensor, steps: int, guidance: float, progress: Callable[[], None] = lambda: None
) -> Tensor:
    """Latents (B, C, h, h) from noise of the same shape, in `steps` equal steps.

    `velocities` returns the conditional and the unconditional velocity of latents at a time from 1 to 1 / steps. The second is
    None without guidance, that is, if `guidance` is 1. `progress` is called after each step."""
    x, momentum = noise, torch.zeros_like(noise)
    for step in range(steps, 0, -1):
        velocity, unconditional = velocities(x, step / steps)
        if unconditional is not None:
            momentum = velocity - unconditional + MOMENTUM * momentum
            velocity = velocity + (guidance - 1) * _orthogonal(_bounded(momentum), velocity)
        x = x - velocity / steps
        progress()
    return x


def _bounded(difference: Tensor) -> Tensor:
    """`difference` (B, C, h, h), scaled to a norm of at most MAX_NORM."""
    norm = torch.linalg.vector_norm(difference, dim=AXES, keepdim=True)
    return difference * torch.minimum(torch.ones_like(norm), MAX_NORM / norm)


def _orthogonal(x: Tensor, direction: Tensor) -> Tensor:
    """The part of x (B, C, h, h) orthogonal to a direction (B, C, h, h), in double precision."""
    wide, direction = x.double(), direction.double()
    unit = direction / torch.linalg.vector_norm(direction, dim=AXES, keepdim=True).clamp(min=TINY)
    return (wide - (wide * unit).sum(AXES, keepdim=True) * unit).to(x)
