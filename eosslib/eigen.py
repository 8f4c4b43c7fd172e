"""Top eigenpairs of any symmetric operator, or of a stack of them; knows no network.

Rayleigh–Ritz on a growing orthonormal basis: from one start vector it spans the Krylov space (Lanczos with full
reorthogonalisation), from the previous measurement's eigenvectors it is a warm start that needs a few products. The images
of the basis are kept, so the residual that stops it is the true one, ‖A u − λ u‖, and restarting costs no product; whatever else
an operator finds out that is linear in the vector is combined along with the images.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, fields, replace

import torch

Operator = Callable[[torch.Tensor], torch.Tensor]


@dataclass(frozen=True)
class Eigenpairs:
    """The k algebraically largest eigenpairs of R operators."""

    values: torch.Tensor  # (R, k), descending
    vectors: torch.Tensor  # (R, k, P), unit norm
    residuals: torch.Tensor  # (R, k), ‖A u − λ u‖ / max(|λ₁|, tiny)
    products: torch.Tensor  # (R,), operator products until the run's pairs had converged
    converged: torch.Tensor  # (R,), bool
    carried: torch.Tensor  # (R, k, m), what the operator appends to its images, for the eigenvectors

    @staticmethod
    def cat(parts: list[Eigenpairs]) -> Eigenpairs:
        """Join results of different operators along the stack."""
        return Eigenpairs(*(torch.cat([getattr(p, f.name) for p in parts]) for f in fields(Eigenpairs)))

    @staticmethod
    def where(first: torch.Tensor, a: Eigenpairs, b: Eigenpairs) -> Eigenpairs:
        """Take a's pairs for the operators where ``first`` (R,) says so, else b's."""

        def pick(x: torch.Tensor, y: torch.Tensor) -> torch.Tensor:
            return torch.where(first.reshape(-1, *[1] * (x.ndim - 1)), x, y)

        return Eigenpairs(*(pick(getattr(a, f.name), getattr(b, f.name)) for f in fields(Eigenpairs)))


def top_eigenpairs(
    operator: Operator,
    start: torch.Tensor,
    *,
    k: int = 1,
    tol: float = 1e-3,
    max_products: int = 300,
    max_basis: int = 40,
) -> Eigenpairs:
    """Find the k algebraically largest eigenvalues of each operator in a stack, with their eigenvectors.

    Costs one operator product an iteration, plus O(m P) for a basis of m vectors. An operator that has converged keeps its
    result while the others go on, so what it returns does not depend on the stack. Eigenvalues of exact multiplicity are
    found once each. An operator that returns values that are not finite gets NaN and ``converged`` False.

    Args:
        operator: Maps a stack of vectors (R, P) to their images (R, P), or (R, P + m) with m further numbers that are linear in
            the vector; ``carried`` has them for the eigenvectors.
        start: Start vectors (R, s, P), s ≥ 1: random, or the eigenvectors of a nearby operator.
        k: Number of eigenpairs.
        tol: Stop when all k residuals ‖A u − λ u‖ are below ``tol`` times |λ₁|.
        max_products: Give up after so many products (``converged`` is then False).
        max_basis: Restart from the best Ritz vectors when the basis has so many vectors.

    Returns:
        Eigenpairs; their values have the operator's units.

    Raises:
        ValueError: ``k`` exceeds the dimension, or a start vector is zero or not finite.

    Example:
        >>> diagonal = torch.tensor([1.0, 5.0, 2.0], dtype=torch.float64)
        >>> pairs = top_eigenpairs(lambda v: diagonal * v, torch.ones(1, 1, 3, dtype=torch.float64), tol=1e-9)
        >>> round(pairs.values.item(), 6)
        5.0
    """
    stack, _, size = start.shape
    if not 1 <= k <= size:
        raise ValueError(f"k = {k} eigenpairs of an operator of size {size}")
    if not torch.isfinite(start).all() or (start.norm(dim=2) == 0).any():
        raise ValueError("start vectors must be finite and not zero")
    max_basis = max(min(max_basis, size), min(k + 2, size))
    tiny = torch.finfo(start.dtype).tiny
    found: Eigenpairs | None = None
    pending = list(torch.unbind(start, 1))  # vectors that wait to enter the basis
    basis = start.new_empty(stack, 0, size)
    images = basis  # of the basis, once there are any
    for product in range(1, max_products + 1):
        vector = _orthonormal(basis, pending.pop(0))
        basis = torch.cat([basis, vector.unsqueeze(1)], dim=1)
        image = operator(vector).unsqueeze(1)
        images = torch.cat([images, image], dim=1) if product > 1 else image
        if pending or basis.shape[1] < k:
            if not pending:
                pending.append(images[:, -1, :size])
            continue
        values, rotation = _rayleigh_ritz(basis, images[:, :, :size])
        vectors, mapped = rotation[:, :k] @ basis, rotation[:, :k] @ images
        residual = mapped[:, :, :size] - values[:, :k, None] * vectors  # (R, k, P)
        scale = values[:, :1].abs().clamp_min(tiny)
        relative = residual.norm(dim=2) / scale
        done = (relative <= tol).all(1)
        if basis.shape[1] == size:
            done = torch.ones_like(done)
        done = done | ~torch.isfinite(values[:, 0])
        count = torch.full_like(done, product, dtype=torch.int64)
        current = Eigenpairs(values[:, :k], vectors, relative, count, done, mapped[:, :, size:])  # a broken one counts as done
        found = current if found is None else Eigenpairs.where(found.converged, found, current)
        if bool(found.converged.all()):
            break
        # Continue with the first pair that has not converged; for k = 1 this is Lanczos.
        target = (relative > tol).to(torch.int64).argmax(1)
        pending.append(residual[torch.arange(stack, device=start.device), target])
        if basis.shape[1] >= max_basis:
            keep = min(max(2 * k, max_basis // 2), max_basis - 1)
            basis, images = rotation[:, :keep] @ basis, rotation[:, :keep] @ images
    assert found is not None
    return replace(found, converged=found.converged & torch.isfinite(found.values).all(1))


def _rayleigh_ritz(basis: torch.Tensor, images: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
    """Return Ritz values, descending (R, m), and the rotation whose rows make the Ritz vectors (R, m, m)."""
    small = basis @ images.transpose(1, 2)
    broken = ~torch.isfinite(small).all(2, keepdim=True).all(1, keepdim=True)
    small = torch.where(broken, 0.0, small)
    # On the CPU: a GPU takes longer for a matrix as small as this than the way there and back.
    values, vectors = torch.linalg.eigh(((small + small.transpose(1, 2)) / 2).cpu())
    values, vectors = values.to(small.device).masked_fill(broken[:, :, 0], torch.nan), vectors.to(small.device)
    return values.flip(1), vectors.flip(2).transpose(1, 2)


def _orthonormal(basis: torch.Tensor, vector: torch.Tensor) -> torch.Tensor:
    """Make vectors (R, P) orthonormal to a basis (R, m, P); where nothing is left, continue with a random vector."""
    before = vector.norm(dim=1, keepdim=True)
    vector = _project_out(basis, vector)
    after = vector.norm(dim=1, keepdim=True)
    lost = after <= 10 * torch.finfo(vector.dtype).eps * before
    if bool(lost.any()):
        # A function of the size of the basis alone, the same for every operator: nothing depends on the stack.
        generator = torch.Generator(vector.device).manual_seed(basis.shape[1])
        noise = torch.randn(vector.shape[1:], dtype=vector.dtype, device=vector.device, generator=generator)
        vector = torch.where(lost, _project_out(basis, noise.expand_as(vector)), vector)
    return vector / vector.norm(dim=1, keepdim=True)


def _project_out(basis: torch.Tensor, vector: torch.Tensor) -> torch.Tensor:
    # Twice is enough (Giraud, Langou, Rozložník 2005): once loses orthogonality to rounding.
    for _ in range(2):
        vector = without(basis, vector)
    return vector


def without(basis: torch.Tensor, vector: torch.Tensor) -> torch.Tensor:
    """Remove orthonormal directions (R, m, P) from vectors (R, P)."""
    return vector - (basis.transpose(1, 2) @ (basis @ vector.unsqueeze(2))).squeeze(2)
