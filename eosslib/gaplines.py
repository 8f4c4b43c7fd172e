"""The lines through the mean gaps of figure 2, by one rule for their batch sizes, and the sizes that they lack.

Where a paper shows the gaps of the same set-up, the lines of all networks are through the paper's batch sizes; elsewhere through
all there are. The slope of a gap is that of the line through all of these whose mean gap is positive.
"""

from __future__ import annotations

from dataclasses import dataclass

import pandas as pd

from eosslib import jackknife
from eosslib.findings import Findings
from eosslib.powerlaw import PowerLaw


@dataclass(frozen=True)
class GapLines:
    """Lines by network (entry), which has none where fewer than three of the mean gaps are positive."""

    rule: str  # which batch sizes, in words
    gap: pd.DataFrame  # mean gaps with ``fitted``: whether they are of these batch sizes
    whole: dict[str, PowerLaw]  # all of them: the slope of a gap
    clear: dict[str, PowerLaw]  # the clear gaps among them
    small: dict[str, PowerLaw]  # b ≤ n/20
    to_750: dict[str, PowerLaw]  # of the paper's sizes those up to 750; none where the paper shows no such set-up
    lacking: dict[str, list[int]]  # the paper's sizes of which there are no gaps
    outside: list[int]  # sizes that are not the paper's

    def record(self, found: Findings, entry: str, name: str, slope: str | None, slope_to_750: str | None) -> None:
        """Add what the lines of one network say: ``gap.slope``, ``gap.slope_to_750``, ``gap.slope_clear``, and ``end``.

        ``end`` is for the text: the smallest batch size ``b`` behind the last clear gap, its ``gap`` and what the line of the clear
        gaps has there.

        Args:
            found: Where to.
            entry: Of the network; it has a line.
            name: What to call it.
            slope: Name of the paper's value of the slope.
            slope_to_750: The same up to b = 750.
        """
        whole, paper = self.whole[entry], bool(self.to_750)
        over = f" {self.rule}" if paper else ""
        found.slope(f"gap.slope.{entry}", f"slope of the gap{over}, {name} ({_r2(whole)})", whole, slope)
        low, clear = self.to_750.get(entry), self.clear.get(entry)
        if low and len(low.x) < len(whole.x):
            found.slope(f"gap.slope_to_750.{entry}", f"the same up to b = 750, {len(low.x)} sizes ({_r2(low)})", low, slope_to_750)
        if clear:
            quantity = f"the same over clear gaps, {len(clear.x)} sizes up to {clear.x.max():,.0f} ({_r2(clear)})"
            found.slope(f"gap.slope_clear.{entry}", None if paper else quantity, clear, slope)
            behind = (self.gap.entry == entry) & self.gap.fitted & (self.gap.batch_size > clear.x.max())
            for _, row in self.gap[behind].iloc[:1].iterrows():
                found.number(f"end.b.{entry}", None, row.batch_size)
                found.row(f"end.gap.{entry}", None, row)
                found.number(f"end.line.{entry}", None, float(clear(row.batch_size)))


def _r2(line: PowerLaw) -> str:
    return f"R² {line.r_squared:.3f}"


def fit(gap: pd.DataFrame, runs: pd.DataFrame, points: pd.DataFrame) -> GapLines:
    """Fit the lines, with the slopes' errors over seeds where ``jackknife.fit_each`` finds them.

    Args:
        gap: Mean gaps as ``analysis.mean_gaps`` gives them, by ``entry`` and ``batch_size`` at least, in units of sharpness.
        runs: What they are the means of, as ``analysis.gaps`` gives them.
        points: The paper's gaps of the same set-up as ``papers.gaps`` gives them, or none.
    """
    theirs, n = set(points.batch_size), runs.train_size.max()
    gap = gap.assign(fitted=gap.batch_size.isin(theirs) | (not theirs))
    own = gap[gap.fitted]
    ranges = (own, own[own.clear], own[own.batch_size <= n / 20], own[own.batch_size.isin(theirs) & (own.batch_size <= 750)])
    whole, clear, small, to_750 = (jackknife.fit_each(part, runs, "gap", ["entry"]) for part in ranges)
    return GapLines(
        rule="over the paper's sizes" if theirs else "over all b",
        gap=gap,
        whole=whole,
        clear=clear,
        small=small,
        to_750=to_750,
        lacking={str(entry): sorted(theirs - set(part.batch_size)) for entry, part in gap.groupby("entry", sort=False)},
        outside=sorted(set(gap.batch_size[~gap.fitted])),
    )
