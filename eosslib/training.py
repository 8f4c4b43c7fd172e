"""The step loop: when to step, when to measure, when to write a checkpoint.

Runs that differ only in their seed are stacked and stepped together. All random numbers are functions of seed and step
(``streams``), and every operation treats the runs of a stack separately, so a run's numbers depend neither on the runs beside
it nor on having been interrupted; on a GPU only as far as its libraries choose their kernels alike for other stacks.
"""

from __future__ import annotations

import logging
import math
import time
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass, field, replace

import torch

from eosslib import datasets, dynamics, losses, models, predicted, updates
from eosslib.curvature import Point, chunks
from eosslib.devices import float32_products, keep_freed_memory, kept_memory
from eosslib.eigen import padded
from eosslib.errors import ConfigError
from eosslib.measure import record, sharpness
from eosslib.measure.loss import LOSS
from eosslib.measure.moment import Columns, Moment
from eosslib.measure.windows import Window
from eosslib.objective import Objective
from eosslib.settings import RunConfig
from eosslib.stepping import Stepper
from eosslib.streams import generator

log = logging.getLogger(__name__)

DIVERGED = 1e3  # a run whose loss exceeds this many times its initial loss has diverged
REFRESH_TOL = 1e-2  # relative residual at which a refresh of u stops
# Eigenvectors tracked at least where u is used: noise along u makes λ₁ and λ₂ cross, and a solver that starts from u alone stays.
TRACKED = 3

Row = dict[str, float]


@dataclass
class State:
    """Everything a training needs to go on, as of the last measurement."""

    step: int
    seeds: list[int]  # of the runs still alive, in the order of the stack
    theta: torch.Tensor  # (R, P)
    kept: torch.Tensor  # (R, K, P) what the optimizer keeps
    vectors: torch.Tensor  # (R, s, P) top eigenvectors of the last measurement, then those that may overtake them, then zeros
    probe: torch.Tensor  # (R, P) random vectors in which an overlooked eigenvalue would show, as the last measurement left them
    rows: dict[int, list[Row]]  # by seed
    diverged_at: dict[int, int] = field(default_factory=dict)
    seconds: float = 0.0

    def copy(self) -> State:
        """Copy what changes in place."""
        rows, diverged_at = {seed: list(rows) for seed, rows in self.rows.items()}, dict(self.diverged_at)
        theta, kept = self.theta.clone(), self.kept.clone()
        return replace(self, seeds=list(self.seeds), theta=theta, kept=kept, rows=rows, diverged_at=diverged_at)

    def of(self, alive: list[bool]) -> State:
        """Return the state without the runs that are no longer alive."""
        index = [i for i, a in enumerate(alive) if a]
        theta, kept, vectors, probe = (t[index] for t in (self.theta, self.kept, self.vectors, self.probe))
        return replace(self, seeds=[self.seeds[i] for i in index], theta=theta, kept=kept, vectors=vectors, probe=probe)


class Trainer:
    """Trains the runs of one group, stacked."""

    def __init__(
        self,
        configs: Sequence[RunConfig],
        device: torch.device | str = "cpu",
        *,
        data: datasets.Dataset | None = None,
        memory: int | None = None,
    ) -> None:
        """Load the data and build the networks.

        Args:
            configs: Configurations that differ only in the seed.
            device: Where to train.
            data: The data set, where it is already loaded, with ``train_size`` training examples.
            memory: Bytes that kept passes may hold, by default ``devices.kept_memory``.

        Raises:
            ValueError: The configurations differ in more than the seed.
            DataError: The data set is missing or corrupt, or has too few examples.
            ConfigError: The data has another number of training examples than ``train_size``, the network cannot be built for
                it, a setting asks for more directions than there are parameters, or batch normalisation needs more memory.
        """
        keep_freed_memory()
        self.config = config = configs[0]
        if any({**c.to_dict(), "seed": 0} != {**config.to_dict(), "seed": 0} for c in configs):
            raise ValueError("stacked runs may differ only in their seed")
        self.device = torch.device(device)
        self.memory = kept_memory(self.device, memory)
        dtype = getattr(torch, config.dtype)
        self.data = data = data or datasets.load(config.dataset, config.train_size, device=self.device, dtype=dtype)
        if data.n != config.train_size:
            raise ConfigError(f"train_size is {config.train_size}, but the data set that is given has {data.n} training examples")
        self.x, self.y = data.x.unsqueeze(0), data.y.unsqueeze(0)
        kinds = {"width": config.width, "depth": config.depth, "hidden": config.hidden}
        networks = [
            models.initialised(config.model, data.shape, data.y.shape[1], seed=c.seed, scale=config.init_scale, **kinds)
            for c in configs
        ]
        self.objective = Objective.of(networks[0], losses.by_name(config.loss))
        self._window: Window | None = None  # the one that is being averaged
        vectors = [torch.nn.utils.parameters_to_vector(n.parameters()).detach() for n in networks]
        self.state = self._beginning(torch.stack(vectors).to(device=self.device, dtype=dtype), [c.seed for c in configs])
        size = self.objective.network.size
        used = dynamics.directions(config.noise, config.noise_directions)
        self.tracked = max(config.eig_k, min(max(TRACKED, used), size)) if used else config.eig_k
        for key in ("eig_k", "window_k", "noise_directions"):
            if getattr(config, key) > size:
                raise ConfigError(f"{key} {getattr(config, key)} is above the {size} parameters of the network")
        self.parts = chunks(self.objective, self.objective.network.views(self.state.theta), self.x, self.memory)

    def _beginning(self, theta: torch.Tensor, seeds: list[int]) -> State:
        """Return the state before the first measurement, whose eigen-solve starts from nothing but its probe."""
        # Drawn on the CPU, the same on every device.
        drawn = [torch.randn(theta.shape[1], generator=generator("eigen", seed), dtype=theta.dtype) for seed in seeds]
        probe, nothing = torch.stack(drawn).to(self.device), theta.new_zeros(len(seeds), 0, theta.shape[1])
        kept = theta.new_zeros(len(seeds), updates.buffers(self.config), theta.shape[1])
        return State(-1, seeds, theta, kept, nothing, probe, {seed: [] for seed in seeds})

    @property
    def state(self) -> State:
        """Where the training stands. Another one may be put in its place."""
        return self._state

    @state.setter
    def state(self, state: State) -> None:
        self._state = state
        self._stepper: Stepper | None = None  # the last one holds the parameters of the old state

    def point(self, members: slice | list[int] = slice(None)) -> Point:
        """Return some networks of the stack, all by default, before the training set; later steps change a slice's parameters."""
        return Point(self.objective, self.state.theta[members], self.x, self.y, self.memory)

    @float32_products()
    def run(self, at_measurement: Callable[[State], None] | None = None) -> State:
        """Train to the end, from wherever ``state`` is.

        Args:
            at_measurement: Called after every measurement that is not inside a window, with the state, which is whole and
                consistent then. It may raise to stop the training.

        Returns:
            The final state; ``state.rows[seed]`` holds a run's trajectory.
        """
        began = time.perf_counter() - self.state.seconds
        if self.state.step < 0:
            self.state.step = 0
            self.measure()
            self._notify(began, at_measurement)
        while self.state.step < self.config.steps and self.state.seeds:
            if self.state.step == self.config.steps - self.config.coupled_steps:
                self.couple()
            else:
                self.advance(min(self.state.step + self.config.measure_every, self.config.steps))
            self.measure()
            self._notify(began, at_measurement)
        return self.state

    def _notify(self, began: float, at_measurement: Callable[[State], None] | None) -> None:
        self.state.seconds = time.perf_counter() - began
        if at_measurement is not None and self._window is None:
            at_measurement(self.state)

    @float32_products()
    def advance(self, stop: int) -> None:
        """Make the steps up to ``stop``; settings change only where there is a measurement."""
        state, vectors = self.state, self.state.vectors[:, : self.tracked]
        stepper = self._stepper_of(state.step)
        uses_u = self.config.noise in dynamics.USES_U
        every = self.config.refresh_every if uses_u else self.config.measure_every
        while state.step < stop:
            if self.config.in_window(state.step):
                self._window = self._window or Window(state.theta, self.config.window)
                self._window.add(state.theta)
            until = min(stop, (state.step // every + 1) * every, self._next_window(state.step))
            stepper.advance(state.step, until, vectors)
            state.step = until
            if until < stop and uses_u and until % every == 0:
                vectors = self.refresh(vectors)

    @float32_products()
    def couple(self) -> None:
        """Make the last steps one by one beside the predicted dynamics, and append a row a step."""
        state, config = self.state, self.config
        batches: Iterable[torch.Tensor | None] = [None] * config.coupled_steps
        if not config.full_batch:
            batches = self._stepper_of(state.step).draw(state.step, config.steps).unbind()
        for coupled in predicted.couple(self.point(), state.vectors[:, 0], config.lr, batches):
            columns = {name: column.tolist() for name, column in vars(coupled).items()}
            for place, seed in enumerate(state.seeds):
                row = {name: column[place] for name, column in columns.items()}
                if state.rows[seed][-1]["step"] == state.step:
                    state.rows[seed][-1] |= row
                else:
                    state.rows[seed].append({"step": state.step, **row})
            self.advance(state.step + 1)

    def _next_window(self, step: int) -> int:
        """Return the first step after this one whose iterate may belong to a window."""
        config = self.config
        if not config.window or config.in_window(step):
            return step + 1 if config.window else config.steps
        to_begin = (-config.window - step) % config.window_every
        return step + (to_begin or config.window_every)

    def _stepper_of(self, step: int) -> Stepper:
        """Return the stepper of this state; a new one where a scheduled setting has changed."""
        config = self.config.at(step)
        if self._stepper is None or self._stepper.config != config:
            self._stepper = Stepper(config, self.point(), self.parts, self.state.seeds, self.state.kept)
        return self._stepper

    @float32_products()
    def refresh(self, vectors: torch.Tensor) -> torch.Tensor:
        """Return the top eigenvectors of the current Hessian, starting from older ones: (R, k, P)."""
        theta = self.state.theta
        alive = torch.isfinite(theta).all(1)  # a diverged run is found and stopped at the next measurement
        if not bool(alive.any()):
            return vectors
        pairs = sharpness.sharpness(self.point().at(theta[alive]), vectors[alive], k=vectors.shape[1], tol=REFRESH_TOL)
        finite = torch.isfinite(pairs.vectors).flatten(1).all(1)[:, None, None]
        fresh = vectors.clone()
        fresh[alive] = torch.where(finite, pairs.vectors, vectors[alive])
        return fresh

    @float32_products()
    def measure(self) -> None:
        """Append a row to every run's trajectory, and take diverged runs out of the stack."""
        state = self.state
        window = self._window if state.step % max(self.config.window_every, 1) == 0 else None
        alive, starts, probes = [False] * len(state.seeds), list[torch.Tensor](), list[torch.Tensor]()
        for seed in state.seeds:
            state.rows[seed].append({"step": state.step})
        for rows in sharpness.solved_together(state.theta):
            block = list(range(len(state.seeds)))[rows]
            moment = self._moment(block, window)
            self._write(block, record.measured(moment, [LOSS]))
            healthy = [i for i in block if self._healthy(state.seeds[i])]
            if healthy:
                moment = moment if healthy == block else self._moment(healthy, window)
                self._write(healthy, record.measured(moment, [row for row in record.MEASUREMENTS if row is not LOSS]))
                finite = torch.isfinite(moment.pairs.values[:, 0]).tolist()
                for i, ok in zip(healthy, finite, strict=True):
                    alive[i] = ok
                starts += moment.pairs.starts[finite]
                probes += moment.pairs.probe[finite]
        if window is not None:
            self._window = None
        self._drop(alive)
        if self.state.seeds:
            self.state.vectors, self.state.probe = padded(starts), torch.stack(probes)

    def _moment(self, members: list[int], window: Window | None) -> Moment:
        state, config, point = self.state, self.config, self.point(members)
        scale = None
        if config.optimizer == "adam" and state.step:
            scale = updates.adam_scale(state.kept[members, 1], state.step, config.momentum, config.beta2)
        return Moment(
            state.step,
            config.at(state.step),
            [state.seeds[i] for i in members],
            point,
            state.vectors[members],
            state.probe[members],
            self.tracked,
            test=replace(point, x=self.data.x_test.unsqueeze(0), y=self.data.y_test.unsqueeze(0)),
            scale=scale,
            window=None if window is None else window.of(members),
        )

    def _write(self, members: list[int], columns: Columns) -> None:
        """Put what was measured into the last rows of some runs."""
        values = {name: column.tolist() for name, column in columns.items()}
        for place, i in enumerate(members):
            self.state.rows[self.state.seeds[i]][-1] |= {name: column[place] for name, column in values.items()}

    def _healthy(self, seed: int) -> bool:
        rows = self.state.rows[seed]
        return math.isfinite(rows[-1]["loss"]) and rows[-1]["loss"] <= DIVERGED * max(rows[0]["loss"], 1e-12)

    def _drop(self, alive: list[bool]) -> None:
        state = self.state
        for seed, ok in zip(state.seeds, alive, strict=True):
            if not ok:
                state.diverged_at[seed] = state.step
                log.warning("seed %d diverged before step %d; it is stopped, what was measured is kept", seed, state.step)
        if not all(alive):
            if self._window is not None:
                self._window = self._window.of([i for i, ok in enumerate(alive) if ok])
            self.state = state.of(alive)
