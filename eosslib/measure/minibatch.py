"""Mini-batch sharpness, MiniBS: the mean of the top eigenvalue over mini-batches, and how far it is above the sharpness."""

from __future__ import annotations

from dataclasses import dataclass

import torch

from eosslib.curvature import Point
from eosslib.lanczos import largest_eigenvalues
from eosslib.measure.drawn import Draws, Estimate, collect, mean_of
from eosslib.measure.moment import Columns, Moment, of_draws
from eosslib.streams import generator


@dataclass(frozen=True)
class MiniBatchSharpness:
    """MiniBS and how far it is above the sharpness."""

    value: Estimate  # E[λ_max(H_B)]
    gap: Estimate  # E[λ_max(H_B)] − λ_max(H)


def minibatch_sharpness(
    point: Point, u: torch.Tensor, draws: Draws, *, tol: float = 5e-3, sharpness: torch.Tensor | None = None
) -> MiniBatchSharpness:
    """Mini-batch sharpness MiniBS = E_B[λ_max(∇²L_B)] (EoSS definition 3.1) and its gap to the sharpness (equation 3).

    The gap is the mean of λ_max(H_B) − uᵀH_B u: the mean of uᵀH_B u over all batches is uᵀHu, the sharpness, without any error,
    and on every batch it moves with λ_max(H_B). So every draw counts for at least zero, and close to the full batch the
    standard error falls as fast as the gap itself, where a difference of two means would drown in sampling noise. Both are
    estimated from the same draws. Costs about 15 gradients on the examples of all draws. With a residual of ``tol`` an
    eigenvalue is off by at most ``tol`` and typically by ``tol**2`` of itself. Now and then a draw's λ₂ is taken for its λ₁: to
    rule that out would cost twice the products, and what it does is a twentieth of the standard error
    (``benchmarks/DRAWN.md``). With batch normalisation the mean of the mini-batches' Hessians is not the Hessian: the gap is then
    the plain difference of MiniBS to the sharpness.

    Args:
        point: The networks, and the training set.
        u: Top eigenvectors of the full-batch Hessian (R, P).
        draws: How to draw; the start vectors come from the same random streams, and the precision is that of MiniBS.
        tol: Relative residual of every eigenvalue.
        sharpness: λ_max(∇²L) of each network (R,), which only networks with batch normalisation need; without it their gap is NaN.

    Raises:
        ValueError: As ``drawn.collect``, or a vector of ``u`` is zero or not finite.
        ConfigError: Batch normalisation needs more than the memory for a batch.
    """
    # Half u, which is near many a draw's eigenvector, half random, which has a part of all.
    random = [torch.randn(u.shape[1], generator=generator(*key)).to(u) for key in draws.keys]
    starts = [vector + other / other.norm() for vector, other in zip(u, random, strict=True)]

    def measured(row: int, batches: Point) -> torch.Tensor:
        operator, stack = batches.hessian(), len(batches.theta)
        found = largest_eigenvalues(operator, starts[row].expand(stack, -1), tol=tol).or_warn("MiniBS")
        quotients = (operator(u[row].expand(stack, -1)) * u[row]).double().sum(1)
        return torch.stack([torch.maximum(found.values.double(), quotients), quotients])  # λ_max is no less than uᵀH_B u

    found = collect(point, draws, measured, lambda samples: mean_of(samples[0]), share=4)  # fewer at once stay in the caches
    below = [along for _, along in found]
    if point.objective.network.couples_examples:
        full = torch.full_like(u[:, 0], torch.nan) if sharpness is None else sharpness
        below = list(full.double())
    gaps = [top - part for (top, _), part in zip(found, below, strict=True)]
    return MiniBatchSharpness(Estimate.of([top for top, _ in found], mean_of), Estimate.of(gaps, mean_of))


def _compute(moment: Moment) -> Columns:
    draws, pairs = moment.draws("minibatch sharpness", moment.settings.minibs_draws), moment.pairs
    found = minibatch_sharpness(moment.point, pairs.vectors[:, 0], draws, sharpness=pairs.values[:, 0])
    columns = found.value.columns("minibatch_sharpness") | found.gap.columns("minibs_gap")
    return columns | {"minibatch_sharpness_draws": found.value.draws}


MINIBS = of_draws(
    "minibs_draws",
    {
        **Estimate.described("minibatch_sharpness", "E[λ_max(H_B)] of the next step's batch", "loss/θ²"),
        **Estimate.described("minibs_gap", "E[λ_max(H_B)] − λ_max(H)", "loss/θ²"),
        "minibatch_sharpness_draws": "mini-batches drawn [1]",
    },
    _compute,
)
