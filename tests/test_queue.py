"""A queue: what its file may say, what it trains and in which order, and that no kill loses a run or has it trained twice."""

from __future__ import annotations

import dataclasses
import os
import signal
import subprocess
import time
from collections.abc import Callable, Iterator
from pathlib import Path

import pandas as pd
import pytest
from helpers import ROOT, TINY, Finished, refused

from eosslib import duration, jobs, processes, queue, runs, workers
from eosslib.config import load_preset
from eosslib.errors import ConfigError, EosslibError
from eosslib.jobs import Options, checkpoint_path, lock_path, train_group

Writer = Callable[..., Path]
Command = Callable[..., Finished]
Start = Callable[..., subprocess.Popen[str]]
SIZES = {"only": {"batch_size": [8, 20, "full"]}}
LONG = TINY | {"measure_every": 2, "noise": "along_u", "refresh_every": 1}  # as much as 5 ms a step


@pytest.fixture
def write_queue(tmp_path: Path) -> Callable[..., Path]:
    """Write a queue file of rows of the preset ``mini.yaml``."""

    def write(*rows: str) -> Path:
        path = tmp_path / "queue.txt"
        path.write_text("".join(f"{tmp_path}/mini.yaml/{row}\n" for row in rows), encoding="utf-8")
        return path

    return write


def names(trainings: list[queue.Training]) -> list[str]:
    return [training.name.partition("mini.yaml/")[2] for training in trainings]


def train(path: Path, tmp_path: Path, *more: str) -> list[str | Path]:
    return ["queue", path, "--out", tmp_path / "runs", "--device", "cpu", "--checkpoint-seconds", "0", *more]


def wait_until(true: Callable[[], object]) -> None:
    limit = time.monotonic() + 60
    while not true():
        assert time.monotonic() < limit
        time.sleep(0.005)


# --- what the file says ------------------------------------------------------------------------------------------------------


def test_rows_keep_their_order_and_without_a_seed_stand_for_every_seed(write_preset: Writer, write_queue: Writer) -> None:
    write_preset(runs=SIZES)
    path = write_queue("only/full/1   # first", "only/b0008", "only/full")
    path.write_text("# a comment\n\n" + path.read_text(encoding="utf-8"), encoding="utf-8")
    assert names(queue.read(path)) == ["only/full/1", "only/b0008/0", "only/b0008/1", "only/full/0"]


def test_a_preset_is_named_as_everywhere(tmp_path: Path) -> None:
    (tmp_path / "queue.txt").write_text("digits/noise/b0025-along_u/2\n", encoding="utf-8")
    (training,) = queue.read(tmp_path / "queue.txt")
    assert training.group.runs == (load_preset("digits").groups["noise/b0025-along_u"].runs[2],)
    assert training.name == "digits/noise/b0025-along_u/2"


def test_the_queue_of_the_project_names_runs_of_its_presets() -> None:
    assert len(queue.read(ROOT / "config/queue.txt")) > 10


WRONG = {
    "only/b0009/0": "has no group 'only/b0009'",
    "only/b0008/7": "has no seed 7; it has 0, 1",
    "only/b0008/" + "7" * 5000: "has no seed 7",
    "only/b0008/0/1": "has no group|no preset",
    "b0008": "no preset '.*'",
}


@pytest.mark.parametrize(("row", "message"), WRONG.items(), ids=[row[:20] for row in WRONG])
def test_a_row_that_names_nothing_is_refused_by_its_number_before_anything_starts(
    row: str,
    message: str,
    write_preset: Writer,
    write_queue: Writer,
    eosslib: Command,
    monkeypatch: pytest.MonkeyPatch,
    tmp_path: Path,
) -> None:
    monkeypatch.setattr(workers, "_spawn", lambda *args: pytest.fail("started"))
    write_preset()
    path = write_queue("only/b0008/0", row)
    with pytest.raises(ConfigError, match=message):
        queue.read(path)
    if len(row) < 50:
        assert f"{path}, line 2: " in refused(eosslib(*train(path, tmp_path)))


@pytest.mark.parametrize("row", ["none/of/these", "x" * 300 + "/a/b", "x" * 300 + ".yaml/a/b", "two/b0008", "a", "digits/fc-tanh"])
def test_a_row_of_no_preset_is_refused_in_one_line(row: str, tmp_path: Path, eosslib: Command) -> None:
    (tmp_path / "queue.txt").write_text(f"\n{row}\n", encoding="utf-8")
    assert "line 2: " in refused(eosslib("queue", tmp_path / "queue.txt"))


@pytest.mark.parametrize("content", [None, b"", b"# nothing\n", b"\xff\xfe\x00"], ids=["missing", "empty", "comment", "no text"])
def test_a_file_that_names_nothing_is_refused_in_one_line(content: bytes | None, tmp_path: Path, eosslib: Command) -> None:
    if content is not None:
        (tmp_path / "queue.txt").write_bytes(content)
    assert str(tmp_path / "queue.txt") in refused(eosslib("queue", tmp_path / "queue.txt"))


# --- what is trained, in which order -----------------------------------------------------------------------------------------


class Played:
    """Stands for a training's process: it ends when it is told to, with a run file or without."""

    def __init__(self, training: queue.Training, settings: queue.Settings, log: list[str]) -> None:
        self.training, self.settings, self.log, self.polled = training, settings, log, 0
        self.status, self.said = 0, ["said"]
        log.append(f"start {names([training])[0]}")

    def poll(self) -> int | None:
        self.polled += 1
        if self.polled < 2:
            return None
        if self.status == 0:
            train_group(self.training.group, Options(self.settings.folder / self.training.preset.name))
        self.log.append(f"end {names([self.training])[0]}")
        return self.status


class Child:
    def __init__(self, process: Played) -> None:
        self.process, self.output = process, open(os.devnull, "rb")  # noqa: SIM115, the queue closes it

    def said(self) -> list[str]:
        return self.process.said


@pytest.fixture
def log(monkeypatch: pytest.MonkeyPatch) -> list[str]:
    """What was started and ended, in order; nothing runs in a process of its own."""
    events: list[str] = []
    monkeypatch.setattr(workers, "POLL", 0)
    monkeypatch.setattr(workers, "_spawn", lambda training, settings: Child(Played(training, settings, events)))
    return events


@pytest.fixture
def settings(tmp_path: Path) -> queue.Settings:
    return queue.Settings(tmp_path / "runs", tmp_path / "reference")


def test_trainings_run_in_order_one_at_a_time(
    write_preset: Writer, write_queue: Writer, log: list[str], settings: queue.Settings
) -> None:
    write_preset(runs=SIZES)
    workers.run(queue.read(write_queue("only/full/1", "only/b0008/0", "only/b0020/0")), settings)
    expected = ["only/full/1", "only/b0008/0", "only/b0020/0"]
    assert log == [f"{what} {name}" for name in expected for what in ("start", "end")]


def test_so_many_run_at_a_time_as_asked_and_the_next_begins_when_one_ends(
    write_preset: Writer, write_queue: Writer, log: list[str], settings: queue.Settings
) -> None:
    write_preset(runs=SIZES)
    trainings = queue.read(write_queue("only/full", "only/b0008", "only/b0020/0"))
    workers.run(trainings, dataclasses.replace(settings, jobs=2))
    assert log[:2] == ["start only/full/0", "start only/full/1"]
    at_once = [sum(1 if event.startswith("start") else -1 for event in log[: i + 1]) for i in range(len(log))]
    assert max(at_once) == 2
    assert [event.split()[1] for event in log if event.startswith("start")] == names(trainings)


@pytest.mark.parametrize("where", ["runs", "reference"])
def test_what_is_whole_with_just_these_settings_is_skipped(
    where: str, write_preset: Writer, write_queue: Writer, log: list[str], settings: queue.Settings, tmp_path: Path
) -> None:
    write_preset(runs=SIZES)
    trainings = queue.read(write_queue("only/b0008/0", "only/b0020/0", "only/full/0"))
    train_group(trainings[0].group, Options(tmp_path / where / "mini"))
    other = dataclasses.replace(trainings[1].group, runs=(dataclasses.replace(trainings[1].group.runs[0], lr=0.2),))
    train_group(other, Options(tmp_path / where / "mini"))
    (path,) = train_group(trainings[2].group, Options(tmp_path / where / "mini"))
    path.write_bytes(path.read_bytes()[:-100])
    workers.run(trainings, settings)
    assert log == [f"{what} only/{name}/0" for name in ("b0020", "full") for what in ("start", "end")]


def test_after_a_failure_the_others_are_trained_and_the_end_names_it(
    write_preset: Writer, write_queue: Writer, monkeypatch: pytest.MonkeyPatch, log: list[str], settings: queue.Settings
) -> None:
    spawn = workers._spawn

    def failing(training: queue.Training, settings: queue.Settings) -> workers._Child:
        child = spawn(training, settings)
        if training.group.name == "only/b0008":
            child.process.status = -9
        return child

    monkeypatch.setattr(workers, "_spawn", failing)
    write_preset(runs=SIZES)
    trainings = queue.read(write_queue("only/b0008/0", "only/b0020/0", "only/full/0"))
    with pytest.raises(EosslibError, match=r"1 of 3 trainings failed: .*only/b0008/0$"):
        workers.run(trainings, settings)
    assert [queue.finished(training, settings) for training in trainings] == [False, True, True]
    assert log.count("start only/b0008/0") == 1


def test_a_training_that_ends_well_without_its_run_file_has_failed(
    write_preset: Writer, write_queue: Writer, log: list[str], settings: queue.Settings, monkeypatch: pytest.MonkeyPatch
) -> None:
    write_preset()
    monkeypatch.setattr("test_queue.train_group", lambda *args: None)
    with pytest.raises(EosslibError, match="1 of 1 trainings failed"):
        workers.run(queue.read(write_queue("only/b0008/0")), settings)


# --- one training a run ------------------------------------------------------------------------------------------------------


def lock(tmp_path: Path, training: queue.Training) -> Path:
    return lock_path(tmp_path / "runs/mini", training.group, training.group.runs[0])


def test_what_another_process_trains_is_waited_for_while_others_go_on(
    write_preset: Writer,
    write_queue: Writer,
    log: list[str],
    settings: queue.Settings,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    write_preset(runs=SIZES)
    trainings = queue.read(write_queue("only/b0008/0", "only/b0020/0"))
    held = processes.locked({"it": lock(tmp_path, trainings[0])})
    collect = workers._Queue.collect
    rounds: list[int] = []

    def release_late(self: workers._Queue) -> None:
        collect(self)
        rounds.append(len(self.waiting))
        if len(rounds) == 20:
            held.__exit__(None, None, None)

    monkeypatch.setattr(workers._Queue, "collect", release_late)
    held.__enter__()
    workers.run(trainings, settings)
    assert log == [f"{what} only/{name}/0" for name in ("b0020", "b0008") for what in ("start", "end")]
    assert rounds[18] == 1


def test_a_training_that_finds_the_lock_taken_after_all_is_tried_again(
    write_preset: Writer, write_queue: Writer, log: list[str], settings: queue.Settings, monkeypatch: pytest.MonkeyPatch
) -> None:
    spawn = workers._spawn

    def late(training: queue.Training, settings: queue.Settings) -> workers._Child:
        child = spawn(training, settings)
        if len(log) == 1:
            child.process.status, child.process.said = 1, [f"error: it {processes.BEING_TRAINED} 12; wait"]
        return child

    monkeypatch.setattr(workers, "_spawn", late)
    write_preset()
    workers.run(queue.read(write_queue("only/b0008/0")), settings)
    assert log == ["start only/b0008/0", "end only/b0008/0"] * 2


# --- in processes of their own -----------------------------------------------------------------------------------------------


@pytest.fixture
def tidy(tmp_path: Path) -> Iterator[None]:
    """Whatever a test leaves running on its folder is killed."""
    yield
    for pid in trainers(tmp_path):
        os.kill(pid, signal.SIGKILL)


def trainers(tmp_path: Path) -> list[int]:
    """Processes that train below a folder."""
    found = []
    for entry in Path("/proc").glob("[0-9]*"):
        try:
            words = (entry / "cmdline").read_bytes().split(b"\0")
        except OSError:
            continue
        if b"train" in words and str(tmp_path / "runs/mini").encode() in words:
            found.append(int(entry.name))
    return found


def assert_same(folder: Path, other: Path, training: queue.Training) -> None:
    run = training.group.runs[0]
    one, two = (runs.load(runs.run_path(f, training.group, run), expect=run) for f in (folder, other))
    assert one.provenance["theta_sha256"] == two.provenance["theta_sha256"]
    pd.testing.assert_frame_equal(one.frame, two.frame, check_exact=True)


def test_a_queue_trains_reports_failures_and_ends_with_status_1(
    write_preset: Writer, write_queue: Writer, eosslib: Command, tmp_path: Path
) -> None:
    write_preset(seeds=[0], runs={"deep": {"model": "cnn", "depth": 4}, **SIZES})
    path = write_queue("deep/b0008", "only/b0008/0")
    finished = eosslib(*train(path, tmp_path))
    assert finished.status == 1
    assert "depth 4 is too much" in finished.err
    assert "only/b0008/0: only/b0008 seed 0: 12 steps, loss" in finished.err
    assert "deep/b0008/0: failed with exit status 1; the queue goes on" in finished.err
    last = finished.err.splitlines()[-1]
    assert last.startswith("error: 1 of 2 trainings failed: ")
    assert last.endswith("deep/b0008/0")
    (left, total) = eosslib(*train(path, tmp_path), "--list").out.splitlines()
    assert "deep/b0008/0" in left
    assert total.startswith("1 of 2 trainings are done; 1 left")


@pytest.mark.slow
@pytest.mark.skipif(not Path("/proc/self/stat").exists(), reason="only Linux ends trainings with their queue")
def test_killed_and_started_again_a_queue_ends_bit_identical_and_never_trains_a_run_twice(
    start: Start, write_preset: Writer, write_queue: Writer, tmp_path: Path, tidy: None
) -> None:
    """The trainings are paused when the queue is killed, so that they still hold their runs when the next one begins."""
    write_preset(settings=LONG | {"steps": 60})
    trainings = queue.read(path := write_queue("only/b0008-along_u"))
    first = start(*train(path, tmp_path, "--jobs", "2"))
    paused: dict[Path, int] = {}
    for lock_file, checkpoint in ((lock(tmp_path, t), checkpoint_path(tmp_path / "runs/mini", t.group)) for t in trainings):
        wait_until(checkpoint.is_file)
        whose = processes.holder(lock_file)
        assert whose is not None
        paused[lock_file] = int(whose)
        os.kill(int(whose), signal.SIGSTOP)
    first.kill()
    second = start(*train(path, tmp_path, "--jobs", "2"))
    assert second.stderr is not None
    said = [second.stderr.readline() for _ in paused]
    assert all("it is waited for" in line for line in said), said
    assert sorted(trainers(tmp_path)) == sorted(paused.values())
    assert {path: processes.holder(path) for path in paused} == {path: str(pid) for path, pid in paused.items()}
    for pid in paused.values():
        os.kill(pid, signal.SIGCONT)
    _, err = second.communicate()
    assert second.returncode == 0, err
    assert err.count("going on from step") == 2, err
    assert "failed" not in err
    for training in trainings:
        train_group(training.group, Options(tmp_path / "undisturbed"))
        assert_same(tmp_path / "runs/mini", tmp_path / "undisturbed", training)
    assert not trainers(tmp_path)


@pytest.mark.slow
@pytest.mark.skipif(not Path("/proc/self/stat").exists(), reason="only Linux ends trainings with their queue")
def test_trainings_end_with_a_queue_that_is_killed(
    start: Start, write_preset: Writer, write_queue: Writer, tmp_path: Path, tidy: None
) -> None:
    write_preset(settings=LONG | {"steps": 1_000_000})
    path = write_queue("only/b0008-along_u/0")
    process = start(*train(path, tmp_path))
    checkpoint = checkpoint_path(tmp_path / "runs/mini", queue.read(path)[0].group)
    wait_until(lambda: checkpoint.is_file() or process.poll() is not None)
    assert len(trainers(tmp_path)) == 1
    process.kill()
    wait_until(lambda: not trainers(tmp_path))
    assert checkpoint.is_file()


@pytest.mark.slow
@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM])
def test_a_signal_stops_the_trainings_with_checkpoints_and_status_130(
    number: signal.Signals, start: Start, write_preset: Writer, write_queue: Writer, tmp_path: Path, tidy: None
) -> None:
    write_preset(settings=LONG | {"steps": 1_000_000})
    path = write_queue("only/b0008-along_u")
    process = start(*train(path, tmp_path, "--jobs", "2"))
    checkpoints = [checkpoint_path(tmp_path / "runs/mini", training.group) for training in queue.read(path)]
    wait_until(lambda: all(checkpoint.is_file() for checkpoint in checkpoints) or process.poll() is not None)
    # A Ctrl-C at the terminal reaches all of its session: a training that got it twice would lose its checkpoint.
    assert all(os.getsid(pid) == pid for pid in trainers(tmp_path))
    process.send_signal(number)
    _, err = process.communicate(timeout=60)
    assert process.returncode == 130
    assert err.count("stopped at step ") == 2, err
    assert err.splitlines()[-1] == "the queue is stopped; run the same command to go on from the checkpoints"
    assert sorted(p for p in (tmp_path / "runs").rglob("*") if p.is_file()) == sorted(checkpoints)


# --- how long it takes -------------------------------------------------------------------------------------------------------


def spent(config: jobs.RunConfig, folder: Path, group: jobs.Group, seconds: float, monkeypatch: pytest.MonkeyPatch) -> None:
    """Train a run that took so many seconds."""
    provenance = jobs.provenance
    with monkeypatch.context() as patch:
        patch.setattr(jobs, "provenance", lambda *args: provenance(*args) | {"wall_seconds": seconds})
        train_group(jobs.Group(group.name, (config,)), Options(folder))


def test_an_estimate_rests_on_the_runs_own_pace_then_on_its_kin_then_on_a_timed_gradient(
    write_preset: Writer, write_queue: Writer, settings: queue.Settings, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    write_preset(runs=SIZES, settings=TINY | {"width": 5})
    training = queue.read(write_queue("only/b0020/0"))[0]
    config, groups = training.group.runs[0], training.preset.groups
    machine = duration.Machine("cpu", None, queue.folders(training, settings))

    def estimate(state: jobs.State | None = None) -> duration.Estimate:
        return duration.estimate(config, "only", training.preset, state, machine)

    timed = estimate()
    assert timed.basis == "by a timed gradient"
    assert timed.seconds is not None
    assert timed.seconds > 0
    units = {"only/b0008": 3.0, "only/full": 5.0}
    for name, unit in units.items():
        run = groups[name].runs[0]
        spent(run, settings.reference / "mini", groups[name], unit * duration.cost(run), monkeypatch)
    kin = estimate()
    assert kin.basis == "by the pace of only/b0008 and only/full"
    assert kin.seconds == pytest.approx((3 + 2 * (20 - 8) / (40 - 8)) * duration.cost(config))
    state = jobs.Trainer([config]).state
    state.step, state.seconds = 5, 7 * duration.cost(config, 5)
    own = estimate(state)
    assert own.basis == "at its own pace so far"
    assert own.seconds == pytest.approx(7 * (duration.cost(config) - duration.cost(config, 5)))


def test_a_stack_of_runs_took_the_time_of_all_of_them(
    write_preset: Writer, write_queue: Writer, settings: queue.Settings, monkeypatch: pytest.MonkeyPatch
) -> None:
    write_preset()
    trainings = queue.read(write_queue("only/b0008"))
    provenance, preset = jobs.provenance, trainings[0].preset
    monkeypatch.setattr(jobs, "provenance", lambda *args: provenance(*args) | {"wall_seconds": 80.0})
    train_group(preset.groups["only/b0008"], Options(settings.reference / "mini"))
    machine = duration.Machine("cpu", None, queue.folders(trainings[0], settings))
    assert duration.estimate(trainings[0].group.runs[0], "only", preset, None, machine).seconds == pytest.approx(40)


COSTS = {
    "a larger batch": {"batch_size": 20},
    "noise": {"noise": "gaussian"},
    "more steps": {"steps": 24},
    "samples": {"sample_every": 5, "batch_sharpness_draws": 2},
    "coupled steps": {"coupled_steps": 2},
    "a larger batch later": {"schedule": ({"step": 5, "batch_size": 40},)},
    "windows": {"window": 2, "window_every": 5, "window_k": 2},
    "a static gap": {"minibs_draws": 2, "static_sizes": (4,)},
}


@pytest.mark.parametrize("change", COSTS.values(), ids=COSTS.keys())
def test_what_a_run_does_more_costs_more_and_all_parts_add_up(change: dict, tiny: Callable[..., jobs.RunConfig]) -> None:
    config = tiny(**change)
    assert duration.cost(config) > duration.cost(tiny())
    costs = [duration.cost(config, step) for step in range(config.steps + 1)]
    assert costs == sorted(costs)
    assert costs[-1] == duration.cost(config)
