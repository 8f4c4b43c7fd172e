"""Small models in which the edge of stability can be seen by eye, in numpy alone."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

import numpy as np


@dataclass(frozen=True)
class Toy:
    """A function of one variable, with its first two derivatives."""

    value: Callable[[np.ndarray], np.ndarray]
    gradient: Callable[[np.ndarray], np.ndarray]
    curvature: Callable[[np.ndarray], np.ndarray]


def quadratic(curvature: float) -> Toy:
    """λx²/2: the curvature is λ everywhere, so that a step size is right or wrong everywhere."""
    return Toy(
        lambda x: curvature * x**2 / 2.0,
        lambda x: curvature * np.asarray(x, dtype=float),
        lambda x: np.full_like(np.asarray(x, dtype=float), curvature),
    )


def flat_tails() -> Toy:
    """x²/√(1 + x²): curvature 2 at the origin, almost 0 far away, so that the iterate finds a place it is stable at."""
    return Toy(
        lambda x: x**2 / np.sqrt(1 + x**2),
        lambda x: x * (x**2 + 2) / (1 + x**2) ** 1.5,
        lambda x: (2 - x**2) / (1 + x**2) ** 2.5,
    )


def descend(toy: Toy, start: float, lr: float, steps: int) -> np.ndarray:
    """Gradient descent: the iterates x₀ … x_steps; from the step at which they overflow on, infinity or NaN."""
    xs = np.empty(steps + 1)
    xs[0] = start
    with np.errstate(over="ignore", invalid="ignore"):
        for t in range(steps):
            xs[t + 1] = xs[t] - lr * toy.gradient(xs[t])
    return xs


def two_cycle(lr: float) -> float:
    """The distance from the origin at which gradient descent on ``flat_tails`` jumps between x and −x: η L'(x) = 2x.

    With s = 1 + x² that is 2s^{3/2} = η(s + 1). There is such a cycle for η > 1, where the origin is unstable.

    Raises:
        ValueError: The origin is stable at this step size.
    """
    if lr <= 1:
        raise ValueError(f"η = {lr:g}: the origin is stable, there is no cycle around it")
    roots = np.roots([2.0, -lr, 0.0, -lr])  # in √s
    root = float(np.max(roots[np.abs(roots.imag) < 1e-9].real))
    return float(np.sqrt(root**2 - 1))


def valley(x: float, y: float, *, lr: float, alpha: float, steps: int, noise: float = 0.0, seed: int = 0) -> np.ndarray:
    """(Stochastic) gradient descent on L(x, y) = yx²/2 − αy: a valley whose walls get steeper the farther one goes down it.

    y is the curvature across the valley. Below 2/η the iterate falls to the floor x = 0 and y grows by ηα a step (progressive
    sharpening); above, x grows, and with it −∂L/∂y = α − x²/2 turns negative and drives y back (self-stabilization).

    Args:
        x: Start across the valley.
        y: Start along it.
        lr: Step size.
        alpha: Slope of the valley.
        steps: Number of steps.
        noise: Standard deviation of Gaussian noise on ∂L/∂x.
        seed: Seed of the noise.

    Returns:
        The iterates (steps + 1, 2).
    """
    draws = np.random.default_rng(seed).standard_normal(steps) * noise
    path = np.empty((steps + 1, 2))
    path[0] = x, y
    for t in range(steps):
        x, y = path[t]
        path[t + 1] = x - lr * (y * x + draws[t]), y - lr * (x**2 / 2.0 - alpha)
    return path


def power_iteration(curvatures: np.ndarray, start: np.ndarray, lr: float, steps: int) -> np.ndarray:
    """Gradient descent on ½Σλ_j x_j², λ₁ the largest: cosine between iterate and first axis, before every step and at the end.

    Where |1 − ηλ₁| is the largest of all factors, gradient descent turns towards u as power iteration with I − ηH does.

    Args:
        curvatures: λ (d,).
        start: x (d,).
        lr: Step size.
        steps: Number of steps.
    """
    path = start * (1.0 - lr * curvatures) ** np.arange(steps + 1)[:, None]
    return np.abs(path[:, 0]) / np.linalg.norm(path, axis=1)


class DiagonalNetwork:
    """f(x) = Σ_c a_c b_c x_c on two orthogonal classes: input e_c, target y_c, probability p_c (EoSS paper, appendix F).

    Parameters are θ = (a₁, b₁, a₂, b₂); the loss of an example is ½(f − y)².
    """

    def __init__(self, targets: np.ndarray, weights: np.ndarray) -> None:
        """Take targets y_c (2,) and probabilities p_c (2,)."""
        self.targets, self.weights = np.asarray(targets, dtype=float), np.asarray(weights, dtype=float)

    def residuals(self, theta: np.ndarray) -> np.ndarray:
        """a_c b_c − y_c (2,)."""
        return theta[0::2] * theta[1::2] - self.targets

    def class_gradient(self, theta: np.ndarray, c: int) -> np.ndarray:
        """Gradient of the loss of class c (4,)."""
        gradient = np.zeros(4)
        gradient[2 * c : 2 * c + 2] = self.residuals(theta)[c] * theta[2 * c : 2 * c + 2][::-1]
        return gradient

    def gradient(self, theta: np.ndarray) -> np.ndarray:
        """Gradient of the expected loss (4,)."""
        return self.weights[0] * self.class_gradient(theta, 0) + self.weights[1] * self.class_gradient(theta, 1)

    def class_hessian(self, theta: np.ndarray, c: int) -> np.ndarray:
        """Hessian of the loss of class c (4, 4)."""
        hessian = np.zeros((4, 4))
        a, b = theta[2 * c : 2 * c + 2]
        off = a * b + self.residuals(theta)[c]
        hessian[2 * c : 2 * c + 2, 2 * c : 2 * c + 2] = [[b**2, off], [off, a**2]]
        return hessian

    def hessian(self, theta: np.ndarray) -> np.ndarray:
        """Hessian of the expected loss (4, 4)."""
        return self.weights[0] * self.class_hessian(theta, 0) + self.weights[1] * self.class_hessian(theta, 1)

    def descend(self, theta: np.ndarray, lr: float, steps: int, seed: int | None = None) -> tuple[np.ndarray, np.ndarray]:
        """Gradient descent, or SGD with one example a step where a seed is given.

        Returns:
            The iterates (steps + 1, 4), and how much the steps shrank each class's imbalance a² − b², Π(1 − h²r²) (2,).
        """
        draws = None if seed is None else (np.random.default_rng(seed).random(steps) >= self.weights[0]).astype(int)
        path, shrinkage = np.empty((steps + 1, 4)), np.ones(2)
        path[0] = theta
        for t in range(steps):
            sizes = lr * (self.weights if draws is None else np.eye(2)[draws[t]])
            shrinkage *= 1.0 - (sizes * self.residuals(path[t])) ** 2
            update = self.gradient(path[t]) if draws is None else self.class_gradient(path[t], int(draws[t]))
            path[t + 1] = path[t] - lr * update
        return path, shrinkage


class OuterProducts:
    """Random matrices X = vvᵀ, v = Λ^½ √d s with s uniform on the unit sphere: EX = Λ = diag(spectrum), bounded."""

    def __init__(self, spectrum: np.ndarray) -> None:
        """Take the eigenvalues of EX, the largest first (d,)."""
        self.spectrum = np.asarray(spectrum, dtype=float)
        self.dimension = d = len(self.spectrum)
        self.radius = d * float(self.spectrum.max())  # λ_max(X − EX) < λ_max(X) ≤ d λ₁
        # E(vvᵀ)² with E s_j² s_k² = (1 + 2δ_jk)/(d(d + 2)); minus Λ².
        second = d / (d + 2) * self.spectrum * (self.spectrum.sum() + 2 * self.spectrum)
        self.variance = float(np.max(second - self.spectrum**2))
        self.top_variances = d / (d + 2) * self.spectrum[0] * self.spectrum  # Var(u₁ᵀX u_j), j > 1

    def vectors(self, rng: np.random.Generator, count: int) -> np.ndarray:
        """Draw v of so many matrices (count, d)."""
        z = rng.standard_normal((count, self.dimension))
        return z / np.linalg.norm(z, axis=1, keepdims=True) * np.sqrt(self.dimension * self.spectrum)

    def excess(self, rng: np.random.Generator, b: int, repeats: int) -> tuple[float, float]:
        """λ_max(mean of b matrices) − λ_max(EX): mean over repeats, with its standard error.

        From each the first-order part u₁ᵀ(mean − EX)u₁ is taken off, a control variate: zero on average, most of the scatter.
        """
        drawn = [self.vectors(rng, b) for _ in range(repeats)]
        tops = np.array([averaged_top(v) - float((v[:, 0] ** 2).mean()) for v in drawn])
        return float(tops.mean()), float(tops.std(ddof=1) / repeats**0.5)


def averaged_top(vectors: np.ndarray) -> float:
    """λ_max of the mean of outer products vᵢvᵢᵀ, vectors (b, d), from whichever of the two Gram matrices is smaller."""
    b, d = vectors.shape
    gram = vectors @ vectors.T if b < d else vectors.T @ vectors
    return float(np.linalg.eigvalsh(gram)[-1]) / b
