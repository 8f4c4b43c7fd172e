"""Fits of power laws against exact laws, an independent least squares, and the scatter of noisy copies."""

from __future__ import annotations

import itertools
import re

import numpy as np
import pytest
from scipy import optimize, stats

from eosslib import powerlaw


def test_numbers_have_minus_signs_and_commas_and_no_exponent_where_they_can_be_read_without_one():
    assert powerlaw.plus_minus(-0.9412, 0.0213) == "−0.941 ± 0.021"
    assert powerlaw.plus_minus(-3.771e-15, None) == "−3.77e−15"
    assert powerlaw.plus_minus(1083.4, None) == "1,080"
    assert powerlaw.plus_minus(999.6, None) == "1,000"
    assert powerlaw.plus_minus(1.5e6, float("nan")) == "1.5e+06"
    assert powerlaw.plus_minus(-12345.6, 1234.5) == "−12,346 ± 1,234"


def test_a_fit_says_its_slopes_and_breaks_and_how_many_there_are():
    rough = np.exp(np.random.default_rng(0).normal(0, 0.05, len(SIZES)))
    pieces = {1: broken(SIZES, [-1.0], []), 2: broken(SIZES, [-0.2, -1.0], [12.0])}
    one, two = (str(powerlaw.fit_broken(SIZES, y * rough, m)) for m, y in pieces.items())
    number = r"−?\d+\.\d+ ± \d+\.\d+"
    assert re.fullmatch(f"slope {number}", one)
    assert re.fullmatch(f"slopes {number}, {number}; break at {number}", two)
    assert str(powerlaw.fit(SIZES, pieces[1] * rough)) == f"{one}, R² 1.000, 25 points"


@pytest.mark.parametrize("slope", [-1.27, -1.0, 0.5])
def test_a_power_law_is_recovered(slope: float):
    x = np.array([1.0, 3.0, 10.0, 40.0])
    fit = powerlaw.fit(x, 7 * x**slope)
    assert fit.slope == pytest.approx(slope)
    assert fit.prefactor == pytest.approx(7)
    assert fit.r_squared == pytest.approx(1)


def test_the_confidence_band_covers_the_true_line_as_often_as_it_says():
    rng = np.random.default_rng(1)
    x = np.geomspace(50, 2500, 11)
    truth, repetitions = 100 / x, 2000
    inside = 0
    for _ in range(repetitions):
        low, high = powerlaw.fit(x, truth * np.exp(0.3 * rng.standard_normal(11))).band(np.array([200.0]))
        inside += low[0] <= 0.5 <= high[0]
    error = np.sqrt(0.95 * 0.05 / repetitions)
    assert abs(inside / repetitions - 0.95) < 4 * error


def test_the_standard_error_of_the_slope_is_that_of_an_independent_least_squares():
    rng = np.random.default_rng(2)
    x = np.geomspace(1, 100, 8)
    y = 3 / x * np.exp(0.2 * rng.standard_normal(8))
    fit = powerlaw.fit(x, y)
    design = np.stack([np.ones(8), np.log(x)], axis=1)
    beta, residual, *_ = np.linalg.lstsq(design, np.log(y), rcond=None)
    covariance = residual[0] / 6 * np.linalg.inv(design.T @ design)
    assert (fit.slope, fit.slope_se) == pytest.approx((beta[1], covariance[1, 1] ** 0.5))
    at = np.array([1.0, np.log(30.0)])
    half = stats.t.ppf(0.975, 6) * np.sqrt(at @ covariance @ at)
    low, high = fit.band(np.array([30.0]))
    assert np.log(high / low)[0] == pytest.approx(2 * half)


def test_points_that_have_no_logarithm_are_left_out_and_named():
    fit = powerlaw.fit([1, 2, 4, 8, 16], [8, 4, -1, 1, np.nan])
    assert fit.excluded.tolist() == [4, 16]
    assert fit.slope == pytest.approx(-1)
    with pytest.raises(ValueError, match="three positive points"):
        powerlaw.fit([1, 2, 4], [8, 4, -1])


def broken(x: np.ndarray, slopes: list[float], breaks: list[float]) -> np.ndarray:
    """A continuous power law of several pieces, 1 at x = 1."""
    result = np.ones_like(x)
    for slope, low, high in zip(slopes, [1.0, *breaks], [*breaks, np.inf], strict=True):
        result *= np.clip(x / low, 1.0, high / low) ** slope
    return result


SIZES = np.geomspace(1, 1000, 25)


@pytest.mark.parametrize(("slopes", "breaks"), [([-1.0], []), ([-0.2, -1.0], [12.0]), ([-0.1, -0.7, -2.0], [8.0, 200.0])])
def test_a_broken_power_law_is_recovered(slopes: list[float], breaks: list[float]) -> None:
    fit = powerlaw.fit_broken(SIZES, broken(SIZES, slopes, breaks), len(slopes))
    assert fit.slopes == pytest.approx(slopes, abs=1e-6)
    assert fit.breaks == pytest.approx(breaks, rel=1e-5)
    assert fit(SIZES) == pytest.approx(broken(SIZES, slopes, breaks), rel=1e-5)


def test_errors_of_a_broken_power_law_are_calibrated() -> None:
    """Over many noisy copies of the same law, the spread of slopes and breaks is what the fits say it is."""
    rng = np.random.default_rng(0)
    exact = broken(SIZES, [-0.2, -1.0], [12.0])
    fits = [powerlaw.fit_broken(SIZES, exact * np.exp(rng.normal(0, 0.05, len(SIZES))), 2) for _ in range(200)]
    for name, truth in (("slopes", [-0.2, -1.0]), ("breaks", [12.0])):
        values = np.array([getattr(fit, name) for fit in fits])
        errors = np.array([getattr(fit, f"{name}_se") for fit in fits])
        assert values.mean(0) == pytest.approx(truth, abs=4 * values.std(0).max() / 200**0.5 + 0.02 * np.abs(truth).max())
        assert values.std(0) / np.sqrt((errors**2).mean(0)) == pytest.approx(np.ones(values.shape[1]), abs=0.25)


@pytest.mark.parametrize("seed", range(10))
def test_no_broken_line_fits_better(seed: int) -> None:
    """Two solvers that know nothing of points and pieces, a global one and a grid, find no smaller sum of squares."""
    rng = np.random.default_rng(seed)
    x = np.sort(rng.uniform(1, 100, 12))
    y = np.exp(rng.normal(0, 0.3, 12)) * broken(x, [-0.2, -1.5], [10.0])
    t, v = np.log(x), np.log(y)

    def loss(breaks: np.ndarray) -> float:
        columns = np.stack([np.ones_like(t), t, *(np.maximum(t - at, 0.0) for at in breaks)], axis=1)
        return float(((columns @ np.linalg.lstsq(columns, v, rcond=None)[0] - v) ** 2).sum())

    def found(fit: powerlaw.BrokenPowerLaw) -> float:
        assert np.exp(t[1]) <= min(fit.breaks) * (1 + 1e-12)
        assert max(fit.breaks) <= np.exp(t[-2]) * (1 + 1e-12)
        return float(((np.log(fit(x)) - v) ** 2).sum())

    one = found(powerlaw.fit_broken(x, y, 2))
    assert one <= min(loss([at]) for at in np.linspace(t[1], t[-2], 1000)) + 1e-12
    two = found(powerlaw.fit_broken(x, y, 3))
    pairs = [(low, high) for low in np.linspace(t[1], t[-2], 40) for high in np.linspace(t[1], t[-2], 40)]
    assert two <= min(loss(pair) for pair in pairs if ((t >= pair[0]) & (t <= pair[1])).sum() >= 2) + 1e-12
    other = optimize.differential_evolution(loss, [(t[1], t[-2])], rng=0, tol=1e-10)
    assert one == pytest.approx(other.fun, rel=1e-6)


@pytest.mark.parametrize("end", ["first", "last"])
def test_a_break_that_the_data_do_not_determine_stays_between_points_and_has_no_error(end: str) -> None:
    """The slope in the middle and a point off it at an end: every break beyond the point next to it fits as well as any other."""
    x = np.array([4, 8, 16, 24, 32, 64, 128, 256, 512, 1024, 1280.0])
    y = broken(x, [-0.37, -0.65], [26.0])
    y[-2:] *= 1.05, 0.95
    if end == "first":
        x, y = 1 / x[::-1], y[::-1]
    fit = powerlaw.fit_broken(x, y, 3)
    for low, high in itertools.pairwise([0.0, *fit.breaks, np.inf]):
        assert ((x >= low * (1 - 1e-9)) & (x <= high * (1 + 1e-9))).sum() >= 2
    assert np.isnan([*fit.slopes_se, *fit.breaks_se]).all()
    assert "±" not in str(fit)
    two = powerlaw.fit_broken(x, y, 2)
    assert np.square(np.log(fit(x) / y)).sum() < np.square(np.log(two(x) / y)).sum()


@pytest.mark.parametrize(("slopes", "breaks"), [([-1.0], []), ([-0.2, -1.0], [12.0]), ([-0.1, -0.7, -2.0], [8.0, 200.0])])
def test_the_number_of_regimes_is_found(slopes: list[float], breaks: list[float]) -> None:
    found = []
    for seed in range(20):
        fits = powerlaw.fit_regimes(SIZES, broken(SIZES, slopes, breaks) * np.exp(np.random.default_rng(seed).normal(0, 0.05, 25)))
        assert set(fits) == {1, 2, 3}
        found.append(next(iter(fits)))
    assert found.count(len(slopes)) >= 17


def test_too_few_points_for_so_many_pieces_are_refused() -> None:
    with pytest.raises(ValueError, match="3 pieces need more than 6 positive points, there are 6"):
        powerlaw.fit_broken([1, 2, 3, 4, 5, 6, 7], [1, 2, 3, 4, 5, 6, -7], 3)
    assert set(powerlaw.fit_regimes([1, 2, 3, 4, 5], [1, 2, 3, 4, 5])) == {1, 2}
    with pytest.raises(ValueError, match="1 pieces need more than 2 positive points, there are 2"):
        powerlaw.fit_regimes([1, 2, 3], [1, 2, 0])


FITS = [powerlaw.fit, lambda x, y: powerlaw.fit_broken(x, y, 1), lambda x, y: powerlaw.fit_broken(x, y, 2), powerlaw.fit_regimes]


@pytest.mark.parametrize("fit", FITS)
@pytest.mark.parametrize("x", [0.0, -1.0, np.nan])
def test_an_x_that_has_no_logarithm_is_refused_where_its_point_is_fitted(fit, x: float) -> None:
    with pytest.raises(ValueError, match="a power law needs positive x"):
        fit([x, 1, 2, 4, 8, 16], [5, 4, 3, 2, 1, 1])
    fit([x, 1, 2, 4, 8, 16], [np.nan, 4, 3, 2, 1, 1])


def test_points_that_all_have_the_same_x_have_no_slope() -> None:
    with pytest.raises(ValueError, match="a power law needs two different x, all are 4"):
        powerlaw.fit([1, 4, 4, 4], [-1, 4, 3, 2])
    assert powerlaw.fit([1, 1, 4, 4], [4, 4, 2, 2]).slope == pytest.approx(-0.5)


@pytest.mark.parametrize("fit", FITS[1:])
def test_pieces_are_not_fitted_to_an_x_that_repeats(fit) -> None:
    with pytest.raises(ValueError, match=r"x repeats, .*: average the y of the same x first"):
        fit([1, 2, 2, 4, 8, 16], [5, 4, 3, 2, 1, 1])
