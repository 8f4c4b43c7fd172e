"""Panels of single figures: gaps of networks, the EoSS paper's three sharpnesses, changes of settings, a tracker's table."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import matplotlib as mpl
import matplotlib.pyplot as plt
import matplotlib.ticker
import numpy as np
import pandas as pd
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.transforms import ScaledTranslation

from eosslib import analysis, plotting, powerlaw
from eosslib.catalogue import MODELS, QUANTITIES
from eosslib.plotting import color
from eosslib.powerlaw import PowerLaw

EOSS = ("minibatch_sharpness", "batch_sharpness", "sharpness")  # what the EoSS paper compares
UNDER_THE_LABEL = 0.42  # inches below the axes: under the ticks' numbers and "step"


def grid(count: int, *, most: int, height: float, extra: float = 0.0, **shared: Any) -> tuple[Figure, np.ndarray]:
    """Open a figure of the page's width with so many panels or a few more, in rows as equal as possible.

    Args:
        count: How many panels are needed.
        most: Panels a row, at most.
        height: Of a row, inches.
        extra: Height of the figure besides, inches.
        shared: ``sharex``; the vertical axis is always shared.

    Returns:
        The figure and its panels (rows, columns); ``trim`` takes away those that are not needed.
    """
    rows = -(-count // most)
    size = (plotting.PAGE, extra + height * rows)
    fig, axes = plt.subplots(rows, -(-count // rows), figsize=size, sharey=True, squeeze=False, **shared)
    return fig, axes


def over_training(ax: Axes, part: pd.DataFrame) -> None:
    """Draw MiniBS, batch sharpness and FullBS in units of 2/η against steps: mean over seeds and range of the seeds.

    Args:
        ax: Where to draw.
        part: Trajectories of one group of runs.
    """
    for column in EOSS:
        _line(ax, part, part[column] / part.edge, color=color(QUANTITIES[column].color), label=QUANTITIES[column].label)
    if part.diverged.all():
        ax.text(0.5, 0.5, "diverged", transform=ax.transAxes, ha="center")
    plotting.threshold(ax, 1.0, label=False)
    end = part.step.max()
    ax.set(xlabel="step", xlim=(0, end), xticks=[0, end // 2, end])
    ax.xaxis.set_major_formatter(mpl.ticker.StrMethodFormatter("{x:,.0f}"))


def plateaus(ax: Axes, table: pd.DataFrame) -> None:
    """Draw the plateaus of the three quantities in units of 2/η against batch size: mean and standard error.

    The error is that over seeds, of a single seed that in time.

    Args:
        ax: Where to draw.
        table: Plateaus of one entry, as ``analysis.plateaus`` gives them with the quantities as ``more``.
    """
    for column in EOSS:
        quantity = QUANTITIES[column]
        part = analysis.over_seeds(table, column, ["batch_size", "threshold"]).sort_values("batch_size")
        style: dict[str, Any] = {"color": color(quantity.color), "fmt": "o-", "ms": 3, "lw": 1.0, "label": quantity.label}
        ax.errorbar(part.batch_size, part["mean"] / part.threshold, (part.se / part.threshold).fillna(0.0), **style)
    plotting.threshold(ax, 1.0, label=False)
    ax.set(xscale="log", xlabel="batch size b")
    plotting.plain_ticks(ax, sorted(table.batch_size.unique()), most=4.5)


def change(axes: Sequence[Axes], frame: pd.DataFrame, labels: Mapping[str, str], at: int) -> None:
    """Draw runs around a change of settings, MiniBS above and FullBS below, with each run's own 2/η.

    Args:
        axes: Two.
        frame: Trajectories.
        labels: Entry → what to call it: first the run that changes, which is drawn from the change on, because up to there it
            is the second, its control.
        at: Step of the change.
    """
    columns = ("minibatch_sharpness", "sharpness")
    for ax, column in zip(axes, columns, strict=True):
        for index, (entry, name) in enumerate(labels.items()):
            part = frame[(frame.entry == entry) & (frame.step >= (at if index == 0 else 0))]
            _line(ax, part, part[column], color=("C3", "0.35", "C0")[index], label=name, zorder=5 - index)
        edge = frame[frame.entry == next(iter(labels))].groupby("step").edge.first()
        ax.step(edge.index, edge, where="post", color="0.45", lw=0.9, ls=":", zorder=0, label="2/η")
        ax.axvline(at, color="0.8", lw=0.8, zorder=0)
        ax.set(xlim=(0, frame.step.max()), ylabel=QUANTITIES[column].label)
        ax.xaxis.set_major_locator(mpl.ticker.MaxNLocator(3))
        ax.xaxis.set_major_formatter(mpl.ticker.StrMethodFormatter("{x:,.0f}"))
    from_zero(axes)
    axes[-1].set_xlabel("step")


def relative_gaps(ax: Axes, gap: pd.DataFrame, fits: Mapping[str, PowerLaw], names: Mapping[str, str]) -> None:
    """Draw the gaps of all networks in units of 2/η against batch size, each with its line and, in the legend, its slope.

    Args:
        ax: Where to draw.
        gap: As ``analysis.mean_gaps`` gives it, by ``entry``, ``model``, ``threshold`` and ``batch_size``.
        fits: Entry → the fit to be drawn; a network without one has points alone.
        names: Entry → what to call it.
    """
    relative = gap.assign(mean=gap["mean"] / gap.threshold, se=gap.se / gap.threshold)
    for entry, part in relative.groupby("entry", sort=False):
        model, line, name = part.model.iloc[0], None, names[str(entry)]
        if entry in fits:
            used = part[part.batch_size.isin(fits[str(entry)].x)]
            line = powerlaw.fit(used.batch_size, used["mean"])
            name += f": {powerlaw.number(line.slope, 2)}"
        plotting.power_law(ax, part, line, name=name, **plotting.model_style(model))
    plotting.plain_ticks(ax, sorted(gap.batch_size.unique()))


def relative(ax: Axes, frame: pd.DataFrame) -> None:
    """Draw sharpness in units of 2/η against steps: mean over seeds and range of the seeds, a colour a network, GD dashed.

    Args:
        ax: Where to draw.
        frame: Trajectories of networks with different thresholds.
    """
    for (model, full, size), part in frame.groupby(["model", "full_batch", "batch_size"], sort=False):
        name = f"{MODELS[str(model)].label}, " + ("GD" if full else f"b = {size:,}")
        style: dict[str, Any] = {"color": color(MODELS[str(model)].color), "ls": "--" if full else "-", "label": name}
        _line(ax, part, part.sharpness / part.threshold, **style)
    plotting.threshold(ax, 1.0, label=False)
    ax.set(xlabel="step", ylabel="sharpness over 2/η", ylim=(0, None))
    ax.xaxis.set_major_formatter("{x:,.0f}")


def from_zero(axes: Sequence[Axes]) -> None:
    """Let panels start at zero and reach, alike, a little above the highest line in any of them; to one where there is none.

    Bands are cut off where they reach higher: a single seed's spike would flatten all panels.

    Args:
        axes: What to compare.
    """
    # A line across an axes (axhline, axvline) is in other units.
    lines = [line for ax in axes for line in ax.get_lines() if line.get_transform() == ax.transData]
    top = max((y for line in lines for y in np.asarray(line.get_ydata(), dtype=float) if np.isfinite(y)), default=1.0)
    for ax in axes:
        ax.set_ylim(0, 1.05 * top)


def trim(axes: np.ndarray, used: int) -> None:
    """Take away the panels of a grid that show nothing, and give the lowest one of every column its labels.

    Args:
        axes: Grid of panels, filled row by row.
        used: How many of them show something.
    """
    for ax in axes.flat[used:]:
        ax.set_axis_off()
    shown = np.arange(axes.size).reshape(axes.shape) < used
    for column, there in zip(axes.T, shown.T, strict=True):
        for ax in column[: there.sum() - 1]:
            ax.set_xlabel("")
        column[there.sum() - 1].tick_params(labelbottom=True)


def against(ax: Axes, part: pd.DataFrame, columns: Mapping[str, str], by: str = "step", ranged: bool = True) -> None:
    """Draw several columns against another one: mean over seeds and range of the seeds.

    Args:
        ax: Where to draw.
        part: Rows of one group of runs.
        columns: Column → what to call it.
        by: Column of the horizontal axis.
        ranged: Whether to draw the range.
    """
    for index, (column, name) in enumerate(columns.items()):
        style = {"color": color(index), "ls": ("-", "--", ":")[index % 3], "lw": 1.2 + 0.4 * (index % 3), "label": name}
        _line(ax, part, part[column], by=by, ranged=ranged, **style)
    ax.set(xlabel=by, xlim=(part[by].min(), part[by].max()))


def _line(ax: Axes, part: pd.DataFrame, values: pd.Series, by: str = "step", ranged: bool = True, **style: Any) -> None:
    grouped = values[values.notna() & ~part.diverged].groupby(part[by])
    ax.plot(grouped.mean(), **style)
    if ranged and part.seed.nunique() > 1:
        ax.fill_between(grouped.min().index, grouped.min(), grouped.max(), color=style["color"], alpha=0.18, lw=0)


def tracked(frame: pd.DataFrame, ax: Axes | None = None) -> Axes:
    """Draw what a ``SharpnessTracker`` measured against the threshold of the optimizer.

    Args:
        frame: ``SharpnessTracker.frame``.
        ax: Where to draw; default: a new figure.
    """
    if ax is None:
        ax = plt.subplots(figsize=(4.6, 2.8), layout="constrained")[1]
    for column in ("preconditioned_sharpness", *EOSS):
        if column in frame and frame[column].notna().any():
            part, own = frame[frame[column].notna()], color(QUANTITIES[column].color)
            name = "sharpness" if column == "sharpness" else QUANTITIES[column].label
            ax.plot(part.step, part[column], "o-", ms=2.5, lw=1.0, color=own, label=name)
            if f"{column}_se" in frame:
                error = part[f"{column}_se"]
                ax.fill_between(part.step, part[column] - error, part[column] + error, color=own, alpha=0.2, lw=0)
    ax.plot(frame.step, frame.threshold, color="0.45", lw=1.0, ls=":", label="threshold")
    ax.set(xlabel="step", ylabel="curvature", ylim=(0, None))
    below = ax.transAxes + ScaledTranslation(0, -UNDER_THE_LABEL, ax.figure.dpi_scale_trans)  # on no line, under no title
    ax.legend(fontsize=7, loc="upper left", bbox_to_anchor=(0, 0), bbox_transform=below, ncols=3, frameon=False)
    return ax
