"""The networks of the papers, by name."""

from __future__ import annotations

import pytest
import torch
from torch import nn

from eosslib import models
from eosslib.errors import ConfigError
from eosslib.streams import seed_of

CIFAR, DIGITS = (3, 32, 32), (1, 8, 8)


@pytest.mark.parametrize(
    ("name", "shape", "width", "parameters"),
    [
        ("fc-tanh", CIFAR, 200, 3072 * 200 + 200 + 200 * 200 + 200 + 200 * 10 + 10),
        ("fc-relu", DIGITS, 64, 64 * 64 + 64 + 64 * 64 + 64 + 64 * 10 + 10),
        ("cnn", CIFAR, 32, 3 * 32 * 9 + 32 + 32 * 32 * 9 + 32 + 8 * 8 * 32 * 10 + 10),
        ("cnn5", CIFAR, 32, 3 * 32 * 9 + 32 + 32 * 32 * 9 + 32 + 8 * 8 * 32 * 128 + 128 + 128 * 10 + 10),
        # ResNet-10: stem; blocks of two convolutions; 1×1 shortcuts where the width changes (He et al. 2016: 4.9 million)
        ("resnet10", CIFAR, 64, 4_900_362),
        ("cnn", DIGITS, 8, 8 * 9 + 8 + 8 * 8 * 9 + 8 + 2 * 2 * 8 * 10 + 10),
    ],
)
def test_networks_have_the_papers_sizes(name: str, shape: tuple[int, int, int], width: int, parameters: int) -> None:
    network = models.build(name, shape, 10, width=width, depth=2)
    assert sum(p.numel() for p in network.parameters()) == parameters
    assert network(torch.zeros(5, *shape)).shape == (5, 10)


@pytest.mark.parametrize(("name", "activation"), [("fc-tanh", nn.Tanh), ("fc-relu", nn.ReLU), ("cnn", nn.ReLU)])
@pytest.mark.parametrize("depth", [1, 2, 3])
def test_depth_counts_the_hidden_layers(name: str, activation: type[nn.Module], depth: int) -> None:
    network = models.build(name, DIGITS, 10, width=4, depth=depth)
    assert sum(isinstance(layer, activation) for layer in network) == depth
    assert sum(isinstance(layer, nn.Linear | nn.Conv2d) for layer in network) == depth + 1


def test_pooling_before_the_activation_is_the_same_network_as_after_it() -> None:
    network = models.initialised("cnn", CIFAR, 10, width=6, depth=2, seed=0)
    conv1, pool, relu, conv2, *_ = network
    x = torch.randn(4, *CIFAR, generator=torch.Generator().manual_seed(0))
    swapped = network[-1](pool(relu(conv2(pool(relu(conv1(x)))))).flatten(1))
    assert torch.equal(network(x), swapped)


@pytest.mark.parametrize("name", models.MODELS)
def test_initialisation_is_torchs_default_drawn_from_the_seeds_own_stream(name: str) -> None:
    ours = models.initialised(name, DIGITS, 10, width=4, depth=2, seed=5)
    with torch.random.fork_rng():
        torch.manual_seed(seed_of("init", 5))
        default = models.build(name, DIGITS, 10, width=4, depth=2)
    assert all(torch.equal(a, b) for a, b in zip(ours.parameters(), default.parameters(), strict=True))
    other = models.initialised(name, DIGITS, 10, width=4, depth=2, seed=6)
    drawn = [(a, b) for a, b in zip(ours.parameters(), other.parameters(), strict=True) if len(set(a.flatten().tolist())) > 1]
    assert not any(torch.equal(a, b) for a, b in drawn)  # batch normalisation begins with ones and zeros


def test_scale_multiplies_every_parameter() -> None:
    one, half = (models.initialised("cnn", DIGITS, 10, width=4, depth=1, seed=0, scale=scale) for scale in (1.0, 0.5))
    assert all(torch.equal(b, a / 2) for a, b in zip(one.parameters(), half.parameters(), strict=True))


def test_the_callers_random_state_is_left_as_it_was() -> None:
    before = torch.random.get_rng_state()
    models.initialised("fc-tanh", DIGITS, 10, width=4, depth=2, seed=0)
    assert torch.equal(torch.random.get_rng_state(), before)


def test_an_unknown_model_is_refused_by_name() -> None:
    with pytest.raises(ConfigError, match="unknown model 'resnet'; there are fc-tanh, fc-relu, cnn, cnn5"):
        models.build("resnet", DIGITS, 10, width=4, depth=2)


def test_a_cnn_too_deep_for_its_images_is_refused() -> None:
    assert models.build("cnn", DIGITS, 10, width=2, depth=3)(torch.zeros(1, *DIGITS)).shape == (1, 10)
    with pytest.raises(ConfigError, match="depth 4 is too much for a CNN on 8×8 images"):
        models.build("cnn", DIGITS, 10, width=2, depth=4)
