"""Your own data, network and loss in the form that the measurements take: everything is a function of indices of examples.

Examples are fetched by index while they are needed; what would make numbers that mean nothing (a data set that gives another
example each time, a loss that is no mean, a sampler that is not known here) is refused.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping, Sequence
from typing import Any

import numpy as np
import torch
from torch import nn
from torch.utils import _pytree as pytree
from torch.utils.data import (
    BatchSampler,
    DataLoader,
    Dataset,
    IterableDataset,
    RandomSampler,
    SequentialSampler,
    SubsetRandomSampler,
    TensorDataset,
    default_collate,
)

from eosslib.automatic import ModuleNetwork
from eosslib.errors import ConfigError
from eosslib.losses import Loss

LossFunction = Callable[[torch.Tensor, Any], torch.Tensor]
Data = DataLoader[Any] | Dataset[Any] | Sequence[torch.Tensor]
PROBED = 32  # examples, spread over the data, on which data, network and loss are tried
INSTEAD = "give tensors (inputs, …, targets), a map-style data set, or a DataLoader of one"


class Examples:
    """All examples of a data set, fetched by index; nothing is copied before it is needed.

    Attributes:
        count: n.
        batch_size: The loader's, where the data is one.
        sampling: How the loader draws, ``reshuffle`` or ``iid``; ``reshuffle`` where the data is no loader.
        probe: Indices of a few examples that are spread over the data.
    """

    def __init__(self, data: Data, target: str, device: torch.device) -> None:
        """Take hold of the data.

        Args:
            data: Tensors ``(inputs, …, targets)``, a ``TensorDataset``, another map-style data set, or a ``DataLoader`` of one,
                which may shuffle, draw with replacement, or be restricted to a subset by ``SubsetRandomSampler``.
            target: Key of the targets where a batch is a dictionary.
            device: Where to put what is fetched.

        Raises:
            ConfigError: The data cannot be fetched by index, or is drawn in a way that is not known here.
        """
        source: Any = data.dataset if isinstance(data, DataLoader) else data
        if isinstance(source, IterableDataset | Mapping) or not (isinstance(source, Sequence) or hasattr(source, "__getitem__")):
            raise ConfigError(f"the data cannot be fetched by index: {INSTEAD}")
        self._source, self._target, self._device = source, target, device
        self._collate = getattr(data, "collate_fn", None) or default_collate
        self._tensors = _columns(data)
        if type(source) is TensorDataset and self._collate is default_collate:
            self._tensors = source.tensors  # whose batches are those of the tensors
        self._chosen: torch.Tensor | None = None
        self.batch_size: int | None = None
        self.sampling = "reshuffle"
        if isinstance(data, DataLoader):
            self._draw_as(data)
        whole = len(self._tensors[-1]) if self._tensors else len(source)
        self.count = whole if self._chosen is None else len(self._chosen)
        if not self.count:
            raise ConfigError("there are no examples in the data")
        self._last: tuple[torch.Tensor, tuple[Any, Any]] | None = None
        probed = min(PROBED, self.count)
        self.probe = torch.arange(probed, device=device) * self.count // probed

    def _draw_as(self, loader: DataLoader[Any]) -> None:
        """Take over from a loader which examples it draws, how many at a time, and how."""
        batches = loader.batch_sampler
        sampler: Any = batches.sampler if type(batches) is BatchSampler else batches
        if not isinstance(batches, BatchSampler) or type(sampler) not in (SequentialSampler, RandomSampler, SubsetRandomSampler):
            name = type(sampler).__name__
            raise ConfigError(f"how a loader draws with {name} is not known here: give its data set itself, and batch_size=")
        self.batch_size = batches.batch_size
        if isinstance(sampler, SubsetRandomSampler):
            self._chosen = torch.as_tensor(list(sampler.indices), dtype=torch.int64)
        elif len(sampler.data_source) != len(self._source):  # it was made for other data, and draws from so many
            self._chosen = torch.arange(len(sampler.data_source))
        if isinstance(sampler, RandomSampler) and sampler.replacement:
            self.sampling = "iid"

    def __call__(self, indices: torch.Tensor) -> tuple[Any, Any]:
        """Return the inputs and the targets of some examples, on the device."""
        if self._last is None or not torch.equal(self._last[0], indices):
            self._last = indices.clone(), self._fetch(indices)
        return self._last[1]

    def check(self) -> None:
        """See that the same index gives the same example.

        Raises:
            ConfigError: It does not.
        """
        if not _same(self._fetch(self.probe), self._fetch(self.probe)):
            raise ConfigError("the data set gives another example each time: measure on one without random augmentation")

    def _fetch(self, indices: torch.Tensor) -> tuple[Any, Any]:
        if self._chosen is not None:
            indices = self._chosen[indices.cpu()]
        batch: Any = (
            tuple(part[indices.to(part.device)] for part in self._tensors)
            if self._tensors
            else self._collate([self._source[i] for i in indices.tolist()])
        )
        batch = _to(batch, self._device)
        if isinstance(batch, Mapping):
            if self._target not in batch:
                raise ConfigError(f"a batch has the keys {', '.join(map(str, batch))}: say with target= which are the targets")
            return {key: value for key, value in batch.items() if key != self._target}, batch[self._target]
        if not isinstance(batch, tuple | list) or len(batch) < 2:
            raise ConfigError("a batch must be (inputs, …, targets) or a dictionary")
        return tuple(batch[:-1]), batch[-1]


def _columns(data: Any) -> tuple[torch.Tensor, ...] | None:
    """Return the tensors ``(inputs, …, targets)`` where the data are given so, else None: examples are fetched one by one."""
    if not isinstance(data, tuple | list):
        return None
    if any(isinstance(part, np.ndarray) for part in data):
        raise ConfigError("the data are numpy arrays: make tensors of them, torch.as_tensor(array)")
    if not all(isinstance(part, torch.Tensor) for part in data):
        return None
    lengths = [len(part) for part in data]
    if len(set(lengths)) > 1:
        raise ConfigError(f"the tensors hold different numbers of examples: {', '.join(map(str, lengths))}")
    return tuple(data)


def _same(a: Any, b: Any) -> bool:
    """Whether the tensors, arrays, numbers and strings of two batches are the same, NaN being the same as NaN."""
    first, second = pytree.tree_leaves(a), pytree.tree_leaves(b)
    return len(first) == len(second) and all(map(_alike, first, second))


def _alike(x: Any, y: Any) -> bool:
    if isinstance(x, torch.Tensor):
        comparable = isinstance(y, torch.Tensor) and x.layout is y.layout is torch.strided
        return torch.equal(x.nan_to_num(), y.nan_to_num()) if comparable else True
    if isinstance(x, np.ndarray):
        return np.array_equal(x, y)
    return bool(x == y) if isinstance(x, bool | int | float | str | bytes) else True


def _to(item: Any, device: torch.device) -> Any:
    if isinstance(item, torch.Tensor):
        return item.to(device)
    if isinstance(item, Mapping):
        return {key: _to(value, device) for key, value in item.items()}
    return tuple(_to(value, device) for value in item) if isinstance(item, tuple | list) else item


class FetchingNetwork(ModuleNetwork):
    """A module as a function of flat parameters and of the *indices* of its examples (R, B)."""

    def __init__(self, module: nn.Module, examples: Examples) -> None:
        """Take hold of module and data."""
        super().__init__(module)
        self.examples = examples

    def one(self, params: Sequence[torch.Tensor], x: torch.Tensor) -> torch.Tensor:
        """Apply one network to the examples with these indices (B,): (B, …)."""
        # Copies, because a network may change its inputs in place, and the same ones are handed out again.
        inputs = pytree.tree_map(lambda part: part.clone() if isinstance(part, torch.Tensor) else part, self.examples(x)[0])
        named = {**dict(zip(self.names, params, strict=True)), **{k: b.clone() for k, b in self.module.named_buffers()}}
        arguments = ((), dict(inputs)) if isinstance(inputs, Mapping) else (inputs, {})
        outputs: Any = torch.func.functional_call(self.module, named, *arguments)
        if not isinstance(outputs, torch.Tensor):
            raise ConfigError(f"the model returns {type(outputs).__name__}, not a tensor: wrap it in a module that returns one")
        return outputs

    def outputs(self, indices: torch.Tensor) -> torch.Tensor:
        """Apply the module as it is to the examples with these indices (B,): (B, …)."""
        with torch.no_grad():
            return self.one([p.detach() for p in self.module.parameters() if p.requires_grad], indices)

    def check(self, batch_size: int) -> None:
        """See that batches of this size can be measured in the mode that the module is in now.

        Raises:
            ConfigError: Its outputs are random numbers, or a single example cannot be normalised.
        """
        if self.couples_examples and batch_size == 1:
            try:  # a single example may have something to take statistics of, as an image has
                self.outputs(self.examples.probe[:1])
            except ValueError as error:
                raise ConfigError(f"batches of a single example cannot be normalised ({error}): take a larger batch_size") from None
        dropout = nn.modules.dropout._DropoutNd
        if any(part.training and isinstance(part, dropout) and part.p > 0 for part in self.module.modules()) or not self._repeats():
            raise ConfigError(
                "the model's outputs are random numbers, as dropout makes them: call model.eval() around measure, or set its p to 0"
            )

    def _repeats(self) -> bool:
        """Whether the network gives the same outputs twice, but for what a GPU's sums differ by."""
        first, second = (self.outputs(self.examples.probe) for _ in range(2))
        off = 1e-4 * float(first.nan_to_num().abs().max())
        return torch.allclose(first, second, rtol=0, atol=off, equal_nan=True)


def loss_of(function: LossFunction, examples: Examples) -> Loss:
    """Make a per-example loss of a function of outputs and targets that returns the mean over a batch."""

    def single(output: torch.Tensor, target: Any) -> torch.Tensor:
        return function(output.unsqueeze(0), pytree.tree_map(lambda part: part.unsqueeze(0), target))

    def value(outputs: torch.Tensor, indices: torch.Tensor) -> torch.Tensor:
        return torch.func.vmap(single)(outputs, examples(indices)[1])

    def gradient(outputs: torch.Tensor, indices: torch.Tensor) -> torch.Tensor:
        with torch.enable_grad():
            point = outputs.detach().requires_grad_()
            return torch.autograd.grad(value(point, indices).sum(), point)[0]

    def curvature(outputs: torch.Tensor, indices: torch.Tensor, v: torch.Tensor) -> torch.Tensor:
        with torch.enable_grad():
            point = outputs.detach().requires_grad_()
            slope = torch.autograd.grad(value(point, indices).sum(), point, create_graph=True)[0]
            return torch.autograd.grad(slope, point, v)[0]

    return Loss(value, gradient, curvature, right=lambda outputs, indices: torch.zeros_like(indices, dtype=torch.bool))


def check_loss(function: LossFunction, loss: Loss, network: FetchingNetwork) -> None:
    """See that the loss of a batch is the mean over its examples, and that it can be taken example by example.

    Args:
        function: The loss of a batch.
        loss: The same of single examples (``loss_of``).
        network: What gives outputs to try it on.

    Raises:
        ConfigError: It is not, or cannot; the message says what to do.
    """
    probe, training = network.examples.probe, {part: part.training for part in network.module.modules()}
    network.module.eval()
    try:
        outputs = network.outputs(probe)
    finally:
        for part, mode in training.items():
            part.training = mode
    with torch.enable_grad():
        whole = function(outputs.detach(), network.examples(probe)[1])
    if not isinstance(whole, torch.Tensor):
        raise ConfigError(f"the loss returns {type(whole).__name__}, not a tensor: leave out .item()")
    if whole.requires_grad:
        raise ConfigError("the loss depends on parameters besides the outputs: leave that part out, weight_decay= of SGD is known")
    if whole.ndim:
        raise ConfigError("the loss of a batch is not a number: use reduction='mean'")
    try:
        single = loss.value(outputs, probe)
    except (RuntimeError, ValueError, TypeError) as error:
        raise ConfigError(f"the loss cannot be taken example by example: {str(error).splitlines()[0]}") from None
    there = math.isfinite(whole)  # else the training has diverged
    if there and not math.isclose(float(whole), float(single.mean()), rel_tol=1e-4, abs_tol=1e-6):
        raise ConfigError(
            "the loss of a batch is not the mean over its examples: use reduction='mean', without class weights or ignore_index"
        )
