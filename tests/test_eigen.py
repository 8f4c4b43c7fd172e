"""Eigenpairs of matrices with a chosen spectrum; SciPy and the spectrum itself are the oracles."""

from __future__ import annotations

from collections.abc import Callable

import pytest
import scipy.sparse.linalg
import torch
from oracles import DECAYING, SPECTRA, matrix, randn, rotation, stacked

from eosslib.eigen import Eigenpairs, padded, top_eigenpairs, warn_if_uncertain


def start(size: int, stack: int = 1, vectors: int = 1, seed: int = 7) -> torch.Tensor:
    return randn(stack, vectors, size, seed=seed)


@pytest.mark.parametrize("spectrum", SPECTRA.values(), ids=SPECTRA.keys())
@pytest.mark.parametrize("k", [1, 3])
def test_finds_the_algebraically_largest_of_a_chosen_spectrum(spectrum: list[float], k: int) -> None:
    k = min(k, len(spectrum))
    pairs = top_eigenpairs(stacked(matrix(spectrum)), start(len(spectrum)), k=k, tol=1e-9)
    scale = max(map(abs, spectrum))
    expected = torch.tensor(sorted(spectrum, reverse=True)[:k], dtype=torch.float64)
    assert bool(pairs.converged.all())
    torch.testing.assert_close(pairs.values[0], expected, rtol=0, atol=1e-9 * scale)


def test_vectors_are_those_of_the_matrix_and_orthonormal() -> None:
    pairs = top_eigenpairs(stacked(matrix(DECAYING)), start(60), k=3, tol=1e-10)
    vectors = pairs.vectors[0]
    torch.testing.assert_close((vectors @ rotation(60)[:, :3]).abs(), torch.eye(3, dtype=torch.float64), rtol=0, atol=1e-8)
    torch.testing.assert_close(vectors @ vectors.T, torch.eye(3, dtype=torch.float64), rtol=0, atol=1e-12)


@pytest.mark.parametrize("k", [1, 4])
def test_agrees_with_scipy_eigsh(k: int) -> None:
    a = randn(80, 80, seed=3)
    a = (a + a.T) / 2
    pairs = top_eigenpairs(stacked(a), start(80), k=k, tol=1e-10)
    expected = scipy.sparse.linalg.eigsh(a.numpy(), k=k, which="LA", return_eigenvectors=False)[::-1].copy()
    torch.testing.assert_close(pairs.values[0], torch.from_numpy(expected), rtol=1e-10, atol=0)


def test_restarting_a_small_basis_still_converges() -> None:
    a = matrix(SPECTRA["clustered"])
    pairs = top_eigenpairs(stacked(a), start(60), k=2, tol=1e-8, max_basis=6)
    assert int(pairs.products) > 6
    assert bool(pairs.converged)
    torch.testing.assert_close(pairs.values[0], torch.tensor([5.0, 4.99], dtype=torch.float64), rtol=1e-10, atol=0)


@pytest.mark.parametrize(("tol", "k"), [(1e-2, 1), (1e-2, 3), (1e-6, 2)])
def test_the_reported_residual_is_the_true_one_and_below_the_tolerance(tol: float, k: int) -> None:
    a = matrix(DECAYING)
    pairs = top_eigenpairs(stacked(a), start(60), k=k, tol=tol)
    mapped = pairs.vectors[0] @ a
    true = (mapped - pairs.values[0, :, None] * pairs.vectors[0]).norm(dim=1) / pairs.values[0, 0].abs()
    torch.testing.assert_close(pairs.residuals[0], true, rtol=1e-8, atol=1e-13)
    assert float(true.max()) <= tol


def test_a_warm_start_needs_fewer_products_than_a_cold_one() -> None:
    a, nearby = matrix(DECAYING), matrix(DECAYING) + 1e-3 * matrix(DECAYING, seed=1)
    cold = top_eigenpairs(stacked(nearby), start(60), k=2, tol=1e-3)
    vectors = top_eigenpairs(stacked(a), start(60), k=2, tol=1e-3).vectors
    warm = top_eigenpairs(stacked(nearby), vectors, k=2, tol=1e-3)
    assert int(warm.products) <= 3 < int(cold.products)
    torch.testing.assert_close(warm.values, cold.values, rtol=1e-5, atol=0)


def test_counts_every_product_it_makes() -> None:
    made = []

    def counting(v: torch.Tensor) -> torch.Tensor:
        made.append(1)
        return stacked(matrix(DECAYING))(v)

    pairs = top_eigenpairs(counting, start(60), tol=1e-6)
    assert int(pairs.products) == len(made)


def test_too_few_products_are_reported_as_not_converged() -> None:
    pairs = top_eigenpairs(stacked(matrix(DECAYING)), start(60), tol=1e-12, max_products=3)
    assert not bool(pairs.converged)
    assert int(pairs.products) == 3
    assert float(pairs.residuals.max()) > 1e-12


def test_a_solve_that_is_given_up_is_logged(caplog: pytest.LogCaptureFixture) -> None:
    given_up, fine = (top_eigenpairs(stacked(matrix(DECAYING)), start(60), tol=tol, max_products=9) for tol in (1e-9, 0.3))
    assert warn_if_uncertain(fine, "fine") is fine
    assert not caplog.text
    warn_if_uncertain(Eigenpairs.cat([given_up, fine]), "here")
    assert "here: 1 of 2 eigen-solves given up: residual up to" in caplog.text


def test_at_full_dimension_the_answer_is_exact_whatever_the_tolerance() -> None:
    pairs = top_eigenpairs(stacked(matrix([4.0, 3.0, 2.0, 1.0])), start(4), k=4, tol=1e-300)
    assert bool(pairs.converged)
    torch.testing.assert_close(pairs.values[0], torch.tensor([4.0, 3.0, 2.0, 1.0], dtype=torch.float64), rtol=1e-12, atol=0)


def assert_same(one: Eigenpairs, row: int, alone: Eigenpairs) -> None:
    assert int(one.products[row]) == int(alone.products[0])
    torch.testing.assert_close(one.values[row], alone.values[0], rtol=1e-12, atol=1e-14)
    torch.testing.assert_close(one.residuals[row], alone.residuals[0], rtol=1e-3, atol=1e-12)
    cosines = (one.vectors[row] * alone.vectors[0]).sum(1).abs()  # the sign of an eigenvector is nobody's
    torch.testing.assert_close(cosines, torch.ones_like(cosines), rtol=0, atol=1e-12)


@pytest.mark.parametrize("k", [1, 2])
def test_the_result_for_an_operator_does_not_depend_on_the_stack(k: int) -> None:
    matrices = [matrix(DECAYING), matrix(SPECTRA["clustered"], seed=2), matrix([*range(60)], seed=3)]
    starts = start(60, stack=3)
    together = top_eigenpairs(stacked(*matrices), starts, k=k, tol=1e-6)
    assert len(set(together.products.tolist())) == 3, "the operators must stop at different moments for this to say anything"
    for row, a in enumerate(matrices):
        assert_same(together, row, top_eigenpairs(stacked(a), starts[row : row + 1], k=k, tol=1e-6))


def test_an_operator_that_needs_a_random_vector_does_not_depend_on_the_stack_either() -> None:
    a, b = matrix(DECAYING), matrix(SPECTRA["clustered"], seed=2)
    starts = torch.stack([start(60)[0], rotation(60, 2)[:, 5][None]])  # the second is an eigenvector, its Krylov space a line
    together = top_eigenpairs(stacked(a, b), starts, k=2, tol=1e-6)
    assert_same(together, 1, top_eigenpairs(stacked(b), starts[1:], k=2, tol=1e-6))


def spoiled(value: float, a: torch.Tensor) -> Callable[[torch.Tensor], torch.Tensor]:
    good = stacked(a, a)

    def operator(v: torch.Tensor) -> torch.Tensor:
        image = good(v)
        image[1] = value
        return image

    return operator


@pytest.mark.parametrize("k", [1, 3])
@pytest.mark.parametrize("value", [float("nan"), float("inf")])
def test_an_operator_that_is_not_finite_gets_nan_and_leaves_its_neighbour_alone(value: float, k: int) -> None:
    a = matrix(DECAYING)
    starts = start(60, stack=2)
    pairs = top_eigenpairs(spoiled(value, a), starts, k=k, tol=1e-8)
    assert bool(pairs.values[1].isnan().all())
    assert pairs.converged.tolist() == [True, False]
    assert_same(pairs, 0, top_eigenpairs(stacked(a), starts[:1], k=k, tol=1e-8))


def test_a_start_in_an_invariant_subspace_is_left_for_the_top_pairs() -> None:
    a = matrix(DECAYING)
    pairs = top_eigenpairs(stacked(a), rotation(60)[:, 4].reshape(1, 1, 60), k=2, tol=1e-9)
    torch.testing.assert_close(pairs.values[0], torch.tensor(DECAYING[:2], dtype=torch.float64), rtol=1e-9, atol=0)


@pytest.mark.parametrize("factor", [1.0, -3.0, 0.0])
def test_a_multiple_of_the_identity_has_k_equal_eigenvalues(factor: float) -> None:
    pairs = top_eigenpairs(lambda v: factor * v, start(50), k=3, tol=1e-9)
    assert bool(pairs.converged)
    torch.testing.assert_close(pairs.values[0], torch.full((3,), factor, dtype=torch.float64), rtol=1e-12, atol=1e-300)
    torch.testing.assert_close(pairs.vectors[0] @ pairs.vectors[0].T, torch.eye(3, dtype=torch.float64), rtol=0, atol=1e-12)


def test_linearly_dependent_start_vectors_do_no_harm() -> None:
    one = start(60)
    pairs = top_eigenpairs(stacked(matrix(DECAYING)), torch.cat([one, 2 * one, -one], dim=1), k=2, tol=1e-9)
    torch.testing.assert_close(pairs.values[0], torch.tensor(DECAYING[:2], dtype=torch.float64), rtol=1e-9, atol=0)


def test_nearly_parallel_start_vectors_leave_the_basis_orthonormal_in_float32() -> None:
    """Projecting once would leave an angle of some degrees between the first two basis vectors, and a value off by percents."""
    a, one = matrix(DECAYING).float(), rotation(60)[:, 0].float().reshape(1, 1, 60)
    pairs = top_eigenpairs(stacked(a), torch.cat([one, one + 4e-6 * start(60).float()], dim=1), k=2, tol=1e-3)
    torch.testing.assert_close(pairs.values[0], torch.tensor(DECAYING[:2]), rtol=1e-5, atol=0)
    torch.testing.assert_close(pairs.vectors[0] @ pairs.vectors[0].T, torch.eye(2), rtol=0, atol=1e-5)


def test_float32_reaches_the_tolerance_it_is_used_with() -> None:
    a = matrix(DECAYING).float()
    pairs = top_eigenpairs(stacked(a), start(60).float(), tol=1e-3)
    assert bool(pairs.converged)
    torch.testing.assert_close(pairs.values[0, 0], torch.tensor(10.0), rtol=1e-5, atol=0)


@pytest.mark.parametrize("vectors", [1, 2])
@pytest.mark.parametrize("k", [1, 3])
def test_what_an_operator_appends_to_its_images_comes_back_for_the_eigenvectors(k: int, vectors: int) -> None:
    """Also over restarts, where a basis of a few vectors is combined anew, and for a stack whose members end at other products."""
    matrices, extra = [matrix(SPECTRA["clustered"]), matrix(DECAYING, seed=1)], torch.randn(60, 7, dtype=torch.float64)
    plain = stacked(*matrices)
    options = {"k": k, "tol": 1e-6, "max_basis": 8}
    pairs = top_eigenpairs(lambda v: torch.cat([plain(v), v @ extra], dim=1), start(60, 2, vectors), **options)
    torch.testing.assert_close(pairs.carried, pairs.vectors @ extra, rtol=1e-10, atol=1e-12)
    alone = top_eigenpairs(plain, start(60, 2, vectors), **options)
    assert alone.carried.shape == (2, k, 0)
    torch.testing.assert_close(pairs.values, alone.values, rtol=1e-12, atol=0)
    assert pairs.products.tolist() == alone.products.tolist()
    assert len(set(pairs.products.tolist())) == 2


def test_joined_results_keep_their_order() -> None:
    parts = [top_eigenpairs(stacked(matrix(DECAYING) * f), start(60), tol=1e-9) for f in (1.0, 2.0)]
    torch.testing.assert_close(
        Eigenpairs.cat(parts).values[:, 0], torch.tensor([10.0, 20.0], dtype=torch.float64), rtol=1e-9, atol=0
    )


@pytest.mark.parametrize("k", [0, 5])
def test_more_pairs_than_dimensions_are_refused(k: int) -> None:
    with pytest.raises(ValueError, match=f"k = {k} eigenpairs of an operator of size 4"):
        top_eigenpairs(stacked(matrix([4.0, 3.0, 2.0, 1.0])), start(4), k=k)


@pytest.mark.parametrize("bad", [0.0, float("nan"), float("inf")])
def test_a_start_that_is_zero_or_not_finite_is_refused(bad: float) -> None:
    starts = start(4, stack=2)
    starts[1] = bad
    with pytest.raises(ValueError, match="start vectors must be finite and not zero"):
        top_eigenpairs(stacked(*[matrix([4.0, 3.0, 2.0, 1.0])] * 2), starts)


def test_an_empty_stack_is_refused() -> None:
    with pytest.raises(ValueError, match="an empty stack has no eigenpairs"):
        top_eigenpairs(lambda v: v, start(4, stack=0))


def test_operators_with_different_numbers_of_start_vectors_do_not_depend_on_each_other() -> None:
    """Zeros in the last places say that there are no more: a stack gives each what it finds alone from its own vectors."""
    matrices = [matrix(DECAYING), matrix(SPECTRA["clustered"], seed=2), matrix([*range(60)], seed=3)]
    starts = start(60, stack=3, vectors=5)
    own = [1, 5, 3]
    for row, count in enumerate(own):
        starts[row, count:] = 0
    for k in (1, 4):
        together = top_eigenpairs(stacked(*matrices), starts, k=k, tol=1e-6, nearby=3)
        for row, (a, count) in enumerate(zip(matrices, own, strict=True)):
            alone = top_eigenpairs(stacked(a), starts[row : row + 1, :count], k=k, tol=1e-6, nearby=3)
            assert_same(together, row, alone)
            own_starts = alone.starts.shape[1]
            torch.testing.assert_close(together.starts[row, :own_starts].abs(), alone.starts[0].abs(), rtol=0, atol=1e-6)
            assert not together.starts[row, own_starts:].any()


def test_what_is_close_at_the_end_of_a_solve_that_gives_up_does_not_depend_on_the_stack_either() -> None:
    slow, quick = matrix([5.0 - 0.02 * i for i in range(60)]), matrix([9.0, 8.0, *[0.1] * 58], seed=1)
    options = {"tol": 1e-8, "max_products": 12, "nearby": 3}
    starts = start(60, stack=2)
    together, alone = top_eigenpairs(stacked(slow, quick), starts, **options), top_eigenpairs(stacked(slow), starts[:1], **options)
    assert together.converged.tolist() == [False, True]
    assert alone.starts[0].norm(dim=1).tolist() == pytest.approx([1, 1, 1, 1])
    torch.testing.assert_close(together.starts[0].abs(), alone.starts[0].abs(), rtol=0, atol=1e-8)


def test_zeros_beside_many_start_vectors_change_nothing() -> None:
    """Also where a basis is full and restarted: when it is does not depend on the places that others of the stack need."""
    a, vectors = matrix([3.0 - 0.01 * i for i in range(200)]), start(200, vectors=31)
    with_zeros = torch.cat([vectors, torch.zeros(1, 14, 200, dtype=torch.float64)], dim=1)
    few, many = (top_eigenpairs(stacked(a), starts, k=30, tol=1e-3, nearby=15) for starts in (vectors, with_zeros))
    assert int(few.products) == int(many.products) > 60
    assert torch.equal(few.values, many.values)


def test_ritz_vectors_close_to_the_top_are_returned_and_no_others() -> None:
    a = matrix([10.0, 9.0, 8.5, 7.9, 1.0, *[0.1] * 55])
    pairs = top_eigenpairs(stacked(a), start(60), tol=1e-9, nearby=6)
    assert pairs.starts.shape == (1, 3, 60), "7.9 is below 0.8 of 10"
    assert torch.equal(pairs.starts[:, :1], pairs.vectors)
    vectors = pairs.starts[0]
    expected = torch.tensor([10.0, 9.0, 8.5], dtype=torch.float64)
    torch.testing.assert_close((vectors @ a * vectors).sum(1), expected, rtol=1e-6, atol=0)
    assert top_eigenpairs(stacked(a), start(60), tol=1e-9, nearby=1).starts.shape == (1, 2, 60)


def test_results_of_different_operators_are_joined_and_chosen_from_with_zeros_for_missing_start_vectors() -> None:
    one, two = (top_eigenpairs(stacked(matrix([10.0, *top, *DECAYING[1:21]])), start(22), nearby=6) for top in ([9.0], [1.0]))
    together = Eigenpairs.cat([two, one])
    assert together.values[:, 0].tolist() == [*two.values[:, 0].tolist(), *one.values[:, 0].tolist()]
    chosen = Eigenpairs.where(torch.tensor([False, True]), together, Eigenpairs.cat([one, two]))
    assert chosen.values[:, 0].tolist() == [one.values.item()] * 2
    assert torch.equal(together.starts, padded([two.starts[0], one.starts[0]]))
    assert together.starts.norm(dim=2).tolist() == [pytest.approx([1, 0]), pytest.approx([1, 1])]
    assert torch.equal(chosen.starts, torch.cat([one.starts, one.starts]))


def test_a_solve_that_starts_from_the_nearby_vectors_finds_the_one_that_has_overtaken_the_top() -> None:
    """Two eigenvalues change places, their vectors stay: the old top vector alone is an eigenvector still, and is believed."""
    before, after = ([10.0, 9.9, *DECAYING[2:]], [9.9, 10.0, *DECAYING[2:]])
    pairs = top_eigenpairs(stacked(matrix(before)), start(60), tol=1e-6, nearby=4)
    alone = top_eigenpairs(stacked(matrix(after)), pairs.vectors, tol=1e-3)
    assert float(alone.values) == pytest.approx(9.9, rel=1e-6), "or this shows nothing"
    assert float(top_eigenpairs(stacked(matrix(after)), pairs.starts, tol=1e-3).values) == pytest.approx(10.0, rel=1e-6)


def test_a_start_vector_after_a_zero_is_refused() -> None:
    starts = start(60, vectors=3)
    starts[0, 1] = 0
    with pytest.raises(ValueError, match="a start vector follows one that is zero"):
        top_eigenpairs(stacked(matrix(DECAYING)), starts)


def test_fewer_products_than_start_vectors_are_refused() -> None:
    with pytest.raises(ValueError, match="2 products are fewer than the 3 that a solve begins with"):
        top_eigenpairs(stacked(matrix(DECAYING)), start(60, vectors=3), max_products=2)
