"""What is measured along a run: against closed forms, dense matrices and, for tiny n, every mini-batch there is."""

from __future__ import annotations

import math
from collections.abc import Callable

import pytest
import torch
from oracles import EVERY, Problem, all_batches, problem, randn, top_vector

from eosslib.curvature import Point
from eosslib.measure.batch import BatchSharpness, batch_sharpness
from eosslib.measure.drawn import Draws, Estimate
from eosslib.measure.loss import loss_and_accuracy
from eosslib.measure.minibatch import MiniBatchSharpness, minibatch_sharpness
from eosslib.measure.noise import variance_of_batch_means
from eosslib.measure.preconditioned import preconditioned_sharpness
from eosslib.measure.sharpness import sharpness
from eosslib.settings import MAX_LOTS
from eosslib.theory import finite_population

N, B = 6, 2


def few_examples(model: str = "fc-tanh", loss: str = "mse", n: int = N) -> Problem:
    """So small that every mini-batch can be listed: 15 of two examples out of six."""
    return problem(model, loss, n=n, shape=(1, 2, 4), width=3, depth=1, seed=3)


def streams(stack: int, name: str = "test") -> list[tuple[str, int]]:
    return [(name, row) for row in range(stack)]


def exhaustive(p: Problem, batch_size: int) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
    """g_B (M, P), g_BᵀH_B g_B (M,) and λ_max(H_B) (M,) of every mini-batch, from dense matrices."""
    batches = all_batches(p.n, batch_size)
    gradients = torch.stack([p.example_gradients()[batch].mean(0) for batch in batches])
    hessians = torch.stack([p.hessian(0, batch) for batch in batches])
    return gradients, torch.einsum("mi,mij,mj->m", gradients, hessians, gradients), torch.linalg.eigvalsh(hessians)[:, -1]


# --- sharpness ---------------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(("model", "loss"), EVERY)
def test_sharpness_is_the_top_of_the_dense_hessian_over_all_examples(model: str, loss: str) -> None:
    p = problem(model, loss, stack=2)
    pairs = sharpness(p.at(), randn(2, 1, p.theta.shape[1]), k=3, tol=1e-7)
    for row in range(2):
        expected = torch.linalg.eigh(p.hessian(row))
        torch.testing.assert_close(pairs.values[row], expected.eigenvalues[-3:].flip(0), rtol=1e-10, atol=1e-12)
        assert float((pairs.vectors[row, 0] @ expected.eigenvectors[:, -1]).abs()) == pytest.approx(1, abs=1e-8)


def test_eigenpairs_that_cannot_be_solved_for_are_refused() -> None:
    p = few_examples()
    size = p.theta.shape[1]
    with pytest.raises(ValueError, match=f"k = {size + 1} eigenpairs"):
        sharpness(p.at(), randn(1, 1, size), k=size + 1)
    one = torch.ones(1, size, dtype=torch.float64)
    with pytest.raises(ValueError, match="start vectors must be finite"):
        preconditioned_sharpness(p.at().hessian(), one, torch.nan * one, one)


def noise_variance(p: Problem, u: torch.Tensor, batch_size: int, sampling: str = "reshuffle") -> torch.Tensor:
    """σ_u² by the library: (R,)."""
    return variance_of_batch_means(p.at().hessian().slopes(u), batch_size, sampling)


# --- noise variance ----------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(("model", "loss"), EVERY)
def test_noise_variance_is_the_closed_form_over_explicit_gradients(model: str, loss: str) -> None:
    p = problem(model, loss, stack=2)
    n, b = p.n, 5
    u = torch.stack([top_vector(p.hessian(row)) for row in range(2)])
    variance = noise_variance(p, u, b)
    for row in range(2):
        slopes = p.example_gradients(row) @ u[row]
        s2 = (slopes - slopes.mean()).square().mean()
        torch.testing.assert_close(variance[row], s2 / b * (n - b) / (n - 1), rtol=1e-9, atol=0)


@pytest.mark.parametrize("batch_size", [1, 2, 3, 5])
def test_noise_variance_is_that_of_all_batches_there_are(batch_size: int) -> None:
    p = few_examples()
    u = top_vector(p.hessian())
    gradients, _, _ = exhaustive(p, batch_size)
    variance = noise_variance(p, u[None], batch_size)
    assert len(gradients) == math.comb(N, batch_size)
    torch.testing.assert_close(variance[0], (gradients @ u).var(correction=0), rtol=1e-9, atol=0)


@pytest.mark.parametrize("sampling", ["reshuffle", "iid"])
def test_noise_variance_is_that_of_batches_drawn(sampling: str) -> None:
    p, b, draws = problem(n=30), 8, 20_000
    u, stream = top_vector(p.hessian()), torch.Generator().manual_seed(5)
    slopes = p.example_gradients() @ u
    if sampling == "iid":
        drawn = torch.randint(30, (draws, b), generator=stream)
    else:
        drawn = torch.rand(draws, 30, generator=stream).argsort(1)[:, :b]
    means = slopes[drawn].mean(1)
    deviations = (means - means.mean()).square()
    exact = noise_variance(p, u[None], b, sampling)
    assert abs(float(deviations.mean() - exact[0])) < 4 * float(deviations.std()) / draws**0.5


def test_noise_variance_vanishes_at_the_full_batch_without_replacement_only() -> None:
    p = problem()
    u = top_vector(p.hessian())[None]
    assert float(noise_variance(p, u, p.n)) == 0.0
    s2 = (p.example_gradients() @ u[0]).var(correction=0)
    drawn = noise_variance(p, u, p.n, "iid")
    torch.testing.assert_close(drawn[0], s2 / p.n, rtol=1e-9, atol=0)


def test_the_only_batch_of_a_single_example_has_no_noise() -> None:
    assert finite_population(1, 1) == 0.0


@pytest.mark.parametrize(("b", "sampling"), [(0, "reshuffle"), (N + 1, "reshuffle"), (0, "iid"), (B, "replace"), (N, "replace")])
def test_batches_that_cannot_be_drawn_are_refused(b: int, sampling: str) -> None:
    p = few_examples()
    for estimate in (
        lambda: variance_of_batch_means(randn(1, N), b, sampling),
        lambda: sampled(p, b, draws=3, sampling=sampling),
        lambda: minibs(p, b, draws=3, sampling=sampling),
    ):
        with pytest.raises(ValueError, match=r"a batch has at|unknown sampling"):
            estimate()


# --- batch sharpness and mini-batch sharpness --------------------------------------------------------------------------------


def stacked(p: Problem, stack: int, **options: int) -> Point:
    return p.at(theta=p.theta.expand(stack, -1), **options)


def sampled(p: Problem, batch_size: int, draws: int, stack: int = 1, sampling: str = "reshuffle", **options: int) -> BatchSharpness:
    return batch_sharpness(stacked(p, stack, **options), Draws(batch_size, draws, streams(stack), sampling))


def minibs(p: Problem, batch_size: int, draws: int, stack: int = 1, **options: object) -> Estimate:
    return minibs_and_gap(p, batch_size, draws, stack, **options).value


def minibs_and_gap(
    p: Problem, batch_size: int, draws: int, stack: int = 1, sampling: str = "reshuffle", tol: float = 1e-6, **options: int
) -> MiniBatchSharpness:
    u = top_vector(p.hessian()).expand(stack, -1)
    return minibatch_sharpness(stacked(p, stack, **options), u, Draws(batch_size, draws, streams(stack), sampling), tol=tol)


def assert_within(estimate: Estimate, exact: torch.Tensor, errors: float = 4.5) -> None:
    assert float(estimate.standard_error[0]) > 0
    assert abs(float(estimate.value[0] - exact)) < errors * float(estimate.standard_error[0])


@pytest.mark.parametrize(("model", "loss"), EVERY)
def test_batch_sharpness_estimates_the_mean_over_all_batches(model: str, loss: str) -> None:
    p = few_examples(model, loss)
    gradients, curvatures, _ = exhaustive(p, B)
    squares = gradients.square().sum(1)
    estimate = sampled(p, B, draws=400)
    assert_within(estimate.ratio_of_means, curvatures.mean() / squares.mean())
    assert_within(estimate.mean_of_ratios, (curvatures / squares).mean())
    assert estimate.ratio_of_means.draws == 400


@pytest.mark.parametrize(("model", "loss"), EVERY)
def test_minibatch_sharpness_estimates_the_mean_over_all_batches(model: str, loss: str) -> None:
    p = few_examples(model, loss)
    assert_within(minibs(p, B, draws=100), exhaustive(p, B)[2].mean())


def test_batches_of_independent_examples_are_estimated_as_such() -> None:
    p = few_examples()
    pairs = [[i, j] for i in range(N) for j in range(N)]
    gradients = torch.stack([p.example_gradients()[pair].mean(0) for pair in pairs])
    hessians = torch.stack([p.hessian(0, pair) for pair in pairs])
    curvatures = torch.einsum("mi,mij,mj->m", gradients, hessians, gradients)
    estimate = sampled(p, B, draws=600, sampling="iid")
    assert_within(estimate.ratio_of_means, curvatures.mean() / gradients.square().sum(1).mean())
    assert_within(minibs(p, B, draws=100, sampling="iid"), torch.linalg.eigvalsh(hessians)[:, -1].mean())


def spread_over_reported(estimate: Estimate) -> float:
    """Spread of many independent estimates over the root mean square of the errors they report."""
    return float(estimate.value.std() / estimate.standard_error.square().mean().sqrt())


FORMS: dict[str, tuple[Callable[[Problem, int], Estimate], int]] = {
    "ratio of means": (lambda p, stack: sampled(p, B, 40, stack).ratio_of_means, 300),
    "mean of ratios": (lambda p, stack: sampled(p, B, 40, stack).mean_of_ratios, 300),
    "MiniBS": (lambda p, stack: minibs(p, B, 20, stack, tol=1e-3), 150),
    "MiniBS − FullBS": (lambda p, stack: minibs_and_gap(p, B, 20, stack, tol=1e-3).gap, 150),
}


@pytest.mark.parametrize(("estimate", "repeats"), FORMS.values(), ids=FORMS.keys())
def test_standard_errors_are_calibrated(estimate: Callable[[Problem, int], Estimate], repeats: int) -> None:
    """The spread of ``repeats`` estimates is known to 1/√(2·repeats); four of these, and 5 % for the delta method's own bias."""
    ratio = spread_over_reported(estimate(few_examples(n=10), repeats))
    assert abs(ratio - 1) < 4 / (2 * repeats) ** 0.5 + 0.05


def test_more_draws_than_fit_the_memory_at_once_give_the_same() -> None:
    p = few_examples()
    for estimate in (sampled, minibs):
        whole, cut = (estimate(p, B, draws=30, memory=memory) for memory in (1 << 30, 1))
        a, b = ([e.ratio_of_means, e.mean_of_ratios] if isinstance(e, BatchSharpness) else [e] for e in (whole, cut))
        for left, right in zip(a, b, strict=True):
            torch.testing.assert_close(left.value, right.value, rtol=1e-9, atol=0)
            torch.testing.assert_close(left.standard_error, right.standard_error, rtol=1e-6, atol=0)


def test_estimates_depend_only_on_the_networks_own_stream() -> None:
    p = few_examples()
    together, alone = sampled(p, B, 20, stack=3).ratio_of_means, sampled(p, B, 20).ratio_of_means
    assert len(set(together.value.tolist())) == 3
    torch.testing.assert_close(together.value[:1], alone.value, rtol=0, atol=0)


@pytest.mark.parametrize(("model", "loss"), EVERY)
def test_at_the_full_batch_nothing_is_sampled(model: str, loss: str) -> None:
    p = problem(model, loss)
    g, h = p.example_gradients().mean(0), p.hessian()
    for form in (sampled(p, p.n, draws=50).ratio_of_means, sampled(p, p.n, draws=50).mean_of_ratios):
        torch.testing.assert_close(form.value[0], g @ h @ g / (g @ g), rtol=1e-9, atol=0)
        assert (float(form.standard_error), form.draws) == (0.0, 1)
    full = minibs(p, p.n, draws=50)
    top = sharpness(p.at(), randn(1, 1, p.theta.shape[1]), tol=1e-8).values
    torch.testing.assert_close(full.value, top[:, 0], rtol=1e-9, atol=0)
    assert (float(full.standard_error), full.draws) == (0.0, 1)


@pytest.mark.parametrize(("model", "loss"), EVERY)
def test_minibatch_sharpness_is_above_the_sharpness(model: str, loss: str) -> None:
    """λ_max is convex and the mean of H_B over all batches is H (Jensen); the batches differ, so the gap is not zero."""
    p = few_examples(model, loss)
    estimate = minibs(p, B, draws=200)
    assert float(estimate.value - 4.5 * estimate.standard_error) > float(torch.linalg.eigvalsh(p.hessian())[-1])


@pytest.mark.parametrize("sampling", ["reshuffle", "iid"])
@pytest.mark.parametrize(("model", "loss"), EVERY)
def test_the_gap_of_minibatch_sharpness_is_that_over_all_batches(model: str, loss: str, sampling: str) -> None:
    p = few_examples(model, loss)
    tops = exhaustive(p, B)[2]
    if sampling == "iid":
        tops = torch.stack([torch.linalg.eigvalsh(p.hessian(0, [i, j]))[-1] for i in range(N) for j in range(N)])
    gap = minibs_and_gap(p, B, draws=200, sampling=sampling).gap
    assert_within(gap, tops.mean() - torch.linalg.eigvalsh(p.hessian())[-1])


def test_close_to_the_full_batch_the_gap_is_known_far_better_than_minibs() -> None:
    p = problem(n=40)
    found = minibs_and_gap(p, 38, draws=30)
    assert float(found.gap.standard_error) < float(found.value.standard_error) / 3
    assert float(found.gap.value) > 4.5 * float(found.gap.standard_error) > 0
    full = minibs_and_gap(p, 40, draws=30)
    assert abs(float(full.gap.value)) < 1e-9 * float(full.value.value)


@pytest.mark.parametrize("draws", [0, 1])
def test_fewer_than_two_draws_have_no_standard_error_and_are_refused(draws: int) -> None:
    p = few_examples()
    for estimate in (sampled, minibs):
        with pytest.raises(ValueError, match="a standard error needs at least two draws"):
            estimate(p, B, draws=draws)


# --- loss and accuracy -------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("memory", [1 << 30, 1])
@pytest.mark.parametrize(("model", "loss"), EVERY)
def test_loss_and_accuracy_are_means_over_all_examples(model: str, loss: str, memory: int) -> None:
    p = problem(model, loss, stack=2)
    losses, accuracy = loss_and_accuracy(p.at(memory=memory))
    for row in range(2):
        right = p.outputs(p.theta[row], p.x[0]).argmax(1) == p.y[0].argmax(1)
        torch.testing.assert_close(losses[row], p.example_losses(p.theta[row]).mean(), rtol=1e-12, atol=0)
        torch.testing.assert_close(accuracy[row], right.double().mean(), rtol=1e-12, atol=0)


@pytest.mark.gpu
def test_cuda_and_cpu_agree_on_every_measurement(cuda: torch.device) -> None:
    p, u = problem("cnn", stack=2), randn(2, problem("cnn").theta.shape[1])
    here, there = (p.at(theta=p.theta.to(d), x=p.x.to(d), y=p.y.to(d)) for d in ("cpu", cuda))
    draws = Draws(5, 7, streams(2))
    for measure in (
        lambda point: sharpness(point, u[:, None].to(point.x), tol=1e-8).values,
        lambda point: variance_of_batch_means(point.hessian().slopes(u.to(point.x)), 5, "reshuffle"),
        lambda point: batch_sharpness(point, draws).ratio_of_means.value,
        lambda point: minibatch_sharpness(point, u.to(point.x), draws, tol=1e-8).value.value,
    ):
        torch.testing.assert_close(measure(there).cpu(), measure(here), rtol=1e-8, atol=0)


def test_further_lots_are_drawn_until_the_precision_asked_for_is_reached() -> None:
    p = problem(n=30)
    rough, fine = (batch_sharpness(p.at(), Draws(4, 10, streams(1), **more)).ratio_of_means for more in ({}, {"precision": 0.02}))
    assert int(rough.draws) == 10 < int(fine.draws) < 10 * MAX_LOTS
    assert int(fine.draws) % 10 == 0
    assert float(rough.standard_error / rough.value) > 0.02 >= float(fine.standard_error / fine.value)
    once = batch_sharpness(p.at(), Draws(4, int(fine.draws), streams(1))).ratio_of_means
    torch.testing.assert_close((once.value, once.standard_error), (fine.value, fine.standard_error), rtol=1e-12, atol=0)


def test_lots_end_where_the_precision_cannot_be_reached() -> None:
    p = few_examples()
    u = top_vector(p.hessian()).unsqueeze(0)
    found = minibatch_sharpness(p.at(), u, Draws(B, 2, streams(1), precision=1e-9))
    assert int(found.value.draws) == 2 * MAX_LOTS


def test_minibs_is_off_by_less_than_a_tenth_of_its_standard_error() -> None:
    """No draw is looked through for an eigenvalue that was overlooked; dense Hessians of all draws say what that costs."""
    p, draws = problem("fc-tanh", n=40), 40
    found = minibs(p, 8, draws, tol=1e-2)
    lot = next(Draws(8, draws, streams(1)).lots(p.x, streams(1)[0]))
    truth = torch.stack([torch.linalg.eigvalsh(p.hessian(indices=indices))[-1] for indices in lot.tolist()]).mean()
    assert abs(float(found.value - truth)) < 0.1 * float(found.standard_error)
