"""The companion's instruments on your own network: any ``torch.nn.Module``, loss, data set and optimizer.

The measurements are those of the pipeline, from the same list (``measure.record``); what is added here is the way to them:
parameters are read from the module, examples are fetched by index while they are needed (``examples``), and afterwards everything
is as it was before.
"""

from __future__ import annotations

import contextlib
import random
from collections.abc import Callable, Iterator
from types import SimpleNamespace
from typing import TYPE_CHECKING, Any, cast

import numpy as np
import torch
from torch import nn
from torch.nn.attention import SDPBackend, sdpa_kernel

from eosslib import optimizers, theory
from eosslib.curvature import Point
from eosslib.devices import float32_products, kept_memory
from eosslib.eigen import Eigenpairs
from eosslib.errors import ConfigError
from eosslib.examples import Data, Examples, FetchingNetwork, LossFunction, check_loss, loss_of
from eosslib.measure import record
from eosslib.measure.moment import Moment
from eosslib.measure.windows import Window
from eosslib.objective import Objective
from eosslib.settings import RunConfig, defaults
from eosslib.streams import generator

if TYPE_CHECKING:
    import pandas as pd
    from matplotlib.axes import Axes

# Of the columns of run files a tracker's rows have not those that begin so, and some under other names.
LEFT_OUT = (
    "accuracy",
    "sharpness_products",
    "batch_sharpness_mean_of_ratios",
    "batch_sharpness_draws",
    "minibatch_sharpness_draws",
    "raw_alpha",
    "window_",
)
NAMES = {"window_alpha": "alpha", "window_beta": "beta", "window_displacement_1": "displacement"}


class SharpnessTracker:
    """Measures where a training stands with respect to the edge of stability, and leaves the training as it is.

    Example:
        >>> x, y = torch.randn(40, 3), torch.randn(40, 1)
        >>> model = nn.Linear(3, 1)
        >>> optimizer = torch.optim.SGD(model.parameters(), lr=0.1)
        >>> tracker = SharpnessTracker(model, nn.MSELoss(), (x, y), optimizer, batch_size=8)
        >>> row = tracker.measure(0)
        >>> row["threshold"]
        20.0
        >>> bool(row["minibatch_sharpness"] > row["sharpness"])
        True
    """

    def __init__(
        self,
        model: nn.Module,
        loss: LossFunction,
        data: Data,
        optimizer: torch.optim.Optimizer,
        *,
        batch_size: int | None = None,
        draws: int = 40,
        minibs: bool = True,
        window: int = 0,
        target: str = "labels",
        seed: int = 0,
        tol: float = 1e-3,
        memory: int | None = None,
        callback: Callable[[int, dict[str, float]], None] | None = None,
    ) -> None:
        """Take hold of a training.

        Args:
            model: The network; parameters that do not require a gradient are left out.
            loss: Of outputs and targets, the *mean* over the batch, as ``nn.CrossEntropyLoss()``.
            data: Tensors ``(inputs, …, targets)``, a map-style data set, or a ``DataLoader``; the full batch is all of it. σ_u²
                and the draws are those of the loader: without replacement, unless its ``RandomSampler`` draws with it.
            optimizer: What trains the model: ``SGD`` or ``Adam``; step size and state are read at every measurement.
            batch_size: b; default: the loader's, where the data is one. All of the data: full batch, nothing is sampled.
            draws: Mini-batches drawn for batch sharpness and MiniBS, two at least.
            minibs: Whether to measure MiniBS, the dearest of the measurements.
            window: Steps over which iterates are averaged for α, β and the predicted gap. Call ``after_step`` after every step;
                a row has them where it is measured just when a window is full: after ``window`` steps, twice as many, …
            target: Key of the targets where a batch is a dictionary.
            seed: Of the measurements' own random streams.
            tol: Relative residual of the eigenvalues.
            memory: Bytes that kept passes may hold, whatever the size of the data; default 4 GiB, on a GPU a third of its own.
            callback: Called with the step and the new row after every measurement, to feed a logger.

        Raises:
            ConfigError: Something cannot be measured as it is; the message says what to do.
        """
        self.model, self.optimizer, self.draws, self.minibs, self.seed = model, optimizer, draws, minibs, seed
        self.tol, self.callback = tol, callback
        self.parameters = _trained(model)
        device = self.parameters[0].device
        self.memory = kept_memory(device, memory)
        self.examples = Examples(data, target, device)
        self.n = self.examples.count
        size = (self.examples.batch_size or self.n) if batch_size is None else batch_size
        with_replacement = self.examples.sampling == "iid"
        if size < 1 or (size > self.n and not with_replacement):
            raise ConfigError(f"batch_size {size} is not between 1 and the {self.n} examples")
        if draws < 2 and (size < self.n or with_replacement):
            raise ConfigError(f"draws {draws}: a standard error needs two at least")
        self.batch_size = size
        self._loss = loss_of(loss, self.examples)
        self._indices = torch.arange(self.n, device=device).unsqueeze(0)
        optimizers.edge(optimizer, self.parameters)
        with self._undisturbed(), torch.no_grad():
            self.examples.check()
            check_loss(loss, self._loss, FetchingNetwork(model, self.examples))
        self._last: Eigenpairs | None = None  # what the last measurement found, where the next one starts
        self._size, self._window = window, None if not window else Window(self._theta(), window)
        self._rows: list[dict[str, float]] = []
        self._display: Any = None

    def measure(self, step: int) -> dict[str, float]:
        """Measure now.

        Args:
            step: What to call this moment in the table.

        Returns:
            ``step``, ``loss``, ``threshold``, ``sharpness`` with ``sharpness_residual`` and ``sharpness_miss``, the probability
            that a larger eigenvalue was overlooked (``probing``); with Adam, from its first step on,
            ``preconditioned_sharpness`` (that one is to be held against the threshold); ``noise_variance`` σ_u²;
            ``batch_sharpness``, ``minibatch_sharpness`` and ``minibs_gap`` with their standard errors ``_se``; where a window is
            full ``alpha``, ``beta``, ``displacement`` E[x²] and, with plain or heavy-ball SGD, ``predicted_gap``. With batch
            normalisation neither σ_u² nor what comes of windows is defined, and both are left out. Also the next row of ``frame``.

        Raises:
            ConfigError: Something cannot be measured as it is; the message says what to do.
        """
        with self._undisturbed():
            edge = optimizers.edge(self.optimizer, self.parameters)
            moment = self._moment(step, edge)
            found = record.measured(moment, [row for row in record.MEASUREMENTS if any(map(_shown, row.columns))])
            self._last = moment.pairs
        values = {name: float(column) for name, column in found.items()}
        if moment.point.objective.network.couples_examples:
            del values["noise_variance"]  # no number
        row = {"step": float(step), "loss": values["loss"], "threshold": edge.threshold}
        row |= {shown: value for name, value in values.items() if (shown := _shown(name))}
        if "window_alpha" in values and edge.momentum is not None:
            alpha, beta, noise = (values[f"window_{name}"] for name in ("alpha", "beta", "noise_1"))
            row["predicted_gap"] = theory.predicted_gap(edge.lr, alpha, beta, noise, edge.momentum)
        self._rows.append(row)
        if self.callback is not None:
            self.callback(step, dict(row))
        self._refresh()
        return row

    def after_step(self) -> None:
        """Let the iterate after an optimizer step enter the window; needed only where ``window`` was given.

        Raises:
            ConfigError: It was not.
        """
        if self._window is None:
            raise ConfigError("give window= to average iterates")
        if self._window.count == self._size:
            self._window = Window(self._theta(), self._size)
        self._window.add(self._theta())

    @property
    def frame(self) -> pd.DataFrame:
        """All measurements, a row each."""
        import pandas as pd

        return pd.DataFrame(self._rows)

    def plot(self, ax: Axes | None = None) -> Axes:
        """Draw what was measured against the threshold, in the house style.

        Raises:
            ConfigError: Nothing was measured yet.
        """
        from eosslib import panels

        if not self._rows:
            raise ConfigError("nothing was measured yet: call measure first")
        return panels.tracked(self.frame, ax)

    def live(self) -> None:
        """Show the plot below this notebook cell and draw it anew, in place, at every measurement."""
        from IPython.display import display

        self._display = display(display_id=True)
        self._refresh()

    def _refresh(self) -> None:
        if self._display is not None and self._rows:
            import matplotlib.pyplot as plt

            figure = self.plot().figure
            self._display.update(figure)
            plt.close(figure)  # type: ignore[arg-type]

    def _theta(self) -> torch.Tensor:
        return torch.cat([p.detach().flatten() for p in self.parameters]).unsqueeze(0)

    def _moment(self, step: int, edge: optimizers.Edge) -> Moment:
        """Return what there is to measure now."""
        point = Point(self._objective(), self._theta(), self._indices, self._indices, self.memory)
        asked = {"batch_size": self.batch_size, "sampling": self.examples.sampling, "eig_tol": self.tol}
        draws = max(self.draws, 2)  # of the full batch one is taken
        asked |= {"batch_sharpness_draws": draws, "minibs_draws": draws if self.minibs else 0}
        first = point.theta.new_zeros(1, 0, point.theta.shape[1]), _normal(point.theta, self.seed, step)
        return _Moment(
            step,
            cast(RunConfig, SimpleNamespace(**defaults() | asked)),
            [self.seed],
            point,
            *(first if self._last is None else (self._last.starts, self._last.probe)),
            scale=None if edge.scale is None else torch.cat([part.flatten() for part in edge.scale]).unsqueeze(0),
            decay=edge.decay,
            window=self._window if self._window is not None and self._window.count == self._size else None,
        )

    def _objective(self) -> Objective:
        """Return the objective in the mode that the model is in now."""
        trained = [p for p in self.model.parameters() if p.requires_grad]
        if list(map(id, trained)) != list(map(id, self.parameters)):
            raise ConfigError("parameters were frozen or unfrozen since this tracker was made: make a new one")
        network = FetchingNetwork(self.model, self.examples)
        network.check(self.batch_size)
        return Objective(network, self._loss)

    @contextlib.contextmanager
    def _undisturbed(self) -> Iterator[None]:
        """Compute in float32 where the model does, differentiably throughout, and leave all random streams as they are."""
        device = self.parameters[0].device
        of_python, of_numpy = random.getstate(), np.random.get_state()  # noqa: NPY002 a data set may draw from them
        try:
            with (
                float32_products(),
                sdpa_kernel(SDPBackend.MATH),  # the other kernels of attention have no second derivative
                torch.random.fork_rng(devices=[device] if device.type == "cuda" else []),
            ):
                yield
        finally:
            random.setstate(of_python)
            np.random.set_state(of_numpy)  # noqa: NPY002


class _Moment(Moment):
    """A moment of a training that is not ours: measured whenever it is asked for, from streams of the tracker's own."""

    samples_due = True
    checks = False

    def random(self, name: str) -> torch.Tensor:
        """Draw a vector (1, P)."""
        return _normal(self.point.theta, self.seeds[0], 0 if name == "preconditioned" else self.step)


def _normal(theta: torch.Tensor, seed: int, place: int) -> torch.Tensor:
    drawn = torch.randn(theta.shape, generator=generator("tracker", seed, place), dtype=theta.dtype)
    return drawn.to(theta.device)


def _shown(column: str) -> str | None:
    """Return the name in a tracker's row of a column of run files; None where it is left out."""
    return NAMES.get(column, None if column.startswith(LEFT_OUT) else column)


def _trained(model: nn.Module) -> list[nn.Parameter]:
    """Return the parameters that require a gradient: on one device, of one precision."""
    parameters = [p for p in model.parameters() if p.requires_grad]
    if not parameters:
        raise ConfigError("the model has no parameters that require a gradient")
    if len({p.device for p in parameters}) > 1:
        raise ConfigError("the model lies on several devices: put it on one to measure it")
    kinds = {p.dtype for p in parameters}
    if len(kinds) > 1 or not kinds <= {torch.float32, torch.float64}:
        names = ", ".join(sorted(map(str, kinds)))
        raise ConfigError(f"the model's parameters are {names}: measure it in torch.float32 or torch.float64 throughout")
    return parameters
