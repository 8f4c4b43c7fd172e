"""What the papers say: one file of values, each with its source and where it stands there, and points read off their figures."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass
from functools import cache
from pathlib import Path

import numpy as np
import pandas as pd
import yaml

from eosslib.errors import ConfigError

FOLDER = Path(__file__).resolve().parents[1] / "data/paper"
FILE = FOLDER / "values.yaml"
SETUP = ["dataset", "train_size", "model", "loss_name", "lr"]  # what runs have in common with a paper's, or not


@dataclass(frozen=True)
class Value:
    """One value of a paper, or of theory."""

    name: str
    says: str  # as one would write it in a table's cell
    source: str  # arXiv number of the paper, or "theory"
    where: str  # figure, section or formula

    def __str__(self) -> str:
        """What the paper says."""
        return self.says


@cache
def values() -> dict[str, Value]:
    """Read the papers' values by name.

    Raises:
        ConfigError: The file is missing, or a value lacks what it says, its source or its place.
    """
    try:
        raw = yaml.safe_load(FILE.read_text(encoding="utf-8"))
    except OSError as error:
        raise ConfigError(f"{FILE} cannot be read: {error.strerror}") from None
    found = {}
    for source, entries in raw.items():
        for name, entry in entries.items():
            if set(entry) != {"says", "where"} or not all(isinstance(text, str) for text in entry.values()):
                raise ConfigError(f"{FILE.name}: '{name}' needs what it says and where, both as text")
            if name in found:
                raise ConfigError(f"{FILE.name}: '{name}' stands twice")
            found[name] = Value(name, entry["says"], str(source), entry["where"])
    return found


def named(names: Iterable[str]) -> dict[str, Value]:
    """Return some of the papers' values.

    Raises:
        ConfigError: There is none of a name, or as ``values``.
    """
    known = values()
    for name in names:
        if name not in known:
            raise ConfigError(f"{FILE.name} has no value called '{name}'; it has {', '.join(known)}")
    return {name: known[name] for name in names}


def curves(frame: pd.DataFrame) -> pd.DataFrame:
    """Find the sharpness curves that the gap paper (arXiv:2604.21016, figures 1 and 9) shows of the set-ups of some runs.

    They were read off its pictures; a sharpness is off by about ±1.

    Args:
        frame: Trajectories as ``runs.collect`` gives them; whose ``SETUP`` is not the paper's has no curve.

    Returns:
        A row a point, empty where there is none: ``figure``, ``SETUP``, ``batch_size`` (gradient descent: all examples),
        ``step``, ``sharpness`` (loss per squared parameter), and ``entry``, whose runs the curve belongs beside.

    Raises:
        ConfigError: A file of the points is missing, or holds something else.
    """
    return _beside(frame, "liao2026_sharpness.csv", "batch_size", "step", "sharpness")


def gaps(frame: pd.DataFrame) -> pd.DataFrame:
    """Find the mean gaps that the gap paper (arXiv:2604.21016, figure 2) shows of the set-ups of some runs; else as ``curves``.

    Returns:
        A row a point, empty where there is none: ``figure``, ``SETUP``, ``batch_size``, ``gap`` (in units of sharpness), ``entry``.

    Raises:
        ConfigError: A file of the points is missing, or holds something else.
    """
    return _beside(frame, "liao2026_gap.csv", "batch_size", "gap")


def _beside(frame: pd.DataFrame, name: str, *columns: str) -> pd.DataFrame:
    """Give each entry of the runs the points of its set-up."""
    return frame[["entry", *SETUP]].drop_duplicates().merge(_points(FOLDER / name, columns), on=SETUP)


@cache
def _points(path: Path, columns: tuple[str, ...]) -> pd.DataFrame:
    """Read points and the set-ups of their figures; the last column is what was measured, the others tell points apart."""
    points = _table(path, ["figure", *columns])
    setups = _table(FOLDER / "liao2026_setups.csv", ["figure", *SETUP])
    if unknown := set(points.figure) - set(setups.figure):
        raise ConfigError(f"{path.name}: liao2026_setups.csv has no set-up of figure '{min(unknown)}'")
    points = points.merge(setups, on="figure", validate="many_to_one")
    points["batch_size"] = points.batch_size.where(points.batch_size != "full", points.train_size)
    numbers = points[list(columns)].apply(pd.to_numeric, errors="coerce")
    *place, value = columns
    if bad := np.flatnonzero(~(np.isfinite(numbers).all(axis=1) & (numbers[value] > 0))).tolist():
        raise ConfigError(f"{path.name}, line {bad[0] + 2}: {', '.join(columns)} must be numbers, and {value} above 0")
    points[list(columns)] = numbers
    if twice := np.flatnonzero(points.duplicated(["figure", *place])).tolist():
        raise ConfigError(f"{path.name}, line {twice[0] + 2}: the point stands twice")
    return points.astype({"batch_size": int})


def _table(path: Path, columns: list[str]) -> pd.DataFrame:
    try:
        table = pd.read_csv(path)
    except (OSError, ValueError) as error:
        raise ConfigError(f"{path} cannot be read: {error}") from None
    if list(table) != columns:
        raise ConfigError(f"{path.name} has the columns {', '.join(map(str, table))} instead of {', '.join(columns)}")
    return table
