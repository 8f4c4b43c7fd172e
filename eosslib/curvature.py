"""Hessian products and per-example gradient statistics of a stack of networks, over all examples, in bounded memory.

Nothing here subsamples: where all examples do not fit, they are taken in chunks. A Hessian product differentiates the
gradient's graph once more (Pearlmutter 1994); the graph is built once and kept for all products at the same parameters,
which halves their cost, as far as the memory budget goes; chunks beyond it are rebuilt at every product.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence

import torch
import torch.nn.functional as F

from eosslib.flat import Objective, Params, Tape

DEFAULT_MEMORY = 4 << 30  # bytes of retained graph
CPU_CHUNK = 32 << 20  # bytes of layer outputs a chunk; smaller ones pay more for calls than they gain in the caches
# Bytes a retained gradient graph holds, per byte of layer outputs (a test holds it against the autograd engine's own count).
GRAPH_FACTOR = 8


def chunks(objective: Objective, params: Params, x: torch.Tensor, memory: int = DEFAULT_MEMORY) -> list[slice]:
    """Cut the examples into chunks whose layer outputs stay within the budget (and, on the CPU, within its caches)."""
    n = x.shape[1]
    if n == 0:
        return []
    budget = memory // GRAPH_FACTOR
    if x.device.type == "cpu":
        budget = min(budget, CPU_CHUNK)
    size = max(1, min(n, budget // objective.network.output_bytes(params, x)))
    count = -(-n // size)
    size = -(-n // count)  # even chunks
    return [slice(start, min(start + size, n)) for start in range(0, n, size)]


def full_gradient(
    objective: Objective, params: Params, x: torch.Tensor, y: torch.Tensor, parts: list[slice], weights: torch.Tensor | None = None
) -> tuple[torch.Tensor, ...]:
    """Return the gradient of Σᵢ wᵢ ℓᵢ over all examples, per parameter (R, *shape); wᵢ = 1/n where no weights are given.

    Args:
        objective: Network and loss.
        params: Leaves that require gradients, each (R, *shape).
        x: Inputs (1, n, *shape).
        y: Targets (1, n, K).
        parts: Chunks of the n examples.
        weights: (R, n).
    """
    total: list[torch.Tensor] | None = None
    n = x.shape[1]
    for part in parts:
        losses = objective.example_losses(params, x[:, part], y[:, part])
        loss = losses.sum() / n if weights is None else (losses * weights[:, part]).sum()
        grads = torch.autograd.grad(loss, params)
        if total is None:
            total = list(grads)
        else:
            torch._foreach_add_(total, grads)
    assert total is not None
    return tuple(total)


def _inner(a: Sequence[torch.Tensor], b: Sequence[torch.Tensor]) -> torch.Tensor:
    """Inner product over all parameters and the whole stack.

    Differentiating it is what ``grad_outputs`` would do; but that makes torch import sympy, seconds in every job.
    """
    return torch.stack([(x * y).sum() for x, y in zip(a, b, strict=True)]).sum()


class Hessian:
    """The Hessian of the mean loss as an operator on a stack of vectors: (R, P) → (R, P), block-diagonal over the stack.

    Building it costs about one gradient, a product 1 to 2.

    Attributes:
        products: Number of products made so far.
        loss: Mean loss of each network (R,).
        gradient: Gradient of each network's mean loss (R, P).
    """

    def __init__(
        self, objective: Objective, theta: torch.Tensor, x: torch.Tensor, y: torch.Tensor, memory: int = DEFAULT_MEMORY
    ) -> None:
        """Build the gradient graphs.

        Args:
            objective: Network and loss.
            theta: Parameters (R, P).
            x: Inputs (1, n, *shape) shared by the stack, or (R, n, *shape), one set for each network.
            y: Targets (1, n, K) or (R, n, K).
            memory: Bytes that the retained graphs may hold.
        """
        self._objective, self._x, self._y = objective, x, y
        self._params = objective.network.leaves(theta.clone())
        self._parts = chunks(objective, self._params, x, memory)
        example = GRAPH_FACTOR * objective.network.output_bytes(self._params, x)
        self._retained: list[tuple[torch.Tensor, ...]] = []
        self._rebuilt: list[slice] = []
        self.products = 0
        self.loss = theta.new_zeros(len(theta))
        self.gradient = torch.zeros_like(theta)
        held = 0
        for part in self._parts:
            losses, grads = self._graph(part)
            held += example * (part.stop - part.start)
            self.loss += losses
            self.gradient += objective.network.flatten([g.detach() for g in grads])
            if held <= memory:
                self._retained.append(grads)
            else:
                self._rebuilt.append(part)

    def _graph(self, part: slice) -> tuple[torch.Tensor, tuple[torch.Tensor, ...]]:
        x, y = self._x[:, part], self._y[:, part]
        loss = self._objective.example_losses(self._params, x, y).sum(1) / self._x.shape[1]
        return loss.detach(), torch.autograd.grad(loss.sum(), self._params, create_graph=True)

    def _graphs(self) -> Iterator[tuple[tuple[torch.Tensor, ...], bool]]:
        for grads in self._retained:
            yield grads, True
        for part in self._rebuilt:
            yield self._graph(part)[1], False

    def __call__(self, v: torch.Tensor) -> torch.Tensor:
        """Return H v for each network: (R, P) → (R, P)."""
        self.products += 1
        network = self._objective.network
        views = network.views(v)
        result = torch.zeros_like(v)
        for grads, keep in self._graphs():
            # A parameter the gradient does not depend on (the last bias under mse) has a zero block.
            part = torch.autograd.grad(_inner(grads, views), self._params, retain_graph=keep, materialize_grads=True)
            result += network.flatten(part)
        return result


def directional_derivatives(
    objective: Objective, theta: torch.Tensor, v: torch.Tensor, x: torch.Tensor, y: torch.Tensor, memory: int = DEFAULT_MEMORY
) -> torch.Tensor:
    """Return vᵀ∇ℓᵢ for every network and example: (R, n).

    Two reverse passes: Σᵢ wᵢ vᵀ∇ℓᵢ is linear in the weights w, and its gradient with respect to w is what is wanted. Costs about
    two gradients and holds no n×P matrix.

    Args:
        objective: Network and loss.
        theta: Parameters (R, P).
        v: Directions (R, P).
        x: Inputs (1, n, *shape) or (R, n, *shape).
        y: Targets (1, n, K) or (R, n, K).
        memory: Bytes of intermediate results.
    """
    params, directions = objective.network.leaves(theta), objective.network.views(v)
    columns = []
    for part in chunks(objective, params, x, memory):
        losses = objective.example_losses(params, x[:, part], y[:, part])
        weights = torch.ones_like(losses, requires_grad=True)
        grads = torch.autograd.grad((losses * weights).sum(), params, create_graph=True)
        columns.append(torch.autograd.grad(_inner(grads, directions), weights)[0])
    return torch.cat(columns, dim=1)


def curvature_along_gradient(
    objective: Objective, theta: torch.Tensor, x: torch.Tensor, y: torch.Tensor
) -> tuple[torch.Tensor, torch.Tensor]:
    """Return g_Bᵀ H_B g_B and ‖g_B‖² for a stack of mini-batches, each (D,).

    Args:
        objective: Network and loss.
        theta: Parameters (D, P), one row a mini-batch.
        x: Inputs (D, b, *shape).
        y: Targets (D, b, K).
    """
    params = objective.network.leaves(theta)
    loss = objective.example_losses(params, x, y).mean(1).sum()
    grads = torch.autograd.grad(loss, params, create_graph=True)
    directions = [g.detach() for g in grads]
    products = torch.autograd.grad(_inner(grads, directions), params, materialize_grads=True)
    g, hg = objective.network.flatten(directions), objective.network.flatten(products)
    return (g * hg).sum(1), (g * g).sum(1)


def gradient_moments(
    objective: Objective, params: Params, x: torch.Tensor, y: torch.Tensor, parts: list[slice]
) -> tuple[torch.Tensor, torch.Tensor]:
    """Return the mean and the mean square of every coordinate of the per-example gradients ∇ℓᵢ: (R, P), (R, P).

    A linear layer's per-example gradient is the outer product of δᵢ and aᵢ, so the sum of its squares is one product of the
    squares (Goodfellow 2015, arXiv:1510.01799); a convolution's is formed example by example within a chunk. Costs less than
    two gradients; never holds an n×P matrix.

    Args:
        objective: Network and loss.
        params: Leaves that require gradients, each (R, *shape).
        x: Inputs (1, n, *shape).
        y: Targets (1, n, K).
        parts: Chunks of the n examples.
    """
    if objective.network.one_by_one and len(params[0]) > 1:
        rows = [tuple(p[r : r + 1].detach().requires_grad_() for p in params) for r in range(len(params[0]))]
        moments = [gradient_moments(objective, row, x, y, parts) for row in rows]
        return torch.cat([m for m, _ in moments]), torch.cat([s for _, s in moments])
    n = x.shape[1]
    mean, square = (objective.network.flatten(params).detach().zero_() for _ in range(2))
    for part in parts:
        tape: Tape = []
        loss = objective.loss(objective.network(params, x[:, part], tape), y[:, part]).sum()
        outputs = [output for _, _, output in tape]
        grads = torch.autograd.grad(loss, [*params, *outputs])
        squares: list[torch.Tensor] = []
        for (kind, layer_input, _), delta in zip(tape, grads[len(params) :], strict=True):
            squares += _squares(kind, layer_input.detach(), delta)
        mean += objective.network.flatten(grads[: len(params)])
        square += objective.network.flatten(squares)
    return mean / n, square / n


def _squares(kind: str, a: torch.Tensor, delta: torch.Tensor) -> list[torch.Tensor]:
    """Sum over examples of the squared per-example gradients of one layer's weight and bias."""
    if kind == "linear":
        return [delta.square().transpose(1, 2) @ a.square(), delta.square().sum(1)]
    weights, biases = [], []
    for run, delta_run in zip(a, delta, strict=True):
        patches = F.unfold(run, 3, padding=1)  # (B, C·9, H·W)
        per_example = delta_run.flatten(2) @ patches.transpose(1, 2)  # (B, O, C·9)
        weights.append(per_example.square().sum(0).unflatten(1, (run.shape[1], 3, 3)))
        biases.append(delta_run.flatten(2).sum(2).square().sum(0))
    return [torch.stack(weights), torch.stack(biases)]
