"""Update directions: mini-batch SGD, and full-batch gradient descent with synthetic or projected noise.

One step is θ ← θ − η·direction. With g_i = ∇ℓ_i, g their mean, Σ their covariance (divisor n) and c = Var(mean of a batch) /
Var(one example) (1/b·(n−b)/(n−1), or 1/b for i.i.d. examples), the noise of a mini-batch has covariance cΣ, and

* ``gaussian``  adds N(0, cΣ): weights 1/n + √(c/n)·(ξ − ξ̄), ξ ~ N(0, I_n), on the examples;
* ``diagonal``  adds N(0, c·diag Σ);
* ``isotropic`` adds N(0, c·tr Σ/P·I), of the same total variance;
* ``along_u``   adds u(uᵀξ) with ξ = g_B − g the real mini-batch noise, u the top eigenvector of ∇²L;
* ``without_u`` adds ξ − u(uᵀξ);
* ``along_top`` and ``without_top`` do the same with the span of several top eigenvectors in the place of u.

The first three are those of the EoSS paper (§5.1), at the current parameters; the others are ours.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass

import torch

from eosslib import catalogue, streams
from eosslib.curvature import full_gradient, gradient_moments
from eosslib.flat import Params
from eosslib.objective import Objective


@dataclass
class StepContext:
    """What a direction may use besides the parameters."""

    objective: Objective
    x: torch.Tensor  # (1, n, *shape)
    y: torch.Tensor  # (1, n, K)
    parts: list[slice]  # chunks of the n examples
    noise_factor: float  # c
    keys: torch.Tensor  # (R,), the seed of each network's noise stream
    step: int | torch.Tensor  # which step of the stream is drawn
    u: torch.Tensor | None = None  # (R, k, P), orthonormal: the directions of the projected noise models


Direction = Callable[[StepContext, Params, torch.Tensor | None], Sequence[torch.Tensor]]


def _normal(context: StepContext, size: int) -> torch.Tensor:
    """Draw the step's standard normal numbers, one row from each network's own stream: (R, size)."""
    step = torch.as_tensor(context.step, device=context.keys.device)
    return streams.normal(streams.words(context.keys, step), size, context.x.dtype)


def gradient(context: StepContext, params: Params, batch: torch.Tensor | None) -> Sequence[torch.Tensor]:
    """Full-batch gradient, per parameter (R, *shape)."""
    return full_gradient(context.objective, params, context.x, context.y, context.parts)


def sgd(context: StepContext, params: Params, batch: torch.Tensor | None) -> Sequence[torch.Tensor]:
    """Mini-batch gradients g_B for indices (R, b)."""
    assert batch is not None
    return context.objective.batch_gradient(params, context.x[0, batch], context.y[0, batch])


def gaussian(context: StepContext, params: Params, batch: torch.Tensor | None) -> Sequence[torch.Tensor]:
    """Full gradient plus Gaussian noise with the mini-batch covariance cΣ, by random weights on the examples."""
    n = context.x.shape[1]
    xi = _normal(context, n)
    weights = 1.0 / n + (xi - xi.mean(1, keepdim=True)) * (context.noise_factor / n) ** 0.5
    return full_gradient(context.objective, params, context.x, context.y, context.parts, weights)


def _coordinate_noise(context: StepContext, params: Params, isotropic: bool) -> Sequence[torch.Tensor]:
    mean, square = gradient_moments(context.objective, params, context.x, context.y, context.parts)
    variance = (square - mean.square()).clamp_min(0)
    if isotropic:
        variance = variance.mean(1, keepdim=True)
    noise = _normal(context, mean.shape[1]) * (context.noise_factor * variance).sqrt()
    return context.objective.network.views(mean + noise)


def diagonal(context: StepContext, params: Params, batch: torch.Tensor | None) -> Sequence[torch.Tensor]:
    """Full gradient plus Gaussian noise with the diagonal of the mini-batch covariance."""
    return _coordinate_noise(context, params, isotropic=False)


def isotropic(context: StepContext, params: Params, batch: torch.Tensor | None) -> Sequence[torch.Tensor]:
    """Full gradient plus isotropic Gaussian noise of the mini-batch noise's total variance."""
    return _coordinate_noise(context, params, isotropic=True)


def _projected(context: StepContext, params: Params, batch: torch.Tensor | None) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
    """Return g, ξ and Σ u(uᵀξ), flat (R, P)."""
    assert context.u is not None
    network = context.objective.network
    full = network.flatten(gradient(context, params, batch))
    xi = network.flatten(sgd(context, params, batch)) - full
    return full, xi, (context.u * (context.u * xi.unsqueeze(1)).sum(2, keepdim=True)).sum(1)


def along(context: StepContext, params: Params, batch: torch.Tensor | None) -> Sequence[torch.Tensor]:
    """Full gradient plus the part of the mini-batch noise along the top eigenvectors."""
    full, _, inside = _projected(context, params, batch)
    return context.objective.network.views(full + inside)


def without(context: StepContext, params: Params, batch: torch.Tensor | None) -> Sequence[torch.Tensor]:
    """Full gradient plus the mini-batch noise without its part along the top eigenvectors."""
    full, xi, inside = _projected(context, params, batch)
    return context.objective.network.views(full + xi - inside)


USES_U = {name for name, noise in catalogue.NOISES.items() if noise.projects}


def direction(noise: str) -> Direction:
    """Return what makes the update of one of ``catalogue.NOISES``."""
    return catalogue.NOISES[noise].load()


def directions(noise: str, top: int) -> int:
    """Return how many eigenvectors a noise model projects on.

    Args:
        noise: Its name.
        top: How many ``along_top`` and ``without_top`` take.
    """
    projects = catalogue.NOISES[noise].projects
    return top if projects == "top" else int(projects == "u")
