"""Power laws with one slope or with several, fitted by least squares on logarithms; errors from the scatter around the fit."""

from __future__ import annotations

import itertools
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import pandas as pd
from scipy import stats


def number(value: float, decimals: int | None = None) -> str:
    """Write a number with a minus sign, not a hyphen, and commas: to three figures, or with so many decimals.

    Example:
        >>> number(-0.9381), number(208.31), number(1083.0), number(3.77e-15), number(-1850.4, 0)
        ('−0.938', '208', '1,080', '3.77e−15', '−1,850')
    """
    if decimals is not None:
        written = f"{value:z,.{decimals}f}"
    elif 1e3 <= abs(rounded := float(f"{value:.3g}")) < 1e6:
        written = f"{rounded:,.0f}"
    else:
        written = f"{value:.3g}"
    return written.replace("-", "−")


def plus_minus(value: float, error: float | None) -> str:
    """Write a number with its standard error, to the error's precision.

    Example:
        >>> plus_minus(-0.93812, 0.0262), plus_minus(208.31, None)
        ('−0.938 ± 0.026', '208')
    """
    if not np.isfinite(value):
        return "not measured"
    if error is None or not np.isfinite(error):
        return number(value)
    decimals = max(0, 1 - int(np.floor(np.log10(error)))) if error > 0 else 3
    return f"{number(value, decimals)} ± {number(error, decimals)}"


@dataclass(frozen=True)
class PowerLaw:
    """Least-squares line through log y against log x, y ≈ prefactor · x^slope."""

    slope: float
    slope_se: float  # from the scatter around the line
    prefactor: float
    r_squared: float
    x: np.ndarray  # fitted points
    excluded: np.ndarray  # x where y was not positive and has no logarithm
    _scatter: float
    seeds_se: float | None = None  # of the slope over seeds, where ``jackknife`` found it

    @property
    def error(self) -> float:
        """Standard error of the slope: over seeds where it is known, else that of the regression."""
        return self.slope_se if self.seeds_se is None else self.seeds_se

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
        """Slope, its standard error (over seeds, if that is known), R² and the number of points."""
        return f"slope {plus_minus(self.slope, self.error)}, R² {self.r_squared:.3f}, {len(self.x)} points"


def _positive(x: np.ndarray) -> None:
    if not (np.isfinite(x) & (x > 0)).all():
        raise ValueError("a power law needs positive x: leave out the points where it is not")


def fit(x: Sequence[float] | pd.Series, y: Sequence[float] | pd.Series) -> PowerLaw:
    """Fit y = c·x^p by ordinary least squares on logarithms (``scipy.stats.linregress``).

    The standard error of the slope is the regression's, from the scatter around the line.

    Args:
        x: Positive (N,); values may repeat.
        y: Values (N,); those that are not positive or not finite are left out.

    Raises:
        ValueError: Fewer than three y are positive, or their x are not positive or all the same.

    Example:
        >>> fit([1, 2, 4, 8], [8, 4, 2, 1]).slope
        -1.0
    """
    xs, ys = np.asarray(x, dtype=float), np.asarray(y, dtype=float)
    good = np.isfinite(ys) & (ys > 0)
    if good.sum() < 3:
        raise ValueError(f"a power law needs three positive points, there are {good.sum()}")
    _positive(xs[good])
    if len(set(xs[good])) < 2:
        raise ValueError(f"a power law needs two different x, all are {xs[good][0]:g}")
    logs = np.log(xs[good])
    line = stats.linregress(logs, np.log(ys[good]))
    return PowerLaw(
        slope=float(line.slope),
        slope_se=float(line.stderr),
        prefactor=float(np.exp(line.intercept)),
        r_squared=float(line.rvalue**2),
        x=xs[good],
        excluded=xs[~good],
        _scatter=float(line.stderr * np.sqrt(((logs - logs.mean()) ** 2).sum())),
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

    @property
    def numbers(self) -> dict[str, tuple[float, float]]:
        """Slopes and break points with their standard errors, by name: ``slope 1`` and so on, ``break point 1`` and so on."""
        named = {"slope": (self.slopes, self.slopes_se), "break point": (self.breaks, self.breaks_se)}
        return {f"{name} {i + 1}": pair for name, pairs in named.items() for i, pair in enumerate(zip(*pairs, strict=True))}

    def __str__(self) -> str:
        """Slopes and break points with their standard errors."""
        breaks = f"; {_listed('break', self.breaks, self.breaks_se, ' at')}" if len(self.breaks) else ""
        return _listed("slope", self.slopes, self.slopes_se) + breaks


def _listed(name: str, values: np.ndarray, errors: np.ndarray, after: str = "") -> str:
    plural = "s" if len(values) > 1 else ""
    return f"{name}{plural}{after} {', '.join(plus_minus(*pair) for pair in zip(values, errors, strict=True))}"


def _broken_line(t: np.ndarray, *p: float) -> np.ndarray:
    bends = zip(p[2::2], p[3::2], strict=True)
    return p[0] + p[1] * t + sum(bend * np.maximum(t - at, 0.0) for bend, at in bends)


def _points_between(t: np.ndarray, breaks: Sequence[float], on_break: float = 1.0) -> list[float]:
    """Count the points of each piece; one on a break counts ``on_break`` for both its pieces."""
    ends = [-np.inf, *breaks, np.inf]
    return [np.heaviside(np.minimum(t - low, high - t), on_break).sum() for low, high in itertools.pairwise(ends)]


def _exact(t: np.ndarray, v: np.ndarray, places: Sequence[float]) -> tuple[float, np.ndarray]:
    """Fit a broken line whose breaks are at ``places`` that are points, and anywhere between its neighbours for one that is not.

    In between, the lines on the two sides are free of each other and their crossing is the break (Hudson 1966,
    doi:10.1080/01621459.1966.10482198).

    Returns:
        The sum of squares, infinite where two lines do not cross between the points they should, and the parameters.
    """
    at_point = np.isin(places, t)
    columns = [np.ones_like(t), t]
    for place, fixed in zip(places, at_point, strict=True):
        columns += [np.maximum(t - place, 0.0)] if fixed else [np.where(t > place, t - place, 0.0), np.where(t > place, 1.0, 0.0)]
    solution = list(np.linalg.lstsq(np.stack(columns, axis=1), v, rcond=None)[0])
    parameters, rest = solution[:2], solution[2:]
    for place, fixed in zip(places, at_point, strict=True):
        bend, jump = rest.pop(0), 0.0 if fixed else rest.pop(0)
        crossing = place if fixed else place - jump / bend if bend else np.inf
        after = np.searchsorted(t, place)
        if not (fixed or t[after - 1] < crossing < t[after]):
            return np.inf, np.array([])
        parameters += [bend, crossing]
    return float(((_broken_line(t, *parameters) - v) ** 2).sum()), np.array(parameters)


def _covariance(t: np.ndarray, parameters: np.ndarray, variance: float) -> np.ndarray:
    """Return that of the parameters to first order; NaN where the points do not determine all of them."""
    bends, breaks = parameters[2::2], parameters[3::2]
    columns = [np.ones_like(t), t]
    for bend, at in zip(bends, breaks, strict=True):  # at a point the mean of the derivatives on its two sides
        columns += [np.maximum(t - at, 0.0), -bend * np.heaviside(t - at, 0.5)]
    jacobian = np.stack(columns, axis=1)
    if min(_points_between(t, breaks.tolist(), 0.0)) < 2 or np.linalg.matrix_rank(jacobian) < len(parameters):
        return np.full((len(parameters), len(parameters)), np.nan)
    return variance * np.linalg.inv(jacobian.T @ jacobian)


def fit_broken(x: Sequence[float] | pd.Series, y: Sequence[float] | pd.Series, pieces: int) -> BrokenPowerLaw:
    """Fit y as a continuous power law of several pieces, by least squares on logarithms over slopes and break points alike.

    The sum of squares is smallest of all: every way to put the breaks at or between points is solved exactly, with at least two
    points in a piece, those at its ends included. Standard errors are those of the linearised problem; where a piece has fewer than
    two points off its ends, its slope hangs on the place of a break that nothing tells, and there are none (NaN).

    Args:
        x: Positive and different (N,): average over seeds first.
        y: Values (N,); those that are not positive or not finite are left out.
        pieces: Number of slopes.

    Raises:
        ValueError: There are not more positive y than parameters (two a piece), or their x are not positive or repeat.

    Example:
        >>> x = np.array([1, 2, 4, 8, 16, 32, 64.0])
        >>> broken = fit_broken(x, np.where(x < 10, 1 / x, 10 / x**2), 2)
        >>> broken.slopes.round(6).tolist(), round(float(broken.breaks[0]), 6)
        ([-1.0, -2.0], 10.0)
    """
    xs, ys = np.asarray(x, dtype=float), np.asarray(y, dtype=float)
    good = np.isfinite(ys) & (ys > 0)
    _positive(xs[good])
    order = np.argsort(xs[good])
    t, v = np.log(xs[good])[order], np.log(ys[good])[order]
    if len(t) <= 2 * pieces:
        raise ValueError(f"{pieces} pieces need more than {2 * pieces} positive points, there are {len(t)}")
    if not np.diff(t).all():
        raise ValueError("x repeats, and breaks lie between points: average the y of the same x first, over seeds for example")
    anywhere = itertools.combinations(np.sort([*t, *(t[:-1] + t[1:]) / 2]), pieces - 1)
    allowed = (places for places in anywhere if min(_points_between(t, places)) >= 2)
    loss, parameters = min((_exact(t, v, places) for places in allowed), key=lambda found: found[0])
    loss = max(loss, np.finfo(float).tiny)
    covariance = _covariance(t, parameters, loss / (len(t) - 2 * pieces))
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
    """Fit power laws of one to ``most`` pieces, as many as there are points for, the best by its information criterion first.

    Args:
        x: Positive and different (N,): average over seeds first.
        y: Values (N,); those that are not positive or not finite are left out.
        most: Largest number of pieces.

    Raises:
        ValueError: Fewer than three y are positive, or their x are not positive or repeat.
    """
    positive = np.sum(np.asarray(y, dtype=float) > 0)
    fits = {m: fit_broken(x, y, m) for m in range(1, most + 1) if m == 1 or positive > 2 * m}
    return dict(sorted(fits.items(), key=lambda item: item[1].bic))
