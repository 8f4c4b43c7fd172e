"""Projected noise variance σ_u² = Var_B(uᵀg_B), exactly, from the n directional derivatives uᵀ∇ℓᵢ; no sampling error."""

from __future__ import annotations

import torch

from eosslib.measure.moment import Columns, Measurement, Moment, always
from eosslib.theory import finite_population


def variance_of_batch_means(slopes: torch.Tensor, batch_size: int, sampling: str) -> torch.Tensor:
    """Variance over mini-batches of the batch's mean of a per-example quantity: (R, n) → (R,).

    That is (s²/b)·(n−b)/(n−1) with s² the variance over examples (divisor n); the last factor, because batches are drawn without
    replacement, is 1 for ``iid``.

    Raises:
        ValueError: The sampling is unknown, or a batch of this size cannot be drawn.
    """
    return slopes.var(1, correction=0) * finite_population(slopes.shape[1], batch_size, sampling)


def _compute(moment: Moment) -> Columns:
    slopes = moment.pairs.carried[:, 0]  # which the solve came by
    variance = variance_of_batch_means(slopes, moment.settings.batch_size, moment.settings.sampling)
    if moment.point.objective.network.couples_examples:  # no example has a gradient of its own
        variance = torch.full_like(variance, torch.nan)
    return {"noise_variance": variance}


NOISE = Measurement(
    settings=("batch_size", "sampling"),
    columns={"noise_variance": "σ_u² of the next step's batch along u₁; NaN where batch normalisation couples examples [loss²/θ²]"},
    due=always,
    compute=_compute,
)
