"""What is measured along a run: sharpness, noise variance, batch sharpness, mini-batch sharpness, loss and accuracy.

Sharpness and noise variance use all n examples and carry no sampling error; batch sharpness and mini-batch sharpness are
means over drawn mini-batches and come with standard errors and an explicit random stream.
"""

from __future__ import annotations

import math
from collections.abc import Iterator, Sequence
from dataclasses import dataclass

import torch

from eosslib.curvature import GRAPH_FACTOR, Hessian, chunks, curvature_along_gradient
from eosslib.devices import DEFAULT_MEMORY, drawn_memory
from eosslib.eigen import Eigenpairs, top_eigenpairs, warn_if_uncertain
from eosslib.flat import Objective
from eosslib.lanczos import largest_eigenvalues
from eosslib.probing import Probe
from eosslib.sampling import independent_batches
from eosslib.settings import MAX_LOTS
from eosslib.streams import generator
from eosslib.theory import check_batches, finite_population


@dataclass(frozen=True)
class Estimate:
    """Means over drawn mini-batches, one for each of R networks."""

    value: torch.Tensor  # (R,)
    standard_error: torch.Tensor  # (R,)
    draws: torch.Tensor  # (R,), number of mini-batches


@dataclass(frozen=True)
class BatchSharpness:
    """Both forms of batch sharpness."""

    ratio_of_means: Estimate  # E[g'Hg] / E[‖g‖²], the definition
    mean_of_ratios: Estimate  # E[g'Hg / ‖g‖²]


@dataclass(frozen=True)
class MiniBatchSharpness:
    """MiniBS and how far it is above the sharpness."""

    value: Estimate  # E[λ_max(H_B)]
    gap: Estimate  # E[λ_max(H_B)] − λ_max(H)


def sharpness(
    objective: Objective,
    theta: torch.Tensor,
    x: torch.Tensor,
    y: torch.Tensor,
    start: torch.Tensor,
    *,
    k: int = 1,
    tol: float = 1e-3,
    max_products: int = 300,
    nearby: int = 0,
    probe: Probe | None = None,
    memory: int = DEFAULT_MEMORY,
) -> Eigenpairs:
    """Top-k eigenpairs of the full-batch Hessian ∇²L over all n examples (EoSS definition 3.2: FullBS is the first value).

    Costs up to one gradient for the passes and 1 to 2 gradients a product; 1 to 10 products when warm-started,
    and a dozen (20 without ``nearby``) where several eigenvalues lie close together. A probe takes two or three more, from nothing
    half as many again.

    Args:
        objective: Network and loss.
        theta: Parameters (R, P).
        x: Inputs (1, n, *shape), all of the training set.
        y: Targets (1, n, K).
        start: Start vectors (R, s, P): the last measurement's ``starts``, or random ones; none where there is a probe.
        k: Number of eigenpairs.
        tol: Relative residual ‖Hu − λu‖/λ₁ to reach.
        max_products: Give up after so many Hessian products.
        nearby: How many more Ritz vectors to return for the next start, as ``eigen.top_eigenpairs`` does.
        probe: Random vectors that look for an eigenvalue above those found, as ``eigen.top_eigenpairs`` has them.
        memory: Bytes the retained gradient graphs may hold.

    Returns:
        Eigenpairs; values in loss per squared parameter, so that ``values * lr`` is dimensionless and 2 is the edge.

    Raises:
        ValueError: As ``eigen.top_eigenpairs``: k, the start vectors or ``max_products`` do not allow a solve.
        ConfigError: Batch normalisation needs more than ``memory``.
    """
    parts = []
    for rows in solved_together(theta):
        # Copies, because the last bits of a matrix product may depend on where in memory its operands begin.
        operator = Hessian(objective, theta[rows].clone(), x, y, memory)
        looking = None if probe is None else probe.of(rows)
        options = {"k": k, "max_products": max_products, "nearby": nearby}
        parts.append(top_eigenpairs(operator, start[rows].clone(), tol=tol, probe=looking, **options))
    return warn_if_uncertain(Eigenpairs.cat(parts), "sharpness")


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


def solved_together(theta: torch.Tensor) -> list[slice]:
    """Cut a stack into the networks whose eigenpairs are solved for together: one by one on the CPU, all on a GPU.

    On the CPU the work does not shrink by stacking, so each network stops when it has converged, not when all have.
    """
    return [slice(r, r + 1) for r in range(len(theta))] if theta.device.type == "cpu" else [slice(0, len(theta))]


def noise_variance(
    objective: Objective,
    theta: torch.Tensor,
    u: torch.Tensor,
    x: torch.Tensor,
    y: torch.Tensor,
    *,
    batch_size: int,
    sampling: str = "reshuffle",
    memory: int = DEFAULT_MEMORY,
) -> torch.Tensor:
    """Projected noise variance σ_u² = Var_B(uᵀg_B), exactly, from the n directional derivatives uᵀ∇ℓᵢ.

    σ_u² = (s²/b)·(n−b)/(n−1) with s² the variance over examples (divisor n); the last factor, because batches are drawn
    without replacement, is 1 for ``sampling="iid"``. Costs less than one gradient; no sampling error.

    Args:
        objective: Network and loss.
        theta: Parameters (R, P).
        u: Unit directions (R, P), usually the top eigenvectors.
        x: Inputs (1, n, *shape).
        y: Targets (1, n, K).
        batch_size: b.
        sampling: ``reshuffle`` (without replacement) or ``iid``.
        memory: Bytes of intermediate results.

    Returns:
        σ_u² of each network (R,), in squared loss per squared parameter; NaN where batch normalisation couples the
        examples, which then have no gradients of their own.

    Raises:
        ValueError: The sampling is unknown, or a batch of this size cannot be drawn.
    """
    check_batches(x.shape[1], batch_size, sampling)
    if objective.network.couples_examples:
        return torch.full_like(theta[:, 0], torch.nan)
    slopes = Hessian(objective, theta, x, y, memory).slopes(u)
    return variance_of_batch_means(slopes, batch_size, sampling)


def variance_of_batch_means(slopes: torch.Tensor, batch_size: int, sampling: str) -> torch.Tensor:
    """Variance over mini-batches of the batch's mean of a per-example quantity: (R, n) → (R,).

    Raises:
        ValueError: The sampling is unknown, or a batch of this size cannot be drawn.
    """
    return slopes.var(1, correction=0) * finite_population(slopes.shape[1], batch_size, sampling)


def draws_at_once(objective: Objective, theta: torch.Tensor, x: torch.Tensor, batch_size: int, memory: int) -> int:
    """How many mini-batches fit a batched call: each needs several copies of the parameters and its graph."""
    one = objective.network.views(theta[:1])
    graph = GRAPH_FACTOR * objective.network.output_bytes(one, x) * batch_size
    copies = 12 * theta.shape[1] * theta.element_size()
    return max(1, memory // (graph + copies))


def batch_sharpness(
    objective: Objective,
    theta: torch.Tensor,
    x: torch.Tensor,
    y: torch.Tensor,
    *,
    batch_size: int,
    draws: int,
    keys: Sequence[tuple[str | int, ...]],
    sampling: str = "reshuffle",
    precision: float = math.inf,
    memory: int | None = None,
) -> BatchSharpness:
    """Curvature of the mini-batch loss along its own gradient: E[g_Bᵀ H_B g_B] / E[‖g_B‖²] (Andreyev and Beneventano).

    Both the ratio of means (the definition) and the mean of ratios. The standard error of the first is the delta method's.
    Costs about two gradients on the examples of all draws.

    Args:
        objective: Network and loss.
        theta: Parameters (R, P).
        x: Inputs (1, n, *shape).
        y: Targets (1, n, K).
        batch_size: b.
        draws: Number of mini-batches in a lot; with b = n all are the same, and one is taken.
        keys: The name of each network's random stream (``streams``).
        sampling: How the run draws its batches.
        precision: Draw further lots until the standard error of the ratio of means is at most this part of it, or
            ``MAX_LOTS`` were drawn.
        memory: Bytes of intermediate results (default ``devices.drawn_memory``).

    Raises:
        ValueError: As ``lots``, or there is not one key for each network.
    """
    memory = drawn_memory(theta.device, memory)
    at_once = draws_at_once(objective, theta, x, batch_size, memory)
    ratio, mean, counts = [], [], []
    for row, key in zip(theta, keys, strict=True):
        samples = torch.empty(2, 0, dtype=torch.float64, device=theta.device)
        for lot in lots(x, batch_size, draws, sampling, key):
            for indices in lot.split(at_once):
                pair = curvature_along_gradient(objective, row.expand(len(indices), -1), x[0, indices], y[0, indices])
                samples = torch.cat([samples, torch.stack(pair).double()], dim=1)
            c, s = samples
            quotient = c.mean() / s.mean()
            error = _standard_error((c - quotient * s) / s.mean())
            if error <= precision * quotient.abs():
                break
        ratio.append((quotient, error))
        mean.append(((c / s).mean(), _standard_error(c / s)))
        counts.append(len(c))
    return BatchSharpness(_estimate(ratio, counts), _estimate(mean, counts))


def minibatch_sharpness(
    objective: Objective,
    theta: torch.Tensor,
    x: torch.Tensor,
    y: torch.Tensor,
    u: torch.Tensor,
    *,
    batch_size: int,
    draws: int,
    keys: Sequence[tuple[str | int, ...]],
    sampling: str = "reshuffle",
    precision: float = math.inf,
    tol: float = 5e-3,
    sharpness: torch.Tensor | None = None,
    memory: int | None = None,
) -> MiniBatchSharpness:
    """Mini-batch sharpness MiniBS = E_B[λ_max(∇²L_B)] (EoSS definition 3.1) and its gap to the sharpness (equation 3).

    The gap is the mean of λ_max(H_B) − uᵀH_B u: the mean of uᵀH_B u over all batches is uᵀHu, the sharpness, without any error,
    and on every batch it moves with λ_max(H_B). So every draw counts for at least zero, and close to the full batch the
    standard error falls as fast as the gap itself, where a difference of two means would drown in sampling noise. Both are
    estimated from the same draws. Costs about 15 gradients on the examples of all draws. With a residual of ``tol`` an
    eigenvalue is off by at most ``tol`` and typically by ``tol**2`` of itself. Now and then a draw's λ₂ is taken for its λ₁: to
    rule that out would cost twice the products, and what it does is a twentieth of the standard error
    (``benchmarks/DRAWN.md``). With batch normalisation the mean of the mini-batches' Hessians is not the Hessian: the gap is then
    the plain difference of MiniBS to the sharpness.

    Args:
        objective: Network and loss.
        theta: Parameters (R, P).
        x: Inputs (1, n, *shape).
        y: Targets (1, n, K).
        u: Top eigenvectors of the full-batch Hessian (R, P).
        batch_size: b.
        draws: Number of mini-batches in a lot.
        keys: The name of each network's random stream; the start vector is drawn from it too.
        sampling: How the run draws its batches.
        precision: Draw further lots until the standard error of MiniBS is at most this part of it, or ``MAX_LOTS`` were drawn.
        tol: Relative residual of every eigenvalue.
        sharpness: λ_max(∇²L) of each network (R,), which only networks with batch normalisation need; without it their gap is NaN.
        memory: Bytes of intermediate results (default ``devices.drawn_memory``).

    Raises:
        ValueError: As ``lots``, there is not one key for each network, or a vector of ``u`` is zero or not finite.
        ConfigError: Batch normalisation needs more than ``memory`` for a batch.
    """
    memory = drawn_memory(theta.device, memory)
    at_once = max(1, draws_at_once(objective, theta, x, batch_size, memory) // 4)  # the basis holds more vectors
    values, gaps, counts = [], [], []
    full = torch.full_like(theta[:, 0], torch.nan) if sharpness is None else sharpness
    for row, vector, whole, key in zip(theta, u, full.double(), keys, strict=True):
        top = torch.empty(0, dtype=torch.float64, device=theta.device)
        along = top.clone()
        # Half u, which is near many a draw's eigenvector, half random, which has a part of all.
        random = torch.randn(len(row), generator=generator(*key)).to(row)
        start = vector + random / random.norm()
        for lot in lots(x, batch_size, draws, sampling, key):
            for indices in lot.split(at_once):
                operator = Hessian(objective, row.expand(len(indices), -1), x[0, indices], y[0, indices], memory)
                found = largest_eigenvalues(operator, start.expand(len(indices), -1), tol=tol).or_warn("MiniBS")
                image = operator(vector.expand(len(indices), -1))
                quotients = (image * vector).double().sum(1)
                top = torch.cat([top, torch.maximum(found.values.double(), quotients)])  # λ_max is no less than uᵀH_B u
                along = torch.cat([along, quotients])
            error = _standard_error(top)
            if error <= precision * top.mean().abs():
                break
        values.append((top.mean(), error))
        above = top - (whole if objective.network.couples_examples else along)
        gaps.append((above.mean(), _standard_error(above)))
        counts.append(len(top))
    return MiniBatchSharpness(_estimate(values, counts), _estimate(gaps, counts))


def lots(x: torch.Tensor, batch_size: int, draws: int, sampling: str, key: tuple[str | int, ...]) -> Iterator[torch.Tensor]:
    """Yield lots of independent mini-batches, indices (draws, b); where all batches are the same, one of them.

    Args:
        x: Inputs (1, n, *shape).
        batch_size: b.
        draws: Number of mini-batches in a lot.
        sampling: ``reshuffle`` or ``iid``.
        key: The name of the random stream.

    Raises:
        ValueError: The sampling is unknown, a batch of this size cannot be drawn, or fewer than two draws where batches differ
            (b < n, or ``iid``), so that there is no standard error.
    """
    n = x.shape[1]
    check_batches(n, batch_size, sampling)
    if batch_size == n and sampling != "iid":
        yield torch.arange(n, device=x.device).unsqueeze(0)
        return
    if draws < 2:
        raise ValueError("a standard error needs at least two draws")
    for lot in range(MAX_LOTS):
        yield independent_batches(n, batch_size, sampling, range(lot * draws, (lot + 1) * draws), *key, device=x.device)


def _standard_error(samples: torch.Tensor) -> torch.Tensor:
    if len(samples) == 1:
        return samples.new_zeros(())  # the full batch: nothing was sampled
    return samples.std() / len(samples) ** 0.5


def estimate_of(samples: Sequence[torch.Tensor]) -> Estimate:
    """Mean and standard error of each network's samples, each (D,)."""
    return _estimate([(row.mean(), _standard_error(row)) for row in samples], [len(row) for row in samples])


def _estimate(pairs: list[tuple[torch.Tensor, torch.Tensor]], draws: list[int]) -> Estimate:
    values, errors = zip(*pairs, strict=True)
    return Estimate(torch.stack(values), torch.stack(errors), torch.tensor(draws))


def loss_and_accuracy(
    objective: Objective, theta: torch.Tensor, x: torch.Tensor, y: torch.Tensor, memory: int = DEFAULT_MEMORY
) -> tuple[torch.Tensor, torch.Tensor]:
    """Mean loss and fraction of rightly classified examples of each network: (R,), (R,).

    Args:
        objective: Network and loss.
        theta: Parameters (R, P).
        x: Inputs (1, n, *shape).
        y: One-hot targets (1, n, K).
        memory: Bytes of intermediate results.

    Raises:
        ConfigError: Batch normalisation needs more than ``memory``.
    """
    params = objective.network.views(theta)
    loss, right = theta.new_zeros(len(theta)), theta.new_zeros(len(theta))
    with torch.no_grad():
        for part in chunks(objective, params, x, memory):
            outputs = objective.network(params, x[:, part])
            loss += objective.loss.value(outputs, y[:, part]).sum(1)
            right += (outputs.argmax(-1) == y[:, part].argmax(-1)).sum(1)
    n = x.shape[1]
    return loss / n, right / n
