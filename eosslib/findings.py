"""Findings: numbers with a key, their error and the paper's value, and claims that the numbers bear out or not."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from types import SimpleNamespace
from typing import Any

import numpy as np
import pandas as pd
from pandas.api.typing import NAType

from eosslib.papers import Value
from eosslib.powerlaw import PowerLaw, number, plus_minus


@dataclass(frozen=True)
class Finding:
    """One number that came out of a figure's runs."""

    key: str  # names of the figure's record joined by dots, such as gap.slope.fc_tanh
    quantity: str | None  # in words, for tables; None: for the text alone
    ours: float
    error: float | None = None  # standard error
    paper: Value | None = None

    def __str__(self) -> str:
        """Our number with its error, to the error's precision."""
        return plus_minus(self.ours, self.error)

    @property
    def beside(self) -> str:
        """The paper's value in a table's cell."""
        return "–" if self.paper is None else str(self.paper)


class Findings(Mapping[str, Finding]):
    """The findings of one figure by key, in the order in which they were made."""

    def __init__(self, papers: Mapping[str, Value]) -> None:
        """Start without any.

        Args:
            papers: What the papers say by name, as ``papers.values`` reads it.
        """
        self._papers, self._found = papers, dict[str, Finding]()

    def __getitem__(self, key: str) -> Finding:
        """Return one finding by its key."""
        return self._found[key]

    def __iter__(self) -> Iterator[str]:
        """Go through the keys."""
        return iter(self._found)

    def __len__(self) -> int:
        """Return how many there are."""
        return len(self._found)

    def number(self, key: str, quantity: str | None, ours: float, error: float | None = None, paper: str | None = None) -> None:
        """Add a number.

        Args:
            key: Its name in texts: words of letters, digits and underscores joined by dots; a hyphen (of a network's name) becomes
                an underscore.
            quantity: What it is, in words, for tables; None: it is for the text alone.
            ours: The number; NaN: not measured.
            error: Its standard error; None or NaN: it has none.
            paper: Name of the paper's value.

        Raises:
            ValueError: The key is taken, is no key, or is part of another; the paper has no value of this name.
        """
        key = key.replace("-", "_")
        if not all(word.isidentifier() for word in key.split(".")):
            raise ValueError(f"'{key}' is no key: words of letters, digits and underscores, joined by dots")
        for other in self._found:
            if key == other or key.startswith(f"{other}.") or other.startswith(f"{key}."):
                raise ValueError(f"the key '{key}' is taken" + ("" if key == other else f" by '{other}'"))
        if paper is not None and paper not in self._papers:
            raise ValueError(f"no value of a paper is called '{paper}'; there are {', '.join(self._papers)}")
        known = None if error is None or not np.isfinite(error) else float(error)
        self._found[key] = Finding(key, quantity, float(ours), known, self._papers[paper] if paper else None)

    def mean(self, key: str, quantity: str | None, values: pd.Series, paper: str | None = None) -> None:
        """Add the mean of independent values with its standard error; arguments else as ``number``."""
        self.number(key, quantity, values.mean(), values.std() / np.sqrt(values.count()), paper)

    def row(self, key: str, quantity: str | None, row: pd.Series, paper: str | None = None, unit: float = 1.0) -> None:
        """Add the ``mean`` and ``se`` of a row of ``analysis.over_seeds`` in some unit; arguments else as ``number``."""
        self.number(key, quantity, row["mean"] / unit, row["se"] / unit, paper)

    def slope(self, key: str, quantity: str | None, fit: PowerLaw, paper: str | None = None) -> None:
        """Add the slope of a fit with its error over seeds, or, as the quantity then says, that of the regression.

        Arguments else as ``number``.
        """
        whose = "" if fit.seeds_se is not None or quantity is None else ", ± of the regression"
        self.number(key, quantity and quantity + whose, fit.slope, fit.error, paper)

    def deviations(self, table: pd.DataFrame, names: Mapping[str, str]) -> None:
        """Add how far runs get from a paper's curves, below ``curve.<entry>`` for each curve, which is ``gd`` or such as ``b50``.

        ``<curve>.deviation`` stands in tables; ``step``, ``spread`` and ``plateau`` beside it are for the text, and so are
        ``curve.<entry>.sgd.count``, the curves of SGD of which several seeds are there, and ``….within``, those among them that
        deviate by no more than the spread of the seeds.

        Args:
            table: As ``analysis.deviation_from_paper`` gives it.
            names: Entry → what to call it.
        """
        for entry, part in table.groupby("entry", sort=False):
            for _, row in part.iterrows():
                key, which = ("gd", "GD") if row.full_batch else (f"b{row.batch_size}", f"b = {row.batch_size:,}")
                at = f"from step {row.step:,}"
                at += f", where {row.seeds} seeds spread by {number(row.spread)}" if row.seeds > 1 else ""
                quantity = f"largest deviation from the paper's curve, over 2/η, {names[str(entry)]}, {which} ({at})"
                self.number(f"curve.{entry}.{key}.deviation", quantity, row.deviation)
                for column in ("step", "spread", "plateau"):
                    self.number(f"curve.{entry}.{key}.{column}", None, row[column])
            sgd = part[~part.full_batch & (part.seeds > 1)]
            self.number(f"curve.{entry}.sgd.count", None, len(sgd))
            self.number(f"curve.{entry}.sgd.within", None, (sgd.deviation.abs() <= sgd.spread).sum())

    def table(self) -> pd.DataFrame:
        """Findings with a quantity as a table: quantity, ours, paper."""
        rows = [(f.quantity, str(f), f.beside) for f in self.values() if f.quantity]
        return pd.DataFrame(rows, columns=["quantity", "ours", "paper"]).set_index("quantity")

    def nested(self) -> dict[str, Any]:
        """Findings by the words of their keys, as texts look them up: the first words, and what they hold as attributes."""
        tree = SimpleNamespace()
        for key, finding in self.items():
            *outer, last = key.split(".")
            inner = tree
            for word in outer:
                inner = vars(inner).setdefault(word, SimpleNamespace())
            setattr(inner, last, finding)
        return vars(tree)


def texts(means: pd.DataFrame) -> list[str]:
    """Return the ``mean`` of every row with its ``se``, as text; a dash where there is none."""
    return [plus_minus(row["mean"], row["se"]) if np.isfinite(row["mean"]) else "–" for _, row in means.iterrows()]


def words(claims: Mapping[str, bool | np.bool_ | float | NAType]) -> dict[str, str]:
    """Say for each claim whether it holds.

    Args:
        claims: What the reader should have seen → whether the numbers say so; ``pandas.NA`` or NaN where a run is missing.

    Returns:
        The claims with ``holds``, ``does not hold`` or ``not measured``.
    """
    return {claim: _word(holds) for claim, holds in claims.items()}


def _word(holds: bool | np.bool_ | float | NAType) -> str:
    if holds is pd.NA or (isinstance(holds, float | np.floating) and np.isnan(holds)):
        return "not measured"
    return "holds" if holds else "does not hold"
