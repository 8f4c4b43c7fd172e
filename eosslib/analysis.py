"""From trajectories to numbers: plateaus, sharpness gaps, power-law fits, and the claims a notebook ends with.

Every error bar is a standard error over seeds unless it says otherwise.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import numpy as np
import pandas as pd
from scipy import stats

from eosslib import theory

RUN_KEYS = ["entry", "model", "loss_name", "lr", "train_size", "batch_size", "noise", "sampling", "full_batch", "seed", "threshold"]
PLATEAU = 0.25  # the plateau is the mean over the last quarter of the steps (science of the sharpness-gap paper)


def plateaus(frame: pd.DataFrame, until: int | None = None) -> pd.DataFrame:
    """Mean sharpness and noise variance over the last quarter of the steps, one row a run.

    Args:
        frame: Trajectories as ``runs.collect`` gives them.
        until: Look only at steps up to this one, to compare runs of different length; default: each run's own end.

    Returns:
        The run's settings with ``sharpness``, ``noise_variance``, ``measurements`` (how many were averaged). A run that diverged
        has no plateau: NaN.
    """
    end = frame["steps"].clip(upper=until) if until else frame["steps"]
    window = frame[(frame.step > (1 - PLATEAU) * end) & (frame.step <= end)]
    table = window.groupby(RUN_KEYS, as_index=False).agg(
        sharpness=("sharpness", "mean"), noise_variance=("noise_variance", "mean"), measurements=("sharpness", "count")
    )
    runs = frame[[*RUN_KEYS, "diverged"]].drop_duplicates()
    table = runs.merge(table, on=RUN_KEYS, how="left")
    table.loc[table.diverged, ["sharpness", "noise_variance"]] = np.nan
    return table


def gaps(table: pd.DataFrame) -> pd.DataFrame:
    """Sharpness gap ΔS = S_GD − S_SGD(b) of every run against full-batch gradient descent of the same network and seed.

    Args:
        table: Plateaus; those of gradient descent must be among them.

    Returns:
        The rows that are not gradient descent, with ``gap`` and ``relative_gap`` (in units of 2/η); NaN where gradient descent
        of the same network and seed is not among the runs.
    """
    keys = ["model", "loss_name", "lr", "train_size", "seed"]
    baseline = table[table.full_batch][[*keys, "sharpness"]].rename(columns={"sharpness": "gd_sharpness"})
    merged = table[~table.full_batch].merge(baseline, on=keys, how="left")
    merged["gap"] = merged.gd_sharpness - merged.sharpness
    merged["relative_gap"] = merged.gap / merged.threshold
    return merged


def closed_form(frame: pd.DataFrame) -> pd.DataFrame:
    """Predict every run's gap from α, β, σ_u² and E[x²] of its own plateau, with no fitted constant, and measure it.

    Averages over the plateau's windows come first, quotients after.

    Args:
        frame: Trajectories of runs with windows, those of gradient descent among them.

    Returns:
        A row a run: its settings, ``gap`` (0 for gradient descent itself), ``alpha``, ``beta`` and their standard errors over
        windows ``_se``, ``raw_alpha``, ``displacement`` E[x²], ``expected_displacement`` 2α/β, ``windows``; and predictions of
        the gap, each with one assumption less than the one before: ``closed_form`` ηβσ_u²/(4α); ``finite``, where the gap need
        not be small against 2/η (``theory.gap_beyond_small``); ``reshuffled``, where the noise is taken at the frequency of the
        oscillation (``theory.edge_noise_factor``); ``top_j``, where the top j directions together hold the sharpness down
        (``windows.measure``). ``from_displacement`` is ησ_u²/(2E[x²]) with E[x²] measured, finite and reshuffled.
        ``balance_j`` is the part of 2α that the top j directions carry: 1 if all of it.
    """
    table = plateaus(frame)
    table = table.merge(gaps(table)[[*RUN_KEYS, "gap"]], on=RUN_KEYS, how="left")
    table.loc[table.full_batch, "gap"] = 0.0
    seen = frame[(frame.step > (1 - PLATEAU) * frame.steps) & frame.window_alpha.notna() & ~frame.diverged]
    columns = [c for c in map(str, seen) if c.startswith("window_")] + ["raw_alpha"]
    grouped = seen.groupby(RUN_KEYS)
    mean = grouped[columns].mean()
    for name in ("alpha", "beta"):
        mean[f"{name}_se"] = grouped[f"window_{name}"].sem()
    table = table.merge(mean.assign(windows=grouped.size()).reset_index(), on=RUN_KEYS, how="left")
    renamed = {"window_alpha": "alpha", "window_beta": "beta", "window_displacement_1": "displacement"}
    return _predictions(table.rename(columns=renamed))


def _predictions(table: pd.DataFrame) -> pd.DataFrame:
    """Add what the averages over the windows predict."""
    lr, noise, alpha, beta, x2 = (table[c].to_numpy(float) for c in ("lr", "noise_variance", "alpha", "beta", "displacement"))
    edge = noise * theory.edge_noise_factor(table.train_size.to_numpy(), table.batch_size.to_numpy(), table.sampling.to_numpy())
    closed_form = theory.predicted_gap(lr, alpha, beta, noise)
    new = {
        "expected_displacement": theory.stationary_displacement(alpha, beta),
        "closed_form": closed_form,
        "finite": theory.gap_beyond_small(lr, closed_form),
        "reshuffled": theory.gap_beyond_small(lr, theory.predicted_gap(lr, alpha, beta, edge)),
        "from_displacement": theory.gap_beyond_small(lr, theory.gap_of_displacement(lr, edge, x2)),
    }
    drive, top = 2.0 * table.window_alpha_top.to_numpy(float), table.window_coupling_1.to_numpy(float)
    for j in range(1, 1 + sum(str(column).startswith("window_pull_") for column in table)):
        pull = table[f"window_pull_{j}"].to_numpy(float)
        left = (drive - (pull - top * x2)) / top  # E[x²] that the force balance leaves to the first direction
        left = np.where(left > 0, left, np.nan)
        new[f"top_{j}"] = theory.gap_beyond_small(lr, theory.gap_of_displacement(lr, edge, left))
        new[f"balance_{j}"] = pull / drive
    return table.assign(**new)


def over_seeds(table: pd.DataFrame, column: str, by: Sequence[str]) -> pd.DataFrame:
    """Mean, standard error over seeds and number of seeds of a column: ``mean``, ``se``, ``seeds``; NaN runs are left out."""
    return table.groupby(list(by), as_index=False, sort=False).agg(
        mean=(column, "mean"), se=(column, "sem"), seeds=(column, "count")
    )


@dataclass(frozen=True)
class PowerLaw:
    """Least-squares line through log y against log x, y ≈ prefactor · x^slope."""

    slope: float
    slope_se: float
    prefactor: float
    r_squared: float
    x: np.ndarray  # fitted points
    excluded: np.ndarray  # x where y was not positive and has no logarithm
    _scatter: float

    def __call__(self, x: np.ndarray) -> np.ndarray:
        """Return the fitted y."""
        return self.prefactor * np.asarray(x, dtype=float) ** self.slope

    def band(self, x: np.ndarray, level: float = 0.95) -> tuple[np.ndarray, np.ndarray]:
        """Confidence band of the fitted line (not of single points) at ``level``."""
        logs = np.log(self.x)
        spread = ((logs - logs.mean()) ** 2).sum()
        half = stats.t.ppf((1 + level) / 2, len(logs) - 2) * self._scatter
        half = half * np.sqrt(1 / len(logs) + (np.log(x) - logs.mean()) ** 2 / spread)
        return self(x) * np.exp(-half), self(x) * np.exp(half)

    def __str__(self) -> str:
        """Slope, its standard error, R² and the number of points."""
        return f"slope {self.slope:.2f} ± {self.slope_se:.2f}, R² {self.r_squared:.3f}, {len(self.x)} points"


def fit_power_law(x: Sequence[float] | pd.Series, y: Sequence[float] | pd.Series) -> PowerLaw:
    """Fit y = c·x^p by ordinary least squares on logarithms (``scipy.stats.linregress``).

    The standard error of the slope is the regression's, from the scatter around the line.

    Raises:
        ValueError: Fewer than three points are positive.

    Example:
        >>> fit_power_law([1, 2, 4, 8], [8, 4, 2, 1]).slope
        -1.0
    """
    xs, ys = np.asarray(x, dtype=float), np.asarray(y, dtype=float)
    good = np.isfinite(ys) & (ys > 0)
    if good.sum() < 3:
        raise ValueError(f"a power law needs three positive points, there are {good.sum()}")
    fit = stats.linregress(np.log(xs[good]), np.log(ys[good]))
    logs = np.log(xs[good])
    scatter = fit.stderr * np.sqrt(((logs - logs.mean()) ** 2).sum())
    return PowerLaw(
        float(fit.slope), float(fit.stderr), float(np.exp(fit.intercept)), float(fit.rvalue**2), xs[good], xs[~good], float(scatter)
    )


@dataclass(frozen=True)
class Headline:
    """One headline number: ours with its standard error, and the paper's."""

    quantity: str
    ours: float
    error: float | None = None
    paper: str = "–"

    @property
    def text(self) -> str:
        """Our number with its error, to the error's precision."""
        if not np.isfinite(self.ours):
            return "not measured"
        if self.error is None or not np.isfinite(self.error):
            return f"{self.ours:.3g}"
        digits = max(0, 1 - int(np.floor(np.log10(self.error)))) if self.error > 0 else 3
        return f"{self.ours:.{digits}f} ± {self.error:.{digits}f}"


def headline_table(headlines: Sequence[Headline]) -> pd.DataFrame:
    """Headline numbers as a table: quantity, ours, paper."""
    return pd.DataFrame([{"quantity": h.quantity, "ours": h.text, "paper": h.paper} for h in headlines]).set_index("quantity")


def check(claims: Mapping[str, bool], enforce: bool = True) -> list[str]:
    """Say for each claim whether it holds, and insist on it.

    Args:
        claims: What the reader should have seen → whether the numbers say so.
        enforce: False for a preset whose numbers mean nothing.

    Returns:
        A line a claim.

    Raises:
        AssertionError: A claim does not hold; the message names all that do not.
    """
    failed = [claim for claim, holds in claims.items() if not holds]
    if enforce and failed:
        raise AssertionError("does not hold: " + "; ".join(failed))
    return [f"{'holds' if holds else 'does not hold'}: {claim}" for claim, holds in claims.items()]
