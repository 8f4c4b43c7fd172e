"""The papers' formulas, in numpy alone: what the measurements are held against.

Symbols: η step size, S sharpness, u its unit eigenvector, α progressive sharpening, β self-stabilization, σ_u² projected noise
variance, x displacement along u from the constrained trajectory, b batch size, n number of training examples.
"Gap paper": arXiv:2604.21016; "EoSS paper": arXiv:2412.20553; "self-stabilization paper": arXiv:2209.15594.
"""

from __future__ import annotations

from typing import Any, TypeVar

import numpy as np

Number = TypeVar("Number", float, np.ndarray)


# --- sampling ----------------------------------------------------------------------------------------------------------------


def check_batches(n: Any, b: Any, sampling: Any) -> None:
    """Refuse batches that cannot be drawn.

    Args:
        n: Number of training examples, or an array of them, as of the following.
        b: Batch size.
        sampling: ``reshuffle`` (without replacement) or ``iid``.

    Raises:
        ValueError: The sampling is none of the two, or a batch has no example or, without replacement, more than there are.
    """
    for examples, size, name in np.broadcast(np.asarray(n), np.asarray(b), np.asarray(sampling, dtype=object)):
        if name not in ("reshuffle", "iid"):
            raise ValueError(f"unknown sampling {name!r}: use reshuffle or iid")
        if not size >= 1:
            raise ValueError(f"batch size {size}: a batch has at least one example")
        if name == "reshuffle" and not size <= examples:
            raise ValueError(f"batch size {size}: without replacement a batch has at most all {examples} examples")


def finite_population(n: int, b: Number, sampling: str = "reshuffle") -> Number:
    """Variance of the mean of a batch over the variance of one example (divisor n).

    (1/b)·(n−b)/(n−1) where a batch is drawn without replacement, 1/b where its examples are independent (Cochran 1977, §2.6).

    Args:
        n: Number of training examples.
        b: Batch size, or an array of them.
        sampling: ``reshuffle`` or ``iid``.

    Raises:
        ValueError: As ``check_batches``.
    """
    check_batches(n, b, sampling)
    if sampling == "iid":
        return 1.0 / b
    return (n - b) / (b * max(n - 1, 1))


def edge_noise_factor(n: int | np.ndarray, b: int | np.ndarray, sampling: str | np.ndarray = "reshuffle") -> np.ndarray:
    """How much more noise drives the oscillation at the edge than Var(uᵀg_B) says, where batches come from reshuffling.

    The batches of an epoch add up to a fixed sum: two of them have covariance −s²/(n−1). The oscillation x ← −x + ηξ adds them
    with alternating signs, so what counts is the spectral density of ξ at period two, E(Σ_t (−1)^t ξ_t)²/m over the m = ⌊n/b⌋
    batches of an epoch. That is σ_u² times 1 + b/(n−b)·(1 − [m odd]/m), which for even m takes back the factor (n−b)/(n−1) of
    drawing without replacement: what is left is s²/b, as for independent examples. Holds where the oscillation outlives an epoch.

    Args:
        n: Number of training examples.
        b: Batch size.
        sampling: ``reshuffle`` or ``iid``.

    Returns:
        The factor, of the arguments' common shape.

    Raises:
        ValueError: As ``check_batches``.

    Example:
        >>> float(edge_noise_factor(1000, 500)), float(edge_noise_factor(1000, 1000))
        (2.0, 1.0)
    """
    check_batches(n, b, sampling)
    batches = np.maximum(np.asarray(n) // b, 1)  # none fits where examples are independent and b > n
    alternating = np.where(batches % 2, 1.0 - 1.0 / batches, 1.0)
    return np.where(np.asarray(sampling) == "iid", 1.0, 1.0 + b / np.maximum(n - np.asarray(b), 1) * alternating)


# --- the sharpness gap -------------------------------------------------------------------------------------------------------


def threshold(lr: Number) -> Number:
    """2/η: above this curvature, gradient descent on a quadratic diverges (Cohen et al. 2021, arXiv:2103.00065)."""
    return 2.0 / lr


def momentum_threshold(lr: Number, momentum: float, nesterov: bool = False) -> Number:
    """(2 + 2μ)/η with heavy-ball momentum μ, (2 + 2μ)/(η(1 + 2μ)) with Nesterov's (Cohen et al. 2021, theorem 1)."""
    return (2.0 + 2.0 * momentum) / (lr * (1.0 + 2.0 * momentum) if nesterov else lr)


def adam_threshold(lr: Number, beta1: float = 0.9) -> Number:
    """(2 + 2β₁)/((1 − β₁)η), against the top eigenvalue of the preconditioned Hessian (Cohen et al. 2022, arXiv:2207.14484)."""
    return (2.0 + 2.0 * beta1) / ((1.0 - beta1) * lr)


def predicted_gap(lr: Number, alpha: Number, beta: Number, noise_variance: Number, momentum: Any = 0.0) -> Number:
    """ΔS = ηβσ_u²/(4α(1 − μ)), the gap between the plateaus of GD and SGD (gap paper, the closed form, for μ = 0).

    With heavy-ball momentum μ an oscillation ±x near the threshold (2 + 2μ)/η grows by 1 + η(S − (2 + 2μ)/η)/(1 − μ) a step and is
    driven by ηξ/(1 − μ), while its stationary mean square 2α/β is that without momentum (ours).
    """
    return lr / (1.0 - momentum) * beta * noise_variance / (4.0 * alpha)


def gap_of_displacement(lr: Number, noise_variance: Number, mean_square: Number, momentum: Any = 0.0) -> Number:
    """ΔS = ησ_u²/(2(1 − μ)E[x²]): stationarity of x² alone, half of the way to the closed form; needs neither α nor β."""
    return lr / (1.0 - momentum) * noise_variance / (2.0 * mean_square)


def stationary_displacement(alpha: Number, beta: Number) -> Number:
    """E[x²] = 2α/β: stationarity of the sharpness, for GD and SGD alike (self-stabilization paper, §4)."""
    return 2.0 * alpha / beta


def noise_displacement(lr: Number, curvature: Number, noise_variance: Number, momentum: Any = 0.0) -> np.ndarray:
    """E[x²] = ησ²(1 + μ)/((1 − μ)λ(2 + 2μ − ηλ)) on a quadratic of curvature λ with noise that is independent from step to step.

    NaN at and above the stability threshold, λ ≥ (2 + 2μ)/η, where there is no stationary state.
    """
    margin = 2.0 + 2.0 * np.asarray(momentum) - np.asarray(lr) * curvature
    with np.errstate(divide="ignore", invalid="ignore"):
        value = lr * noise_variance * (1.0 + momentum) / ((1.0 - momentum) * curvature * margin)
    return np.where((margin > 0) & (np.asarray(curvature) > 0), value, np.nan)


def gap_beyond_small(lr: float | np.ndarray, small_gap: float | np.ndarray, momentum: float | np.ndarray = 0.0) -> np.ndarray:
    """Solve ΔS(1 − ηΔS/(2 + 2μ)) = ΔS₀ for ΔS, where ΔS₀ is the closed form, which holds for small ηΔS.

    On a quadratic of curvature λ = (2 + 2μ)/η − ΔS, x ← (1 + μ − ηλ)x − μx₋₁ + ηξ has, exactly (``noise_displacement``),
    E[x²] = ησ²/(2(1 − μ)ΔS(1 − ηΔS/(2 + 2μ))). Of two solutions this is the one near the threshold, at most half of it.
    NaN where no curvature below the threshold has so small a variance (ΔS₀ above (1 + μ)/(2η)).

    Args:
        lr: Step size η.
        small_gap: ΔS₀.
        momentum: μ of the heavy ball.

    Returns:
        ΔS, of the arguments' common shape.

    Example:
        >>> float(gap_beyond_small(0.1, 3.75).round(12))  # 5 (1 − 0.1·5/2) = 3.75
        5.0
    """
    with np.errstate(invalid="ignore"):
        scaled = lr / (1.0 + momentum)
        return (1.0 - np.sqrt(1.0 - 2.0 * scaled * np.asarray(small_gap, dtype=float))) / scaled


# --- a diagonal linear network on two orthogonal classes (EoSS paper, appendix F) ---------------------------------------------


def diagonal_curvature(a: Number, b: Number) -> Number:
    """a² + b²: the non-zero eigenvalue of the Hessian of ½(ab − y)² where ab = y, with eigenvector (b, a)/√(a² + b²)."""
    return a**2 + b**2


def diagonal_full_batch(curvatures: np.ndarray, weights: np.ndarray) -> float:
    """max_c p_c λ_c: sharpness of the full batch at convergence, for classes of weight p_c (EoSS equation 8)."""
    return float(np.max(weights * curvatures))


def diagonal_minibatch(curvatures: np.ndarray, weights: np.ndarray, b: int = 1) -> float:
    """E[max_c (k_c/b) λ_c] with k_c of b independent examples in class c: MiniBS at convergence (b = 1: EoSS equation 9).

    Args:
        curvatures: λ of the two classes (2,).
        weights: Their probabilities (2,).
        b: Batch size.
    """
    from scipy.stats import binom  # half a second that the training jobs do without

    k = np.arange(b + 1)
    top = np.maximum(k / b * curvatures[0], (1 - k / b) * curvatures[1])
    return float((binom.pmf(k, b, weights[0]) * top).sum())


def diagonal_end(imbalance: np.ndarray, target: np.ndarray, shrinkage: float | np.ndarray = 1.0) -> np.ndarray:
    """√((D·q)² + 4y²): the curvature a² + b² at which ab reaches y, from the imbalance D = a² − b² at the start.

    A step of size h on ½(ab − y)² turns a² − b² into (a² − b²)(1 − h²r²), r = ab − y; that is exact. So gradient flow keeps D
    (q = 1), and any sequence of steps ends with q = Π(1 − h²r²).

    Args:
        imbalance: D.
        target: y.
        shrinkage: q.
    """
    return np.sqrt((imbalance * shrinkage) ** 2 + 4.0 * target**2)


def diagonal_alignment(residuals: np.ndarray, curvatures: np.ndarray, weights: np.ndarray) -> float:
    """|cos| between the full-batch gradient Σ p_c r_c √λ_c v_c and the top eigenvector v_c of the largest p_c λ_c.

    That of a single example with its own top eigenvector is 1: every gradient is a multiple of its v_c (EoSS appendix F).

    Args:
        residuals: r_c = a_c b_c − y_c, small (2,).
        curvatures: λ_c (2,).
        weights: p_c (2,).
    """
    parts = np.abs(weights * residuals) * np.sqrt(curvatures)
    return float(parts[np.argmax(weights * curvatures)] / np.linalg.norm(parts))


# --- the largest eigenvalue of an average of matrices (EoSS paper, §4 and appendix B) ----------------------------------------


def bernstein_bound(b: Number, variance: float, radius: float, dimension: int) -> Number:
    """√(2 v log d / b) + R log d / (3b) ≥ E λ_max(mean of b independent matrices − their expectation).

    EoSS proposition 4.2, with the constants of Tropp 2015 (arXiv:1501.01571), theorem 6.6.1: the first term falls like 1/√b,
    the second like 1/b.

    Args:
        b: Number of matrices averaged.
        variance: v = ‖E(X − EX)²‖.
        radius: R ≥ λ_max(X − EX), for every X.
        dimension: d.
    """
    log = np.log(dimension)
    return np.sqrt(2.0 * variance * log / b) + radius * log / (3.0 * b)


def bernstein_crossover(variance: float, radius: float, dimension: int) -> float:
    """The b at which both terms of the bound are equal, R² log d / (18 v): 1/b below it, 1/√b above."""
    return radius**2 * np.log(dimension) / (18.0 * variance)


def marchenko_pastur_edge(b: Number, dimension: int) -> Number:
    """(1 + √(d/b))²: λ_max of the mean of b outer products of standard normal vectors in d dimensions, for large d.

    Minus 1, that of their expectation, it falls like d/b for b ≪ d and like 2√(d/b) for b ≫ d (Marchenko and Pastur 1967).
    """
    return (1.0 + np.sqrt(dimension / b)) ** 2


def perturbed_gap(b: Number, spectrum: np.ndarray, variances: np.ndarray) -> Number:
    """(1/b) Σ_j Var(u₁ᵀX u_j)/(λ₁ − λ_j): the gap where the top eigenvalue stands apart from the rest, for large b.

    Second-order perturbation theory (Kato 1966, §II.2): the first order vanishes on average, which is why the rate is 1/b.

    Args:
        b: Number of matrices averaged.
        spectrum: Eigenvalues of EX, λ₁ first (d,).
        variances: Var(u₁ᵀX u_j), the first of which is not used (d,).
    """
    return float(np.sum(variances[1:] / (spectrum[0] - spectrum[1:]))) / b
