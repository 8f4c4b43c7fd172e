"""Evidence that the largest Ritz value is the largest eigenvalue, from a random vector that is multiplied along with the rest.

A small residual says that *an* eigenvalue was found. Let z be a vector of standard normal numbers and u an eigenvector whose
eigenvalue lies above x = λ₁ + ``MARGIN``·‖A‖, λ₁ the largest Ritz value. The Lanczos vectors that start from z are polynomials
of the operator applied to z; their roots are Ritz values. Divided by its value at x, such a polynomial turns z into a vector that
still has a part of uᵀz, or more, along u, while everything else in it shrinks. A vector of norm ν has a part of at most ν along
anything: u was overlooked only where |uᵀz| ≤ ν, which has the probability erf(ν/√2). That is the *probability of a miss* (van
Dorsselaer, Hochstenbach and van der Vorst 2000, doi:10.1137/S0895479897322823; the bound of Kuczyński and Woźniakowski 1992,
doi:10.1137/0613066, is for all spectra at once and asks for ten times the products).

Vectors that a solve starts from are projected out of z and of what becomes of it, which saves the products that would find
them anew. They are not eigenvectors yet: ``suspect`` sees to it that nothing hides between them and the rest. What is left of z
is *carried* to the solve for the next operator. There u may have turned, by no more than about the change of the operator over
the gap: so much of a fresh random vector is added, and of u at least this is found. All the evidence is in the norm of the
carried vector.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch

MARGIN = 1e-3  # of ‖A‖: what an overlooked eigenvalue would have to be above the one that is found
MISS = 1e-6  # probability of a miss at which a solve that knows nothing may stop
CARRIED_MISS = 0.1  # at which one may stop that goes on with a carried probe: the next one looks again, from other random numbers
FLOOR = 1e-30  # of ‖A‖, for operators that are zero
GAP = 0.2  # of ‖A‖, between λ₁ and what is not among the start vectors: a change of the operator by d turns a vector by d / GAP
STILL = 1e-3  # part of a fresh random vector that is added at least


@dataclass(frozen=True)
class Probe:
    """Random vectors to look for an overlooked eigenvalue with, one for each of R operators."""

    vector: torch.Tensor  # (R, P), standard normal, or ``Eigenpairs.probe`` of a solve for a nearby operator
    fresh: torch.Tensor | None = None  # (R, P), standard normal; added to a carried one by how much the operator has changed
    miss: float = MISS  # probability of a miss at which to stop

    @staticmethod
    def carried(vector: torch.Tensor, fresh: torch.Tensor) -> Probe:
        """Go on with what another solve left of its probe."""
        return Probe(vector, fresh, CARRIED_MISS)

    def of(self, rows: slice) -> Probe:
        """Return the probes of some of the operators."""
        return Probe(self.vector[rows].clone(), None if self.fresh is None else self.fresh[rows].clone(), self.miss)

    def renewed(self, i: int, change: float) -> torch.Tensor:
        """Return the probe of operator i where the operator has changed so much, in units of ‖A‖: (P,)."""
        if self.fresh is None:
            return self.vector[i]
        return self.vector[i] + min(1.0, max(STILL, change / GAP)) * self.fresh[i]


def probability(log_norm: torch.Tensor) -> torch.Tensor:
    """Probability that a standard normal number is within ± the norm."""
    return torch.erf(log_norm.exp() / 2**0.5)


def scale_of(values: torch.Tensor) -> torch.Tensor:
    """Estimate ‖A‖ from Ritz values (R, m), descending: (R,), never zero."""
    return torch.maximum(values[:, 0].abs(), values[:, -1].abs()).clamp_min(FLOOR)


def ceiling(values: torch.Tensor) -> torch.Tensor:
    """Return λ₁ + MARGIN·‖A‖ for Ritz values (R, m), descending: (R,)."""
    return values[:, 0] + MARGIN * scale_of(values)


def log_growth(small: torch.Tensor, values: torch.Tensor, probing: torch.Tensor) -> torch.Tensor:
    """Return the logarithm of what the probe's polynomial, with leading coefficient one, is at the ceiling: (R,).

    Without other vectors in the basis it is Π(x − θᵢ) over all Ritz values; others are taken out by a Schur complement.

    Args:
        small: The operators on their bases (R, m, m), float64.
        values: Their eigenvalues (R, m), descending.
        probing: Which vectors of the basis come from the probe (R, m), bool.
    """
    top = ceiling(values)[:, None]
    other = ~probing
    rest = torch.where(other[:, :, None] & other[:, None, :], -small, 0.0)
    rest = rest + torch.diag_embed(torch.where(other, top, 1.0))
    return (top - values).log().sum(1) - torch.linalg.slogdet(rest)[1]


class Chain:
    """The Lanczos vectors of the probes of R operators, in bases that hold other vectors too; keeps account of their norms."""

    def __init__(self, probe: Probe, stack: int) -> None:
        """Begin with nothing in the bases."""
        self.probe = probe
        self.begun = torch.zeros(stack, dtype=torch.bool)
        self.members = torch.zeros(stack, 0, dtype=torch.bool)  # (R, m), which vectors of the basis are the probe's
        self.last = torch.zeros(stack, dtype=torch.int64)  # the place of the last of them
        self._begins = self._continues = self.begun
        self._log = torch.zeros(stack, dtype=torch.float64)  # of the norm of the probe times its monic polynomial
        self._next = self._log  # of the norm of what follows, before it was made a unit vector

    def beginning(self, i: int, basis: torch.Tensor, images: torch.Tensor, small: torch.Tensor) -> torch.Tensor:
        """Return the probe of operator i, whose basis (m, P) has its start vectors: (P,)."""
        return self.probe.renewed(i, change_of(basis, images, small.cpu().double()))

    def plan(self, begins: torch.Tensor, continues: torch.Tensor, norm: torch.Tensor) -> None:
        """Take note of what the next vectors are: the probe (R,), its next Lanczos vector (R,) or neither; and of their norm."""
        self._begins, self._continues = begins, continues
        self._next = norm.cpu().double().clamp_min(1e-15 * FLOOR).log()

    def interrupt(self, i: int) -> None:
        """Take note that the next vector of operator i is another one."""
        self._continues = self._continues.clone()
        self._continues[i] = False

    def append(self) -> None:
        """Take the planned vectors as appended to the bases."""
        mine = self._begins | self._continues
        self.last = torch.where(mine, self.members.shape[1], self.last)
        self.members = torch.cat([self.members, mine[:, None]], dim=1)
        self._log = torch.where(mine, self._log + self._next, self._log)
        self.begun = self.begun | self._begins

    def logs(self, small: torch.Tensor, values: torch.Tensor) -> torch.Tensor:
        """Logarithm of the norm of the probe's next vector, of which uᵀz is no smaller than at the beginning (R,)."""
        return self._log + self._next - log_growth(small, values, self.members)

    def misses(self, small: torch.Tensor, values: torch.Tensor) -> torch.Tensor:
        """Probabilities of a miss (R,); 1 where the next vector is not the probe's."""
        return torch.where(self._continues, probability(self.logs(small, values)), 1.0)

    def restart(self, norm: torch.Tensor, small: torch.Tensor, values: torch.Tensor, keep: int) -> None:
        """Begin anew with what follows, of this norm before it was made a unit vector, in a basis of ``keep`` others."""
        nothing = torch.zeros_like(self.begun)
        self.plan(~nothing, nothing, norm)
        self._next = self.logs(small, values)
        self._log = torch.zeros_like(self._log)
        self.members = torch.zeros(len(nothing), keep, dtype=torch.bool)

    def left(self, i: int, following: torch.Tensor, small: torch.Tensor, values: torch.Tensor) -> tuple[float, torch.Tensor]:
        """Probability of a miss of operator i, and what is left of its probe, from its next vector (P,) of unit norm."""
        if not self._continues[i]:
            return 1.0, self.unused(i)
        log = self.logs(small, values)[i]
        return float(probability(log)), following * float(log.exp())

    def unused(self, i: int) -> torch.Tensor:
        """A probe that knows nothing yet, for operator i: (P,)."""
        return (self.probe.vector if self.probe.fresh is None else self.probe.fresh)[i]


def suspect(
    basis: torch.Tensor,
    images: torch.Tensor,
    small: torch.Tensor,
    values: torch.Tensor,
    probing: torch.Tensor,
) -> torch.Tensor | None:
    """Return a direction in which an eigenvalue above the ceiling may hide, or None where there is none: (P,).

    All eigenvalues are below x where those of T + Fᵀ(x − A_⊥)⁻¹F are, with T the operator on the basis, F the residuals of the
    basis and A_⊥ the operator on the rest of the space. What A_⊥ is at most the probe has found: its largest Ritz value, of whose
    distance to x half is taken to be safe.

    Args:
        basis: Orthonormal vectors of one operator (m, P).
        images: Their images (m, P).
        small: (m, m), float64.
        values: Its eigenvalues (m,), descending.
        probing: Which vectors come from the probe (m,), bool.
    """
    others = (~probing).nonzero().flatten()
    if not len(others):
        return None
    of = others.to(basis.device)
    residuals = images[of] - small[others].to(basis) @ basis
    top = float(ceiling(values[None]))
    inner = small[probing][:, probing]
    found = float(torch.linalg.eigvalsh(inner)[-1]) if len(inner) else float(values[-1])
    distance = max(top - found, MARGIN * float(scale_of(values[None]))) / 2
    raised = small.clone()
    raised[others[:, None], others] += (residuals @ residuals.T).double().cpu() / distance
    heights, directions = torch.linalg.eigh(raised)
    return None if float(heights[-1]) <= top else directions[others, -1].to(basis) @ residuals


def change_of(basis: torch.Tensor, images: torch.Tensor, small: torch.Tensor) -> float:
    """How much an operator has changed since a basis (m, P) was one of its eigenvectors: its largest residual over ‖A‖."""
    if not len(basis):
        return 1.0
    residuals = images - small.to(basis) @ basis
    height = torch.linalg.eigvalsh((residuals @ residuals.T).double().cpu())[-1].clamp_min(0.0).sqrt()
    return float(height / scale_of(torch.linalg.eigvalsh(small).flip(0)[None]))
