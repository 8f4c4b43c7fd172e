"""Hessian products and per-example gradient statistics of a stack of networks, over all examples, in bounded memory.

Nothing here subsamples: where all examples do not fit, they are taken in chunks. A Hessian product is the tangent of the
gradient's backward pass; the pass is made once and kept for all products at the same parameters, as far as the memory budget
goes; chunks beyond it are made again at every product.
"""

from __future__ import annotations

import dataclasses
import functools
from collections.abc import Callable, Iterator, Sequence

import torch

from eosslib.automatic import check_memory
from eosslib.devices import DEFAULT_MEMORY
from eosslib.flat import Params
from eosslib.objective import Objective, Passes

CPU_CHUNK = 32 << 20  # bytes of a network's layer outputs a chunk; smaller ones pay more for calls than they gain in the caches
# Bytes a kept pass and a product need at the same time, per byte of layer outputs: outputs, gradients and indices are kept
# (a test holds GRAPH_FACTOR against what is), their tangents come and go.
GRAPH_FACTOR = 4


def chunks(objective: Objective, params: Sequence[torch.Tensor], x: torch.Tensor, memory: int = DEFAULT_MEMORY) -> list[slice]:
    """Cut the examples into chunks whose layer outputs stay within the budget (and, on the CPU, within its caches).

    Args:
        objective: Network and loss.
        params: Each (R, *shape).
        x: Inputs (1, n, *shape) or (R, n, *shape).
        memory: Bytes that a chunk's pass and a product may hold.

    Returns:
        Slices of the n examples; a single one with batch normalisation, which couples them; none where n is 0.

    Raises:
        ConfigError: Batch normalisation needs all examples in one pass, and that does not fit the memory.
    """
    n, network, stack = x.shape[1], objective.network, len(params[0])
    if n == 0:
        return []
    each = network.output_bytes(params, x) // stack
    if network.couples_examples:
        check_memory(n * each * GRAPH_FACTOR, memory)
        return [slice(0, n)]
    budget = memory // GRAPH_FACTOR // (1 if network.one_by_one else stack)
    if x.device.type == "cpu":
        budget = min(budget, CPU_CHUNK)  # of one network: how a run's examples are summed does not depend on its stack
    size = max(1, min(n, budget // each))
    count = -(-n // size)
    size = -(-n // count)  # even chunks
    return [slice(start, min(start + size, n)) for start in range(0, n, size)]


def full_gradient(
    objective: Objective,
    params: Sequence[torch.Tensor],
    x: torch.Tensor,
    y: torch.Tensor,
    parts: list[slice],
    weights: torch.Tensor | None = None,
) -> list[torch.Tensor]:
    """Return the gradient of Σᵢ wᵢ ℓᵢ over all examples, per parameter (R, *shape); wᵢ = 1/n where no weights are given.

    Args:
        objective: Network and loss.
        params: Each (R, *shape).
        x: Inputs (1, n, *shape).
        y: Targets (1, n, K).
        parts: Chunks of the n examples.
        weights: (R, n).
    """
    total: list[torch.Tensor] = []
    n = x.shape[1]
    for part in parts:
        grads = objective.batch_gradient(params, x[:, part], y[:, part], 1.0 / n if weights is None else weights[:, part])
        if total:
            torch._foreach_add_(total, grads)
        else:
            total = grads
    return total


@dataclasses.dataclass(frozen=True, eq=False)
class Point:
    """R networks at their parameters and the examples their loss is the mean over: where everything is measured.

    The parameters must stay as they are from the first call of ``hessian`` on.
    """

    objective: Objective
    theta: torch.Tensor  # (R, P)
    x: torch.Tensor  # (1, n, *shape), shared by the stack, or (R, n, *shape), one set for each network
    y: torch.Tensor  # (1, n, K) or (R, n, K)
    memory: int = DEFAULT_MEMORY  # bytes that kept passes may hold

    def at(self, theta: torch.Tensor) -> Point:
        """Return the same networks at other parameters (R, P)."""
        return dataclasses.replace(self, theta=theta)

    def drawn(self, row: int, indices: torch.Tensor) -> Point:
        """Return one of the networks at D mini-batches of the shared examples, indices (D, b): a stack of D."""
        theta = self.theta[row].expand(len(indices), -1)
        return Point(self.objective, theta, self.x[0, indices], self.y[0, indices], self.memory)

    def hessian(self) -> Hessian:
        """Return the Hessian here, whose passes are made once and kept.

        Raises:
            ConfigError: Batch normalisation needs all examples in one pass, and that does not fit the memory.
        """
        return self._hessian

    @functools.cached_property
    def _hessian(self) -> Hessian:
        return Hessian(self)


class Hessian:
    """The Hessian of the mean loss as an operator on a stack of vectors: (R, P) → (R, P), block-diagonal over the stack.

    Building it costs a third to two thirds of a gradient, a product one to two gradients.

    Attributes:
        size: P.
        products: Number of products made so far.
        loss: Mean loss of each network (R,).
        accuracy: Fraction of examples whose largest output is that of the largest target (R,).
    """

    def __init__(self, point: Point) -> None:
        """Make the forward and backward passes; what ``point.hessian()`` does once.

        Raises:
            ConfigError: Batch normalisation needs all examples in one pass, and that does not fit the memory.
        """
        # Not the point itself, which holds its Hessian: passes are to be freed at once, not when a cycle is found.
        objective, theta, x, memory = point.objective, point.theta, point.x, point.memory
        self._objective, self._x, self._y = objective, x, point.y
        self._params = objective.network.views(theta.clone())
        self._passes: list[tuple[slice, slice, Passes | None]] = []
        self.size, self.products = theta.shape[1], 0
        self.loss, self.accuracy = theta.new_zeros(len(theta)), theta.new_zeros(len(theta))
        n, held = x.shape[1], 0
        for rows in objective.network.blocks(len(theta)):
            for part in chunks(objective, self._params, x, memory):
                made = self._linearize(rows, part)
                held += made.nbytes
                self._passes.append((rows, part, made if held <= memory else None))
                self.loss[rows] += made.losses.sum(1) / n
                self.accuracy[rows] += made.right.sum(1)
        self.accuracy /= n

    def _linearize(self, rows: slice, part: slice) -> Passes:
        n = self._x.shape[1]
        return self._objective.linearize(self._params, self._x[:, part], self._y[:, part], 1.0 / n, rows)

    def _linearizations(self) -> Iterator[tuple[slice, slice, Passes]]:
        for rows, part, made in self._passes:
            yield rows, part, self._linearize(rows, part) if made is None else made

    def __call__(self, v: torch.Tensor) -> torch.Tensor:
        """Return H v for each network: (R, P) → (R, P)."""
        return self._sum(v, lambda made, direction: made.product(direction))

    def with_slopes(self, v: torch.Tensor) -> torch.Tensor:
        """Return H v followed by the slopes vᵀ∇ℓᵢ, which the product comes by: (R, P) → (R, P + n)."""
        self.products += 1
        network, result = self._objective.network, v.new_zeros(len(v), self.size + self._x.shape[1])
        for rows, part, made in self._linearizations():
            product, slopes = made.product_and_slopes(network.views(v[rows]))
            result[rows, : self.size] += network.flatten(product)
            result[rows, self.size :][:, part] = slopes
        return result

    def gauss_newton(self, v: torch.Tensor) -> torch.Tensor:
        """Return (1/n) Σᵢ JᵢᵀAᵢJᵢ v, the part of the Hessian without the networks' own curvature: (R, P) → (R, P)."""
        return self._sum(v, lambda made, direction: made.gauss_newton(direction))

    def ntk(self, v: torch.Tensor) -> torch.Tensor:
        """Return (1/n) Σᵢ JᵢᵀJᵢ v: (R, P) → (R, P).

        Its eigenvalues, other than zero, are those of the neural tangent kernel JJᵀ/n over all examples and outputs (nK × nK).
        """
        return self._sum(v, lambda made, direction: made.gauss_newton(direction, middle=False))

    def _sum(self, v: torch.Tensor, product: Callable[[Passes, Params], list[torch.Tensor]]) -> torch.Tensor:
        self.products += 1
        network, blocks = self._objective.network, list[torch.Tensor]()
        for rows, part, made in self._linearizations():
            flat = network.flatten(product(made, network.views(v[rows])))
            if part.start:
                blocks[-1] += flat
            else:  # the first chunk of the next block; a sum begun with zeros costs small networks a quarter of a product
                blocks.append(flat)
        return blocks[0] if len(blocks) == 1 else torch.cat(blocks)

    def gradient(self) -> torch.Tensor:
        """Return the gradient of each network's mean loss (R, P)."""
        result = torch.zeros_like(self._objective.network.flatten(self._params))
        for rows, _, made in self._linearizations():
            result[rows] += self._objective.network.flatten(made.gradient())
        return result

    def slopes(self, v: torch.Tensor) -> torch.Tensor:
        """Return vᵀ∇ℓᵢ for each network and example: (R, P) → (R, n). Costs a third of a gradient to a whole one."""
        result = v.new_empty(len(v), self._x.shape[1])
        for rows, part, made in self._linearizations():
            result[rows, part] = made.slopes(self._objective.network.views(v[rows]))
        return result


def curvature_along_gradient(point: Point) -> tuple[torch.Tensor, torch.Tensor]:
    """Return gᵀHg and ‖g‖² of each network, each (R,); nothing of its passes is kept."""
    network, params = point.objective.network, point.objective.network.views(point.theta)
    curvatures, squares = [], []
    for rows in network.blocks(len(point.theta)):
        made = point.objective.linearize(params, point.x, point.y, 1.0 / point.x.shape[1], rows)
        gradient = made.gradient()
        g, hg = network.flatten(gradient), network.flatten(made.product(gradient))
        curvatures.append((g * hg).sum(1))
        squares.append((g * g).sum(1))
    return torch.cat(curvatures), torch.cat(squares)


def gradient_moments(
    objective: Objective, params: Params, x: torch.Tensor, y: torch.Tensor, parts: list[slice]
) -> tuple[torch.Tensor, torch.Tensor]:
    """Return the mean and the mean square of every coordinate of the per-example gradients ∇ℓᵢ: (R, P), (R, P).

    Costs less than two gradients; never holds an n×P matrix.

    Args:
        objective: Network and loss.
        params: Each (R, *shape).
        x: Inputs (1, n, *shape).
        y: Targets (1, n, K).
        parts: Chunks of the n examples.
    """
    n, network = x.shape[1], objective.network
    mean, square = (torch.zeros_like(network.flatten(params)) for _ in range(2))
    for part in parts:
        for rows in network.blocks(len(mean)):
            made = objective.linearize(params, x[:, part], y[:, part], 1.0, rows)
            mean[rows] += network.flatten(made.gradient())
            square[rows] += network.flatten(made.squares())
    return mean / n, square / n


def third_derivative(point: Point, v: torch.Tensor, w: torch.Tensor) -> torch.Tensor:
    """Return ∇³L[v, w] = ∇_θ(vᵀ∇²L(θ)w) at fixed directions v and w (R, P): (R, P).

    For v = w = u, a unit top eigenvector, it is the gradient of the sharpness ∇S (self-stabilization paper, §3). Differentiates
    the written-out Hessian product automatically, chunk by chunk; costs about five gradients.

    Raises:
        ConfigError: Batch normalisation needs all examples in one pass, and that does not fit the memory.
    """
    objective, theta, x, y = point.objective, point.theta, point.x, point.y
    network, result = objective.network, torch.zeros_like(theta)
    parts = chunks(objective, network.views(theta), x, point.memory // 4)  # the graph keeps every tangent besides
    for rows in network.blocks(len(theta)):
        left, right = network.views(v[rows]), network.views(w[rows])
        for part in parts:
            leaf = theta[rows].clone().requires_grad_()
            made = objective.linearize(network.views(leaf), x[:, part], y[:, part], 1.0 / x.shape[1], slice(0, len(leaf)))
            curved = torch.stack([(a * b).sum() for a, b in zip(left, made.product(right), strict=True)]).sum()
            result[rows] += torch.autograd.grad(curved, leaf)[0]
    return result
