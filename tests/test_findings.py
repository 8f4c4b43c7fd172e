"""Findings say what they are worth and have keys of their own; claims hold, do not hold, or were not measured."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import pandas as pd
import pytest

from eosslib import analysis, findings, powerlaw
from eosslib.findings import Finding, Findings
from eosslib.papers import Value

PAPERS = {"slope": Value("slope", "−1.27", "arXiv:2604.21016", "figure 2")}


@pytest.fixture
def found() -> Findings:
    return Findings(PAPERS)


def test_a_finding_shows_as_many_digits_as_its_error_allows():
    assert str(Finding("a", "a", -0.9412, 0.0213)) == "−0.941 ± 0.021"
    assert str(Finding("a", "a", 18.52, 3.1)) == "18.5 ± 3.1"
    assert str(Finding("a", "a", 1850.0, 30.0)) == "1,850 ± 30"
    assert str(Finding("a", "a", 0.5)) == "0.5"
    assert str(Finding("a", "a", float("nan"))) == "not measured"


def test_no_findings_are_an_empty_table(found):
    assert found.table().empty
    assert (found.table().index.name, list(found.table().columns)) == ("quantity", ["ours", "paper"])


def test_a_table_has_the_papers_value_and_no_findings_that_are_for_the_text_alone(found):
    found.number("gap.slope", "slope", -0.94, 0.02, "slope")
    found.number("gap.least", None, 3.0)
    assert found.table().to_dict("index") == {"slope": {"ours": "−0.940 ± 0.020", "paper": "−1.27"}}


def test_a_mean_carries_its_standard_error_and_one_value_has_none(found):
    found.mean("several", "a", pd.Series([1.0, 2.0, 3.0, np.nan]))
    found.mean("one", "a", pd.Series([2.0]))
    assert found["several"].ours == 2.0
    assert found["several"].error == pytest.approx(1 / np.sqrt(3))
    assert str(found["one"]) == "2"


def test_a_row_of_means_and_its_error_are_taken_in_the_same_unit(found):
    table = pd.DataFrame({"b": 50, "gap": [18.0, 20.0]})
    found.row("gap", "gap over 2/η", analysis.over_seeds(table, "gap", ["b"]).iloc[0], unit=200.0)
    assert (found["gap"].ours, found["gap"].error) == (0.095, 0.005)


def test_a_slope_says_whether_its_error_is_that_of_the_regression(found):
    fit = powerlaw.fit([1, 2, 4, 8], [8.0, 5.0, 2.0, 1.0])
    found.slope("one", "slope", fit)
    found.slope("seeds", "slope", replace(fit, seeds_se=0.5))
    assert (found["one"].quantity, found["one"].error) == ("slope, ± of the regression", fit.slope_se)
    assert (found["seeds"].quantity, found["seeds"].error) == ("slope", 0.5)


def test_a_networks_name_may_be_a_word_of_a_key(found):
    found.number("gap.fc-tanh", "a", 1.0)
    assert found.nested()["gap"].fc_tanh.ours == 1.0


@pytest.mark.parametrize("key", ["gap", "gap.slope", "gap.slope.fc"])
def test_a_key_that_another_finding_has_or_begins_with_is_refused(found, key):
    found.number("gap.slope", "a", 1.0)
    with pytest.raises(ValueError, match=f"'{key}' is taken"):
        found.number(key, "a", 2.0)


@pytest.mark.parametrize("key", ["", "gap.", "50", "gap at b"])
def test_what_no_text_could_name_is_no_key(found, key):
    with pytest.raises(ValueError, match="is no key"):
        found.number(key, "a", 1.0)


def test_a_value_that_no_paper_has_is_refused(found):
    with pytest.raises(ValueError, match=r"'slop'; there are slope"):
        found.number("a", "a", 1.0, paper="slop")


def test_means_that_are_missing_are_dashes_in_a_table():
    assert findings.texts(pd.DataFrame({"mean": [1.5, np.nan, np.inf, 2.0], "se": [0.1, 0.1, 1.0, np.nan]})) == [
        "1.50 ± 0.10",
        "–",
        "–",
        "2",
    ]


@pytest.mark.parametrize("missing", [pd.Series([2.0, np.nan], dtype="Float64").gt(1).iloc[1], float("nan"), np.float64("nan")])
def test_a_claim_about_a_run_that_is_missing_is_neither_kept_nor_broken(missing):
    assert findings.words({"a": missing, "b": np.True_, "c": False}) == {"a": "not measured", "b": "holds", "c": "does not hold"}


def test_a_deviation_from_a_papers_curve_is_a_finding_of_its_own_and_those_within_the_spread_of_the_seeds_are_counted(found):
    rows = [(50, False, 0.02, 0.03, 3), (100, False, -0.04, 0.03, 3), (200, False, 0.1, np.nan, 1), (5000, True, 0.01, 0.02, 3)]
    table = pd.DataFrame(rows, columns=["batch_size", "full_batch", "deviation", "spread", "seeds"])
    found.deviations(table.assign(entry="fc-tanh", step=1500, plateau=0.001), {"fc-tanh": "FC-tanh"})
    deviations = {key: finding.ours for key, finding in found.items() if key.endswith(".deviation")}
    assert deviations == {
        f"curve.fc_tanh.{curve}.deviation": d
        for curve, d in zip(("b50", "b100", "b200", "gd"), (0.02, -0.04, 0.1, 0.01), strict=True)
    }
    assert len(found.table()) == 4
    assert (found["curve.fc_tanh.sgd.count"].ours, found["curve.fc_tanh.sgd.within"].ours) == (2, 1)
