"""Plateaus, gaps and predictions against numbers that are known beforehand."""

from __future__ import annotations

import numpy as np
import pandas as pd
import pytest

from eosslib import analysis


def trajectory(batch_size: int, seed: int, values: np.ndarray, *, full: bool = False, diverged: bool = False) -> pd.DataFrame:
    steps = 100 * np.arange(len(values))
    return pd.DataFrame({"step": steps, "sharpness": values, "noise_variance": values / 100}).assign(
        entry="fc-tanh",
        dataset="digits",
        model="fc-tanh",
        width=64,
        depth=2,
        hidden=200,
        init_scale=1.0,
        loss_name="mse",
        lr=0.1,
        threshold=20.0,
        train_size=1000,
        batch_size=batch_size,
        noise="sgd",
        sampling="reshuffle",
        optimizer="sgd",
        momentum=0.0,
        seed=seed,
        steps=steps[-1],
        full_batch=full,
        diverged=diverged,
    )


def family(slope: float = -1.0, noise: float = 0.0) -> pd.DataFrame:
    """GD at 20 + seed, SGD below it by 100·b^slope."""
    rng = np.random.default_rng(0)
    parts = []
    for seed in (0, 1, 2):
        parts.append(trajectory(1000, seed, np.full(41, 20.0 + seed), full=True))
        for b in (10, 20, 50, 100, 200):
            parts.append(trajectory(b, seed, 20.0 + seed - 100 * b**slope * np.exp(noise * rng.standard_normal()) + np.zeros(41)))
    return pd.concat(parts, ignore_index=True)


def test_the_plateau_is_the_mean_over_the_last_quarter_of_the_steps():
    values = np.arange(41.0)  # steps 0, 100, …, 4000: the last quarter is steps 3100 … 4000
    table = analysis.plateaus(trajectory(10, 0, values))
    assert table.sharpness.item() == pytest.approx(np.mean(np.arange(31, 41)))
    assert table.measurements.item() == 10


def test_the_error_of_a_plateau_in_time_is_that_of_its_five_block_means():
    table = analysis.plateaus(trajectory(10, 0, np.arange(41.0)))  # ten values, blocks of two: means 31.5, 33.5, …, 39.5
    assert table.sharpness_se.item() == pytest.approx(np.sqrt(10.0 / 5))
    too_few = trajectory(10, 0, np.arange(37.0)).assign(steps=3600)
    assert np.isnan(analysis.plateaus(too_few).sharpness_se.item())


def test_the_drift_of_a_plateau_is_the_second_half_minus_the_first():
    assert analysis.plateaus(trajectory(10, 0, np.arange(41.0))).drift.item() == 5.0  # 36 … 40 against 31 … 35
    assert analysis.plateaus(trajectory(10, 0, np.full(41, 3.0))).drift.item() == 0.0
    assert np.isnan(analysis.plateaus(trajectory(10, 0, np.arange(41.0), diverged=True)).drift.item())


def coupled_steps(y: np.ndarray, **given: np.ndarray) -> pd.DataFrame:
    """An oscillation whose envelope is 1 + y/10; the prediction is the real run unless it is given."""
    x = 0.01 * (1 + y / 10) * (-1.0) ** np.arange(len(y))
    columns = {"x_predicted": x, "x": x, "y": y, "y_predicted": y, "coupling_error": 0.5, "distance": 2.0}
    return trajectory(10, 0, np.zeros(len(y))).assign(**(columns | given))


WAVE = 2.0 * np.sin(np.arange(200) / 15.0) - 1.0


def test_a_prediction_that_is_the_real_run_correlates_with_it_and_one_of_the_other_phase_does_not_in_x():
    row = analysis.coupled(coupled_steps(WAVE)).iloc[0]
    assert (row.x, row.x2, row.y) == pytest.approx((1.0, 1.0, 1.0))
    assert (row.error, row.S, row.S_predicted, row.Ey) == pytest.approx((0.25, 20 + WAVE.mean(), 20 + WAVE.mean(), WAVE.mean()))
    other = coupled_steps(WAVE, x_predicted=-coupled_steps(WAVE).x.to_numpy(), y_predicted=0.5 - WAVE)
    row = analysis.coupled(other).iloc[0]
    assert (row.x, row.x2, row.y) == pytest.approx((-1.0, 1.0, -1.0))
    assert row.S_predicted == pytest.approx(20.5 - WAVE.mean())


def test_alternating_displacements_of_unrelated_envelopes_correlate_in_x_and_not_in_its_square():
    flat = coupled_steps(WAVE, x_predicted=0.01 * (1 + np.cos(np.arange(200) / 15.0) / 10) * (-1.0) ** np.arange(200))
    row = analysis.coupled(flat).iloc[0]
    assert row.x > 0.9
    assert abs(row.x2) < 0.2


def test_the_closure_is_off_by_the_covariance_and_never_by_more_than_its_bound():
    frame = coupled_steps(WAVE)
    row, x2 = analysis.coupled(frame).iloc[0], frame.x**2
    assert row.closure - 1 == pytest.approx(np.cov(x2, WAVE, ddof=0)[0, 1] / (x2.mean() * WAVE.mean()))
    assert abs(row.closure - 1) == pytest.approx(row.closure_bound, rel=0.02)  # x² is nearly linear in y
    still = analysis.coupled(coupled_steps(np.full(200, -1.0))).iloc[0]
    assert still.closure == pytest.approx(1.0)
    assert still.closure_bound < 1e-12


def test_a_run_that_diverged_has_no_row():
    frame = pd.concat([coupled_steps(WAVE), coupled_steps(WAVE).assign(diverged=True, seed=1)])
    assert list(analysis.coupled(frame).seed) == [0]


def test_a_gap_below_two_of_its_errors_is_not_clear():
    wobble = np.tile([1.0, 1.0, -1.0, -1.0], 11)[1:42]
    frame = pd.concat(
        [trajectory(1000, 0, 20.0 + wobble, full=True), trajectory(10, 0, 10.0 + wobble), trajectory(100, 0, 19.9 - wobble)]
    )
    gaps = analysis.gaps(analysis.plateaus(frame))
    means = analysis.mean_gaps(gaps, ["batch_size"]).set_index("batch_size")
    assert means.clear.to_dict() == {10: True, 100: False}
    assert means.se.to_dict() == pytest.approx(gaps.set_index("batch_size").gap_se.to_dict())  # one seed: the error in time
    shifted = pd.concat([gaps, gaps.assign(seed=1, gap=gaps.gap + 8.0)])
    assert analysis.mean_gaps(shifted, ["batch_size"]).se.tolist() == pytest.approx([4.0, 4.0])  # two: their spread is larger


def test_the_ratio_of_predicted_to_measured_gap_carries_both_errors_and_needs_a_clear_gap():
    gap = pd.DataFrame({"mean": [10.0, 0.1], "se": [1.0, 0.2], "clear": [True, False]})
    ratio = analysis.over_gap(pd.DataFrame({"mean": [5.0, 5.0], "se": [0.5, 0.5]}), gap)
    assert ratio["mean"][0] == 0.5
    assert ratio.se[0] == pytest.approx(0.5 * np.sqrt(0.1**2 + 0.1**2))
    assert ratio.loc[1].isna().all()
    assert analysis.over_gap(pd.DataFrame({"mean": [-5.0], "se": [0.5]}), gap[:1]).se[0] == ratio.se[0] > 0
    drawn = np.random.default_rng(0).normal([5.0, 10.0], [0.5, 1.0], (100_000, 2))
    assert ratio.se[0] == pytest.approx((drawn[:, 0] / drawn[:, 1]).std(), rel=0.05)  # to first order in the errors


def test_a_single_seed_carries_its_error_in_time_and_several_that_over_seeds():
    wobble = np.tile([1.0, 1.0, -1.0, -1.0], 11)[1:42]
    frame = pd.concat([trajectory(10, 0, 10.0 + wobble), trajectory(100, 0, 12.0 + wobble), trajectory(100, 1, 16.0 + 2 * wobble)])
    table = analysis.plateaus(frame.assign(loss=3 * frame.sharpness), more=["loss"])
    of = {column: analysis.over_seeds(table, column, ["batch_size"]).set_index("batch_size").se for column in ("sharpness", "loss")}
    own = table.set_index(["batch_size", "seed"])
    assert of["sharpness"][10] == own.sharpness_se[10, 0] > 0
    assert of["loss"][10] == pytest.approx(3 * of["sharpness"][10])
    assert of["sharpness"][100] == pytest.approx(own.sharpness[100].sem())
    lost = pd.concat([frame, trajectory(10, 1, np.full(5, 99.0), diverged=True)])  # a run that counts for nothing
    assert analysis.over_seeds(analysis.plateaus(lost), "sharpness", ["batch_size"]).se[0] == pytest.approx(of["sharpness"][10])


def test_the_plateau_over_the_last_eighth_is_the_second_half_of_that_over_the_last_quarter():
    frame = trajectory(10, 0, np.arange(41.0))
    quarter, eighth = analysis.plateaus(frame), analysis.plateaus(frame, part=1 / 8)
    assert eighth.sharpness.item() == pytest.approx(np.mean(np.arange(36, 41)))
    assert quarter.sharpness.item() == pytest.approx(eighth.sharpness.item() - quarter.drift.item() / 2)


def test_the_plateau_up_to_a_step_uses_the_last_quarter_before_it():
    table = analysis.plateaus(trajectory(10, 0, np.arange(41.0)), until=2000)
    assert table.sharpness.item() == pytest.approx(np.mean(np.arange(16, 21)))


def test_a_diverged_run_has_no_plateau_and_no_gap_and_does_not_count():
    frame = pd.concat(
        [
            trajectory(1000, 0, np.full(41, 20.0), full=True),
            trajectory(1000, 1, np.full(41, 20.0), full=True),
            trajectory(10, 0, np.full(41, 15.0)),
            trajectory(10, 1, np.full(5, 99.0), diverged=True),
        ]
    )
    gaps = analysis.gaps(analysis.plateaus(frame))
    assert gaps.set_index("seed").gap.isna().to_dict() == {0: False, 1: True}
    summary = analysis.over_seeds(gaps, "gap", ["batch_size"])
    assert summary["mean"].item() == pytest.approx(5.0)
    assert summary.seeds.item() == 1


def test_the_gap_is_taken_seed_by_seed():
    summary = analysis.over_seeds(analysis.gaps(analysis.plateaus(family())), "gap", ["batch_size"])
    assert summary["mean"].to_numpy() == pytest.approx(100 / summary.batch_size.to_numpy())
    assert summary.se.to_numpy() == pytest.approx(0, abs=1e-12)  # seeds differ by 1, their gaps do not


def test_a_gap_without_gradient_descent_of_the_same_seed_is_not_a_number():
    table = family()
    alone = table[~(table.full_batch & (table.seed == 1))]
    gaps = analysis.gaps(analysis.plateaus(alone))
    assert set(gaps.seed[gaps.gap.isna()]) == {1}
    assert analysis.over_seeds(gaps, "gap", ["batch_size"]).seeds.max() == table.seed.nunique() - 1


@pytest.mark.parametrize("key", [{"depth": 4}, {"width": 8}, {"hidden": 64}, {"init_scale": 0.5}, {"dataset": "cifar10"}])
def test_the_gap_is_taken_against_gradient_descent_of_the_same_network(key: dict[str, object]):
    other = [trajectory(1000, 0, np.full(41, 30.0), full=True), trajectory(10, 0, np.full(41, 27.0))]
    one = [trajectory(1000, 0, np.full(41, 20.0), full=True), trajectory(10, 0, np.full(41, 15.0))]
    frame = pd.concat([*one, *(part.assign(entry="other", **key) for part in other)], ignore_index=True)
    gaps = analysis.gaps(analysis.plateaus(frame))
    assert gaps.set_index("entry").gap.to_dict() == {"fc-tanh": 5.0, "other": 3.0}


def test_two_runs_of_gradient_descent_of_one_network_and_seed_are_refused():
    frame = pd.concat([family(), trajectory(1000, 0, np.full(41, 20.0), full=True).assign(entry="again")], ignore_index=True)
    with pytest.raises(ValueError, match="stands in several runs: leave out some of fc-tanh, again"):
        analysis.gaps(analysis.plateaus(frame))


def test_what_the_runs_lack_is_named():
    with pytest.raises(ValueError, match="these runs have no windows: train them with window, window_every and window_from"):
        analysis.closed_form(family())
    with pytest.raises(ValueError, match="these runs have no coupled steps: train them with coupled_steps"):
        analysis.coupled(family())
    with pytest.raises(ValueError, match="no gaps at fixed parameters: train them with static_sizes and minibs_draws"):
        analysis.static_gaps(family())


# --- the closed form ---------------------------------------------------------------------------------------------------------

ALPHA, BETA, LR, NOISE = 0.02, 1000.0, 0.1, 1e-4  # 2α/β = 4e-5, ΔS = ηβσ²/(4α) = 0.125


def windowed(batch_size: int, displacement: float, others: float, *, full: bool = False) -> pd.DataFrame:
    """A run whose windows measured α, β, E[x₁²], and what a second direction carries of 2α."""
    frame = trajectory(batch_size, 0, np.full(41, 20.0 if full else 19.0), full=full).assign(noise_variance=0.0 if full else NOISE)
    wobble = np.array([0.5, 1.5] * 5)  # windows differ, and average to these values
    for name, value in {
        "window_alpha": ALPHA,
        "window_beta": BETA,
        "window_alpha_top": ALPHA,
        "window_coupling_1": BETA,
        "window_displacement_1": displacement,
        "window_pull_1": BETA * displacement,
        "window_pull_2": BETA * displacement + others,
        "raw_alpha": 0.0,
    }.items():
        frame[name] = np.nan
        frame.loc[frame.index[-10:], name] = value * wobble
        frame.loc[frame.index[:5], name] = 1e9  # before the plateau: must not be seen
    return frame


def test_the_closed_form_comes_from_the_plateaus_averages():
    frame = pd.concat([windowed(1000, 4e-5, 0.0, full=True), windowed(100, 4e-5, 0.0)], ignore_index=True)
    table = analysis.closed_form(frame).set_index("batch_size")
    sgd = table.loc[100]
    assert sgd.gap == pytest.approx(1.0)
    assert sgd.closed_form == pytest.approx(0.125)
    assert sgd.expected_displacement == pytest.approx(4e-5)
    assert sgd.finite * (1 - LR * sgd.finite / 2) == pytest.approx(0.125)
    edge = 0.125 * (1 + 100 / 900)  # ten batches an epoch
    for column in ("reshuffled", "from_displacement", "top_1", "top_2"):
        assert sgd[column] * (1 - LR * sgd[column] / 2) == pytest.approx(edge), column
    assert sgd.noise_displacement == pytest.approx(LR * NOISE / (19 * (2 - LR * 19)))
    assert sgd.alpha_se == pytest.approx(ALPHA * np.std([0.5, 1.5] * 5, ddof=1) / 10**0.5)
    assert table.loc[1000].gap == 0
    assert table.loc[1000].closed_form == 0


def test_what_other_directions_carry_is_taken_from_the_first():
    frame = pd.concat([windowed(1000, 4e-5, 0.0, full=True), windowed(500, 2e-5, 0.02)], ignore_index=True)
    sgd = analysis.closed_form(frame).set_index("batch_size").loc[500]
    assert (sgd.balance_1, sgd.balance_2) == pytest.approx((0.5, 1.0))
    edge = 2 * 0.125  # two batches an epoch
    assert sgd.top_1 * (1 - LR * sgd.top_1 / 2) == pytest.approx(edge)  # E[x²] = 2α/β
    assert sgd.top_2 * (1 - LR * sgd.top_2 / 2) == pytest.approx(2 * edge)  # half of it
    measured = sgd.from_displacement
    assert measured * (1 - LR * measured / 2) == pytest.approx(2 * edge)  # E[x²] = 2e-5, half of it too


def test_momentum_enters_every_prediction():
    """E[x²] = ησ²(1 + μ)/((1 − μ)S(2 + 2μ − ηS)), so near the threshold ΔS = ηβσ²/(4(1 − μ)α); beyond it 1 − ηΔS/(2 + 2μ)."""
    frame = pd.concat([windowed(1000, 4e-5, 0.0, full=True), windowed(500, 4e-5, 0.0)], ignore_index=True).assign(momentum=0.5)
    sgd = analysis.closed_form(frame).set_index("batch_size").loc[500]
    assert sgd.closed_form == pytest.approx(0.25)
    assert sgd.noise_displacement == pytest.approx(LR * NOISE * 1.5 / (0.5 * 19 * (3 - LR * 19)))
    assert sgd.finite * (1 - LR * sgd.finite / 3) == pytest.approx(0.25)
    for column in ("reshuffled", "from_displacement", "top_1", "top_2"):
        assert sgd[column] * (1 - LR * sgd[column] / 3) == pytest.approx(0.5), column


def around_a_change(seed: int, *, end: float = 12.0, sampled: int = 500) -> pd.DataFrame:
    """A control at MiniBS 10 and FullBS 8, the same run changed at step 2,000, and one with the new settings throughout."""
    steps = 100 * np.arange(41)
    parts = []
    for entry, late in (("control", 8.0), ("changed", end), ("new", 16.0)):
        full = np.full(41, 16.0) if entry == "new" else np.where(steps <= 2000, 8.0, late)
        mini = full * np.where((entry == "changed") & (steps >= 2000), 1.0, 1.25)
        loss = np.where((entry == "changed") & (steps == 2200), 5.0, np.where((entry == "changed") & (steps == 2300), 9.0, 1.0))
        part = trajectory(10, seed, full).assign(minibatch_sharpness=np.where(steps % sampled, np.nan, mini), loss=loss)
        parts.append(part.assign(entry=entry))
    return pd.concat(parts, ignore_index=True)


def test_a_change_is_held_against_its_control_and_the_run_trained_so_from_the_start():
    frame = pd.concat([around_a_change(0), around_a_change(1, end=14.0)], ignore_index=True)
    table = analysis.after_change(frame, "changed", "control", "new", 2000)
    assert table.shared.tolist() == [True, True]
    assert table.minibs_at.tolist() == [0.8, 0.8]
    assert table.fullbs_at.tolist() == [1.0, 1.0]
    assert table.spike.tolist() == [5.0, 5.0]  # the 9.0 comes 300 steps after the change
    assert table.fullbs_rise.tolist() == [1.5, 1.75]
    assert table.fullbs_end.tolist() == [0.75, 0.875]
    assert table.minibs_end.tolist() == pytest.approx([0.6, 0.7])


def test_a_run_that_left_its_control_before_the_change_is_told():
    frame = around_a_change(0)
    frame.loc[(frame.entry == "changed") & (frame.step == 300), "sharpness"] += 1e-6
    assert analysis.after_change(frame, "changed", "control", "new", 2000).shared.tolist() == [False]


def test_a_change_where_nothing_was_sampled_or_of_runs_that_diverged_has_no_number():
    table = analysis.after_change(around_a_change(0, sampled=300), "changed", "control", "new", 2000)
    assert np.isnan(table.minibs_at.item())
    assert table.fullbs_at.item() == 1.0
    frame = pd.concat([around_a_change(0), around_a_change(1)], ignore_index=True)
    frame.loc[(frame.entry == "new") & (frame.seed == 1), "diverged"] = True
    assert analysis.after_change(frame, "changed", "control", "new", 2000).index.tolist() == [0]
    fewer = frame[(frame.entry != "control") | (frame.seed == 0)]
    assert analysis.after_change(fewer, "changed", "control", "new", 2000).index.tolist() == [0]


def test_static_gaps_have_a_row_a_run_step_and_batch_size():
    made = family()
    ends = made.step.isin([0, 4000])
    for size in (2, 8):
        for kind, value in (("minibs", 10.0), ("gap", 1.0)):
            made[f"static_{kind}_{size:04d}"] = np.where(ends, value / size, np.nan)
            made[f"static_{kind}_{size:04d}_se"] = np.where(ends, 0.1, np.nan)
    table = analysis.static_gaps(made)
    assert len(table) == 2 * 2 * 18  # sizes, steps, runs
    assert set(table.step) == {0, 4000}
    assert table.gap.tolist() == (1.0 / table["size"]).tolist()
    assert table.minibs.tolist() == (10.0 / table["size"]).tolist()
    assert table.factor.tolist() == pytest.approx(((1000 - table["size"]) / (table["size"] * 999)).tolist())


def test_the_factor_of_a_static_gap_is_that_of_its_own_run():
    runs = [trajectory(10, 0, np.zeros(41)).assign(train_size=n, sampling=how) for n, how in ((1000, "reshuffle"), (1000, "iid"))]
    runs.append(runs[0].assign(train_size=9))
    columns = ("minibs_0008", "minibs_0008_se", "gap_0008", "gap_0008_se")
    table = analysis.static_gaps(pd.concat([run[-1:].assign(**{f"static_{c}": 1.0 for c in columns}) for run in runs]))
    assert table.factor.tolist() == pytest.approx([992 / (8 * 999), 1 / 8, 1 / (8 * 8)])


def paper_curve(batch_size: int, steps: np.ndarray, values: np.ndarray) -> pd.DataFrame:
    return pd.DataFrame({"entry": "fc-tanh", "batch_size": batch_size, "step": steps, "sharpness": values})


STEPS = 100 * np.arange(41)  # those of ``trajectory``


def test_a_deviation_from_a_papers_curve_is_that_of_the_bin_where_it_is_largest_and_the_spread_is_that_of_the_seeds_there():
    paper = np.full(41, 15.0)
    seeds = [paper + 1.0 + 2.0 * seed for seed in (0, 1, 2)]  # 1, 3 and 5 above the paper
    for values in seeds:
        values[(STEPS >= 2500) & (STEPS < 3000)] -= 7.0  # their mean is 4 below it
    frame = pd.concat([trajectory(10, seed, values) for seed, values in enumerate(seeds)])
    row = analysis.deviation_from_paper(frame, paper_curve(10, STEPS, paper)).iloc[0]
    assert (row.step, row.seeds) == (2500, 3)
    assert (row.deviation, row.spread) == (pytest.approx(-4 / 20), pytest.approx(4 / 20))
    assert row.plateau == pytest.approx(3 / 20)  # the last quarter begins behind step 3000


def test_steps_before_the_first_bin_are_not_compared_with_a_papers_curve():
    values = np.where(STEPS < 1000, 50.0, 10.0)
    row = analysis.deviation_from_paper(trajectory(10, 0, values), paper_curve(10, STEPS, np.full(41, 8.0))).iloc[0]
    assert row.deviation == pytest.approx(2 / 20)


def test_one_seed_has_no_spread_beside_its_deviation_from_a_papers_curve():
    row = analysis.deviation_from_paper(trajectory(10, 0, np.full(41, 9.0)), paper_curve(10, STEPS, np.full(41, 8.0))).iloc[0]
    assert np.isnan(row.spread)


def test_a_rise_is_no_deviation_from_a_papers_curve_that_has_few_of_its_steps():
    rise, few = STEPS / 100.0, np.array([1000, 1100, 1900, 2000, 3400])
    row = analysis.deviation_from_paper(trajectory(10, 0, rise), paper_curve(10, few, few / 100.0)).iloc[0]
    assert row.deviation == 0


@pytest.mark.parametrize("seed", range(5))
def test_a_deviation_from_a_papers_curve_moves_with_the_curve_and_its_spread_does_not(seed):
    rng = np.random.default_rng(seed)
    runs = pd.concat([trajectory(10, run, 20.0 + rng.standard_normal(41)) for run in range(3)])
    paper, lift = 20.0 + rng.standard_normal(41), 100.0  # far more than what fluctuates, so that each bin's deviation has one sign
    low, high = (analysis.deviation_from_paper(runs, paper_curve(10, STEPS, paper + by)).iloc[0] for by in (-lift, lift))
    assert low.deviation > 0 > high.deviation
    every = [analysis.deviation_from_paper(runs, paper_curve(10, STEPS, paper + by)).iloc[0] for by in (lift, 2 * lift)]
    assert every[1].deviation == pytest.approx(every[0].deviation - lift / 20)
    assert every[1].spread == pytest.approx(every[0].spread)


@pytest.mark.parametrize("scale", [0.1, 7.0])
def test_a_deviation_from_a_papers_curve_is_in_units_of_the_threshold(scale):
    runs = pd.concat([trajectory(10, run, 18.0 + run + np.sin(STEPS / 300.0)) for run in range(2)])
    one = analysis.deviation_from_paper(runs, paper_curve(10, STEPS, np.full(41, 17.0)))
    scaled = runs.assign(sharpness=scale * runs.sharpness, threshold=scale * runs.threshold)
    other = analysis.deviation_from_paper(scaled, paper_curve(10, STEPS, np.full(41, scale * 17.0)))
    pd.testing.assert_frame_equal(one, other)


def test_runs_that_diverged_and_batch_sizes_without_runs_have_no_deviation_from_a_papers_curve():
    curves = pd.concat([paper_curve(b, STEPS, np.full(41, 8.0)) for b in (10, 20)])
    assert analysis.deviation_from_paper(trajectory(10, 0, np.full(41, 9.0), diverged=True), curves).empty
    assert analysis.deviation_from_paper(trajectory(20, 0, np.full(41, 9.0)), curves).batch_size.tolist() == [20]


def test_a_bin_without_steps_is_refused():
    with pytest.raises(ValueError, match="at least one step"):
        analysis.deviation_from_paper(trajectory(10, 0, np.zeros(41)), paper_curve(10, STEPS, np.zeros(41)), bin_size=0)
