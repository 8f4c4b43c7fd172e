"""How long a training still takes, about: what it consists of in full-batch gradients, and what one of these takes here.

The unit rests on the first there is of three: the training's own pace so far, finished runs of the same network, a timed
gradient. Runs of the past tell of the machine and the load they had, so all of this is a guide, not a promise.
"""

from __future__ import annotations

import itertools
import time
from dataclasses import dataclass, replace
from functools import cache
from pathlib import Path
from typing import Any

import torch

from eosslib import datasets, runs
from eosslib.config import Preset
from eosslib.devices import processor
from eosslib.errors import EosslibError, RunFileError
from eosslib.settings import RunConfig
from eosslib.training import State, Trainer

# Full-batch gradients, rounded, from benchmarks/RESULTS.md and the committed runs' times.
MEASUREMENT = 16.0  # ten products of 1.5 and a pass to keep
CHECK = 25.0  # the last measurement's second solve, from a random vector
OVERHEAD = 50  # examples that reading and writing the parameters of a fully connected network takes as long as
DRAWN = 2.5  # batch sharpness of one mini-batch, in gradients of it
SOLVED = 15.0  # MiniBS of one mini-batch, in gradients of it
LOTS_SD = 0.05  # relative standard error of one lot of draws: how many lots a precision asks for
OVERLAP = 14.0  # of one draw
NOISY, NOISY_U = 1.5, 3.0  # of a step with a noise model, without and with eigenvectors
WINDOW = 30.0  # of a window, for each of its eigenpairs
COUPLED = 25.0  # of a coupled step
TIMED = 250  # examples of the timed gradient


@dataclass(frozen=True)
class Estimate:
    """Seconds that a training still takes; None where nothing is known."""

    seconds: float | None
    basis: str  # what the seconds rest on

    def __str__(self) -> str:
        return f"{spoken(self.seconds)} ({self.basis})"


def spoken(seconds: float | None) -> str:
    """Say a duration in words.

    >>> spoken(11500), spoken(700), spoken(2), spoken(None)
    ('about 3.2 h', 'about 12 min', 'less than a minute', 'nobody knows how long')
    """
    if seconds is None:
        return "nobody knows how long"
    if seconds < 60:
        return "less than a minute"
    if seconds < 3600:
        return f"about {seconds / 60:.0f} min"
    return f"about {seconds / 3600:.1f} h" if seconds < 36000 else f"about {seconds / 3600:.0f} h"


def cost(config: RunConfig, until: int | None = None) -> float:
    """Return what a run costs from its start to a step, in full-batch gradients; to its end by default."""
    until = config.steps if until is None else until
    bounds = [0, *(change.step for change in config.schedule if change.step < until), until]
    stepping = sum((end - begin) * _step(config.at(begin)) for begin, end in itertools.pairwise(bounds))
    total = stepping + (1 + until // config.measure_every) * MEASUREMENT + (CHECK if until == config.steps else 0)
    if config.sample_every:
        total += (1 + until // config.sample_every) * _sample(config)
    if config.static_sizes:
        once = sum(config.minibs_draws * SOLVED * _share(config, size) for size in config.static_sizes)
        total += once * (2 if until == config.steps else 1)
    if config.window:
        ended = until // config.window_every - (config.window_from + config.window - 1) // config.window_every
        total += max(ended, 0) * WINDOW * config.window_k
    coupled = max(until - (config.steps - config.coupled_steps), 0)
    return total + coupled * (COUPLED + MEASUREMENT)


def _share(config: RunConfig, size: int) -> float:
    """Return what a gradient of a mini-batch costs."""
    overhead = OVERHEAD if config.model.startswith("fc-") else 0
    return (size + overhead) / (config.train_size + overhead)


def _step(config: RunConfig) -> float:
    if config.noise == "sgd":
        return _share(config, config.batch_size)
    return NOISY_U if config.noise.endswith(("_u", "_top")) else NOISY


def _sample(config: RunConfig) -> float:
    share, lots = _share(config, config.batch_size), 1.0
    if config.sample_precision:
        lots = min(max((LOTS_SD / config.sample_precision) ** 2, 1.0), 100.0)
    drawn = config.batch_sharpness_draws * DRAWN + config.minibs_draws * SOLVED
    return drawn * share * lots + config.overlap_draws * OVERLAP


@dataclass(frozen=True)
class Machine:
    """Where is trained, and what is there already."""

    device: str  # cpu, cuda, cuda:1, …
    data_folder: Path | None
    finished: tuple[Path, ...]  # folders of the preset's finished runs


def estimate(config: RunConfig, entry: str, preset: Preset, state: State | None, machine: Machine) -> Estimate:
    """Say how long one run still takes.

    Args:
        config: The run.
        entry: Its entry, whose other runs tell more than those of others.
        preset: Its preset, whose other runs tell how fast its network is.
        state: What its checkpoint holds, if there is one.
        machine: Where it will be trained.
    """
    done = cost(config, state.step) if state is not None else 0.0
    left = cost(config) - done
    if state is not None and state.step > 0 and state.seconds > 0:
        return Estimate(state.seconds * left / done, "at its own pace so far")
    finished = _finished(config, entry, preset, machine)
    if finished:
        unit, basis = _between(finished, config.batch_size)
        return Estimate(unit * left, basis)
    small = _small(config)
    step = _timed(small, machine.device, machine.data_folder)
    if step is None:
        return Estimate(None, "no run of this network yet, and no data to time it with")
    return Estimate(step * config.train_size / small.train_size * left, "by a timed gradient")


@dataclass(frozen=True)
class _Pace:
    batch_size: int
    unit: float  # seconds of a full-batch gradient
    name: str


def _network(config: RunConfig) -> tuple[Any, ...]:
    return config.model, config.width, config.depth, config.hidden, config.dataset, config.train_size, config.dtype


def _finished(config: RunConfig, entry: str, preset: Preset, machine: Machine) -> list[_Pace]:
    """Find finished runs of the same network: those nearest in entry, then in noise, then in processor."""
    found = []
    for other in preset.groups.values():
        for run in other.runs if _network(other.runs[0]) == _network(config) else ():
            for folder in machine.finished:
                path = runs.run_path(folder, other, run)
                pace = _pace(path, path.stat().st_mtime_ns, other.name) if path.is_file() else None
                if pace is not None and pace[0] == machine.device.startswith("cuda"):
                    found.append((other.entry == entry, run.noise == config.noise, pace[1] == processor(), pace[2]))
    best = max((kinship[:-1] for kinship in found), default=None)
    return [pace for *kinship, pace in found if tuple(kinship) == best]


@cache
def _pace(path: Path, changed: int, name: str) -> tuple[bool, str, _Pace] | None:
    """Return whether a run was trained on a GPU, its processor and its pace; ``changed`` is for the cache alone."""
    try:
        config, origin, _ = runs.read(path)
        seconds = float(origin["wall_seconds"]) / int(origin.get("stacked_runs") or 1)
        on_gpu, whose = not str(origin["device"]).startswith("CPU"), str(origin.get("processor"))
    except (RunFileError, KeyError, TypeError, ValueError):
        return None
    end = origin.get("diverged_at")
    return on_gpu, whose, _Pace(config.batch_size, seconds / cost(config, end), name)


def _between(paces: list[_Pace], size: int) -> tuple[float, str]:
    """Return the unit at a batch size, linear between those of the nearest sizes below and above, and their names."""
    below = [pace for pace in paces if pace.batch_size <= size]
    above = [pace for pace in paces if pace.batch_size >= size]
    lower = max((pace.batch_size for pace in below), default=None)
    upper = min((pace.batch_size for pace in above), default=None)
    sizes = sorted({s for s in (lower, upper) if s is not None})
    units, names = [], list[str]()
    for one in sizes:
        same = [pace for pace in paces if pace.batch_size == one]
        units.append(sum(pace.unit for pace in same) / len(same))
        names += dict.fromkeys(pace.name for pace in same)
    weight = (size - sizes[0]) / (sizes[-1] - sizes[0]) if len(sizes) > 1 else 0.0
    return units[0] + weight * (
        units[-1] - units[0]
    ), f"by the pace of {' and '.join(names[:2])}{' and others' if names[2:] else ''}"


def _small(config: RunConfig) -> RunConfig:
    """Return full-batch steps of the same network on few examples, without anything else."""
    few = min(config.train_size, TIMED)
    plain: dict[str, Any] = {
        "noise": "sgd",
        "noise_directions": 1,
        "schedule": (),
        "static_sizes": (),
        "window": 0,
        "coupled_steps": 0,
    }
    return replace(config, **plain, train_size=few, batch_size=few, sample_every=0, measure_every=1, steps=3, seed=0)


@cache
def _timed(config: RunConfig, device: str, data_folder: Path | None) -> float | None:
    """Return the seconds of a step of such a run; None without its data."""
    took = []
    try:
        data = datasets.load(
            config.dataset, config.train_size, device=device, dtype=getattr(torch, config.dtype), folder=data_folder
        )
        trainer = Trainer([config], device, data=data)
        trainer.state.step = 0
        for step in range(config.steps):  # the first one warms up
            began = time.perf_counter()
            trainer.advance(step + 1)
            trainer.state.theta[0, 0].item()  # a GPU is done only then
            took.append(time.perf_counter() - began)
    except EosslibError:
        return None
    return min(took)
