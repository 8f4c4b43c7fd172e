"""The largest eigenvalue by Lanczos, held against spectra that were chosen and against the solver that keeps a whole basis."""

from __future__ import annotations

import logging

import pytest
import torch
from oracles import DECAYING, SPECTRA, matrix, randn, stacked

from eosslib.eigen import top_eigenpairs
from eosslib.lanczos import largest_eigenvalues


@pytest.mark.parametrize("spectrum", SPECTRA.values(), ids=SPECTRA.keys())
def test_finds_the_algebraically_largest_of_a_chosen_spectrum(spectrum: list[float]) -> None:
    found = largest_eigenvalues(stacked(matrix(spectrum)), randn(1, len(spectrum), seed=7), tol=1e-6)
    assert bool(found.converged)
    assert float(found.values) == pytest.approx(max(spectrum), abs=1e-9 * max(map(abs, spectrum)))


@pytest.mark.parametrize("seed", range(20))
def test_finds_in_float32_what_a_reorthogonalised_basis_finds(seed: int) -> None:
    """Also where the negative end of the spectrum converges first, and copies of it come up."""
    spectrum = 2 * torch.rand(200, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)
    spectrum[:3] = torch.tensor([4.0, 3.5, -30.0])
    a = matrix(spectrum, seed).float()
    start = randn(1, 200, seed=seed).float()
    found = largest_eigenvalues(stacked(a), start, tol=1e-3)
    kept = top_eigenpairs(stacked(a), start.unsqueeze(1), tol=1e-6)
    assert float(found.values) == pytest.approx(float(kept.values), rel=1e-5)


def test_the_residual_is_the_true_one() -> None:
    a, start = matrix(DECAYING), randn(1, 60, seed=7)
    found = largest_eigenvalues(stacked(a), start, max_products=4)
    krylov = torch.linalg.qr(torch.stack([torch.linalg.matrix_power(a, i) @ start[0] for i in range(4)], dim=1))[0]
    values, rotation = torch.linalg.eigh(krylov.T @ a @ krylov)
    u = krylov @ rotation[:, -1]
    assert float(found.values) == pytest.approx(float(values[-1]), rel=1e-9)
    assert float(found.residuals) == pytest.approx(float((a @ u - values[-1] * u).norm() / values[-1]), rel=1e-6)


def test_an_operator_finds_in_a_stack_what_it_finds_alone() -> None:
    matrices = [matrix(DECAYING, seed) * factor for seed, factor in ((0, 1.0), (1, 5.0))] + [torch.eye(60, dtype=torch.float64)]
    start = randn(3, 60, seed=7)
    together = largest_eigenvalues(stacked(*matrices), start)
    for i, a in enumerate(matrices):
        alone = largest_eigenvalues(stacked(a), start[i : i + 1])
        assert float(together.values[i]) == pytest.approx(float(alone.values), rel=1e-12)
        assert int(together.products[i]) == int(alone.products)


def test_a_zero_operator_has_the_eigenvalue_zero() -> None:
    found = largest_eigenvalues(torch.zeros_like, randn(1, 5))
    assert (float(found.values), bool(found.converged), int(found.products)) == (0.0, True, 1)


def test_an_operator_that_is_not_finite_gets_nan_and_leaves_the_others_alone() -> None:
    a = torch.stack([matrix(DECAYING), matrix(DECAYING)])
    a[1, 3, 4] = torch.nan
    found = largest_eigenvalues(stacked(*a), randn(2, 60, seed=7), tol=1e-6)
    assert found.converged.tolist() == [True, False]
    assert float(found.values[0]) == pytest.approx(10.0)
    assert bool(found.values[1].isnan())


def test_giving_up_is_said(caplog: pytest.LogCaptureFixture) -> None:
    with caplog.at_level(logging.WARNING):
        found = largest_eigenvalues(stacked(matrix(DECAYING)), randn(1, 60, seed=7), tol=1e-9, max_products=3).or_warn("MiniBS")
    assert not bool(found.converged)
    assert "MiniBS" in caplog.text


@pytest.mark.parametrize("bad", [0.0, torch.nan])
def test_a_start_vector_that_is_zero_or_not_finite_is_refused(bad: float) -> None:
    with pytest.raises(ValueError, match="finite and not zero"):
        largest_eigenvalues(stacked(matrix(DECAYING)), torch.full((1, 60), bad, dtype=torch.float64))
