"""From trajectories to numbers: plateaus, sharpness gaps, power-law fits, and the claims a notebook ends with.

Every error bar is a standard error over seeds unless it says otherwise.
"""

from __future__ import annotations

import itertools
import warnings
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import numpy as np
import pandas as pd
from pandas.api.typing import NAType
from scipy import optimize, stats

from eosslib import theory

RUN_KEYS = ["entry", "model", "loss_name", "lr", "train_size", "batch_size", "noise", "sampling", "full_batch", "seed", "threshold"]
RUN_KEYS += ["optimizer", "momentum"]
BLOCKS = 5  # of a plateau, for its error in time
PLATEAU = 0.25  # the plateau is the mean over the last quarter of the steps (science of the sharpness-gap paper)


def plateaus(frame: pd.DataFrame, until: int | None = None, more: Sequence[str] = ()) -> pd.DataFrame:
    """Mean sharpness and noise variance over the last quarter of the steps, one row a run.

    Args:
        frame: Trajectories as ``runs.collect`` gives them.
        until: Look only at steps up to this one, to compare runs of different length; default: each run's own end.
        more: Further columns to average, over the rows that have them.

    Returns:
        The run's settings with ``sharpness``, ``noise_variance``, ``measurements`` (how many were averaged) and ``more``, and
        ``sharpness_se``, the standard error in time: of five successive block means of the plateau, whose fluctuations may be
        taken as independent; and ``drift``, the mean of the plateau's second half minus that of its first, whose own error is
        twice ``sharpness_se`` (which a drift inflates). A run that diverged has no plateau: NaN.
    """
    end = frame["steps"].clip(upper=until) if until else frame["steps"]
    window = frame[(frame.step > (1 - PLATEAU) * end) & (frame.step <= end)]
    table = window.groupby(RUN_KEYS, as_index=False).agg(
        sharpness=("sharpness", "mean"),
        sharpness_se=("sharpness", _block_error),
        drift=("sharpness", _drift),
        noise_variance=("noise_variance", "mean"),
        measurements=("sharpness", "count"),
        **{column: (column, "mean") for column in more},
    )
    runs = frame[[*RUN_KEYS, "diverged"]].drop_duplicates()
    table = runs.merge(table, on=RUN_KEYS, how="left")
    table.loc[table.diverged, ["sharpness", "sharpness_se", "drift", "noise_variance", *more]] = np.nan
    return table


def _block_error(values: pd.Series) -> float:
    measured = values.dropna().to_numpy()
    if len(measured) < 2 * BLOCKS:
        return np.nan
    return float(np.std([block.mean() for block in np.array_split(measured, BLOCKS)], ddof=1) / np.sqrt(BLOCKS))


def _drift(values: pd.Series) -> float:
    measured = values.dropna().to_numpy()
    if len(measured) < 2:
        return np.nan
    half = len(measured) // 2
    return float(measured[-half:].mean() - measured[:half].mean())


def gaps(table: pd.DataFrame) -> pd.DataFrame:
    """Sharpness gap ΔS = S_GD − S_SGD(b) of every run against full-batch gradient descent of the same network and seed.

    Args:
        table: Plateaus; those of gradient descent must be among them.

    Returns:
        The rows that are not gradient descent, with ``gap``, ``gap_se`` (the errors in time of both plateaus) and
        ``relative_gap`` (in units of 2/η); NaN where gradient descent of the same network and seed is not among the runs.
    """
    keys = ["model", "loss_name", "lr", "optimizer", "momentum", "train_size", "seed"]
    baseline = table[table.full_batch][[*keys, "sharpness", "sharpness_se"]]
    baseline = baseline.rename(columns={"sharpness": "gd_sharpness", "sharpness_se": "gd_sharpness_se"})
    merged = table[~table.full_batch].merge(baseline, on=keys, how="left")
    merged["gap"] = merged.gd_sharpness - merged.sharpness
    merged["gap_se"] = np.hypot(merged.gd_sharpness_se, merged.sharpness_se)
    merged["relative_gap"] = merged.gap / merged.threshold
    return merged


def mean_gaps(table: pd.DataFrame, by: Sequence[str]) -> pd.DataFrame:
    """Average gaps over seeds and say which of them are more than noise.

    Args:
        table: As ``gaps`` or ``static_gaps`` gives them, or the rows of ``closed_form`` that are not gradient descent.
        by: Columns that tell the runs apart but for the seed.

    Returns:
        As ``over_seeds``, but for one seed ``se`` is that of its plateaus in time (or of its draws); and ``clear``: the gap
        exceeds two standard errors, of those over seeds and in time the larger.
    """
    means = over_seeds(table, "gap", by)
    in_time = table.groupby(list(by), sort=False).gap_se.agg(lambda errors: np.sqrt((errors**2).sum(min_count=1)) / len(errors))
    larger = np.fmax(means.se.to_numpy(), in_time.to_numpy())
    means["se"] = means.se.where(means.seeds > 1, in_time.to_numpy())
    return means.assign(clear=means["mean"] > 2 * larger)


def closed_form(frame: pd.DataFrame) -> pd.DataFrame:
    """Predict every run's gap from α, β, σ_u² and E[x²] of its own plateau, with no fitted constant, and measure it.

    Averages over the plateau's windows come first, quotients after.

    Args:
        frame: Trajectories of runs with windows, those of gradient descent among them.

    Returns:
        A row a run: its settings, ``gap`` and ``gap_se`` as ``gaps`` gives them (0 and NaN for gradient descent itself),
        ``alpha``, ``beta`` and their standard errors over windows ``_se``, ``raw_alpha``, ``displacement`` E[x²],
        ``expected_displacement`` 2α/β, ``noise_displacement`` (what the noise drives in a quadratic of the plateau's sharpness;
        NaN above the threshold), ``windows``; and predictions of the gap, each with one assumption less than the one before:
        ``closed_form`` ηβσ_u²/(4α); ``finite``, where the gap need
        not be small against 2/η (``theory.gap_beyond_small``); ``reshuffled``, where the noise is taken at the frequency of the
        oscillation (``theory.edge_noise_factor``); ``top_j``, where the top j directions together hold the sharpness down
        (``windows.measure``). ``from_displacement`` is ησ_u²/(2E[x²]) with E[x²] measured, finite and reshuffled.
        ``balance_j`` is the part of 2α that the top j directions carry: 1 if all of it.
    """
    table = plateaus(frame)
    table = table.merge(gaps(table)[[*RUN_KEYS, "gap", "gap_se"]], on=RUN_KEYS, how="left")
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


def coupled(frame: pd.DataFrame) -> pd.DataFrame:
    """Hold the predicted dynamics of every run against the real one, and the closure E[x²y] = E[x²]E[y] against what could fail.

    x flips its sign at every step, so two displacements correlate as soon as both envelopes are smooth; x² is the harder test.

    Args:
        frame: Coupled steps of runs (``predicted.couple``), those with ``coupling_error``.

    Returns:
        A row a run that did not diverge: its settings; correlations of the real and predicted x (``x``), x² (``x2``) and y
        (``y``); ``error``, the coupling error over the distance from the constrained trajectory at the end; means ``S`` and
        ``S_predicted``; ``closure``, E[x²y]/(E[x²]E[y]), and ``closure_bound``, how far from 1 Cauchy and Schwarz let it go at
        most; ``Ey``, E[y].
    """
    rows = []
    for key, part in frame[~frame.diverged].groupby(RUN_KEYS):
        x2, y = part.x**2, part.y
        product = x2.mean() * y.mean()
        rows.append(
            dict(zip(RUN_KEYS, key, strict=True))
            | {
                "x": part.x.corr(part.x_predicted),
                "x2": x2.corr(part.x_predicted**2),
                "y": y.corr(part.y_predicted),
                "error": part.coupling_error.iloc[-1] / part.distance.iloc[-1],
                "S": part.threshold.iloc[0] + y.mean(),
                "S_predicted": part.threshold.iloc[0] + part.y_predicted.mean(),
                "closure": (x2 * y).mean() / product,
                "closure_bound": x2.std(ddof=0) * y.std(ddof=0) / abs(product),
                "Ey": y.mean(),
            }
        )
    return pd.DataFrame(rows)


def _predictions(table: pd.DataFrame) -> pd.DataFrame:
    """Add what the averages over the windows predict."""
    lr, noise, alpha, beta, x2 = (table[c].to_numpy(float) for c in ("lr", "noise_variance", "alpha", "beta", "displacement"))
    mu = table.momentum.to_numpy(float)
    edge = noise * theory.edge_noise_factor(table.train_size.to_numpy(), table.batch_size.to_numpy(), table.sampling.to_numpy())
    closed_form = theory.predicted_gap(lr, alpha, beta, noise, mu)
    new = {
        "expected_displacement": theory.stationary_displacement(alpha, beta),
        "noise_displacement": theory.noise_displacement(lr, table.sharpness.to_numpy(float), noise, mu),
        "closed_form": closed_form,
        "finite": theory.gap_beyond_small(lr, closed_form, mu),
        "reshuffled": theory.gap_beyond_small(lr, theory.predicted_gap(lr, alpha, beta, edge, mu), mu),
        "from_displacement": theory.gap_beyond_small(lr, theory.gap_of_displacement(lr, edge, x2, mu), mu),
    }
    drive, top = 2.0 * table.window_alpha_top.to_numpy(float), table.window_coupling_1.to_numpy(float)
    for j in range(1, 1 + sum(str(column).startswith("window_pull_") for column in table)):
        pull = table[f"window_pull_{j}"].to_numpy(float)
        left = (drive - (pull - top * x2)) / top  # E[x²] that the force balance leaves to the first direction
        left = np.where(left > 0, left, np.nan)
        new[f"top_{j}"] = theory.gap_beyond_small(lr, theory.gap_of_displacement(lr, edge, left, mu), mu)
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
class BrokenPowerLaw:
    """A continuous line of one or more pieces through log y against log x; errors from the fit's covariance."""

    slopes: np.ndarray  # (m,), of the pieces
    slopes_se: np.ndarray
    breaks: np.ndarray  # (m − 1,), x where one piece meets the next
    breaks_se: np.ndarray
    r_squared: float
    # Bayesian information criterion, the smaller the better; a further piece counts as three parameters, because its break is
    # chosen among many (BIC₃ of joinpoint regression; Kim et al. 2022, doi:10.1080/02664763.2022.2063265).
    bic: float
    _parameters: np.ndarray

    def __call__(self, x: np.ndarray) -> np.ndarray:
        """Return the fitted y."""
        return np.exp(_broken_line(np.log(np.asarray(x, dtype=float)), *self._parameters))

    def __str__(self) -> str:
        """Slopes and break points with their standard errors."""
        slopes = ", ".join(Headline("", s, e).text for s, e in zip(self.slopes, self.slopes_se, strict=True))
        breaks = ", ".join(Headline("", b, e).text for b, e in zip(self.breaks, self.breaks_se, strict=True))
        return f"slopes {slopes}" + (f"; breaks at {breaks}" if breaks else "")


def _broken_line(t: np.ndarray, *p: float) -> np.ndarray:
    bends = zip(p[2::2], p[3::2], strict=True)
    return p[0] + p[1] * t + sum(bend * np.maximum(t - at, 0.0) for bend, at in bends)


def fit_broken_power_law(x: Sequence[float] | pd.Series, y: Sequence[float] | pd.Series, pieces: int) -> BrokenPowerLaw:
    """Fit y as a continuous power law of several pieces, by least squares on logarithms over slopes and break points alike.

    All ways to put the breaks between points are tried first, with at least two points in a piece, and the best one is refined
    (``scipy.optimize.curve_fit``), whose covariance gives the standard errors.

    Raises:
        ValueError: There are not more positive points than parameters (two a piece).

    Example:
        >>> x = np.array([1, 2, 4, 8, 16, 32, 64.0])
        >>> fit = fit_broken_power_law(x, np.where(x < 10, 1 / x, 10 / x**2), 2)
        >>> fit.slopes.round(6).tolist(), round(float(fit.breaks[0]), 6)
        ([-1.0, -2.0], 10.0)
    """
    xs, ys = np.asarray(x, dtype=float), np.asarray(y, dtype=float)
    good = np.isfinite(ys) & (ys > 0)
    order = np.argsort(xs[good])
    t, v = np.log(xs[good])[order], np.log(ys[good])[order]
    if len(t) <= 2 * pieces:
        raise ValueError(f"{pieces} pieces need more than {2 * pieces} positive points, there are {len(t)}")
    middles = (t[:-1] + t[1:])[1:-1] / 2
    best: tuple[float, list[float]] = (np.inf, [])
    for breaks in itertools.combinations(middles, pieces - 1):
        if any(((t > low) & (t < high)).sum() < 2 for low, high in itertools.pairwise(breaks)):
            continue
        columns = np.stack([np.ones_like(t), t, *(np.maximum(t - at, 0.0) for at in breaks)], axis=1)
        solution = np.linalg.lstsq(columns, v, rcond=None)[0]
        loss = float(((columns @ solution - v) ** 2).sum())
        if loss < best[0]:
            best = (loss, [*solution[:2], *(value for pair in zip(solution[2:], breaks, strict=True) for value in pair)])
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", optimize.OptimizeWarning)  # a break that the data do not need has no error: NaN
        parameters, covariance = optimize.curve_fit(_broken_line, t, v, p0=best[1], maxfev=10_000)
    covariance = np.where(np.isfinite(covariance).all(), covariance, np.nan)
    loss = max(float(((_broken_line(t, *parameters) - v) ** 2).sum()), np.finfo(float).tiny)
    sums = np.tril(np.ones((pieces, pieces)))  # the slope of a piece is the first slope and all bends before it
    places = [1, *range(2, 2 * pieces, 2)]
    breaks = np.exp(parameters[3::2])
    return BrokenPowerLaw(
        slopes=sums @ parameters[places],
        slopes_se=np.sqrt(np.diag(sums @ covariance[np.ix_(places, places)] @ sums.T)),
        breaks=breaks,
        breaks_se=breaks * np.sqrt(np.diag(covariance)[3::2]),
        r_squared=1.0 - loss / float(((v - v.mean()) ** 2).sum()),
        bic=len(t) * np.log(loss / len(t)) + (3 * pieces - 1) * np.log(len(t)),
        _parameters=parameters,
    )


def fit_regimes(x: Sequence[float] | pd.Series, y: Sequence[float] | pd.Series, most: int = 3) -> dict[int, BrokenPowerLaw]:
    """Fit power laws of one to ``most`` pieces, as many as there are points for, the best by its information criterion first."""
    positive = np.sum(np.asarray(y, dtype=float) > 0)
    fits = {m: fit_broken_power_law(x, y, m) for m in range(1, most + 1) if positive > 2 * m}
    return dict(sorted(fits.items(), key=lambda item: item[1].bic))


def static_gaps(frame: pd.DataFrame) -> pd.DataFrame:
    """MiniBS and its gap to the sharpness at fixed parameters, over the batch sizes of ``static_sizes``.

    Returns:
        A row a run, step (the first and the last) and batch size ``size``: ``minibs``, ``minibs_se``, ``gap``, ``gap_se``
        (sampling errors), ``sharpness``, and ``factor``, the variance of a batch mean over that of one example.
    """
    rows = []
    names = [name for name in map(str, frame.columns) if name.startswith("static_gap_") and not name.endswith("_se")]
    for name in names:
        size, minibs = int(name.rsplit("_", 1)[1]), name.replace("gap", "minibs")
        part = frame[frame[name].notna()]
        columns = {"minibs": part[minibs], "minibs_se": part[f"{minibs}_se"], "gap": part[name], "gap_se": part[f"{name}_se"]}
        factor = theory.finite_population(part.train_size.iloc[0], size, part.sampling.iloc[0])
        rows.append(part[[*RUN_KEYS, "step", "sharpness"]].assign(size=size, factor=factor, **columns))
    return pd.concat(rows, ignore_index=True)


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


def check(claims: Mapping[str, bool | NAType], enforce: bool = True) -> list[str]:
    """Say for each claim whether it holds, and insist on it.

    Args:
        claims: What the reader should have seen → whether the numbers say so; ``pandas.NA`` where a run is missing.
        enforce: False for a preset whose numbers mean nothing.

    Returns:
        A line a claim.

    Raises:
        AssertionError: A claim does not hold or was not measured; the message names all of these.
    """
    words = {claim: "not measured" if holds is pd.NA else "holds" if holds else "does not hold" for claim, holds in claims.items()}
    failed = [claim for claim, word in words.items() if word != "holds"]
    if enforce and failed:
        raise AssertionError("; ".join(f"{words[claim]}: {claim}" for claim in failed))
    return [f"{word}: {claim}" for claim, word in words.items()]
