"""What the papers say: one file of values, each with its source and where it stands there."""

from __future__ import annotations

from dataclasses import dataclass
from functools import cache
from pathlib import Path

import yaml

from eosslib.errors import ConfigError

FILE = Path(__file__).resolve().parents[1] / "data/paper/values.yaml"


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
