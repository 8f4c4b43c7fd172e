"""One visual style for all figures: batch size on one ordered colour scale, gradient descent dashed black, 2/η labelled.

Colours are viridis and seaborn's ``colorblind``; sizes are for a column of 3.4 inches or a page of 7.
"""

from __future__ import annotations

from collections.abc import Collection, Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any

import matplotlib as mpl
import matplotlib.ticker
import numpy as np
import pandas as pd
import seaborn as sns
from matplotlib.axes import Axes
from matplotlib.axis import Axis
from matplotlib.figure import Figure

from eosslib import powerlaw
from eosslib.catalogue import LOSSES, MODELS, NOISES
from eosslib.powerlaw import PowerLaw, number
from eosslib.runs import atomic

PAGE = 7.0  # inches
PAPER_COLOR = "0.5"  # of what a paper shows, beneath ours


def use_style() -> None:
    """Set the house style for all following figures of this process."""
    sns.set_theme(context="paper", style="ticks", palette="colorblind")
    mpl.rcParams.update(
        {
            "figure.dpi": 110,
            "savefig.dpi": 300,
            "figure.constrained_layout.use": True,
            "font.size": 9,
            "axes.titlesize": 9.5,
            "axes.labelsize": 9,
            "xtick.labelsize": 8,
            "ytick.labelsize": 8,
            "legend.fontsize": 7.5,
            "legend.frameon": False,
            "lines.linewidth": 1.2,
            "axes.spines.top": False,
            "axes.spines.right": False,
            "pdf.fonttype": 42,
        }
    )


def color(index: int) -> tuple[float, float, float]:
    """Return a colour of the house palette, whatever style is set."""
    return sns.color_palette("colorblind")[index]


def model_style(model: str) -> dict[str, Any]:
    """Give each network its colour and its marker, as keywords of Matplotlib."""
    return {"color": color(MODELS[model].color), "marker": MODELS[model].marker}


def label(row: pd.Series) -> str:
    """Name a network, e.g. ``CNN, cross-entropy``."""
    return f"{MODELS[row.model].label}, {LOSSES[row.loss_name].label}"


def names(frame: pd.DataFrame) -> dict[str, str]:
    """Name the network of every entry, and its depth where others of its kind have another one: ``FC-ReLU, depth 4``."""
    entries = frame.drop_duplicates("entry").set_index("entry")
    several = entries.groupby("model").depth.nunique() > 1
    return {
        str(entry): MODELS[row.model].label + (f", depth {row.depth}" if several[row.model] else "")
        for entry, row in entries.iterrows()
    }


def settings(frame: pd.DataFrame) -> str:
    """Say in a few sentences what a figure's runs are: networks, step sizes, steps, seeds, and which diverged."""

    def either(values: pd.Series) -> str:
        return " or ".join(f"{value:,}" if value == int(value) else f"{value:g}" for value in sorted(values.unique()))

    network, parts = frame.entry.map(names(frame)), []
    for (optimizer, momentum, kind, loss), part in frame.groupby(["optimizer", "momentum", network, "loss_name"], sort=False):
        name = ", Adam" if optimizer == "adam" else f", μ = {momentum:g}" if momentum else ""
        often = f"{either(part.steps)} steps, measured every {either(part.measure_every)}"
        parts.append(f"{kind}, {LOSSES[str(loss)].label}{name}: η = {either(part.lr)}, {often}")
    counts = frame.groupby(["entry", "noise", "batch_size"]).seed.nunique()  # of each group of runs
    fewest, most = counts.min(), counts.max()
    text = f"{'; '.join(parts)}. {'One seed' if most == 1 else f'{most} seeds' if fewest == most else f'{fewest} to {most} seeds'}."
    lost = frame.assign(network=network)[frame.diverged].groupby(["network", "lr", "batch_size"], sort=False).seed.unique()
    runs = [
        f"{kind}, η = {lr:g}, b = {size:,} (seed {', '.join(map(str, some))})"
        for kind, lr, size, some in lost.reset_index().itertuples(index=False)
    ]
    return f"{text} Diverged: {'; '.join(runs)}." if runs else text


def sizes(names: Mapping[str, str], of: Mapping[str, Collection[int]]) -> str:
    """List batch sizes by network; a network without any is left out.

    Example:
        >>> sizes({"fc": "FC", "cnn": "CNN"}, {"fc": [50, 1500], "cnn": []})
        'FC, b = 50, 1500'
    """
    return "; ".join(f"{names[entry]}, b = {', '.join(map(str, some))}" for entry, some in of.items() if len(some))


def batch_colors(sizes: Iterable[int], n: int) -> dict[int, tuple[float, float, float, float]]:
    """Give each batch size its colour, the same in all figures of n examples: dark is n/100, light n/2, logarithmic in b."""
    ends = np.log([n / 100, n / 2])
    places = np.clip((np.log(sorted(set(sizes))) - ends[0]) / (ends[1] - ends[0]), 0, 1)
    return {size: mpl.colormaps["viridis"](0.9 * place) for size, place in zip(sorted(set(sizes)), places, strict=True)}


def threshold(ax: Axes, value: float, label: bool = True) -> None:
    """Draw and label the stability threshold 2/η, or a line at ``value`` alone."""
    ax.axhline(value, color="0.45", lw=0.9, ls=":", zorder=0)
    if not label:
        return
    ax.annotate(
        f"2/η\n= {value:g}",
        (1.0, value),
        xycoords=("axes fraction", "data"),
        xytext=(3, 0),
        textcoords="offset points",
        va="center",
        fontsize=7.5,
        color="0.35",
    )


def trajectories(ax: Axes, frame: pd.DataFrame, sizes: Sequence[int] | None = None) -> None:
    """Draw sharpness against steps: the mean over seeds and the range of the seeds, a line a batch size, GD dashed black.

    Args:
        ax: Where to draw.
        frame: Trajectories of one network.
        sizes: Batch sizes to show besides gradient descent; default: all.
    """
    sgd = frame[~frame.full_batch]
    colors = batch_colors(sgd.batch_size, frame.train_size.iloc[0])
    for size in sorted(colors):
        if sizes is None or size in sizes:
            _line(ax, sgd[sgd.batch_size == size], color=colors[size], label=f"b = {size:,}")
    _gradient_descent(ax, frame)


def paper_curves(ax: Axes, curves: pd.DataFrame) -> None:
    """Draw the sharpness that a paper shows against steps, thin and grey beneath ours, under one name in the legend.

    Args:
        ax: Where to draw.
        curves: As ``papers.curves`` gives them, of one network; of none nothing is drawn.
    """
    for index, (_, curve) in enumerate(curves.groupby("batch_size")):
        ax.plot(curve.step, curve.sharpness, color=PAPER_COLOR, lw=0.8, zorder=1.5, label=None if index else "the paper's")


def paper_gaps(ax: Axes, points: pd.DataFrame) -> None:
    """Draw the gaps that a paper shows against batch size, grey squares beneath ours, with the slope of their line in the legend.

    Args:
        ax: Where to draw.
        points: As ``papers.gaps`` gives them, of one network; of none nothing is drawn.
    """
    if len(points):
        name = f"the paper's: {number(powerlaw.fit(points.batch_size, points.gap).slope, 2)}"
        ax.plot(points.batch_size, points.gap, "s", color=PAPER_COLOR, ms=3, zorder=1.5, label=name)


def noise_trajectories(ax: Axes, frame: pd.DataFrame, noises: Sequence[str]) -> None:
    """Draw sharpness against steps, a line a noise model, GD dashed black.

    Args:
        ax: Where to draw.
        frame: Trajectories of one network at one batch size, and of gradient descent.
        noises: Noise models to show, as far as there are runs.
    """
    for noise in noises:
        part = frame[(frame.noise == noise) & ~frame.full_batch]
        if len(part):
            _line(ax, part, color=color(NOISES[noise].color), label=NOISES[noise].label)
    _gradient_descent(ax, frame)


def _gradient_descent(ax: Axes, frame: pd.DataFrame) -> None:
    gd = frame[frame.full_batch]
    if len(gd):
        _line(ax, gd, color="black", ls=(0, (4, 1.5)), label="GD (b = n)", zorder=5)
    ax.set(xlabel="step", ylabel="sharpness", xlim=(0, frame.step.max()))
    ax.xaxis.set_major_locator(mpl.ticker.MaxNLocator(4))
    ax.xaxis.set_major_formatter(mpl.ticker.StrMethodFormatter("{x:,.0f}"))
    ax.yaxis.set_major_locator(mpl.ticker.MaxNLocator(5))


def _line(ax: Axes, part: pd.DataFrame, **style: Any) -> None:
    """Draw one run: mean over seeds, range of the seeds, and a cross where a seed diverged."""
    seeds = part.dropna(subset=["sharpness"]).groupby("step").sharpness
    mean, low, high = seeds.mean(), seeds.min(), seeds.max()
    (line,) = ax.plot(mean.index, mean, **style)
    ax.fill_between(mean.index, low, high, color=line.get_color(), alpha=0.18, lw=0)
    for _, run in part[part.diverged].groupby("seed"):
        last = run.dropna(subset=["sharpness"]).iloc[-1:]
        ax.plot(last.step, last.sharpness, "x", color=line.get_color(), ms=6, mew=1.5, label="diverged here")


def noise_bars(ax: Axes, summary: pd.DataFrame) -> None:
    """Draw the gap of every noise model with its standard error.

    Args:
        ax: Where to draw.
        summary: ``noise``, ``mean``, ``se`` as ``analysis.over_seeds`` gives them.
    """
    shown = {name: noise for name, noise in NOISES.items() if name in set(summary.noise)}
    rows = summary.set_index("noise").loc[list(shown)]
    names, colors = ([noise.label.removeprefix("GD + ") for noise in shown.values()], [color(n.color) for n in shown.values()])
    ax.barh(names, rows["mean"], xerr=rows.se, color=colors, capsize=2)
    ax.axvline(0, color="0.2", lw=0.8)
    ax.invert_yaxis()
    ax.set(xlabel="gap ΔS")


def power_law(ax: Axes, summary: pd.DataFrame, fit: PowerLaw | None, *, color: object, marker: str = "o", name: str = "") -> None:
    """Draw means with standard errors against batch size on log axes, with a fit and its 95 % confidence band.

    Args:
        ax: Where to draw.
        summary: ``batch_size``, ``mean``, ``se`` as ``analysis.over_seeds`` gives them; values that are not positive have no
            place on a log axis and are left out (say so beside the figure). Where ``clear`` is there and False the mark is open;
            where ``fitted`` is there and False it is a cross.
        fit: The fit, or None.
        color: Of points, line and band.
        marker: Of the points.
        name: In the legend.
    """
    shown = summary[summary["mean"] > 0]
    style: dict[str, Any] = {"color": color, "ms": 4, "capsize": 2, "lw": 1}
    if "fitted" in shown:
        outside, shown = shown[~shown.fitted], shown[shown.fitted]
        if len(outside):
            errors = log_errors(outside["mean"], outside.se)
            ax.errorbar(outside.batch_size, outside["mean"], yerr=errors, fmt="x", **style)
    errors = log_errors(shown["mean"], shown.se)
    ax.errorbar(shown.batch_size, shown["mean"], yerr=errors, fmt=marker, label=name or None, **style)
    if "clear" in shown:
        lost = shown[~shown.clear]
        ax.plot(lost.batch_size, lost["mean"], marker, color=color, mfc="white", ms=4, zorder=3)
    if fit is not None:
        x = np.geomspace(fit.x.min(), fit.x.max(), 100)
        low, high = fit.band(x)
        ax.plot(x, fit(x), color=color, lw=1.1)
        ax.fill_between(x, low, high, color=color, alpha=0.15, lw=0)
    ax.set(xscale="log", yscale="log", xlabel="batch size b")
    plain_ticks(ax, sorted(summary.batch_size.unique()))


def log_errors(mean: pd.Series, se: pd.Series) -> np.ndarray:
    """Return error bars for a log axis (2, m), whose lower ends stay above zero; none where there is no error."""
    errors = se.fillna(0)
    return np.stack([np.minimum(errors, 0.9 * mean), errors])


def plain_ticks(ax: Axes, sizes: Sequence[int], most: float = 8) -> None:
    """Label a logarithmic batch-size axis with plain numbers, as many as fit: at least 1/``most`` of the range apart."""
    kept: list[int] = []
    apart = max(1.7, (max(sizes, default=1) / min(sizes, default=1)) ** (1 / most))
    for size in sizes:
        if not kept or size / kept[-1] > apart:
            kept.append(size)
    ax.xaxis.set_major_locator(mpl.ticker.FixedLocator(kept))
    ax.xaxis.set_major_formatter(mpl.ticker.FuncFormatter(lambda value, _: f"{value:g}"))
    ax.xaxis.set_minor_locator(mpl.ticker.NullLocator())


def predictions(ax: Axes, gap: pd.DataFrame, closed_form: pd.DataFrame, corrected: pd.DataFrame) -> None:
    """Draw predicted against measured gaps on log axes, the closed form with open marks and with its corrections filled.

    Args:
        ax: Where to draw.
        gap: Measured: ``entry``, ``model``, ``batch_size``, ``mean``, ``se`` as ``analysis.over_seeds`` gives them.
        closed_form: Predicted, in the same order.
        corrected: Predicted with all corrections, in the same order.
    """
    for _, measured in gap.groupby("entry", sort=False):
        model = measured.model.iloc[0]
        for table, name, fill in ((closed_form, "closed form", "white"), (corrected, "corrected", None)):
            predicted = table.loc[measured.index]
            good = (measured["mean"] > 0) & (predicted["mean"] > 0)
            x, y = measured[good], predicted[good]
            if x.empty:
                continue
            errors: dict[str, Any] = {"xerr": log_errors(x["mean"], x.se), "yerr": log_errors(y["mean"], y.se)}
            style: dict[str, Any] = {"ls": "", "ms": 4, "lw": 0.8, "mfc": fill, **model_style(model)}
            ax.errorbar(x["mean"], y["mean"], label=f"{MODELS[model].label}, {name}", **errors, **style)
    ax.set(xscale="log", yscale="log", xlabel="measured gap ΔS", ylabel="predicted gap")
    diagonal(ax)


def displacements(ax: Axes, table: pd.DataFrame) -> None:
    """Draw E[x²] against 2α/β on log axes, a point a batch size, gradient descent with a black edge.

    Args:
        ax: Where to draw.
        table: As ``analysis.closed_form`` gives it.
    """
    by = ["model", "batch_size", "full_batch"]
    means = table.groupby(by, sort=False)[["displacement", "expected_displacement"]].mean().reset_index()
    for model, part in means.groupby("model", sort=False):
        edges = ["black" if full else "none" for full in part.full_batch]
        style = {"label": MODELS[str(model)].label, **model_style(str(model))}
        ax.scatter(part.expected_displacement, part.displacement, s=18, edgecolors=edges, **style)
    ax.set(xscale="log", yscale="log", xlabel="2α/β", ylabel="E[x²]")
    diagonal(ax)


def diagonal(ax: Axes) -> None:
    """Draw y = x behind what is shown, on logarithmic axes that show the same range both ways."""
    ends = np.array([ax.get_xlim(), ax.get_ylim()])
    low, high = 0.9 * ends.min(), 1.1 * ends.max()
    ax.plot([low, high], [low, high], color="0.4", lw=0.8, zorder=0)
    ax.set(xlim=(low, high), ylim=(low, high))
    for axis in (ax.xaxis, ax.yaxis):
        short_ticks(axis)


def short_ticks(axis: Axis) -> None:
    """Label a logarithmic axis with plain numbers where it is too short for powers of ten alone."""
    low, high = axis.get_view_interval()
    axis.set_minor_formatter(mpl.ticker.NullFormatter())
    if high < 100 * low:
        axis.set_major_locator(mpl.ticker.LogLocator(subs=(1.0, 2.0, 5.0)))
        axis.set_major_formatter(mpl.ticker.FuncFormatter(lambda value, _: f"{value:g}"))


def slope_guide(ax: Axes, x: Sequence[float], anchor: tuple[float, float], slope: float = -1.0) -> None:
    """Draw a dotted line of a given slope through a point of a log–log plot."""
    xs = np.array([min(x), max(x)], dtype=float)
    ax.plot(xs, anchor[1] * (xs / anchor[0]) ** slope, color="0.3", ls=":", lw=1.2, label=f"slope {number(slope)}")


def save(figures: Mapping[str, Figure], folder: str | Path) -> list[Path]:
    """Write figures as PNG and PDF.

    Args:
        figures: By file name without suffix.
        folder: Where to.

    Returns:
        The files written.

    Raises:
        RunFileError: The folder cannot be written to.
    """
    written = []
    for name, figure in figures.items():
        for kind in ("png", "pdf"):
            # Without a date in it, the same figure is the same file.
            metadata = {"CreationDate": None} if kind == "pdf" else {"Software": None}
            with atomic(Path(folder) / f"{name}.{kind}") as temporary:
                figure.savefig(temporary, format=kind, metadata=metadata)
            written.append(Path(folder) / f"{name}.{kind}")
    return written
