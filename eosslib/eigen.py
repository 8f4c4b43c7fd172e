"""Top eigenpairs of any symmetric operator, or of a stack of them; knows no network.

Rayleigh–Ritz on a growing orthonormal basis: from one start vector it spans the Krylov space (Lanczos with full
reorthogonalisation), from what the previous measurement found it is a warm start that needs a few products. The images
of the basis are kept, so the residual that stops it is the true one, ‖A u − λ u‖, and restarting costs no product; whatever else
an operator finds out that is linear in the vector is combined along with the images.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, fields

import torch
from torch.nn.utils.rnn import pad_sequence

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
    starts: torch.Tensor  # (R, s, P), where to solve for a nearby operator from: the eigenvectors, those that may overtake, zeros

    @staticmethod
    def cat(parts: list[Eigenpairs]) -> Eigenpairs:
        """Join results of different operators along the stack."""
        if len(parts) == 1:
            return parts[0]
        names = [f.name for f in fields(Eigenpairs) if f.name != "starts"]
        joined = {name: torch.cat([getattr(part, name) for part in parts]) for name in names}
        return Eigenpairs(**joined, starts=padded([rows for part in parts for rows in part.starts]))

    @staticmethod
    def where(first: torch.Tensor, a: Eigenpairs, b: Eigenpairs) -> Eigenpairs:
        """Take a's pairs for the operators where ``first`` (R,) says so, else b's."""
        return Eigenpairs.cat([(a if chosen else b).of(i) for i, chosen in enumerate(first.tolist())])

    def of(self, i: int) -> Eigenpairs:
        """Return the pairs of operator i, as a stack of one."""
        return Eigenpairs(*(getattr(self, f.name)[i : i + 1] for f in fields(Eigenpairs)))


def padded(starts: list[torch.Tensor]) -> torch.Tensor:
    """Stack the start vectors (s, P) of R operators, zeros in the last places of those that have fewer: (R, most, P)."""
    return pad_sequence(starts, batch_first=True)


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
    result while the others go on, so what it finds does not depend on the stack. Eigenvalues of exact multiplicity are
    found once each. An operator that returns values that are not finite gets NaN and ``converged`` False.

    Args:
        operator: Maps a stack of vectors (R, P) to their images (R, P), or (R, P + m) with m further numbers that are linear in
            the vector; ``carried`` has them for the eigenvectors.
        start: Start vectors (R, s, P), s ≥ 1: random, or the ``starts`` of a nearby operator. An operator that has fewer of them
            than others of the stack has zeros in the last places, as ``padded`` puts them.
        k: Number of eigenpairs.
        tol: Stop when all k residuals ‖A u − λ u‖ are below ``tol`` times |λ₁|.
        max_products: Give up after so many products (``converged`` is then False).
        max_basis: Restart from the best Ritz vectors when the basis has so many vectors (more, if a solve starts from more).
        nearby: How many further Ritz vectors to return in ``starts``, at most; ``CLOSE`` says which. Where eigenvalues lie close
            together, as they do at the edge of stability, a solve that starts from all of them takes two thirds of the products
            and rarely misses the one that has come to the top; but never fewer products than it has start vectors.

    Returns:
        Eigenpairs; their values have the operator's units.

    Raises:
        ValueError: The stack is empty, ``k`` exceeds the dimension, an operator has no start vector, one is not finite or follows
            a zero, or ``max_products`` are fewer than a solve begins with.

    Example:
        >>> diagonal = torch.tensor([1.0, 5.0, 2.0], dtype=torch.float64)
        >>> pairs = top_eigenpairs(lambda v: diagonal * v, torch.ones(1, 1, 3, dtype=torch.float64), tol=1e-9)
        >>> round(pairs.values.item(), 6)
        5.0
    """
    stack, given, size = start.shape
    if not stack:
        raise ValueError("an empty stack has no eigenpairs")
    if not 1 <= k <= size:
        raise ValueError(f"k = {k} eigenpairs of an operator of size {size}")
    present = start.norm(dim=2) != 0
    counts = present.sum(1)  # of each one's start vectors
    fewest, most = int(counts.min()), int(counts.max())
    if not torch.isfinite(start).all() or not fewest:
        raise ValueError("start vectors must be finite and not zero")
    if not torch.equal(present, torch.arange(given, device=start.device) < counts[:, None]):
        raise ValueError("a start vector follows one that is zero")
    max_basis = min(max(max_basis, most, k + 2 + nearby), size)
    found: dict[int, Eigenpairs] = {}
    basis, images = _Rows(start.new_empty(stack, 0, size), max_basis), _Rows(start.new_empty(stack, 0, 0), max_basis)
    small = start.new_empty(stack, 0, 0)  # the operator on the basis
    following = start[:, 0]
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
            ritz = _Ritz.of(basis.all, images.all, small, k)
            finite = torch.isfinite(ritz.values[:, 0])
            done = ((ritz.relative <= tol).all(1) | (basis.count == size) | ~finite) & ~waiting
            ended = done if product < max_products else torch.ones_like(done)
            for i in ended.nonzero().flatten().tolist():
                if i not in found:
                    found[i] = ritz.pairs(i, basis.all, nearby, product, converged=done & finite)
            if len(found) == stack:
                break
            # Continue with the first pair that has not converged; for k = 1 this is Lanczos.
            target = (ritz.relative > tol).to(torch.int64).argmax(1)
            following = ritz.residual[torch.arange(stack, device=start.device), target]
            if basis.count >= max_basis:
                keep = min(max(2 * k, max_basis // 2), max_basis - 1)
                basis, images = (_Rows(ritz.rotation[:, :keep] @ rows.all, max_basis) for rows in (basis, images))
                small = torch.diag_embed(ritz.values[:, :keep])
        if product < given:
            following = torch.where((counts > product)[:, None], start[:, product], following)
    if not found:
        raise ValueError(f"{max_products} products are fewer than the {max(fewest, k)} that a solve begins with")
    return Eigenpairs.cat([found[i] for i in range(stack)])


@dataclass(frozen=True)
class _Ritz:
    """What a basis of m vectors says of R operators: all Ritz values, and the top k pairs."""

    values: torch.Tensor  # (R, m), descending
    rotation: torch.Tensor  # (R, m, m), whose rows make the Ritz vectors
    vectors: torch.Tensor  # (R, k, P)
    mapped: torch.Tensor  # (R, k, P + c), their images and what comes along with them
    residual: torch.Tensor  # (R, k, P), A u − λ u
    relative: torch.Tensor  # (R, k), its norm over |λ₁|

    @staticmethod
    def of(basis: torch.Tensor, images: torch.Tensor, small: torch.Tensor, k: int) -> _Ritz:
        """Solve the small problem and go back to the large vectors."""
        values, rotation = _rayleigh_ritz(small)
        vectors, mapped = rotation[:, :k] @ basis, rotation[:, :k] @ images
        residual = mapped[:, :, : basis.shape[2]] - values[:, :k, None] * vectors
        scale = values[:, :1].abs().clamp_min(torch.finfo(basis.dtype).tiny)
        return _Ritz(values, rotation, vectors, mapped, residual, residual.norm(dim=2) / scale)

    def pairs(self, i: int, basis: torch.Tensor, nearby: int, products: int, converged: torch.Tensor) -> Eigenpairs:
        """Return the pairs of operator i after so many products, as a stack of one, and where to solve for a nearby one from."""
        of, (_, k, size) = slice(i, i + 1), self.vectors.shape
        close = int((self.values[i, k : k + nearby] >= CLOSE * self.values[i, 0]).sum())
        starts = torch.cat([self.vectors[of], self.rotation[of, k : k + close] @ basis[of]], dim=1)
        count = torch.tensor([products], device=basis.device)
        carried = self.mapped[of, :, size:].clone()  # a view would keep the others' vectors alive
        return Eigenpairs(self.values[of, :k], starts[:, :k], self.relative[of], count, converged[of], carried, starts)


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
