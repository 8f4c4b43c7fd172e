"""Whether the eigenvalue that is found is the largest one; dense float64 solves are the oracle."""

from __future__ import annotations

import math

import pytest
import torch
from oracles import randn, stacked
from problems import KINDS, Chosen, Sequence, symmetric

from eosslib import probing
from eosslib.eigen import Eigenpairs, top_eigenpairs
from eosslib.probing import Probe

COUNTS = {"training of two networks, eigenvalues cross": 4, "rank one": 10, "zero": 4}  # of the others 30


def solve(a: torch.Tensor, start: torch.Tensor | None = None, seed: int = 0, **options: object) -> Eigenpairs:
    start = a.new_zeros(0, len(a)) if start is None else start
    return top_eigenpairs(stacked(a), start[None], probe=Probe(randn(1, len(a), seed=seed).to(a)), **options)


def cluster(seed: int) -> torch.Tensor:
    return KINDS["cluster of 2 to 12"](seed).matrices[0].double()


@pytest.mark.parametrize("kind", KINDS)
def test_no_solve_is_off_by_a_thousandth_of_the_norm(kind: str) -> None:
    errors = [error for seed in range(20_000, 20_000 + COUNTS.get(kind, 30)) for error, _ in KINDS[kind](seed).errors(seed)]
    assert max(map(abs, errors)) <= 1e-3


@pytest.mark.parametrize("kind", ["fresh network, squared error", "cluster, start from other eigenvectors"])
def test_without_a_probe_some_of_these_problems_are_missed(kind: str) -> None:
    """Or the test above would show nothing."""
    errors = [error for seed in range(40) for error, _ in KINDS[kind](seed).errors(seed, probing=False)]
    assert min(errors) < -1e-3


@pytest.mark.parametrize("k", [1, 3])
@pytest.mark.parametrize("kind", KINDS)
def test_a_solve_with_a_probe_converges_and_says_so(kind: str, k: int) -> None:
    for matrix in KINDS[kind](3).matrices[:1].double():
        pairs = solve(matrix, k=k)
        assert bool(pairs.converged)
        assert float(pairs.miss) <= probing.MISS
        torch.testing.assert_close(pairs.values[0, 0], torch.linalg.eigvalsh(matrix)[-1], rtol=0, atol=1e-5 * matrix.norm().item())


def test_an_exact_eigenvector_of_a_smaller_eigenvalue_is_believed_without_a_probe_alone() -> None:
    values, vectors = torch.linalg.eigh(cluster(1))
    wrong = vectors[:, -4][None]
    assert float(top_eigenpairs(stacked(cluster(1)), wrong[None]).values) == pytest.approx(float(values[-4]))
    assert float(solve(cluster(1), wrong).values) == pytest.approx(float(values[-1]), rel=1e-4)


def test_an_eigenvalue_between_the_start_vectors_and_the_rest_is_suspected() -> None:
    """λ₂'s vector is exact, and half of u₁ is in another start vector: neither the residual nor the probe's own space tells."""
    for seed in range(20):
        c = Chosen(seed)
        vectors = c.rotation()
        spectrum = torch.cat([torch.tensor([1.02, 1.0], dtype=torch.float64), torch.linspace(0.6, -0.2, c.size - 2).double()])
        mixed = (vectors[:, 0] + vectors[:, 30]) / math.sqrt(2)
        pairs = solve(symmetric(spectrum, vectors).double(), torch.stack([vectors[:, 1], mixed]), seed)
        assert float(pairs.values) == pytest.approx(1.02, rel=1e-3)


def test_the_probability_of_a_miss_is_that_of_the_probes_part_along_the_top_vector() -> None:
    """Probes with a small part along u₁ are missed as often as is said: the bound holds, and is not idle.

    The largest eigenvalue is a little more above the rest than the margin, and the solves stop where the probability is 0.2.
    """
    size, stack = 80, 200
    spectrum = torch.cat([torch.ones(1), torch.linspace(1 - 1.05 * probing.MARGIN, 0.0, size - 1)]).double()
    probe = Probe(randn(stack, size), miss=0.2)
    pairs = top_eigenpairs(lambda v: spectrum * v, randn(stack, 0, size), tol=0.5, probe=probe, max_basis=size)
    wrong, said = int((pairs.values[:, 0] < 1 - probing.MARGIN).sum()), float(pairs.miss.sum())
    assert wrong <= said + 3 * said**0.5


def test_what_is_left_of_the_probe_has_the_norm_that_the_probability_says() -> None:
    pairs = solve(cluster(2))
    assert float(pairs.miss) == pytest.approx(math.erf(float(pairs.probe.norm()) / math.sqrt(2)), rel=1e-9)


def test_what_is_left_of_the_probe_keeps_its_part_along_an_eigenvector_above_those_found() -> None:
    """Here at the margin exactly: the probe is put to a matrix without u, and u with that eigenvalue is put in by hand."""
    a = cluster(5)
    values, vectors = torch.linalg.eigh(a)
    z = randn(1, len(a))
    below = a - values[-1] * torch.outer(vectors[:, -1], vectors[:, -1])
    found = top_eigenpairs(stacked(below), a.new_zeros(1, 0, len(a)), tol=0.3, probe=Probe(z, miss=0.9))
    height = found.values.squeeze() + probing.MARGIN * max(float(values[-2]), -float(values[0]))
    hidden = below + height * torch.outer(vectors[:, -1], vectors[:, -1])
    z = z - (z @ vectors[:, -1] - 1e-9) * vectors[:, -1]  # so small a part along u that nothing else is changed
    pairs = top_eigenpairs(stacked(hidden), a.new_zeros(1, 0, len(a)), tol=0.3, probe=Probe(z, miss=0.9))
    assert float(pairs.values) < float(height)
    part = float(pairs.probe[0] @ vectors[:, -1])
    assert abs(part) == pytest.approx(1e-9, rel=1e-2)


def test_a_warm_solve_takes_few_products_and_finds_what_overtakes() -> None:
    matrices = KINDS["cluster, drifting"](11).matrices
    errors = Sequence(matrices, matrices[0][:0]).errors(0)
    assert max(products for _, products in errors[1:]) < errors[0][1]


def test_what_an_operator_finds_with_a_probe_does_not_depend_on_the_stack() -> None:
    size = 100
    matrices = [torch.zeros(size, size).double() for _ in range(3)]
    for matrix, seed in zip(matrices, range(3), strict=True):
        vectors = torch.linalg.qr(randn(size, size, seed=seed))[0]
        matrix += (vectors * torch.linspace(1 + seed, -0.3, size).double() ** (2 * seed + 1)) @ vectors.T
    starts, counts = randn(3, 4, size, seed=5), [0, 4, 2]
    for row, count in enumerate(counts):
        starts[row, count:] = 0
    vector, fresh = randn(3, size, seed=6), randn(3, size, seed=7)
    together = top_eigenpairs(stacked(*matrices), starts, tol=1e-8, nearby=4, probe=Probe.carried(vector, fresh))
    assert len(set(together.products.tolist())) == 3, "or this says little"
    for row, (a, count) in enumerate(zip(matrices, counts, strict=True)):
        probe = Probe.carried(vector[row : row + 1], fresh[row : row + 1])
        alone = top_eigenpairs(stacked(a), starts[row : row + 1, :count], tol=1e-8, nearby=4, probe=probe)
        assert int(alone.products) == int(together.products[row])
        torch.testing.assert_close(together.values[row], alone.values[0], rtol=1e-12, atol=0)
        torch.testing.assert_close(together.miss[row], alone.miss[0], rtol=1e-5, atol=0)
        torch.testing.assert_close(together.probe[row].abs(), alone.probe[0].abs(), rtol=1e-4, atol=1e-8)


def test_a_solve_without_a_probe_says_that_nothing_speaks_for_it() -> None:
    pairs = top_eigenpairs(stacked(cluster(1)), randn(1, 1, len(cluster(1))))
    assert float(pairs.miss) == 1
    assert pairs.probe.shape == (1, 0)


def test_a_solve_that_gives_up_before_the_probe_is_through_has_not_converged() -> None:
    pairs = solve(cluster(1), tol=0.5, max_products=5)
    assert not bool(pairs.converged)
    assert float(pairs.miss) > probing.MISS


def test_an_operator_that_is_not_finite_leaves_its_neighbour_alone() -> None:
    a = cluster(1)

    def spoiled(v: torch.Tensor) -> torch.Tensor:
        images = stacked(a, a)(v)
        images[1] = torch.nan
        return images

    pairs = top_eigenpairs(spoiled, a.new_zeros(2, 0, len(a)), probe=Probe(randn(2, len(a))))
    assert pairs.converged.tolist() == [True, False]
    assert bool(pairs.values[1].isnan())
    assert float(pairs.values[0]) == pytest.approx(float(torch.linalg.eigvalsh(a)[-1]), rel=1e-6)


def test_a_solve_that_has_neither_start_vectors_nor_a_probe_is_refused() -> None:
    with pytest.raises(ValueError, match="start vectors must be finite and not zero"):
        top_eigenpairs(stacked(cluster(1)), randn(1, 0, len(cluster(1))))
