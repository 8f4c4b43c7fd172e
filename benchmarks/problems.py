"""Symmetric matrices whose largest eigenvalue is easily missed: Hessians of small networks, and chosen spectra."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator
from dataclasses import dataclass

import torch
from torch import nn

from eosslib.eigen import NEARBY, Eigenpairs, top_eigenpairs
from eosslib.probing import Probe


@dataclass(frozen=True)
class Sequence:
    """Matrices to solve for one after the other, each from what the one before has left."""

    matrices: torch.Tensor  # (T, P, P), float32
    start: torch.Tensor  # (s, P), where the first solve starts from besides its probe; s may be 0

    def truths(self) -> torch.Tensor:
        """The largest eigenvalue and ‖A‖ of every matrix, in float64: (T, 2)."""
        values = torch.linalg.eigvalsh(self.matrices.double())
        return torch.stack([values[:, -1], values.abs().amax(1)], dim=1)

    def solve(self, seed: int, *, probing: bool = True) -> Iterator[Eigenpairs]:
        """Solve as a training's measurements do; without probing as they did before there was any."""
        generator, size = torch.Generator().manual_seed(seed), self.matrices.shape[1]
        start, probe = self.start.unsqueeze(0), Probe(torch.randn(1, size, generator=generator))
        for matrix in self.matrices:
            given = start if probing or start.shape[1] else probe.vector.unsqueeze(1)
            pairs = top_eigenpairs(lambda v, a=matrix: v @ a, given, nearby=NEARBY, probe=probe if probing else None)  # type: ignore[misc]
            yield pairs
            start, left = pairs.starts, pairs.probe
            probe = Probe.carried(left, torch.randn(1, size, generator=generator)) if probing else probe

    def errors(self, seed: int, *, probing: bool = True) -> list[tuple[float, int]]:
        """(λ − λ₁)/‖A‖ and the number of products of every solve."""
        truths = self.truths().tolist()
        found = self.solve(seed, probing=probing)
        return [((float(p.values) - top) / (norm or 1.0), int(p.products)) for p, (top, norm) in zip(found, truths, strict=True)]


# --- networks ----------------------------------------------------------------------------------------------------------------


def hessian(model: nn.Module, loss: nn.Module, inputs: tuple[torch.Tensor, ...], targets: torch.Tensor) -> torch.Tensor:
    """Dense Hessian of the mean loss, taken in float64: (P, P), float32."""
    shapes = {name: p.shape for name, p in model.named_parameters()}
    flat = torch.cat([p.detach().flatten() for p in model.parameters()]).double()
    inputs = tuple(t.double() for t in inputs)
    targets = targets.double() if targets.is_floating_point() else targets

    def value(theta: torch.Tensor) -> torch.Tensor:
        parts = theta.split([s.numel() for s in shapes.values()])
        params = {name: part.view(shape) for (name, shape), part in zip(shapes.items(), parts, strict=True)}
        return loss(torch.func.functional_call(model, params, inputs), targets)

    dense = torch.func.jacrev(torch.func.jacrev(value))(flat)
    return ((dense + dense.T) / 2).float()


def fresh(seed: int) -> Sequence:
    """A network at initialisation with squared error: several eigenvalues lie within a few per cent."""
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        model = nn.Sequential(nn.Linear(5, 24), nn.Tanh(), nn.Linear(24, 3))
        x = torch.randn(60, 5)
    matrix = hessian(model, nn.MSELoss(), (x,), torch.sin(2 * x[:, :3] * x[:, 2:5]))
    return Sequence(matrix.unsqueeze(0), matrix[:0])


def classes(seed: int) -> Sequence:
    """Cross-entropy at initialisation: about as many eigenvalues close together as there are classes."""
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        model = nn.Sequential(nn.Linear(8, 12), nn.Tanh(), nn.Linear(12, 6))
        x = torch.randn(90, 8)
    matrix = hessian(model, nn.CrossEntropyLoss(), (x,), torch.arange(90) % 6)
    return Sequence(matrix.unsqueeze(0), matrix[:0])


class TwoTasks(nn.Module):
    """Two networks side by side, whose eigenvalues cross while both train."""

    def __init__(self) -> None:
        super().__init__()
        self.a, self.b = (nn.Sequential(nn.Linear(5, 16), nn.Tanh(), nn.Linear(16, 1)) for _ in range(2))

    def forward(self, x: torch.Tensor, z: torch.Tensor) -> torch.Tensor:
        return torch.cat([self.a(x), self.b(z)], 1)


def crossing(seed: int, every: int = 100, steps: int = 1000) -> Sequence:
    """Along a training in which another eigenvalue overtakes the one that is followed, again and again."""
    matrices = []
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        model, loss = TwoTasks(), nn.MSELoss()
        x, z = torch.randn(60, 5), torch.randn(60, 5)
        y = torch.stack([torch.sin(2 * x.sum(1)), 2 * torch.sin(3 * z.sum(1))], 1)
        optimizer = torch.optim.SGD(model.parameters(), lr=0.1)
        for step in range(steps + 1):
            if step % every == 0:
                matrices.append(hessian(model, loss, (x, z), y))
            rows = torch.randperm(60)[:10]
            optimizer.zero_grad()
            loss(model(x[rows], z[rows]), y[rows]).backward()
            optimizer.step()
    return Sequence(torch.stack(matrices), matrices[0][:0])


# --- chosen spectra ----------------------------------------------------------------------------------------------------------


class Chosen:
    """Random numbers of one problem with a chosen spectrum."""

    def __init__(self, seed: int) -> None:
        self.generator = torch.Generator().manual_seed(seed)
        self.size = self.integer(60, 200)

    def integer(self, low: int, high: int) -> int:
        return int(torch.randint(low, high + 1, (), generator=self.generator))

    def uniform(self, *shape: int) -> torch.Tensor:
        return torch.rand(*shape, generator=self.generator, dtype=torch.float64)

    def rotation(self) -> torch.Tensor:
        """Random eigenvectors, as columns."""
        return torch.linalg.qr(torch.randn(self.size, self.size, generator=self.generator, dtype=torch.float64))[0]

    def cluster(self) -> torch.Tensor:
        """2 to 12 eigenvalues from 1 downwards, with relative gaps of 1e-4 to 1e-2."""
        gaps = 10 ** (-4 + 2 * self.uniform(self.integer(1, 11)))
        return torch.cat([torch.ones(1, dtype=torch.float64), (1 - gaps).cumprod(0)])

    def spectrum(self, top: torch.Tensor) -> torch.Tensor:
        """The top eigenvalues and one of three kinds of rest, at a random scale: descending."""
        count = self.size - len(top)
        index, below = torch.arange(1, count + 1, dtype=torch.float64), float(top[-1])
        rest = (
            0.95 * below * index ** -float(0.3 + 1.7 * self.uniform(1)),
            0.9 * below - 1.4 * self.uniform(count),
            torch.where(index < 6, 0.9 * below * self.uniform(count), 0.02 * (self.uniform(count) - 0.5)),
        )[self.integer(0, 2)]
        return torch.cat([top, rest.sort(descending=True).values]) * 10 ** float(4 * self.uniform(1) - 2)


def symmetric(spectrum: torch.Tensor, vectors: torch.Tensor) -> torch.Tensor:
    """The matrix with this spectrum and these eigenvectors, float32."""
    matrix = (vectors * spectrum) @ vectors.T
    return ((matrix + matrix.T) / 2).float()


def clustered(seed: int) -> Sequence:
    c = Chosen(seed)
    matrix = symmetric(c.spectrum(c.cluster()), c.rotation())
    return Sequence(matrix.unsqueeze(0), matrix[:0])


def orthogonal_start(seed: int) -> Sequence:
    """The start vector has no part of the top eigenvector."""
    c = Chosen(seed)
    vectors = c.rotation()
    matrix = symmetric(c.spectrum(c.cluster()), vectors)
    start = vectors[:, 1:] @ torch.randn(c.size - 1, generator=c.generator, dtype=torch.float64)
    return Sequence(matrix.unsqueeze(0), start[None].float())


def wrong_start(seed: int) -> Sequence:
    """The start vectors are exact eigenvectors of smaller eigenvalues."""
    c = Chosen(seed)
    vectors = c.rotation()
    matrix = symmetric(c.spectrum(c.cluster()), vectors)
    first = c.integer(1, 6)
    return Sequence(matrix.unsqueeze(0), vectors[:, first : first + c.integer(1, 4)].T.float())


def another_matrix(seed: int) -> Sequence:
    """The start vectors and the probe are those of a matrix that has nothing to do with this one."""
    c = Chosen(seed)
    matrices = [symmetric(c.spectrum(c.cluster()), c.rotation()) for _ in range(2)]
    return Sequence(torch.stack(matrices), matrices[0][:0])


def drifting(seed: int) -> Sequence:
    """Eigenvectors turn and eigenvalues move by a tenth or so from matrix to matrix, and often change places."""
    c = Chosen(seed)
    vectors, spectrum = c.rotation(), c.spectrum(c.cluster())
    matrices = []
    turn = 10 ** float(-2 + 1.5 * c.uniform(1))
    for _ in range(4):
        matrices.append(symmetric(spectrum, vectors))
        spectrum = spectrum * (1 + turn * (c.uniform(c.size) - 0.5))
        skew = torch.randn(c.size, c.size, generator=c.generator, dtype=torch.float64) / c.size**0.5
        vectors = vectors @ torch.linalg.matrix_exp(turn * (skew - skew.T))
    return Sequence(torch.stack(matrices), matrices[0][:0])


def multiple(seed: int) -> Sequence:
    """The largest eigenvalue has an exact multiplicity of 2 to 5."""
    c = Chosen(seed)
    matrix = symmetric(c.spectrum(torch.ones(c.integer(2, 5), dtype=torch.float64)), c.rotation())
    return Sequence(matrix.unsqueeze(0), matrix[:0])


def negative(seed: int) -> Sequence:
    """Negative definite, with a cluster closest to zero."""
    c = Chosen(seed)
    matrix = symmetric(-c.spectrum(c.cluster()).abs().clamp_min(1e-3).flip(0), c.rotation())
    return Sequence(matrix.unsqueeze(0), matrix[:0])


def rank_one(seed: int) -> Sequence:
    """One eigenvalue that is not zero, positive or negative."""
    c = Chosen(seed)
    spectrum = torch.zeros(c.size, dtype=torch.float64)
    spectrum[0] = math.copysign(10 ** float(4 * c.uniform(1) - 2), c.integer(0, 1) - 0.5)
    matrix = symmetric(spectrum, c.rotation())
    return Sequence(matrix.unsqueeze(0), matrix[:0])


def zero(seed: int) -> Sequence:
    """The zero matrix."""
    size = Chosen(seed).size
    return Sequence(torch.zeros(1, size, size), torch.zeros(0, size))


KINDS: dict[str, Callable[[int], Sequence]] = {
    "fresh network, squared error": fresh,
    "fresh network, cross-entropy": classes,
    "training of two networks, eigenvalues cross": crossing,
    "cluster of 2 to 12": clustered,
    "cluster, start orthogonal to the top": orthogonal_start,
    "cluster, start from other eigenvectors": wrong_start,
    "cluster, start from another matrix": another_matrix,
    "cluster, drifting": drifting,
    "exact multiplicity": multiple,
    "negative definite": negative,
    "rank one": rank_one,
    "zero": zero,
}
