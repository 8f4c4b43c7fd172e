"""The layers of the networks: forward, backward, and the tangents of both, written out.

A Hessian product is the tangent (directional derivative) of the backward pass (Pearlmutter 1994, the R-operator). Written out,
layer by layer, it computes nothing twice and nothing that is not needed; differentiating the backward pass automatically costs
up to twice as much. Everything is for a stack of R networks: parameters (R, *shape), inputs and outputs (R, B, *shape).
A tangent of None stands for zero.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import torch
import torch.nn.functional as F
from torch import nn

from eosslib.products import product, tanh

Params = Sequence[torch.Tensor]


@dataclass
class Kept:
    """What one layer keeps of a forward and a backward pass."""

    p: Params  # its parameters
    x: torch.Tensor  # input
    y: torch.Tensor  # output
    extra: torch.Tensor | None = None
    g: torch.Tensor | None = None  # ∂L/∂y, after the backward pass
    shape: tuple[int, ...] = ()  # of an input that is not kept


class Layer:
    """One kind of layer; ``k`` is what it kept, ``g`` = ∂L/∂y, ``v`` a direction in parameters, ``dx`` and ``dg`` tangents."""

    parameters = 0
    one_by_one = False  # whether a stack must hold a single network
    keeps_output = False  # whether the backward pass and its tangent ask for y
    keeps_gradient = False  # whether they ask for ∂L/∂y

    def forward(self, p: Params, x: torch.Tensor) -> Kept:
        """Compute the output."""
        raise NotImplementedError

    def input_gradient(self, k: Kept, g: torch.Tensor) -> torch.Tensor:
        """Return ∂L/∂x."""
        raise NotImplementedError

    def parameter_gradients(self, x: torch.Tensor, g: torch.Tensor) -> list[torch.Tensor]:
        """Return ∂L/∂p, summed over the examples; weights first, then the bias."""
        return []

    def squares(self, x: torch.Tensor, g: torch.Tensor) -> list[torch.Tensor]:
        """Return the squares of every example's own ∂L/∂p, summed over the examples."""
        return []

    def tangent(self, k: Kept, v: Params, dx: torch.Tensor | None) -> torch.Tensor | None:
        """Return the tangent of the output."""
        raise NotImplementedError

    def input_gradient_tangent(self, k: Kept, v: Params, dx: torch.Tensor | None, dg: torch.Tensor) -> torch.Tensor:
        """Return the tangent of ∂L/∂x."""
        raise NotImplementedError

    def parameter_gradients_tangent(self, k: Kept, dx: torch.Tensor | None, dg: torch.Tensor) -> list[torch.Tensor]:
        """Return the tangent of ∂L/∂p, which is bilinear in x and g; that of the bias does not see the input."""
        result = self.parameter_gradients(k.x, dg)
        if dx is not None and result:
            assert k.g is not None
            result[0] += self.parameter_gradients(dx, k.g)[0]
        return result


class Linear(Layer):
    """y = x Wᵀ + b, for inputs (R, B, features)."""

    parameters = 2
    keeps_gradient = True

    def forward(self, p: Params, x: torch.Tensor) -> Kept:
        if x.ndim != 3 or x.shape[2] != p[0].shape[2]:
            takes, given = f"{p[0].shape[2]} features an example", " × ".join(map(str, x.shape[2:]))
            raise TypeError(f"a linear layer takes {takes}, not {given}: put nn.Flatten before it, or mend its size")
        return Kept(p, x, product(x, p[0].mT, plus=p[1].unsqueeze(1)))

    def input_gradient(self, k: Kept, g: torch.Tensor) -> torch.Tensor:
        return product(g, k.p[0])

    def parameter_gradients(self, x: torch.Tensor, g: torch.Tensor) -> list[torch.Tensor]:
        return [product(g.mT, x), g.sum(1)]

    def squares(self, x: torch.Tensor, g: torch.Tensor) -> list[torch.Tensor]:
        """One product of the squares: an example's gradient is the outer product of g and x (Goodfellow, arXiv:1510.01799)."""
        return [product(g.square().mT, x.square()), g.square().sum(1)]

    def tangent(self, k: Kept, v: Params, dx: torch.Tensor | None) -> torch.Tensor:
        dy = product(k.x, v[0].mT, plus=v[1].unsqueeze(1))
        return dy if dx is None else product(dx, k.p[0].mT, plus=dy)

    def input_gradient_tangent(self, k: Kept, v: Params, dx: torch.Tensor | None, dg: torch.Tensor) -> torch.Tensor:
        assert k.g is not None
        return product(k.g, v[0], plus=product(dg, k.p[0]))


class Conv(Layer):
    """3×3 convolution of stride 1 with padding 1, for a single network.

    Channels last: twice as fast on the CPU as in the default layout, poolings ten times. Grouped convolutions for a stack of
    networks are no faster, and their rounding would depend on the size of the stack.
    """

    parameters = 2
    one_by_one = True
    keeps_gradient = True

    def forward(self, p: Params, x: torch.Tensor) -> Kept:
        x = _channels_last(x.squeeze(0)).unsqueeze(0)
        return Kept(p, x, F.conv2d(x[0], p[0][0], p[1][0], padding=1).unsqueeze(0))

    def input_gradient(self, k: Kept, g: torch.Tensor) -> torch.Tensor:
        return self._input_gradient(k.x, k.p[0], g)

    def parameter_gradients(self, x: torch.Tensor, g: torch.Tensor) -> list[torch.Tensor]:
        weight = x.new_empty(()).expand(1, g.shape[2], x.shape[2], 3, 3)  # only its shape is read
        _, weights, bias = self._backward(x, weight, g, [False, True, True])
        return [weights.unsqueeze(0), bias.unsqueeze(0)]

    def squares(self, x: torch.Tensor, g: torch.Tensor) -> list[torch.Tensor]:
        """Example by example."""
        patches = F.unfold(x[0], 3, padding=1)  # (B, C·9, H·W)
        weights = g[0].flatten(2) @ patches.mT  # (B, O, C·9)
        square = weights.square().sum(0).unflatten(1, (x.shape[2], 3, 3))
        return [square.unsqueeze(0), g[0].flatten(2).sum(2).square().sum(0).unsqueeze(0)]

    def tangent(self, k: Kept, v: Params, dx: torch.Tensor | None) -> torch.Tensor:
        dy = F.conv2d(k.x[0], v[0][0], v[1][0], padding=1)
        return (dy if dx is None else dy + F.conv2d(dx[0], k.p[0][0], padding=1)).unsqueeze(0)

    def input_gradient_tangent(self, k: Kept, v: Params, dx: torch.Tensor | None, dg: torch.Tensor) -> torch.Tensor:
        assert k.g is not None
        return self.input_gradient(k, dg) + self._input_gradient(k.x, v[0], k.g)

    def _input_gradient(self, x: torch.Tensor, weight: torch.Tensor, g: torch.Tensor) -> torch.Tensor:
        return self._backward(x, weight, g, [True, False, False])[0].unsqueeze(0)

    def _backward(self, x: torch.Tensor, weight: torch.Tensor, g: torch.Tensor, wanted: list[bool]) -> Sequence[torch.Tensor]:
        one, zero = [1, 1], [0, 0]
        return torch.ops.aten.convolution_backward(g[0], x[0], weight[0], [g.shape[2]], one, one, one, False, zero, 1, wanted)


def _channels_last(x: torch.Tensor) -> torch.Tensor:
    x = x.contiguous(memory_format=torch.channels_last)
    if x.shape[1] == 1:  # one channel lies in memory alike in both layouts; say that it is the last
        x = x.as_strided(x.shape, (x.shape[2] * x.shape[3], 1, x.shape[3], 1))
    return x


class Pool(Layer):
    """Maximum over 2×2; ``extra`` says which of the four."""

    one_by_one = True

    def forward(self, p: Params, x: torch.Tensor) -> Kept:
        y, indices = F.max_pool2d(x[0], 2, return_indices=True)
        return Kept(p, x.new_empty(0), y.unsqueeze(0), indices, shape=x.shape)

    def input_gradient(self, k: Kept, g: torch.Tensor) -> torch.Tensor:
        two, zero, one = [2, 2], [0, 0], [1, 1]
        # Only the shape and the layout of the input are read: nothing is written here, so no memory is taken.
        x = torch.empty(k.shape[1:], dtype=g.dtype, device=g.device, memory_format=torch.channels_last)
        return torch.ops.aten.max_pool2d_with_indices_backward(g[0], x, two, two, zero, one, False, k.extra).unsqueeze(0)

    def tangent(self, k: Kept, v: Params, dx: torch.Tensor | None) -> torch.Tensor | None:
        if dx is None:
            return None
        assert k.extra is not None
        where, dx = k.extra.permute(0, 2, 3, 1), dx[0].permute(0, 2, 3, 1)  # channels last, as the convolutions left them
        examples = torch.arange(0, dx.numel(), dx[0].numel(), device=dx.device)
        channels = torch.arange(dx.shape[3], device=dx.device)
        where = torch.add(examples.view(-1, 1, 1, 1) + channels, where, alpha=dx.shape[3])
        # One long list of places: selecting from it takes a third of the time of gathering within every example.
        return dx.flatten().index_select(0, where.flatten()).view(where.shape).permute(0, 3, 1, 2).unsqueeze(0)

    def input_gradient_tangent(self, k: Kept, v: Params, dx: torch.Tensor | None, dg: torch.Tensor) -> torch.Tensor:
        return self.input_gradient(k, dg)


class Flatten(Layer):
    """All dimensions of an example in one."""

    def forward(self, p: Params, x: torch.Tensor) -> Kept:
        return Kept(p, x.new_empty(0), x.flatten(2), shape=x.shape)

    def input_gradient(self, k: Kept, g: torch.Tensor) -> torch.Tensor:
        g = g.view(k.shape)
        return _channels_last(g[0]).unsqueeze(0) if g.ndim == 5 and len(g) == 1 else g

    def tangent(self, k: Kept, v: Params, dx: torch.Tensor | None) -> torch.Tensor | None:
        return None if dx is None else dx.flatten(2)

    def input_gradient_tangent(self, k: Kept, v: Params, dx: torch.Tensor | None, dg: torch.Tensor) -> torch.Tensor:
        return self.input_gradient(k, dg)


class ReLU(Layer):
    """max(x, 0)."""

    keeps_output = True

    def forward(self, p: Params, x: torch.Tensor) -> Kept:
        y = torch.relu(x)
        return Kept(p, y, y)  # the output alone says where the input was positive

    def input_gradient(self, k: Kept, g: torch.Tensor) -> torch.Tensor:
        return torch.ops.aten.threshold_backward(g, k.y, 0)

    def tangent(self, k: Kept, v: Params, dx: torch.Tensor | None) -> torch.Tensor | None:
        return None if dx is None else self.input_gradient(k, dx)

    def input_gradient_tangent(self, k: Kept, v: Params, dx: torch.Tensor | None, dg: torch.Tensor) -> torch.Tensor:
        return self.input_gradient(k, dg)


class Tanh(Layer):
    """tanh x; with y = tanh x, y' = 1 − y² and y'' = −2 y y'."""

    keeps_output = keeps_gradient = True

    def forward(self, p: Params, x: torch.Tensor) -> Kept:
        maps = x.ndim == 5 and len(x) == 1  # of a convolution, which leaves the channels last
        y = tanh(x[0].permute(0, 2, 3, 1)).permute(0, 3, 1, 2).unsqueeze(0) if maps else torch.tanh(x)
        return Kept(p, y, y)

    def input_gradient(self, k: Kept, g: torch.Tensor) -> torch.Tensor:
        return torch.ops.aten.tanh_backward(g, k.y)

    def tangent(self, k: Kept, v: Params, dx: torch.Tensor | None) -> torch.Tensor | None:
        return None if dx is None else self.input_gradient(k, dx)

    def input_gradient_tangent(self, k: Kept, v: Params, dx: torch.Tensor | None, dg: torch.Tensor) -> torch.Tensor:
        if dx is not None:
            assert k.g is not None
            dg = torch.addcmul(dg, k.g * k.y, dx, value=-2)  # (g y')' = g' y' − 2 g y y' x'
        return self.input_gradient(k, dg)


FORMS: dict[type[nn.Module], type[Layer]] = {
    nn.Linear: Linear,
    nn.Conv2d: Conv,
    nn.MaxPool2d: Pool,
    nn.Flatten: Flatten,
    nn.ReLU: ReLU,
    nn.Tanh: Tanh,
}


def unsupported(module: nn.Module) -> str | None:
    """Say why a module has no written-out form among ``FORMS``; None where it has one."""
    if isinstance(module, nn.Linear | nn.Conv2d) and module.bias is None:
        return "only layers with a bias can be stacked"
    if isinstance(module, nn.Conv2d):
        plain = (module.kernel_size, module.stride, module.dilation, module.groups) == ((3, 3), (1, 1), (1, 1), 1)
        if not plain or module.padding not in ("same", (1, 1)) or module.padding_mode != "zeros":
            return "only plain 3×3 convolutions of stride 1 with padding 1 can be stacked"
    if isinstance(module, nn.MaxPool2d) and (
        (module.kernel_size, module.stride, module.padding, module.dilation, module.ceil_mode) != (2, 2, 0, 1, False)
    ):
        return "only poolings over 2×2 without padding can be stacked"
    if isinstance(module, nn.Flatten) and (module.start_dim, module.end_dim) != (1, -1):
        return "only flattening of all dimensions but the first can be stacked"
    return None if type(module) in FORMS else f"no stacked form of {type(module).__name__}"
