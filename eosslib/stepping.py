"""The steps between two measurements, for a stack of runs; on CUDA a stretch of them is one captured graph, replayed.

A captured graph repeats the same kernels on the same memory, without Python and without waiting for the device; so everything
that changes from stretch to stretch (parameters, batches, the top eigenvectors, the number of the step) lives in tensors that
are written in place. On the CPU the same loop runs as it is.
"""

from __future__ import annotations

from collections.abc import Sequence

import torch

from eosslib import catalogue, dynamics, updates
from eosslib.curvature import Point
from eosslib.sampling import batches
from eosslib.settings import RunConfig
from eosslib.streams import seed_of
from eosslib.theory import finite_population

GRAPHED = ("cuda",)  # kinds of devices on which steps are captured and replayed
MAX_GRAPH = 100  # steps in one captured graph


class Stepper:
    """Steps a stack of parameter vectors in place."""

    def __init__(self, config: RunConfig, start: Point, parts: list[slice], seeds: Sequence[int], kept: torch.Tensor) -> None:
        """Take hold of the parameters.

        Args:
            config: Step size, batch size, sampling, noise model.
            start: The networks before the training set; their parameters are changed in place.
            parts: Chunks of the n examples, for full-batch gradients.
            seeds: One a network.
            kept: What the optimizer keeps (R, K, P), changed in place.
        """
        objective, theta = start.objective, start.theta
        self.config, self.theta, self.kept, self.seeds = config, theta, kept, list(seeds)
        self._flatten = objective.network.flatten
        self._direction = dynamics.gradient if config.full_batch else dynamics.direction(config.noise)
        self._uses_batch = not config.full_batch and catalogue.NOISES[config.noise].batch
        self._params = objective.network.views(theta)
        device = theta.device
        keys = torch.tensor([seed_of("noise", seed) for seed in seeds], device=device)
        self._step = torch.zeros((), dtype=torch.int64, device=device)
        count = dynamics.directions(config.noise, config.noise_directions)
        self._u = theta.new_zeros(len(theta), count, theta.shape[1]) if count else None
        factor = finite_population(start.x.shape[1], config.batch_size, config.sampling)
        self._context = dynamics.StepContext(objective, start.x, start.y, parts, factor, keys, self._step, self._u)
        self._graphs: dict[int, tuple[torch.cuda.CUDAGraph, torch.Tensor | None]] = {}
        self._side: torch.cuda.Stream | None = None

    def advance(self, start: int, stop: int, u: torch.Tensor) -> None:
        """Make the steps ``start`` … ``stop − 1``.

        Args:
            start: First step.
            stop: One past the last step.
            u: Top eigenvectors (R, k, P), as many as the projected noise takes, or more.
        """
        if self._u is not None:
            count = self._u.shape[1]
            assert u.shape[1] >= count  # one vector would be copied into every place
            self._u.copy_(u[:, :count])
        self._step.fill_(start)
        indices = self.draw(start, stop) if self._uses_batch else None
        if self.theta.device.type not in GRAPHED:
            self._make(stop - start, indices)
            return
        with torch.cuda.device(self.theta.device):
            for first in range(0, stop - start, MAX_GRAPH):
                count = min(MAX_GRAPH, stop - start - first)
                self._replay(count, None if indices is None else indices[first : first + count])

    def draw(self, start: int, stop: int) -> torch.Tensor:
        """Draw the batches of the steps, on the device: (T, R, b)."""
        c, device = self.config, self.theta.device
        return torch.stack([batches(c.train_size, c.batch_size, c.sampling, s, start, stop, device) for s in self.seeds], dim=1)

    def _make(self, count: int, indices: torch.Tensor | None) -> None:
        for t in range(count):
            update = self._direction(self._context, self._params, None if indices is None else indices[t])
            if self.kept.shape[1]:
                self.theta.sub_(self.config.lr * updates.apply(self.config, self.kept, self._flatten(update), self._step))
            else:
                torch._foreach_add_(list(self._params), list(update), alpha=-self.config.lr)
            self._step += 1

    def _replay(self, count: int, indices: torch.Tensor | None) -> None:
        if count not in self._graphs:
            self._graphs[count] = self._capture(count, indices)
        graph, buffer = self._graphs[count]
        if buffer is not None and indices is not None:
            buffer.copy_(indices)
        graph.replay()

    def _capture(self, count: int, indices: torch.Tensor | None) -> tuple[torch.cuda.CUDAGraph, torch.Tensor | None]:
        """Capture so many steps; the parameters are as before afterwards."""
        buffer = None if indices is None else indices.clone()
        theta, kept, step = self.theta.clone(), self.kept.clone(), self._step.clone()
        side = self._side = self._side or torch.cuda.Stream()
        side.wait_stream(torch.cuda.current_stream())
        with torch.cuda.stream(side):  # libraries choose their kernels and workspaces in a rehearsal, on the stream they record
            self._make(1, buffer)
        torch.cuda.current_stream().wait_stream(side)
        graph = torch.cuda.CUDAGraph()
        with torch.cuda.graph(graph, stream=side):
            self._make(count, buffer)
        self.theta.copy_(theta)
        self.kept.copy_(kept)
        self._step.copy_(step)
        return graph, buffer
