"""What the closed form of the sharpness gap needs: α, β and E[x²], measured at iterates averaged over a window of steps.

At a single iterate −∇L·∇S says nothing about progressive sharpening: the gradient is mostly the restoring force along the top
eigenvector u, and its cubic part cancels the rest on average. So the iterate is averaged over a window, and what is left along u
(or along the top k eigenvectors) is removed by Newton steps. That point stands for the constrained trajectory of the
self-stabilization paper (arXiv:2209.15594, §4); α and β are taken there, and the displacements x_j = u_j·(θ_t − θ̄) from it.
"""

from __future__ import annotations

from dataclasses import dataclass, fields

import torch

from eosslib.curvature import Hessian, third_derivative
from eosslib.devices import DEFAULT_MEMORY
from eosslib.eigen import Eigenpairs, top_eigenpairs, warn_if_uncertain, without
from eosslib.flat import Objective
from eosslib.measurements import variance_of_batch_means
from eosslib.probing import Probe

SAMPLES = 64  # iterates of a window that are kept; E[x²] is their mean
NOISE_SAMPLES = 2  # iterates of a window at which the noise variance is taken


class Window:
    """The iterates θ_t of a stack of networks over a window of steps: their mean, and evenly spaced ones themselves."""

    def __init__(self, theta: torch.Tensor, steps: int) -> None:
        """Prepare for so many iterates like ``theta`` (R, P)."""
        # An odd distance, so that both phases of the period-two oscillation along u are among those that are kept.
        self._every = -(-steps // SAMPLES) | 1
        self._sum = torch.zeros_like(theta, dtype=torch.float64)
        self._kept: list[torch.Tensor] = []
        self.count = 0

    def add(self, theta: torch.Tensor) -> None:
        """Take in the next iterate (R, P)."""
        if self.count % self._every == 0:
            self._kept.append(theta.clone())
        self._sum += theta
        self.count += 1

    def keep(self, rows: list[int]) -> None:
        """Take networks out of the stack, all but these."""
        self._sum = self._sum[rows]
        self._kept = [theta[rows] for theta in self._kept]

    def mean(self, rows: list[int]) -> torch.Tensor:
        """Mean iterate of these networks (len(rows), P)."""
        return (self._sum[rows] / self.count).to(self._kept[0].dtype)

    def samples(self, rows: list[int]) -> torch.Tensor:
        """Kept iterates of these networks (count, len(rows), P)."""
        return torch.stack([theta[rows] for theta in self._kept])


@dataclass(frozen=True)
class Stabilization:
    """α, β and displacements of R networks over one window, for the top k eigen-directions; ^⊥ is explained at ``measure``."""

    alpha: torch.Tensor  # (R,) −∇L·∇S^⊥, ⊥ u₁; ηα is the growth of S in a step
    beta: torch.Tensor  # (R,) ‖∇S^⊥‖², ⊥ u₁
    alpha_top: torch.Tensor  # (R,) −∇L·∇S^⊥, ⊥ u₁…u_k
    coupling: torch.Tensor  # (R, k) T_jj = ∇S^⊥·∇(u_jᵀHu_j), ⊥ u₁…u_k
    displacement: torch.Tensor  # (R, k) C_jj = E[x_j²], squared parameters
    pull: torch.Tensor  # (R, k) Σ_{l,m ≤ j} T_lm C_lm, to be held against 2 alpha_top
    curvature: torch.Tensor  # (R, k) λ_j at the averaged and corrected iterate
    noise: torch.Tensor  # (R, k) Var_B(u_jᵀg_B), at raw iterates
    slope: torch.Tensor  # (R,) |u₁ᵀ∇L|/λ₁ at the plain average: how far it was from the constrained trajectory
    slope_left: torch.Tensor  # (R,) the same after the Newton steps
    residual: torch.Tensor  # (R,) of the eigenpairs

    def columns(self) -> dict[str, torch.Tensor]:
        """Name every number as in a run file: those for each direction with its number, 1 the top one."""
        result: dict[str, torch.Tensor] = {}
        for field in fields(self):
            value, name = getattr(self, field.name), f"window_{field.name}"
            if value.ndim == 1:
                result[name] = value
            else:
                result |= {f"{name}_{j + 1}": value[:, j] for j in range(value.shape[1])}
        return result


def measure(
    objective: Objective,
    window: Window,
    rows: list[int],
    x: torch.Tensor,
    y: torch.Tensor,
    start: torch.Tensor,
    random: torch.Tensor,
    *,
    batch_size: int,
    k: int = 1,
    newton_steps: int = 2,
    sampling: str = "reshuffle",
    decay: float = 0.0,
    tol: float = 1e-3,
    memory: int = DEFAULT_MEMORY,
) -> Stabilization:
    """Measure α, β, E[x²] and σ² over a window, for the top k eigen-directions.

    S is uᵀ∇²L u at fixed u = u₁. ^⊥ removes u₁, as the closed form has it, from ``alpha`` and ``beta``, and all of u₁ … u_k from
    ``alpha_top``, ``coupling`` and ``pull``: where several directions sit at the edge, none of them moves freely. To second
    order in x the mean gradient is ∇L + ½ Σ_lm C_lm ∇³L[u_l, u_m] with C = E[x xᵀ]; along ∇S^⊥ it vanishes in a stationary
    state, so that Σ_lm T_lm C_lm = 2α with T_lm = ∇³L[u_l, u_m]·∇S^⊥. For k = 1 that is E[x²] = 2α/β.

    Costs ``newton_steps`` + 1 eigen-solves, of which all but the first start near the solution, and about 6k gradients.

    Args:
        objective: Network and loss.
        window: The iterates.
        rows: Which networks of the window's stack.
        x: Inputs (1, n, *shape).
        y: Targets (1, n, K).
        start: Start vectors of the eigen-solver (R, s, P): top eigenvectors of a point nearby.
        random: Standard normal vectors (R, P) to look for larger eigenvalues with.
        batch_size: b, for the noise variance.
        k: Number of directions.
        newton_steps: How often the remainder along u₁ … u_k is removed.
        sampling: How the run draws its batches.
        decay: Weight decay λ: what is trained, and stands still at the constrained trajectory, is L + λ‖θ‖²/2.
        tol: Relative residual of the eigenpairs.
        memory: Bytes of kept passes.

    Raises:
        ValueError: No iterate is in the window, or ``top_eigenpairs`` cannot solve for k pairs.
    """
    if not window.count:
        raise ValueError("there is no iterate in the window")
    theta = window.mean(rows)
    slopes, probe = [], Probe(random)
    for newton in range(newton_steps + 1):
        hessian = Hessian(objective, theta, x, y, memory)
        gradient = hessian.gradient() + decay * theta if decay else hessian.gradient()
        pairs = warn_if_uncertain(top_eigenpairs(hessian, start, k=k, tol=tol, probe=probe), "window")
        start, probe = pairs.vectors, Probe.carried(pairs.probe, random)
        left = (start @ gradient.unsqueeze(2)).squeeze(2) / (pairs.values + decay)  # (R, k)
        slopes.append(left[:, 0].abs())
        if newton < newton_steps:
            theta = theta - (left.unsqueeze(1) @ start).squeeze(1)
    vectors, u, samples = pairs.vectors, pairs.vectors[:, 0], window.samples(rows)
    ascent = third_derivative(objective, theta, u, u, x, y, memory)  # ∇S
    alpha, beta = _alpha_beta(gradient, without(u.unsqueeze(1), ascent))
    free = without(vectors, ascent)
    alpha_top, _ = _alpha_beta(gradient, free)
    thirds = [third_derivative(objective, theta, vectors[:, j], free, x, y, memory) for j in range(k)]
    tensor = torch.stack(thirds, dim=1) @ vectors.mT  # T (R, k, k)
    displacements = (samples - theta).transpose(0, 1) @ vectors.mT  # (R, count, k)
    covariance = displacements.mT @ displacements / len(samples)  # C (R, k, k)
    pull = (tensor * covariance).cumsum(1).cumsum(2)
    return Stabilization(
        alpha,
        beta,
        alpha_top,
        coupling=tensor.diagonal(dim1=1, dim2=2),
        displacement=covariance.diagonal(dim1=1, dim2=2),
        pull=pull.diagonal(dim1=1, dim2=2),
        curvature=pairs.values,
        noise=_noise(objective, samples, pairs, x, y, batch_size, sampling, memory),
        slope=slopes[0],
        slope_left=slopes[-1],
        residual=pairs.residuals.amax(1),
    )


def alpha_beta(
    objective: Objective,
    theta: torch.Tensor,
    gradient: torch.Tensor,
    u: torch.Tensor,
    x: torch.Tensor,
    y: torch.Tensor,
    memory: int = DEFAULT_MEMORY,
) -> tuple[torch.Tensor, torch.Tensor]:
    """α = −∇L·∇S^⊥ and β = ‖∇S^⊥‖² at a point: (R,), (R,). At a raw SGD iterate this α is not the one of the closed form.

    Args:
        objective: Network and loss.
        theta: Parameters (R, P).
        gradient: ∇L there (R, P).
        u: Unit top eigenvectors there (R, P).
        x: Inputs (1, n, *shape).
        y: Targets (1, n, K).
        memory: Bytes of kept passes.
    """
    return _alpha_beta(gradient, without(u.unsqueeze(1), third_derivative(objective, theta, u, u, x, y, memory)))


def _alpha_beta(gradient: torch.Tensor, free: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
    return -(free * gradient).sum(1), free.square().sum(1)


def _noise(
    objective: Objective,
    samples: torch.Tensor,
    pairs: Eigenpairs,
    x: torch.Tensor,
    y: torch.Tensor,
    batch_size: int,
    sampling: str,
    memory: int,
) -> torch.Tensor:
    """Var_B(u_jᵀg_B) of every direction (R, k), averaged over a few of the iterates: that is where SGD draws its gradients."""
    chosen = samples[torch.linspace(0, len(samples) - 1, NOISE_SAMPLES).long()]
    total = torch.zeros_like(pairs.values)
    for theta in chosen:
        hessian = Hessian(objective, theta, x, y, memory)
        for j in range(pairs.values.shape[1]):
            total[:, j] += variance_of_batch_means(hessian.slopes(pairs.vectors[:, j]), batch_size, sampling)
    return total / len(chosen)
