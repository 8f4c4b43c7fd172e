"""A network as a function of one flat parameter vector, or of a stack of them.

A stack holds R parameter vectors of the same network: R seeds of one run, or one network at R mini-batches. The layers are
applied with batched matrix products, which cost little more for three small networks than for one.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from math import prod

import torch
import torch.nn.functional as F
from torch import nn

from eosslib.losses import Loss

Params = tuple[torch.Tensor, ...]
Layer = Callable[[Sequence[torch.Tensor], torch.Tensor], torch.Tensor]
Tape = list[tuple[str, torch.Tensor, torch.Tensor]]


def _linear(params: Sequence[torch.Tensor], x: torch.Tensor) -> torch.Tensor:
    weight, bias = params
    return torch.baddbmm(bias.unsqueeze(1), x, weight.transpose(1, 2))


def _conv(params: Sequence[torch.Tensor], x: torch.Tensor) -> torch.Tensor:
    # Channels last: convolutions twice as fast on the CPU as in the default layout, poolings ten times.
    weight, bias = params
    x = x.squeeze(0).contiguous(memory_format=torch.channels_last)  # squeeze, not [0]: its gradient is a view
    if x.shape[1] == 1:  # one channel lies in memory alike in both layouts; say that it is the last
        x = x.as_strided(x.shape, (x.shape[2] * x.shape[3], 1, x.shape[3], 1))
    return F.conv2d(x, weight.squeeze(0), bias.squeeze(0), padding=1).unsqueeze(0)


def _pool(params: Sequence[torch.Tensor], x: torch.Tensor) -> torch.Tensor:
    return F.max_pool2d(x.flatten(0, 1), 2).unflatten(0, x.shape[:2])


def _flatten(params: Sequence[torch.Tensor], x: torch.Tensor) -> torch.Tensor:
    return x.flatten(2)


def _relu(params: Sequence[torch.Tensor], x: torch.Tensor) -> torch.Tensor:
    return torch.relu(x)


def _tanh(params: Sequence[torch.Tensor], x: torch.Tensor) -> torch.Tensor:
    return torch.tanh(x)


def _stacked(layer: nn.Module) -> tuple[str, Layer]:
    """Return the kind and the stacked form of a layer.

    Raises:
        TypeError: There is no stacked form of this kind of layer.
    """
    if isinstance(layer, nn.Linear | nn.Conv2d) and layer.bias is None:
        raise TypeError("only layers with a bias can be stacked")
    if isinstance(layer, nn.Linear):
        return "linear", _linear
    if isinstance(layer, nn.Conv2d):
        plain = (layer.kernel_size, layer.stride, layer.dilation, layer.groups) == ((3, 3), (1, 1), (1, 1), 1)
        if not plain or layer.padding not in ("same", (1, 1)) or layer.padding_mode != "zeros":
            raise TypeError("only plain 3×3 convolutions of stride 1 with padding 1 can be stacked")
        return "conv", _conv
    if isinstance(layer, nn.MaxPool2d):
        if (layer.kernel_size, layer.stride, layer.padding, layer.dilation, layer.ceil_mode) != (2, 2, 0, 1, False):
            raise TypeError("only poolings over 2×2 without padding can be stacked")
        return "pool", _pool
    if isinstance(layer, nn.Flatten) and (layer.start_dim, layer.end_dim) != (1, -1):
        raise TypeError("only flattening of all dimensions but the first can be stacked")
    simple: dict[type, tuple[str, Layer]] = {
        nn.Flatten: ("flatten", _flatten),
        nn.ReLU: ("relu", _relu),
        nn.Tanh: ("tanh", _tanh),
    }
    if type(layer) not in simple:
        raise TypeError(f"no stacked form of {type(layer).__name__}")
    return simple[type(layer)]


class StackedNetwork:
    """A ``nn.Sequential`` as a function of a stack of flat parameter vectors.

    Attributes:
        shapes: Shapes of the parameters of one network, in the module's order.
        size: P, the number of parameters of one network.
    """

    def __init__(self, module: nn.Sequential) -> None:
        """Read layers and shapes off the module; its values are not kept.

        Raises:
            TypeError: A layer has no stacked form.
        """
        self.shapes = [tuple(p.shape) for p in module.parameters()]
        self.sizes = [prod(shape) for shape in self.shapes]
        self.size = sum(self.sizes)
        self.kinds: list[str] = []
        self._layers: list[tuple[Layer, int]] = []
        for layer in module:
            kind, function = _stacked(layer)
            self.kinds.append(kind)
            self._layers.append((function, sum(1 for _ in layer.parameters())))
        # Grouped convolutions are no faster, and their rounding would depend on the size of the stack.
        self.one_by_one = "conv" in self.kinds

    def views(self, theta: torch.Tensor) -> Params:
        """Return the parameters as views into a stack: (R, P) → each (R, *shape)."""
        parts = theta.split(self.sizes, dim=1)
        return tuple(part.unflatten(1, shape) for part, shape in zip(parts, self.shapes, strict=True))

    def leaves(self, theta: torch.Tensor) -> Params:
        """Return the parameters as leaves that require gradients and share memory with the stack (R, P)."""
        return tuple(view.detach().requires_grad_() for view in self.views(theta))

    def flatten(self, params: Sequence[torch.Tensor]) -> torch.Tensor:
        """Inverse of ``views``: each (R, *shape) → (R, P), copied."""
        return torch.cat([p.flatten(1) for p in params], dim=1)

    def __call__(self, params: Sequence[torch.Tensor], x: torch.Tensor, tape: Tape | None = None) -> torch.Tensor:
        """Apply the networks.

        Args:
            params: Stack of parameters, each (R, *shape).
            x: Inputs (R, B, *shape), or (1, B, *shape) where all networks see the same ones.
            tape: If given, (kind, input, output) of every layer with parameters is appended.

        Returns:
            Outputs (R, B, K).

        Raises:
            ValueError: A tape was given for a stack of several convolutional networks.
        """
        stack = params[0].shape[0]
        x = x.expand(stack, *x.shape[1:])
        if self.one_by_one and stack > 1:
            if tape is not None:
                raise ValueError("a tape of convolutions is kept for one network at a time")
            return torch.cat([self._apply([p[r : r + 1] for p in params], x[r : r + 1], None) for r in range(stack)])
        return self._apply(params, x, tape)

    def _apply(self, params: Sequence[torch.Tensor], x: torch.Tensor, tape: Tape | None) -> torch.Tensor:
        position = 0
        for kind, (layer, count) in zip(self.kinds, self._layers, strict=True):
            y = layer(params[position : position + count], x)
            if tape is not None and count:
                tape.append((kind, x, y))
            position += count
            x = y
        return x

    def output_bytes(self, params: Sequence[torch.Tensor], x: torch.Tensor) -> int:
        """Return the bytes of all layer outputs of the whole stack for one example of ``x``."""
        total, position = 0, 0
        with torch.no_grad():
            x = x[:1, :1]
            for layer, count in self._layers:
                x = layer([p[:1] for p in params[position : position + count]], x)
                position += count
                total += x.numel() * x.element_size()
        return total * params[0].shape[0]


class Objective:
    """A network with a loss: the function whose gradient, Hessian and noise are measured."""

    def __init__(self, network: StackedNetwork, loss: Loss) -> None:
        """Combine a network with a per-example loss."""
        self.network = network
        self.loss = loss

    def example_losses(self, params: Sequence[torch.Tensor], x: torch.Tensor, y: torch.Tensor) -> torch.Tensor:
        """Return ℓ_i for every network and example: (R, B)."""
        return self.loss(self.network(params, x), y)

    def batch_gradient(self, params: Params, x: torch.Tensor, y: torch.Tensor) -> tuple[torch.Tensor, ...]:
        """Return the gradient of each network's mean loss over its own batch, per parameter (R, *shape).

        Args:
            params: Leaves that require gradients, each (R, *shape).
            x: (R, B, *shape) or (1, B, *shape).
            y: (R, B, K) or (1, B, K).
        """
        # The networks do not see each other, so the gradient of the sum is the stack of the gradients.
        loss = self.example_losses(params, x, y).mean(1).sum()
        return torch.autograd.grad(loss, params)
