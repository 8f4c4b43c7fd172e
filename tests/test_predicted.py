"""The constrained trajectory and the predicted dynamics: against dense matrices, Taylor's theorem, and real trainings."""

from __future__ import annotations

import dataclasses
from functools import cache

import pytest
import torch
from helpers import TINY
from oracles import tiny_problem

from eosslib.errors import ConfigError
from eosslib.predicted import TOL, Constrained
from eosslib.settings import RunConfig
from eosslib.training import State, Trainer

EDGE = {**TINY, "lr": 0.3, "steps": 600, "coupled_steps": 60, "measure_every": 60, "dtype": "float64", "batch_size": 40}


@cache
def trained(batch_size: int = 40, coupled_steps: int = 60, lr: float = 0.3) -> State:
    config = RunConfig(**{**EDGE, "batch_size": batch_size, "coupled_steps": coupled_steps, "lr": lr})
    return Trainer([config, dataclasses.replace(config, seed=1)]).run()


def test_a_constrained_point_is_described_as_dense_matrices_say() -> None:
    p = tiny_problem()
    u = torch.stack([p.spectrum(theta)[1][:, -1] for theta in p.theta])
    point = Constrained(p.at(), u, lr=1e-9)  # so small a step that the constraint is far away
    for row in range(2):
        values, vectors, gradient = p.spectrum(p.theta[row])
        top = vectors[:, -1] * torch.sign(vectors[:, -1] @ u[row])
        ascent = torch.einsum("ijk,i,j->k", p.third(p.theta[row]), top, top)
        ascent = ascent - top * (top @ ascent)
        assert point.sharpness[row].item() == pytest.approx(values[-1].item(), rel=1e-8)
        torch.testing.assert_close(point.ascent[row], ascent, rtol=1e-3, atol=1e-3 * float(ascent.norm()))
        torch.testing.assert_close(point.gradient[row], gradient - top * (top @ gradient), rtol=1e-3, atol=1e-4)
        torch.testing.assert_close(point.theta[row], p.theta[row] - (top @ gradient) / values[-1] * top, rtol=1e-3, atol=1e-4)
        assert point.alpha[row].item() == pytest.approx(float(-ascent @ gradient), rel=1e-3)
        assert point.beta[row].item() == pytest.approx(float(ascent @ ascent), rel=1e-3)


def test_projecting_brings_the_sharpness_to_the_threshold_at_once_and_again_and_again_the_gradient_along_u_to_zero() -> None:
    p = tiny_problem(stack=1)
    point = Constrained(p.at(), p.spectrum(p.theta[0])[1][:, -1:].T, lr=1e-9)
    for _ in range(40):  # to the floor of the valley, where the step along u changes S no more
        point = point.projected(point.theta)
    lr = 2.0 / (0.99 * float(point.sharpness))  # one percent above the threshold
    for count in range(1, 31):
        point = Constrained(p.at(theta=point.theta), point.u, lr)
        if count in (1, 30):
            values, vectors, gradient = p.spectrum(point.theta[0])
            assert float(values[-1]) * lr / 2.0 == pytest.approx(1, abs=1e-3)  # of second order in the percent
    assert abs(float(vectors[:, -1] @ gradient)) < TOL * float(gradient.norm())  # as far as u is known


def test_one_predicted_step_is_right_to_second_order_across_u() -> None:
    """For v along u what is left out beyond ½x²∇S^⊥ is of third order, except along u itself."""
    p = tiny_problem(stack=1)
    vectors = p.spectrum(p.theta[0])[1]
    point = Constrained(p.at(), vectors[:, -1:].T, lr=1e-2)
    for _ in range(30):  # until the last correction, before which the point is described, is nothing
        point = point.projected(point.theta)
    at, moved, errors = point.theta, torch.zeros_like(point.theta), []
    for size in (1e-1, 5e-2):
        v = size * point.u
        real = v - point.lr * p.spectrum((at + v)[0])[2]
        left = real - point.predict(v, torch.zeros_like(v), moved)
        errors.append(float((left - (left * point.u).sum() * point.u).norm()))
    assert errors[0] / errors[1] == pytest.approx(8, rel=0.25)


def test_the_noise_is_that_of_the_batch() -> None:
    p = tiny_problem(stack=1)
    vectors = p.spectrum(p.theta[0])[1]
    point = Constrained(p.at(), vectors[:, -1:].T, lr=1e-2)
    indices = torch.tensor([[0, 3]])
    gradients = torch.autograd.functional.jacobian(p.example_losses, point.theta[0])
    torch.testing.assert_close(point.noise(indices)[0], gradients[[0, 3]].mean(0) - point.gradient[0], rtol=1e-9, atol=1e-12)
    assert not point.noise(None).any()


@pytest.mark.parametrize("batch_size", [40, 20])
def test_running_beside_the_prediction_leaves_the_training_as_it_is(batch_size: int) -> None:
    assert torch.equal(trained(batch_size).theta, trained(batch_size, coupled_steps=0).theta)


def test_there_is_a_row_for_every_coupled_step() -> None:
    rows = [row for row in trained().rows[0] if "coupling_error" in row]
    assert [row["step"] for row in rows] == list(range(540, 600))
    steps = [row["step"] for row in trained().rows[0]]
    assert steps == sorted(set(steps))


@pytest.mark.parametrize(("batch_size", "share"), [(40, 0.02), (20, 0.6)])
def test_the_prediction_stays_beside_the_real_trajectory(batch_size: int, share: float) -> None:
    for seed in (0, 1):
        rows = [row for row in trained(batch_size).rows[seed] if "coupling_error" in row]
        error, distance = (sum(row[key] for row in rows) for key in ("coupling_error", "distance"))
        assert error < share * distance
        assert rows[0]["coupling_error"] == 0
        # The sharpness of the real run is what the ordinary measurement says of the same step.
        assert rows[0]["y"] == pytest.approx(rows[0]["sharpness"] - 2 / EDGE["lr"], rel=1e-4)


def test_the_prediction_stays_beside_a_trajectory_held_at_the_edge() -> None:
    """Here S(θ†) is at 2/η on most steps, so that the projection takes part, and x is not small."""
    rows = [row for row in trained(lr=0.5).rows[0] if "coupling_error" in row]
    error, distance = (sum(row[key] for row in rows) for key in ("coupling_error", "distance"))
    assert error < 0.03 * distance
    assert sum(row["y_constrained"] > -1e-6 for row in rows) > 50
    assert max(abs(row["x"]) for row in rows) > 1e-2


def test_bad_coupled_steps_are_refused() -> None:
    for settings in ({"coupled_steps": 61}, {"coupled_steps": 660}, {"batch_size": 20, "noise": "gaussian"}):
        with pytest.raises(ConfigError, match="coupled_steps"):
            RunConfig(**{**EDGE, **settings})
