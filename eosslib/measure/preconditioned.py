"""Preconditioned sharpness, which stands in the place of the sharpness where Adam trains."""

from __future__ import annotations

import torch

from eosslib.curvature import Hessian
from eosslib.eigen import Eigenpairs, top_eigenpairs, warn_if_uncertain
from eosslib.measure.moment import Columns, Measurement, Moment
from eosslib.probing import Probe


def preconditioned_sharpness(
    hessian: Hessian, scale: torch.Tensor, u: torch.Tensor, random: torch.Tensor, *, tol: float = 1e-3
) -> Eigenpairs:
    """Top eigenpair of P^-½ H P^-½, which Adam's threshold is for (Cohen et al. 2022, arXiv:2207.14484, §3).

    Args:
        hessian: H of a stack.
        scale: P^-½ as vectors (R, P).
        u: Top eigenvectors of H (R, P); the solve starts from P^½u.
        random: Standard normal vectors (R, P) to look for larger eigenvalues with.
        tol: Relative residual to reach.

    Returns:
        Eigenpairs; the vectors are those of the symmetric matrix, not of P⁻¹H.

    Raises:
        ValueError: As ``eigen.top_eigenpairs``: a start vector is zero or not finite.
    """
    pairs = top_eigenpairs(lambda v: scale * hessian(scale * v), (u / scale).unsqueeze(1), tol=tol, probe=Probe(random))
    return warn_if_uncertain(pairs, "preconditioned sharpness")


def _compute(moment: Moment) -> Columns:
    assert moment.scale is not None
    where = (moment.point.hessian(), moment.scale, moment.pairs.vectors[:, 0], moment.random("preconditioned"))
    return {"preconditioned_sharpness": preconditioned_sharpness(*where, tol=moment.settings.eig_tol).values[:, 0]}


PRECONDITIONED = Measurement(
    settings=("eig_tol",),
    columns={"preconditioned_sharpness": "λ₁ of P^-½ H P^-½, P the preconditioner [1 over the unit of η]"},
    due=lambda moment: moment.scale is not None,
    compute=_compute,
)
