"""α, β and E[x²] of a window: against dense float64 third derivatives, a system solved by hand, and the iterates themselves."""

from __future__ import annotations

import dataclasses

import pytest
import torch
from helpers import TINY
from oracles import EVERY, Problem, randn, tiny_problem

from eosslib.curvature import third_derivative
from eosslib.measure import windows
from eosslib.settings import RunConfig
from eosslib.training import State, Trainer


@pytest.mark.parametrize(("model", "loss"), EVERY)
def test_third_derivatives_are_those_of_the_dense_hessian(model: str, loss: str) -> None:
    p = tiny_problem(model, loss)
    v, w = randn(2, p.theta.shape[1], seed=1), randn(2, p.theta.shape[1], seed=2)
    ours = third_derivative(p.at(), v, w)
    for row in range(2):
        expected = torch.einsum("ijk,i,j->k", p.third(p.theta[row]), v[row], w[row])
        torch.testing.assert_close(ours[row], expected, rtol=1e-9, atol=1e-11)


def test_third_derivatives_do_not_depend_on_the_memory_budget() -> None:
    p = tiny_problem(stack=1)
    v, w = randn(1, p.theta.shape[1], seed=1), randn(1, p.theta.shape[1], seed=2)
    whole = third_derivative(p.at(), v, w)
    torch.testing.assert_close(third_derivative(p.at(memory=1), v, w), whole, rtol=1e-12, atol=1e-14)


def filled(p: Problem, steps: int = 40, size: float = 1e-3) -> tuple[windows.Window, torch.Tensor]:
    """A window of iterates scattered around the problem's parameters, and all of them (steps, R, P)."""
    iterates = p.theta + size * randn(steps, *p.theta.shape, seed=7)
    window = windows.Window(p.theta, steps)
    for theta in iterates:
        window.add(theta)
    return window, iterates


@pytest.mark.parametrize(("model", "loss"), [("fc-tanh", "mse"), ("cnn", "cross-entropy")])
def test_everything_equals_dense_matrices_at_the_corrected_mean(model: str, loss: str) -> None:
    p, k, b = tiny_problem(model, loss), 3, 2
    window, iterates = filled(p)
    start = randn(2, 2, p.theta.shape[1], seed=3)
    settings = windows.Settings(b, k=k, newton_steps=1, tol=1e-12)
    found = windows.measure(p.at(), window, start[:, :1], start[:, 1], settings)
    for row in range(2):
        mean = iterates[:, row].mean(0)
        for newton in range(2):
            values, vectors, gradient = p.spectrum(mean)
            slope = (vectors[:, -1] @ gradient).abs() / values[-1]
            if newton == 0:
                u, slope_before = vectors[:, -k:], slope
                mean = mean - u @ ((u.T @ gradient) / values[-k:])
        u = vectors[:, -k:].flip(1)  # (P, k), u₁ first
        third = p.third(mean)
        ascent = torch.einsum("ijk,i,j->k", third, u[:, 0], u[:, 0])
        only, free = ascent - u[:, 0] * (u[:, 0] @ ascent), ascent - u @ (u.T @ ascent)
        tensor = torch.einsum("ijk,ia,jb,k->ab", third, u, u, free)
        x = (iterates[:, row] - mean) @ u
        covariance = x.T @ x / len(x)
        expected = {
            "alpha": -gradient @ only,
            "beta": only @ only,
            "alpha_top": -gradient @ free,
            "coupling": tensor.diagonal(),
            "displacement": covariance.diagonal(),
            "pull": torch.stack([(tensor * covariance)[: j + 1, : j + 1].sum() for j in range(k)]),
            "curvature": values[-k:].flip(0),
            "slope": slope_before,
            "slope_left": slope,
        }
        for name, value in expected.items():
            torch.testing.assert_close(getattr(found, name)[row], value, rtol=1e-6, atol=1e-12, msg=name)


def test_noise_is_that_of_the_raw_iterates_along_each_direction() -> None:
    p, b = tiny_problem(stack=1), 2
    window, iterates = filled(p)
    settings = windows.Settings(b, k=2, newton_steps=0, tol=1e-12)
    found = windows.measure(p.at(), window, randn(1, 1, p.theta.shape[1]), randn(1, p.theta.shape[1], seed=1), settings)
    _, vectors, _ = p.spectrum(iterates[:, 0].mean(0))
    ends = [iterates[i, 0] for i in (0, len(iterates) - 1)]
    for j in range(2):
        u = vectors[:, -1 - j]
        variances = [(torch.autograd.functional.jacobian(p.example_losses, t) @ u).var(correction=0) for t in ends]
        expected = torch.stack(variances).mean() / b * (p.n - b) / (p.n - 1)
        torch.testing.assert_close(found.noise[0, j], expected, rtol=1e-7, atol=0)


def test_a_window_keeps_both_phases_of_an_oscillation_and_its_exact_mean() -> None:
    for steps in (1, 10, 64, 128, 250, 1000):
        window = windows.Window(torch.zeros(1, 1), steps)
        for t in range(steps):
            window.add(torch.tensor([[3.0 + (-1.0) ** t]]))
        kept = window.samples()[:, 0, 0]
        assert len(kept) <= windows.SAMPLES
        if steps > 1:
            assert set(kept.tolist()) == {2.0, 4.0}
            assert float(window.mean()) == pytest.approx(3.0, abs=1e-6)


# --- in a training -----------------------------------------------------------------------------------------------------------

WINDOWED = {**TINY, "steps": 30, "window": 7, "window_every": 10, "window_from": 10, "window_k": 2}


def trained(seeds: tuple[int, ...] = (0, 1), **settings: object) -> State:
    return Trainer([RunConfig(**{**WINDOWED, **settings}, seed=seed) for seed in seeds]).run()


def test_windows_leave_the_trajectory_as_it_is_bit_for_bit() -> None:
    with_windows, without = trained(), trained(window=0)
    assert torch.equal(with_windows.theta, without.theta)
    for seed in (0, 1):
        for a, b in zip(with_windows.rows[seed], without.rows[seed], strict=True):
            assert {key: value for key, value in a.items() if key in b} == b


def test_newton_steps_remove_what_the_average_left_along_the_top_vector() -> None:
    left = [trained(newton_steps=steps).rows[0][-1] for steps in range(3)]
    assert left[0]["window_slope"] == left[0]["window_slope_left"]
    assert left[1]["window_slope_left"] < 1e-2 * left[0]["window_slope"]
    assert left[2]["window_slope_left"] < 1e-2 * left[1]["window_slope_left"]


def test_windows_end_where_the_settings_say() -> None:
    rows = trained().rows[0]
    assert [row["step"] for row in rows if "window_alpha" in row] == [20, 30]
    assert all("raw_alpha" in row and "window_displacement_2" in row for row in rows if "window_alpha" in row)


def test_a_window_holds_the_iterates_of_its_steps() -> None:
    config = RunConfig(**WINDOWED)
    trainer = Trainer([config])
    trainer.state.step = 0
    trainer.advance(13)
    expected = []
    for step in range(13, 20):
        expected.append(trainer.state.theta.double().clone())
        trainer.advance(step + 1)
    window = trainer._window
    assert window is not None
    assert window.count == config.window
    torch.testing.assert_close(window.mean().double(), torch.stack(expected).mean(0), rtol=1e-6, atol=1e-8)


def test_a_run_does_not_depend_on_its_stack_nor_on_where_it_was_resumed() -> None:
    whole = trained()
    configs = [RunConfig(**WINDOWED, seed=seed) for seed in (0, 1)]
    alone = Trainer(configs[1:]).run()
    assert alone.rows[1] == whole.rows[1]
    states: list[State] = []
    Trainer(configs).run(lambda state: states.append(state.copy()))
    assert [state.step for state in states] == [0, 5, 10, 20, 30]  # 15 and 25 are inside a window
    for state in states[:-1]:
        again = Trainer(configs)
        again.state = state.copy()
        assert again.run().rows == whole.rows


def test_a_run_that_diverges_inside_a_window_leaves_the_others_alone() -> None:
    configs = [RunConfig(**WINDOWED, seed=seed) for seed in (0, 1)]
    trainer = Trainer(configs)

    def poison(state: State) -> None:
        if state.step == 10:
            trainer.state.theta[0] = torch.nan

    rows = trainer.run(poison).rows
    assert rows[1] == trained().rows[1]
    assert "window_alpha" not in rows[0][-1]


def test_bad_windows_are_refused() -> None:
    from eosslib.errors import ConfigError

    for settings, message in (
        ({"window_every": 12}, "multiple of measure_every"),
        ({"window": 11}, "at least window 11"),
        ({"window_k": 0}, "window_k"),
    ):
        with pytest.raises(ConfigError, match=message):
            RunConfig(**{**WINDOWED, **settings})
    with pytest.raises(ConfigError, match="window_k 100000 is above"):
        Trainer([dataclasses.replace(RunConfig(**WINDOWED), window_k=100_000)])
