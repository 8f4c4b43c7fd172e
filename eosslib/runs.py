"""A saved run: its trajectory, its configuration and where it came from, in one Parquet file.

The table has one row a measurement; configuration and provenance are JSON in the file's metadata. Files appear whole or not
at all: they are written under another name and then renamed.
"""

from __future__ import annotations

import contextlib
import json
import os
import subprocess
import tempfile
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from functools import cache
from pathlib import Path
from typing import TYPE_CHECKING, Any

import pyarrow as pa
import pyarrow.parquet as pq

from eosslib.config import Group, Preset
from eosslib.errors import ConfigError, ConfigMismatch, RunFileError
from eosslib.settings import RunConfig, defaults, difference

if TYPE_CHECKING:
    import pandas as pd

ROOT = Path(__file__).resolve().parents[1]
METADATA_KEY = b"eosslib"
# Of a run, which stand in a table of runs beside its measurements.
COLUMNS = ["dataset", "model", "width", "depth", "hidden", "init_scale", "batch_size", "train_size", "noise", "sampling", "seed"]
COLUMNS += ["lr", "optimizer", "momentum", "steps", "measure_every", "full_batch"]


@dataclass(frozen=True)
class Run:
    """One trained network's trajectory.

    ``frame`` has a row a measurement: ``step`` and the columns of the measurements that were due (``measure.record`` lists them,
    with units); along coupled steps, one a row, the columns of ``predicted.Coupled``. In runs without ``sharpness_miss``, which are
    of an older solver, every row with samples has ``sharpness_check``.
    """

    config: RunConfig
    provenance: dict[str, Any]
    frame: pd.DataFrame

    @property
    def diverged_at(self) -> int | None:
        """Step at which the run was found to have diverged, or None."""
        return self.provenance.get("diverged_at")


@contextlib.contextmanager
def atomic(path: Path) -> Iterator[Path]:
    """Give a temporary name to write to; on success the file is renamed to ``path``, on failure it is removed.

    Raises:
        RunFileError: The folder cannot be written to, or the disk is full.
    """
    temporary = None
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        handle, name = tempfile.mkstemp(dir=path.parent, prefix=f".{path.name}.", suffix=".tmp")
        os.close(handle)
        temporary = Path(name)
        yield temporary
        temporary.chmod(0o644)
        os.replace(temporary, path)
        temporary = None
    except OSError as error:
        raise RunFileError(f"cannot write {path}: {error.strerror or error}") from None
    finally:
        if temporary is not None:
            temporary.unlink(missing_ok=True)


def check_writable(path: Path) -> None:
    """Make the folder of ``path`` and try to write there.

    Raises:
        RunFileError: The folder cannot be made or written to.
    """
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        with tempfile.TemporaryFile(dir=path.parent):
            pass
    except OSError as error:
        raise RunFileError(f"cannot write {path}: {error.strerror or error}") from None


def write(config: RunConfig, provenance: dict[str, Any], table: pa.Table, path: Path) -> None:
    """Write a run whose trajectory is an Arrow table; training jobs do so without importing pandas.

    Raises:
        RunFileError: The file cannot be written; whatever was there before is untouched.
    """
    payload = json.dumps({"config": config.to_dict(), "provenance": provenance}).encode()
    table = table.replace_schema_metadata({**(table.schema.metadata or {}), METADATA_KEY: payload})
    with atomic(path) as temporary:
        pq.write_table(table, temporary, compression="zstd")


def table_of(rows: list[dict[str, float]]) -> pa.Table:
    """Make a table of a trajectory's rows; what a row does not have is null."""
    columns = list(dict.fromkeys(key for row in rows for key in row))
    return pa.table({column: [row.get(column) for row in rows] for column in columns})


def load(path: Path | str, expect: RunConfig | None = None) -> Run:
    """Read a run.

    Args:
        path: The Parquet file.
        expect: The configuration the run must have been trained with.

    Raises:
        RunFileError: The file is missing, a folder, truncated, or was not written by eosslib.
        ConfigMismatch: The stored configuration differs from ``expect``; the message names the key.
    """
    config, provenance, table = read(path, expect)
    return Run(config, provenance, table.to_pandas())


def read(path: Path | str, expect: RunConfig | None = None) -> tuple[RunConfig, dict[str, Any], pa.Table]:
    """Read a run's configuration, provenance and trajectory as ``load`` does, without pandas.

    Raises:
        RunFileError: The file is missing, a folder, truncated, or was not written by eosslib.
        ConfigMismatch: The stored configuration differs from ``expect``; the message names the key.
    """
    path = Path(path)
    if path.is_dir():
        raise RunFileError(f"{path} is a folder: name one of the run files in it")
    if not path.is_file():
        raise RunFileError(f"{path} does not exist: train it first")
    try:
        table = pq.read_table(path)
    except (pa.ArrowException, OSError) as error:
        raise RunFileError(f"{path} is not a whole Parquet file ({str(error).splitlines()[0]})") from None
    payload = (table.schema.metadata or {}).get(METADATA_KEY)
    if payload is None:
        raise RunFileError(f"{path} is a Parquet file, but not a run written by eosslib")
    try:
        stored = json.loads(payload)
        stored = {"config": dict(stored["config"]), "provenance": dict(stored["provenance"])}
    except (ValueError, KeyError, TypeError):
        raise RunFileError(f"{path} holds settings or provenance that cannot be read") from None
    if expect is not None:
        different = difference({**defaults(), **stored["config"]}, expect.to_dict())
        if different:
            raise ConfigMismatch(f"{path} was trained with other settings: {different}")
    try:
        config = RunConfig(**stored["config"])
    except (ConfigError, TypeError) as error:
        raise RunFileError(f"{path} was written by another version of eosslib ({error})") from None
    return config, stored["provenance"], table


def run_path(folder: Path, group: Group, config: RunConfig) -> Path:
    """Return the file of one run of a group below a preset's folder."""
    return folder / group.name / f"seed{config.seed}.parquet"


def locate(preset: Preset, entries: tuple[str, ...], folder: str | Path | None = None) -> Path:
    """Return the folder that holds the runs of these entries.

    Args:
        preset: The preset.
        entries: Names under ``runs:``.
        folder: The folder to use; None: freshly trained runs in ``data/runs/<preset>`` if all are there, else the committed
            ones in ``data/reference/<preset>``, where some may be missing.

    Raises:
        ConfigError: No entry is named, or one that the preset does not have.
        RunFileError: Runs are missing.
    """
    if not entries:
        raise ConfigError(f"no entries of preset {preset.name} were named: name some of those under runs:")
    candidates = [Path(folder)] if folder else [ROOT / "data" / kind / preset.name for kind in ("runs", "reference")]
    wanted = [(group, config) for group in preset.select(entries) for config in group.runs]
    for candidate in candidates:
        there = [run_path(candidate, group, config).is_file() for group, config in wanted]
        if all(there) or (candidate.parent.name == "reference" and any(there)):
            return candidate
    group, config = next((g, c) for g, c in wanted if not run_path(candidates[0], g, c).is_file())
    missing = run_path(candidates[0], group, config)
    raise RunFileError(f"{missing} does not exist: train it with `python -m eosslib train {preset.name} {group.name}`")


@dataclass(frozen=True)
class Collection:
    """The runs of some entries."""

    frame: pd.DataFrame  # a row a measurement, beside its run's settings
    source: str  # where the runs come from, in a sentence
    missing: str  # which runs of the preset the committed ones lack, in few words; empty if none


def collect(preset: Preset, entries: tuple[str, ...], folder: str | Path | None = None) -> Collection:
    """Read all runs of some entries into one tidy table, every run checked against the preset.

    Returns:
        The runs. In their table, beside the trajectories' columns, stand ``entry``, those of ``COLUMNS``, ``loss_name``, the
        ``threshold`` and whether the run ``diverged``; where a schedule changes settings these are the first, and ``edge`` is
        the threshold in force from the row's step on.

    Raises:
        ConfigError: No entry is named, or one that the preset does not have.
        RunFileError: A run is missing or unreadable.
        ConfigMismatch: A run was trained with other settings than the preset's.
    """
    import pandas as pd  # most of a second, which training jobs do without

    folder, groups = locate(preset, entries, folder), preset.select(entries)
    committed = folder.parent.name == "reference"
    wanted = [(group, config) for group in groups for config in group.runs]
    lacking = [(g, c) for g, c in wanted if committed and not run_path(folder, g, c).is_file()]
    found = [(g, _load(preset, g, run_path(folder, g, c), c)) for g, c in wanted if (g, c) not in lacking]
    origins = [(run.provenance["device"].split(",")[0], str(run.provenance["git_commit"])[:7]) for _, run in found]
    devices, commits = (", ".join(sorted(set(names))) for names in zip(*origins, strict=True))
    kind, missing = "committed" if committed else "freshly trained", _summary(lacking, groups)
    source = f"{len(found)} {kind} runs of preset {preset.name}, trained on {devices} by commit {commits}"
    if lacking:
        source += f"; of {len(found) + len(lacking)}, not trained yet: {missing}"
    return Collection(pd.concat([_labelled(group, run) for group, run in found], ignore_index=True), source, missing)


def _load(preset: Preset, group: Group, path: Path, config: RunConfig) -> Run:
    try:
        return load(path, expect=config)
    except ConfigMismatch as error:
        raise ConfigMismatch(f"{error}; `python -m eosslib train {preset.name} {group.name}` trains it again") from None


def _labelled(group: Group, run: Run) -> pd.DataFrame:
    """Put a run's settings beside its measurements."""
    config = run.config
    edge = [config.at(step).threshold for step in run.frame.step]
    known: dict[str, Any] = {"entry": group.entry, "loss_name": config.loss, "threshold": config.threshold, "edge": edge}
    known |= {name: getattr(config, name) for name in COLUMNS} | {"diverged": run.diverged_at is not None}
    return run.frame.assign(**known)


def _summary(lacking: list[tuple[Group, RunConfig]], groups: Sequence[Group]) -> str:
    """Name missing runs in few words: an entry of which there is none, else entry, batch sizes and seeds."""
    by_seeds: dict[tuple[str, tuple[int, ...]], list[str]] = {}
    seeds: dict[str, list[int]] = {}
    for group, config in lacking:
        seeds.setdefault(group.name, []).append(config.seed)
    there = {group.entry for group in groups if len(seeds.get(group.name, [])) < len(group.runs)}
    for name, missing in seeds.items():
        entry, variant = name.split("/")
        if entry in there:
            by_seeds.setdefault((entry, tuple(missing)), []).append(variant)
    parts = [f"{entry} {', '.join(names)} (seed {', '.join(map(str, some))})" for (entry, some), names in by_seeds.items()]
    parts += [f"all of {entry}" for entry in dict.fromkeys(group.entry for group in groups) if entry not in there]
    return "; ".join(parts)


@cache
def git_commit() -> str | None:
    """Return the commit of the checkout the package lies in, with ``+changes`` if it has uncommitted ones, or None.

    Where a copy without git's folder is used, ``EOSSLIB_COMMIT`` says which commit it is.
    """

    def git(*arguments: str) -> str:
        return subprocess.run(["git", "-C", str(ROOT), *arguments], capture_output=True, text=True, check=True).stdout.strip()

    try:
        commit = git("rev-parse", "HEAD")
        return commit + ("+changes" if git("status", "--porcelain", "--", "eosslib") else "")
    except (OSError, subprocess.CalledProcessError):
        return os.environ.get("EOSSLIB_COMMIT")
