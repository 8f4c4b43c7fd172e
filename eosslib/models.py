"""The networks of the papers, by name, as plain PyTorch modules with PyTorch's default initialisation.

``fc-tanh`` and ``fc-relu``: ``depth`` hidden layers of ``width`` units. ``cnn``: ``depth`` blocks of 3×3 convolution
(``width`` channels), 2×2 max-pooling and ReLU, then one linear layer. The activation stands behind the pooling: a monotone
function commutes with a maximum, so it is the same network as conv–act–pool with a quarter of the activations. ``cnn5``: the
same with a hidden layer of 4·``width`` units before the last; at depth 3 the five-layer CNN of the EoSS paper. ``resnet10``: a
3×3 convolution and four residual blocks of two convolutions each, with ``width``, 2, 4 and 8 times ``width`` channels, halving the
image from the second block on, global mean and a linear layer (He et al. 2016); without normalisation, or ``-bn`` with batch
normalisation by the statistics of the batch at hand (no running ones).
"""

from __future__ import annotations

import itertools

import torch
from torch import nn

from eosslib.errors import ConfigError
from eosslib.streams import seed_of

WRITTEN_OUT = ("fc-tanh", "fc-relu", "cnn", "cnn5")  # whose layers are written out in ``layers``
MODELS = (*WRITTEN_OUT, "resnet10", "resnet10-bn")


class Block(nn.Module):
    """A residual block: two 3×3 convolutions beside a shortcut, which is a 1×1 convolution where the shape changes."""

    def __init__(self, inputs: int, outputs: int, stride: int, normalised: bool) -> None:
        """Make the convolutions."""
        super().__init__()
        self.first = _convolution(inputs, outputs, 3, stride, normalised)
        self.second = _convolution(outputs, outputs, 3, 1, normalised)
        same = inputs == outputs and stride == 1
        self.shortcut = nn.Identity() if same else _convolution(inputs, outputs, 1, stride, normalised)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        """Apply the block."""
        return torch.relu(self.second(torch.relu(self.first(x))) + self.shortcut(x))


def _convolution(inputs: int, outputs: int, size: int, stride: int, normalised: bool) -> nn.Module:
    convolution = nn.Conv2d(inputs, outputs, size, stride, padding=size // 2, bias=not normalised)
    return nn.Sequential(convolution, nn.BatchNorm2d(outputs, track_running_stats=False)) if normalised else convolution


def _resnet(channels: int, n_outputs: int, width: int, normalised: bool) -> nn.Sequential:
    stem = [_convolution(channels, width, 3, 1, normalised), nn.ReLU()]
    widths = [width, width, 2 * width, 4 * width, 8 * width]
    blocks = [Block(a, b, 1 if i == 0 else 2, normalised) for i, (a, b) in enumerate(itertools.pairwise(widths))]
    return nn.Sequential(*stem, *blocks, nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(widths[-1], n_outputs))


def build(name: str, shape: tuple[int, int, int], n_outputs: int, *, width: int, depth: int) -> nn.Sequential:
    """Build an untrained network.

    Args:
        name: One of ``MODELS``.
        shape: Shape of one example (C, H, W).
        n_outputs: Number of outputs K.
        width: Hidden units, or channels.
        depth: Hidden layers, or convolutions; not used by the residual networks.

    Raises:
        ConfigError: The name is unknown, or the image is too small for so many poolings.
    """
    channels, height, wide = shape
    layers: list[nn.Module] = []
    if name in ("fc-tanh", "fc-relu"):
        inputs = channels * height * wide
        layers.append(nn.Flatten())
        for _ in range(depth):
            layers += [nn.Linear(inputs, width), nn.Tanh() if name == "fc-tanh" else nn.ReLU()]
            inputs = width
    elif name in ("cnn", "cnn5"):
        if min(height, wide) >> depth < 1:
            raise ConfigError(f"depth {depth} is too much for a CNN on {height}×{wide} images: every block halves them")
        for _ in range(depth):
            layers += [nn.Conv2d(channels, width, 3, padding=1), nn.MaxPool2d(2), nn.ReLU()]
            channels, height, wide = width, height // 2, wide // 2
        layers.append(nn.Flatten())
        inputs = channels * height * wide
        if name == "cnn5":
            layers += [nn.Linear(inputs, 4 * width), nn.ReLU()]
            inputs = 4 * width
    elif name in ("resnet10", "resnet10-bn"):
        return _resnet(channels, n_outputs, width, name.endswith("-bn"))
    else:
        raise ConfigError(f"unknown model '{name}'; there are {', '.join(MODELS)}")
    return nn.Sequential(*layers, nn.Linear(inputs, n_outputs))


def initialised(
    name: str, shape: tuple[int, int, int], n_outputs: int, *, width: int, depth: int, seed: int, scale: float = 1.0
) -> nn.Sequential:
    """Build a network whose PyTorch default initialisation is drawn from the seed's own stream, then scaled by ``scale``.

    The caller's random state is left as it was.
    """
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed_of("init", seed))
        network = build(name, shape, n_outputs, width=width, depth=depth)
    with torch.no_grad():
        for parameter in network.parameters():
            parameter.mul_(scale)
    return network
