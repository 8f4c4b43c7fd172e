"""Sharpness: the top eigenvalues of the Hessian over all training examples, never of a subsample."""

from __future__ import annotations

import torch

from eosslib.curvature import Point
from eosslib.eigen import Eigenpairs, top_eigenpairs, warn_if_uncertain
from eosslib.measure.moment import Columns, Measurement, Moment, always


def sharpness(point: Point, start: torch.Tensor, *, k: int = 1, tol: float = 1e-3, nearby: int = 0) -> Eigenpairs:
    """Top-k eigenpairs of the full-batch Hessian ∇²L over all n examples (EoSS definition 3.2: FullBS is the first value).

    Costs up to one gradient for the passes and 1 to 2 gradients a product; 1 to 10 products when warm-started,
    and a dozen (20 without ``nearby``) where several eigenvalues lie close together.

    Args:
        point: The networks, and all of the training set.
        start: Start vectors (R, s, P): the last measurement's ``starts``, or random ones.
        k: Number of eigenpairs.
        tol: Relative residual ‖Hu − λu‖/λ₁ to reach.
        nearby: How many more Ritz vectors to return for the next start, as ``eigen.top_eigenpairs`` does.

    Returns:
        Eigenpairs; values in loss per squared parameter, so that ``values * lr`` is dimensionless and 2 is the edge.

    Raises:
        ValueError: As ``eigen.top_eigenpairs``: k or the start vectors do not allow a solve.
        ConfigError: Batch normalisation needs more than ``point.memory``.
    """
    parts = []
    for rows in solved_together(point.theta):
        operator = point.at(point.theta[rows]).hessian()
        # A copy, because the last bits of a matrix product may depend on where in memory its operands begin.
        parts.append(top_eigenpairs(operator, start[rows].clone(), k=k, tol=tol, nearby=nearby))
    return warn_if_uncertain(Eigenpairs.cat(parts), "sharpness")


def solved_together(theta: torch.Tensor) -> list[slice]:
    """Cut a stack into the networks whose eigenpairs are solved for together: one by one on the CPU, all on a GPU.

    On the CPU the work does not shrink by stacking, so each network stops when it has converged, not when all have.
    """
    return [slice(r, r + 1) for r in range(len(theta))] if theta.device.type == "cpu" else [slice(0, len(theta))]


def _compute(moment: Moment) -> Columns:
    pairs, k = moment.pairs, moment.settings.eig_k
    columns = {"sharpness": pairs.values[:, 0]} | {f"sharpness_{j + 1}": pairs.values[:, j] for j in range(1, k)}
    columns["sharpness_residual"] = pairs.residuals[:, :k].amax(1)
    columns |= {"sharpness_products": pairs.products, "sharpness_miss": pairs.miss}
    return columns if moment.check is None else columns | {"sharpness_check": moment.check}


SHARPNESS = Measurement(
    settings=("eig_k", "eig_tol", "steps"),
    columns={
        "sharpness": "λ₁ of the Hessian over all training examples [loss/θ²]",
        "sharpness_{}": "λ_j, for j up to eig_k [loss/θ²]",
        "sharpness_residual": "the largest ‖Hu_j − λ_j u_j‖/λ₁ [1]",
        "sharpness_products": "Hessian products of the solve [1]",
        "sharpness_miss": "probability that an eigenvalue 1e-3 of ‖H‖ or more above λ₁ was overlooked (``probing``) [1]",
        "sharpness_check": "λ₁ as found from a random vector alone, at the last step [loss/θ²]",
    },
    due=always,
    compute=_compute,
)
