"""Where the edge of stability is for an optimizer, read from its own state: SGD, heavy-ball and Nesterov momentum, Adam.

On a quadratic of curvature λ full-batch training diverges above a threshold that follows from the optimizer's recurrence: 2/η for
gradient descent, (2 + 2μ)/η with heavy-ball and (2 + 2μ)/(η(1 + 2μ)) with Nesterov momentum μ (Cohen et al. 2021,
arXiv:2103.00065, theorem 1); for Adam it is the preconditioned Hessian P^-½ H P^-½ whose top eigenvalue is held against
(2 + 2β₁)/((1 − β₁)η) (Cohen et al. 2022, arXiv:2207.14484).
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import torch

from eosslib import theory, updates
from eosslib.errors import ConfigError


@dataclass(frozen=True)
class Edge:
    """The stability threshold of an optimizer as it is now.

    Attributes:
        lr: η.
        threshold: Curvature above which it is unstable, infinite for η = 0; what weight decay adds to the curvature is taken off.
        scale: P^-½, per parameter, where the optimizer is preconditioned and has taken a step: the threshold is for P^-½ H P^-½.
        momentum: μ of SGD, for which the closed form of the gap is known; None for Nesterov's and for Adam.
        decay: Weight decay λ: what is trained is L + λ‖θ‖²/2.
    """

    lr: float
    threshold: float
    scale: list[torch.Tensor] | None
    momentum: float | None
    decay: float = 0.0


def edge(optimizer: torch.optim.Optimizer, parameters: Sequence[torch.Tensor]) -> Edge:
    """Read the threshold from an optimizer.

    Args:
        optimizer: ``torch.optim.SGD`` (also with momentum, Nesterov, weight decay) or ``torch.optim.Adam``.
        parameters: The parameters that are trained.

    Raises:
        ConfigError: Its threshold is not known, or differs from parameter to parameter.
    """
    kind = type(optimizer)
    if kind not in (torch.optim.SGD, torch.optim.Adam):
        raise ConfigError(f"the stability threshold of {kind.__name__} is not known here: SGD and Adam are")
    known = {id(p) for group in optimizer.param_groups for p in group["params"]}
    if any(id(p) not in known for p in parameters):
        raise ConfigError("the optimizer does not train all parameters that require a gradient: freeze the others first")
    settings = [{k: v for k, v in group.items() if k not in ("params", "param_names")} for group in optimizer.param_groups]
    if any(other != settings[0] for other in settings[1:]):
        raise ConfigError("the optimizer's parameter groups have different settings: there is no single threshold")
    if settings[0]["maximize"]:
        raise ConfigError("the optimizer climbs: with maximize=True there is no stability threshold")
    return _adam(optimizer, settings[0], parameters) if kind is torch.optim.Adam else _sgd(settings[0])


def _sgd(group: dict[str, Any]) -> Edge:
    lr, momentum = float(group["lr"]), float(group["momentum"])
    if group["dampening"]:
        raise ConfigError("the threshold of SGD with dampening is not known here: set dampening=0")
    nesterov, decay = bool(group["nesterov"]), float(group["weight_decay"])
    threshold = theory.momentum_threshold(lr, momentum, nesterov) if lr else math.inf  # a warm-up may begin at 0
    return Edge(lr, threshold - decay, None, None if nesterov else momentum, decay)


def _adam(optimizer: torch.optim.Optimizer, group: dict[str, Any], parameters: Sequence[torch.Tensor]) -> Edge:
    if group["amsgrad"] or group["weight_decay"]:
        raise ConfigError("the threshold of Adam with amsgrad or weight_decay is not known here: leave them out")
    lr, (beta1, beta2) = float(group["lr"]), map(float, group["betas"])
    scale = None
    # By ``get``: to look an empty state up by its key would make an entry of it.
    if all("exp_avg_sq" in optimizer.state.get(p, {}) for p in parameters):
        scale = []
        for p in parameters:
            state = optimizer.state[p]
            step = float(state["step"])
            scale.append(updates.adam_scale(state["exp_avg_sq"], step, beta1, beta2, group["eps"]).detach())
    return Edge(lr, theory.adam_threshold(lr, beta1) if lr else math.inf, scale, None)
