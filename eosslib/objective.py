"""A network with a loss: what is differentiated, by written-out layers where there are such, else automatically."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import nn

from eosslib.automatic import AutomaticLinearization, ModuleNetwork
from eosslib.errors import ConfigError
from eosslib.flat import Linearization, StackedNetwork, unsupported
from eosslib.losses import Loss

Network = StackedNetwork | ModuleNetwork
Passes = Linearization | AutomaticLinearization


class Objective:
    """A network with a loss: the function whose gradient, Hessian and noise are measured."""

    def __init__(self, network: Network, loss: Loss) -> None:
        """Combine a network with a per-example loss."""
        self.network = network
        self.loss = loss

    @staticmethod
    def of(module: nn.Module, loss: Loss) -> Objective:
        """Combine a module with a loss: with written-out layers where there are such, else with automatic differentiation.

        The latter also where parameters are frozen, which then do not count, or shared between layers, which count once.

        Raises:
            ConfigError: No parameter requires a gradient.
        """
        network: Network = StackedNetwork(module) if unsupported(module) is None else ModuleNetwork(module)
        if not network.size:
            raise ConfigError("the network has no parameters that require a gradient")
        return Objective(network, loss)

    def linearize(
        self, params: Sequence[torch.Tensor], x: torch.Tensor, y: torch.Tensor, weights: torch.Tensor | float, rows: slice
    ) -> Passes:
        """Return forward and backward pass of one block ``rows`` of the stack.

        Args:
            params: Each (R, *shape).
            x: (R, B, *shape) or (1, B, *shape).
            y: (R, B, K) or (1, B, K).
            weights: (R, B), or one number.
            rows: One of ``network.blocks(R)``.
        """
        return self.network.linearization(self.loss, *_block(params, x, y, weights, rows))

    def batch_gradient(
        self, params: Sequence[torch.Tensor], x: torch.Tensor, y: torch.Tensor, weights: torch.Tensor | float | None = None
    ) -> list[torch.Tensor]:
        """Return the gradient of each network's Σᵢ wᵢ ℓᵢ over its own batch, per parameter (R, *shape); wᵢ = 1/B by default.

        Args:
            params: Each (R, *shape).
            x: (R, B, *shape) or (1, B, *shape).
            y: (R, B, K) or (1, B, K).
            weights: (R, B), or one number.
        """
        weights = 1.0 / x.shape[1] if weights is None else weights
        blocks = self.network.blocks(len(params[0]))
        grads = [self.network.gradient(self.loss, *_block(params, x, y, weights, rows)) for rows in blocks]
        return grads[0] if len(grads) == 1 else [torch.cat(parts) for parts in zip(*grads, strict=True)]


def _block(
    params: Sequence[torch.Tensor], x: torch.Tensor, y: torch.Tensor, weights: torch.Tensor | float, rows: slice
) -> tuple[list[torch.Tensor], torch.Tensor, torch.Tensor, torch.Tensor | float]:
    """Cut one block out of a stack; arguments as for ``Objective.linearize``."""
    stack = len(params[0])
    x, y = x.expand(stack, *x.shape[1:])[rows], (y[rows] if len(y) == stack else y)
    return [p[rows] for p in params], x, y, weights[rows] if isinstance(weights, torch.Tensor) else weights
