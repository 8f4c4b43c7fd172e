"""One moment of a training, which measurements take, and what a measurement is."""

from __future__ import annotations

import functools
import logging
import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import torch

from eosslib.curvature import Point
from eosslib.eigen import NEARBY, Eigenpairs, top_eigenpairs, warn_if_uncertain
from eosslib.measure.drawn import Draws, Key
from eosslib.probing import Probe
from eosslib.streams import generator

if TYPE_CHECKING:
    from eosslib.measure.windows import Window
    from eosslib.settings import RunConfig

log = logging.getLogger(__name__)

Columns = dict[str, torch.Tensor]


@dataclass(frozen=True)
class Measurement:
    """A row of the list of measurements (``record``)."""

    settings: tuple[str, ...]  # those of a run that it reads
    columns: Mapping[str, str]  # name in run files and tracker's rows, {} for a number: what it is, [in which unit]; θ: a parameter
    due: Callable[[Moment], bool]  # whether it is to be made then
    compute: Callable[[Moment], Columns]  # each column (R,)


@dataclass(frozen=True, eq=False)
class Moment:
    """Networks of a stack at one step, and what a measurement of them may use."""

    step: int
    settings: RunConfig  # with which the next step is made; a tracker has what it was given, and the defaults
    seeds: Sequence[int]  # of the networks' random streams
    point: Point  # the training set
    starts: torch.Tensor  # (R, s, P) where the eigen-solve starts, from the last measurement; none at the first
    probe: torch.Tensor  # (R, P) what the last measurement left of its probe; at the first a random vector
    tracked: int = 1  # number of eigenpairs to solve for
    test: Point | None = None  # the test set
    scale: torch.Tensor | None = None  # (R, P) P^-½ of Adam
    decay: float = 0.0  # weight decay
    window: Window | None = None  # of these networks, where one ends here

    def keys(self, name: str) -> list[Key]:
        """Name a random stream for each network."""
        return [(name, seed, self.step) for seed in self.seeds]

    def random(self, name: str) -> torch.Tensor:
        """Draw a vector for each network (R, P), on the CPU, the same on every device."""
        theta = self.point.theta
        drawn = [torch.randn(theta.shape[1], generator=generator(*key), dtype=theta.dtype) for key in self.keys(name)]
        return torch.stack(drawn).to(theta.device)

    def draws(self, name: str, count: int) -> Draws:
        """Say how lots of mini-batches of the size that the next step takes are drawn from the stream of this name."""
        settings = self.settings
        return Draws(
            settings.batch_size, count, self.keys(name), settings.sampling, precision=settings.sample_precision or math.inf
        )

    @property
    def samples_due(self) -> bool:
        """Whether what is estimated from drawn mini-batches is to be measured."""
        return bool(self.settings.sample_every) and self.step % self.settings.sample_every == 0

    @property
    def checks(self) -> bool:
        """Whether the eigenpairs are solved for twice: at a run's last step."""
        return self.step == self.settings.steps

    @property
    def pairs(self) -> Eigenpairs:
        """The top eigenpairs of the Hessian; ``carried`` holds the slopes uᵀ∇ℓᵢ. Solved for once, when first asked for."""
        return self._solved[0]

    @property
    def check(self) -> torch.Tensor | None:
        """λ₁ as found from a random vector alone (R,), where the pairs were solved for twice."""
        return self._solved[1]

    @functools.cached_property
    def _solved(self) -> tuple[Eigenpairs, torch.Tensor | None]:
        """Solve from what the last solve found; at the run's last step, from a random vector as well.

        Both look for an eigenvalue above the one they find, and know how likely they have missed one. The larger of the two is
        taken, and the second is recorded: it says how far the first was off.
        """
        tol, check = self.settings.eig_tol, None
        operator = self.point.hessian().with_slopes  # the slopes of the eigenvectors give σ_u² without another pass
        options: dict[str, Any] = {"k": self.tracked, "tol": tol, "nearby": NEARBY}
        first = not self.starts.shape[1]
        probe = Probe(self.probe) if first else Probe.carried(self.probe, self.random("probe"))
        pairs = top_eigenpairs(operator, self.starts, probe=probe, **options)
        if self.checks:
            second = top_eigenpairs(operator, self.starts[:, :0], probe=Probe(self.random("eigen check")), **options)
            check, missed = second.values[:, 0], second.values[:, 0] > pairs.values[:, 0] * (1 + tol)
            if bool(missed.any()):
                by = float((check / pairs.values[:, 0] - 1).amax())
                log.warning("step %d: the warm-started eigen-solver had missed the top eigenvalue, by %.1e of it", self.step, by)
            pairs = Eigenpairs.where(missed, second, pairs)
        return warn_if_uncertain(pairs, f"step {self.step}, λ_max"), check


def of_draws(setting: str, columns: Mapping[str, str], compute: Callable[[Moment], Columns]) -> Measurement:
    """Make the row of what is estimated from so many mini-batches, of the size that the next step takes, as a setting says."""
    return Measurement(
        ("sample_every", setting, "batch_size", "sampling", "sample_precision"),
        columns,
        due=lambda moment: moment.samples_due and bool(getattr(moment.settings, setting)),
        compute=compute,
    )


def always(moment: Moment) -> bool:
    """Whether something that is measured at every measurement is due."""
    return True
