"""The predicted dynamics of the self-stabilization paper, with mini-batch noise, beside the trajectory it predicts.

The *constrained trajectory* θ† is gradient descent projected on the points with S ≤ 2/η and no gradient along u. The *predicted
dynamics* is a recursion for the displacement v ≈ θ − θ† that knows the network only through θ†: its Hessian H, its top
eigenvector u, and ∇S^⊥ there. With x = u·v and y = S(θ†) − 2/η + ∇S^⊥·v,

    v ← v − η [∇L(θ†) + H P v + x (2/η + y) u + ½ x² ∇S^⊥ + ξ] − (θ†₊ − θ†),      P = I − uuᵀ,

which are the predicted dynamics of Damian, Nichani, Lee 2023 (arXiv:2209.15594, §4), written before the part of the gradient along
∇S^⊥ is replaced by that of the projection, plus the noise ξ = g_B(θ†) − ∇L(θ†) of the mini-batch that the real SGD takes
(sharpness-gap paper). Along u it reads x ← −(1 + ηy)x − ηuᵀξ.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from dataclasses import dataclass

import torch

from eosslib.curvature import Point, third_derivative
from eosslib.eigen import top_eigenpairs, warn_if_uncertain, without
from eosslib.measure.sharpness import sharpness
from eosslib.theory import threshold

TOL = 1e-4  # relative residual of the eigenpairs of the constrained trajectory; of the real one's 1e-3, for S to 1e-6
PROJECTIONS = 3  # Newton steps that bring the first iterate to the constrained trajectory


def _dot(a: torch.Tensor, b: torch.Tensor) -> torch.Tensor:
    return (a * b).sum(1, keepdim=True)


class Constrained:
    """A point of the constrained trajectory of each of R networks, with all that the predicted dynamics asks of it.

    Attributes:
        theta: The point (R, P).
        lr: η.
        threshold: 2/η.
        sharpness: S (R, 1), at most 2/η up to second order in the last correction.
        u: Unit top eigenvectors (R, P); their sign is kept from point to point.
        gradient: ∇L (R, P), without its part along u.
        ascent: ∇S^⊥ (R, P).
        hessian: H as an operator.
    """

    def __init__(self, near: Point, u: torch.Tensor, lr: float) -> None:
        """Project a point on the constraint, by one Newton step each along u and along ∇S^⊥, and describe where it is.

        What is described was measured before the correction, which is of second order along the trajectory.

        Args:
            near: Networks near the constrained trajectory.
            u: Top eigenvectors nearby (R, P).
            lr: η.
        """
        self.near, self.lr, self.threshold = near, lr, threshold(lr)
        self.hessian = near.hessian()
        pairs = warn_if_uncertain(top_eigenpairs(self.hessian, u.unsqueeze(1), tol=TOL), "constrained trajectory")
        self.u = pairs.vectors[:, 0] * torch.sign(_dot(pairs.vectors[:, 0], u))
        gradient, curvature = self.hessian.gradient(), pairs.values
        self.ascent = without(self.u.unsqueeze(1), third_derivative(near, self.u, self.u))
        along, above = _dot(gradient, self.u), (curvature - self.threshold).clamp_min(0.0)
        self.gradient = gradient - along * self.u
        self.sharpness = curvature - above
        self.theta = near.theta - along / curvature * self.u - above / self.beta * self.ascent

    @property
    def alpha(self) -> torch.Tensor:
        """−∇L·∇S^⊥ (R, 1)."""
        return -_dot(self.gradient, self.ascent)

    @property
    def beta(self) -> torch.Tensor:
        """‖∇S^⊥‖² (R, 1)."""
        return _dot(self.ascent, self.ascent)

    def noise(self, indices: torch.Tensor | None) -> torch.Tensor:
        """Return ξ = g_B − ∇L here, for each network's mini-batch (R, b); zero where there is none: (R, P)."""
        if indices is None:
            return torch.zeros_like(self.theta)
        objective, x, y = self.near.objective, self.near.x, self.near.y
        gradient = objective.batch_gradient(objective.network.views(self.theta), x[0, indices], y[0, indices])
        return objective.network.flatten(gradient) - self.gradient

    def following(self) -> Constrained:
        """Return the point one projected step of gradient descent further."""
        return self.projected(self.theta - self.lr * self.gradient)

    def projected(self, theta: torch.Tensor) -> Constrained:
        """Return the projection of another point nearby (R, P)."""
        return Constrained(self.near.at(theta), self.u, self.lr)

    def predict(self, v: torch.Tensor, noise: torch.Tensor, moved: torch.Tensor) -> torch.Tensor:
        """Make one step of the predicted dynamics (R, P) → (R, P); ``moved`` is θ†₊ − θ†."""
        x = _dot(v, self.u)
        force = self.gradient + self.hessian(v - x * self.u) + x * (self.threshold + self.excess(v)) * self.u
        return v - self.lr * (force + x**2 / 2.0 * self.ascent + noise) - moved

    def excess(self, v: torch.Tensor) -> torch.Tensor:
        """Return y = S(θ†) − 2/η + ∇S^⊥·v (R, 1), the predicted excess of the sharpness over the threshold at θ† + v."""
        return self.sharpness - self.threshold + _dot(self.ascent, v)


@dataclass(frozen=True)
class Coupled:
    """Real and predicted trajectory at one step, of R networks: each (R,)."""

    x: torch.Tensor  # u·(θ − θ†)
    x_predicted: torch.Tensor  # u·v
    y: torch.Tensor  # S(θ) − 2/η
    y_predicted: torch.Tensor
    y_constrained: torch.Tensor  # S(θ†) − 2/η
    distance: torch.Tensor  # ‖θ − θ†‖
    distance_predicted: torch.Tensor  # ‖v‖
    coupling_error: torch.Tensor  # ‖θ − θ† − v‖
    alpha: torch.Tensor  # at θ†
    beta: torch.Tensor


def couple(start: Point, u: torch.Tensor, lr: float, batches: Iterable[torch.Tensor | None]) -> Iterator[Coupled]:
    """Follow a training and its prediction, yielding both before every step; the parameters are stepped by the caller in between.

    The constrained trajectory starts from the projection of the first iterate, the prediction from the same displacement.
    Costs about 25 gradients a step.

    Args:
        start: The networks of the real training, whose parameters the caller changes in place after each yield.
        u: Top eigenvectors there (R, P).
        lr: η.
        batches: Indices (R, b) of every step's mini-batch, or None for the full batch.
    """
    theta = start.theta
    point = Constrained(start.at(theta.clone()), u, lr)
    for _ in range(PROJECTIONS):
        point = point.projected(point.theta)
    v = theta - point.theta
    for indices in batches:
        pairs = sharpness(start, u.unsqueeze(1))
        u, apart = pairs.vectors[:, 0], theta - point.theta
        columns = (
            _dot(apart, point.u),
            _dot(v, point.u),
            pairs.values - point.threshold,
            point.excess(v),
            point.sharpness - point.threshold,
            apart.norm(dim=1, keepdim=True),
            v.norm(dim=1, keepdim=True),
            (apart - v).norm(dim=1, keepdim=True),
            point.alpha,
            point.beta,
        )
        yield Coupled(*(column[:, 0].clone() for column in columns))
        following = point.following()
        v = point.predict(v, point.noise(indices), following.theta - point.theta)
        point = following
