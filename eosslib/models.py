"""The networks of the papers, named in ``catalogue``, as plain PyTorch modules with PyTorch's default initialisation.

``fc-tanh`` and ``fc-relu``: ``depth`` hidden layers of ``width`` units. ``cnn``: ``depth`` blocks of 3×3 convolution
(``width`` channels), 2×2 max-pooling and ReLU, then one linear layer. The activation stands behind the pooling: a monotone
function commutes with a maximum, so it is the same network as conv–act–pool with a quarter of the activations. ``cnn5``: the
same with a hidden layer of 4·``width`` units before the last; at depth 3 the five-layer CNN of the EoSS paper. ``cnn-tanh``: tanh
in the place of ReLU, ``width``, 2·``width``, … channels from block to block, ``hidden`` units before the last layer; at width 32
and depth 2 the CNN of the sharpness-gap paper, as reconstructed from the sharpness in its figures. ``resnet10``: a
3×3 convolution and four residual blocks of two convolutions each, with ``width``, 2, 4 and 8 times ``width`` channels, halving the
image from the second block on, global mean and a linear layer (He et al. 2016); without normalisation, or ``-bn`` with batch
normalisation by the statistics of the batch at hand (no running ones).

For text, whose examples are codes of characters (C = H = 1, W of them) and whose outputs are the characters that may follow:
``transformer``: ``depth`` pre-normalised blocks of ``width`` channels, four heads of attention over all characters and a hidden
layer of 4·``width`` GELU units; the last position is read out. ``lstm``: ``depth`` layers of ``width`` cells, the last state is
read out.
"""

from __future__ import annotations

import itertools
from dataclasses import dataclass
from math import prod
from typing import TypeAlias

import torch
from torch import nn

from eosslib import catalogue
from eosslib.errors import ConfigError
from eosslib.streams import seed_of

HIDDEN = 200  # units by default of the hidden layer behind the convolutions of ``cnn-tanh``
Shape: TypeAlias = tuple[int, int, int]  # of one example (C, H, W)


@dataclass(frozen=True)
class Sizes:
    """How large a network is to be."""

    width: int  # hidden units, or channels
    depth: int  # hidden layers, convolutions, blocks of a transformer, or layers of an LSTM; not used by the residual networks
    hidden: int = HIDDEN  # units of the hidden layer behind the convolutions of ``cnn-tanh``; not used by the others


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


def resnet10(shape: Shape, n_outputs: int, sizes: Sizes, normalised: bool = False) -> nn.Sequential:
    """Build the residual network, without normalisation by default."""
    width = sizes.width
    stem = [_convolution(shape[0], width, 3, 1, normalised), nn.ReLU()]
    widths = [width, width, 2 * width, 4 * width, 8 * width]
    blocks = [Block(a, b, 1 if i == 0 else 2, normalised) for i, (a, b) in enumerate(itertools.pairwise(widths))]
    return nn.Sequential(*stem, *blocks, nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(widths[-1], n_outputs))


def resnet10_bn(shape: Shape, n_outputs: int, sizes: Sizes) -> nn.Sequential:
    """Build the residual network with batch normalisation."""
    return resnet10(shape, n_outputs, sizes, normalised=True)


class Attention(nn.Module):
    """A block of a transformer: attention over all positions and a hidden layer, each beside a shortcut, behind a LayerNorm."""

    def __init__(self, width: int, heads: int = 4, last: bool = False) -> None:
        """Make the layers; ``last``: compute the last position alone, the only one that what follows looks at."""
        super().__init__()
        self.last = last
        self.heads, self.first, self.second = heads, nn.LayerNorm(width), nn.LayerNorm(width)
        self.project, self.merge = nn.Linear(width, 3 * width), nn.Linear(width, width)
        self.hidden = nn.Sequential(nn.Linear(width, 4 * width), nn.GELU(), nn.Linear(4 * width, width))

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        """Apply the block: (B, W, width) → (B, W, width), or (B, 1, width) of the last position."""
        # Written out: PyTorch's fused attention has no second derivative.
        query, key, value = (
            part.unflatten(2, (self.heads, -1)).transpose(1, 2) for part in self.project(self.first(x)).chunk(3, 2)
        )
        if self.last:
            x, query = x[:, -1:], query[:, :, -1:]
        weights = (query @ key.transpose(2, 3) / query.shape[3] ** 0.5).softmax(3)
        x = x + self.merge((weights @ value).transpose(1, 2).flatten(2))
        return x + self.hidden(self.second(x))


class Characters(nn.Module):
    """Codes of characters (B, 1, 1, W) → their embeddings (B, W, width), with a learnt one of the position."""

    def __init__(self, alphabet: int, length: int, width: int) -> None:
        """Make the tables."""
        super().__init__()
        self.symbol, self.position = nn.Embedding(alphabet, width), nn.Parameter(torch.randn(length, width))

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        """Look up."""
        return self.symbol(x.flatten(1).long()) + self.position


class Recurrent(nn.Module):
    """A layer of LSTM cells: (B, W, width) → (B, W, width)."""

    def __init__(self, width: int) -> None:
        """Make the cell; stepped by hand, because the fused kernels have no second derivative."""
        super().__init__()
        self.cell = nn.LSTMCell(width, width)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        """Apply the cells from the first position to the last."""
        hidden = memory = x.new_zeros(len(x), x.shape[2])
        outputs = []
        for symbol in x.unbind(1):
            hidden, memory = self.cell(symbol, (hidden, memory))
            outputs.append(hidden)
        return torch.stack(outputs, 1)


class Last(nn.Module):
    """The last position: (B, W, width) → (B, width)."""

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        """Take it."""
        return x[:, -1]


def fc_tanh(shape: Shape, n_outputs: int, sizes: Sizes) -> nn.Sequential:
    """Build a fully-connected network with tanh."""
    return _fully_connected(shape, n_outputs, sizes, nn.Tanh)


def fc_relu(shape: Shape, n_outputs: int, sizes: Sizes) -> nn.Sequential:
    """Build a fully-connected network with ReLU."""
    return _fully_connected(shape, n_outputs, sizes, nn.ReLU)


def _fully_connected(shape: Shape, n_outputs: int, sizes: Sizes, activation: type[nn.Module]) -> nn.Sequential:
    inputs = prod(shape)
    layers: list[nn.Module] = [nn.Flatten()]
    for _ in range(sizes.depth):
        layers += [nn.Linear(inputs, sizes.width), activation()]
        inputs = sizes.width
    return nn.Sequential(*layers, nn.Linear(inputs, n_outputs))


def cnn(shape: Shape, n_outputs: int, sizes: Sizes) -> nn.Sequential:
    """Build the CNN with one linear layer."""
    return _convolutional(shape, n_outputs, [sizes.width] * sizes.depth, None, nn.ReLU)


def cnn5(shape: Shape, n_outputs: int, sizes: Sizes) -> nn.Sequential:
    """Build the CNN with a hidden layer."""
    return _convolutional(shape, n_outputs, [sizes.width] * sizes.depth, 4 * sizes.width, nn.ReLU)


def cnn_tanh(shape: Shape, n_outputs: int, sizes: Sizes) -> nn.Sequential:
    """Build the CNN of the sharpness-gap paper."""
    return _convolutional(shape, n_outputs, [sizes.width << block for block in range(sizes.depth)], sizes.hidden, nn.Tanh)


def _convolutional(
    shape: Shape, n_outputs: int, blocks: list[int], hidden: int | None, activation: type[nn.Module]
) -> nn.Sequential:
    """Build a CNN of blocks with so many channels each, and units of a hidden layer behind them (None: without one)."""
    inputs, height, wide = shape
    if min(height, wide) >> len(blocks) < 1:
        raise ConfigError(f"depth {len(blocks)} is too much for a CNN on {height}×{wide} images: every block halves them")
    layers: list[nn.Module] = []
    for channels in blocks:
        layers += [nn.Conv2d(inputs, channels, 3, padding=1), nn.MaxPool2d(2), activation()]
        inputs, height, wide = channels, height // 2, wide // 2
    layers.append(nn.Flatten())
    inputs *= height * wide
    if hidden is not None:
        layers += [nn.Linear(inputs, hidden), activation()]
        inputs = hidden
    return nn.Sequential(*layers, nn.Linear(inputs, n_outputs))


def transformer(shape: Shape, n_outputs: int, sizes: Sizes) -> nn.Sequential:
    """Build the transformer."""
    width, depth = sizes.width, sizes.depth
    if width % 4:
        raise ConfigError(f"width {width} of a transformer is not a multiple of its 4 heads")
    blocks, norm = [Attention(width, last=i == depth - 1) for i in range(depth)], nn.LayerNorm(width)
    return nn.Sequential(Characters(n_outputs, shape[2], width), *blocks, Last(), norm, nn.Linear(width, n_outputs))


def lstm(shape: Shape, n_outputs: int, sizes: Sizes) -> nn.Sequential:
    """Build the LSTM."""
    layers = [Recurrent(sizes.width) for _ in range(sizes.depth)]
    return nn.Sequential(Characters(n_outputs, shape[2], sizes.width), *layers, Last(), nn.Linear(sizes.width, n_outputs))


def build(name: str, shape: Shape, n_outputs: int, *, width: int, depth: int, hidden: int = HIDDEN) -> nn.Sequential:
    """Build an untrained network.

    Args:
        name: One of ``catalogue.MODELS``.
        shape: Shape of one example (C, H, W); (1, 1, W) for text.
        n_outputs: Number of outputs K.
        width: As the following, of ``Sizes``.
        depth: See there.
        hidden: See there.

    Raises:
        ConfigError: The name is unknown, the image is too small for so many poolings, a model of text is to see images, or the
            width of a transformer is not a multiple of its 4 heads.
    """
    if name not in catalogue.MODELS:
        raise ConfigError(f"unknown model '{name}'; there are {', '.join(catalogue.MODELS)}")
    row = catalogue.MODELS[name]
    if row.reads == "text" and shape[:2] != (1, 1):
        texts = [name for name, data in catalogue.DATASETS.items() if data.reads == "text"]
        raise ConfigError(f"model {name} reads text; its data set is {' or '.join(texts)}")
    return row.load()(shape, n_outputs, Sizes(width, depth, hidden))


def initialised(name: str, shape: Shape, n_outputs: int, *, seed: int, scale: float = 1.0, **sizes: int) -> nn.Sequential:
    """Build a network whose PyTorch default initialisation is drawn from the seed's own stream, then scaled by ``scale``.

    The caller's random state is left as it was.

    Args:
        name: As for ``build``, and so are the following two.
        shape: (C, H, W).
        n_outputs: K.
        seed: The run's seed.
        scale: Factor on every parameter.
        sizes: ``width``, ``depth`` and ``hidden``, as for ``build``.

    Raises:
        ConfigError: As ``build``.
    """
    with torch.random.fork_rng(devices=[]):
        torch.random.default_generator.manual_seed(seed_of("init", seed))
        network = build(name, shape, n_outputs, **sizes)
    with torch.no_grad():
        for parameter in network.parameters():
            parameter.mul_(scale)
    return network
