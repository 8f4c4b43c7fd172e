"""The toys as pictures: drawn into axes, moved by sliders, or as short animations."""

from __future__ import annotations

import base64
import html
import inspect
import io
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import matplotlib.pyplot as plt
import numpy as np
from matplotlib.axes import Axes
from PIL import Image

from eosslib import plotting, theory, toys
from eosslib.runs import atomic

FAR = 1e3  # beyond it an iterate is off every picture


def quadratic(ax: Axes, lr: float = 0.8, curvature: float = 2.0, start: float = 1.0, steps: int = 12) -> None:
    """Gradient descent on a parabola, seen from the side.

    Args:
        ax: Where to draw.
        lr: Step size η.
        curvature: λ; the threshold is η = 2/λ.
        start: First iterate.
        steps: Number of steps.
    """
    toy = toys.quadratic(curvature)
    path = toys.descend(toy, start, lr, steps)
    span = 1.1 * max(abs(start), 1.6)
    _curve(ax, toy, path, span)
    regime = "converges" if lr * curvature < 1 else "jumps across and converges" if lr * curvature < 2 else "diverges"
    ax.set(title=f"η = {lr:g}, 2/λ = {2 / curvature:g}\n{regime}")


def flat_tails(ax: Axes, lr: float = 1.3, start: float = 3.0, steps: int = 40) -> None:
    """Gradient descent on x²/√(1 + x²), seen from the side, with the two points between which it ends up jumping.

    Args:
        ax: Where to draw.
        lr: Step size η; for η > 1 the origin, where the curvature is 2, is unstable.
        start: First iterate.
        steps: Number of steps.
    """
    toy = toys.flat_tails()
    _curve(ax, toy, toys.descend(toy, start, lr, steps), 1.15 * max(abs(start), 2.0))
    if lr > 1:
        for x in (-toys.two_cycle(lr), toys.two_cycle(lr)):
            ax.plot(x, toy.value(np.array(x)), "s", color="C3", ms=6, mfc="none", zorder=5)
    ax.set(title=f"x²/√(1 + x²), η = {lr:g}\n" + ("jumps between two points" if lr > 1 else "converges"))


def distance(ax: Axes, lr: float = 1.3, starts: Sequence[float] = (0.01, 6.0), steps: int = 40) -> None:
    """|x| of gradient descent on x²/√(1 + x²) against steps, from several starts, with the distance of the cycle.

    Args:
        ax: Where to draw.
        lr: Step size η > 1.
        starts: First iterates.
        steps: Number of steps.

    Raises:
        ValueError: η ≤ 1, where there is no cycle.
    """
    cycle = toys.two_cycle(lr)
    for start in starts:
        ax.plot(np.abs(toys.descend(toys.flat_tails(), start, lr, steps)), ".-", ms=3, lw=0.8, label=f"from x = {start:g}")
    ax.axhline(cycle, color="C3", lw=0.9, ls=":", label="curvature felt = 2/η")
    ax.set(yscale="log", xlabel="step", ylabel="|x|", title=f"the same, η = {lr:g}\nfrom every start")
    ax.set_ylim(top=100 * cycle)  # room for the legend above the lines
    ax.legend(loc="upper right", fontsize=6.5)


def valley(
    ax: Axes, lr: float = 0.1, alpha: float = 0.005, noise: float = 0.0, steps: int = 4_000, until: int | None = None
) -> None:
    """The valley that self-stabilizes: its iterates, position across against curvature; the newest ones dark.

    Args:
        ax: Where to draw.
        lr: Step size η.
        alpha: Slope of the valley, the progressive sharpening.
        noise: Standard deviation of noise across.
        steps: Number of steps.
        until: Show only so many of them.
    """
    path = toys.valley(0.1, 0.995 * theory.threshold(lr), lr=lr, alpha=alpha, steps=steps, noise=noise)
    shown = path[: until or steps]
    ax.plot(path[:, 0], path[:, 1], ",", color="0.8", zorder=0)
    ax.plot(shown[-400:, 0], shown[-400:, 1], ".", color="C0", ms=1.5)
    ax.plot(*shown[-1], "o", color="black", ms=5)  # orange is where the other pictures start
    plotting.threshold(ax, theory.threshold(lr))
    ax.set(xlabel="x, across the valley", ylabel="y, the curvature", title="the valley" + (", with noise" if noise else ""))


def power_iteration(ax: Axes, lr: float = 0.21, steps: int = 60) -> None:
    """Angle between iterate and top eigenvector under gradient descent on a quadratic in 20 dimensions, against steps.

    Args:
        ax: Where to draw.
        lr: Step size η; the curvatures go from 0.5 to 10, so that the threshold is 0.2.
        steps: Number of steps.
    """
    curvatures = np.linspace(10.0, 0.5, 20)
    cosine = toys.power_iteration(curvatures, np.random.default_rng(0).standard_normal(20), lr, steps)
    ax.plot(cosine, color="C0")
    ax.set(xlabel="step", ylabel="|cos(iterate, u)|", ylim=(0, 1.03), title=f"η = {lr:g}, 2/λ₁ = 0.2")


def _curve(ax: Axes, toy: toys.Toy, path: np.ndarray, span: float) -> None:
    grid = np.linspace(-span, span, 300)
    ax.plot(grid, toy.value(grid), color="0.6", lw=1, zorder=0)
    path = path[np.isfinite(path) & (np.abs(path) < FAR)]
    height = toy.value(path)
    ax.plot(path, height, ".-", color="C0", ms=4, lw=0.6)
    ax.plot(path[0], height[0], "o", color="C3", ms=5, label="start")
    ax.set(xlim=(-span, span), ylim=(-0.06 * toy.value(np.array(span)), toy.value(np.array(span))), xlabel="x", ylabel="loss")


def explore(picture: Callable[..., None], **ranges: tuple[float, float, float]) -> Any:
    """Draw a picture that sliders move (ipywidgets), for a notebook that someone has opened.

    Args:
        picture: One of this module.
        ranges: Smallest value, largest value and step of each argument that gets a slider.
    """
    import ipywidgets  # type: ignore[import-untyped]  # only JupyterLab needs it

    defaults = {name: parameter.default for name, parameter in inspect.signature(picture).parameters.items()}

    def draw(**values: float) -> None:
        _, ax = plt.subplots(figsize=(4.2, 2.8))
        picture(ax, **values)
        plt.show()

    options = {"continuous_update": False, "readout_format": ".3g"}
    sliders = {
        name: ipywidgets.FloatSlider(value=defaults[name], min=low, max=high, step=step, **options)
        for name, (low, high, step) in ranges.items()
    }
    return ipywidgets.interactive(draw, **sliders)


def animate(
    picture: Callable[..., None], frames: Sequence[dict[str, Any]], name: str, folder: str | Path | None, seconds: float = 4.0
) -> str:
    """Make a GIF of a picture whose arguments change from frame to frame.

    Args:
        picture: One of this module.
        frames: Arguments of each frame.
        name: File name without suffix.
        folder: Where to write it; None or empty: nowhere.
        seconds: How long it lasts.

    Returns:
        An HTML element that holds the GIF, for ``IPython.display.HTML``; it is shown alike in JupyterLab and on pages.

    Raises:
        RunFileError: The folder cannot be written to.
    """
    fig, ax = plt.subplots(figsize=(3.6, 2.6), layout="constrained")
    images = []
    for values in frames:
        ax.clear()
        picture(ax, **values)
        buffer = io.BytesIO()
        fig.savefig(buffer, format="png", dpi=100)
        images.append(Image.open(buffer).convert("P", palette=Image.Palette.ADAPTIVE))
    plt.close(fig)
    result = io.BytesIO()
    duration = round(1000 * seconds / len(frames))
    images[0].save(result, format="gif", save_all=True, append_images=images[1:], duration=duration, loop=0)
    if folder:
        with atomic(Path(folder) / f"{name}.gif") as temporary:
            temporary.write_bytes(result.getvalue())
    shown = (picture.__doc__ or name).split("\n", 1)[0]
    return f'<img alt="Animation: {html.escape(shown)}" src="data:image/gif;base64,{base64.b64encode(result.getvalue()).decode()}">'
