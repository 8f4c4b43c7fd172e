"""Top eigenpairs of any symmetric operator, or of a stack of them; knows no network.

Rayleigh–Ritz on a growing orthonormal basis: from one start vector it spans the Krylov space (Lanczos with full
reorthogonalisation), from what the previous measurement found it is a warm start that needs a few products. The images
of the basis are kept, so the residual is the true one, ‖A u − λ u‖, and restarting costs no product; whatever else
an operator finds out that is linear in the vector is combined along with the images. A small residual says that *an* eigenvalue was
found; that it is the largest is ``probing``'s to say.
"""

from __future__ import annotations

import logging
from collections.abc import Callable
from dataclasses import dataclass, fields

import torch
from torch.nn.utils.rnn import pad_sequence

from eosslib.probing import Chain, Probe, suspect

log = logging.getLogger(__name__)

CLOSE = 0.8  # fraction of λ₁ from which on a Ritz vector is kept for the next solve
NEARBY = 15  # how many are, at most; of K classes about K − 1 eigenvalues come to the edge together

ROUNDING = 8  # times the precision of the numbers, and ‖A‖: no residual gets below that

Operator = Callable[[torch.Tensor], torch.Tensor]


@dataclass(frozen=True)
class Eigenpairs:
    """The k algebraically largest eigenpairs of R operators."""

    values: torch.Tensor  # (R, k), descending
    vectors: torch.Tensor  # (R, k, P), unit norm
    residuals: torch.Tensor  # (R, k), ‖A u − λ u‖ / max(|λ₁|, tiny)
    products: torch.Tensor  # (R,), operator products until the run's pairs had converged
    converged: torch.Tensor  # (R,), bool: the residuals, and the probability of a miss where there was a probe
    miss: torch.Tensor  # (R,), probability that an eigenvalue 1e-3 of ‖A‖ or more above λ₁ was overlooked; 1 without a probe
    carried: torch.Tensor  # (R, k, m), what the operator appends to its images, for the eigenvectors
    starts: torch.Tensor  # (R, s, P), where to solve for a nearby operator from: the eigenvectors, those that may overtake, zeros
    probe: torch.Tensor  # (R, P), what is left of the probe for a nearby operator; (R, 0) without one

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


def warn_if_uncertain(pairs: Eigenpairs, what: str) -> Eigenpairs:
    """Log a warning where a solve was given up, and return the pairs; values that are not finite speak for themselves."""
    bad = ~pairs.converged & torch.isfinite(pairs.values).all(1)
    if bool(bad.any()):
        more = f", probability of a miss up to {float(pairs.miss[bad].max()):.1e}" if pairs.probe.shape[1] else ""
        warn_of(bad, pairs.residuals, what, more)
    return pairs


def warn_of(bad: torch.Tensor, residuals: torch.Tensor, what: str, more: str = "") -> None:
    """Log that some of a stack's solves (R,), at least one, were given up."""
    worst = float(residuals[bad].max())
    log.warning("%s: %d of %d eigen-solves given up: residual up to %.1e%s", what, int(bad.sum()), len(bad), worst, more)


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
    probe: Probe | None = None,
) -> Eigenpairs:
    """Find the k algebraically largest eigenvalues of each operator in a stack, with their eigenvectors.

    Costs one operator product an iteration, plus O(m P) for a basis of m vectors. An operator that has converged keeps its
    result while the others go on, so what it finds does not depend on the stack. Eigenvalues of exact multiplicity are
    found once each. An operator that returns values that are not finite gets NaN and ``converged`` False.

    Without a probe a solve stops where the residuals are small, which now and then they are for another eigenvalue than the
    largest. With one it goes on until that has a small probability for λ₁: 1.5 to 2 times the products from nothing, two or three
    more with what the last solve left of its probe.

    Args:
        operator: Maps a stack of vectors (R, P) to their images (R, P), or (R, P + m) with m further numbers that are linear in
            the vector; ``carried`` has them for the eigenvectors.
        start: Start vectors (R, s, P): random, or the ``starts`` of a nearby operator. An operator that has fewer of them
            than others of the stack has zeros in the last places, as ``padded`` puts them. With a probe none are needed.
        k: Number of eigenpairs.
        tol: Stop when all k residuals ‖A u − λ u‖ are below ``tol`` times |λ₁| (or rounding alone), and the probe says that λ₁ is
            the largest.
        max_products: Give up after so many products (``converged`` is then False).
        max_basis: Restart from the best Ritz vectors when the basis has so many vectors (more, if a solve starts from more).
        nearby: How many further Ritz vectors to return in ``starts``, at most; ``CLOSE`` says which. Where eigenvalues lie close
            together, as they do at the edge of stability, a solve that starts from all of them takes two thirds of the products;
            but never fewer products than it has start vectors.
        probe: Random vectors that look for an eigenvalue above those found.

    Returns:
        Eigenpairs; their values have the operator's units.

    Raises:
        ValueError: The stack is empty, ``k`` exceeds the dimension, an operator has neither start vector nor probe, one is not
            finite or follows a zero, or ``max_products`` are fewer than a solve begins with.

    Example:
        >>> diagonal = torch.tensor([1.0, 5.0, 2.0], dtype=torch.float64)
        >>> pairs = top_eigenpairs(lambda v: diagonal * v, torch.ones(1, 1, 3, dtype=torch.float64), tol=1e-9)
        >>> round(pairs.values.item(), 6)
        5.0
    """
    stack, _, size = start.shape
    if not stack:
        raise ValueError("an empty stack has no eigenpairs")
    if not 1 <= k <= size:
        raise ValueError(f"k = {k} eigenpairs of an operator of size {size}")
    counts = _counts(start, probe)
    if max_products < min(max(int(counts.min()), k), size):
        raise ValueError(f"{max_products} products are fewer than the {max(int(counts.min()), k)} that a solve begins with")
    most = max(max_basis, int(counts.max()) + (probe is not None), k + 2 + nearby)
    solve = _Solve(operator, start, counts, probe, k=k, tol=tol, max_basis=min(most, size))
    found: dict[int, Eigenpairs] = {}
    for product in range(1, max_products + 1):
        done = solve.advance(product)
        for i in (done if product < max_products else torch.ones_like(done)).nonzero().flatten().tolist():
            if i not in found:
                found[i] = solve.pairs(i, nearby, product, converged=bool(done[i]))
        if len(found) == stack:
            break
        solve.restart_if_full()
    return Eigenpairs.cat([found[i] for i in range(stack)])


def _counts(start: torch.Tensor, probe: Probe | None) -> torch.Tensor:
    """Return how many start vectors each operator has (R,); see that they can be used."""
    present = start.norm(dim=2) != 0
    counts = present.sum(1)
    vectors = [start] if probe is None else [start, probe.vector]
    if not all(bool(torch.isfinite(v).all()) for v in vectors) or (probe is None and not bool(counts.all())):
        raise ValueError("start vectors must be finite and not zero")
    if not torch.equal(present, torch.arange(start.shape[1], device=start.device) < counts[:, None]):
        raise ValueError("a start vector follows one that is zero")
    return counts


class _Solve:
    """R solves that go on side by side, each as it would alone.

    Every operator has its own plan: its start vectors, then the probe; after them the residual of the first pair that has not
    converged, or the next Lanczos vector of the probe.
    """

    def __init__(
        self,
        operator: Operator,
        start: torch.Tensor,
        counts: torch.Tensor,
        probe: Probe | None,
        *,
        k: int,
        tol: float,
        max_basis: int,
    ) -> None:
        stack, _, self.size = start.shape
        self.operator, self.start, self.counts, self.k, self.tol, self.max_basis = operator, start, counts.cpu(), k, tol, max_basis
        self.basis, self.images = (_Rows(start.new_empty(stack, 0, n), max_basis) for n in (self.size, 0))
        self.small = start.new_empty(stack, 0, 0)  # the operators on their bases
        self.rows = torch.arange(stack, device=start.device)
        self.chain = None if probe is None else Chain(probe, stack)
        self.ritz: _Ritz | None = None
        self._follow(start.new_zeros(stack, self.size), torch.zeros(stack, dtype=torch.bool), 0)

    def advance(self, product: int) -> torch.Tensor:
        """Multiply the vectors whose turn it is, choose those that follow, and say which operators are done: (R,), bool."""
        self.basis.append(self.following)
        self.images.append(self.operator(self.following))
        if self.chain is not None:
            self.chain.append()
        image = self.images.all[:, -1, : self.size]
        column = self.basis.all @ image.unsqueeze(2)
        self.small = torch.cat([torch.cat([self.small, column[:, :-1]], dim=2), column.transpose(1, 2)], dim=1)
        nothing = torch.zeros_like(self.counts, dtype=torch.bool)
        if self.basis.count < self.k or product < min(int(self.counts.min()), self.size):
            self._follow(image, self.counts == 0, product)
            return nothing
        self.ritz = ritz = _Ritz.of(self.basis.all, self.images.all, self.small, self.k)
        converged, finite = ritz.converged(self.tol), torch.isfinite(ritz.values[:, 0]).cpu()
        close = converged.all(1).cpu()
        if self.basis.count == self.size:  # nothing is outside
            return ~nothing & finite
        # Continue with the first pair that has not converged; for k = 1 this is Lanczos.
        following = ritz.residual[self.rows, (~converged).to(torch.int64).argmax(1)]
        waiting = self._follow(following, close | (self.counts == 0), product)
        close &= ~waiting
        return close & finite if self.chain is None else self._sure(close & finite)

    def _follow(self, otherwise: torch.Tensor, probing: torch.Tensor, product: int) -> torch.Tensor:
        """Orthonormalise what follows so many products: the plan's vectors, else the probe's next, or these ones (R, P).

        Args:
            otherwise: (R, P).
            probing: Which operators go on with the probe, once their plan is through (R,).
            product: How many products there were.

        Returns:
            Which operators still have vectors of their plan before them (R,): without all of them in the basis none is done.
        """
        waiting, following = self.counts > product, otherwise
        if self.chain is not None:
            begins = ~waiting & ~self.chain.begun
            probing = probing & ~waiting & ~begins
            following = following.clone()
            for i in (self.chain.begun & ~waiting & ~probing).nonzero().flatten().tolist():
                ahead, _ = _orthonormal(self.basis.all[i : i + 1], self._last_image(i).unsqueeze(0))
                aside = _aside(following[i], ahead[0])
                if aside is None:
                    probing[i] = True
                else:
                    following[i] = aside
            for i in probing.nonzero().flatten().tolist():
                following[i] = self._last_image(i)
            for i in begins.nonzero().flatten().tolist():
                following[i] = self.chain.beginning(i, self.basis.all[i], self.images.all[i, :, : self.size], self.small[i])
        if product < self.start.shape[1]:
            following = torch.where(waiting.to(following.device)[:, None], self.start[:, product], following)
        self.following, norm = _orthonormal(self.basis.all, following)
        if self.chain is not None:
            self.chain.plan(begins, probing, norm)
            waiting = waiting | begins
        return waiting

    def _sure(self, close: torch.Tensor) -> torch.Tensor:
        """Say for which of these operators, whose residuals are small, the probe finds that λ₁ is the largest eigenvalue (R,)."""
        assert self.chain is not None
        assert self.ritz is not None
        if not bool(close.any()):
            return close
        sure = close & (self.chain.misses(self.ritz.small, self.ritz.exact) <= self.chain.probe.miss)
        for i in sure.nonzero().flatten().tolist():
            where = (self.basis.all[i], self.images.all[i, :, : self.size], self.ritz.small[i], self.ritz.exact[i])
            hiding = suspect(*where, self.chain.members[i])
            if hiding is not None:
                sure[i] = False
                aside = _aside(hiding, self.following[i])
                if aside is not None:
                    self.following[i] = _orthonormal(self.basis.all[i : i + 1], aside.unsqueeze(0))[0][0]
                    self.chain.interrupt(i)
        return sure

    def _last_image(self, i: int) -> torch.Tensor:
        """Image of the last vector of the probe of operator i (P,)."""
        assert self.chain is not None
        return self.images.all[i, int(self.chain.last[i]), : self.size]

    def restart_if_full(self) -> None:
        """Go on with the best Ritz vectors alone where the basis has its full size, and with what is left of the probe."""
        if self.basis.count < self.max_basis:
            return
        assert self.ritz is not None
        keep = min(max(2 * self.k, self.max_basis // 2), self.max_basis - 1)
        if self.chain is not None:
            last = torch.stack([self._last_image(i) for i in range(len(self.counts))])
            self.following, norm = _orthonormal(self.basis.all, last)
            self.chain.restart(norm, self.ritz.small, self.ritz.exact, keep)
        rotation = self.ritz.rotation[:, :keep]
        self.basis, self.images = (_Rows(rotation @ rows.all, self.max_basis) for rows in (self.basis, self.images))
        self.small = torch.diag_embed(self.ritz.values[:, :keep])

    def pairs(self, i: int, nearby: int, products: int, *, converged: bool) -> Eigenpairs:
        """Return what operator i has come to after so many products, as a stack of one."""
        assert self.ritz is not None
        of, ritz, basis = slice(i, i + 1), self.ritz, self.basis.all
        below = ritz.values[i, self.k : self.k + nearby]
        close = int((below >= CLOSE * ritz.values[i, 0]).sum())
        if self.chain is not None:  # the next one in any case: what is left of the probe does not know it any more
            close = max(close, min(1, len(below)))
        starts = torch.cat([ritz.vectors[of], ritz.rotation[of, self.k : self.k + close] @ basis[of]], dim=1)
        carried = ritz.mapped[of, :, self.size :].clone()  # a view would keep the others' vectors alive
        if self.chain is None:
            miss, left = 1.0, basis.new_zeros(0)
        elif self.basis.count == self.size:
            miss, left = 0.0, self.chain.unused(i)
        else:
            miss, left = self.chain.left(i, self.following[i], ritz.small, ritz.exact)
        return Eigenpairs(
            ritz.values[of, : self.k],
            starts[:, : self.k],
            ritz.relative[of],
            torch.tensor([products], device=basis.device),
            torch.tensor([converged], device=basis.device),
            torch.tensor([miss], dtype=torch.float64, device=basis.device),
            carried,
            starts,
            left.unsqueeze(0),
        )


@dataclass(frozen=True)
class _Ritz:
    """What a basis of m vectors says of R operators: all Ritz values, and the top k pairs."""

    small: torch.Tensor  # (R, m, m), the operators on their bases, float64 on the CPU; zero where one is not finite
    exact: torch.Tensor  # (R, m), Ritz values, descending, the same way
    values: torch.Tensor  # (R, m), Ritz values
    rotation: torch.Tensor  # (R, m, m), whose rows make the Ritz vectors
    vectors: torch.Tensor  # (R, k, P)
    mapped: torch.Tensor  # (R, k, P + c), their images and what comes along with them
    residual: torch.Tensor  # (R, k, P), A u − λ u
    relative: torch.Tensor  # (R, k), its norm over |λ₁|

    @staticmethod
    def of(basis: torch.Tensor, images: torch.Tensor, small: torch.Tensor, k: int) -> _Ritz:
        """Solve the small problem and go back to the large vectors."""
        # On the CPU: a GPU takes longer for a matrix as small as this than the way there and back.
        small = small.cpu().double()
        broken = ~torch.isfinite(small).all(2).all(1)
        small = torch.where(broken[:, None, None], 0.0, small)
        exact, rotation = torch.linalg.eigh(small)
        exact, rotation = exact.flip(1), rotation.flip(2).transpose(1, 2).to(basis)
        values = exact.masked_fill(broken[:, None], torch.nan).to(basis)
        vectors, mapped = rotation[:, :k] @ basis, rotation[:, :k] @ images
        residual = mapped[:, :, : basis.shape[2]] - values[:, :k, None] * vectors
        scale = values[:, :1].abs().clamp_min(torch.finfo(basis.dtype).tiny)
        return _Ritz(small, exact, values, rotation, vectors, mapped, residual, residual.norm(dim=2) / scale)

    def converged(self, tol: float) -> torch.Tensor:
        """Say which pairs have a residual below the tolerance, or one that is rounding alone (R, k)."""
        size = torch.maximum(self.values[:, :1].abs(), self.values[:, -1:].abs())
        rounding = ROUNDING * torch.finfo(self.residual.dtype).eps * size
        return (self.relative <= tol) | (self.residual.norm(dim=2) <= rounding)


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


def _aside(vector: torch.Tensor, ahead: torch.Tensor) -> torch.Tensor | None:
    """Remove from a vector (P,) what the probe will do next by itself, a unit vector (P,); return None where that is most of it.

    What is said of the probe holds as long as the other vectors of the basis take nothing away from it.
    """
    rest = vector - (vector @ ahead) * ahead
    return rest if rest.norm() > 0.5 * vector.norm() else None


def _orthonormal(basis: torch.Tensor, vector: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
    """Make vectors (R, P) orthonormal to a basis (R, m, P); where nothing is left, continue with a random vector.

    Returns:
        The vectors (R, P), and the norm of what was left (R,).
    """
    before = vector.norm(dim=1)
    vector = _project_out(basis, vector)
    after = vector.norm(dim=1)
    least = torch.finfo(vector.dtype).eps * before
    lost = after <= 10 * least
    if bool(lost.any()):
        # A function of the size of the basis alone, the same for every operator: nothing depends on the stack.
        generator = torch.Generator(vector.device).manual_seed(basis.shape[1])
        noise = torch.randn(vector.shape[1:], dtype=vector.dtype, device=vector.device, generator=generator)
        vector = torch.where(lost[:, None], _project_out(basis, noise.expand_as(vector)), vector)
    return vector / vector.norm(dim=1, keepdim=True), torch.maximum(after, least)


def _project_out(basis: torch.Tensor, vector: torch.Tensor) -> torch.Tensor:
    # Twice is enough (Giraud, Langou, Rozložník 2005): once loses orthogonality to rounding. A second time only where the norm
    # falls to a tenth (Rutishauser 1967) is not enough: what is lost multiplies from vector to vector, and eigenvalues explode.
    for _ in range(2):
        vector = without(basis, vector)
    return vector


def without(basis: torch.Tensor, vector: torch.Tensor) -> torch.Tensor:
    """Remove orthonormal directions (R, m, P) from vectors (R, P)."""
    return vector - (basis.transpose(1, 2) @ (basis @ vector.unsqueeze(2))).squeeze(2)
