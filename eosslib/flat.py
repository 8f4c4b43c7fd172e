"""A network as a function of one flat parameter vector, or of a stack of them, and its derivatives, layer by layer.

A stack holds R parameter vectors of the same network: R seeds of one run, or one network at R mini-batches. The layers are
applied with batched matrix products, which cost little more for three small networks than for one.
"""

from __future__ import annotations

import itertools
from collections.abc import Iterator, Sequence
from math import prod

import torch
from torch import nn

from eosslib import layers
from eosslib.layers import Kept, Layer
from eosslib.losses import Loss

Params = tuple[torch.Tensor, ...]


def unsupported(module: nn.Module) -> str | None:
    """Say why a module has no stacked form; None where it has one.

    That is an ``nn.Sequential`` of layers that have one (``layers.FORMS``), with parameters of their own that are all trained.
    """
    if not isinstance(module, nn.Sequential) or type(module).forward is not nn.Sequential.forward:
        return f"{type(module).__name__} does not apply its layers one after the other, as nn.Sequential does"
    if not all(p.requires_grad for p in module.parameters()):
        return "only networks without frozen parameters can be stacked"
    reasons = [reason for part in module if (reason := layers.unsupported(part)) is not None]
    if reasons:
        return reasons[0]
    if sum(layers.FORMS[type(part)].parameters for part in module) != len(list(module.parameters())):  # a shared one is there once
        return "only layers with parameters of their own can be stacked"
    return None


class StackedNetwork:
    """A ``nn.Sequential`` as a function of a stack of flat parameter vectors.

    The layers are written out, each with parameters of its own that are all trained; ``automatic.ModuleNetwork`` is the same
    for any module.

    Attributes:
        shapes: Shapes of the parameters of one network, in the module's order.
        size: P, the number of parameters of one network.
        layers: The layers, and for each the place of its parameters among all.
    """

    couples_examples = False

    def __init__(self, module: nn.Module) -> None:
        """Read layers and shapes off the module; its values are not kept.

        Raises:
            TypeError: It has no stacked form; the message says why.
        """
        reason = unsupported(module)
        if reason is not None:
            raise TypeError(reason)
        assert isinstance(module, nn.Sequential)
        self.shapes = [tuple(p.shape) for p in module.parameters()]
        self.sizes = [prod(shape) for shape in self.shapes]
        self.size = sum(self.sizes)
        self.layers, position = [], 0
        for part in module:
            layer = layers.FORMS[type(part)]()
            self.layers.append((layer, slice(position, position + layer.parameters)))
            position += layer.parameters
        self.first = next((i for i, (layer, _) in enumerate(self.layers) if layer.parameters), len(self.layers))
        self.one_by_one = any(layer.one_by_one for layer, _ in self.layers)

    def views(self, theta: torch.Tensor) -> Params:
        """Return the parameters as views into a stack: (R, P) → each (R, *shape)."""
        parts = theta.split(self.sizes, dim=1)
        return tuple(part.unflatten(1, shape) for part, shape in zip(parts, self.shapes, strict=True))

    def flatten(self, params: Sequence[torch.Tensor]) -> torch.Tensor:
        """Inverse of ``views``: each (R, *shape) → (R, P), copied."""
        return torch.cat([p.flatten(1) for p in params], dim=1)

    def blocks(self, stack: int) -> list[slice]:
        """Return the parts of a stack that are computed together: all of it, or one network after the other."""
        return [slice(r, r + 1) for r in range(stack)] if self.one_by_one else [slice(0, stack)]

    def __call__(self, params: Sequence[torch.Tensor], x: torch.Tensor) -> torch.Tensor:
        """Apply the networks.

        Args:
            params: Stack of parameters, each (R, *shape).
            x: Inputs (R, B, *shape), or (1, B, *shape) where all networks see the same ones.

        Returns:
            Outputs (R, B, K).
        """
        stack = len(params[0])
        x = x.expand(stack, *x.shape[1:])
        return torch.cat([self.forward([p[rows] for p in params], x[rows])[-1].y for rows in self.blocks(stack)])

    def forward(self, params: Sequence[torch.Tensor], x: torch.Tensor) -> list[Kept]:
        """Apply the networks of one block and keep what every layer needs for the backward pass."""
        kept = []
        for layer, place in self.layers:
            k = layer.forward(params[place], x)
            kept.append(k)
            x = k.y
        return kept

    def output_bytes(self, params: Sequence[torch.Tensor], x: torch.Tensor) -> int:
        """Return the bytes of all layer outputs of the whole stack for one example of ``x``."""
        kept = self.forward([p[:1] for p in params], x[:1, :1])
        return sum(k.y.numel() * k.y.element_size() for k in kept) * len(params[0])

    def linearization(
        self, loss: Loss, params: Sequence[torch.Tensor], x: torch.Tensor, y: torch.Tensor, weights: torch.Tensor | float
    ) -> Linearization:
        """Return forward and backward pass of one block of a stack."""
        return Linearization(self, loss, params, x, y, weights)

    def gradient(
        self, loss: Loss, params: Sequence[torch.Tensor], x: torch.Tensor, y: torch.Tensor, weights: torch.Tensor | float
    ) -> list[torch.Tensor]:
        """Return the gradient of each network of one block of a stack, per parameter."""
        return Linearization(self, loss, params, x, y, weights).gradient()


class Linearization:
    """A forward and a backward pass through one block of a stack, kept for derivatives at the same parameters.

    Building it costs about a third of a gradient where the first layer is the largest, and two thirds where it is not.

    Attributes:
        losses: ℓᵢ of every network and example (R, B).
        outputs: f(xᵢ) (R, B, K).
    """

    def __init__(
        self,
        network: StackedNetwork,
        loss: Loss,
        params: Sequence[torch.Tensor],
        x: torch.Tensor,
        y: torch.Tensor,
        weights: torch.Tensor | float,
    ) -> None:
        """Run both passes.

        Args:
            network: The network.
            loss: The loss.
            params: Stack of parameters, each (R, *shape).
            x: Inputs (R, B, *shape).
            y: Targets (1, B, K) or (R, B, K).
            weights: What each ℓᵢ counts in the objective L = Σᵢ wᵢ ℓᵢ: (R, B), or one number.
        """
        self._network, self._loss, self._y, self._data = network, loss, y, x.untyped_storage().data_ptr()
        self._weights = weights.unsqueeze(-1) if isinstance(weights, torch.Tensor) else weights
        self._kept = network.forward(params, x)
        self.outputs = self._kept[-1].y
        for (layer, _), k in zip(network.layers, self._kept, strict=True):
            if not layer.keeps_output:
                k.y = k.y.new_empty(0)
        self._slope = loss.gradient(self.outputs, y)
        self._kept[-1].g = self._slope * self._weights
        for ((layer, _), k), (_, below) in itertools.pairwise(self._backwards()):
            if below is self._kept[network.first]:  # often the largest, and no product asks for it
                break
            below.g = layer.input_gradient(k, _given(k.g))
            if not layer.keeps_gradient:
                k.g = None

    def _backwards(self) -> Iterator[tuple[tuple[Layer, slice], Kept]]:
        """Yield the layers from the last to the first that has parameters."""
        first = self._network.first
        return zip(reversed(self._network.layers[first:]), reversed(self._kept[first:]), strict=True)

    @property
    def losses(self) -> torch.Tensor:
        """ℓᵢ (R, B)."""
        return self._loss.value(self.outputs, self._y)

    @property
    def right(self) -> torch.Tensor:
        """Whether the largest output is that of the largest target (R, B)."""
        return self._loss.right(self.outputs, self._y)

    @property
    def nbytes(self) -> int:
        """Bytes that are kept besides the inputs and the parameters."""
        tensors = [t for k in self._kept[self._network.first :] for t in (k.y, k.extra, k.g, k.x) if t is not None]
        storages = {t.untyped_storage().data_ptr(): t.untyped_storage().nbytes() for t in tensors}
        return sum(size for address, size in storages.items() if address != self._data)

    def gradient(self) -> list[torch.Tensor]:
        """Return ∇L per parameter, each (R, *shape)."""
        return self._collect([layer.parameter_gradients(k.x, g) for layer, k, g in self._gradients()])

    def squares(self) -> list[torch.Tensor]:
        """Return Σᵢ (wᵢ ∇ℓᵢ)², coordinate by coordinate, per parameter."""
        return self._collect([layer.squares(k.x, g) for layer, k, g in self._gradients()])

    def _gradients(self) -> Iterator[tuple[Layer, Kept, torch.Tensor]]:
        """Yield the layers with parameters from the last to the first, what they kept, and ∂L/∂y."""
        above: tuple[Layer, Kept] | None = None
        for (layer, _), k in self._backwards():
            if layer.parameters:
                g = k.g
                if g is None and above is not None:  # that of the first one, not kept
                    g = above[0].input_gradient(above[1], _given(above[1].g))
                yield layer, k, _given(g)
            above = layer, k

    def _collect(self, backwards: list[list[torch.Tensor]]) -> list[torch.Tensor]:
        return [part for parts in reversed(backwards) for part in parts]

    def _tangents(self, v: Sequence[torch.Tensor]) -> tuple[list[torch.Tensor | None], torch.Tensor]:
        """Return the tangents of every layer's input, and of the outputs (R, B, K)."""
        inputs: list[torch.Tensor | None] = []
        dx: torch.Tensor | None = None
        for (layer, place), k in zip(self._network.layers, self._kept, strict=True):
            inputs.append(dx)
            dx = layer.tangent(k, v[place], dx)
        return inputs, _given(dx)

    def slopes(self, v: Sequence[torch.Tensor]) -> torch.Tensor:
        """Return vᵀ∇ℓᵢ, whatever the weights, for directions v per parameter: (R, B)."""
        return (self._slope * self._tangents(v)[1]).sum(-1)

    def product(self, v: Sequence[torch.Tensor]) -> list[torch.Tensor]:
        """Return (∇²L) v per parameter, for directions v per parameter."""
        return self.product_and_slopes(v)[0]

    def product_and_slopes(self, v: Sequence[torch.Tensor]) -> tuple[list[torch.Tensor], torch.Tensor]:
        """Return what ``product`` and ``slopes`` return, for the cost of the product alone."""
        inputs, df = self._tangents(v)
        dg = self._loss.curvature(self.outputs, self._y, df) * self._weights
        results = []
        for ((layer, place), k), dx in zip(self._backwards(), reversed(inputs[self._network.first :]), strict=True):
            results.append(layer.parameter_gradients_tangent(k, dx, dg))
            if k is not self._kept[self._network.first]:
                dg = layer.input_gradient_tangent(k, v[place], dx, dg)
        return self._collect(results), (self._slope * df).sum(-1)

    def gauss_newton(self, v: Sequence[torch.Tensor], middle: bool = True) -> list[torch.Tensor]:
        """Return Σᵢ wᵢ JᵢᵀAᵢJᵢ v per parameter, Jᵢ the Jacobian of the outputs, Aᵢ the Hessian ∂²ℓᵢ/∂f² of the loss.

        Without ``middle`` Aᵢ is left out: that has the eigenvalues, other than zero, of the NTK JJᵀ with weights.
        """
        g = self._tangents(v)[1]
        g = (self._loss.curvature(self.outputs, self._y, g) if middle else g) * self._weights
        results = []
        for (layer, _), k in self._backwards():
            results.append(layer.parameter_gradients(k.x, g))
            if k is not self._kept[self._network.first]:
                g = layer.input_gradient(k, g)
        return self._collect(results)


def _given(tensor: torch.Tensor | None) -> torch.Tensor:
    if tensor is None:
        raise ValueError("a network without parameters has no derivatives")
    return tensor
