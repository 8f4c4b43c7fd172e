"""The networks of the papers, by name."""

from __future__ import annotations

import pytest
import torch
from oracles import OF_TEXT, WRITTEN_OUT
from torch import nn

from eosslib import catalogue, losses, models
from eosslib.automatic import ModuleNetwork
from eosslib.errors import ConfigError
from eosslib.flat import StackedNetwork
from eosslib.objective import Objective
from eosslib.settings import defaults
from eosslib.streams import seed_of

CIFAR, DIGITS, TEXT = (3, 32, 32), (1, 8, 8), (1, 1, 16)


@pytest.mark.parametrize(
    ("name", "shape", "width", "parameters"),
    [
        ("fc-tanh", CIFAR, 200, 3072 * 200 + 200 + 200 * 200 + 200 + 200 * 10 + 10),
        ("fc-relu", DIGITS, 64, 64 * 64 + 64 + 64 * 64 + 64 + 64 * 10 + 10),
        ("cnn", CIFAR, 32, 3 * 32 * 9 + 32 + 32 * 32 * 9 + 32 + 8 * 8 * 32 * 10 + 10),
        ("cnn5", CIFAR, 32, 3 * 32 * 9 + 32 + 32 * 32 * 9 + 32 + 8 * 8 * 32 * 128 + 128 + 128 * 10 + 10),
        ("cnn-tanh", CIFAR, 32, 3 * 32 * 9 + 32 + 32 * 64 * 9 + 64 + 8 * 8 * 64 * 200 + 200 + 200 * 10 + 10),
        ("cnn-tanh", DIGITS, 8, 8 * 9 + 8 + 8 * 16 * 9 + 16 + 2 * 2 * 16 * 200 + 200 + 200 * 10 + 10),
        # ResNet-10: stem; blocks of two convolutions; 1×1 shortcuts where the width changes (He et al. 2016: 4.9 million)
        ("resnet10", CIFAR, 64, 4_900_362),
        ("cnn", DIGITS, 8, 8 * 9 + 8 + 8 * 8 * 9 + 8 + 2 * 2 * 8 * 10 + 10),
        # tables; blocks of projections, merging, hidden layer and two LayerNorms; LayerNorm; output
        ("transformer", TEXT, 8, 10 * 8 + 16 * 8 + 2 * (4 * 8 * 8 + 4 * 8 + 8 * 8 * 8 + 5 * 8 + 4 * 8) + 16 + 90),
        ("lstm", TEXT, 8, 10 * 8 + 16 * 8 + 2 * (2 * 4 * 8 * 8 + 2 * 4 * 8) + 90),
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


@pytest.mark.parametrize("name", ["cnn", "cnn-tanh"])
def test_pooling_before_the_activation_is_the_same_network_as_after_it(name: str) -> None:
    network = models.initialised(name, CIFAR, 10, width=6, depth=2, seed=0)
    conv1, pool, act, conv2, _, _, *rest = network
    x = torch.randn(4, *CIFAR, generator=torch.Generator().manual_seed(0))
    swapped = nn.Sequential(conv1, act, pool, conv2, act, pool, *rest)
    assert torch.equal(network(x), swapped(x))


def test_the_reconstructed_cnn_is_that_of_the_sharpness_gap_paper() -> None:
    torch.manual_seed(7)
    block = lambda a, b: (nn.Conv2d(a, b, 3, padding=1), nn.Tanh(), nn.MaxPool2d(2))  # noqa: E731
    written = nn.Sequential(*block(3, 32), *block(32, 64), nn.Flatten(), nn.Linear(4096, 96), nn.Tanh(), nn.Linear(96, 10))
    torch.manual_seed(7)
    ours = models.build("cnn-tanh", CIFAR, 10, width=32, depth=2, hidden=96)
    x = torch.randn(4, *CIFAR)
    assert torch.equal(ours(x), written(x))


def test_the_hidden_layer_of_a_run_is_by_default_that_of_the_network() -> None:
    assert defaults()["hidden"] == models.HIDDEN


@pytest.mark.parametrize("name", catalogue.MODELS)
def test_initialisation_is_torchs_default_drawn_from_the_seeds_own_stream(name: str) -> None:
    shape = TEXT if name in OF_TEXT else DIGITS
    ours = models.initialised(name, shape, 10, width=4, depth=2, seed=5)
    with torch.random.fork_rng():
        torch.manual_seed(seed_of("init", 5))
        default = models.build(name, shape, 10, width=4, depth=2)
    assert all(torch.equal(a, b) for a, b in zip(ours.parameters(), default.parameters(), strict=True))
    other = models.initialised(name, shape, 10, width=4, depth=2, seed=6)
    drawn = [(a, b) for a, b in zip(ours.parameters(), other.parameters(), strict=True) if len(set(a.flatten().tolist())) > 1]
    assert not any(torch.equal(a, b) for a, b in drawn)  # batch normalisation begins with ones and zeros


def test_scale_multiplies_every_parameter() -> None:
    one, half = (models.initialised("cnn", DIGITS, 10, width=4, depth=1, seed=0, scale=scale) for scale in (1.0, 0.5))
    assert all(torch.equal(b, a / 2) for a, b in zip(one.parameters(), half.parameters(), strict=True))


def test_the_callers_random_state_is_left_as_it_was() -> None:
    before = torch.random.get_rng_state()
    models.initialised("fc-tanh", DIGITS, 10, width=4, depth=2, seed=0)
    assert torch.equal(torch.random.get_rng_state(), before)


@pytest.mark.parametrize(("name", "layer"), [("transformer", models.Attention), ("lstm", models.Recurrent)])
def test_depth_counts_the_blocks_of_text(name: str, layer: type[nn.Module]) -> None:
    assert [sum(isinstance(m, layer) for m in models.build(name, TEXT, 27, width=4, depth=d)) for d in (1, 3)] == [1, 3]


@pytest.mark.parametrize("name", catalogue.MODELS)
def test_the_networks_of_the_papers_keep_their_written_out_layers(name: str) -> None:
    network = models.build(name, TEXT if name in OF_TEXT else DIGITS, 10, width=4, depth=2)
    kind = StackedNetwork if name in WRITTEN_OUT else ModuleNetwork
    assert type(Objective.of(network, losses.by_name("mse")).network) is kind


def test_an_unknown_model_is_refused_by_name() -> None:
    with pytest.raises(ConfigError, match="unknown model 'resnet'; there are fc-tanh, fc-relu, cnn, cnn5"):
        models.build("resnet", DIGITS, 10, width=4, depth=2)


def test_a_cnn_too_deep_for_its_images_is_refused() -> None:
    assert models.build("cnn", DIGITS, 10, width=2, depth=3)(torch.zeros(1, *DIGITS)).shape == (1, 10)
    with pytest.raises(ConfigError, match="depth 4 is too much for a CNN on 8×8 images"):
        models.build("cnn", DIGITS, 10, width=2, depth=4)


def test_a_block_of_the_transformer_is_pytorchs_encoder_layer() -> None:
    torch.manual_seed(0)
    ours, theirs = models.Attention(8), nn.TransformerEncoderLayer(8, 4, 32, 0.0, "gelu", batch_first=True, norm_first=True)
    attention, hidden = theirs.self_attn, (theirs.linear1, theirs.linear2)
    pairs = [(ours.first, theirs.norm1), (ours.second, theirs.norm2), (ours.merge, attention.out_proj)]
    pairs += [(ours.hidden[0], hidden[0]), (ours.hidden[2], hidden[1])]
    for mine, other in pairs:
        other.load_state_dict(mine.state_dict())
    attention.load_state_dict(
        {
            "in_proj_weight": ours.project.weight,
            "in_proj_bias": ours.project.bias,
            **{f"out_proj.{key}": value for key, value in ours.merge.state_dict().items()},
        }
    )
    x = torch.randn(3, 16, 8)
    torch.testing.assert_close(ours(x), theirs(x), rtol=1e-5, atol=1e-6)


@pytest.mark.parametrize("depth", [1, 2])
def test_the_last_block_alone_leaves_the_other_positions_out_and_the_network_the_same(depth: int) -> None:
    torch.manual_seed(0)
    network = models.build("transformer", TEXT, 27, width=8, depth=depth)
    blocks = [layer for layer in network if isinstance(layer, models.Attention)]
    assert [block.last for block in blocks] == [False] * (depth - 1) + [True]
    codes = torch.randint(0, 27, (3, *TEXT)).float()
    short = network(codes)
    for block in blocks:
        block.last = False
    torch.testing.assert_close(short, network(codes), rtol=1e-5, atol=1e-6)


def test_a_recurrent_layer_is_pytorchs_lstm() -> None:
    torch.manual_seed(0)
    ours, theirs = models.Recurrent(6), nn.LSTM(6, 6, batch_first=True)
    theirs.load_state_dict({f"{key}_l0": value for key, value in ours.cell.state_dict().items()})
    x = torch.randn(3, 16, 6)
    torch.testing.assert_close(ours(x), theirs(x)[0], rtol=1e-5, atol=1e-6)


@pytest.mark.parametrize("name", OF_TEXT)
def test_networks_for_text_refuse_images(name: str) -> None:
    with pytest.raises(ConfigError, match=f"model {name} reads text; its data set is topics"):
        models.build(name, DIGITS, 10, width=8, depth=1)


def test_a_transformers_width_is_a_multiple_of_its_heads() -> None:
    with pytest.raises(ConfigError, match="width 6 of a transformer is not a multiple of its 4 heads"):
        models.initialised("transformer", TEXT, 27, width=6, depth=1, seed=0)
