"""How far the Hessian of a mini-batch is its Gauss–Newton part: top eigenvalues, and where the eigenvectors point.

∇²L_B = G_B + (1/b) Σᵢ Σₖ ∂ℓᵢ/∂fₖ ∇²fₖ(xᵢ), with G_B = (1/b) Σᵢ JᵢᵀAᵢJᵢ, Aᵢ = ∂²ℓᵢ/∂f² (EoSS A.4, equation 6). For the squared error
A is the identity, and G_B is at once the Fisher matrix of the Gaussian likelihood and, with the same eigenvalues, the neural
tangent kernel JJᵀ/b; for cross-entropy G_B is the Fisher matrix and the kernel lacks A. On a single example with one output the
gradient is the top eigenvector of G_B, which is why the curvature along the gradient is close to the top eigenvalue (EoSS A.2).
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import torch

from eosslib.curvature import Hessian
from eosslib.devices import drawn_memory
from eosslib.eigen import top_eigenpairs, warn_if_uncertain
from eosslib.flat import Objective
from eosslib.measurements import Estimate, draws_at_once, estimate_of, lots
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


def measure(
    objective: Objective,
    theta: torch.Tensor,
    x: torch.Tensor,
    y: torch.Tensor,
    *,
    batch_size: int,
    draws: int,
    keys: Sequence[tuple[str | int, ...]],
    sampling: str = "reshuffle",
    tol: float = 1e-2,
    memory: int | None = None,
) -> Overlap:
    """Compare the Hessian of mini-batches with its Gauss–Newton part and with the NTK (EoSS A.2, A.4 and figure 17).

    Costs about 40 gradients on the examples of all draws. Arguments as for ``measurements.minibatch_sharpness``.

    Raises:
        ValueError: As ``measurements.lots``: among others fewer than two draws where batches differ, also at b = n with
            ``iid``; or there is not one key for each network.
        ConfigError: Batch normalisation needs more than ``memory`` for a batch.
    """
    memory = drawn_memory(theta.device, memory)
    at_once = max(1, draws_at_once(objective, theta, x, batch_size, memory) // 4)
    rows = []
    for row, key in zip(theta, keys, strict=True):
        start = torch.randn(1, 1, len(row), generator=generator(*key)).to(row)
        parts = []
        for indices in next(lots(x, batch_size, draws, sampling, key)).split(at_once):
            operator = Hessian(objective, row.expand(len(indices), -1), x[0, indices], y[0, indices], memory)
            full, newton, kernel = (
                warn_if_uncertain(top_eigenpairs(product, start.expand(len(indices), -1, -1), tol=tol), "overlap")
                for product in (operator, operator.gauss_newton, operator.ntk)
            )
            gradient = torch.nn.functional.normalize(operator.gradient(), dim=1)
            u, w = full.vectors[:, 0], newton.vectors[:, 0]
            cosines = [(a * b).sum(1).abs() for a, b in ((u, w), (gradient, u), (gradient, w))]
            parts.append(torch.stack([*(pairs.values[:, 0] for pairs in (full, newton, kernel)), *cosines]).double())
        rows.append(torch.cat(parts, dim=1))
    return Overlap(*(estimate_of([samples[i] for samples in rows]) for i in range(6)))
