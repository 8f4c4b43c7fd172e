"""Schedules: settings that change during a run go through the same engine, and the run is the sum of its parts."""

from __future__ import annotations

from collections.abc import Callable

import pytest
import torch

from eosslib.settings import Change, RunConfig
from eosslib.theory import finite_population
from eosslib.training import State, Trainer

Settings = Callable[..., RunConfig]
CHANGES = {"step size": {"lr": 0.03}, "batch size": {"batch_size": 20}, "both": {"lr": 0.2, "batch_size": 40}}


def trained(config: RunConfig, state: State | None = None) -> State:
    trainer = Trainer([config])
    trainer.state = state or trainer.state
    return trainer.run()


@pytest.mark.parametrize("change", CHANGES.values(), ids=CHANGES.keys())
def test_a_run_shares_every_step_with_its_control_up_to_the_change(change: dict, tiny: Settings) -> None:
    control, changed = (trained(tiny(schedule=schedule)) for schedule in ([], [{"step": 5, **change}]))
    for key in ("loss", "sharpness", "test_accuracy"):
        first, second = ([row[key] for row in state.rows[0] if row["step"] <= 5] for state in (control, changed))
        assert first == second
    assert not torch.equal(control.theta, changed.theta)


@pytest.mark.parametrize("change", CHANGES.values(), ids=CHANGES.keys())
def test_a_run_is_its_parts_trained_one_after_the_other(change: dict, tiny: Settings) -> None:
    whole = trained(tiny(schedule=[{"step": 5, **change}]))
    first = trained(tiny(steps=5))
    rest = trained(tiny(**change), first)
    assert torch.equal(whole.theta, rest.theta)
    assert whole.rows[0][-1]["sharpness"] == rest.rows[0][-1]["sharpness"]


def test_several_changes_follow_one_another(tiny: Settings) -> None:
    config = tiny(schedule=[{"step": 5, "lr": 0.2}, {"step": 10, "batch_size": 20}])
    assert [(config.at(s).lr, config.at(s).batch_size) for s in (0, 4, 5, 9, 10, 12)] == [
        (0.1, 8),
        (0.1, 8),
        (0.2, 8),
        (0.2, 8),
        (0.2, 20),
        (0.2, 20),
    ]
    assert config.at(5).schedule == ()
    assert config.to_dict()["schedule"] == [{"step": 5, "lr": 0.2}, {"step": 10, "batch_size": 20}]
    assert RunConfig(**config.to_dict()) == config


def test_a_measurement_uses_the_batch_size_of_the_step_to_come(tiny: Settings) -> None:
    control, changed = (trained(tiny(schedule=schedule)).rows[0] for schedule in ([], [{"step": 5, "batch_size": 20}]))
    assert changed[0]["noise_variance"] == control[0]["noise_variance"]
    ratio = finite_population(40, 20) / finite_population(40, 8)
    assert changed[1]["noise_variance"] / control[1]["noise_variance"] == pytest.approx(ratio, rel=1e-6)


@pytest.mark.parametrize("stop", [5, 10])
def test_a_run_goes_on_from_before_and_after_a_change_with_the_same_bits(stop: int, tiny: Settings) -> None:
    config = tiny(schedule=[{"step": 10, "lr": 0.03, "batch_size": 40}])
    states: list[State] = []
    Trainer([config]).run(lambda state: states.append(state.copy()) if state.step == stop else None)
    assert torch.equal(trained(config, states[0]).theta, trained(config).theta)


def test_gradient_descent_that_changes_its_batch_size_is_no_gradient_descent(tiny: Settings) -> None:
    assert tiny(batch_size=40, schedule=[{"step": 5, "lr": 0.2}]).full_batch
    assert not tiny(batch_size=40, schedule=[{"step": 5, "batch_size": 8}]).full_batch
    assert tiny(batch_size=8, schedule=[Change(5, batch_size=40)]).at(5).full_batch
