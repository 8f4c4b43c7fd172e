"""Train a group to files: skip what is there, go on from a checkpoint, show progress, write one file a run."""

from __future__ import annotations

import hashlib
import io
import logging
import pickle
import platform
import sys
import time
from collections.abc import Sequence
from dataclasses import dataclass
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import torch
from tqdm import tqdm

from eosslib import __version__, datasets, runs
from eosslib.config import Group
from eosslib.devices import choose_device, processor
from eosslib.errors import Interrupted, RunFileError
from eosslib.processes import locked
from eosslib.settings import RunConfig, defaults
from eosslib.training import State, Trainer

log = logging.getLogger(__name__)


# What a damaged or foreign checkpoint makes torch raise.
UNREADABLE = (OSError, RuntimeError, LookupError, TypeError, EOFError, ValueError, pickle.UnpicklingError)


@dataclass(frozen=True)
class Options:
    """How to train, as far as it does not change the numbers."""

    folder: Path  # of the preset's runs
    device: str = "cpu"  # as for ``devices.choose_device``
    data_folder: Path | None = None
    force: bool = False  # train again what is there
    checkpoint_seconds: float = 30.0
    memory: int | None = None  # bytes that kept passes may hold, by default ``devices.kept_memory``
    deadline: float | None = None  # time.monotonic() at which to write a checkpoint and stop


def checkpoint_path(folder: Path, group: Group) -> Path:
    """Return where the checkpoint of a group's runs lies; other seeds of it may be trained beside them."""
    seeds = "-".join(str(run.seed) for run in group.runs)
    return folder / ".checkpoints" / f"{group.name.replace('/', '__')}__seeds{seeds}.pt"


def lock_path(folder: Path, group: Group, config: RunConfig) -> Path:
    """Return the file that is locked while a run is trained, alone or in a stack."""
    return folder / ".checkpoints" / f"{group.name.replace('/', '__')}__seed{config.seed}.lock"


def train_group(group: Group, options: Options) -> list[Path]:
    """Train all runs of a group that are not there yet, stacked, and write one file each.

    Killed at any moment and called again, it goes on from its last checkpoint and ends bit-identical on the CPU.

    Returns:
        The files of all runs of the group.

    Raises:
        Interrupted: Stopped from outside or at the deadline; the checkpoint holds the last measurement.
        Busy: Another process trains one of the runs.
        RunFileError: A file cannot be written.
        DataError: The data set is missing or corrupt, or has too few examples.
        DeviceError: The device does not exist.
        ConfigError: The settings do not fit the data, the network or the memory.
    """
    paths = {config: runs.run_path(options.folder, group, config) for config in group.runs}

    def missing() -> list[RunConfig]:
        return [config for config in group.runs if options.force or not is_done(paths[config], config)]

    locks = {f"{group.name} seed {config.seed}": lock_path(options.folder, group, config) for config in missing()}
    with locked(locks):
        left = missing() if locks else []  # another process may have finished some before the locks were free
        if left:
            _train(group, left, options)
    return list(paths.values())


def is_done(path: Path, config: RunConfig) -> bool:
    """Whether this run is there, whole and with these settings; anything else is trained again."""
    try:
        runs.read(path, expect=config)
    except RunFileError:
        return False
    return True


def _train(group: Group, configs: list[RunConfig], options: Options) -> None:
    checkpoint = checkpoint_path(options.folder, group)
    device = choose_device(options.device)
    trainer = Trainer(configs, device, data=_data(configs[0], device, options.data_folder), memory=options.memory)
    slim = [] if options.force else _resume(trainer, configs, checkpoint)
    for config in configs:  # find out now, not after hours, that the folder cannot be written to
        runs.check_writable(runs.run_path(options.folder, group, config))
    last_save = time.monotonic()
    last: State | None = trainer.state.copy() if trainer.state.step >= 0 else None

    def at_measurement(state: State) -> None:
        nonlocal last_save, last
        last = state.copy()
        bar.update(state.step - bar.n)
        bar.set_postfix_str(_status(state, configs[0]))
        now = time.monotonic()
        late = options.deadline is not None and now >= options.deadline
        if late and state.step < configs[0].steps:
            raise KeyboardInterrupt
        if now - last_save >= options.checkpoint_seconds:
            save_checkpoint(checkpoint, configs, last, slim)
            last_save = now

    with tqdm(
        total=configs[0].steps, desc=group.name, unit="step", disable=not sys.stderr.isatty(), initial=max(trainer.state.step, 0)
    ) as bar:
        try:
            state = trainer.run(at_measurement)
        except KeyboardInterrupt:
            if last is None:
                raise Interrupted(f"{group.name}: stopped before the first measurement") from None
            save_checkpoint(checkpoint, configs, last, slim)
            # With --force it would begin anew, and without it finished runs are not touched.
            how = " without --force, once the old run files are deleted," if options.force else ""
            raise Interrupted(f"{group.name}: stopped at step {last.step}; run the same command{how} to go on from there") from None
    for config in configs:
        origin, rows = provenance(trainer, state, config, len(configs)), state.rows[config.seed]
        if slim:
            origin["slim_checkpoints"] = slim
        runs.write(config, origin, runs.table_of(rows), runs.run_path(options.folder, group, config))
        log.info("%s seed %d: %s", group.name, config.seed, summary(config, origin, rows))
    checkpoint.unlink(missing_ok=True)


def _data(config: RunConfig, device: torch.device, folder: Path | None) -> datasets.Dataset:
    return datasets.load(config.dataset, config.train_size, device=device, dtype=getattr(torch, config.dtype), folder=folder)


def _status(state: State, config: RunConfig) -> str:
    if not state.seeds:
        return "diverged"
    rows = [state.rows[seed][-1] for seed in state.seeds]
    return f"loss {sum(row['loss'] for row in rows) / len(rows):.2e}, {_standing(config, rows)}"


def _standing(config: RunConfig, rows: Sequence[dict[str, float]]) -> str:
    """Say how the mean sharpness of some rows stands to the threshold of their optimizer."""
    scaled = all("preconditioned_sharpness" in row for row in rows)
    key, name = ("preconditioned_sharpness", "preconditioned S") if scaled else ("sharpness", "S")
    edge = "the threshold" if config.momentum or config.optimizer == "adam" else "2/η"
    return f"{name} {sum(row[key] for row in rows) / len(rows):.4g} of {edge} {config.threshold:.4g}"


def summary(config: RunConfig, origin: dict[str, Any], rows: list[dict[str, float]]) -> str:
    """Say in one line how a run ended."""
    last = rows[-1]
    diverged = origin["diverged_at"]
    end = f"{last['step']} steps" if diverged is None else f"diverged before step {diverged}"
    measured = [row for row in rows if "sharpness" in row]
    at = _standing(config, measured[-1:]) if measured else "never measured"
    accuracy = f", test accuracy {last['test_accuracy']:.1%}" if "test_accuracy" in last else ""
    return f"{end}, loss {last['loss']:.3g}, {at}{accuracy}, {origin['wall_seconds']:.1f} s for the stack"


def provenance(trainer: Trainer, state: State, config: RunConfig, stacked: int) -> dict[str, Any]:
    """Return what is recorded beside the configuration: versions, machine, time, residuals, and a hash of the parameters."""
    alive = config.seed in state.seeds
    theta = state.theta[state.seeds.index(config.seed)].cpu().contiguous() if alive else None
    residuals = [row["sharpness_residual"] for row in state.rows[config.seed] if "sharpness_residual" in row]
    cuda = trainer.device.type == "cuda"
    return {
        "eosslib": __version__,
        "git_commit": runs.git_commit(),
        "torch": torch.__version__,
        "python": platform.python_version(),
        "device": torch.cuda.get_device_name(trainer.device) if cuda else f"CPU, {torch.get_num_threads()} threads",
        "processor": processor(),
        "finished": datetime.now(UTC).isoformat(timespec="seconds"),
        "wall_seconds": state.seconds,
        "stacked_runs": stacked,
        "parameters": trainer.objective.network.size,
        "max_eigen_residual": max(residuals, default=None),
        "diverged_at": state.diverged_at.get(config.seed),
        "theta_sha256": hashlib.sha256(theta.numpy().tobytes()).hexdigest() if theta is not None else None,
    }


def _key(configs: Sequence[RunConfig]) -> list[dict[str, Any]]:
    return [config.to_dict() for config in configs]


def save_checkpoint(path: Path, configs: Sequence[RunConfig], state: State, slim: Sequence[int] = ()) -> None:
    """Write a checkpoint.

    Args:
        path: The file.
        configs: The runs, in the order they were stacked in at the start.
        state: Their state.
        slim: The steps at which they went through a slim checkpoint (``slim``).

    Raises:
        RunFileError: The file cannot be written; whatever was there before is untouched.
    """
    buffer = io.BytesIO()  # torch's own writing to a file reports a full disk as a RuntimeError
    torch.save({"configs": _key(configs), "state": vars(state), "slim": list(slim)}, buffer)
    with runs.atomic(path) as temporary:
        temporary.write_bytes(buffer.getbuffer())


def _resume(trainer: Trainer, configs: list[RunConfig], path: Path) -> list[int]:
    """Put a checkpoint's state into a trainer, if there is one of just these runs; return the steps of its slim checkpoints."""
    if not path.is_file():
        return []
    try:
        stored = torch.load(path, map_location=trainer.device, weights_only=True)
        if [{**defaults(), **config} for config in stored["configs"]] != _key(configs):
            log.warning("%s is of other settings and is not used", path)
            return []
        state, slim = State(**stored["state"]), list(stored.get("slim", []))
        if not state.vectors.shape[1]:  # a slim checkpoint had none: the next solve starts where the first one did
            beginning = trainer.state.of([seed in state.seeds for seed in trainer.state.seeds])
            state.vectors, state.probe = beginning.vectors, beginning.probe
        trainer.state = state
    except UNREADABLE as error:
        log.warning("%s cannot be read (%s); training starts anew", path, (str(error) or type(error).__name__).splitlines()[0])
        return []
    log.info("%s: going on from step %d", path.stem, trainer.state.step)
    return slim
