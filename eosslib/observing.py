"""What one measurement of a training records: which estimators, at which steps, into which columns of the run file."""

from __future__ import annotations

import logging
import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import torch

from eosslib import measurements, overlap, windows
from eosslib.curvature import Hessian
from eosslib.datasets import Dataset
from eosslib.devices import drawn_memory
from eosslib.eigen import NEARBY, Eigenpairs, top_eigenpairs, warn_if_uncertain
from eosslib.flat import Objective
from eosslib.probing import Probe
from eosslib.settings import RunConfig
from eosslib.streams import generator

log = logging.getLogger(__name__)

Columns = dict[str, torch.Tensor]


def _columns(name: str, estimate: measurements.Estimate) -> Columns:
    return {name: estimate.value, f"{name}_se": estimate.standard_error}


@dataclass(frozen=True)
class Moment:
    """Members of a stack at one step."""

    step: int
    seeds: Sequence[int]
    theta: torch.Tensor  # (R, P)
    vectors: torch.Tensor  # (R, s, P) where the eigen-solve starts, from the last measurement; none at the first
    probe: torch.Tensor  # (R, P) what the last measurement left of its probe; at the first a random vector
    hessian: Hessian  # at theta
    scale: torch.Tensor | None = None  # (R, P), P^-½ of Adam

    def keys(self, name: str) -> list[tuple[str | int, ...]]:
        """Name a random stream for each member."""
        return [(name, seed, self.step) for seed in self.seeds]

    def random(self, name: str) -> torch.Tensor:
        """Draw a vector for each member (R, P), on the CPU, the same on every device."""
        drawn = [torch.randn(self.hessian.size, generator=generator(*key), dtype=self.theta.dtype) for key in self.keys(name)]
        return torch.stack(drawn).to(self.theta.device)


class Observer:
    """Measures moments of a training as its configuration asks."""

    def __init__(self, config: RunConfig, objective: Objective, data: Dataset, tracked: int, memory: int) -> None:
        """Take hold of the training's data.

        Args:
            config: What to measure, and when.
            objective: Network and loss.
            data: Training and test examples.
            tracked: Number of eigenpairs to solve for.
            memory: Bytes of kept passes.
        """
        self.config, self.objective, self.tracked, self.memory = config, objective, tracked, memory
        self.drawn_memory = min(memory, drawn_memory(data.x.device))
        self.x, self.y, self.x_test, self.y_test = (t.unsqueeze(0) for t in (data.x, data.y, data.x_test, data.y_test))

    def observe(self, moment: Moment, window: windows.Window | None, rows: list[int]) -> tuple[Eigenpairs, Columns]:
        """Measure everything but loss and accuracy.

        Args:
            moment: The members to measure.
            window: The window that ends at this step, if one does.
            rows: Their places in the window's stack.

        Returns:
            The top eigenpairs, and the columns of the run file, each (R,).
        """
        config, hessian = self.config.at(moment.step), moment.hessian
        pairs, check = self._sharpness(moment)
        variance = measurements.variance_of_batch_means(pairs.carried[:, 0], config.batch_size, config.sampling)
        if self.objective.network.couples_examples:  # no example has a gradient of its own
            variance = torch.full_like(variance, torch.nan)
        test = self.x_test, self.y_test
        columns = {f"sharpness_{j + 1}": pairs.values[:, j] for j in range(1, config.eig_k)} | {
            "test_accuracy": measurements.loss_and_accuracy(self.objective, moment.theta, *test, self.memory)[1],
            "sharpness": pairs.values[:, 0],
            "sharpness_residual": pairs.residuals[:, : config.eig_k].amax(1),
            "sharpness_products": pairs.products,
            "sharpness_miss": pairs.miss,
            "noise_variance": variance,
            **check,
        }
        if moment.scale is not None:
            where = (hessian, moment.scale, pairs.vectors[:, 0], moment.random("preconditioned"))
            scaled = measurements.preconditioned_sharpness(*where, tol=config.eig_tol)
            columns["preconditioned_sharpness"] = scaled.values[:, 0]
        if self._samples_due(moment):
            columns |= self._sampled(moment, pairs)
        if moment.step in (0, config.steps):
            columns |= self._static(moment, pairs)
        if window is not None:
            columns |= self._windowed(moment, pairs.vectors[:, 0], window, rows)
        return pairs, columns

    def _samples_due(self, moment: Moment) -> bool:
        return bool(self.config.sample_every) and moment.step % self.config.sample_every == 0

    def _sharpness(self, moment: Moment) -> tuple[Eigenpairs, Columns]:
        """Solve for the top eigenpairs, from what the last solve found; at the run's last step, from a random vector as well.

        Both look for an eigenvalue above the one they find, and know how likely they have missed one. The larger of the two is
        taken, and the second is recorded: it says how far the first was off.
        """
        tol, check = self.config.eig_tol, dict[str, torch.Tensor]()
        operator = moment.hessian.with_slopes  # the slopes of the eigenvectors give σ_u² without another pass
        options: dict[str, Any] = {"k": self.tracked, "tol": tol, "nearby": NEARBY}
        first = not moment.vectors.shape[1]
        probe = Probe(moment.probe) if first else Probe.carried(moment.probe, moment.random("probe"))
        pairs = top_eigenpairs(operator, moment.vectors, probe=probe, **options)
        if moment.step == self.config.steps:
            second = top_eigenpairs(operator, moment.vectors[:, :0], probe=Probe(moment.random("eigen check")), **options)
            missed = second.values[:, 0] > pairs.values[:, 0] * (1 + tol)
            if bool(missed.any()):
                by = float((second.values[:, 0] / pairs.values[:, 0] - 1).amax())
                log.warning("step %d: the warm-started eigen-solver had missed the top eigenvalue, by %.1e of it", moment.step, by)
            pairs, check = Eigenpairs.where(missed, second, pairs), {"sharpness_check": second.values[:, 0]}
        return warn_if_uncertain(pairs, f"step {moment.step}, λ_max"), check

    def _sampled(self, moment: Moment, pairs: Eigenpairs) -> Columns:
        """Measure what is estimated from drawn mini-batches of the size that the next step will take."""
        config = self.config.at(moment.step)
        precision = config.sample_precision or math.inf
        options: dict[str, Any] = {"batch_size": config.batch_size, "sampling": config.sampling, "memory": self.drawn_memory}
        where = (self.objective, moment.theta, self.x, self.y)
        values: Columns = {}
        if config.batch_sharpness_draws:
            keys, draws = moment.keys("batch sharpness"), config.batch_sharpness_draws
            both = measurements.batch_sharpness(*where, draws=draws, keys=keys, precision=precision, **options)
            values |= _columns("batch_sharpness", both.ratio_of_means)
            values |= _columns("batch_sharpness_mean_of_ratios", both.mean_of_ratios)
            values["batch_sharpness_draws"] = both.ratio_of_means.draws
        if config.minibs_draws:
            keys, draws = moment.keys("minibatch sharpness"), config.minibs_draws
            full, u = pairs.values[:, 0], pairs.vectors[:, 0]
            lot: dict[str, Any] = options | {"draws": draws, "keys": keys, "precision": precision}
            top = measurements.minibatch_sharpness(*where, u, sharpness=full, **lot)
            values |= _columns("minibatch_sharpness", top.value) | _columns("minibs_gap", top.gap)
            values["minibatch_sharpness_draws"] = top.value.draws
        if config.overlap_draws:
            found = overlap.measure(*where, draws=config.overlap_draws, keys=moment.keys("overlap"), **options)
            for name, estimate in vars(found).items():
                values |= _columns(f"overlap_{name}", estimate)
        return values

    def _static(self, moment: Moment, pairs: Eigenpairs) -> Columns:
        """Measure MiniBS and its gap at other batch sizes, at the same parameters."""
        config, values = self.config, dict[str, torch.Tensor]()
        where = (self.objective, moment.theta, self.x, self.y, pairs.vectors[:, 0])
        for size in config.static_sizes:
            options: dict[str, Any] = {"batch_size": size, "draws": config.minibs_draws, "sampling": config.sampling}
            options |= {"keys": moment.keys(f"static {size}"), "tol": config.eig_tol, "sharpness": pairs.values[:, 0]}
            options["memory"] = self.drawn_memory
            found = measurements.minibatch_sharpness(*where, **options)
            values |= _columns(f"static_minibs_{size:04d}", found.value) | _columns(f"static_gap_{size:04d}", found.gap)
        return values

    def _windowed(self, moment: Moment, u: torch.Tensor, window: windows.Window, rows: list[int]) -> Columns:
        """Measure α, β and E[x²] over the window that ends at this step, and α at the raw iterate to compare."""
        config = self.config
        found = windows.measure(
            self.objective,
            window,
            rows,
            self.x,
            self.y,
            u.unsqueeze(1),
            moment.random("window"),
            batch_size=config.batch_size,
            k=config.window_k,
            newton_steps=config.newton_steps,
            sampling=config.sampling,
            tol=config.eig_tol,
            memory=self.memory,
        )
        raw, _ = windows.alpha_beta(self.objective, moment.theta, moment.hessian.gradient(), u, self.x, self.y, self.memory)
        return {"raw_alpha": raw, **found.columns()}
