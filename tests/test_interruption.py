"""Trainings that are killed, stopped by a signal or by a time limit, and started again."""

from __future__ import annotations

import signal
import subprocess
import time
from collections.abc import Callable
from pathlib import Path

import pandas as pd
import pytest
from helpers import TINY, Finished

from eosslib import jobs, runs

Writer = Callable[..., Path]
Command = Callable[..., Finished]
Start = Callable[..., subprocess.Popen[str]]
GROUP = "only/b0008-along_u"
CHECKPOINT = Path(".checkpoints/only__b0008-along_u__seeds0-1.pt")
SAMPLED = {"sample_every": 4, "batch_sharpness_draws": 3, "minibs_draws": 2}


def long_preset(write_preset: Writer, steps: int) -> Path:
    """Runs that use everything a checkpoint must hold, with a checkpoint every two steps."""
    settings = TINY | SAMPLED | {"steps": steps, "measure_every": 2, "noise": "along_u", "refresh_every": 1, "eig_k": 2}
    return write_preset(settings=settings)


def train(preset: Path, folder: Path) -> list[str | Path]:
    return ["train", preset, "--out", folder, "--device", "cpu", "--checkpoint-seconds", "0"]


def wait_for_checkpoints(count: int, process: subprocess.Popen[str], folder: Path) -> None:
    """Return when so many checkpoints have been written, one over the other."""
    seen: set[int] = set()
    limit = time.monotonic() + 60
    while len(seen) < count:
        assert process.poll() is None, "the training ended before it could be stopped"
        assert time.monotonic() < limit
        if (folder / CHECKPOINT).is_file():
            seen.add((folder / CHECKPOINT).stat().st_mtime_ns)
        time.sleep(0.002)


def assert_same_runs(folder: Path, other: Path) -> None:
    for seed in (0, 1):
        one, two = (runs.load(f / GROUP / f"seed{seed}.parquet") for f in (folder, other))
        assert one.config == two.config
        assert one.provenance["theta_sha256"] == two.provenance["theta_sha256"]
        pd.testing.assert_frame_equal(one.frame, two.frame, check_exact=True)


@pytest.mark.slow
def test_killed_at_any_moment_and_started_again_a_training_ends_bit_identical(
    start: Start, eosslib: Command, write_preset: Writer, tmp_path: Path
) -> None:
    preset = long_preset(write_preset, steps=80)
    assert eosslib(*train(preset, tmp_path / "undisturbed")).status == 0
    for checkpoints in (1, 15):
        folder = tmp_path / f"killed-{checkpoints}"
        process = start(*train(preset, folder))
        wait_for_checkpoints(checkpoints, process, folder)
        process.send_signal(signal.SIGKILL)
        assert process.wait(60) == -signal.SIGKILL
        assert not list(folder.glob("only/**/*.parquet"))
        again = eosslib(*train(preset, folder))
        assert again.status == 0
        assert "going on from step" in again.err
        assert_same_runs(folder, tmp_path / "undisturbed")


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM])
def test_a_signal_leaves_a_checkpoint_one_line_and_status_130(
    number: signal.Signals, start: Start, write_preset: Writer, tmp_path: Path
) -> None:
    preset = long_preset(write_preset, steps=1_000_000)
    process = start(*train(preset, tmp_path / "runs"))
    wait_for_checkpoints(2, process, tmp_path / "runs")
    process.send_signal(number)
    out, err = process.communicate(timeout=60)
    assert process.returncode == 130
    assert out == ""
    assert len(err.splitlines()) == 1, err
    assert err.startswith(f"{GROUP}: stopped at step ")
    assert "run the same command to go on from there" in err
    assert (tmp_path / "runs" / CHECKPOINT).is_file()
    assert [path for path in (tmp_path / "runs").rglob("*") if path.is_file()] == [tmp_path / "runs" / CHECKPOINT]


def test_max_seconds_stops_with_status_75_and_the_same_command_goes_on(
    eosslib: Command, write_preset: Writer, tmp_path: Path
) -> None:
    preset = long_preset(write_preset, steps=6)
    stopped = [eosslib(*train(preset, tmp_path / "runs"), "--max-seconds", "0.001") for _ in range(3)]
    assert [finished.status for finished in stopped] == [75, 75, 75]
    last = [finished.err.splitlines()[-1].split(";")[0] for finished in stopped]
    assert last == [f"{GROUP}: stopped at step {step}" for step in (0, 2, 4)]
    assert not list((tmp_path / "runs").rglob("*.parquet"))
    for folder in ("runs", "whole"):
        assert eosslib(*train(preset, tmp_path / folder)).status == 0
    assert_same_runs(tmp_path / "runs", tmp_path / "whole")


def test_a_limit_that_is_not_reached_changes_nothing(eosslib: Command, write_preset: Writer, tmp_path: Path) -> None:
    assert eosslib(*train(long_preset(write_preset, steps=4), tmp_path / "runs"), "--max-seconds", "1000").status == 0


def test_a_limit_of_zero_seconds_stops_at_the_first_measurement(eosslib: Command, write_preset: Writer, tmp_path: Path) -> None:
    assert eosslib(*train(long_preset(write_preset, steps=4), tmp_path / "runs"), "--max-seconds", "0").status == 75


def test_a_signal_outside_the_training_ends_in_one_line_and_status_130(
    eosslib: Command, write_preset: Writer, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(jobs, "train_group", lambda group, options: signal.raise_signal(signal.SIGTERM))
    assert eosslib("train", write_preset(), "--device", "cpu") == Finished(130, "", "stopped\n")
