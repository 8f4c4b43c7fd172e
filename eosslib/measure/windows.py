"""What the closed form of the sharpness gap needs: α, β and E[x²], measured at iterates averaged over a window of steps.

At a single iterate −∇L·∇S says nothing about progressive sharpening: the gradient is mostly the restoring force along the top
eigenvector u, and its cubic part cancels the rest on average. So the iterate is averaged over a window, and what is left along u
(or along the top k eigenvectors) is removed by Newton steps. That point stands for the constrained trajectory of the
self-stabilization paper (arXiv:2209.15594, §4); α and β are taken there, and the displacements x_j = u_j·(θ_t − θ̄) from it.
"""

from __future__ import annotations

import copy
from dataclasses import dataclass, fields

import torch

from eosslib.curvature import Point, third_derivative
from eosslib.eigen import Eigenpairs, top_eigenpairs, warn_if_uncertain, without
from eosslib.measure.moment import Columns, Measurement, Moment
from eosslib.measure.noise import variance_of_batch_means
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

    def of(self, rows: list[int]) -> Window:
        """Return the window of these networks of the stack alone."""
        part = copy.copy(self)
        part._sum, part._kept = self._sum[rows], [theta[rows] for theta in self._kept]
        return part

    def mean(self) -> torch.Tensor:
        """Mean iterate (R, P)."""
        return (self._sum / self.count).to(self._kept[0].dtype)

    def samples(self) -> torch.Tensor:
        """Kept iterates (count, R, P)."""
        return torch.stack(self._kept)


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


@dataclass(frozen=True)
class Settings:
    """How a window is measured."""

    batch_size: int  # b, for the noise variance
    sampling: str = "reshuffle"  # how the run draws its batches
    k: int = 1  # number of directions
    newton_steps: int = 2  # how often the remainder along u₁ … u_k is removed
    decay: float = 0.0  # weight decay λ: what is trained, and stands still at the constrained trajectory, is L + λ‖θ‖²/2
    tol: float = 1e-3  # relative residual of the eigenpairs


def measure(point: Point, window: Window, start: torch.Tensor, random: torch.Tensor, settings: Settings) -> Stabilization:
    """Measure α, β, E[x²] and σ² over a window, for the top k eigen-directions.

    S is uᵀ∇²L u at fixed u = u₁. ^⊥ removes u₁, as the closed form has it, from ``alpha`` and ``beta``, and all of u₁ … u_k from
    ``alpha_top``, ``coupling`` and ``pull``: where several directions sit at the edge, none of them moves freely. To second
    order in x the mean gradient is ∇L + ½ Σ_lm C_lm ∇³L[u_l, u_m] with C = E[x xᵀ]; along ∇S^⊥ it vanishes in a stationary
    state, so that Σ_lm T_lm C_lm = 2α with T_lm = ∇³L[u_l, u_m]·∇S^⊥. For k = 1 that is E[x²] = 2α/β.

    Costs ``newton_steps`` + 1 eigen-solves, of which all but the first start near the solution, and about 6k gradients.

    Args:
        point: The networks, wherever their parameters are.
        window: Their iterates.
        start: Start vectors of the eigen-solver (R, s, P): top eigenvectors of a point nearby.
        random: Standard normal vectors (R, P) to look for larger eigenvalues with.
        settings: How to measure.

    Raises:
        ValueError: No iterate is in the window, or ``top_eigenpairs`` cannot solve for k pairs.
    """
    if not window.count:
        raise ValueError("there is no iterate in the window")
    stand = _constrained(point.at(window.mean()), start, random, settings)
    point, pairs, gradient = stand.point, stand.pairs, stand.gradient
    vectors, u, samples = pairs.vectors, pairs.vectors[:, 0], window.samples()
    ascent = third_derivative(point, u, u)  # ∇S
    alpha, beta = _alpha_beta(gradient, without(u.unsqueeze(1), ascent))
    free = without(vectors, ascent)
    alpha_top, _ = _alpha_beta(gradient, free)
    tensor = torch.stack([third_derivative(point, v, free) for v in vectors.unbind(1)], dim=1) @ vectors.mT  # T (R, k, k)
    displacements = (samples - point.theta).transpose(0, 1) @ vectors.mT  # (R, count, k)
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
        noise=_noise(point, samples, pairs, settings),
        slope=stand.slopes[0],
        slope_left=stand.slopes[-1],
        residual=pairs.residuals.amax(1),
    )


@dataclass(frozen=True)
class _Stand:
    """A mean iterate after its Newton steps, and what was found on the way."""

    point: Point
    pairs: Eigenpairs
    gradient: torch.Tensor  # (R, P), of what is trained
    slopes: list[torch.Tensor]  # |u₁ᵀ∇L|/λ₁ before every step and after the last, each (R,)


def _constrained(point: Point, start: torch.Tensor, random: torch.Tensor, settings: Settings) -> _Stand:
    """Remove what is left along u₁ … u_k by Newton steps."""
    slopes, probe = list[torch.Tensor](), Probe(random)
    for newton in range(settings.newton_steps + 1):
        hessian = point.hessian()
        gradient = hessian.gradient() + settings.decay * point.theta if settings.decay else hessian.gradient()
        pairs = warn_if_uncertain(top_eigenpairs(hessian, start, k=settings.k, tol=settings.tol, probe=probe), "window")
        start, probe = pairs.vectors, Probe.carried(pairs.probe, random)
        left = (start @ gradient.unsqueeze(2)).squeeze(2) / (pairs.values + settings.decay)  # (R, k)
        slopes.append(left[:, 0].abs())
        if newton < settings.newton_steps:
            point = point.at(point.theta - (left.unsqueeze(1) @ start).squeeze(1))
    return _Stand(point, pairs, gradient, slopes)


def alpha_beta(point: Point, u: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
    """α = −∇L·∇S^⊥ and β = ‖∇S^⊥‖² at a point, for its unit top eigenvectors u (R, P): (R,), (R,).

    At a raw SGD iterate this α is not the one of the closed form.
    """
    return _alpha_beta(point.hessian().gradient(), without(u.unsqueeze(1), third_derivative(point, u, u)))


def _alpha_beta(gradient: torch.Tensor, free: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
    return -(free * gradient).sum(1), free.square().sum(1)


def _noise(point: Point, samples: torch.Tensor, pairs: Eigenpairs, settings: Settings) -> torch.Tensor:
    """Var_B(u_jᵀg_B) of every direction (R, k), averaged over a few of the iterates: that is where SGD draws its gradients."""
    chosen = samples[torch.linspace(0, len(samples) - 1, NOISE_SAMPLES).long()]
    total = torch.zeros_like(pairs.values)
    for theta in chosen:
        hessian = point.at(theta).hessian()
        for j in range(pairs.values.shape[1]):
            slopes = hessian.slopes(pairs.vectors[:, j])
            total[:, j] += variance_of_batch_means(slopes, settings.batch_size, settings.sampling)
    return total / len(chosen)


def _compute(moment: Moment) -> Columns:
    """Measure the window that ends at this step."""
    assert moment.window is not None
    run = moment.settings
    settings = Settings(run.batch_size, run.sampling, run.window_k, run.newton_steps, moment.decay, run.eig_tol)
    found = measure(moment.point, moment.window, moment.pairs.vectors[:, :1], moment.random("window"), settings)
    return found.columns()


def _due(moment: Moment) -> bool:
    return moment.window is not None and not moment.point.objective.network.couples_examples


WINDOW = Measurement(
    settings=("batch_size", "sampling", "window_k", "newton_steps", "eig_tol"),
    columns={
        "window_alpha": "−∇L·∇S^⊥, progressive sharpening [loss²/θ⁴]",
        "window_beta": "‖∇S^⊥‖², self-stabilization [loss²/θ⁶]",
        "window_alpha_top": "−∇L·∇S^⊥ with all u_j taken out of ∇S [loss²/θ⁴]",
        "window_coupling_{}": "∇S^⊥·∇(u_jᵀHu_j) [loss²/θ⁶]",
        "window_displacement_{}": "E[x_j²] [θ²]",
        "window_pull_{}": "what the first j directions pull S down by, against 2 alpha_top [loss²/θ⁴]",
        "window_curvature_{}": "λ_j at the averaged and corrected iterate [loss/θ²]",
        "window_noise_{}": "Var_B(u_jᵀg_B) at raw iterates [loss²/θ²]",
        "window_slope": "|u₁ᵀ∇L|/λ₁ at the plain average [θ]",
        "window_slope_left": "the same after the Newton steps [θ]",
        "window_residual": "of the eigenpairs [1]",
    },
    due=_due,
    compute=_compute,
)
RAW_ALPHA = Measurement(
    settings=(),
    columns={"raw_alpha": "−∇L·∇S^⊥ at the raw iterate, to compare [loss²/θ⁴]"},
    due=_due,
    compute=lambda moment: {"raw_alpha": alpha_beta(moment.point, moment.pairs.vectors[:, 0])[0]},
)
