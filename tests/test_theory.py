"""The papers' formulas against simulation and algebra."""

from __future__ import annotations

import itertools

import numpy as np
import pytest

from eosslib import theory
from eosslib.theory import (
    bernstein_bound,
    bernstein_crossover,
    finite_population,
    gap_of_displacement,
    marchenko_pastur_edge,
    perturbed_gap,
    predicted_gap,
    stationary_displacement,
)
from eosslib.toys import averaged_top


@pytest.mark.parametrize("b", [1, 2, 4, 5])
def test_the_finite_population_factor_is_the_variance_of_a_mean_over_all_batches(b: int) -> None:
    values = np.array([0.3, -1.0, 2.0, 5.0, 0.1])
    without = np.var([np.mean(batch) for batch in itertools.combinations(values, b)])
    independent = np.var([np.mean(batch) for batch in itertools.product(values, repeat=b)])
    assert without == pytest.approx(values.var() * finite_population(5, b))
    assert independent == pytest.approx(values.var() * finite_population(5, b, "iid"))


def test_the_factor_takes_arrays_and_a_single_example() -> None:
    np.testing.assert_allclose(finite_population(100, np.array([1, 50, 100])), [1.0, 1 / 99, 0.0])
    assert (finite_population(1, 1), finite_population(1, 1, "iid")) == (0.0, 1.0)
    assert finite_population(10, 20, "iid") == 1 / 20


@pytest.mark.parametrize("b", [0, -1, 11, np.array([1, 11]), np.array([0, 5]), np.nan])
def test_batches_that_cannot_be_drawn_have_no_variance(b: int | np.ndarray) -> None:
    with pytest.raises(ValueError, match="a batch has at"):
        finite_population(10, b)


def test_independent_examples_fill_a_batch_of_one_at_least() -> None:
    with pytest.raises(ValueError, match="batch size 0: a batch has at least one example"):
        finite_population(10, 0, "iid")


def test_a_sampling_that_is_unknown_is_refused_by_name() -> None:
    with pytest.raises(ValueError, match="unknown sampling 'replace': use reshuffle or iid"):
        finite_population(10, 2, "replace")


# --- the sharpness gap -------------------------------------------------------------------------------------------------------


def reduced_dynamics(
    x: float | np.ndarray, y: float | np.ndarray, *, lr: float, alpha: float, beta: float, noise: np.ndarray
) -> tuple[np.ndarray, np.ndarray]:
    """SGD at the edge in two variables, x ← −(1 + ηy)x + ηξ, y = S − 2/η ← y + η(α − βx²/2), for noise ξ (T,) or (T, systems)."""
    xs, ys = (np.empty((len(noise) + 1, *noise.shape[1:])) for _ in range(2))
    xs[0], ys[0] = x, y
    for t, xi in enumerate(noise):
        xs[t + 1] = -(1.0 + lr * ys[t]) * xs[t] + lr * xi
        ys[t + 1] = ys[t] + lr * (alpha - beta * xs[t] ** 2 / 2.0)
    return xs, ys


@pytest.mark.parametrize("sigma", [0.5, 1.0])
def test_the_closed_form_is_the_gap_of_the_reduced_dynamics(sigma: float) -> None:
    """x ← −(1+ηy)x + ηξ, y ← y + η(α − βx²/2), simulated 16 times: E[x²] is 2α/β, and the gap is the closed form within 5 %.

    The closure E[x²y] = E[x²]E[y] asks for a gap above √(2α), the frequency with which x² and y exchange energy over η.
    """
    lr, alpha, beta, steps = 0.1, 1e-4, 1e-3, 60_000
    predicted = predicted_gap(lr, alpha, beta, sigma**2)
    assert predicted == pytest.approx(gap_of_displacement(lr, sigma**2, stationary_displacement(alpha, beta)))
    assert predicted > 4 * (2 * alpha) ** 0.5
    noise = sigma * np.random.default_rng(0).standard_normal((steps, 16))
    xs, ys = reduced_dynamics(np.full(16, 0.4), np.full(16, -predicted), lr=lr, alpha=alpha, beta=beta, noise=noise)
    squares, gaps = (xs[steps // 4 :] ** 2).mean(0), -ys[steps // 4 :].mean(0)
    assert squares.mean() == pytest.approx(stationary_displacement(alpha, beta), rel=0.02)
    assert abs(gaps.mean() - predicted) < 4 * gaps.std(ddof=1) / 4 + 0.05 * predicted


def test_without_noise_the_reduced_dynamics_cycles_around_the_threshold() -> None:
    """Self-stabilization: small cycles take 2π/(η√(2α)) = 4,443 steps, larger ones longer; x² is 2α/β on average."""
    lr, alpha, beta = 0.1, 1e-4, 1e-3
    xs, ys = reduced_dynamics(0.1, 0.0, lr=lr, alpha=alpha, beta=beta, noise=np.zeros(50_000))
    assert 16 <= (np.diff(np.sign(ys)) != 0).sum() <= 23
    assert (xs**2).mean() == pytest.approx(stationary_displacement(alpha, beta), rel=0.05)
    assert abs(ys.mean()) < 0.1 * (2 * alpha) ** 0.5


# --- averages of matrices ----------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("b", [4, 64])
def test_bernstein_bounds_the_mean_excess_of_an_average(b: int) -> None:
    """Signed diagonal matrices ε e_j e_jᵀ·d with j uniform: X² = d² e_j e_jᵀ, so v = d, R = d, EX = 0."""
    d, rng = 8, np.random.default_rng(1)
    tops = []
    for _ in range(400):
        diagonal = np.bincount(rng.integers(d, size=b), weights=rng.choice([-1.0, 1.0], size=b) * d, minlength=d) / b
        tops.append(diagonal.max())
    assert np.mean(tops) < bernstein_bound(b, variance=d, radius=d, dimension=d)
    assert bernstein_bound(1e8, d, d, d) * 1e4 == pytest.approx((2 * d * np.log(d)) ** 0.5, rel=1e-3)


def test_both_terms_of_the_bound_are_equal_at_the_crossover() -> None:
    b = bernstein_crossover(variance=2.0, radius=30.0, dimension=50)
    root = np.sqrt(2 * 2.0 * np.log(50) / b)
    assert bernstein_bound(b, 2.0, 30.0, 50) == pytest.approx(2 * root)


@pytest.mark.parametrize("b", [50, 200, 800])
def test_the_edge_of_marchenko_and_pastur_is_the_top_of_an_average_of_outer_products(b: int) -> None:
    d, rng = 200, np.random.default_rng(2)
    tops = [averaged_top(rng.standard_normal((b, d))) for _ in range(10)]
    assert np.mean(tops) == pytest.approx(marchenko_pastur_edge(b, d), rel=0.03)


def test_second_order_perturbation_is_the_gap_of_a_top_eigenvalue_that_stands_apart() -> None:
    """X = Λ^½ z zᵀ Λ^½ with z standard normal: Var(u₁ᵀX u_j) = λ₁λ_j."""
    spectrum, b, rng = np.array([10.0, 2.0, 1.0, 0.5]), 2_000, np.random.default_rng(3)
    excess = np.array([averaged_top(rng.standard_normal((b, 4)) * np.sqrt(spectrum)) - 10.0 for _ in range(4_000)])
    predicted = perturbed_gap(b, spectrum, spectrum[0] * spectrum)
    # The first order, z₁² − 1 averaged, is taken off: it has mean zero and would drown the second.
    assert abs(excess.mean() - predicted) < 4 * excess.std(ddof=1) / len(excess) ** 0.5
    assert predicted > 0


# --- beyond the closed form --------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(("n", "b"), [(12, 6), (12, 4), (12, 3), (20, 2), (13, 3)])
def test_the_edge_noise_factor_is_that_of_an_oscillation_fed_with_reshuffled_batches(n: int, b: int) -> None:
    rng, chains, decay = np.random.default_rng(0), 20_000, 0.99
    values = rng.standard_normal(n)
    values -= values.mean()
    x = np.zeros(chains)
    for _ in range(400 * b // n):  # 400 steps, after which 3e-4 of the start is left in the variance
        order = rng.permuted(np.tile(values, (chains, 1)), axis=1)
        for t in range(n // b):
            x = -decay * x + order[:, t * b : (t + 1) * b].mean(1)
    variance = values.var() * theory.finite_population(n, b) / (1 - decay**2)
    # The standard error of a variance is 1 % of it; 1 − decay times an epoch's length is what the limit leaves out.
    expected = float(theory.edge_noise_factor(n, b)) * variance
    assert x.var() == pytest.approx(expected, rel=0.04 + (1 - decay) * (n // b))


def test_independent_examples_have_no_edge_noise_factor() -> None:
    assert theory.edge_noise_factor(10, 5, "iid") == 1
    assert theory.edge_noise_factor(10, np.array([5, 20]), np.array(["reshuffle", "iid"])).tolist() == [2, 1]


@pytest.mark.parametrize(
    ("b", "sampling", "message"),
    [
        (5, "shuffle", "unknown sampling 'shuffle'"),
        (np.array([5, 5]), np.array(["iid", "other"]), "unknown sampling 'other'"),
        (np.array([20, 15]), np.array(["iid", "reshuffle"]), "batch size 15: without replacement a batch has at most all 10"),
        (5, np.array(["iid", None], dtype=object), "unknown sampling None"),
        (0, "iid", "at least one example"),
    ],
)
def test_an_edge_noise_factor_of_batches_that_cannot_be_drawn_is_refused(b, sampling, message: str) -> None:
    with pytest.raises(ValueError, match=message):
        theory.edge_noise_factor(10, b, sampling)


@pytest.mark.parametrize("momentum", [0.0, 0.5, 0.9])
def test_gaps_that_are_not_small_are_those_of_a_quadratic_with_noise_and_heavy_ball_momentum(momentum: float) -> None:
    lr, sigma, gap = 0.1, 0.3, 8.0 * (1 + momentum)
    curvature = theory.momentum_threshold(lr, momentum) - gap
    rng = np.random.default_rng(1)
    x, velocity, squares = np.zeros(20_000), np.zeros(20_000), []
    burn = int(40 / (1 - momentum))
    for t in range(burn + 20):
        velocity = momentum * velocity + curvature * x + sigma * rng.standard_normal(len(x))
        x = x - lr * velocity
        if t >= burn:
            squares.append((x**2).mean())
    small = theory.gap_of_displacement(lr, sigma**2, float(np.mean(squares)), momentum)
    exact = gap * (1 - lr * gap / (2 + 2 * momentum))
    assert small == pytest.approx(exact, rel=0.02)  # simulated; exact is far below the gap itself
    assert exact < 0.7 * gap
    assert float(theory.gap_beyond_small(lr, exact, momentum)) == pytest.approx(gap, rel=1e-9)
    assert np.isnan(theory.gap_beyond_small(lr, 0.51 * (1 + momentum) / lr, momentum))


@pytest.mark.parametrize("momentum", [0.0, 0.5, 0.9])
@pytest.mark.parametrize("curvature", [0.5, 10.0, 19.0])
def test_the_displacement_that_noise_drives_solves_the_lyapunov_equation(momentum: float, curvature: float) -> None:
    lr, variance = 0.1, 0.3
    step = np.array([[1.0 + momentum - lr * curvature, -momentum], [1.0, 0.0]])
    noise = np.diag([lr**2 * variance, 0.0])
    exact = np.linalg.solve(np.eye(4) - np.kron(step, step), noise.flatten())[0]
    assert theory.noise_displacement(lr, curvature, variance, momentum) == pytest.approx(exact, rel=1e-9)


def test_above_the_threshold_there_is_no_stationary_displacement() -> None:
    assert np.isnan(theory.noise_displacement(0.1, np.array([20.0, 25.0]), 0.3)).all()
    assert np.isfinite(theory.noise_displacement(0.1, np.array([25.0, 37.0]), 0.3, 0.9)).all()
