"""How far the Hessian of a mini-batch is its Gauss–Newton part: top eigenvalues, and where the eigenvectors point.

∇²L_B = G_B + (1/b) Σᵢ Σₖ ∂ℓᵢ/∂fₖ ∇²fₖ(xᵢ), with G_B = (1/b) Σᵢ JᵢᵀAᵢJᵢ, Aᵢ = ∂²ℓᵢ/∂f² (EoSS A.4, equation 6). For the squared error
A is the identity, and G_B is at once the Fisher matrix of the Gaussian likelihood and, with the same eigenvalues, the neural
tangent kernel JJᵀ/b; for cross-entropy G_B is the Fisher matrix and the kernel lacks A. On a single example with one output the
gradient is the top eigenvector of G_B, which is why the curvature along the gradient is close to the top eigenvalue (EoSS A.2).
"""

from __future__ import annotations

from dataclasses import dataclass, fields

import torch

from eosslib.curvature import Point
from eosslib.eigen import top_eigenpairs, warn_if_uncertain
from eosslib.measure.drawn import Draws, Estimate, collect, mean_of
from eosslib.measure.moment import Columns, Moment, of_draws
from eosslib.streams import generator


@dataclass(frozen=True)
class Overlap:
    """Means over drawn mini-batches; eigenvalues in units of sharpness, the rest |cos| of the angle between two vectors."""

    hessian: Estimate  # E[λ_max(∇²L_B)], MiniBS
    gauss_newton: Estimate  # E[λ_max(G_B)]
    ntk: Estimate  # E[λ_max(J_B J_Bᵀ/b)]
    vectors: Estimate  # top vector of ∇²L_B to that of G_B
    gradient_hessian: Estimate  # ∇L_B to the top vector of ∇²L_B
    gradient_gauss_newton: Estimate  # ∇L_B to the top vector of G_B


def measure(point: Point, draws: Draws, *, tol: float = 1e-2) -> Overlap:
    """Compare the Hessian of mini-batches with its Gauss–Newton part and with the NTK (EoSS A.2, A.4 and figure 17).

    Costs about 40 gradients on the examples of all draws, one lot.

    Args:
        point: The networks, and the training set.
        draws: How to draw; the start vectors come from the same random streams.
        tol: Relative residual of every eigenvalue.

    Raises:
        ValueError: As ``drawn.collect``.
        ConfigError: Batch normalisation needs more than the memory for a batch.
    """
    starts = [torch.randn(point.theta.shape[1], generator=generator(*key)).to(point.theta) for key in draws.keys]

    def measured(row: int, batches: Point) -> torch.Tensor:
        hessian, start = batches.hessian(), starts[row].expand(len(batches.theta), 1, -1)
        full, newton, kernel = (
            warn_if_uncertain(top_eigenpairs(product, start, tol=tol), "overlap")
            for product in (hessian, hessian.gauss_newton, hessian.ntk)
        )
        gradient = torch.nn.functional.normalize(hessian.gradient(), dim=1)
        u, w = full.vectors[:, 0], newton.vectors[:, 0]
        cosines = [(a * b).sum(1).abs() for a, b in ((u, w), (gradient, u), (gradient, w))]
        return torch.stack([*(pairs.values[:, 0] for pairs in (full, newton, kernel)), *cosines]).double()

    found = collect(point, draws, measured, share=4)
    return Overlap(*(Estimate.of([samples[i] for samples in found], mean_of) for i in range(6)))


def _compute(moment: Moment) -> Columns:
    found = measure(moment.point, moment.draws("overlap", moment.settings.overlap_draws))
    return {key: value for name, estimate in vars(found).items() for key, value in estimate.columns(f"overlap_{name}").items()}


def _described() -> dict[str, str]:
    curvatures = ("hessian", "gauss_newton", "ntk")
    described: dict[str, str] = {}
    for name in (field.name for field in fields(Overlap)):
        described |= Estimate.described(f"overlap_{name}", f"``Overlap.{name}``", "loss/θ²" if name in curvatures else "1")
    return described


OVERLAP = of_draws("overlap_draws", _described(), _compute)
