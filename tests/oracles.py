"""Slow, independent ways to compute what eosslib computes: plain ``nn.Sequential``, dense float64 matrices, all batches listed."""

from __future__ import annotations

import functools
import itertools
from dataclasses import dataclass
from typing import Any

import torch
from torch import nn
from torch.func import jacrev

from eosslib import catalogue, losses, models
from eosslib.curvature import Point
from eosslib.eigen import Operator
from eosslib.flat import StackedNetwork
from eosslib.objective import Objective

WRITTEN_OUT = ("fc-tanh", "fc-relu", "cnn", "cnn5", "cnn-tanh")  # whose layers are written out in ``layers``
OF_TEXT = [name for name, row in catalogue.MODELS.items() if row.reads == "text"]
EVERY = [(model, loss) for model in WRITTEN_OUT for loss in catalogue.LOSSES]


@dataclass(frozen=True, eq=False)
class Problem:
    """A stack of small float64 networks with data, and what is to be known about them without the library."""

    module: nn.Sequential
    loss: str
    theta: torch.Tensor  # (R, P)
    x: torch.Tensor  # (1, n, *shape)
    y: torch.Tensor  # (1, n, K)

    @property
    def objective(self) -> Objective:
        """The library's view of the same network and loss."""
        return Objective(StackedNetwork(self.module), losses.by_name(self.loss))

    def at(self, **changes: Any) -> Point:
        """The library's view of these networks at their data; or at others, or with another memory."""
        parts = {"theta": self.theta, "x": self.x, "y": self.y, **changes}
        return Point(parts.pop("objective", None) or self.objective, **parts)

    @property
    def n(self) -> int:
        return self.x.shape[1]

    def outputs(self, theta: torch.Tensor, x: torch.Tensor) -> torch.Tensor:
        """f(x) of one network: (P,), (B, *shape) → (B, K), through the module's own layers."""
        shapes = {name: p.shape for name, p in self.module.named_parameters()}
        parts = theta.split([shape.numel() for shape in shapes.values()])
        values = {name: part.reshape(shape) for (name, shape), part in zip(shapes.items(), parts, strict=True)}
        return torch.func.functional_call(self.module, values, (x,))

    def example_losses(self, theta: torch.Tensor, indices: list[int] | None = None) -> torch.Tensor:
        """ℓᵢ of one network, with the losses written out once more: (P,) → (B,)."""
        chosen = slice(None) if indices is None else indices
        x, y = self.x[0, chosen], self.y[0, chosen]
        f = self.outputs(theta, x)
        if self.loss == "mse":
            return torch.stack([(row @ row) / 2 for row in f - y])
        return nn.functional.cross_entropy(f, y.argmax(1), reduction="none")

    @functools.cache  # noqa: B019 (a handful of small problems, asked again and again)
    def example_gradients(self, row: int = 0) -> torch.Tensor:
        """∇ℓᵢ of one network: (n, P)."""
        return torch.autograd.functional.jacobian(self.example_losses, self.theta[row])

    def hessian(self, row: int = 0, indices: list[int] | None = None) -> torch.Tensor:
        """Dense Hessian of one network's mean loss over some examples: (P, P)."""
        return self._hessian(row, None if indices is None else tuple(indices))

    @functools.cache  # noqa: B019
    def _hessian(self, row: int, indices: tuple[int, ...] | None) -> torch.Tensor:
        chosen = None if indices is None else list(indices)
        return torch.autograd.functional.hessian(lambda t: self.example_losses(t, chosen).mean(), self.theta[row])

    def spectrum(self, theta: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
        """Eigenvalues, ascending (P,), and eigenvectors (P, P) of the dense Hessian of the mean loss at any point, and ∇L (P,)."""
        gradient = torch.autograd.functional.jacobian(lambda t: self.example_losses(t).mean(), theta)
        hessian = torch.autograd.functional.hessian(lambda t: self.example_losses(t).mean(), theta)
        return *torch.linalg.eigh(hessian), gradient

    def third(self, theta: torch.Tensor) -> torch.Tensor:
        """∇³L of the mean loss at any point, by differentiating three times: (P, P, P)."""
        return jacrev(jacrev(jacrev(lambda t: self.example_losses(t).mean())))(theta)

    def covariance(self, row: int = 0) -> torch.Tensor:
        """Covariance Σ of the per-example gradients, divisor n: (P, P)."""
        return torch.cov(self.example_gradients(row).T, correction=0)


@functools.cache
def problem(
    model: str = "fc-tanh",
    loss: str = "mse",
    *,
    n: int = 12,
    stack: int = 1,
    shape: tuple[int, int, int] = (2, 4, 4),
    outputs: int = 3,
    width: int = 4,
    depth: int = 2,
    seed: int = 0,
) -> Problem:
    """Make a small problem; the same arguments give the same one, not to be changed in place."""
    sizes = {"width": width, "depth": depth, "hidden": width}
    modules = [models.initialised(model, shape, outputs, seed=seed + r, **sizes).double() for r in range(stack)]
    vectors = [nn.utils.parameters_to_vector(module.parameters()).detach() for module in modules]
    stream = torch.Generator().manual_seed(100 + seed)
    x = torch.randn(1, n, *shape, generator=stream, dtype=torch.float64)
    labels = torch.randint(outputs, (n,), generator=stream)
    return Problem(modules[0], loss, torch.stack(vectors), x, nn.functional.one_hot(labels, outputs).double().unsqueeze(0))


def tiny_problem(model: str = "fc-tanh", loss: str = "mse", stack: int = 2) -> Problem:
    """So small that its dense third derivatives can be held."""
    return problem(model, loss, n=5, shape=(1, 2, 4), width=2, depth=1, stack=stack)


def all_batches(n: int, batch_size: int) -> list[list[int]]:
    """Every mini-batch without replacement there is."""
    return [list(batch) for batch in itertools.combinations(range(n), batch_size)]


def top_vector(matrix: torch.Tensor) -> torch.Tensor:
    """Unit eigenvector of the largest eigenvalue."""
    return torch.linalg.eigh(matrix).eigenvectors[:, -1]


def randn(*shape: int, seed: int = 0) -> torch.Tensor:
    """Standard normal numbers in float64 from a seed."""
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)


DECAYING = [10.0 / (i + 1) for i in range(60)]
SPECTRA = {
    "decaying": DECAYING,
    "clustered": [5.0, 4.99, 4.98, 4.97, *[1.0 - 0.01 * i for i in range(56)]],
    "mixed signs, largest in size negative": [3.0, 2.5, 2.0, *[0.1] * 20, *[-10.0 - i for i in range(20)]],
    "all negative": [-0.5 - 0.2 * i for i in range(40)],
    "low rank": [7.0, 3.0, 1.0, *[0.0] * 40],
    "tiny scale": [1e-9 * value for value in DECAYING],
    "size one": [-2.0],
}


def matrix(spectrum: list[float] | torch.Tensor, seed: int = 0) -> torch.Tensor:
    """A symmetric matrix with this spectrum and random eigenvectors: its k-th column belongs to the k-th value."""
    return (
        rotation(len(spectrum), seed) @ torch.diag(torch.as_tensor(spectrum, dtype=torch.float64)) @ rotation(len(spectrum), seed).T
    )


def rotation(size: int, seed: int = 0) -> torch.Tensor:
    return torch.linalg.qr(randn(size, size, seed=seed))[0]


def stacked(*matrices: torch.Tensor) -> Operator:
    whole = torch.stack(matrices)
    return lambda v: (whole @ v.unsqueeze(2)).squeeze(2)
