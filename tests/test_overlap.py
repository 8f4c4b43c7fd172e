"""The Gauss–Newton part, the NTK and their overlap with the Hessian, against dense float64 matrices."""

from __future__ import annotations

from functools import cache

import pytest
import torch
from oracles import EVERY, Problem, all_batches, problem, randn, top_vector
from torch.func import jacrev

from eosslib.measure import overlap
from eosslib.measure.drawn import Draws

N, B = 6, 2
KEYS = [("overlap", 0)]


def jacobian(p: Problem, row: int = 0) -> torch.Tensor:
    """∂f/∂θ of every example and output: (n, K, P)."""
    return jacrev(lambda theta: p.outputs(theta, p.x[0]))(p.theta[row])


def middle(p: Problem, row: int = 0) -> torch.Tensor:
    """∂²ℓᵢ/∂f² of every example, by differentiating the loss twice: (n, K, K)."""
    f = p.outputs(p.theta[row], p.x[0]).detach()
    rows = [
        torch.autograd.functional.hessian(
            lambda out, y=p.y[:, i : i + 1]: p.objective.loss.value(out.reshape(1, 1, -1), y).sum(), f[i]
        )
        for i in range(p.n)
    ]
    return torch.stack(rows)


def gauss_newton(p: Problem, indices: list[int], row: int = 0) -> torch.Tensor:
    j, a = jacobian(p, row)[indices], middle(p, row)[indices]
    return torch.einsum("ikp,ikl,ilq->pq", j, a, j) / len(indices)


def kernel(p: Problem, indices: list[int]) -> torch.Tensor:
    """The NTK of a batch over b: (bK, bK)."""
    j = jacobian(p)[indices].flatten(0, 1)
    return j @ j.T / len(indices)


@pytest.mark.parametrize(("model", "loss"), EVERY)
def test_gauss_newton_products_are_those_of_the_dense_matrix(model: str, loss: str) -> None:
    p = problem(model, loss, stack=2)
    v = randn(2, p.theta.shape[1])
    ours = p.at().hessian().gauss_newton(v)
    for row in range(2):
        torch.testing.assert_close(ours[row], gauss_newton(p, list(range(p.n)), row) @ v[row], rtol=1e-9, atol=1e-12)


@pytest.mark.parametrize(("model", "loss"), EVERY)
def test_ntk_products_have_the_kernels_eigenvalues(model: str, loss: str) -> None:
    p = problem(model, loss, n=4)
    operator = p.at(theta=p.theta.expand(p.theta.shape[1], -1)).hessian()
    dense = operator.ntk(torch.eye(p.theta.shape[1], dtype=torch.float64))
    values = torch.linalg.eigvalsh(kernel(p, list(range(4))))
    found = torch.linalg.eigvalsh((dense + dense.T) / 2)[-len(values) :]
    torch.testing.assert_close(found, values[-len(found) :], rtol=1e-8, atol=1e-10)


@pytest.mark.parametrize("memory", [1 << 30, 1])
def test_products_do_not_depend_on_the_memory_budget(memory: int) -> None:
    p, v = problem("cnn"), randn(1, problem("cnn").theta.shape[1])
    operator = p.at(memory=memory).hessian()
    torch.testing.assert_close(operator.gauss_newton(v)[0], gauss_newton(p, list(range(p.n))) @ v[0], rtol=1e-9, atol=1e-12)


@cache
def exhaustive(model: str, loss: str) -> dict[str, float]:
    """What ``overlap.measure`` estimates, over all batches, from dense matrices."""
    p = problem(model, loss, n=N)
    columns: dict[str, list[float]] = {name: [] for name in overlap.Overlap.__dataclass_fields__}
    for batch in all_batches(N, B):
        h, g, gradient = p.hessian(0, batch), gauss_newton(p, batch), p.example_gradients()[batch].mean(0)
        u, w, unit = top_vector(h), top_vector(g), gradient / gradient.norm()
        columns["hessian"].append(float(torch.linalg.eigvalsh(h)[-1]))
        columns["gauss_newton"].append(float(torch.linalg.eigvalsh(g)[-1]))
        columns["ntk"].append(float(torch.linalg.eigvalsh(kernel(p, batch))[-1]))
        columns["vectors"].append(abs(float(u @ w)))
        columns["gradient_hessian"].append(abs(float(unit @ u)))
        columns["gradient_gauss_newton"].append(abs(float(unit @ w)))
    return {name: sum(values) / len(values) for name, values in columns.items()}


@pytest.mark.parametrize(("model", "loss"), EVERY)
def test_everything_is_estimated_as_the_mean_over_all_batches(model: str, loss: str) -> None:
    p = problem(model, loss, n=N)
    found = overlap.measure(p.at(), Draws(B, 150, KEYS), tol=1e-7)
    for name, exact in exhaustive(model, loss).items():
        estimate = getattr(found, name)
        assert abs(float(estimate.value) - exact) < 4.5 * float(estimate.standard_error) + 1e-9, name


def test_for_the_squared_error_the_kernel_and_the_gauss_newton_part_agree() -> None:
    p = problem("fc-tanh", "mse", n=N)
    found = overlap.measure(p.at(), Draws(B, 5, KEYS), tol=1e-7)
    torch.testing.assert_close(found.ntk.value, found.gauss_newton.value, rtol=1e-9, atol=0)


def test_on_one_example_with_one_output_the_gradient_is_the_top_vector() -> None:
    """EoSS A.4: G = JᵀJ has rank one there, and the gradient is its multiple."""
    p = problem("fc-tanh", "mse", n=N, outputs=1)
    found = overlap.measure(p.at(), Draws(1, 20, KEYS), tol=1e-7)
    assert float(found.gradient_gauss_newton.value) == pytest.approx(1.0, abs=1e-6)


@pytest.mark.parametrize(("b", "sampling"), [(B, "reshuffle"), (N, "iid")])
def test_one_draw_where_batches_differ_is_refused_and_at_the_full_batch_it_is_enough(b: int, sampling: str) -> None:
    p = problem("fc-tanh", "mse", n=N)
    with pytest.raises(ValueError, match="a standard error needs at least two draws"):
        overlap.measure(p.at(), Draws(b, 1, KEYS, sampling))
    assert int(overlap.measure(p.at(), Draws(N, 1, KEYS)).hessian.draws) == 1
