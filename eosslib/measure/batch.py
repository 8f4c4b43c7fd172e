"""Batch sharpness: the curvature of the mini-batch loss along its own gradient."""

from __future__ import annotations

from dataclasses import dataclass

import torch

from eosslib.curvature import Point, curvature_along_gradient
from eosslib.measure.drawn import Draws, Estimate, collect, error_of, mean_of
from eosslib.measure.moment import Columns, Moment, of_draws


@dataclass(frozen=True)
class BatchSharpness:
    """Both forms of batch sharpness."""

    ratio_of_means: Estimate  # E[g'Hg] / E[‖g‖²], the definition
    mean_of_ratios: Estimate  # E[g'Hg / ‖g‖²]


def batch_sharpness(point: Point, draws: Draws) -> BatchSharpness:
    """Curvature of the mini-batch loss along its own gradient: E[g_Bᵀ H_B g_B] / E[‖g_B‖²] (Andreyev and Beneventano).

    Both the ratio of means (the definition), which ``draws.precision`` is for, and the mean of ratios. The standard error of the
    first is the delta method's. Costs about two gradients on the examples of all draws.

    Raises:
        ValueError: As ``drawn.collect``.
    """

    def ratio(samples: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
        c, s = samples
        quotient = c.mean() / s.mean()
        return quotient, error_of((c - quotient * s) / s.mean())

    found = collect(point, draws, lambda row, batches: torch.stack(curvature_along_gradient(batches)).double(), ratio)
    return BatchSharpness(Estimate.of(found, ratio), Estimate.of([c / s for c, s in found], mean_of))


def _compute(moment: Moment) -> Columns:
    found = batch_sharpness(moment.point, moment.draws("batch sharpness", moment.settings.batch_sharpness_draws))
    columns = found.ratio_of_means.columns("batch_sharpness") | found.mean_of_ratios.columns("batch_sharpness_mean_of_ratios")
    return columns | {"batch_sharpness_draws": found.ratio_of_means.draws}


BATCH_SHARPNESS = of_draws(
    "batch_sharpness_draws",
    {
        **Estimate.described("batch_sharpness", "E[gᵀHg]/E[‖g‖²] of the next step's batch", "loss/θ²"),
        **Estimate.described("batch_sharpness_mean_of_ratios", "E[gᵀHg/‖g‖²]", "loss/θ²"),
        "batch_sharpness_draws": "mini-batches drawn [1]",
    },
    _compute,
)
