"""The networks of the papers, by name, as plain PyTorch modules with PyTorch's default initialisation.

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
from math import prod

import torch
from torch import nn

from eosslib.errors import ConfigError
from eosslib.streams import seed_of

WRITTEN_OUT = ("fc-tanh", "fc-relu", "cnn", "cnn5", "cnn-tanh")  # whose layers are written out in ``layers``
TEXT = ("transformer", "lstm")  # for sequences of characters
HIDDEN = 200  # units by default of the hidden layer behind the convolutions of ``cnn-tanh``
MODELS = (*WRITTEN_OUT, "resnet10", "resnet10-bn", *TEXT)


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


def _of_text(name: str, shape: tuple[int, int, int], n_outputs: int, width: int, depth: int) -> nn.Sequential:
    if shape[:2] != (1, 1):
        raise ConfigError(f"model {name} reads text; its data set is topics")
    if name == "transformer" and width % 4:
        raise ConfigError(f"width {width} of a transformer is not a multiple of its 4 heads")
    layers: list[nn.Module] = [
        Attention(width, last=i == depth - 1) if name == "transformer" else Recurrent(width) for i in range(depth)
    ]
    norm = [nn.LayerNorm(width)] if name == "transformer" else []
    return nn.Sequential(Characters(n_outputs, shape[2], width), *layers, Last(), *norm, nn.Linear(width, n_outputs))


def _convolutional(name: str, shape: tuple[int, int, int], n_outputs: int, width: int, depth: int, hidden: int) -> nn.Sequential:
    channels, height, wide = shape
    if min(height, wide) >> depth < 1:
        raise ConfigError(f"depth {depth} is too much for a CNN on {height}×{wide} images: every block halves them")
    activation = nn.Tanh if name == "cnn-tanh" else nn.ReLU
    layers: list[nn.Module] = []
    for block in range(depth):
        outputs = width << block if name == "cnn-tanh" else width
        layers += [nn.Conv2d(channels, outputs, 3, padding=1), nn.MaxPool2d(2), activation()]
        channels, height, wide = outputs, height // 2, wide // 2
    layers.append(nn.Flatten())
    inputs = channels * height * wide
    if name != "cnn":
        units = hidden if name == "cnn-tanh" else 4 * width
        layers += [nn.Linear(inputs, units), activation()]
        inputs = units
    return nn.Sequential(*layers, nn.Linear(inputs, n_outputs))


def build(name: str, shape: tuple[int, int, int], n_outputs: int, *, width: int, depth: int, hidden: int = HIDDEN) -> nn.Sequential:
    """Build an untrained network.

    Args:
        name: One of ``MODELS``.
        shape: Shape of one example (C, H, W); (1, 1, W) for text.
        n_outputs: Number of outputs K.
        width: Hidden units, or channels.
        depth: Hidden layers, convolutions, blocks of a transformer, or layers of an LSTM; not used by the residual networks.
        hidden: Units of the hidden layer behind the convolutions of ``cnn-tanh``; not used by the others.

    Raises:
        ConfigError: The name is unknown, the image is too small for so many poolings, a model of text is to see images, or the
            width of a transformer is not a multiple of its 4 heads.
    """
    if name in ("fc-tanh", "fc-relu"):
        inputs = prod(shape)
        layers: list[nn.Module] = [nn.Flatten()]
        for _ in range(depth):
            layers += [nn.Linear(inputs, width), nn.Tanh() if name == "fc-tanh" else nn.ReLU()]
            inputs = width
        return nn.Sequential(*layers, nn.Linear(inputs, n_outputs))
    if name in ("cnn", "cnn5", "cnn-tanh"):
        return _convolutional(name, shape, n_outputs, width, depth, hidden)
    if name in ("resnet10", "resnet10-bn"):
        return _resnet(shape[0], n_outputs, width, name.endswith("-bn"))
    if name in TEXT:
        return _of_text(name, shape, n_outputs, width, depth)
    raise ConfigError(f"unknown model '{name}'; there are {', '.join(MODELS)}")


def initialised(
    name: str,
    shape: tuple[int, int, int],
    n_outputs: int,
    *,
    width: int,
    depth: int,
    seed: int,
    scale: float = 1.0,
    hidden: int = HIDDEN,
) -> nn.Sequential:
    """Build a network whose PyTorch default initialisation is drawn from the seed's own stream, then scaled by ``scale``.

    The caller's random state is left as it was.

    Args:
        name: As for ``build``, and so are the arguments up to ``depth``.
        shape: (C, H, W).
        n_outputs: K.
        width: Hidden units, or channels.
        depth: Hidden layers, and the like.
        seed: The run's seed.
        scale: Factor on every parameter.
        hidden: As for ``build``.

    Raises:
        ConfigError: As ``build``.
    """
    with torch.random.fork_rng(devices=[]):
        torch.random.default_generator.manual_seed(seed_of("init", seed))
        network = build(name, shape, n_outputs, width=width, depth=depth, hidden=hidden)
    with torch.no_grad():
        for parameter in network.parameters():
            parameter.mul_(scale)
    return network
