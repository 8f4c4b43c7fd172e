"""The networks of the papers, by name, as plain ``torch.nn.Sequential`` modules with PyTorch's default initialisation.

``fc-tanh`` and ``fc-relu``: ``depth`` hidden layers of ``width`` units. ``cnn``: ``depth`` blocks of 3×3 convolution
(``width`` channels), 2×2 max-pooling and ReLU, then one linear layer. The activation stands behind the pooling: a monotone
function commutes with a maximum, so it is the same network as conv–act–pool with a quarter of the activations.
"""

from __future__ import annotations

import torch
from torch import nn

from eosslib.errors import ConfigError
from eosslib.streams import seed_of

MODELS = ("fc-tanh", "fc-relu", "cnn")


def build(name: str, shape: tuple[int, int, int], n_outputs: int, *, width: int, depth: int) -> nn.Sequential:
    """Build an untrained network.

    Args:
        name: One of ``MODELS``.
        shape: Shape of one example (C, H, W).
        n_outputs: Number of outputs K.
        width: Hidden units, or channels.
        depth: Hidden layers, or convolutions.

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
    elif name == "cnn":
        if min(height, wide) >> depth < 1:
            raise ConfigError(f"depth {depth} is too much for a CNN on {height}×{wide} images: every block halves them")
        for _ in range(depth):
            layers += [nn.Conv2d(channels, width, 3, padding=1), nn.MaxPool2d(2), nn.ReLU()]
            channels, height, wide = width, height // 2, wide // 2
        layers.append(nn.Flatten())
        inputs = channels * height * wide
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
