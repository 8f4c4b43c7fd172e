"""The companion's instruments on your own network: any ``torch.nn.Module``, loss, data set and optimizer.

The measurements are those of the pipeline (``curvature``, ``eigen``, ``measurements``, ``windows``); what is added here is the
way to them: parameters are read from the module, examples are fetched by index while they are needed, and afterwards everything is
as it was before.
"""

from __future__ import annotations

import contextlib
import math
from collections.abc import Callable, Iterator, Mapping, Sequence
from typing import TYPE_CHECKING, Any

import torch
from torch import nn
from torch.utils.data import DataLoader, Dataset, IterableDataset, TensorDataset, default_collate

from eosslib import measurements, optimizers, theory, windows
from eosslib.automatic import ModuleNetwork
from eosslib.curvature import Hessian
from eosslib.devices import drawn_memory, float32_products, kept_memory
from eosslib.eigen import NEARBY, Eigenpairs, top_eigenpairs
from eosslib.errors import ConfigError
from eosslib.flat import Objective
from eosslib.losses import Loss
from eosslib.streams import generator

if TYPE_CHECKING:
    import pandas as pd
    from matplotlib.axes import Axes

LossFunction = Callable[[torch.Tensor, Any], torch.Tensor]
Data = DataLoader[Any] | Dataset[Any] | Sequence[torch.Tensor]


class Examples:
    """All examples of a data set, fetched by index; nothing is copied before it is needed."""

    def __init__(self, data: Data, target: str, device: torch.device) -> None:
        """Take hold of the data.

        Args:
            data: Tensors ``(inputs, …, targets)``, a ``TensorDataset``, another map-style data set, or a ``DataLoader`` of one.
            target: Key of the targets where a batch is a dictionary.
            device: Where to put what is fetched.

        Raises:
            ConfigError: The data cannot be fetched by index.
        """
        source: Any = data.dataset if isinstance(data, DataLoader) else data
        if isinstance(source, IterableDataset) or not (isinstance(source, Sequence) or hasattr(source, "__getitem__")):
            raise ConfigError("the data cannot be fetched by index: give tensors, a map-style data set, or a DataLoader of one")
        self._tensors: tuple[torch.Tensor, ...] | None = None
        if isinstance(source, TensorDataset):
            self._tensors = source.tensors
        elif isinstance(source, Sequence) and source and all(isinstance(part, torch.Tensor) for part in source):
            self._tensors = tuple(source)
        self._source, self._target, self._device = source, target, device
        self._collate = getattr(data, "collate_fn", None) or default_collate
        self.count = len(self._tensors[-1]) if self._tensors else len(source)
        self._last: tuple[torch.Tensor, tuple[Any, Any]] | None = None

    def __call__(self, indices: torch.Tensor) -> tuple[Any, Any]:
        """Return the inputs and the targets of some examples, on the device."""
        if self._last is None or not torch.equal(self._last[0], indices):
            self._last = indices.clone(), self._fetch(indices)
        return self._last[1]

    def _fetch(self, indices: torch.Tensor) -> tuple[Any, Any]:
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
        inputs = self.examples(x)[0]
        named = {**dict(zip(self.names, params, strict=True)), **{k: b.clone() for k, b in self.module.named_buffers()}}
        arguments = ((), dict(inputs)) if isinstance(inputs, Mapping) else (inputs, {})
        outputs: Any = torch.func.functional_call(self.module, named, *arguments)
        if not isinstance(outputs, torch.Tensor):
            raise ConfigError(f"the model returns {type(outputs).__name__}, not a tensor: wrap it in a module that returns one")
        return outputs


def loss_of(function: LossFunction, examples: Examples) -> Loss:
    """Make a per-example loss of a function of outputs and targets that returns the mean over a batch."""

    def single(output: torch.Tensor, target: Any) -> torch.Tensor:
        return function(output.unsqueeze(0), torch.utils._pytree.tree_map(lambda part: part.unsqueeze(0), target))

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


class SharpnessTracker:
    """Measures where a training stands with respect to the edge of stability, and leaves the training as it is.

    Example:
        >>> x, y = torch.randn(40, 3), torch.randn(40, 1)
        >>> model = nn.Linear(3, 1)
        >>> optimizer = torch.optim.SGD(model.parameters(), lr=0.1)
        >>> tracker = SharpnessTracker(model, nn.MSELoss(), (x, y), optimizer, batch_size=8)
        >>> row = tracker.measure(0)
        >>> row["threshold"]
        20.0
        >>> bool(row["minibatch_sharpness"] > row["sharpness"])
        True
    """

    def __init__(
        self,
        model: nn.Module,
        loss: LossFunction,
        data: Data,
        optimizer: torch.optim.Optimizer,
        *,
        batch_size: int | None = None,
        draws: int = 40,
        minibs: bool = True,
        window: int = 0,
        target: str = "labels",
        seed: int = 0,
        tol: float = 1e-3,
        memory: int | None = None,
        callback: Callable[[int, dict[str, float]], None] | None = None,
    ) -> None:
        """Take hold of a training.

        Args:
            model: The network; parameters that do not require a gradient are left out.
            loss: Of outputs and targets, the *mean* over the batch, as ``nn.CrossEntropyLoss()``.
            data: Tensors ``(inputs, …, targets)``, a map-style data set, or a ``DataLoader``; the full batch is all of it.
            optimizer: What trains the model: ``SGD`` or ``Adam``; step size and state are read at every measurement.
            batch_size: b; default: the loader's. All of the data: full batch, nothing is sampled.
            draws: Mini-batches drawn for batch sharpness and MiniBS.
            minibs: Whether to measure MiniBS, the dearest of the measurements.
            window: Steps over which iterates are averaged for α, β and the predicted gap; call ``after_step`` after every step.
            target: Key of the targets where a batch is a dictionary.
            seed: Of the measurements' own random streams.
            tol: Relative residual of the eigenvalues.
            memory: Bytes that kept passes may hold, whatever the size of the data; default 4 GiB, on a GPU a third of its own.
            callback: Called with the step and the new row after every measurement, to feed a logger.

        Raises:
            ConfigError: Something cannot be measured as it is; the message says what to do.
        """
        self.model, self.optimizer, self.draws, self.minibs, self.seed = model, optimizer, draws, minibs, seed
        self.tol, self.callback = tol, callback
        self.parameters = [p for p in model.parameters() if p.requires_grad]
        if not self.parameters:
            raise ConfigError("the model has no parameters that require a gradient")
        device = self.parameters[0].device
        if any(p.device != device for p in self.parameters):
            raise ConfigError("the model lies on several devices: put it on one to measure it")
        self.memory = kept_memory(device, memory)
        self.examples = Examples(data, target, device)
        self.n = self.examples.count
        size = batch_size or (data.batch_size if isinstance(data, DataLoader) else None) or self.n
        if size > self.n:
            raise ConfigError(f"batch_size {size} is above the {self.n} examples")
        self.batch_size = size
        self._loss = loss_of(loss, self.examples)
        self._indices = torch.arange(self.n, device=device).unsqueeze(0)
        optimizers.edge(optimizer, self.parameters)
        self._check_loss(loss)
        self._vectors: torch.Tensor | None = None
        self._size, self._window = window, None if not window else windows.Window(self._theta(), window)
        self._rows: list[dict[str, float]] = []
        self._display: Any = None

    def measure(self, step: int) -> dict[str, float]:
        """Measure now.

        Args:
            step: What to call this moment in the table.

        Returns:
            ``step``, ``loss``, ``threshold``, ``sharpness`` with ``sharpness_residual``, with Adam ``preconditioned_sharpness``
            (that one is to be held against the threshold), ``noise_variance`` σ_u², ``batch_sharpness`` and
            ``minibatch_sharpness`` with their standard errors ``_se``, ``minibs_gap``; after a window ``alpha``, ``beta`` and
            ``predicted_gap``. Also the next row of ``frame``.

        Raises:
            ConfigError: Something cannot be measured as it is; the message says what to do.
        """
        with self._undisturbed():
            objective = self._objective()
            theta = self._theta()
            edge = optimizers.edge(self.optimizer, self.parameters)
            hessian = Hessian(objective, theta, self._indices, self._indices, self.memory)
            start = self._random(step) if self._vectors is None else self._vectors
            pairs = top_eigenpairs(hessian.with_slopes, start, tol=self.tol, nearby=NEARBY)
            self._vectors = pairs.starts
            u = pairs.vectors[:, 0]
            row = {
                "step": float(step),
                "loss": float(hessian.loss),
                "threshold": edge.threshold,
                "sharpness": float(pairs.values[0, 0]),
                "sharpness_residual": float(pairs.residuals[0, 0]),
            }
            if edge.scale is not None:
                row |= self._preconditioned(hessian, edge.scale, u)
            if not objective.network.couples_examples:
                variance = measurements.variance_of_batch_means(pairs.carried[:, 0], self.batch_size, "reshuffle")
                row["noise_variance"] = float(variance)
            row |= self._sampled(objective, theta, pairs, step) | self._windowed(objective, edge, step)
        self._rows.append(row)
        if self.callback is not None:
            self.callback(step, dict(row))
        self._refresh()
        return row

    def after_step(self) -> None:
        """Let the iterate after an optimizer step enter the window; needed only where ``window`` was given."""
        if self._window is None:
            raise ConfigError("give window= to average iterates")
        if self._window.count == self._size:
            self._window = windows.Window(self._theta(), self._size)
        self._window.add(self._theta())

    @property
    def frame(self) -> pd.DataFrame:
        """All measurements, a row each."""
        import pandas as pd

        return pd.DataFrame(self._rows)

    def plot(self, ax: Axes | None = None) -> Axes:
        """Draw what was measured against the threshold, in the house style."""
        from eosslib import panels

        return panels.tracked(self.frame, ax)

    def live(self) -> None:
        """Show the plot below this notebook cell and draw it anew, in place, at every measurement."""
        from IPython.display import display

        self._display = display(display_id=True)
        self._refresh()

    def _refresh(self) -> None:
        if self._display is not None and self._rows:
            import matplotlib.pyplot as plt

            figure = self.plot().figure
            self._display.update(figure)
            plt.close(figure)  # type: ignore[arg-type]

    def _theta(self) -> torch.Tensor:
        return torch.cat([p.detach().flatten() for p in self.parameters]).unsqueeze(0)

    def _random(self, step: int) -> torch.Tensor:
        theta = self._theta()
        drawn = torch.randn(1, 1, theta.shape[1], generator=generator("tracker", self.seed, step), dtype=theta.dtype)
        return drawn.to(theta.device)

    def _objective(self) -> Objective:
        """Return the objective in the mode that the model is in now."""
        for module in self.model.modules():
            if module.training and isinstance(module, nn.modules.dropout._DropoutNd) and module.p > 0:
                raise ConfigError("dropout makes the loss a random number: call model.eval() around measure, or set its p to 0")
        return Objective(FetchingNetwork(self.model, self.examples), self._loss)

    @contextlib.contextmanager
    def _undisturbed(self) -> Iterator[None]:
        """Compute in float32 where the model does, and leave the random streams as they are."""
        device = self.parameters[0].device
        with float32_products(), torch.random.fork_rng(devices=[device] if device.type == "cuda" else []):
            yield

    def _check_loss(self, function: LossFunction) -> None:
        """See that the loss of a batch is the mean over its examples, and that it can be taken example by example."""
        with self._undisturbed(), torch.no_grad():
            some = self._indices[0, : min(4, self.n)]
            training = {module: module.training for module in self.model.modules()}
            self.model.eval()
            outputs = FetchingNetwork(self.model, self.examples).one([p.detach() for p in self.parameters], some)
            for module, mode in training.items():
                module.training = mode
            whole = function(outputs, self.examples(some)[1])
            if whole.ndim:
                raise ConfigError("the loss of a batch is not a number: use reduction='mean'")
            try:
                single = self._loss.value(outputs, some)
            except RuntimeError as error:
                raise ConfigError(f"the loss cannot be taken example by example: {str(error).splitlines()[0]}") from None
        if not math.isclose(float(whole), float(single.mean()), rel_tol=1e-4, abs_tol=1e-6):
            raise ConfigError("the loss of a batch is not the mean over its examples: use reduction='mean', without class weights")

    def _preconditioned(self, hessian: Hessian, scale: list[torch.Tensor], u: torch.Tensor) -> dict[str, float]:
        root = torch.cat([part.flatten() for part in scale]).unsqueeze(0)
        pairs = measurements.preconditioned_sharpness(hessian, root, u, self._random(0), tol=self.tol)
        return {"preconditioned_sharpness": float(pairs.values[0, 0])}

    def _sampled(self, objective: Objective, theta: torch.Tensor, pairs: Eigenpairs, step: int) -> dict[str, float]:
        where = (objective, theta, self._indices, self._indices)
        options: dict[str, Any] = {"batch_size": self.batch_size, "draws": self.draws}
        options["memory"] = min(self.memory, drawn_memory(theta.device))
        both = measurements.batch_sharpness(*where, keys=[("batch sharpness", self.seed, step)], **options)
        found = {"batch_sharpness": both.ratio_of_means}
        if self.minibs:
            options |= {"u": pairs.vectors[:, 0], "sharpness": pairs.values[:, 0]}
            top = measurements.minibatch_sharpness(*where, keys=[("minibatch sharpness", self.seed, step)], **options)
            found |= {"minibatch_sharpness": top.value, "minibs_gap": top.gap}
        values = {name: float(estimate.value) for name, estimate in found.items()}
        return values | {f"{name}_se": float(estimate.standard_error) for name, estimate in found.items()}

    def _windowed(self, objective: Objective, edge: optimizers.Edge, step: int) -> dict[str, float]:
        if self._window is None or self._window.count < self._size or objective.network.couples_examples:
            return {}
        assert self._vectors is not None
        start = torch.cat([self._vectors[:, :1], self._random(step)], dim=1)
        options: dict[str, Any] = {"batch_size": self.batch_size, "tol": self.tol, "memory": self.memory}
        found = windows.measure(objective, self._window, [0], self._indices, self._indices, start, **options)
        alpha, beta, noise = float(found.alpha), float(found.beta), float(found.noise[0, 0])
        row = {"alpha": alpha, "beta": beta, "displacement": float(found.displacement[0, 0])}
        if edge.momentum is None:
            return row
        return row | {"predicted_gap": theory.predicted_gap(edge.lr, alpha, beta, noise, edge.momentum)}
