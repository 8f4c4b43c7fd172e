"""Trainings beside each other: a lock a run, which dies with its holder, and no training without the process that wanted it."""

from __future__ import annotations

import os
from collections.abc import Callable
from pathlib import Path

import pytest
from helpers import Finished, refused

from eosslib import processes
from eosslib.config import load_preset
from eosslib.jobs import lock_path

Writer = Callable[..., Path]
Command = Callable[..., Finished]


def test_a_run_that_another_process_trains_is_refused_in_one_line_also_in_a_stack(
    write_preset: Writer, eosslib: Command, tmp_path: Path
) -> None:
    preset = write_preset()
    group = load_preset(preset).groups["only/b0008"]
    path = lock_path(tmp_path / "runs", group, group.runs[1])
    for arguments in (["--seeds", "1"], []):
        with processes.locked({"it": path}):
            assert processes.holder(path) == str(os.getpid())
            line = refused(eosslib("train", preset, "--out", tmp_path / "runs", "--device", "cpu", *arguments))
            assert f"only/b0008 seed 1 is being trained by process {os.getpid()}; wait" in line
    assert not [p for p in (tmp_path / "runs").rglob("*") if p.is_file()]
    assert eosslib("train", preset, "--out", tmp_path / "runs", "--device", "cpu").status == 0


def test_a_lock_file_of_a_killed_process_is_no_lock(tmp_path: Path) -> None:
    path = tmp_path / "left.lock"
    path.write_text("1", encoding="utf-8")
    assert processes.holder(path) is None
    with processes.locked({"it": path}):
        assert processes.holder(path) == str(os.getpid())
    assert not path.exists()


def test_a_lock_whose_file_was_removed_while_it_was_opened_is_taken_again(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    path, found = tmp_path / "it.lock", processes._lock
    removed: list[bool] = []

    def lock_late(handle: int) -> bool:
        if not removed:
            removed.append(True)
            path.unlink()
        return found(handle)

    monkeypatch.setattr(processes, "_lock", lock_late)
    with processes.locked({"it": path}):
        assert os.stat(path).st_size > 0
        assert processes.holder(path) == str(os.getpid())


def test_a_file_system_without_locks_is_told_and_trains(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    def none(handle: int, how: int) -> None:
        raise OSError(95, "Operation not supported")

    monkeypatch.setattr(processes.fcntl, "flock", none)
    with processes.locked({"it": tmp_path / "it.lock"}):
        assert "this file system has no locks" in caplog.text


def test_a_training_whose_parent_is_gone_does_not_begin(eosslib: Command, write_preset: Writer, tmp_path: Path) -> None:
    finished = eosslib("train", write_preset(), "--out", tmp_path / "runs", "--parent", "999999999")
    assert finished == Finished(130, "", "process 999999999, which started this one, has ended\n")
