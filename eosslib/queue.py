"""Many trainings one after the other: a file names them; what is left of it, how long it takes, and its slim checkpoints.

A row of the file is ``preset/entry/variant/seed``, such as ``cifar10/fc-tanh/b0200/1``, or without the seed, for every seed of
the preset. Nothing is remembered but run files and checkpoints, so a queue that was killed goes on when it is started again.
``workers`` trains what is left.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

from eosslib import runs
from eosslib.config import Group, Preset, load_preset
from eosslib.duration import Estimate, Machine, estimate, spoken
from eosslib.errors import ConfigError, RunFileError
from eosslib.jobs import checkpoint_path, is_done, lock_path
from eosslib.processes import holder
from eosslib.slim import export, progress, restore
from eosslib.training import State

DATA = runs.ROOT / "data"


@dataclass(frozen=True)
class Training:
    """One run of a preset."""

    source: str  # the preset as the row names it
    preset: Preset
    group: Group  # of this run alone

    @property
    def name(self) -> str:
        """The row that names it."""
        return f"{self.source}/{self.group.name}/{self.group.runs[0].seed}"


@dataclass(frozen=True)
class Settings:
    """Where and how the trainings of a queue run."""

    folder: Path = DATA / "runs"  # above those of the presets
    reference: Path = DATA / "reference"
    data_folder: Path | None = None
    device: str = "cpu"
    jobs: int = 1  # trainings at a time, each on one thread
    checkpoint_seconds: float = 30.0


# --- what the file names -----------------------------------------------------------------------------------------------------


def read(path: Path) -> list[Training]:
    """Read the trainings that a file names, in its order and each of them once.

    Raises:
        ConfigError: The file cannot be read or names nothing, or a row names no run of a preset; the message has its number.
    """
    try:
        lines = path.read_text(encoding="utf-8").splitlines()
    except (OSError, UnicodeDecodeError) as error:
        raise ConfigError(f"cannot read the queue {path}: {getattr(error, 'strerror', None) or error}") from None
    named: dict[str, Training] = {}
    presets: dict[str, Preset] = {}
    for number, line in enumerate(lines, 1):
        row = line.split("#")[0].strip()
        try:
            for training in _trainings(row, presets) if row else ():
                named.setdefault(training.name, training)
        except (ConfigError, OSError) as error:
            raise ConfigError(f"{path}, line {number}: {error}") from None
    if not named:
        raise ConfigError(f"{path} names no training: write rows such as cifar10/fc-tanh/b0200/1")
    return list(named.values())


def _trainings(row: str, presets: dict[str, Preset]) -> Iterator[Training]:
    """Return what a row names: one seed of a group, or all."""
    parts = row.split("/")
    seed = parts.pop() if parts[-1].isdecimal() else None
    if len(parts) < 3:
        raise ConfigError(
            f"'{row}' is no row: write preset/entry/variant or preset/entry/variant/seed, as in cifar10/fc-tanh/b0200/1"
        )
    source, name = "/".join(parts[:-2]), "/".join(parts[-2:])
    preset = presets[source] = presets.get(source) or load_preset(source)
    if name not in preset.groups:
        raise ConfigError(f"preset {source} has no group '{name}'; `python -m eosslib list {source}` names them")
    found = [run for run in preset.groups[name].runs if seed in (None, str(run.seed))]
    if not found:
        raise ConfigError(f"preset {source} has no seed {seed}; it has {', '.join(map(str, preset.seeds))}")
    for run in found:
        yield Training(source, preset, Group(name, (run,)))


# --- what is left ------------------------------------------------------------------------------------------------------------


def finished(training: Training, settings: Settings) -> bool:
    """Whether the run is there, whole and with just these settings, freshly trained or committed."""
    run = training.group.runs[0]
    return any(is_done(runs.run_path(folder, training.group, run), run) for folder in folders(training, settings))


def folders(training: Training, settings: Settings) -> tuple[Path, Path]:
    """Return where the runs of its preset lie: those trained here, the committed ones."""
    return settings.folder / training.preset.name, settings.reference / training.preset.name


def _state(training: Training, settings: Settings) -> State | None:
    folder = folders(training, settings)[0]
    return progress(checkpoint_path(folder, training.group), training.group)


def trainer(training: Training, settings: Settings) -> str | None:
    """Return the number of the process that trains a run now."""
    return holder(lock_path(folders(training, settings)[0], training.group, training.group.runs[0]))


def _estimate(training: Training, settings: Settings) -> Estimate:
    run, machine = training.group.runs[0], Machine(settings.device, settings.data_folder, folders(training, settings))
    return estimate(run, training.group.entry, training.preset, _state(training, settings), machine)


def total(left: list[Training], settings: Settings) -> str:
    """Say in one line how much is left and about how long it takes."""
    if not left:
        return "nothing is left"
    known = [s for t in left if (s := _estimate(t, settings).seconds) is not None]
    # So many at a time, but the longest takes as long as it takes.
    seconds = max(sum(known) / settings.jobs, *known) if len(known) == len(left) else None
    return f"{len(left)} left, {spoken(seconds)}, {settings.jobs} at a time"


def listing(trainings: list[Training], settings: Settings) -> list[str]:
    """Say in a line each what is left, how far it is and about how long it takes; the last line sums up."""
    left = [training for training in trainings if not finished(training, settings)]
    lines = []
    for training in left:
        state, whose, steps = _state(training, settings), trainer(training, settings), training.group.runs[0].steps
        at = f"step {state.step} of {steps}" if state is not None else f"{steps} steps"
        now = f", trained now by process {whose}" if whose else ""
        lines.append(f"{training.name:36} {at:20} {_estimate(training, settings)}{now}")
    return [*lines, f"{len(trainings) - len(left)} of {len(trainings)} trainings are done; {total(left, settings)}"]


# --- slim checkpoints --------------------------------------------------------------------------------------------------------


def _slim_path(folder: Path, training: Training) -> Path:
    group = training.group.name.replace("/", "__")
    return folder / f"{training.preset.name}__{group}__seed{training.group.runs[0].seed}.slim"


def export_all(trainings: list[Training], settings: Settings, folder: Path) -> Iterator[str]:
    """Write slim checkpoints of all trainings that are under way; remove those of finished ones. Say in a line each what came.

    Raises:
        RunFileError: A checkpoint cannot be read, is of other settings, or a file cannot be written; the others are exported.
    """
    exported, failed = 0, list[str]()
    for training in trainings:
        path, source = _slim_path(folder, training), folders(training, settings)[0]
        checkpoint = checkpoint_path(source, training.group)
        if finished(training, settings):
            path.unlink(missing_ok=True)
        elif checkpoint.is_file():
            try:
                step = export(source, training.group, path)
            except RunFileError as error:
                failed += [str(error)] if checkpoint.is_file() else []  # else it has just been finished
                continue
            exported += 1
            yield f"{path}: step {step}, {path.stat().st_size / 1e6:.2g} MB"
    if failed:
        raise RunFileError("; ".join(failed))
    if not exported:
        yield "no training of this queue is under way"


def import_all(trainings: list[Training], settings: Settings, folder: Path) -> Iterator[str]:
    """Make the slim checkpoints in a folder those that the trainings go on from. Say in a line each what became of it.

    Raises:
        RunFileError: One is damaged or of other settings; those before it are in place.
        Busy: Another process trains one of the runs.
    """
    found = [training for training in trainings if _slim_path(folder, training).is_file() and not finished(training, settings)]
    for training in found:
        step = restore(_slim_path(folder, training), folders(training, settings)[0], training.group)
        what = f"goes on from step {step}" if step is not None else "has a checkpoint here that is as far, which stays"
        yield f"{training.name} {what}"
    if not found:
        yield f"{folder} has no slim checkpoint of a training that is left"
