"""Errors over seeds of what is fitted to means over seeds: the fit is made again without each seed in turn.

The scatter of points around a line says how far they are from a power law, not how far another draw of seeds would have put the
slope: the points of a run move together. With θ_i the estimate without seed i of m and θ̄ the mean of these, the jackknife's
variance is (m − 1)/m Σ_i (θ_i − θ̄)² (Efron, Stein 1981, doi:10.1214/aos/1176345462), which for a mean is its standard error
squared. It also holds where a single seed has no fit, because its values are not all positive.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import replace
from typing import Any

import numpy as np
import pandas as pd

from eosslib import powerlaw
from eosslib.powerlaw import BrokenPowerLaw, PowerLaw

Estimate = Callable[[pd.Series], np.ndarray]


def error(values: pd.DataFrame, estimate: Estimate) -> np.ndarray | None:
    """Return the standard error over seeds of an estimate from means over seeds.

    Args:
        values: A row a batch size, a column a seed.
        estimate: Takes the means (a row a batch size) to numbers (any shape); a ValueError says that there are none.

    Returns:
        The errors, of the estimate's shape; None for one seed, where one lacks a value or without one there is no estimate.
    """
    m = values.shape[1]
    if m < 2 or values.isna().any(axis=None):
        return None
    try:
        without = np.stack([estimate(values.drop(columns=seed).mean(axis=1)) for seed in values])
    except (ValueError, RuntimeError):  # too few points, or a fit that does not converge
        return None
    return np.sqrt((m - 1) / m * ((without - without.mean(axis=0)) ** 2).sum(axis=0))


def fit_each(
    means: pd.DataFrame, runs: pd.DataFrame, column: str, by: Sequence[str], across: str = "batch_size"
) -> dict[Any, PowerLaw]:
    """Fit a power law to the means of every group, with the slope's error over seeds where all batch sizes have the same seeds.

    Args:
        means: ``by``, ``across`` and ``mean``, as ``analysis.over_seeds`` gives them, of the batch sizes to be fitted.
        runs: What they are the means of: ``by``, ``across``, ``seed`` and the column, a row a run.
        column: What was averaged.
        by: Columns that tell the groups apart.
        across: What to fit against.

    Returns:
        The fits by group (a tuple where ``by`` has several columns); a group of fewer than three positive means has none.
    """
    fits: dict[Any, PowerLaw] = {}
    for key, part in means.groupby(list(by), sort=False):
        if (part["mean"] > 0).sum() < 3:
            continue
        fit = powerlaw.fit(part[across], part["mean"])
        own = runs[(runs[list(by)] == pd.Series(key, index=list(by))).all(axis=1) & runs[across].isin(fit.x)]
        found = error(own.pivot(index=across, columns="seed", values=column), _slope)
        name = key[0] if len(by) == 1 else key
        fits[name] = fit if found is None else replace(fit, seeds_se=float(found))
    return fits


def broken(fit: BrokenPowerLaw, values: pd.DataFrame) -> BrokenPowerLaw:
    """Return the fit of several pieces with errors over seeds of its slopes and breaks, in place of those of the regression.

    Args:
        fit: To the means over seeds of ``values``.
        values: A row a batch size, a column a seed.
    """
    pieces = len(fit.slopes)
    found = error(values, lambda mean: _broken(mean, pieces))
    return fit if found is None else replace(fit, slopes_se=found[:pieces], breaks_se=found[pieces:])


def _slope(mean: pd.Series) -> np.ndarray:
    return np.array(powerlaw.fit(mean.index.to_series(), mean).slope)


def _broken(mean: pd.Series, pieces: int) -> np.ndarray:
    fit = powerlaw.fit_broken(mean.index.to_series(), mean, pieces)
    return np.concatenate([fit.slopes, fit.breaks])
