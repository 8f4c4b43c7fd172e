"""From trajectories to numbers: plateaus, sharpness gaps, predicted gaps.

Every error bar is a standard error over seeds, for a single seed that in time (or of its draws), unless it says otherwise.
"""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
import pandas as pd

from eosslib import theory

RUN_KEYS = ["entry", "model", "loss_name", "lr", "train_size", "batch_size", "noise", "sampling", "full_batch", "seed", "threshold"]
RUN_KEYS += ["optimizer", "momentum", "width", "depth", "hidden", "init_scale", "dataset"]
NETWORK = ["model", "width", "depth", "hidden", "init_scale", "dataset", "train_size", "loss_name"]  # what tells networks apart
BLOCKS = 5  # of a plateau, for its error in time
PLATEAU = 0.25  # the plateau is the mean over the last quarter of the steps (science of the sharpness-gap paper)


def plateaus(frame: pd.DataFrame, until: int | None = None, more: Sequence[str] = (), part: float = PLATEAU) -> pd.DataFrame:
    """Mean sharpness and noise variance over the last part of the steps, by default a quarter, one row a run.

    Args:
        frame: Trajectories as ``runs.collect`` gives them.
        until: Look only at steps up to this one, to compare runs of different length; default: each run's own end.
        more: Further columns to average, over the rows that have them.
        part: How much of the steps, from the end, is the plateau: less than the default asks whether a run has come to rest.

    Returns:
        The run's settings with ``sharpness``, ``noise_variance`` and ``more``, each with its standard error in time ``_se``: of
        five successive block means of the plateau, whose fluctuations may be taken as independent (NaN below ten values; of a
        column of ``more`` that is called so, the mean);
        ``measurements``, how many sharpnesses were averaged; and ``drift``, the mean sharpness of the plateau's second half
        minus that of its first, whose own error is twice ``sharpness_se`` (which a drift inflates). A run that diverged has no
        plateau: NaN.
    """
    end = frame["steps"].clip(upper=until) if until else frame["steps"]
    columns = list(dict.fromkeys(["sharpness", "noise_variance", *more]))
    errors = {f"{column}_se": (column, _block_error) for column in columns}
    window = frame[(frame.step > (1 - part) * end) & (frame.step <= end)]
    table = window.groupby(RUN_KEYS, as_index=False).agg(
        drift=("sharpness", _drift),
        measurements=("sharpness", "count"),
        **(errors | {column: (column, "mean") for column in columns}),
    )
    runs = frame[[*RUN_KEYS, "diverged"]].drop_duplicates()
    table = runs.merge(table, on=RUN_KEYS, how="left")
    table.loc[table.diverged, ["drift", *columns, *errors]] = np.nan
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

    Networks are the same whose settings in ``NETWORK``, optimizer, momentum and step size are.

    Args:
        table: Plateaus; those of gradient descent must be among them.

    Returns:
        The rows that are not gradient descent, with ``gap``, ``gap_se`` (the errors in time of both plateaus) and
        ``relative_gap`` (in units of 2/η); NaN where gradient descent of the same network and seed is not among the runs.

    Raises:
        ValueError: Several runs of gradient descent have the same network, optimizer and seed.
    """
    keys = [*NETWORK, "lr", "optimizer", "momentum", "seed"]
    baseline = table[table.full_batch][[*keys, "sharpness", "sharpness_se"]]
    baseline = baseline.rename(columns={"sharpness": "gd_sharpness", "sharpness_se": "gd_sharpness_se"})
    try:
        merged = table[~table.full_batch].merge(baseline, on=keys, how="left", validate="many_to_one")
    except pd.errors.MergeError:
        entries = ", ".join(table[table.full_batch & table.duplicated([*keys, "full_batch"], keep=False)].entry.unique())
        raise ValueError(f"gradient descent of one network and seed stands in several runs: leave out some of {entries}") from None
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
        As ``over_seeds``, and ``clear``: the gap exceeds two standard errors, of those over seeds and in time the larger.
    """
    means = over_seeds(table, "gap", by)
    return means.assign(clear=means["mean"] > 2 * np.fmax(means.se, _in_time(table, "gap", by)))


def deviation_from_paper(frame: pd.DataFrame, curves: pd.DataFrame, bin_size: int = 500, start: int = 1000) -> pd.DataFrame:
    """Find how far our runs get from the curves that a paper published, where both are averaged over bins of steps.

    A bin's averages are over those of its steps that both sides have, so that a rise between them is no deviation.

    Args:
        frame: Trajectories as ``runs.collect`` gives them; runs that diverged are left out.
        curves: The paper's, as ``papers.curves`` gives them: ``entry``, ``batch_size``, ``step``, ``sharpness``.
        bin_size: Steps in a bin.
        start: First step of the first bin; what comes before is not compared.

    Returns:
        A row for each curve of which there are runs at some of its steps from ``start`` on: ``entry``, ``batch_size``,
        ``full_batch``; ``step``, the first of the bin in which the mean over our seeds is furthest from the paper; ``deviation``,
        that mean minus the paper's average there; ``spread``, the highest minus the lowest of our seeds' averages in the same bin,
        NaN of one seed; ``plateau``, as ``deviation``, but of the bins that begin in our plateau, NaN where the curve ends before
        it; all three in units of 2/η; ``seeds``, their number.

    Raises:
        ValueError: ``bin_size`` is not positive.
    """
    if bin_size < 1:
        raise ValueError(f"a bin has at least one step, not {bin_size}")
    curve = ["entry", "batch_size"]
    ours = frame[~frame.diverged & frame.sharpness.notna() & (frame.step >= start)]
    both = ours.merge(curves[[*curve, "step", "sharpness"]], on=[*curve, "step"], suffixes=("", "_paper"))
    both["step"] = start + (both.step - start) // bin_size * bin_size
    both["paper"], both["ours"] = both.sharpness_paper / both.threshold, both.sharpness / both.threshold
    bins = both.groupby([*curve, "full_batch", "steps", "step", "seed"])[["ours", "paper"]].mean().reset_index("seed")
    bins = bins.groupby(level=[*curve, "full_batch", "steps", "step"]).agg(
        deviation=("ours", "mean"), paper=("paper", "mean"), high=("ours", "max"), low=("ours", "min"), seeds=("seed", "count")
    )
    bins = bins.reset_index()
    bins["deviation"] -= bins.paper
    bins["spread"] = (bins.high - bins.low).where(bins.seeds > 1)
    late = _furthest(bins[bins.step > (1 - PLATEAU) * bins.steps], curve).rename(columns={"deviation": "plateau"})
    columns = [*curve, "full_batch", "step", "deviation", "spread", "seeds"]
    return _furthest(bins, curve)[columns].merge(late[[*curve, "plateau"]], on=curve, how="left")


def _furthest(bins: pd.DataFrame, curve: Sequence[str]) -> pd.DataFrame:
    """Keep the bin of each curve with the largest deviation."""
    return bins.loc[bins.deviation.abs().groupby([bins[key] for key in curve]).idxmax()]


def closed_form(frame: pd.DataFrame) -> pd.DataFrame:
    """Predict every run's gap from α, β, σ_u² and E[x²] of its own plateau, with no fitted constant, and measure it.

    Averages over the plateau's windows come first, quotients after.

    Args:
        frame: Trajectories of runs with windows, those of gradient descent among them; where only some have windows, the
            others' predictions are NaN.

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

    Raises:
        ValueError: No run has windows, or ``gaps`` finds several runs of gradient descent to compare one with.
    """
    if "window_alpha" not in frame:
        raise ValueError("these runs have no windows: train them with window, window_every and window_from")
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

    Raises:
        ValueError: No run has coupled steps.
    """
    if "coupling_error" not in frame:
        raise ValueError("these runs have no coupled steps: train them with coupled_steps")
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
    """Average a column over seeds; runs where it is NaN are left out.

    Args:
        table: A row a run.
        column: What to average; where the table has ``<column>_se``, that is each run's own error, in time or of its draws.
        by: Columns that tell the runs apart but for the seed.

    Returns:
        ``by`` with ``mean``, ``seeds``, their number, and ``se``, the standard error over seeds, of a single seed its own.
    """
    means = table.groupby(list(by), as_index=False, sort=False).agg(
        mean=(column, "mean"), se=(column, "sem"), seeds=(column, "count")
    )
    if f"{column}_se" in table:
        means["se"] = means.se.where(means.seeds > 1, _in_time(table, column, by))
    return means


def over_gap(prediction: pd.DataFrame, gap: pd.DataFrame) -> pd.DataFrame:
    """Divide predicted by measured gaps, means over seeds with independent errors.

    Args:
        prediction: ``mean`` and ``se`` as ``over_seeds`` gives them.
        gap: The same rows as ``mean_gaps`` gives them.

    Returns:
        ``mean`` and ``se`` of the ratios, NaN where the gap is not clear.
    """
    ratio = (prediction["mean"] / gap["mean"]).where(gap.clear)
    relative = np.hypot(prediction.se / prediction["mean"], gap.se / gap["mean"])
    return pd.DataFrame({"mean": ratio, "se": ratio.abs() * relative})


def _in_time(table: pd.DataFrame, column: str, by: Sequence[str]) -> np.ndarray:
    """Return the standard errors of the groups' means by the errors that each run has of its own."""
    own = table[f"{column}_se"].where(table[column].notna())
    groups = [table[key] for key in by]
    squares = (own**2).groupby(groups, sort=False).sum(min_count=1)
    return (np.sqrt(squares) / own.groupby(groups, sort=False).count()).to_numpy()


def after_change(frame: pd.DataFrame, changed: str, control: str, new: str, at: int, within: int = 250) -> pd.DataFrame:
    """Hold runs whose settings change in mid-run against runs without the change and runs that had the new settings throughout.

    Args:
        frame: Trajectories as ``runs.collect`` gives them.
        changed: Entry of the runs that change.
        control: Entry of those that train on as the changed ones began.
        new: Entry of those that had the new settings from the start.
        at: Step of the change, where both sides have the same weights.
        within: Number of steps after it in which to look for the highest loss.

    Returns:
        A row a seed of which no run diverged: ``shared``, whether the sharpness up to the change is the control's, bit for bit;
        ``minibs_at`` and ``fullbs_at``, what the change makes of MiniBS and sharpness at once, as ratios; ``spike``, the
        highest loss within reach over that at the change; ``fullbs_rise``, the changed run's plateau of the sharpness over its
        value at the change; ``minibs_end`` and ``fullbs_end``, the changed run's plateaus over those of ``new``. NaN where
        nothing was measured at the change.
    """
    columns = {"minibatch_sharpness": "minibs", "sharpness": "fullbs", "loss": "loss"}
    a, b = (
        frame[frame.entry == entry].rename(columns=columns).pivot(index="step", columns="seed", values=[*columns.values()])
        for entry in (changed, control)
    )
    ends = plateaus(frame, more=["minibatch_sharpness"]).set_index(["entry", "seed"]).rename(columns=columns)
    soon = a.index[(a.index > at) & (a.index <= at + within)]
    now, other = (part.reindex([at]).iloc[0] for part in (a, b))
    before, theirs = (part.fullbs[part.index <= at] for part in (a, b))
    table = pd.DataFrame(
        {
            "shared": before.eq(theirs).all(),
            "minibs_at": now.minibs / other.minibs,
            "fullbs_at": now.fullbs / other.fullbs,
            "spike": a.loss.loc[soon].max() / now.loss,
            "fullbs_rise": ends.fullbs[changed] / now.fullbs,
            "minibs_end": ends.minibs[changed] / ends.minibs[new],
            "fullbs_end": ends.fullbs[changed] / ends.fullbs[new],
        }
    )
    ended = ~ends.diverged.loc[[changed, control, new]].groupby("seed").any()
    return table[ended.reindex(table.index, fill_value=False)]


def static_gaps(frame: pd.DataFrame) -> pd.DataFrame:
    """MiniBS and its gap to the sharpness at fixed parameters, over the batch sizes of ``static_sizes``.

    Returns:
        A row a run, step (the first and the last) and batch size ``size``: ``minibs``, ``minibs_se``, ``gap``, ``gap_se``
        (sampling errors), ``sharpness``, and ``factor``, the variance of a batch mean over that of one example.

    Raises:
        ValueError: No run has static sizes.
    """
    rows = []
    names = [name for name in map(str, frame.columns) if name.startswith("static_gap_") and not name.endswith("_se")]
    names = [name for name in names if frame[name].notna().any()]
    if not names:
        raise ValueError("these runs have no gaps at fixed parameters: train them with static_sizes and minibs_draws")
    for name in names:
        size, minibs = int(name.rsplit("_", 1)[1]), name.replace("gap", "minibs")
        part = frame[frame[name].notna()]
        columns = {"minibs": part[minibs], "minibs_se": part[f"{minibs}_se"], "gap": part[name], "gap_se": part[f"{name}_se"]}
        factor = [theory.finite_population(n, size, how) for n, how in zip(part.train_size, part.sampling, strict=True)]
        rows.append(part[[*RUN_KEYS, "step", "sharpness"]].assign(size=size, factor=factor, **columns))
    return pd.concat(rows, ignore_index=True)
