"""Figures are drawn as the house style says, and saved whole."""

from __future__ import annotations

import matplotlib as mpl
import matplotlib.pyplot as plt
import numpy as np
import pandas as pd
import pytest
from test_analysis import family, trajectory

from eosslib import analysis, panels, plotting


@pytest.fixture(autouse=True)
def close_figures():
    with mpl.rc_context():
        mpl.use("agg")
        plotting.use_style()
        yield
    plt.close("all")


def test_batch_sizes_have_an_ordered_scale_from_dark_to_light():
    colors = plotting.batch_colors([400, 25, 100], 1000)
    luminance = [np.dot(colors[b][:3], (0.2126, 0.7152, 0.0722)) for b in (25, 100, 400)]
    assert luminance == sorted(luminance)
    assert len(set(luminance)) == 3


def test_a_batch_size_has_the_same_colour_whatever_stands_beside_it():
    assert plotting.batch_colors([25, 100], 1000)[100] == plotting.batch_colors([50, 100, 400], 1000)[100]


def test_gradient_descent_is_dashed_black_and_the_threshold_is_labelled():
    _, ax = plt.subplots()
    plotting.trajectories(ax, family(), sizes=[10, 200])
    plotting.threshold(ax, 20.0)
    lines = {line.get_label(): line for line in ax.get_lines()}
    gd = lines["GD (b = n)"]
    assert gd.get_color() == "black"
    assert gd.is_dashed()
    assert {"b = 10", "b = 200"} <= set(lines)
    assert "b = 50" not in lines
    assert any("2/η" in text.get_text() for text in ax.texts)


def test_a_line_is_the_mean_over_seeds():
    _, ax = plt.subplots()
    plotting.trajectories(ax, family())
    line = next(line for line in ax.get_lines() if line.get_label() == "b = 100")
    assert line.get_ydata() == pytest.approx(np.full(41, 20.0))  # seeds at 19, 20 and 21


def test_a_diverged_run_is_marked_in_the_figure():
    values = np.r_[np.full(4, 10.0), np.nan]
    _, ax = plt.subplots()
    plotting.trajectories(ax, trajectory(10, 0, values, diverged=True))
    cross = next(line for line in ax.get_lines() if line.get_label() == "diverged here")
    assert (cross.get_xdata().item(), cross.get_ydata().item()) == (300, 10)


def test_a_gap_that_is_not_positive_is_not_drawn_on_a_log_axis():
    _, ax = plt.subplots()
    summary = analysis.over_seeds(analysis.gaps(analysis.plateaus(family())), "gap", ["batch_size"])
    summary.loc[summary.batch_size == 50, "mean"] = -1.0
    plotting.power_law(ax, summary, None, color="C0")
    assert 50 not in ax.containers[0].lines[0].get_xdata()


def test_error_bars_on_a_log_axis_end_above_zero_below_and_are_whole_above():
    lower, upper = plotting.log_errors(pd.Series([1.0, 1.0, 1.0]), pd.Series([0.5, 30.0, np.nan]))
    assert (lower.tolist(), upper.tolist()) == ([0.5, 0.9, 0.0], [0.5, 30.0, 0.0])


def test_a_gap_that_is_not_clear_has_an_open_mark():
    _, ax = plt.subplots()
    summary = analysis.over_seeds(analysis.gaps(analysis.plateaus(family())), "gap", ["batch_size"])
    plotting.power_law(ax, summary.assign(clear=summary.batch_size != 50), None, color="C0")
    marks = ax.get_lines()[-1]
    assert (marks.get_xdata().tolist(), marks.get_markerfacecolor()) == ([50], "white")


def test_a_gap_outside_the_line_is_a_cross():
    _, ax = plt.subplots()
    summary = analysis.over_seeds(analysis.gaps(analysis.plateaus(family())), "gap", ["batch_size"])
    plotting.power_law(ax, summary.assign(fitted=summary.batch_size != 50), None, color="C0")
    marks = {line.get_marker(): line.get_xdata().tolist() for line in (container.lines[0] for container in ax.containers)}
    assert marks == {"x": [50], "o": [10, 20, 100, 200]}


def test_a_papers_curves_lie_beneath_ours_under_one_name():
    _, ax = plt.subplots()
    plotting.trajectories(ax, family())
    ours = ax.get_lines()
    curve = pd.DataFrame({"batch_size": [10, 10, 20, 20], "step": [0, 100] * 2, "sharpness": [1.0, 2.0] * 2})
    plotting.paper_curves(ax, curve)
    theirs = [line for line in ax.get_lines() if line not in ours]
    assert len(theirs) == 2
    assert max(line.get_zorder() for line in theirs) < min(line.get_zorder() for line in ours)
    assert ax.get_legend_handles_labels()[1].count("the paper's") == 1


def test_panels_that_start_at_zero_reach_the_highest_line_of_any_of_them():
    _, axes = plt.subplots(1, 2, sharey=True)
    for ax, top in zip(axes, (1.0, 3.0), strict=True):
        ax.plot([0, 1, 2], [0.5, top, 0.2])
        ax.axhline(7.0)
    panels.from_zero(axes)
    assert [ax.get_ylim() for ax in axes] == [(0, pytest.approx(3.15))] * 2


def test_a_panel_whose_runs_all_diverged_says_so_and_does_not_stop_the_figure():
    columns = {name: [0.5, np.nan] for name in panels.EOSS}
    part = pd.DataFrame({"step": [0, 10], "seed": 0, "edge": 2.0, "diverged": True, **columns})
    _, axes = plt.subplots(1, 2)
    for ax in axes:
        panels.over_training(ax, part)
    panels.from_zero(axes)
    assert [ax.get_ylim() for ax in axes] == [(0, pytest.approx(1.05))] * 2
    assert [text.get_text() for text in axes[0].texts] == ["diverged"]


@pytest.mark.parametrize(("count", "shape"), [(1, (1, 1)), (5, (1, 5)), (6, (2, 3)), (11, (3, 4))])
def test_a_grid_has_a_panel_for_everything_in_rows_as_equal_as_possible(count: int, shape: tuple[int, int]):
    fig, axes = panels.grid(count, most=5, height=1.5, extra=0.7, sharex=True)
    assert axes.shape == shape
    assert fig.get_size_inches() == pytest.approx([plotting.PAGE, 0.7 + 1.5 * shape[0]])


def test_a_grid_that_is_not_full_has_its_labels_under_the_lowest_panel_of_every_column():
    _, axes = plt.subplots(2, 3, sharex=True)
    for ax in axes.flat:
        ax.set_xlabel("step")
    panels.trim(axes, 4)
    assert [ax.axison for ax in axes.flat] == [True] * 4 + [False] * 2
    assert [ax.get_xlabel() for ax in axes.flat[:4]] == ["", "step", "step", "step"]
    assert axes[0, 1].xaxis.get_tick_params()["labelbottom"]
    assert not axes[0, 0].xaxis.get_tick_params()["labelbottom"]


def test_networks_with_different_thresholds_are_drawn_in_units_of_their_own():
    rows = [("lstm", 5.0, True, 100), ("lstm", 5.0, False, 10), ("transformer", 10.0, True, 100)]
    columns = ["model", "threshold", "full_batch", "batch_size"]
    part = pd.DataFrame(rows, columns=columns).assign(sharpness=10.0, diverged=False, seed=0)
    _, ax = plt.subplots()
    panels.relative(ax, pd.concat([part.assign(step=step) for step in (0, 10)]))
    drawn = {line.get_label(): (line.get_ydata()[0], line.get_linestyle()) for line in ax.lines}
    assert drawn["LSTM, GD"] == (2.0, "--")
    assert drawn["LSTM, b = 10"] == (2.0, "-")
    assert drawn["transformer, GD"] == (1.0, "--")


def test_a_short_logarithmic_axis_has_plain_numbers_and_a_long_one_powers_of_ten():
    for high, first in ((30.0, "2"), (3000.0, "$\\mathdefault{10^{0}}$")):
        _, ax = plt.subplots()
        ax.set(yscale="log", ylim=(0.9 if high > 100 else 1.5, high))
        plotting.short_ticks(ax.yaxis)
        ax.figure.canvas.draw()
        low = ax.get_ylim()[0]
        labels = [t.get_text() for t, y in zip(ax.get_yticklabels(), ax.get_yticks(), strict=True) if low <= y <= high]
        assert labels[0] == first
        assert not any(t.get_text() for t in ax.get_yticklabels(minor=True))


def test_the_same_figure_is_the_same_file(tmp_path):
    for name in ("a", "b"):
        fig, ax = plt.subplots()
        ax.plot([1, 2])
        plotting.save({name: fig}, tmp_path)
    assert (tmp_path / "a.png").read_bytes() == (tmp_path / "b.png").read_bytes()
    assert (tmp_path / "a.pdf").read_bytes() == (tmp_path / "b.pdf").read_bytes()


def test_the_settings_of_runs_name_networks_step_sizes_steps_and_seeds():
    runs = [
        ("fc-tanh", "sgd", 0.0, 0.1),
        ("fc-tanh", "sgd", 0.0, 0.2),
        ("fc-tanh", "sgd", 0.9, 0.1),
        ("cnn", "adam", 0.9, 0.001),
    ]
    one = pd.DataFrame(runs, columns=["model", "optimizer", "momentum", "lr"]).assign(
        loss_name="mse", steps=2000, measure_every=50, noise="sgd"
    )
    one = one.assign(entry=[f"entry{i}" for i in range(4)], depth=2, batch_size=8, diverged=False)
    frame = pd.concat([one.assign(seed=0), one.assign(seed=1)], ignore_index=True)
    assert plotting.settings(frame) == (
        "FC-tanh, squared error: η = 0.1 or 0.2, 2,000 steps, measured every 50; FC-tanh, squared error, μ = 0.9: η = 0.1, "
        "2,000 steps, measured every 50; CNN, squared error, Adam: η = 0.001, 2,000 steps, measured every 50. 2 seeds."
    )
    assert plotting.settings(frame[frame.seed == 0]).endswith(" One seed.")
    assert plotting.settings(frame.iloc[:-1]).endswith(" 1 to 2 seeds."), "not all seeds of all runs"
    lost = plotting.settings(frame.assign(diverged=[True, *[False] * 4, True, False, False]))
    assert lost.endswith(" 2 seeds. Diverged: FC-tanh, η = 0.1, b = 8 (seed 0); FC-tanh, η = 0.2, b = 8 (seed 1).")
    deeper = one.assign(depth=[2, 2, 4, 2], seed=0)
    assert plotting.names(deeper) == {
        "entry0": "FC-tanh, depth 2",
        "entry1": "FC-tanh, depth 2",
        "entry2": "FC-tanh, depth 4",
        "entry3": "CNN",
    }
    assert "FC-tanh, depth 4, squared error, μ = 0.9: η = 0.1" in plotting.settings(deeper)


def test_a_network_without_corrected_predictions_has_no_entry_for_them():
    _, ax = plt.subplots()
    gap = pd.DataFrame({"entry": ["a", "a", "b"], "model": ["fc-tanh", "fc-tanh", "cnn"], "batch_size": [10, 20, 10]})
    gap = gap.assign(mean=[2.0, 1.0, 3.0], se=0.1)
    plotting.predictions(ax, gap, gap, gap.assign(mean=[2.0, 1.0, np.nan]))
    assert ax.get_legend_handles_labels()[1] == ["FC-tanh, closed form", "FC-tanh, corrected", "CNN, closed form"]


def test_every_bar_of_a_gap_is_named_in_the_order_of_the_noise_models():
    _, ax = plt.subplots()
    plotting.noise_bars(ax, pd.DataFrame({"noise": ["along_u", "sgd", "isotropic"], "mean": [3.0, 5.0, 0.0], "se": 0.1}))
    assert [tick.get_text() for tick in ax.get_yticklabels()] == ["mini-batch SGD", "isotropic", "noise along u"]
    assert [bar.get_width() for bar in ax.patches] == [5.0, 0.0, 3.0]


def test_a_run_that_changes_is_drawn_from_its_change_on_and_its_control_from_the_start():
    _, axes = plt.subplots(2)
    both = [trajectory(10, 0, np.full(41, 3.0)).assign(entry=entry) for entry in ("changed", "control")]
    frame = pd.concat(both).assign(minibatch_sharpness=4.0, edge=20.0)
    panels.change(axes, frame, {"changed": "raised", "control": "unchanged"}, 2000)
    for ax in axes:
        drawn = {line.get_label(): line.get_xdata() for line in ax.lines}
        assert (drawn["raised"][0], drawn["unchanged"][0]) == (2000, 0)
        assert drawn["raised"][-1] == drawn["unchanged"][-1] == 4000


def test_a_threshold_without_a_label_is_a_line_alone():
    _, (named, bare) = plt.subplots(2)
    plotting.threshold(named, 2.0)
    plotting.threshold(bare, 2.0, label=False)
    assert (len(named.texts), len(bare.texts)) == (1, 0)
    assert len(named.lines) == len(bare.lines) == 1


def test_ticks_of_an_axis_without_batch_sizes_are_none():
    _, ax = plt.subplots()
    plotting.plain_ticks(ax, [])
    assert list(ax.get_xticks()) == []
