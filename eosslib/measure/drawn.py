"""Means over drawn mini-batches: how batches are drawn, until when, and what the standard error of their mean is."""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass

import torch

from eosslib.curvature import GRAPH_FACTOR, Point
from eosslib.devices import drawn_memory
from eosslib.sampling import independent_batches
from eosslib.settings import MAX_LOTS
from eosslib.theory import check_batches

Key = tuple[str | int, ...]


@dataclass(frozen=True)
class Estimate:
    """Means over drawn mini-batches, one for each of R networks."""

    value: torch.Tensor  # (R,)
    standard_error: torch.Tensor  # (R,)
    draws: torch.Tensor  # (R,), number of mini-batches

    @staticmethod
    def of(samples: Sequence[torch.Tensor], judged: Callable[[torch.Tensor], tuple[torch.Tensor, torch.Tensor]]) -> Estimate:
        """Judge the samples (…, D) of each network: what is estimated, and its standard error."""
        values, errors = zip(*map(judged, samples), strict=True)
        return Estimate(torch.stack(values), torch.stack(errors), torch.tensor([part.shape[-1] for part in samples]))

    def columns(self, name: str) -> dict[str, torch.Tensor]:
        """Name value and standard error as in a run file."""
        return {name: self.value, f"{name}_se": self.standard_error}

    @staticmethod
    def described(name: str, meaning: str, unit: str) -> dict[str, str]:
        """Say what these columns are, for the list of measurements."""
        return {name: f"{meaning} [{unit}]", f"{name}_se": f"its standard error [{unit}]"}


def mean_of(samples: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
    """Mean of independent samples (D,), and its standard error."""
    return samples.mean(), error_of(samples)


def error_of(samples: torch.Tensor) -> torch.Tensor:
    """Standard error of the mean of independent samples (D,)."""
    if len(samples) == 1:
        return samples.new_zeros(())  # the full batch: nothing was sampled
    return samples.std() / len(samples) ** 0.5


@dataclass(frozen=True)
class Draws:
    """How mini-batches are drawn: independently of each other, in lots, until what is estimated is known well enough."""

    batch_size: int  # b
    count: int  # mini-batches of a lot; where all there are are the same, one is taken
    keys: Sequence[Key]  # the name of each network's random stream (``streams``)
    sampling: str = "reshuffle"  # how the run draws its batches: reshuffle or iid
    precision: float = math.inf  # draw until the standard error is at most this part of the estimate, or MAX_LOTS were drawn

    def lots(self, x: torch.Tensor, key: Key) -> Iterator[torch.Tensor]:
        """Yield lots of independent mini-batches of the inputs (1, n, *shape): indices (count, b).

        Raises:
            ValueError: The sampling is unknown, a batch of this size cannot be drawn, or fewer than two draws where batches
                differ (b < n, or ``iid``), so that there is no standard error.
        """
        n = x.shape[1]
        check_batches(n, self.batch_size, self.sampling)
        if self.batch_size == n and self.sampling != "iid":
            yield torch.arange(n, device=x.device).unsqueeze(0)
            return
        if self.count < 2:
            raise ValueError("a standard error needs at least two draws")
        for lot in range(MAX_LOTS):
            which = range(lot * self.count, (lot + 1) * self.count)
            yield independent_batches(n, self.batch_size, self.sampling, which, *key, device=x.device)


def collect(
    point: Point,
    draws: Draws,
    measured: Callable[[int, Point], torch.Tensor],
    judged: Callable[[torch.Tensor], tuple[torch.Tensor, torch.Tensor]] | None = None,
    share: int = 1,
) -> list[torch.Tensor]:
    """Measure drawn mini-batches of each network, as many at a time as fit a part of ``devices.drawn_memory``.

    Args:
        point: The networks, with examples that they share.
        draws: How to draw.
        measured: S numbers for each of D mini-batches (S, D), float64, of one network: its place, and a stack of D.
        judged: What is estimated, and its standard error, from the numbers so far; without it one lot is enough.
        share: Take so many times fewer at once, where ``measured`` keeps more than a pass and a few vectors.

    Returns:
        Each network's numbers (S, D).

    Raises:
        ValueError: As ``Draws.lots``, or there is not one key for each network.
    """
    point = dataclasses.replace(point, memory=min(point.memory, drawn_memory(point.theta.device)))
    at_once = max(1, _fitting(point, draws.batch_size) // share)
    found = []
    for row, key in zip(range(len(point.theta)), draws.keys, strict=True):
        parts = list[torch.Tensor]()
        for lot in draws.lots(point.x, key):
            parts += [measured(row, point.drawn(row, indices)) for indices in lot.split(at_once)]
            samples = torch.cat(parts, dim=1)
            if judged is None:
                break
            value, error = judged(samples)
            if error <= draws.precision * value.abs():
                break
        found.append(samples)
    return found


def _fitting(point: Point, batch_size: int) -> int:
    """How many mini-batches fit the memory in a batched call: each needs several copies of the parameters and its graph."""
    network, theta = point.objective.network, point.theta
    graph = GRAPH_FACTOR * network.output_bytes(network.views(theta[:1]), point.x) * batch_size
    copies = 12 * theta.shape[1] * theta.element_size()
    return max(1, point.memory // (graph + copies))
