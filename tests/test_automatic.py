"""Automatic differentiation of any module: the same numbers as written-out layers, and as dense matrices where there are none."""

from __future__ import annotations

import gc
from collections.abc import Callable
from functools import cache

import numpy as np
import pytest
import torch
from oracles import EVERY, OF_TEXT, WRITTEN_OUT, Problem, all_batches, problem, randn
from scipy.sparse.linalg import LinearOperator, eigsh
from torch import nn

from eosslib import catalogue, losses, models
from eosslib.automatic import ModuleNetwork
from eosslib.curvature import Point, chunks, gradient_moments, third_derivative
from eosslib.errors import ConfigError
from eosslib.flat import StackedNetwork
from eosslib.measure.drawn import Draws
from eosslib.measure.minibatch import minibatch_sharpness
from eosslib.measure.sharpness import sharpness
from eosslib.objective import Objective
from eosslib.settings import RunConfig
from eosslib.training import Trainer

Settings = Callable[..., RunConfig]
RESIDUAL = ["resnet10", "resnet10-bn"]


def automatic(p: Problem) -> Objective:
    """The objective of the same network, not written out."""
    return Objective(ModuleNetwork(p.module), losses.by_name(p.loss))


@cache
def residual(name: str, loss: str = "mse") -> Problem:
    return problem(name, loss, n=6, width=1, shape=(1, 4, 4))


def gradient_at(p: Problem, theta: torch.Tensor) -> torch.Tensor:
    return torch.autograd.functional.jacobian(lambda t: p.example_losses(t).mean(), theta)


def top_pair(p: Problem, indices: tuple[int, ...]) -> tuple[float, torch.Tensor]:
    """Top eigenpair of the Hessian of some examples' mean loss, by SciPy's solver on autograd's own products.

    These networks have a thousand parameters; ``torch.func``'s dense Hessian of batch normalisation is not even symmetric.
    """

    def product(v: np.ndarray) -> np.ndarray:
        loss = lambda theta: p.example_losses(theta, list(indices)).mean()  # noqa: E731
        return torch.autograd.functional.vhp(loss, p.theta[0], torch.from_numpy(v).ravel())[1].numpy()

    size = p.theta.shape[1]
    values, vectors = eigsh(LinearOperator((size, size), product, dtype=np.float64), k=1, which="LA")
    return float(values[0]), torch.from_numpy(vectors[:, 0].copy())


@pytest.mark.parametrize("memory", [1 << 30, 1])
@pytest.mark.parametrize(("model", "loss"), EVERY)
def test_written_out_layers_and_automatic_differentiation_agree(model: str, loss: str, memory: int) -> None:
    p = problem(model, loss, stack=2)
    v = randn(*p.theta.shape)
    points = [p.at(objective=objective, memory=memory) for objective in (automatic(p), p.objective)]
    ours, theirs = (point.hessian() for point in points)
    for what in ("__call__", "with_slopes", "gauss_newton", "ntk", "slopes"):
        torch.testing.assert_close(getattr(ours, what)(v), getattr(theirs, what)(v), rtol=1e-9, atol=1e-12, msg=what)
    torch.testing.assert_close(ours.gradient(), theirs.gradient(), rtol=1e-9, atol=1e-12)
    torch.testing.assert_close((ours.loss, ours.accuracy), (theirs.loss, theirs.accuracy), rtol=1e-12, atol=0)
    third = [third_derivative(point, v, v) for point in points]
    torch.testing.assert_close(*third, rtol=1e-8, atol=1e-10)


@pytest.mark.parametrize("model", ["fc-tanh", "cnn"])
def test_moments_of_the_examples_gradients_agree(model: str) -> None:
    p = problem(model)
    params = p.objective.network.views(p.theta)
    both = [gradient_moments(o, params, p.x, p.y, [slice(0, 5), slice(5, p.n)]) for o in (automatic(p), p.objective)]
    for mine, other in zip(*both, strict=True):
        torch.testing.assert_close(mine, other, rtol=1e-9, atol=1e-14)


@pytest.mark.parametrize("loss", catalogue.LOSSES)
@pytest.mark.parametrize("model", RESIDUAL)
def test_residual_networks_have_the_hessian_of_finite_differences(model: str, loss: str) -> None:
    p = residual(model, loss)
    point, v = p.at(objective=Objective.of(p.module, losses.by_name(loss))), randn(*p.theta.shape)
    difference = gradient_at(p, p.theta[0] + 1e-7 * v[0]) - gradient_at(p, p.theta[0] - 1e-7 * v[0])
    torch.testing.assert_close(point.hessian()(v)[0], difference / 2e-7, rtol=1e-6, atol=1e-5)
    top = sharpness(point, randn(1, 1, len(v[0])), tol=1e-8).values
    assert float(top) == pytest.approx(top_pair(p, tuple(range(p.n)))[0], rel=1e-9)


@pytest.mark.parametrize("name", ["resnet10", "resnet10-bn"])
def test_what_a_pass_kept_is_given_back(name: str) -> None:
    p = residual(name)
    objective = Objective.of(p.module, losses.by_name("mse"))
    params = objective.network.views(p.theta)

    def tensors() -> int:
        gc.collect()
        return sum(type(thing) is torch.Tensor for thing in gc.get_objects())

    before = tensors()
    for _ in range(3):
        objective.batch_gradient(params, p.x, p.y)
        objective.linearize(params, p.x, p.y, 1 / p.n, slice(0, 1))
    assert tensors() <= before


@pytest.mark.parametrize("model", OF_TEXT)
def test_networks_for_text_have_the_hessian_of_dense_differentiation(model: str) -> None:
    codes = torch.randint(0, 9, (1, 7, 1, 1, 5), generator=torch.Generator().manual_seed(0)).double()
    module = models.initialised(model, (1, 1, 5), 9, width=4, depth=1, seed=0).double()
    theta = nn.utils.parameters_to_vector(module.parameters()).detach().unsqueeze(0)
    y = nn.functional.one_hot(torch.arange(7), 9).double().unsqueeze(0)
    p = Problem(module, "cross-entropy", theta, codes, y)
    dense = torch.autograd.functional.hessian(lambda t: p.example_losses(t).mean(), theta[0])
    point, v = p.at(objective=automatic(p)), randn(*theta.shape)
    torch.testing.assert_close(point.hessian()(v)[0], dense @ v[0], rtol=1e-9, atol=1e-12)
    found = sharpness(point, v.unsqueeze(1), tol=1e-8).values
    assert float(found) == pytest.approx(torch.linalg.eigvalsh(dense)[-1].item(), rel=1e-9)


@pytest.mark.parametrize("name", ["lstm", "transformer", *RESIDUAL])
def test_the_gradient_of_a_step_is_that_of_the_kept_pass_bit_for_bit_but_keeps_nothing(
    name: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    shape = (1, 1, 5) if name in OF_TEXT else (1, 4, 4)
    p = problem(name, "cross-entropy", n=6, width=4 if name in OF_TEXT else 1, shape=shape, stack=2)
    objective = automatic(p)
    params, x = objective.network.views(p.theta), p.x.abs().long().clamp(max=2).double() if name in OF_TEXT else p.x
    weights = torch.linspace(0.1, 0.6, 12, dtype=p.theta.dtype).view(2, 6)
    kept = [objective.linearize(params, x, p.y, weights, slice(r, r + 1)).gradient() for r in range(2)]
    monkeypatch.setattr("eosslib.automatic.AutomaticLinearization", None)  # a step has no use for it
    for r, found in enumerate(zip(*objective.batch_gradient(params, x, p.y, weights), strict=True)):
        assert all(torch.equal(a, b[0]) and not a.requires_grad for a, b in zip(found, kept[r], strict=True))


def test_batch_normalisation_sees_the_mini_batch_for_minibs_and_all_examples_for_the_sharpness() -> None:
    p = residual("resnet10-bn")
    point = p.at(objective=Objective.of(p.module, losses.by_name("mse")))
    exact = sum(top_pair(p, tuple(batch))[0] for batch in all_batches(6, 5)) / 6
    u = top_pair(p, tuple(range(6)))[1].unsqueeze(0)
    draws = Draws(5, 30, [("test", 0)])
    found = minibatch_sharpness(point, u, draws, tol=1e-6)
    assert abs(float(found.value.value) - exact) < 4.5 * float(found.value.standard_error)
    assert torch.isnan(found.gap.value).all()  # E_B[∇²L_B] is another matrix than ∇²L, whose λ_max must be given
    full = torch.tensor([top_pair(p, tuple(range(6)))[0]], dtype=torch.float64)
    gap = minibatch_sharpness(point, u, draws, tol=1e-6, sharpness=full).gap
    assert float(gap.value) == pytest.approx(float(found.value.value - full), rel=1e-9)
    assert float(gap.standard_error) == pytest.approx(float(found.value.standard_error))


def test_batch_normalisation_takes_all_examples_in_one_pass_or_says_that_they_do_not_fit() -> None:
    p = residual("resnet10-bn")
    objective = Objective.of(p.module, losses.by_name("mse"))
    params = objective.network.views(p.theta)
    assert chunks(objective, params, p.x) == [slice(0, 6)]
    with pytest.raises(ConfigError, match=r"batch normalisation needs all training examples in one pass, .* GiB of 0.0"):
        chunks(objective, params, p.x, 1000)
    plain = Objective.of(residual("resnet10").module, losses.by_name("mse"))
    assert len(chunks(plain, plain.network.views(residual("resnet10").theta), p.x, 1000)) == 6


def test_what_stays_is_within_what_was_counted_on() -> None:
    """The bytes that a graph keeps, per example, are those that chunks are cut by, times no more than the factor they use."""
    module = models.initialised("resnet10", (1, 8, 8), 10, width=4, depth=1, seed=0)
    network = ModuleNetwork(module)
    theta = nn.utils.parameters_to_vector(module.parameters()).detach().unsqueeze(0)
    x, y = torch.randn(1, 40, 1, 8, 8), torch.zeros(1, 40, 10)
    made = Objective(network, losses.by_name("mse")).linearize(network.views(theta), x, y, 1 / 40, slice(0, 1))
    each = network.output_bytes(network.views(theta), x)
    assert each * 40 < made.nbytes < 4 * each * 40


@pytest.mark.parametrize("model", RESIDUAL)
def test_residual_networks_train_and_go_on_bit_for_bit(model: str, tiny: Settings) -> None:
    config = tiny(model=model, width=1, sample_every=5, minibs_draws=2, batch_sharpness_draws=2, overlap_draws=2)
    states: list = []
    whole = Trainer([config]).run(lambda state: states.append(state.copy()))
    trainer = Trainer([config])
    trainer.state = states[1]
    assert torch.equal(trainer.run().theta, whole.theta)
    last = whole.rows[0][-2]
    assert (last["noise_variance"] != last["noise_variance"]) == (model == "resnet10-bn")
    assert last["minibatch_sharpness"] > 0
    if model == "resnet10-bn":
        assert last["minibs_gap"] == pytest.approx(last["minibatch_sharpness"] - last["sharpness"], rel=1e-5)
    assert last["overlap_gauss_newton"] > 0


def test_a_module_keeps_its_buffers_and_parameters() -> None:
    module = nn.Sequential(nn.Flatten(), nn.Linear(16, 3), nn.BatchNorm1d(3))
    before = {name: value.clone() for name, value in module.state_dict().items()}
    objective = Objective.of(module, losses.by_name("mse"))
    theta = torch.randn(1, objective.network.size)
    Point(objective, theta, torch.randn(1, 8, 1, 4, 4), torch.zeros(1, 8, 3)).hessian()(torch.randn_like(theta))
    assert all(torch.equal(value, before[name]) for name, value in module.state_dict().items())


def test_the_written_out_form_is_taken_where_there_is_one() -> None:
    for name in WRITTEN_OUT:
        module = models.build(name, (1, 8, 8), 10, width=2, depth=2)
        assert isinstance(Objective.of(module, losses.by_name("mse")).network, StackedNetwork)
    for name in RESIDUAL:
        module = models.build(name, (1, 8, 8), 10, width=2, depth=2)
        assert isinstance(Objective.of(module, losses.by_name("mse")).network, ModuleNetwork)


@pytest.mark.parametrize("change", [{"noise": "gaussian"}, {"window": 5, "window_every": 5}, {"coupled_steps": 2}])
def test_what_needs_gradients_of_single_examples_is_refused_with_batch_normalisation(change: dict, tiny: Settings) -> None:
    with pytest.raises(ConfigError, match="need the gradients of single examples"):
        tiny(model="resnet10-bn", **change)
