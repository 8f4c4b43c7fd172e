"""The one list of measurements: what is in it says what it reads and writes, and a new row is in run files and in the tracker."""

from __future__ import annotations

import re
from collections.abc import Callable
from pathlib import Path

import pytest
import torch
from helpers import TINY
from oracles import tiny_problem
from torch import nn

from eosslib import SharpnessTracker, config, runs
from eosslib.config import Group, RunConfig
from eosslib.curvature import Hessian
from eosslib.jobs import Options, train_group
from eosslib.measure import moment as moments
from eosslib.measure import record
from eosslib.measure.moment import Columns, Measurement, Moment
from eosslib.training import Trainer

Settings = Callable[..., RunConfig]
EVERYTHING = {
    **TINY,
    "steps": 20,
    "eig_k": 2,
    "sample_every": 5,
    "batch_sharpness_draws": 2,
    "minibs_draws": 2,
    "overlap_draws": 2,
    "static_sizes": [4],
    "window": 5,
    "window_every": 10,
    "window_k": 2,
}
KINDS = {"SGD": EVERYTHING, "Adam": {**TINY, "optimizer": "adam", "momentum": 0.9}}


def norm_of(moment: Moment) -> Columns:
    return {"theta_norm": moment.point.theta.norm(dim=1)}


TOY = Measurement((), {"theta_norm": "‖θ‖ [θ]"}, due=lambda moment: moment.step % 10 == 0, compute=norm_of)


@pytest.fixture
def toy(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(record, "MEASUREMENTS", (*record.MEASUREMENTS, TOY))


@pytest.mark.usefixtures("toy")
def test_a_measurement_from_elsewhere_is_in_run_files_where_it_is_due(tiny: Settings, tmp_path: Path) -> None:
    (path,) = train_group(Group("only/b0008", (tiny(),)), Options(tmp_path))
    frame = runs.load(path).frame
    assert frame.step[frame.theta_norm.notna()].tolist() == [0, 10]
    assert frame.theta_norm[0] == pytest.approx(Trainer([tiny()]).state.theta.norm().item())


@pytest.mark.usefixtures("toy")
def test_a_measurement_from_elsewhere_is_in_the_trackers_rows_where_it_is_due() -> None:
    model = nn.Linear(3, 2)
    optimizer = torch.optim.SGD(model.parameters(), lr=0.1)
    tracker = SharpnessTracker(model, nn.MSELoss(), (torch.randn(8, 3), torch.randn(8, 2)), optimizer, batch_size=4)
    expected = nn.utils.parameters_to_vector(model.parameters()).norm().item()
    assert tracker.measure(0)["theta_norm"] == pytest.approx(expected)
    assert "theta_norm" not in tracker.measure(1)
    assert tracker.frame.theta_norm.notna().tolist() == [True, False]


def test_every_column_of_a_run_is_one_measurements_and_has_a_unit() -> None:
    written = {column for kind in KINDS.values() for row in Trainer([RunConfig(**kind)]).run().rows[0] for column in row}
    declared = [column for measurement in record.MEASUREMENTS for column in measurement.columns.items()]
    assert all(re.search(r"\[.+\]$", meaning) for _, meaning in declared)
    for column in written - {"step"}:
        assert sum(re.fullmatch(name.replace("{}", r"\d+"), column) is not None for name, _ in declared) == 1, column
    for name, _ in declared:
        assert any(re.fullmatch(name.replace("{}", r"\d+"), column) for column in written), name


class Read:
    """Settings that remember which of them were asked for."""

    def __init__(self, settings: RunConfig) -> None:
        self.settings, self.names = settings, set[str]()

    def __getattr__(self, name: str) -> object:
        self.names.add(name)
        return getattr(self.settings, name)


@pytest.mark.parametrize("kind", KINDS)
def test_a_measurement_reads_the_settings_that_it_names_and_no_others(kind: str, monkeypatch: pytest.MonkeyPatch) -> None:
    solving = {"eig_tol", "steps"}  # the eigenpairs, which whoever asks first solves for
    read: dict[int, set[str]] = {}
    measured = record.measured

    def watched(moment: Moment, which: list[Measurement]) -> Columns:
        columns: Columns = {}
        for measurement in which:
            settings = Read(moment.settings)
            object.__setattr__(moment, "settings", settings)
            columns |= measured(moment, [measurement])
            read.setdefault(id(measurement), set()).update(settings.names)
            object.__setattr__(moment, "settings", settings.settings)
        return columns

    monkeypatch.setattr(record, "measured", watched)
    Trainer([RunConfig(**KINDS[kind])]).run()
    for measurement in record.MEASUREMENTS:
        assert read[id(measurement)] <= {*measurement.settings, *solving}, measurement
        assert {*measurement.settings} <= config.RunConfig.__dataclass_fields__.keys()


# --- a point and a moment ----------------------------------------------------------------------------------------------------


def test_a_point_makes_its_passes_once_and_gives_them_back_with_itself(monkeypatch: pytest.MonkeyPatch) -> None:
    made: list[Hessian] = []
    freed: list[str] = []
    monkeypatch.setattr(Hessian, "__del__", lambda self: freed.append("hessian"), raising=False)
    point = tiny_problem().at()
    made = [point.hessian(), point.hessian()]
    assert made[0] is made[1]
    assert point.at(point.theta.clone()).hessian() is not made[0]
    freed.clear()
    del made, point
    assert freed == ["hessian"]


def test_eigenpairs_are_solved_for_once_and_only_where_they_are_asked_for(monkeypatch: pytest.MonkeyPatch, tiny: Settings) -> None:
    solves: list[int] = []
    solve = moments.top_eigenpairs
    monkeypatch.setattr(moments, "top_eigenpairs", lambda *args, **options: solves.append(0) or solve(*args, **options))
    p = tiny_problem()
    size = p.theta.shape[1]
    moment = Moment(3, tiny(batch_size=2), [0, 1], p.at(), p.theta.new_zeros(2, 0, size), torch.ones_like(p.theta))
    record.measured(moment, [record.loss.LOSS])
    assert not solves
    record.measured(moment, [record.sharpness.SHARPNESS, record.noise.NOISE])
    assert len(solves) == 1
