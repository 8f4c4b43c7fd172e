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
from dataclasses import dataclass, field

import torch

from eosslib import datasets, dynamics, losses, measurements, models, predicted, updates, windows
from eosslib.curvature import Hessian, chunks
from eosslib.devices import float32_products, keep_freed_memory, kept_memory
from eosslib.eigen import padded
from eosslib.errors import ConfigError
from eosslib.flat import Objective
from eosslib.observing import Moment, Observer
from eosslib.settings import RunConfig
from eosslib.stepping import Stepper
from eosslib.streams import generator
from eosslib.theory import finite_population

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
        rows = {seed: list(rows) for seed, rows in self.rows.items()}
        return State(
            self.step,
            list(self.seeds),
            self.theta.clone(),
            self.kept.clone(),
            self.vectors,
            self.probe,
            rows,
            dict(self.diverged_at),
            self.seconds,
        )

    def keep(self, alive: list[bool]) -> None:
        """Take the runs that are no longer alive out of the stack."""
        index = [i for i, a in enumerate(alive) if a]
        self.seeds = [self.seeds[i] for i in index]
        self.theta, self.kept, self.vectors, self.probe = (t[index] for t in (self.theta, self.kept, self.vectors, self.probe))


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
        data = data or datasets.load(config.dataset, config.train_size, device=self.device, dtype=dtype)
        if data.n != config.train_size:
            raise ConfigError(f"train_size is {config.train_size}, but the data set that is given has {data.n} training examples")
        self.x, self.y = data.x.unsqueeze(0), data.y.unsqueeze(0)
        kinds = {"width": config.width, "depth": config.depth, "hidden": config.hidden}
        networks = [
            models.initialised(config.model, data.shape, data.y.shape[1], seed=c.seed, scale=config.init_scale, **kinds)
            for c in configs
        ]
        self.objective = Objective.of(networks[0], losses.by_name(config.loss))
        vectors = [torch.nn.utils.parameters_to_vector(n.parameters()).detach() for n in networks]
        theta = torch.stack(vectors).to(device=self.device, dtype=dtype)
        # The probe of the first eigen-solve, which starts from nothing else. Drawn on the CPU, the same on every device.
        drawn = [torch.randn(theta.shape[1], generator=generator("eigen", c.seed), dtype=dtype) for c in configs]
        probe, nothing = torch.stack(drawn).to(self.device), theta.new_zeros(len(configs), 0, theta.shape[1])
        kept = theta.new_zeros(len(configs), updates.buffers(config), theta.shape[1])
        self.state = State(-1, [c.seed for c in configs], theta, kept, nothing, probe, {c.seed: [] for c in configs})
        tracked, used = config.eig_k, dynamics.directions(config.noise, config.noise_directions)
        if used:
            tracked = max(tracked, min(max(TRACKED, used), theta.shape[1]))
        self.observer = Observer(config, self.objective, data, tracked, self.memory)
        for key in ("eig_k", "window_k", "noise_directions"):
            if getattr(config, key) > theta.shape[1]:
                raise ConfigError(f"{key} {getattr(config, key)} is above the {theta.shape[1]} parameters of the network")
        self._stepper: Stepper | None = None
        self._window: windows.Window | None = None  # the one that is being averaged
        self.parts = chunks(self.objective, self.objective.network.views(theta), self.x, self.memory)

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
        state, vectors = self.state, self.state.vectors[:, : self.observer.tracked]
        stepper = self._stepper_of(state)
        uses_u = self.config.noise in dynamics.USES_U
        every = self.config.refresh_every if uses_u else self.config.measure_every
        while state.step < stop:
            if self.config.in_window(state.step):
                self._window = self._window or windows.Window(state.theta, self.config.window)
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
            batches = self._stepper_of(state).draw(state.step, config.steps).unbind()
        start = (self.objective, self.x, self.y, state.theta, state.vectors[:, 0], config.lr)
        for coupled in predicted.couple(*start, batches, self.memory):
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

    def _stepper_of(self, state: State) -> Stepper:
        """Return the stepper that holds these parameters; a new one where the stack or a scheduled setting has changed."""
        config = self.config.at(state.step)
        if self._stepper is None or self._stepper.theta is not state.theta or self._stepper.config != config:
            factor = finite_population(self.x.shape[1], config.batch_size, config.sampling)
            where = (self.objective, self.x, self.y, self.parts)
            self._stepper = Stepper(config, *where, factor, state.seeds, state.theta, state.kept)
        return self._stepper

    @float32_products()
    def refresh(self, vectors: torch.Tensor) -> torch.Tensor:
        """Return the top eigenvectors of the current Hessian, starting from older ones: (R, k, P)."""
        theta = self.state.theta
        alive = torch.isfinite(theta).all(1)  # a diverged run is found and stopped at the next measurement
        if not bool(alive.any()):
            return vectors
        pairs = measurements.sharpness(
            self.objective, theta[alive], self.x, self.y, vectors[alive], k=vectors.shape[1], tol=REFRESH_TOL, memory=self.memory
        )
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
        for rows in measurements.solved_together(state.theta):
            block = list(range(len(state.seeds)))[rows]
            # One pass over the data serves loss, accuracy, sharpness and noise variance.
            moment = self._moment(block)
            for i, loss, accuracy in zip(block, moment.hessian.loss.tolist(), moment.hessian.accuracy.tolist(), strict=True):
                state.rows[state.seeds[i]].append({"step": state.step, "loss": loss, "accuracy": accuracy})
            healthy = [i for i in block if self._healthy(state.seeds[i])]
            if healthy:
                moment = moment if healthy == block else self._moment(healthy)
                pairs, columns = self.observer.observe(moment, window, healthy)
                values = {key: column.tolist() for key, column in columns.items()}
                for place, i in enumerate(healthy):
                    state.rows[state.seeds[i]][-1] |= {key: column[place] for key, column in values.items()}
                    alive[i] = math.isfinite(values["sharpness"][place])
                starts += pairs.starts[[alive[i] for i in healthy]]
                probes += pairs.probe[[alive[i] for i in healthy]]
        if window is not None:
            self._window = None
        self._drop(alive)
        if state.seeds:
            state.vectors, state.probe = padded(starts), torch.stack(probes)

    def _moment(self, members: list[int]) -> Moment:
        state = self.state
        hessian = Hessian(self.objective, state.theta[members], self.x, self.y, self.memory)
        scale, config = None, self.config
        if config.optimizer == "adam" and state.step:
            scale = updates.adam_scale(state.kept[members, 1], state.step, config.momentum, config.beta2)
        seeds = [state.seeds[i] for i in members]
        where = (state.theta[members], state.vectors[members], state.probe[members])
        return Moment(state.step, seeds, *where, hessian, scale)

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
                self._window.keep([i for i, ok in enumerate(alive) if ok])
            state.keep(alive)
