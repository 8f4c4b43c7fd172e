"""Training to files in one process: what is there is skipped, what is broken is trained again, what fails is told in one line."""

from __future__ import annotations

import contextlib
import hashlib
import logging
import math
import resource
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pandas as pd
import pytest
import torch
from helpers import stop_after

from eosslib import devices, jobs, runs
from eosslib.config import Group
from eosslib.errors import ConfigError, DeviceError, Interrupted, RunFileError
from eosslib.jobs import Options, checkpoint_path, train_group
from eosslib.runs import Run
from eosslib.settings import RunConfig
from eosslib.training import Trainer

Settings = Callable[..., RunConfig]


@pytest.fixture
def group(tiny: Settings) -> Group:
    return Group("only/b0008", (tiny(seed=0), tiny(seed=1)))


def load_all(paths: list[Path]) -> list[Run]:
    return [runs.load(path) for path in paths]


def assert_identical(one: list[Run], other: list[Run]) -> None:
    for a, b in zip(one, other, strict=True):
        assert a.config == b.config
        assert a.provenance["theta_sha256"] == b.provenance["theta_sha256"]
        pd.testing.assert_frame_equal(a.frame, b.frame, check_exact=True)


@pytest.fixture
def reference(group: Group, tmp_path: Path) -> list[Run]:
    """The group's runs, trained without disturbance in a folder of their own."""
    return load_all(train_group(group, Options(tmp_path / "reference")))


def stamps(paths: list[Path]) -> list[int]:
    return [path.stat().st_mtime_ns for path in paths]


def test_a_file_holds_the_trajectory_the_settings_and_where_it_comes_from(group: Group, tmp_path: Path) -> None:
    paths = train_group(group, Options(tmp_path))
    assert paths == [tmp_path / f"only/b0008/seed{seed}.parquet" for seed in (0, 1)]
    state = Trainer(group.runs).run()
    for position, run in enumerate(load_all(paths)):
        assert run.config == group.runs[position]
        written = [{name: value for name, value in row.items() if not math.isnan(value)} for row in run.frame.to_dict("records")]
        assert written == state.rows[position]
        assert run.provenance["theta_sha256"] == hashlib.sha256(state.theta[position].numpy().tobytes()).hexdigest()
        assert run.provenance["parameters"] == 64 * 4 + 4 + 4 * 4 + 4 + 4 * 10 + 10
        assert run.provenance["max_eigen_residual"] == run.frame.sharpness_residual.max() <= run.config.eig_tol
        assert run.provenance["torch"] == torch.__version__
        assert run.provenance["processor"] == devices.processor()
        assert run.provenance["stacked_runs"] == 2
        assert run.provenance["wall_seconds"] > 0
        assert run.diverged_at is None


def test_nothing_but_the_run_files_is_left(group: Group, tmp_path: Path) -> None:
    paths = train_group(group, Options(tmp_path, checkpoint_seconds=0))
    assert sorted(path for path in tmp_path.rglob("*") if path.is_file()) == paths


def test_runs_that_are_there_are_skipped(group: Group, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    paths = train_group(group, Options(tmp_path))
    before = stamps(paths)
    monkeypatch.setattr(jobs, "Trainer", lambda *args, **options: pytest.fail("trained again"))
    assert train_group(group, Options(tmp_path)) == paths
    assert stamps(paths) == before


def test_force_trains_again_what_is_there(group: Group, tmp_path: Path, reference: list[Run]) -> None:
    paths = train_group(group, Options(tmp_path))
    before = stamps(paths)
    train_group(group, Options(tmp_path, force=True))
    assert all(new > old for new, old in zip(stamps(paths), before, strict=True))
    assert_identical(load_all(paths), reference)


def test_only_the_seed_that_is_missing_is_trained_and_is_the_same_as_in_the_stack(
    group: Group, tmp_path: Path, reference: list[Run]
) -> None:
    paths = train_group(group, Options(tmp_path))
    kept = stamps(paths[:1])
    paths[1].unlink()
    train_group(group, Options(tmp_path))
    assert stamps(paths[:1]) == kept
    assert_identical(load_all(paths), reference)


@pytest.mark.parametrize("change", [{"lr": 0.2}, {"steps": 13}, {"sample_every": 5, "batch_sharpness_draws": 2}])
def test_a_changed_setting_trains_again(change: dict[str, Any], tiny: Settings, group: Group, tmp_path: Path) -> None:
    train_group(group, Options(tmp_path))
    changed = Group(group.name, tuple(tiny(seed=seed, **change) for seed in (0, 1)))
    for run, config in zip(load_all(train_group(changed, Options(tmp_path))), changed.runs, strict=True):
        assert run.config == config


@pytest.mark.parametrize("content", [b"", b"PAR1", None])
def test_a_damaged_run_file_is_trained_again(content: bytes | None, group: Group, tmp_path: Path, reference: list[Run]) -> None:
    paths = train_group(group, Options(tmp_path))
    paths[0].write_bytes(paths[0].read_bytes()[:-100] if content is None else content)
    train_group(group, Options(tmp_path))
    assert_identical(load_all(paths), reference)


# --- checkpoints -------------------------------------------------------------------------------------------------------------


@pytest.fixture
def checkpoint(group: Group, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """The checkpoint of a training that was stopped at step 5 of 12."""
    stop_after(5, group, Options(tmp_path), monkeypatch)
    return checkpoint_path(tmp_path, group)


def test_a_stopped_training_goes_on_from_its_checkpoint(
    group: Group, tmp_path: Path, checkpoint: Path, reference: list[Run], caplog: pytest.LogCaptureFixture
) -> None:
    assert not list(tmp_path.glob("only/**/*.parquet"))
    caplog.set_level(logging.INFO)
    assert_identical(load_all(train_group(group, Options(tmp_path))), reference)
    assert "going on from step 5" in caplog.text
    assert not checkpoint.exists()


def other_objects(path: Path) -> dict[str, Any]:
    stored = torch.load(path, weights_only=True)
    return {
        "a list": [1, 2],
        "a tensor": torch.zeros(3),
        "a dictionary of something else": {"weights": torch.zeros(3)},
        "no state": {"configs": stored["configs"]},
        "a state of another version": {**stored, "state": {**stored["state"], "momentum": 0.9}},
        "a state that lacks a part": {**stored, "state": {k: v for k, v in stored["state"].items() if k != "rows"}},
    }


DAMAGES = ["empty", "truncated", "half", "text", "a flipped byte", "a list", "a tensor", "a dictionary of something else"]
DAMAGES += ["no state", "a state of another version", "a state that lacks a part"]


@pytest.mark.parametrize("how", DAMAGES)
def test_a_damaged_checkpoint_is_ignored_with_a_warning(
    how: str, group: Group, tmp_path: Path, checkpoint: Path, reference: list[Run], caplog: pytest.LogCaptureFixture
) -> None:
    whole = checkpoint.read_bytes()
    contents = {"empty": b"", "truncated": whole[:-50], "half": whole[: len(whole) // 2], "text": b"not a checkpoint\n" * 20}
    contents["a flipped byte"] = whole[:300] + bytes([whole[300] ^ 255]) + whole[301:]
    if how in contents:
        checkpoint.write_bytes(contents[how])
    else:
        torch.save(other_objects(checkpoint)[how], checkpoint)
    assert_identical(load_all(train_group(group, Options(tmp_path))), reference)
    warnings = [record.getMessage() for record in caplog.records if record.levelno == logging.WARNING]
    assert len(warnings) == 1
    assert str(checkpoint) in warnings[0]
    assert "\n" not in warnings[0]


def test_a_checkpoint_of_other_settings_is_not_used(
    group: Group, tiny: Settings, tmp_path: Path, checkpoint: Path, caplog: pytest.LogCaptureFixture
) -> None:
    changed = Group(group.name, tuple(tiny(lr=0.2, seed=run.seed) for run in group.runs))
    found = load_all(train_group(changed, Options(tmp_path)))
    assert_identical(found, load_all(train_group(changed, Options(tmp_path / "elsewhere"))))
    assert f"{checkpoint} is of other settings and is not used" in caplog.text


def test_a_checkpoint_from_before_a_setting_was_added_is_used(
    group: Group, tmp_path: Path, checkpoint: Path, reference: list[Run], caplog: pytest.LogCaptureFixture
) -> None:
    stored = torch.load(checkpoint, weights_only=True)
    for config in stored["configs"]:
        assert config.pop("noise_directions") == 1, "the default, or it would be another setting"
    torch.save(stored, checkpoint)
    caplog.set_level(logging.INFO)
    assert_identical(load_all(train_group(group, Options(tmp_path))), reference)
    assert "going on from step" in caplog.text


def test_force_does_not_go_on_from_a_checkpoint(
    group: Group, tmp_path: Path, checkpoint: Path, caplog: pytest.LogCaptureFixture
) -> None:
    caplog.set_level(logging.INFO)
    train_group(group, Options(tmp_path, force=True))
    assert "going on" not in caplog.text


def test_a_stopped_force_leaves_the_old_files_and_says_how_to_go_on(
    group: Group, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    caplog.set_level(logging.INFO)
    before = {path: path.read_bytes() for path in train_group(group, Options(tmp_path))}
    how = "run the same command without --force, once the old run files are deleted, to go on from there"
    stop_after(5, group, Options(tmp_path, force=True), monkeypatch, how)
    assert {path: path.read_bytes() for path in before} == before
    old = [runs.load(path) for path in before]
    for path in before:
        path.unlink()
    train_group(group, Options(tmp_path))
    assert "going on from step 5" in caplog.text
    assert all(runs.load(path).frame.equals(run.frame) for path, run in zip(before, old, strict=True))


def test_stopped_while_the_files_are_written_both_runs_come_out_the_same(
    group: Group, tmp_path: Path, reference: list[Run], monkeypatch: pytest.MonkeyPatch
) -> None:
    write, saved = runs.write, []

    def write_once(config: RunConfig, origin: dict[str, Any], table: Any, path: Path) -> None:
        if saved:
            raise KeyboardInterrupt
        saved.append(path)
        write(config, origin, table, path)

    with monkeypatch.context() as patch:
        patch.setattr(runs, "write", write_once)
        with pytest.raises((Interrupted, KeyboardInterrupt)):
            train_group(group, Options(tmp_path, checkpoint_seconds=0))
    assert saved[0].is_file()
    assert_identical(load_all(train_group(group, Options(tmp_path))), reference)


# --- divergence --------------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("change", "step", "end"),
    [({"lr": 1e4}, 5, "S "), ({"model": "fc-relu", "init_scale": 1e30}, 0, "never measured")],
    ids=["later", "at once"],
)
def test_a_diverged_run_is_written_with_what_was_measured_and_not_trained_again(
    change: dict[str, Any], step: int, end: str, tiny: Settings, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    caplog.set_level(logging.INFO)
    group = Group("only/b0008", (tiny(**change),))
    paths = train_group(group, Options(tmp_path))
    run = runs.load(paths[0], expect=group.runs[0])
    assert run.diverged_at == step
    assert list(run.frame.step) == [0, step][: 1 + bool(step)]
    assert run.provenance["theta_sha256"] is None
    assert f"diverged before step {step}" in caplog.messages[-1]
    assert end in caplog.messages[-1]
    before = stamps(paths)
    train_group(group, Options(tmp_path))
    assert stamps(paths) == before


# --- what cannot be written --------------------------------------------------------------------------------------------------


@contextlib.contextmanager
def full_disk(free: int) -> Iterator[None]:
    """No file can grow beyond ``free`` bytes: the nearest thing to a full disk that needs no disk."""
    soft, hard = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (free, hard))
    try:
        yield
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, (soft, hard))


@pytest.mark.parametrize("checkpoint_seconds", [0.0, 1e9], ids=["checkpoint", "run file"])
def test_a_full_disk_is_told_in_one_line_and_leaves_no_half_file(checkpoint_seconds: float, group: Group, tmp_path: Path) -> None:
    with pytest.raises(RunFileError, match="cannot write") as caught, full_disk(2000):
        train_group(group, Options(tmp_path, checkpoint_seconds=checkpoint_seconds))
    assert "\n" not in str(caught.value)
    assert not [path for path in tmp_path.rglob("*") if path.is_file()]


def test_a_folder_below_a_file_is_told_in_one_line_before_the_training(
    group: Group, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(Trainer, "run", lambda *args: pytest.fail("trained first"))
    (tmp_path / "file").touch()
    with pytest.raises(RunFileError, match="cannot write") as caught:
        train_group(group, Options(tmp_path / "file" / "runs"))
    assert "\n" not in str(caught.value)


def test_a_device_that_is_not_there_and_settings_that_do_not_fit_are_told(group: Group, tiny: Settings, tmp_path: Path) -> None:
    with pytest.raises(DeviceError, match="cuda:99"):
        train_group(group, Options(tmp_path, device="cuda:99"))
    with pytest.raises(ConfigError, match="depth 4 is too much"):
        train_group(Group("deep/b0008", (tiny(model="cnn", depth=4),)), Options(tmp_path))
