"""Errors over seeds of what is fitted to means over seeds: the fit is made again without each seed in turn.

The scatter of points around a line says how far they are from a power law, not how far another draw of seeds would have put the
slope: the points of a run move together. With θ_i the estimate without seed i of m and θ̄ the mean of these, the jackknife's
variance is (m − 1)/m Σ_i (θ_i − θ̄)² (Efron, Stein 1981, doi:10.1214/aos/1176345462), which for a mean is its standard error
squared. It also holds where a single seed has no fit, because its values are not all positive. A break point, which jumps from
one place between points to another, is no smooth function of the means; for it the range of the θ_i is given.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import replace
from typing import Any, TypeVar

import numpy as np
import pandas as pd

from eosslib import powerlaw
from eosslib.powerlaw import PowerLaw

T = TypeVar("T")


def leave_out(values: pd.DataFrame, estimate: Callable[[pd.Series], T]) -> list[T] | None:
    """Return an estimate from means over seeds without each of m seeds in turn, or None.

    None is for one seed, where one lacks a value, or where without one there is no estimate.

    Args:
        values: A row a batch size, a column a seed.
        estimate: Of the means (a row a batch size); a ValueError says that there is none.
    """
    if values.shape[1] < 2 or values.isna().any(axis=None):
        return None
    try:
        return [estimate(values.drop(columns=seed).mean(axis=1)) for seed in values]
    except (ValueError, RuntimeError):  # too few points, or a fit that does not converge
        return None


def error(values: pd.DataFrame, estimate: Callable[[pd.Series], np.ndarray]) -> np.ndarray | None:
    """Return the standard error over seeds of an estimate from means over seeds, of the estimate's shape, or None.

    Args:
        values: As for ``leave_out``, and so is the estimate.
        estimate: A smooth function of the means.
    """
    found = leave_out(values, estimate)
    if found is None:
        return None
    without, m = np.stack(found), len(found)
    return np.sqrt((m - 1) / m * ((without - without.mean(axis=0)) ** 2).sum(axis=0))


def fit_each(
    means: pd.DataFrame, runs: pd.DataFrame, column: str, by: Sequence[str], across: str = "batch_size"
) -> dict[Any, PowerLaw]:
    """Fit a power law to the means of every group, with the slope's error over seeds where all batch sizes have the same seeds.

    The batch sizes are those of the whole fit, whichever seed is left out; where a mean is not positive then, there is no error.

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
        repeated = own.duplicated([across, "seed"]).any()  # several runs of a seed, which are no copies of each other
        found = None if repeated else error(own.pivot(index=across, columns="seed", values=column), _slope)
        name = key[0] if len(by) == 1 else key
        fits[name] = fit if found is None else replace(fit, seeds_se=float(found))
    return fits


def broken(values: pd.DataFrame, pieces: int) -> pd.DataFrame | None:
    """Fit a power law of several pieces without each seed in turn: where a break jumps between points, a range says more than ±.

    Args:
        values: A row a batch size, a column a seed.
        pieces: Number of slopes.

    Returns:
        A row for each seed that is left out, columns as ``BrokenPowerLaw.numbers`` names them; None as for ``leave_out``.
    """
    fits = leave_out(values, lambda mean: powerlaw.fit_broken(*_points(mean), pieces))
    if fits is None:
        return None
    return pd.DataFrame([{name: value for name, (value, _) in fit.numbers.items()} for fit in fits], index=values.columns)


def _slope(mean: pd.Series) -> np.ndarray:
    return np.array(powerlaw.fit(*_points(mean)).slope)


def _points(mean: pd.Series) -> tuple[pd.Series, pd.Series]:
    if not (mean > 0).all():  # the fit would leave such points out, and be one to other points than the whole fit
        raise ValueError("without one of the seeds a mean is not positive")
    return mean.index.to_series(), mean
