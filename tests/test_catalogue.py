"""The catalogue's rows are whole, and a row added from outside is accepted, trained and drawn like those inside."""

from __future__ import annotations

from collections.abc import Callable
from math import prod
from pathlib import Path
from typing import Any

import matplotlib.pyplot as plt
import pytest
from torch import nn

from eosslib import catalogue, models, panels, runs
from eosslib.config import load_preset
from eosslib.errors import ConfigError
from eosslib.jobs import Options, train_group
from eosslib.settings import RunConfig

MADE = {**catalogue.MODELS, **catalogue.DATASETS, **catalogue.LOSSES, **catalogue.NOISES}


@pytest.mark.parametrize("row", MADE.values(), ids=MADE)
def test_what_makes_a_row_is_there(row: catalogue.Made) -> None:
    assert row.load() is not None


@pytest.mark.parametrize("rows", [catalogue.MODELS, catalogue.NOISES, catalogue.QUANTITIES], ids=["models", "noises", "quantities"])
def test_no_two_rows_have_one_label(rows: dict[str, Any]) -> None:
    assert len({row.label for row in rows.values()}) == len(rows)


def linear(shape: models.Shape, n_outputs: int, sizes: models.Sizes) -> nn.Sequential:
    """A toy model: no hidden layer at all."""
    return nn.Sequential(nn.Flatten(), nn.Linear(prod(shape), n_outputs))


@pytest.fixture
def toy(monkeypatch: pytest.MonkeyPatch) -> str:
    """The toy model's name, while its row is in the catalogue; nothing else of the package is touched."""
    monkeypatch.setitem(catalogue.MODELS, "linear", catalogue.Model("Linear", f"{__name__}:linear", marker="P", color=6))
    return "linear"


def test_a_model_added_from_outside_is_trained_and_drawn(toy: str, write_preset: Callable[..., Path], tmp_path: Path) -> None:
    preset = load_preset(write_preset(runs={"only": {"model": toy, "batch_size": [8, "full"]}}))
    for group in preset.groups.values():
        train_group(group, Options(tmp_path / "runs"))
    frame = runs.collect(preset, ("only",), tmp_path / "runs").frame
    _, ax = plt.subplots()
    panels.relative(ax, frame)
    assert {line.get_label() for line in ax.lines if not line.get_label().startswith("_")} == {"Linear, GD", "Linear, b = 8"}
    plt.close("all")


def test_without_its_row_a_model_is_refused(toy: str, monkeypatch: pytest.MonkeyPatch, tiny: Callable[..., RunConfig]) -> None:
    assert tiny(model=toy).model == toy
    monkeypatch.delitem(catalogue.MODELS, toy)
    with pytest.raises(ConfigError, match=r"model: 'linear' is not one of fc-tanh, .*, lstm$"):
        tiny(model=toy)
