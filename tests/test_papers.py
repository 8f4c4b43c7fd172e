"""The points read off the gap paper's figures: whole, beside runs of their set-up alone, with the slopes that the paper states."""

from __future__ import annotations

import shutil

import pandas as pd
import pytest

from eosslib import papers, powerlaw
from eosslib.errors import ConfigError
from eosslib.powerlaw import number

SETUP = {"dataset": "cifar10", "train_size": 5000, "model": "fc-tanh", "loss_name": "mse", "lr": 0.01}


def runs(**changes: object) -> pd.DataFrame:
    return pd.DataFrame([{"entry": "mine", **SETUP, **changes}] * 3)


def test_a_curve_has_the_batch_sizes_of_its_figure_and_gradient_descent_that_of_all_examples():
    curves = papers.curves(runs())
    assert set(curves.batch_size) == {50, 100, 200, 500, 1000, 5000}
    assert set(curves.entry) == {"mine"}
    assert not curves.duplicated(["batch_size", "step"]).any()


@pytest.mark.parametrize(
    ("changes", "figure"),
    [({"model": "cnn-tanh"}, "1B cnn-mse"), ({"model": "cnn-tanh", "loss_name": "cross-entropy"}, "9A cnn-ce")],
)
def test_a_network_and_loss_have_the_curves_of_their_own_figure(changes, figure):
    assert set(papers.curves(runs(**changes)).figure) == {figure}


@pytest.mark.parametrize(
    "changes", [{"dataset": "digits"}, {"train_size": 1000}, {"model": "cnn"}, {"lr": 0.02}, {"loss_name": "cross-entropy"}]
)
def test_runs_of_another_set_up_have_no_curves_and_no_gaps(changes):
    assert papers.curves(runs(**changes)).empty
    assert papers.gaps(runs(**changes)).empty


def test_the_line_through_the_points_of_the_gap_has_the_slope_that_the_paper_states():
    gaps = papers.gaps(runs())
    assert number(powerlaw.fit(gaps.batch_size, gaps.gap).slope, 2) == papers.values()["gap_slope"].says
    assert number(powerlaw.fit(gaps.batch_size, gaps.gap).r_squared, 2) == papers.values()["gap_r2"].says


def test_the_line_through_the_points_up_to_750_has_the_slope_that_is_stated_of_them():
    gaps = papers.gaps(runs())[lambda points: points.batch_size <= 750]
    assert number(powerlaw.fit(gaps.batch_size, gaps.gap).slope, 2) == papers.values()["gap_slope_to_750"].says


@pytest.mark.parametrize(
    ("file", "text", "message"),
    [
        ("liao2026_gap.csv", "figure,b,gap\n2 fc-tanh,50,1\n", "has the columns"),
        ("liao2026_gap.csv", "figure,batch_size,gap\n2 fc-tanh,50,1\n2 fc-tanh,75,much\n", "line 3"),
        ("liao2026_gap.csv", "figure,batch_size,gap\n2 fc-tanh,50,-1\n", "line 2"),
        ("liao2026_gap.csv", "figure,batch_size,gap\n2 fc-tanh,50,1\n2 fc-tanh,50,2\n", "line 3: the point stands twice"),
        ("liao2026_gap.csv", "figure,batch_size,gap\n7,50,1\n", "no set-up of figure '7'"),
        ("liao2026_gap.csv", "", "cannot be read"),
        ("liao2026_setups.csv", None, "cannot be read"),
    ],
)
def test_a_file_of_points_that_holds_something_else_is_refused_with_its_name_and_place(tmp_path, monkeypatch, file, text, message):
    folder = shutil.copytree(papers.FOLDER, tmp_path / "paper")
    (folder / file).write_text(text) if text is not None else (folder / file).unlink()
    monkeypatch.setattr(papers, "FOLDER", folder)
    with pytest.raises(ConfigError, match=message) as refused:
        papers.gaps(runs())
    assert file in str(refused.value)
