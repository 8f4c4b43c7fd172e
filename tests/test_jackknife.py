"""Errors over seeds: those of theory where there is one, none where there is no telling."""

from __future__ import annotations

import numpy as np
import pandas as pd
import pytest

from eosslib import analysis, jackknife, powerlaw

SIZES = np.array([4.0, 8, 16, 32, 64, 128])


def runs(noise: float, seeds: int = 3, slope: float = -0.8) -> pd.DataFrame:
    """A power law times one plus noise, of every seed its own, but for the seeds' common factor of 1, 2, 3, …"""
    scatter = np.random.default_rng(0).standard_normal((seeds, len(SIZES)))
    return pd.concat(
        pd.DataFrame({"entry": "a", "batch_size": SIZES, "seed": s, "gap": (1 + s) * SIZES**slope * (1 + noise * scatter[s])})
        for s in range(seeds)
    )


def fitted(table: pd.DataFrame) -> powerlaw.PowerLaw:
    means = analysis.over_seeds(table, "gap", ["entry", "batch_size"])
    return jackknife.fit_each(means, table, "gap", ["entry"])["a"]


def test_the_error_of_a_mean_is_its_standard_error() -> None:
    values = pd.DataFrame(np.random.default_rng(1).standard_normal((2, 5)))
    assert jackknife.error(values, lambda mean: mean.to_numpy()) == pytest.approx(values.sem(axis=1).to_numpy())


def test_a_factor_of_a_whole_seed_is_no_error_of_the_slope_and_scatter_of_seeds_is() -> None:
    assert fitted(runs(0.0)).seeds_se == pytest.approx(0.0, abs=1e-12)
    table = runs(1e-5)
    table["gap"] /= 1 + table.seed  # seeds of equal weight: to first order the slope is the mean of the seeds' own slopes
    own = [powerlaw.fit(part.batch_size, part.gap).slope for _, part in table.groupby("seed")]
    fit = fitted(table)
    assert fit.seeds_se == pytest.approx(np.std(own, ddof=1) / np.sqrt(3), rel=1e-3)
    assert fit.error == fit.seeds_se
    assert fit.slope_se == pytest.approx(powerlaw.fit(SIZES, table.groupby("batch_size").gap.mean()).slope_se)


def test_a_seed_whose_values_have_no_logarithm_counts_all_the_same() -> None:
    table = runs(0.0)
    table.loc[(table.seed == 0) & (table.batch_size == 128), "gap"] = -1e-3
    own = table[table.seed == 0]
    assert len(powerlaw.fit(own.batch_size, own.gap).excluded) == 1
    values = table.pivot(index="batch_size", columns="seed", values="gap")
    without = np.array([powerlaw.fit(SIZES, values.drop(columns=s).mean(axis=1)).slope for s in range(3)])
    assert fitted(table).seeds_se == pytest.approx(np.sqrt(2 / 3 * ((without - without.mean()) ** 2).sum()))
    assert fitted(table).seeds_se > 0.001


@pytest.mark.parametrize(
    "table",
    [
        runs(0.1, seeds=1),
        runs(0.1).iloc[1:],  # a seed lacks a size
        runs(0.1).assign(gap=lambda t: t.gap * np.where(t.batch_size < 128, 1, np.where(t.seed == 2, 3, -1))),  # needs seed 2
        pd.concat([runs(0.1), runs(0.2).assign(entry="a")]),  # two runs of every seed
    ],
)
def test_there_is_no_error_over_seeds_where_there_is_no_telling(table: pd.DataFrame) -> None:
    fit = fitted(table)
    assert fit.seeds_se is None
    assert fit.error == fit.slope_se


def test_groups_and_ranges_are_fitted_on_their_own() -> None:
    table = pd.concat([runs(0.0), runs(0.0, slope=-2.0).assign(entry="b"), runs(0.0).iloc[:2].assign(entry="c")])
    table["when"] = "trained"
    table["corrected"] = 2 * table.batch_size
    means = analysis.over_seeds(table, "gap", ["entry", "when", "corrected"])
    fits = jackknife.fit_each(means[means.corrected > 10], table, "gap", ["entry", "when"], "corrected")
    assert {key: round(fit.slope, 9) for key, fit in fits.items()} == {("a", "trained"): -0.8, ("b", "trained"): -2.0}
    assert fits["a", "trained"].x.min() == 16


def test_breaks_that_differ_from_seed_to_seed_are_seen() -> None:
    x = np.geomspace(1, 1000, 13)
    bends = [8.0, 20.0, 50.0]
    values = pd.DataFrame({s: np.where(x < at, 1 / x, at / x**2) for s, at in enumerate(bends)}, index=x)
    found = jackknife.broken(values, 2)
    assert list(found.columns) == ["slope 1", "slope 2", "break point 1"]
    assert found.index.tolist() == [0, 1, 2]
    # The mean of two seeds breaks between their own breaks.
    assert all(low < at < high for at, low, high in zip(found["break point 1"], [20, 8, 8], [50, 50, 20], strict=True))
    alike = jackknife.broken(pd.DataFrame(dict.fromkeys(range(3), values[0])), 2)
    assert alike.to_numpy() == pytest.approx(np.tile([-1.0, -2.0, 8.0], (3, 1)))
    assert jackknife.broken(values[[0]], 2) is None


def test_every_group_has_its_own_fit_and_one_of_two_positive_points_has_none():
    table = pd.DataFrame({"model": list("aaabbbccc"), "batch_size": [1, 2, 4] * 3, "mean": [4, 2, 1, 9, 9, 9, 1, 1, -1.0]})
    fits = jackknife.fit_each(table, table.assign(seed=0), "mean", ["model"])
    assert {model: fit.slope for model, fit in fits.items()} == pytest.approx({"a": -1, "b": 0}, abs=1e-12)
