"""Small models in which the edge of stability can be seen by eye."""

from __future__ import annotations

import numpy as np
import pytest

from eosslib import theory, toys
from eosslib.toys import DiagonalNetwork

EVERYWHERE = np.linspace(-3, 3, 31)


@pytest.mark.parametrize("toy", [toys.quadratic(3.0), toys.flat_tails()], ids=["quadratic", "flat tails"])
def test_gradient_and_curvature_are_the_derivatives_of_the_value(toy: toys.Toy) -> None:
    h = 1e-4
    gradient = (toy.value(EVERYWHERE + h) - toy.value(EVERYWHERE - h)) / (2 * h)
    curvature = (toy.gradient(EVERYWHERE + h) - toy.gradient(EVERYWHERE - h)) / (2 * h)
    np.testing.assert_allclose(toy.gradient(EVERYWHERE), gradient, rtol=1e-6, atol=1e-7)
    np.testing.assert_allclose(toy.curvature(EVERYWHERE), curvature, rtol=1e-6, atol=1e-7)


@pytest.mark.parametrize(("lr", "ends", "flips"), [(0.2, 0.0, False), (0.8, 0.0, True), (1.2, np.inf, True)])
def test_a_quadratic_has_three_regimes(lr: float, ends: float, flips: bool) -> None:
    """λ = 2: η < 1/λ falls, η < 2/λ jumps across and converges, η > 2/λ diverges."""
    path = toys.descend(toys.quadratic(2.0), 1.0, lr, 3_000)
    assert np.abs(path[-1]) == pytest.approx(ends, abs=1e-12) if np.isfinite(ends) else not np.isfinite(path[-1])
    assert bool((np.sign(path[1:10]) != np.sign(path[:9])).all()) == flips


def test_an_iterate_that_overflowed_stays_off_the_numbers() -> None:
    path = toys.descend(toys.quadratic(2.0), 1.0, 1.2, 3_000)
    first = int(np.flatnonzero(~np.isfinite(path))[0])
    assert np.isinf(path[first])
    assert not np.isfinite(path[first:]).any()


@pytest.mark.parametrize("start", [1e-3, 0.5, 3.0, 20.0])
def test_with_flat_tails_every_start_ends_in_the_same_cycle_where_the_mean_curvature_is_the_threshold(start: float) -> None:
    lr = 1.2  # 2/η = 1.67 is below the 2 of the origin
    path = toys.descend(toys.flat_tails(), start, lr, 4_000)
    x = toys.two_cycle(lr)
    np.testing.assert_allclose(np.abs(path[-10:]), x, rtol=1e-9)
    assert np.sign(path[-1]) != np.sign(path[-2])
    # The gradient's mean slope between −x and x, the curvature the iterate feels, is 2/η.
    assert toys.flat_tails().gradient(x) / x == pytest.approx(theory.threshold(lr))


def test_there_is_no_cycle_where_the_origin_is_stable() -> None:
    with pytest.raises(ValueError, match="the origin is stable"):
        toys.two_cycle(0.9)
    assert abs(toys.descend(toys.flat_tails(), 20.0, 0.9, 4_000)[-1]) < 1e-9


def test_the_valley_keeps_its_curvature_at_the_threshold_and_noise_lowers_it() -> None:
    lr, alpha, steps = 0.1, 0.005, 60_000
    path = toys.valley(0.1, 19.9, lr=lr, alpha=alpha, steps=steps)
    y = path[steps // 4 :, 1]
    assert y.mean() == pytest.approx(theory.threshold(lr), rel=0.001)
    assert y.max() > theory.threshold(lr) > y.min()
    assert (path[steps // 4 :, 0] ** 2).mean() == pytest.approx(theory.stationary_displacement(alpha, 1.0), rel=0.05)
    sigma = 0.5
    noisy = toys.valley(0.1, 19.9, lr=lr, alpha=alpha, steps=steps, noise=sigma)[steps // 4 :, 1]
    gap, predicted = theory.threshold(lr) - noisy.mean(), theory.predicted_gap(lr, alpha, 1.0, sigma**2)
    assert gap == pytest.approx(predicted, rel=0.15)
    # What is left is the next order: x² shrinks by 2ηΔS − η²ΔS² a step, not by 2ηΔS.
    assert gap * (1 - lr * gap / 2) == pytest.approx(predicted, rel=0.05)


def test_below_the_threshold_the_iterate_stays_on_the_floor_of_the_valley() -> None:
    path = toys.valley(0.3, 1.0, lr=0.1, alpha=0.05, steps=1_000)
    assert abs(path[-1, 0]) < 1e-6
    np.testing.assert_allclose(np.diff(path[500:, 1]), 0.1 * 0.05, rtol=1e-6)  # progressive sharpening


@pytest.mark.parametrize("lr", [0.3, 1.2])
def test_gradient_descent_turns_to_the_top_direction_just_where_it_is_unstable(lr: float) -> None:
    curvatures = np.array([2.0, 1.0, 0.5])  # at η = 1.2 the first factor is −1.4, at 0.3 it is the smallest
    cosine = toys.power_iteration(curvatures, np.array([1e-3, 1.0, 1.0]), lr, 60)
    assert cosine[-1] > 0.999 if lr == 1.2 else cosine[-1] < cosine[0]


# --- the diagonal linear network ---------------------------------------------------------------------------------------------

NETWORK = DiagonalNetwork(np.array([1.0, 0.6]), np.array([0.7, 0.3]))
THETA = np.array([0.9, 0.4, -0.3, 0.8])


def numerical(function, theta: np.ndarray, h: float = 1e-5) -> np.ndarray:
    return np.stack([(function(theta + h * e) - function(theta - h * e)) / (2 * h) for e in np.eye(len(theta))])


@pytest.mark.parametrize("c", [0, 1])
def test_gradient_and_hessian_of_the_diagonal_network_are_those_of_its_loss(c: int) -> None:
    np.testing.assert_allclose(
        NETWORK.class_gradient(THETA, c), numerical(lambda t: 0.5 * NETWORK.residuals(t)[c] ** 2, THETA), rtol=1e-8, atol=1e-9
    )
    np.testing.assert_allclose(
        NETWORK.class_hessian(THETA, c), numerical(lambda t: NETWORK.class_gradient(t, c), THETA), rtol=1e-8, atol=1e-9
    )
    np.testing.assert_allclose(NETWORK.hessian(THETA), numerical(NETWORK.gradient, THETA), rtol=1e-8, atol=1e-9)


def converged() -> np.ndarray:
    path, _ = NETWORK.descend(THETA, 0.3, 4_000)
    assert np.abs(NETWORK.residuals(path[-1])).max() < 1e-14
    return path[-1]


def test_the_spectra_at_convergence_are_the_closed_forms_to_rounding() -> None:
    theta = converged()
    curvatures = theory.diagonal_curvature(theta[0::2], theta[1::2])
    for c in (0, 1):
        values, vectors = np.linalg.eigh(NETWORK.class_hessian(theta, c))
        np.testing.assert_allclose(values, [0, 0, 0, curvatures[c]], atol=1e-13)
        a, b = theta[2 * c : 2 * c + 2]
        assert abs(vectors[2 * c : 2 * c + 2, -1] @ [b, a]) / np.hypot(a, b) == pytest.approx(1, abs=1e-13)
    full = np.linalg.eigvalsh(NETWORK.hessian(theta))
    np.testing.assert_allclose(full, [0, 0, *np.sort(NETWORK.weights * curvatures)], atol=1e-13)
    assert full[-1] == pytest.approx(theory.diagonal_full_batch(curvatures, NETWORK.weights), abs=1e-13)
    assert (curvatures >= 2 * np.abs(NETWORK.targets)).all()


@pytest.mark.parametrize("b", [1, 2, 5, 40])
def test_minibs_is_the_mean_over_drawn_batches(b: int) -> None:
    theta = converged()
    curvatures = theory.diagonal_curvature(theta[0::2], theta[1::2])
    counts = np.random.default_rng(0).binomial(b, NETWORK.weights[0], size=4_000)
    hessians = [NETWORK.class_hessian(theta, c) for c in (0, 1)]
    tops = np.array([np.linalg.eigvalsh((k * hessians[0] + (b - k) * hessians[1]) / b)[-1] for k in counts])
    predicted = theory.diagonal_minibatch(curvatures, NETWORK.weights, b)
    assert abs(tops.mean() - predicted) < 4 * tops.std() / len(tops) ** 0.5
    assert predicted > theory.diagonal_full_batch(curvatures, NETWORK.weights)
    if b == 1:
        assert predicted == pytest.approx(float(NETWORK.weights @ curvatures))


@pytest.mark.parametrize("seed", [None, 0, 1])
def test_gd_and_sgd_end_where_the_formula_says(seed: int | None) -> None:
    """In particular they end in different places: what a step shrinks depends on its size."""
    path, shrinkage = NETWORK.descend(THETA, 0.5, 6_000, seed)
    assert np.abs(NETWORK.residuals(path[-1])).max() < 1e-13
    imbalance = THETA[0::2] ** 2 - THETA[1::2] ** 2
    ends = theory.diagonal_end(imbalance, NETWORK.targets, shrinkage)
    np.testing.assert_allclose(theory.diagonal_curvature(path[-1, 0::2], path[-1, 1::2]), ends, rtol=1e-12)
    assert (ends < theory.diagonal_end(imbalance, NETWORK.targets)).all(), "flatter than gradient flow"


@pytest.mark.parametrize(("b", "d"), [(5, 8), (8, 5)])
def test_the_top_of_an_average_comes_from_either_gram_matrix(b: int, d: int) -> None:
    vectors = np.random.default_rng(0).standard_normal((b, d))
    mean = sum(np.outer(v, v) for v in vectors) / b
    assert toys.averaged_top(vectors) == pytest.approx(np.linalg.eigvalsh(mean)[-1], rel=1e-12)


def test_outer_products_have_the_moments_they_state() -> None:
    ensemble = toys.OuterProducts(np.array([4.0, 2.0, 1.0]))
    v = ensemble.vectors(np.random.default_rng(0), 200_000)
    matrices = v[:, :, None] * v[:, None, :]
    deviations = matrices - np.diag(ensemble.spectrum)
    np.testing.assert_allclose(matrices.mean(0), np.diag(ensemble.spectrum), atol=0.03)
    assert np.linalg.eigvalsh((deviations @ deviations).mean(0))[-1] == pytest.approx(ensemble.variance, rel=0.02)
    np.testing.assert_allclose(matrices[:, 0, 1:].var(0), ensemble.top_variances[1:], rtol=0.03)
    assert np.linalg.eigvalsh(deviations[:5_000])[:, -1].max() < ensemble.radius
    mean, error = ensemble.excess(np.random.default_rng(1), 16, 400)
    assert 0 < mean < theory.bernstein_bound(16, ensemble.variance, ensemble.radius, 3)
    assert error < 0.2 * mean
    mean, error = ensemble.excess(np.random.default_rng(2), 256, 2_000)  # for large b, second-order perturbation theory
    assert mean == pytest.approx(theory.perturbed_gap(256, ensemble.spectrum, ensemble.top_variances), abs=4 * error)
    assert error < 0.05 * mean


@pytest.mark.parametrize("theta", [converged() + 1e-7 * np.array([1.0, -2.0, 0.5, 3.0])])
def test_gradients_align_with_top_eigenvectors_as_the_closed_form_says(theta: np.ndarray) -> None:
    curvatures = theory.diagonal_curvature(theta[0::2], theta[1::2])
    for c in (0, 1):
        u, g = np.linalg.eigh(NETWORK.class_hessian(theta, c))[1][:, -1], NETWORK.class_gradient(theta, c)
        assert abs(u @ g) / np.linalg.norm(g) == pytest.approx(1, abs=1e-6)
    u, g = np.linalg.eigh(NETWORK.hessian(theta))[1][:, -1], NETWORK.gradient(theta)
    predicted = theory.diagonal_alignment(NETWORK.residuals(theta), curvatures, NETWORK.weights)
    assert abs(u @ g) / np.linalg.norm(g) == pytest.approx(predicted, abs=1e-6)
    assert predicted < 0.99
