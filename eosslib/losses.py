"""Losses by name, per example, for stacked outputs and one-hot (or soft) targets.

``mse`` is ½‖f(x) − y‖², summed over the outputs, so that its Hessian's Gauss–Newton part is JᵀJ with no factor;
``cross-entropy`` is −Σ y log softmax f(x). The loss of a batch is the mean over its examples.
"""

from __future__ import annotations

from collections.abc import Callable

import torch

from eosslib.errors import ConfigError

Loss = Callable[[torch.Tensor, torch.Tensor], torch.Tensor]


def mse(outputs: torch.Tensor, targets: torch.Tensor) -> torch.Tensor:
    """Return ½‖f − y‖² per example: (…, K), (…, K) → (…)."""
    return 0.5 * (outputs - targets).square().sum(-1)


def cross_entropy(outputs: torch.Tensor, targets: torch.Tensor) -> torch.Tensor:
    """Return −Σₖ yₖ log softmax(f)ₖ per example: (…, K), (…, K) → (…)."""
    return -(targets * outputs.log_softmax(-1)).sum(-1)


LOSSES: dict[str, Loss] = {"mse": mse, "cross-entropy": cross_entropy}


def by_name(name: str) -> Loss:
    """Return a loss.

    Raises:
        ConfigError: The name is unknown.
    """
    if name not in LOSSES:
        raise ConfigError(f"unknown loss '{name}'; there are {', '.join(LOSSES)}")
    return LOSSES[name]
