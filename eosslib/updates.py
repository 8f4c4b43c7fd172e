"""What an optimizer makes of an update direction: gradient descent, heavy-ball and Nesterov momentum, Adam.

The recurrences and their constants are those of ``torch.optim``, on stacks of flat parameter vectors. With g the direction,

* ``sgd``       v ← μv + g,  θ ← θ − ηv  (μ = 0: gradient descent, without a buffer);
* ``nesterov``  v ← μv + g,  θ ← θ − η(g + μv);
* ``adam``      m ← β₁m + (1 − β₁)g,  s ← β₂s + (1 − β₂)g²,  θ ← θ − η m̂/(√ŝ + ε), hats for the correction of the zero start.
"""

from __future__ import annotations

import torch

from eosslib.settings import RunConfig

ADAM_EPS = 1e-8


def buffers(config: RunConfig) -> int:
    """Return how many vectors the optimizer keeps for a network."""
    if config.optimizer == "adam":
        return 2
    return 1 if config.momentum else 0


def apply(config: RunConfig, kept: torch.Tensor, direction: torch.Tensor, step: torch.Tensor) -> torch.Tensor:
    """Return what to take off the parameters, in units of η; what the optimizer keeps is changed in place.

    Args:
        config: Optimizer, momentum, β₂.
        kept: (R, K, P), zero at the start.
        direction: g (R, P).
        step: Number of steps made before this one, an integer tensor on the device.
    """
    mu = config.momentum
    if config.optimizer != "adam":
        velocity = kept[:, 0].mul_(mu).add_(direction)
        return direction + mu * velocity if config.optimizer == "nesterov" else velocity
    mean = kept[:, 0].lerp_(direction, 1 - mu)
    square = kept[:, 1].mul_(config.beta2).addcmul_(direction, direction, value=1 - config.beta2)
    return mean * adam_scale(square, (step + 1).to(square.dtype), mu, config.beta2).square()


def adam_scale(square: torch.Tensor, step: torch.Tensor | float, beta1: float, beta2: float, eps: float = ADAM_EPS) -> torch.Tensor:
    """Return P^-½ of Adam, whose step is −ηP⁻¹m, after so many steps (Cohen et al. 2022, arXiv:2207.14484, eq. 2).

    Args:
        square: s, the running mean of g².
        step: Number of steps made, at least 1.
        beta1: Decay of the running mean of g.
        beta2: Decay of s.
        eps: ε.
    """
    started, squared = 1.0 - beta1**step, 1.0 - beta2**step
    return (((square / squared).sqrt() + eps) * started).rsqrt()
