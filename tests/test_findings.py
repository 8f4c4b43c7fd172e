"""Headline numbers say what they are worth; claims that the numbers do not bear out stop a notebook."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import pandas as pd
import pytest

from eosslib import analysis, findings, powerlaw
from eosslib.findings import Headline


def test_headlines_show_as_many_digits_as_the_error_allows():
    assert Headline("a", -0.9412, 0.0213).text == "−0.941 ± 0.021"
    assert Headline("a", 18.52, 3.1).text == "18.5 ± 3.1"
    assert Headline("a", 1850.0, 30.0).text == "1,850 ± 30"
    assert Headline("a", 0.5).text == "0.5"
    assert Headline("a", float("nan")).text == "not measured"
    assert findings.table([Headline("a", 1.0, 0.1, "1.2")]).loc["a", "paper"] == "1.2"


def test_no_headlines_are_an_empty_table():
    empty = findings.table([])
    assert empty.empty
    assert (empty.index.name, list(empty.columns)) == ("quantity", ["ours", "paper"])


def test_a_mean_carries_its_standard_error_and_one_value_has_none():
    several = Headline.mean("a", pd.Series([1.0, 2.0, 3.0, np.nan]), "2")
    assert (several.ours, several.paper) == (2.0, "2")
    assert several.error == pytest.approx(1 / np.sqrt(3))
    assert Headline.mean("a", pd.Series([2.0])).text == "2"


def test_a_row_of_means_and_its_error_are_taken_in_the_same_unit():
    table = pd.DataFrame({"b": 50, "gap": [18.0, 20.0]})
    row = analysis.over_seeds(table, "gap", ["b"]).iloc[0]
    assert Headline.row("gap over 2/η", row, unit=200.0) == Headline("gap over 2/η", 0.095, 0.005)


def test_a_slope_carries_the_error_of_its_regression():
    fit = powerlaw.fit([1, 2, 4, 8], [8.0, 5.0, 2.0, 1.0])
    headline = Headline.slope("slope", fit, "-1")
    assert headline.quantity == "slope, ± of the regression"
    over_seeds = Headline.slope("slope", replace(fit, seeds_se=0.5))
    assert (over_seeds.quantity, over_seeds.error) == ("slope", 0.5)
    assert (headline.ours, headline.error, headline.paper) == (fit.slope, fit.slope_se, "-1")


def test_means_that_are_missing_are_dashes_in_a_table():
    assert findings.texts(pd.DataFrame({"mean": [1.5, np.nan, np.inf, 2.0], "se": [0.1, 0.1, 1.0, np.nan]})) == [
        "1.50 ± 0.10",
        "–",
        "–",
        "2",
    ]


@pytest.mark.parametrize("boolean", [bool, np.bool_])
def test_a_claim_that_does_not_hold_stops_the_notebook_unless_the_preset_is_exempt(boolean):
    claims = {"two is more than one": boolean(2 > 1), "one is more than two": boolean(1 > 2)}
    with pytest.raises(AssertionError, match="does not hold: one is more than two"):
        findings.check(claims)
    assert findings.check(claims, enforce=False) == ["holds: two is more than one", "does not hold: one is more than two"]


@pytest.mark.parametrize("missing", [pd.Series([2.0, np.nan], dtype="Float64").gt(1).iloc[1], float("nan"), np.float64("nan")])
def test_a_claim_about_a_run_that_is_missing_is_neither_kept_nor_broken(missing):
    claims = {"a is more than b": missing}
    assert findings.check(claims, enforce=False) == ["not measured: a is more than b"]
    with pytest.raises(AssertionError, match="a is more than b"):
        findings.check(claims)
