"""The losses named in ``catalogue``, per example, for stacked outputs and one-hot (or soft) targets, with their derivatives.

``mse`` is ½‖f(x) − y‖², summed over the outputs, so that its Hessian's Gauss–Newton part is JᵀJ with no factor;
``cross-entropy`` is −Σ y log softmax f(x). The loss of a batch is the mean over its examples.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

import torch

from eosslib import catalogue
from eosslib.errors import ConfigError


@dataclass(frozen=True)
class Loss:
    """A loss ℓ(f, y) of outputs f and targets y, both (…, K)."""

    value: Callable[[torch.Tensor, torch.Tensor], torch.Tensor]  # ℓ: (…)
    gradient: Callable[[torch.Tensor, torch.Tensor], torch.Tensor]  # ∂ℓ/∂f: (…, K)
    curvature: Callable[[torch.Tensor, torch.Tensor, torch.Tensor], torch.Tensor]  # (∂²ℓ/∂f²) v for v (…, K): (…, K)
    right: Callable[[torch.Tensor, torch.Tensor], torch.Tensor] = lambda f, y: f.argmax(-1) == y.argmax(-1)  # rightly classified


def mse(outputs: torch.Tensor, targets: torch.Tensor) -> torch.Tensor:
    """Return ½‖f − y‖² per example: (…, K), (…, K) → (…)."""
    return 0.5 * (outputs - targets).square().sum(-1)


def _mse_gradient(outputs: torch.Tensor, targets: torch.Tensor) -> torch.Tensor:
    return outputs - targets


def _mse_curvature(outputs: torch.Tensor, targets: torch.Tensor, v: torch.Tensor) -> torch.Tensor:
    return v


def cross_entropy(outputs: torch.Tensor, targets: torch.Tensor) -> torch.Tensor:
    """Return −Σₖ yₖ log softmax(f)ₖ per example: (…, K), (…, K) → (…)."""
    return -(targets * outputs.log_softmax(-1)).sum(-1)


def _cross_entropy_gradient(outputs: torch.Tensor, targets: torch.Tensor) -> torch.Tensor:
    return outputs.softmax(-1) * targets.sum(-1, keepdim=True) - targets


def _cross_entropy_curvature(outputs: torch.Tensor, targets: torch.Tensor, v: torch.Tensor) -> torch.Tensor:
    p = outputs.softmax(-1)
    return targets.sum(-1, keepdim=True) * p * (v - (p * v).sum(-1, keepdim=True))


MSE = Loss(mse, _mse_gradient, _mse_curvature)
CROSS_ENTROPY = Loss(cross_entropy, _cross_entropy_gradient, _cross_entropy_curvature)


def by_name(name: str) -> Loss:
    """Return a loss.

    Raises:
        ConfigError: The name is unknown.
    """
    if name not in catalogue.LOSSES:
        raise ConfigError(f"unknown loss '{name}'; there are {', '.join(catalogue.LOSSES)}")
    return catalogue.LOSSES[name].load()
