"""A network as a function of a stack of flat parameter vectors, against the module it was made from."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace

import pytest
import torch
from oracles import WRITTEN_OUT, problem, randn
from torch import nn

from eosslib import catalogue, losses, models
from eosslib.curvature import Point
from eosslib.flat import StackedNetwork
from eosslib.objective import Objective


@pytest.mark.parametrize("model", WRITTEN_OUT)
def test_every_row_of_the_stack_is_the_sequential_module(model: str) -> None:
    p = problem(model, stack=3)
    network = p.objective.network
    stacked = network(network.views(p.theta), p.x)
    assert stacked.shape == (3, 12, 3)
    for row in range(3):
        torch.testing.assert_close(stacked[row], p.outputs(p.theta[row], p.x[0]), rtol=1e-12, atol=1e-14)


@pytest.mark.parametrize("model", WRITTEN_OUT)
def test_every_row_can_see_its_own_inputs(model: str) -> None:
    p = problem(model, stack=2)
    network = p.objective.network
    inputs = torch.stack([p.x[0, :5], p.x[0, 5:10]])
    stacked = network(network.views(p.theta), inputs)
    for row in range(2):
        torch.testing.assert_close(stacked[row], p.outputs(p.theta[row], inputs[row]), rtol=1e-12, atol=1e-14)


@pytest.mark.parametrize("model", ["cnn", "cnn-tanh"])
@pytest.mark.parametrize("shape", [(1, 8, 8), (3, 9, 7)])
def test_convolutions_of_one_channel_and_of_odd_images_are_right_in_float32(model: str, shape: tuple[int, int, int]) -> None:
    module = models.initialised(model, shape, 10, width=8, depth=2, seed=0)
    network = StackedNetwork(module)
    x = torch.randn(1, 16, *shape, generator=torch.Generator().manual_seed(0))
    theta = nn.utils.parameters_to_vector(module.parameters()).detach().unsqueeze(0)
    torch.testing.assert_close(network(network.views(theta), x)[0], module(x[0]).detach(), rtol=1e-5, atol=1e-6)


@pytest.mark.parametrize("shape", [(1, 8, 8), (3, 9, 7), (3, 32, 32)])
def test_derivatives_of_the_papers_cnn_have_the_errors_of_float32(shape: tuple[int, int, int]) -> None:
    module = models.initialised("cnn-tanh", shape, 10, width=16, depth=2, hidden=30, seed=0)
    theta = nn.utils.parameters_to_vector(module.parameters()).detach().unsqueeze(0)
    x, y, v = randn(1, 20, *shape), torch.eye(10, dtype=torch.float64).repeat(2, 1)[None], randn(*theta.shape, seed=1)
    single, double = (
        Point(Objective(StackedNetwork(module), losses.by_name("mse")), theta.to(kind), x.to(kind), y.to(kind)).hessian()
        for kind in (torch.float32, torch.float64)
    )
    for ours, exact in [
        (single.gradient(), double.gradient()),
        (single(v.float()), double(v)),
        (single.slopes(v.float()), double.slopes(v)),
    ]:
        assert (ours.double() - exact).norm() < 3e-6 * exact.norm()


@pytest.mark.parametrize("model", WRITTEN_OUT)
def test_flatten_undoes_views_and_copies(model: str) -> None:
    p = problem(model, stack=3)
    network = p.objective.network
    back = network.flatten(network.views(p.theta))
    assert torch.equal(back, p.theta)
    back.zero_()
    assert bool(p.theta.abs().sum() > 0)


def test_sizes_are_those_of_the_module() -> None:
    p = problem("cnn")
    assert p.objective.network.shapes == [tuple(q.shape) for q in p.module.parameters()]
    assert p.objective.network.size == sum(q.numel() for q in p.module.parameters())


@pytest.mark.parametrize("model", WRITTEN_OUT)
def test_views_share_memory_with_the_stack(model: str) -> None:
    p = problem(model, stack=2)
    theta = p.theta.clone()
    torch._foreach_add_(list(p.objective.network.views(theta)), 1.0)
    assert torch.equal(theta, p.theta + 1.0)


def test_batch_gradient_is_the_mean_of_the_per_example_gradients() -> None:
    p = problem("fc-relu", stack=2)
    network, sets = p.objective.network, [[0, 3, 5], [2, 7, 11]]
    gradient = network.flatten(p.objective.batch_gradient(network.views(p.theta), p.x[0, sets], p.y[0, sets]))
    for row, indices in enumerate(sets):
        torch.testing.assert_close(gradient[row], p.example_gradients(row)[indices].mean(0), rtol=1e-10, atol=1e-13)


DEPTHS = [(model, depth) for model in WRITTEN_OUT for depth in (1, 2)]


@pytest.mark.parametrize("loss", catalogue.LOSSES)
@pytest.mark.parametrize(("model", "depth"), DEPTHS)
def test_a_linearization_knows_losses_gradient_slopes_and_hessian_product(model: str, depth: int, loss: str) -> None:
    p = problem(model, loss, depth=depth)
    network, v, w = p.objective.network, randn(*p.theta.shape), randn(1, p.n, seed=7)
    made = p.objective.linearize(network.views(p.theta), p.x, p.y, w, slice(0, 1))
    torch.testing.assert_close(made.losses[0], p.example_losses(p.theta[0]), rtol=1e-12, atol=0)
    torch.testing.assert_close(network.flatten(made.gradient())[0], w[0] @ p.example_gradients(), rtol=1e-10, atol=1e-13)
    torch.testing.assert_close(made.slopes(network.views(v))[0], p.example_gradients() @ v[0], rtol=1e-10, atol=1e-13)
    hessian = torch.autograd.functional.hessian(lambda t: w[0] @ p.example_losses(t), p.theta[0])
    product, slopes = made.product_and_slopes(network.views(v))
    torch.testing.assert_close(network.flatten(product)[0], hessian @ v[0], rtol=1e-10, atol=1e-12)
    torch.testing.assert_close(slopes[0], p.example_gradients() @ v[0], rtol=1e-10, atol=1e-13)
    squares = (w[0, :, None] * p.example_gradients()).square().sum(0)
    torch.testing.assert_close(network.flatten(made.squares())[0], squares, rtol=1e-10, atol=1e-13)


@pytest.mark.parametrize("loss", catalogue.LOSSES)
@pytest.mark.parametrize("model", WRITTEN_OUT)
def test_hessian_products_can_be_differentiated_once_more(model: str, loss: str) -> None:
    """∇(vᵀHv), a third derivative, comes out of automatic differentiation through the written-out product."""
    p = problem(model, loss)
    network, v = p.objective.network, randn(*p.theta.shape)

    def curvature(theta: torch.Tensor) -> torch.Tensor:
        made = p.objective.linearize(network.views(theta), p.x, p.y, 1 / p.n, slice(0, 1))
        return (v * network.flatten(made.product(network.views(v)))).sum()

    def oracle(t: torch.Tensor) -> torch.Tensor:
        (g,) = torch.autograd.grad(p.example_losses(t).mean(), t, create_graph=True)
        (hv,) = torch.autograd.grad(g @ v[0], t, create_graph=True)
        return v[0] @ hv

    ours = torch.autograd.functional.jacobian(curvature, p.theta)[0]
    theirs = torch.autograd.grad(oracle(t := p.theta[0].clone().requires_grad_()), t)[0]
    torch.testing.assert_close(ours, theirs, rtol=1e-9, atol=1e-12)


@pytest.mark.parametrize("model", ["cnn", "cnn-tanh"])
def test_equal_maxima_of_a_pooling_are_treated_as_pytorch_does(model: str) -> None:
    """Images without structure, whose convolutions are the same at every inner place, and so all of whose poolings are ties."""
    p = problem(model, shape=(2, 8, 8), depth=1)
    flat = replace(p, x=p.x[:, :, :, :1, :1].expand_as(p.x).contiguous())
    v = randn(*p.theta.shape)
    made = p.objective.linearize(p.objective.network.views(p.theta), flat.x, flat.y, 1 / p.n, slice(0, 1))
    product, slopes = made.product_and_slopes(p.objective.network.views(v))
    torch.testing.assert_close(p.objective.network.flatten(product)[0], flat.hessian() @ v[0], rtol=1e-10, atol=1e-12)
    torch.testing.assert_close(slopes[0], flat.example_gradients() @ v[0], rtol=1e-10, atol=1e-13)


@pytest.mark.parametrize("model", WRITTEN_OUT)
def test_output_bytes_count_every_layer_of_every_network(model: str) -> None:
    p = problem(model, stack=3)
    total, x = 0, p.x[0, :1]
    for layer in p.module:
        x = layer(x)
        total += 3 * 8 * x.numel()
    assert p.objective.network.output_bytes(p.objective.network.views(p.theta), p.x) == total


UNSUPPORTED: dict[str, nn.Module] = {
    "sigmoid": nn.Sigmoid(),
    "dropout": nn.Dropout(),
    "batch norm": nn.BatchNorm1d(4),
    "a module in a module": nn.Sequential(nn.Linear(4, 4)),
    "5×5 convolution": nn.Conv2d(1, 1, 5, padding=2),
    "unpadded convolution": nn.Conv2d(1, 1, 3),
    "strided convolution": nn.Conv2d(1, 1, 3, padding=1, stride=2),
    "pooling over 3×3": nn.MaxPool2d(3),
    "average pooling": nn.AvgPool2d(2),
    "linear layer without bias": nn.Linear(4, 4, bias=False),
    "convolution without bias": nn.Conv2d(1, 1, 3, padding=1, bias=False),
    "grouped convolution": nn.Conv2d(2, 2, 3, padding=1, groups=2),
    "dilated convolution": nn.Conv2d(1, 1, 3, padding="same", dilation=2),
    "convolution with reflecting padding": nn.Conv2d(1, 1, 3, padding=1, padding_mode="reflect"),
    "overlapping pooling": nn.MaxPool2d(2, stride=1),
    "padded pooling": nn.MaxPool2d(2, padding=1),
    "pooling that rounds up": nn.MaxPool2d(2, ceil_mode=True),
    "flattening from another dimension": nn.Flatten(start_dim=2),
}


@pytest.mark.parametrize("layer", UNSUPPORTED.values(), ids=UNSUPPORTED.keys())
def test_a_layer_without_a_stacked_form_is_refused(layer: nn.Module) -> None:
    with pytest.raises(TypeError, match="stacked"):
        StackedNetwork(nn.Sequential(layer))


def used_twice() -> nn.Sequential:
    layer = nn.Linear(4, 4)
    return nn.Sequential(layer, nn.Tanh(), layer)


def tied() -> nn.Sequential:
    module = nn.Sequential(nn.Linear(4, 4), nn.Tanh(), nn.Linear(4, 4))
    module[2].weight = module[0].weight
    return module


def frozen() -> nn.Sequential:
    module = nn.Sequential(nn.Linear(4, 4), nn.Tanh(), nn.Linear(4, 4))
    module[0].requires_grad_(False)
    return module


@pytest.mark.parametrize("make", [used_twice, tied, frozen])
def test_shared_and_frozen_parameters_are_refused_and_differentiated_automatically(make: Callable[[], nn.Sequential]) -> None:
    module = make().double()
    with pytest.raises(TypeError, match="can be stacked"):
        StackedNetwork(module)
    objective = Objective.of(module, losses.by_name("mse"))
    names = [name for name, p in module.named_parameters() if p.requires_grad]
    parts = [p.detach() for p in module.parameters() if p.requires_grad]
    theta, x, y = torch.cat([p.flatten() for p in parts]), randn(1, 5, 4), randn(1, 5, 4, seed=3)
    assert objective.network.size == len(theta)

    def loss(t: torch.Tensor) -> torch.Tensor:
        values = {name: q.view_as(p) for name, q, p in zip(names, t.split([p.numel() for p in parts]), parts, strict=True)}
        return (torch.func.functional_call(module, values, (x[0],)) - y[0]).square().sum(1).mean() / 2

    v = randn(1, len(theta))
    product = Point(objective, theta[None], x, y).hessian()(v)
    torch.testing.assert_close(product[0], torch.autograd.functional.hessian(loss, theta) @ v[0], rtol=1e-10, atol=1e-13)


def test_an_activation_may_be_used_twice() -> None:
    act = nn.Tanh()
    module = nn.Sequential(nn.Linear(4, 4), act, nn.Linear(4, 4), act).double()
    network, x = StackedNetwork(module), randn(1, 5, 4)
    theta = nn.utils.parameters_to_vector(module.parameters()).detach().unsqueeze(0)
    torch.testing.assert_close(network(network.views(theta), x)[0], module(x[0]).detach())


@pytest.mark.parametrize(("shape", "given"), [((2, 3), "2 × 3"), ((6, 3), "6 × 3"), ((5,), "5")])
def test_a_linear_layer_takes_one_row_of_features_an_example(shape: tuple[int, ...], given: str) -> None:
    network = StackedNetwork(nn.Sequential(nn.Linear(3, 2)))
    with pytest.raises(TypeError, match=f"takes 3 features an example, not {given}: put nn.Flatten before it"):
        network(network.views(torch.zeros(1, network.size)), torch.zeros(1, 4, *shape))


def test_a_sequence_with_a_forward_pass_of_its_own_is_not_taken_for_its_layers() -> None:
    class Residual(nn.Sequential):
        def forward(self, x: torch.Tensor) -> torch.Tensor:
            return x + super().forward(x)

    module = Residual(nn.Linear(3, 3), nn.Tanh())
    with pytest.raises(TypeError, match="one after the other"):
        StackedNetwork(module)
    objective, x = Objective.of(module, losses.by_name("mse")), randn(1, 4, 3).float()
    theta = torch.nn.utils.parameters_to_vector(module.parameters()).detach()[None]
    torch.testing.assert_close(objective.network(objective.network.views(theta), x)[0], module(x[0]).detach())
