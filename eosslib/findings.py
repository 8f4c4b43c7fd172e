"""What a notebook ends with: headline numbers beside the paper's, and claims that the numbers bear out or not."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import numpy as np
import pandas as pd
from pandas.api.typing import NAType

from eosslib.powerlaw import PowerLaw, plus_minus


@dataclass(frozen=True)
class Headline:
    """One headline number: ours with its standard error, and the paper's."""

    quantity: str
    ours: float
    error: float | None = None
    paper: str = "–"

    @classmethod
    def mean(cls, quantity: str, values: pd.Series, paper: str = "–") -> Headline:
        """Return the mean of independent values with its standard error."""
        return cls(quantity, values.mean(), values.std() / np.sqrt(values.count()), paper)

    @classmethod
    def row(cls, quantity: str, row: pd.Series, paper: str = "–", unit: float = 1.0) -> Headline:
        """Return the ``mean`` and ``se`` of a row of ``analysis.over_seeds`` in some unit."""
        return cls(quantity, row["mean"] / unit, row["se"] / unit, paper)

    @classmethod
    def slope(cls, quantity: str, fit: PowerLaw, paper: str = "–") -> Headline:
        """Return the slope of a fit with its standard error over seeds, or, as it then says, that of the regression."""
        whose = "" if fit.seeds_se is not None else ", ± of the regression"
        return cls(quantity + whose, fit.slope, fit.error, paper)

    @property
    def text(self) -> str:
        """Our number with its error, to the error's precision."""
        return plus_minus(self.ours, self.error)


def table(headlines: Sequence[Headline]) -> pd.DataFrame:
    """Headline numbers as a table: quantity, ours, paper."""
    rows = [(h.quantity, h.text, h.paper) for h in headlines]
    return pd.DataFrame(rows, columns=["quantity", "ours", "paper"]).set_index("quantity")


def texts(means: pd.DataFrame) -> list[str]:
    """Return the ``mean`` of every row with its ``se``, as text; a dash where there is none."""
    return [plus_minus(row["mean"], row["se"]) if np.isfinite(row["mean"]) else "–" for _, row in means.iterrows()]


def check(claims: Mapping[str, bool | np.bool_ | float | NAType], enforce: bool = True) -> list[str]:
    """Say for each claim whether it holds, and insist on it.

    Args:
        claims: What the reader should have seen → whether the numbers say so; ``pandas.NA`` or NaN where a run is missing.
        enforce: False for a preset whose numbers mean nothing.

    Returns:
        A line a claim.

    Raises:
        AssertionError: A claim does not hold or was not measured; the message names all of these.
    """
    words = {claim: _word(holds) for claim, holds in claims.items()}
    failed = [claim for claim, word in words.items() if word != "holds"]
    if enforce and failed:
        raise AssertionError("; ".join(f"{words[claim]}: {claim}" for claim in failed))
    return [f"{word}: {claim}" for claim, word in words.items()]


def _word(holds: bool | np.bool_ | float | NAType) -> str:
    if holds is pd.NA or (isinstance(holds, float | np.floating) and np.isnan(holds)):
        return "not measured"
    return "holds" if holds else "does not hold"
