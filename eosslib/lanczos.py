"""The largest eigenvalue alone, of a stack of symmetric operators, by Lanczos without reorthogonalisation; knows no network.

For many rough solves of small operators, as those of drawn mini-batches, where ``eigen``'s own algebra would cost as much as the
products: three vectors an operator are all that is kept.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch

from eosslib.eigen import ROUNDING, Operator, warn_of


@dataclass(frozen=True)
class Largest:
    """The algebraically largest eigenvalues of R operators, as far as their start vectors show."""

    values: torch.Tensor  # (R,), NaN where an operator is not finite
    residuals: torch.Tensor  # (R,), ‖A u − λ u‖ / max(|λ|, tiny), as Lanczos estimates it
    products: torch.Tensor  # (R,), operator products until it had converged
    converged: torch.Tensor  # (R,), bool

    def or_warn(self, what: str) -> Largest:
        """Log a warning where a solve was given up, and return the values; one that is not finite speaks for itself."""
        bad = ~self.converged & torch.isfinite(self.values)
        if bool(bad.any()):
            warn_of(bad, self.residuals, what)
        return self


def largest_eigenvalues(operator: Operator, start: torch.Tensor, *, tol: float = 5e-3, max_products: int = 300) -> Largest:
    """Find the largest eigenvalue of each operator of a stack.

    The basis stays orthogonal to rounding over ``tol`` until the first eigenvalue has converged (Paige 1980), so that nothing is
    reorthogonalised; a smallest one that converges earlier is found again and again, which costs products and changes no value.
    Each operator has the result it would have alone.

    Args:
        operator: Maps a stack of vectors (R, P) to their images (R, P).
        start: Start vectors (R, P).
        tol: Relative residual to reach, or rounding alone; not much below 1e-3 in float32.
        max_products: Give up after so many products.

    Raises:
        ValueError: A start vector is zero or not finite.
    """
    norm = start.norm(dim=1, keepdim=True)
    if not bool((torch.isfinite(norm) & (norm > 0)).all()):
        raise ValueError("start vectors must be finite and not zero")
    before, now, beta = torch.zeros_like(start), start / norm, torch.zeros_like(norm)
    diagonal, beside = [], []
    values, residuals = (torch.full((len(start),), torch.nan, dtype=torch.float64) for _ in range(2))
    products, going = torch.zeros(len(start), dtype=torch.int64), torch.ones(len(start), dtype=torch.bool)
    converged = ~going
    tiny = torch.finfo(start.dtype).tiny
    for _ in range(max_products):
        after = operator(now) - beta * before
        alpha = (after * now).sum(1, keepdim=True)
        after = after - alpha * now
        beta = after.norm(dim=1, keepdim=True)
        diagonal.append(alpha)
        beside.append(beta)
        value, residual, scale = _top(torch.cat(diagonal, 1).cpu().double(), torch.cat(beside, 1).cpu().double())
        values, residuals = torch.where(going, value, values), torch.where(going, residual / value.abs().clamp_min(tiny), residuals)
        products += going
        close = (residual <= tol * value.abs()) | (residual <= ROUNDING * torch.finfo(start.dtype).eps * scale)
        converged |= going & close
        going &= ~close & torch.isfinite(value)
        if not bool(going.any()):
            break
        before, now = now, after / beta.clamp_min(tiny)
    found = (values.to(start), residuals.to(start), products, converged)
    return Largest(*(column.to(start.device) for column in found))


def _top(diagonal: torch.Tensor, beside: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
    """Return the largest eigenvalue of tridiagonal matrices (R, m), its residual and the matrices' norm, each (R,)."""
    small = torch.diag_embed(diagonal) + torch.diag_embed(beside[:, :-1], 1) + torch.diag_embed(beside[:, :-1], -1)
    finite = torch.isfinite(small).all(2).all(1) & torch.isfinite(beside[:, -1])
    exact, rotation = torch.linalg.eigh(torch.where(finite[:, None, None], small, 0.0))
    top = exact[:, -1].masked_fill(~finite, torch.nan)
    return top, (beside[:, -1] * rotation[:, -1, -1]).abs(), exact.abs().amax(1)
