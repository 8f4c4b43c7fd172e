"""Mean and covariance of every update direction against the closed forms, from dense per-example gradients.

The real mini-batch noise is checked exactly, over all batches there are; the synthetic noise within k standard errors.
"""

from __future__ import annotations

import dataclasses
from typing import Any

import pytest
import torch
from oracles import WRITTEN_OUT, Problem, all_batches, problem
from torch.utils._python_dispatch import TorchDispatchMode

from eosslib import catalogue, curvature, dynamics, losses, models
from eosslib.curvature import chunks
from eosslib.flat import StackedNetwork
from eosslib.objective import Objective
from eosslib.streams import seed_of
from eosslib.theory import finite_population

N, B = 8, 3
C = (N - B) / (B * (N - 1))
SYNTHETIC = ["gaussian", "diagonal", "isotropic"]


def small(model: str = "fc-tanh") -> Problem:
    """Eight examples; 23 parameters, or 38 of the CNN."""
    return problem(model, n=N, shape=(1, 2, 2), width=3, depth=1, outputs=2, seed=1)


TOP = 2  # directions of along_top and without_top


def context(p: Problem, stack: int, examples: int = N, name: str = "along_u") -> dynamics.StepContext:
    parts = [slice(i, min(i + examples, p.n)) for i in range(0, p.n, examples)]
    u = top(p, name).expand(stack, -1, -1)
    return dynamics.StepContext(p.objective, p.x, p.y, parts, finite_population(N, B), keys(stack), 0, u)


def top(p: Problem, name: str) -> torch.Tensor:
    """Eigenvectors of the largest eigenvalues, as many as a noise model takes: (k, P)."""
    return torch.linalg.eigh(p.hessian()).eigenvectors.T.flip(0)[: dynamics.directions(name, TOP)]


def keys(stack: int) -> torch.Tensor:
    return torch.tensor([seed_of("test", row) for row in range(stack)])


def directions(p: Problem, name: str, batches: torch.Tensor) -> torch.Tensor:
    """One direction a mini-batch, stacked: (R, P)."""
    network = p.objective.network
    theta = p.theta.expand(len(batches), -1).contiguous()
    return network.flatten(dynamics.direction(name)(context(p, len(batches), name=name), network.views(theta), batches)).detach()


def draws(p: Problem, name: str, count: int, stack: int = 400) -> torch.Tensor:
    """Independent draws of a direction at the same parameters: (count, P)."""
    network = p.objective.network
    shared = context(p, stack)
    params = network.views(p.theta.expand(stack, -1).contiguous())
    rows = []
    for shared.step in range(count // stack):
        rows.append(network.flatten(dynamics.direction(name)(shared, params, None)))
    return torch.cat(rows)


def expected_covariance(p: Problem, name: str) -> torch.Tensor:
    sigma, identity = p.covariance(), torch.eye(p.theta.shape[1], dtype=torch.float64)
    u = top(p, name)
    along = u.T @ u
    return (
        C
        * {
            "sgd": sigma,
            "gaussian": sigma,
            "diagonal": sigma.diag().diag(),
            "isotropic": sigma.trace() / len(sigma) * identity,
            "along_u": along @ sigma @ along,
            "without_u": (identity - along) @ sigma @ (identity - along),
        }[name.replace("_top", "_u")]
    )


@pytest.mark.parametrize("model", WRITTEN_OUT)
@pytest.mark.parametrize("name", ["sgd", "along_u", "without_u", "along_top", "without_top"])
def test_mini_batch_noise_over_all_batches_has_the_mean_and_covariance_of_the_closed_form(name: str, model: str) -> None:
    p = small(model)
    rows = directions(p, name, torch.tensor(all_batches(N, B)))
    torch.testing.assert_close(rows.mean(0), p.example_gradients().mean(0), rtol=1e-9, atol=1e-13)
    torch.testing.assert_close(torch.cov(rows.T, correction=0), expected_covariance(p, name), rtol=1e-9, atol=1e-13)


@pytest.mark.parametrize("name", SYNTHETIC)
def test_synthetic_noise_has_the_mean_and_covariance_of_the_closed_form(name: str) -> None:
    p, count = small(), 20_000
    rows = draws(p, name, count)
    expected = expected_covariance(p, name)
    variances = expected.diag()
    assert float(variances.min()) > 0
    mean_error = (variances / count).sqrt()
    assert bool(((rows.mean(0) - p.example_gradients().mean(0)).abs() < 5 * mean_error).all())
    # For a Gaussian, Var of an entry of the sample covariance is (C_ii C_jj + C_ij²)/N.
    error = ((torch.outer(variances, variances) + expected.square()) / count).sqrt()
    assert bool(((torch.cov(rows.T) - expected).abs() < 5 * error).all())


def test_gaussian_noise_lies_in_the_span_of_the_centred_gradients() -> None:
    p = small()
    gradients = p.example_gradients()
    centred = gradients - gradients.mean(0)
    noise = draws(p, "gaussian", 400) - gradients.mean(0)
    inside = noise @ torch.linalg.pinv(centred) @ centred
    torch.testing.assert_close(noise, inside, rtol=0, atol=1e-12)
    assert torch.linalg.matrix_rank(noise) == N - 1 < noise.shape[1]


@pytest.mark.parametrize("model", WRITTEN_OUT)
def test_directional_diagonal_and_isotropic_noise_have_the_same_total_variance(model: str) -> None:
    p, count = small(model), 1_200
    total = C * float(p.covariance().trace())
    for name in SYNTHETIC:
        squares = (draws(p, name, count) - p.example_gradients().mean(0)).square().sum(1)
        assert abs(float(squares.mean()) - total) < 4.5 * float(squares.std()) / count**0.5


@pytest.mark.parametrize("which", ["u", "top"])
def test_the_projected_parts_add_up_to_the_mini_batch_noise(which: str) -> None:
    p, batches = small("cnn"), torch.tensor(all_batches(N, B))
    inside, outside, whole = (directions(p, name, batches) for name in (f"along_{which}", f"without_{which}", "sgd"))
    g = p.example_gradients().mean(0)
    torch.testing.assert_close(inside + outside - g, whole, rtol=1e-9, atol=1e-13)
    left = (outside - g) @ top(p, f"along_{which}").T
    torch.testing.assert_close(left, torch.zeros_like(left), rtol=0, atol=1e-13)


@pytest.mark.parametrize("examples", [N, 3])
@pytest.mark.parametrize("model", WRITTEN_OUT)
def test_full_gradient_is_the_mean_gradient_however_it_is_cut(model: str, examples: int) -> None:
    p = small(model)
    network = p.objective.network
    g = network.flatten(dynamics.gradient(context(p, 1, examples), network.views(p.theta), None))
    torch.testing.assert_close(g[0], p.example_gradients().mean(0), rtol=1e-10, atol=1e-13)


@pytest.mark.parametrize("name", SYNTHETIC)
def test_a_draw_does_not_depend_on_how_the_examples_are_cut(name: str) -> None:
    p = small("cnn")
    network = p.objective.network
    whole, cut = (
        network.flatten(dynamics.direction(name)(context(p, 2, examples), network.views(p.theta.repeat(2, 1)), None))
        for examples in (N, 3)
    )
    torch.testing.assert_close(whole, cut, rtol=1e-9, atol=1e-13)
    assert not torch.equal(whole[0], whole[1]), "every network has its own noise"


@pytest.mark.parametrize("name", SYNTHETIC)
def test_at_the_full_batch_there_is_no_synthetic_noise(name: str) -> None:
    p = small()
    network, quiet = p.objective.network, context(p, 1)
    quiet.noise_factor = finite_population(N, N)
    g = network.flatten(dynamics.direction(name)(quiet, network.views(p.theta), None))
    torch.testing.assert_close(g[0], p.example_gradients().mean(0), rtol=1e-10, atol=1e-13)


class LargestOutput(TorchDispatchMode):
    """Records the number of elements of the largest tensor any operation returns."""

    numel = 0

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        result = func(*args, **(kwargs or {}))
        for tensor in result if isinstance(result, tuple | list) else [result]:
            if isinstance(tensor, torch.Tensor):
                self.numel = max(self.numel, tensor.numel())
        return result


def large(model: str, shape: tuple[int, int, int], width: int, n: int) -> tuple[dynamics.StepContext, torch.Tensor]:
    module = models.initialised(model, shape, 10, width=width, depth=2, seed=0)
    objective = Objective(StackedNetwork(module), losses.by_name("mse"))
    theta = torch.nn.utils.parameters_to_vector(module.parameters()).detach().unsqueeze(0)
    stream = torch.Generator().manual_seed(0)
    x, y = torch.randn(1, n, *shape, generator=stream), torch.eye(10).repeat(n // 10, 1).unsqueeze(0)
    parts = chunks(objective, objective.network.views(theta), x)
    return dynamics.StepContext(objective, x, y, parts, 1 / 16, keys(1), 0), theta


@pytest.mark.parametrize("name", SYNTHETIC)
def test_no_n_by_p_matrix_is_ever_formed_at_the_size_of_the_paper(name: str) -> None:
    """n = 5,000 and 3072-200-200-10, P = 656,810: such a matrix would be 13 GB; what is formed is no larger than the images."""
    step, theta = large("fc-tanh", (3, 32, 32), 200, 5_000)
    network = step.objective.network
    with LargestOutput() as largest:
        update = dynamics.direction(name)(step, network.views(theta), None)
    assert network.size == 656_810
    assert all(bool(torch.isfinite(part).all()) for part in update)
    assert 0 < largest.numel <= max(step.x.numel(), 2 * network.size)


@pytest.mark.parametrize("name", ["diagonal", "isotropic"])
def test_per_example_gradients_of_a_convolution_are_formed_a_chunk_at_a_time(name: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """The largest tensor is that of a chunk: it does not grow with n."""
    monkeypatch.setattr(curvature, "CPU_CHUNK", 1 << 20)
    sizes = []
    for n in (200, 400):
        step, theta = large("cnn", (1, 8, 8), 16, n)
        with LargestOutput() as largest:
            dynamics.direction(name)(step, step.objective.network.views(theta), None)
        sizes.append(largest.numel)
    assert len(step.parts) > 3
    assert sizes[0] == sizes[1]


def test_the_names_that_use_a_batch_or_an_eigenvector_are_directions() -> None:
    assert {name for name, noise in catalogue.NOISES.items() if noise.batch} >= dynamics.USES_U
    assert [dynamics.directions(name, 7) for name in ("sgd", "gaussian", "along_u", "without_u", "along_top")] == [0, 0, 1, 1, 7]
    assert set(SYNTHETIC) == {name for name, noise in catalogue.NOISES.items() if not noise.batch}


@pytest.mark.gpu
@pytest.mark.parametrize("name", SYNTHETIC)
def test_synthetic_noise_on_cuda_has_the_right_mean_and_total_variance(name: str, cuda: torch.device) -> None:
    p, stack = small(), 400
    network, step = p.objective.network, context(p, stack)
    step.x, step.y = p.x.to(cuda), p.y.to(cuda)
    step.keys = step.keys.to(cuda)
    params = network.views(p.theta.expand(stack, -1).contiguous().to(cuda))
    draw = dynamics.direction(name)
    rows = torch.cat([network.flatten(draw(dataclasses.replace(step, step=i), params, None)).cpu() for i in range(10)])
    squares = (rows - p.example_gradients().mean(0)).square().sum(1)
    total = C * float(p.covariance().trace())
    assert abs(float(squares.mean()) - total) < 4.5 * float(squares.std()) / len(squares) ** 0.5
