"""The figures, from ``config/figures.yaml``: what each asks, what of the papers it is held against, which runs it shows."""

from __future__ import annotations

from dataclasses import dataclass
from functools import cache
from pathlib import Path

from eosslib.validation import Checker, read_yaml

FILE = Path(__file__).resolve().parents[1] / "config/figures.yaml"
ENTRIES = {"type": "array", "items": {"type": "string"}}
RULES = {
    "type": "object",
    "additionalProperties": {
        "type": "object",
        "additionalProperties": False,
        "required": ["question", "paper", "runs"],
        "properties": {
            "question": {"type": "string"},
            "paper": {"type": "array", "uniqueItems": True, "items": {"type": "string"}},
            "runs": {"type": "object", "minProperties": 1, "additionalProperties": ENTRIES},
        },
    },
    "propertyNames": {"pattern": "^[0-9]{2}_[a-z0-9_]+$"},
}


@dataclass(frozen=True)
class Figure:
    """A row of the file."""

    name: str  # of its notebook, and of the files it is written to
    question: str
    paper: tuple[str, ...]  # names of values in data/paper/values.yaml
    runs: dict[str, tuple[str, ...]]  # preset → entries; none of toys and formulas

    @property
    def number(self) -> int:
        """The number by which texts call it."""
        return int(self.name[:2])


def rows() -> dict[str, Figure]:
    """Read the figures by name, in the file's order.

    Raises:
        ConfigError: The file is missing, is not YAML, or has an unknown, missing or mistyped key; one line says which.
    """
    return _read(FILE)


@cache
def _read(path: Path) -> dict[str, Figure]:
    source = f"{path.parent.name}/{path.name}"
    raw = read_yaml(path, source)
    Checker(RULES)(raw, source)
    return {
        name: Figure(name, row["question"], tuple(row["paper"]), {preset: tuple(e) for preset, e in row["runs"].items()})
        for name, row in raw.items()
    }


def of_preset(name: str) -> dict[str, tuple[str, ...]]:
    """Return which entries of a preset each of its figures shows.

    Raises:
        ConfigError: As ``rows``.
    """
    return {figure.name: figure.runs[name] for figure in rows().values() if name in figure.runs}
