"""Hessian products and per-example gradient statistics against dense float64 matrices of the plain module."""

from __future__ import annotations

import itertools

import pytest
import torch
from oracles import EVERY, WRITTEN_OUT, Problem, problem, randn

from eosslib import curvature, losses, models
from eosslib.curvature import Hessian, Point
from eosslib.flat import StackedNetwork
from eosslib.objective import Objective


def example_bytes(p: Problem) -> int:
    """Bytes the library reckons with for one example of the whole stack."""
    network = p.objective.network
    return curvature.GRAPH_FACTOR * network.output_bytes(network.views(p.theta), p.x)


def drawn(p: Problem, sets: list[list[int]]) -> Point:
    """The problem's network at mini-batches."""
    return p.at().drawn(0, torch.tensor(sets))


# name -> (examples that fit the budget, examples a chunk on the CPU, passes for one network); there are 12 examples
CHUNKINGS = {
    "one chunk": (100, 100, 1),
    "three chunks, all kept": (100, 4, 3),
    "three chunks, cut by the budget": (4, 4, 3),
    "twelve chunks, some kept": (1, 1, 12),
    "nothing fits": (0, 1, 12),
}


@pytest.mark.parametrize("chunking", CHUNKINGS.values(), ids=CHUNKINGS.keys())
@pytest.mark.parametrize(("model", "loss"), EVERY)
def test_hessian_product_is_the_dense_one_however_the_examples_are_cut(
    model: str, loss: str, chunking: tuple[int, int, int], monkeypatch: pytest.MonkeyPatch
) -> None:
    fit, chunk, passes = chunking
    p = problem(model, loss, stack=2)
    blocks = p.objective.network.blocks(2)
    monkeypatch.setattr(curvature, "CPU_CHUNK", chunk * example_bytes(p) // curvature.GRAPH_FACTOR // 2)  # of one network
    made: list[int] = []
    linearize = Objective.linearize

    def counted(*args: object) -> object:
        found = linearize(*args)
        made.append(found.nbytes)
        return found

    monkeypatch.setattr(Objective, "linearize", counted)
    v = randn(*p.theta.shape)
    memory = fit * example_bytes(p)
    hessian = Hessian(p.at(memory=memory))
    assert len(made) == passes * len(blocks)
    expected = sum(held <= memory for held in itertools.accumulate(made))
    kept = sum(linearization is not None for _, _, linearization in hessian._passes)
    product = hessian(v)
    assert len(made) == (2 * passes * len(blocks)) - kept
    assert kept == expected
    assert fit != 1 or 0 < kept < passes * len(blocks)
    assert kept == {0: 0, 100: passes * len(blocks)}.get(fit, kept)
    for row in range(2):
        torch.testing.assert_close(product[row], p.hessian(row) @ v[row], rtol=1e-10, atol=1e-12)
    torch.testing.assert_close(hessian(v), product, rtol=0, atol=0)  # a pass can be used again
    assert hessian.products == 2


@pytest.mark.parametrize(("model", "loss"), EVERY)
def test_hessian_knows_loss_accuracy_and_gradient(model: str, loss: str) -> None:
    p = problem(model, loss, stack=2)
    hessian = Hessian(p.at(memory=5 * example_bytes(p)))
    gradient = hessian.gradient()
    for row in range(2):
        right = p.outputs(p.theta[row], p.x[0]).argmax(1) == p.y[0].argmax(1)
        torch.testing.assert_close(hessian.accuracy[row], right.double().mean(), rtol=1e-12, atol=0)
        torch.testing.assert_close(hessian.loss[row], p.example_losses(p.theta[row]).mean(), rtol=1e-12, atol=0)
        torch.testing.assert_close(gradient[row], p.example_gradients(row).mean(0), rtol=1e-10, atol=1e-13)


@pytest.mark.parametrize("model", WRITTEN_OUT)
def test_networks_of_a_stack_can_have_their_own_examples(model: str) -> None:
    p = problem(model)
    sets = [[0, 1, 2, 3], [7, 5, 6, 11], [2, 4, 8, 10]]
    v = randn(3, p.theta.shape[1])
    product = drawn(p, sets).hessian()(v)
    for row, indices in enumerate(sets):
        torch.testing.assert_close(product[row], p.hessian(0, indices) @ v[row], rtol=1e-10, atol=1e-12)


def test_hessian_is_that_of_the_parameters_at_its_making() -> None:
    p = problem()
    v, expected = randn(*p.theta.shape), p.hessian()
    theta = p.theta.clone()
    hessian = Hessian(p.at(theta=theta, memory=0))  # rebuilt at every product
    theta.mul_(3.0)
    torch.testing.assert_close(hessian(v)[0], expected @ v[0], rtol=1e-10, atol=1e-12)


def kept_bytes(point: Point) -> int:
    """Bytes a Hessian holds once it is built, by what Python can still reach; parameters and data not counted."""
    hessian = Hessian(point)
    seen: set[int] = set()
    storages: dict[int, int] = {}

    def visit(item: object) -> None:
        if id(item) in seen or isinstance(item, type):
            return
        seen.add(id(item))
        if isinstance(item, torch.Tensor):
            storages[item.untyped_storage().data_ptr()] = item.untyped_storage().nbytes()
        elif isinstance(item, dict):
            for value in item.values():
                visit(value)
        elif isinstance(item, list | tuple):
            for value in item:
                visit(value)
        elif hasattr(item, "__dict__"):
            visit(vars(item))

    visit(hessian._passes)
    own = {tensor.untyped_storage().data_ptr() for tensor in (point.x, point.y, hessian._params[0])}
    return sum(size for address, size in storages.items() if address not in own)


SIZES = {"digits": ((1, 8, 8), 64, 8), "cifar10": ((3, 32, 32), 200, 32)}


@pytest.mark.parametrize(("shape", "units", "channels"), SIZES.values(), ids=SIZES.keys())
@pytest.mark.parametrize(("model", "loss"), EVERY)
def test_no_more_than_the_budget_is_retained(
    model: str, loss: str, shape: tuple[int, int, int], units: int, channels: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    width = channels if model.startswith("cnn") else units
    modules = [models.initialised(model, shape, 10, width=width, depth=2, seed=seed) for seed in range(2)]
    theta = torch.stack([torch.nn.utils.parameters_to_vector(m.parameters()).detach() for m in modules])
    objective = Objective(StackedNetwork(modules[0]), losses.by_name(loss))
    x, y = torch.randn(1, 40, *shape, generator=torch.Generator().manual_seed(0)), torch.eye(10).repeat(4, 1).unsqueeze(0)
    layers = objective.network.output_bytes(objective.network.views(theta), x)
    monkeypatch.setattr(curvature, "CPU_CHUNK", 10 * layers)
    all_of_it = 40 * curvature.GRAPH_FACTOR * layers
    whole, half, none = (kept_bytes(Point(objective, theta, x, y, memory)) for memory in (all_of_it, all_of_it // 2, 0))
    assert none == 0 < half <= whole
    assert half <= all_of_it // 2
    assert whole <= all_of_it * 1.5 / curvature.GRAPH_FACTOR, "only what a product asks for; it needs twice the outputs besides"


@pytest.mark.parametrize(("n", "memory"), [(12, 5), (12, 12), (12, 1), (7, 3), (1, 1)])
def test_chunks_are_within_budget_and_cover_every_example_once(n: int, memory: int) -> None:
    p = problem(n=n)
    parts = curvature.chunks(p.objective, p.objective.network.views(p.theta), p.x, memory * example_bytes(p))
    assert [i for part in parts for i in range(n)[part]] == list(range(n))
    assert max(part.stop - part.start for part in parts) <= memory
    assert len(parts) == -(-n // memory)


def few(p: Problem, examples: int) -> list[slice]:
    return [slice(i, min(i + examples, p.n)) for i in range(0, p.n, examples)]


@pytest.mark.parametrize("examples", [12, 5])
@pytest.mark.parametrize(("model", "loss"), EVERY)
def test_gradient_moments_are_those_of_explicit_per_example_gradients(model: str, loss: str, examples: int) -> None:
    p = problem(model, loss, stack=2)
    mean, square = curvature.gradient_moments(p.objective, p.objective.network.views(p.theta), p.x, p.y, few(p, examples))
    for row in range(2):
        gradients = p.example_gradients(row)
        torch.testing.assert_close(mean[row], gradients.mean(0), rtol=1e-10, atol=1e-13)
        torch.testing.assert_close(square[row], gradients.square().mean(0), rtol=1e-10, atol=1e-13)


@pytest.mark.parametrize("examples", [12, 5])
@pytest.mark.parametrize(("model", "loss"), EVERY)
def test_directional_derivatives_are_projections_of_per_example_gradients(model: str, loss: str, examples: int) -> None:
    p = problem(model, loss, stack=2)
    v = randn(*p.theta.shape)
    hessian = Hessian(p.at(memory=examples * example_bytes(p)))
    slopes = hessian.slopes(v)
    for row in range(2):
        torch.testing.assert_close(slopes[row], p.example_gradients(row) @ v[row], rtol=1e-10, atol=1e-13)
    both = hessian.with_slopes(v)
    assert hessian.products == 1
    torch.testing.assert_close(both, torch.cat([hessian(v), slopes], dim=1), rtol=1e-12, atol=1e-15)


def test_directional_derivatives_of_a_stack_with_its_own_examples() -> None:
    p = problem("cnn")
    sets = [[0, 1, 2], [9, 4, 6]]
    v = randn(2, p.theta.shape[1])
    slopes = drawn(p, sets).hessian().slopes(v)
    expected = torch.stack([p.example_gradients()[s] @ v[r] for r, s in enumerate(sets)])
    torch.testing.assert_close(slopes, expected, rtol=1e-10, atol=1e-13)


@pytest.mark.parametrize(("model", "loss"), EVERY)
def test_curvature_along_a_batch_gradient_is_that_of_dense_matrices(model: str, loss: str) -> None:
    p = problem(model, loss)
    sets = [[0, 1, 2], [9, 4, 6]]
    curvatures, squares = curvature.curvature_along_gradient(drawn(p, sets))
    for row, indices in enumerate(sets):
        g = p.example_gradients()[indices].mean(0)
        torch.testing.assert_close(curvatures[row], g @ p.hessian(0, indices) @ g, rtol=1e-10, atol=1e-13)
        torch.testing.assert_close(squares[row], g @ g, rtol=1e-10, atol=0)


@pytest.fixture(params=[None, 3], ids=["equal weights", "own weights"])
def weights(request: pytest.FixtureRequest) -> torch.Tensor | None:
    return None if request.param is None else randn(2, 12, seed=request.param)


@pytest.mark.parametrize("examples", [12, 5])
@pytest.mark.parametrize("model", WRITTEN_OUT)
def test_full_gradient_is_the_weighted_sum_of_per_example_gradients(
    model: str, examples: int, weights: torch.Tensor | None
) -> None:
    p = problem(model, stack=2)
    network = p.objective.network
    gradient = network.flatten(curvature.full_gradient(p.objective, network.views(p.theta), p.x, p.y, few(p, examples), weights))
    for row in range(2):
        w = torch.full((12,), 1 / 12, dtype=torch.float64) if weights is None else weights[row]
        torch.testing.assert_close(gradient[row], w @ p.example_gradients(row), rtol=1e-10, atol=1e-13)


@pytest.mark.gpu
@pytest.mark.parametrize(("model", "loss"), EVERY)
def test_cuda_and_cpu_agree_on_gradient_and_hessian_product(model: str, loss: str, cuda: torch.device) -> None:
    p = problem(model, loss, stack=2)
    v = randn(*p.theta.shape)
    here = Hessian(p.at())
    there = Hessian(p.at(theta=p.theta.to(cuda), x=p.x.to(cuda), y=p.y.to(cuda)))
    torch.testing.assert_close(there.gradient().cpu(), here.gradient(), rtol=1e-9, atol=1e-12)
    torch.testing.assert_close(there(v.to(cuda)).cpu(), here(v), rtol=1e-9, atol=1e-12)
