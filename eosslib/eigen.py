"""Top eigenpairs of any symmetric operator, or of a stack of them; knows no network.

Rayleigh–Ritz on a growing orthonormal basis: from one start vector it spans the Krylov space (Lanczos with full
reorthogonalisation), from what the previous measurement found it is a warm start that needs a few products. The images
of the basis are kept, so the residual that stops it is the true one, ‖A u − λ u‖, and restarting costs no product; whatever else
an operator finds out that is linear in the vector is combined along with the images.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, fields, replace

import torch

CLOSE = 0.8  # fraction of λ₁ from which on a Ritz vector is kept for the next solve
NEARBY = 15  # how many are, at most; of K classes about K − 1 eigenvalues come to the edge together

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
    nearby: torch.Tensor  # (R, l, P), the Ritz vectors after them, unit norm; zero where their value is below CLOSE times λ₁

    @property
    def starts(self) -> torch.Tensor:
        """Where to start the solve for a nearby operator (R, k + l, P): the eigenvectors and those that may overtake them."""
        return torch.cat([self.vectors, self.nearby], dim=1)

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
    nearby: int = 0,
) -> Eigenpairs:
    """Find the k algebraically largest eigenvalues of each operator in a stack, with their eigenvectors.

    Costs one operator product an iteration, plus O(m P) for a basis of m vectors. An operator that has converged keeps its
    result while the others go on, so what it returns does not depend on the stack. Eigenvalues of exact multiplicity are
    found once each. An operator that returns values that are not finite gets NaN and ``converged`` False.

    Args:
        operator: Maps a stack of vectors (R, P) to their images (R, P), or (R, P + m) with m further numbers that are linear in
            the vector; ``carried`` has them for the eigenvectors.
        start: Start vectors (R, s, P), s ≥ 1: random, or the ``starts`` of a nearby operator. An operator that has fewer of them
            than others of the stack has zeros in the last places.
        k: Number of eigenpairs.
        tol: Stop when all k residuals ‖A u − λ u‖ are below ``tol`` times |λ₁|.
        max_products: Give up after so many products (``converged`` is then False).
        max_basis: Restart from the best Ritz vectors when the basis has so many vectors (more, if a solve starts from more).
        nearby: How many further Ritz vectors to return, at most; ``CLOSE`` says which. Where eigenvalues lie close together, as
            they do at the edge of stability, a solve that starts from all of them takes two thirds of the products and rarely
            misses the one that has come to the top; but never fewer products than it has start vectors.

    Returns:
        Eigenpairs; their values have the operator's units.

    Raises:
        ValueError: ``k`` exceeds the dimension, an operator has no start vector, one is not finite or follows a zero, or
            ``max_products`` are fewer than a solve begins with.

    Example:
        >>> diagonal = torch.tensor([1.0, 5.0, 2.0], dtype=torch.float64)
        >>> pairs = top_eigenpairs(lambda v: diagonal * v, torch.ones(1, 1, 3, dtype=torch.float64), tol=1e-9)
        >>> round(pairs.values.item(), 6)
        5.0
    """
    stack, given, size = start.shape
    if not 1 <= k <= size:
        raise ValueError(f"k = {k} eigenpairs of an operator of size {size}")
    present = start.norm(dim=2) != 0
    counts = present.sum(1)  # of each one's start vectors
    fewest, most = (int(counts.min()), int(counts.max())) if stack else (given, given)
    if not torch.isfinite(start).all() or not fewest:
        raise ValueError("start vectors must be finite and not zero")
    if not torch.equal(present, torch.arange(given, device=start.device) < counts[:, None]):
        raise ValueError("a start vector follows one that is zero")
    max_basis = min(max(max_basis, most, k + 2 + nearby), size)
    tiny = torch.finfo(start.dtype).tiny
    found: Eigenpairs | None = None
    basis, images = _Rows(start.new_empty(stack, 0, size), max_basis), _Rows(start.new_empty(stack, 0, 0), max_basis)
    small = start.new_empty(stack, 0, 0)  # the operator on the basis
    following, close = start[:, 0], start.new_zeros(stack, nearby, size)
    for product in range(1, max_products + 1):
        vector = _orthonormal(basis.all, following)
        basis.append(vector)
        images.append(operator(vector))
        column = basis.all @ images.all[:, -1, :size].unsqueeze(2)
        small = torch.cat([torch.cat([small, column[:, :-1]], dim=2), column.transpose(1, 2)], dim=1)
        # One whose start vectors are not all in the basis cannot be done; where one has fewer than k it goes on with an image.
        waiting = (counts > product) & (product < size)
        following = images.all[:, -1, :size]
        if basis.count >= k and product >= min(fewest, size):
            values, rotation = _rayleigh_ritz(small)
            vectors, mapped = rotation[:, :k] @ basis.all, rotation[:, :k] @ images.all
            residual = mapped[:, :, :size] - values[:, :k, None] * vectors  # (R, k, P)
            scale = values[:, :1].abs().clamp_min(tiny)
            relative = residual.norm(dim=2) / scale
            done = (relative <= tol).all(1)
            if basis.count == size:
                done = torch.ones_like(done)
            done = (done | ~torch.isfinite(values[:, 0])) & ~waiting  # a broken one counts as done
            ended = done if product < max_products else torch.ones_like(done)
            ended = ended if found is None else ended & ~found.converged  # just now
            if nearby and bool(ended.any()):
                close = torch.where(ended[:, None, None], _nearby(basis.all, values, rotation, k, nearby), close)
            count = torch.full_like(done, product, dtype=torch.int64)
            current = Eigenpairs(values[:, :k], vectors, relative, count, done, mapped[:, :, size:], close[:, :0])
            found = current if found is None else Eigenpairs.where(found.converged, found, current)
            if bool(found.converged.all()):
                break
            # Continue with the first pair that has not converged; for k = 1 this is Lanczos.
            target = (relative > tol).to(torch.int64).argmax(1)
            following = residual[torch.arange(stack, device=start.device), target]
            if basis.count >= max_basis:
                keep = min(max(2 * k, max_basis // 2), max_basis - 1)
                basis, images = (_Rows(rotation[:, :keep] @ rows.all, max_basis) for rows in (basis, images))
                small = torch.diag_embed(values[:, :keep])
        if product < given:
            following = torch.where((counts > product)[:, None], start[:, product], following)
    if found is None:
        raise ValueError(f"{max_products} products are fewer than the {max(fewest, k)} that a solve begins with")
    return replace(found, converged=found.converged & torch.isfinite(found.values).all(1), nearby=close)


class _Rows:
    """Vectors (R, m, P), m of which grows: appending one copies the others only when the memory is doubled."""

    def __init__(self, rows: torch.Tensor, limit: int) -> None:
        self._memory, self._limit, self.count = rows, limit, rows.shape[1]

    @property
    def all(self) -> torch.Tensor:
        return self._memory[:, : self.count]

    def append(self, row: torch.Tensor) -> None:
        if self.count == self._memory.shape[1]:
            grown = row.new_empty(len(row), min(max(8, 2 * self.count), self._limit), row.shape[1])
            if self.count:
                grown[:, : self.count] = self._memory
            self._memory = grown
        self._memory[:, self.count] = row
        self.count += 1


def _nearby(basis: torch.Tensor, values: torch.Tensor, rotation: torch.Tensor, k: int, most: int) -> torch.Tensor:
    """Return the Ritz vectors after the first k whose values are close to the first, then zeros (R, most, P)."""
    close = values[:, k : k + most] >= CLOSE * values[:, :1]
    used = int(close.sum(1).max())
    result = basis.new_zeros(len(basis), most, basis.shape[2])
    result[:, :used] = torch.where(close[:, :used, None], rotation[:, k : k + used] @ basis, 0.0)
    return result


def trimmed(starts: torch.Tensor) -> torch.Tensor:
    """Copy start vectors (R, s, P) without the last places that are zero for all operators."""
    return starts[:, : int(starts.any(2).any(0).sum())].clone()


def _rayleigh_ritz(small: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
    """Return Ritz values, descending (R, m), and the rotation whose rows make the Ritz vectors (R, m, m)."""
    broken = ~torch.isfinite(small).all(2, keepdim=True).all(1, keepdim=True)
    small = torch.where(broken, 0.0, small)
    # On the CPU: a GPU takes longer for a matrix as small as this than the way there and back.
    values, vectors = torch.linalg.eigh(small.cpu())
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
