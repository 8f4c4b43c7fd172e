"""Slim checkpoints: the same training elsewhere, bit for bit in its parameters; what is damaged or of another run is refused."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import pandas as pd
import pytest
import torch
from helpers import TINY, Finished, refused, stop_after

from eosslib import runs, slim
from eosslib.config import Group
from eosslib.errors import ConfigMismatch, RunFileError
from eosslib.jobs import Options, checkpoint_path, lock_path, save_checkpoint, train_group
from eosslib.processes import Busy, locked
from eosslib.settings import RunConfig
from eosslib.training import State, Trainer

Writer = Callable[..., Path]
Command = Callable[..., Finished]
Settings = Callable[..., RunConfig]
KINDS: dict[str, dict[str, Any]] = {
    "sgd": {"eig_k": 3, "sample_every": 5, "batch_sharpness_draws": 2, "minibs_draws": 2},
    "momentum": {"momentum": 0.5},
    "adam": {"optimizer": "adam", "momentum": 0.9, "lr": 0.01},
    "noise along eigenvectors": {"noise": "along_top", "noise_directions": 2},
    "windows": {"window": 2, "window_every": 5, "window_k": 2},
}


def stop_at(step: int, group: Group, folder: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """Train to a checkpoint at this step."""
    stop_after(step, group, Options(folder), monkeypatch)
    return checkpoint_path(folder, group)


@pytest.fixture
def group(tiny: Settings) -> Group:
    return Group("only/b0008", (tiny(),))


@pytest.fixture
def exported(group: Group, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """The slim checkpoint of a training that was stopped at step 5 of 12."""
    stop_at(5, group, tmp_path / "here", monkeypatch)
    slim.export(tmp_path / "here", group, tmp_path / "it.slim")
    return tmp_path / "it.slim"


@pytest.mark.parametrize("kind", KINDS.values(), ids=KINDS.keys())
def test_the_training_goes_on_elsewhere_the_same_in_its_parameters(
    kind: dict[str, Any], tiny: Settings, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    group = Group("only/b0008", (tiny(**kind, seed=0), tiny(**kind, seed=1)))
    stop_at(5, group, tmp_path / "here", monkeypatch)
    assert slim.export(tmp_path / "here", group, tmp_path / "it.slim") == 5
    assert slim.restore(tmp_path / "it.slim", tmp_path / "there", group) == 5
    undisturbed = train_group(group, Options(tmp_path / "undisturbed"))
    for path, other in zip(train_group(group, Options(tmp_path / "there")), undisturbed, strict=True):
        one, two = runs.load(path), runs.load(other)
        assert one.provenance["theta_sha256"] == two.provenance["theta_sha256"]
        assert one.provenance["slim_checkpoints"] == [5]
        assert "slim_checkpoints" not in two.provenance
        before = one.frame.step <= 5
        pd.testing.assert_frame_equal(one.frame[before], two.frame[before], check_exact=True)
        pd.testing.assert_frame_equal(one.frame[["step", "loss"]], two.frame[["step", "loss"]], check_exact=True)
        exact = "noise" in kind  # whose eigenvectors the slim checkpoint holds
        limit = 0 if exact else 10 * group.runs[0].eig_tol
        pd.testing.assert_series_equal(one.frame.sharpness, two.frame.sharpness, rtol=limit, atol=0, check_exact=exact or None)


def test_a_training_may_go_through_several(group: Group, tmp_path: Path, exported: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    slim.restore(exported, tmp_path / "there", group)
    stop_at(10, group, tmp_path / "there", monkeypatch)
    assert slim.export(tmp_path / "there", group, exported) == 10
    slim.restore(exported, tmp_path / "elsewhere", group)
    (path,) = train_group(group, Options(tmp_path / "elsewhere"))
    assert runs.load(path).provenance["slim_checkpoints"] == [5, 10]


def test_runs_that_have_diverged_before_are_left_out(tiny: Settings, tmp_path: Path) -> None:
    group = Group("only/b0008", (tiny(seed=0), tiny(seed=1)))
    trainer = Trainer(group.runs)
    states: list[State] = []
    trainer.run(lambda state: states.append(state.copy()))
    state = states[1].of([False, True])
    state.diverged_at[0] = 5
    save_checkpoint(checkpoint_path(tmp_path / "here", group), group.runs, state)
    slim.export(tmp_path / "here", group, tmp_path / "it.slim")
    slim.restore(tmp_path / "it.slim", tmp_path / "there", group)
    paths = train_group(group, Options(tmp_path / "there"))
    assert runs.load(paths[0]).diverged_at == 5
    (alone,) = train_group(Group(group.name, group.runs[1:]), Options(tmp_path / "alone"))
    assert runs.load(paths[1]).provenance["theta_sha256"] == runs.load(alone).provenance["theta_sha256"]


def test_that_of_the_papers_mlp_has_at_most_5_mb(group: Group, tmp_path: Path) -> None:
    size = 656_810
    theta, vectors = torch.randn(1, size), torch.randn(1, 16, size)
    rows = [{f"column {i}": torch.rand(()).item() for i in range(20)} for _ in range(400)]
    state = State(5, [0], theta, torch.zeros(1, 0, size), vectors, torch.randn(1, size), {0: rows})
    save_checkpoint(checkpoint_path(tmp_path, group), group.runs, state)
    slim.export(tmp_path, group, tmp_path / "it.slim")
    assert checkpoint_path(tmp_path, group).stat().st_size > 40e6
    assert 2.4e6 < (tmp_path / "it.slim").stat().st_size < 5e6


# --- what is refused ---------------------------------------------------------------------------------------------------------


def damaged(whole: bytes) -> dict[str, bytes]:
    return {
        "empty": b"",
        "truncated": whole[:-1],
        "longer": whole + b"\0",
        "half": whole[: len(whole) // 2],
        "text": b"no checkpoint\n" * 20,
        "another version": whole.replace(b"checkpoint 1", b"checkpoint 2", 1),
        "only its first line": slim.MAGIC,
    } | {f"a bit flipped at {at}": whole[:at] + bytes([whole[at] ^ 1]) + whole[at + 1 :] for at in (3, 40, 300, len(whole) - 3)}


DAMAGES = damaged(b"x" * 1000).keys() - {"a bit flipped at 997"} | {"a bit flipped near the end"}


@pytest.mark.parametrize("how", sorted(DAMAGES))
def test_a_damaged_one_is_refused_in_one_line_and_changes_nothing(how: str, group: Group, tmp_path: Path, exported: Path) -> None:
    content = damaged(exported.read_bytes())
    exported.write_bytes(content[how] if how in content else list(content.values())[-1])
    with pytest.raises(RunFileError, match=r"damaged|no slim checkpoint") as caught:
        slim.restore(exported, tmp_path / "there", group)
    assert str(exported) in str(caught.value)
    assert "\n" not in str(caught.value)
    assert not (tmp_path / "there").exists()


def test_one_of_other_settings_is_refused_by_the_setting(group: Group, tiny: Settings, tmp_path: Path, exported: Path) -> None:
    with pytest.raises(ConfigMismatch, match=r"it.slim is of other settings: lr is 0.1, not 0.2"):
        slim.restore(exported, tmp_path / "there", Group(group.name, (tiny(lr=0.2),)))
    with pytest.raises(ConfigMismatch, match="holds 1 runs, not 2"):
        slim.restore(exported, tmp_path / "there", Group(group.name, (tiny(), tiny(seed=1))))
    with pytest.raises(ConfigMismatch, match=r"\.pt is of other settings: lr is 0.1, not 0.2"):
        slim.export(tmp_path / "here", Group(group.name, (tiny(lr=0.2),)), exported)
    assert not (tmp_path / "there").exists()


def test_a_checkpoint_that_is_as_far_stays(group: Group, tmp_path: Path, exported: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    path = stop_at(10, group, tmp_path / "there", monkeypatch)
    before = path.read_bytes()
    assert slim.restore(exported, tmp_path / "there", group) is None
    assert path.read_bytes() == before


def test_a_damaged_checkpoint_gives_way(group: Group, tmp_path: Path, exported: Path) -> None:
    path = checkpoint_path(tmp_path / "there", group)
    path.parent.mkdir(parents=True)
    path.write_bytes(b"damaged")
    assert slim.restore(exported, tmp_path / "there", group) == 5


def test_a_run_that_is_being_trained_is_left_alone(group: Group, tmp_path: Path, exported: Path) -> None:
    with locked({"it": lock_path(tmp_path / "there", group, group.runs[0])}), pytest.raises(Busy):
        slim.restore(exported, tmp_path / "there", group)
    assert not checkpoint_path(tmp_path / "there", group).exists()


@pytest.mark.parametrize("content", [None, b"", b"text"])
def test_a_checkpoint_that_is_none_is_told_in_one_line(content: bytes | None, group: Group, tmp_path: Path) -> None:
    path = checkpoint_path(tmp_path / "here", group)
    if content is not None:
        path.parent.mkdir(parents=True)
        path.write_bytes(content)
    with pytest.raises(RunFileError, match="cannot be read") as caught:
        slim.export(tmp_path / "here", group, tmp_path / "it.slim")
    assert "\n" not in str(caught.value)
    assert not (tmp_path / "it.slim").exists()


# --- the command line --------------------------------------------------------------------------------------------------------


def test_a_queue_is_taken_elsewhere(
    write_preset: Writer, eosslib: Command, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    preset = write_preset(settings=TINY, runs={"only": {"batch_size": [8, "full"]}})
    rows = tmp_path / "queue.txt"
    rows.write_text(f"{preset}/only/b0008\n{preset}/only/full/0\n", encoding="utf-8")
    for seed in (0, 1):
        stop_at(5 + 5 * seed, Group("only/b0008", (RunConfig(**TINY, seed=seed),)), tmp_path / "runs/mini", monkeypatch)

    def call(out: str, *arguments: str | Path) -> Finished:
        return eosslib("queue", rows, "--out", tmp_path / out, "--device", "cpu", *arguments)

    lines = call("runs", "--export", tmp_path / "slim").out.splitlines()
    files = [tmp_path / f"slim/mini__only__b0008__seed{seed}.slim" for seed in (0, 1)]
    assert sorted((tmp_path / "slim").iterdir()) == files
    assert [line.split(", ")[0] for line in lines] == [f"{file}: step {step}" for file, step in zip(files, (5, 10), strict=True)]
    again, other = (call("there", "--import", tmp_path / "slim").out.splitlines() for _ in range(2))
    assert [line.rpartition(" ")[2] for line in again] == ["5", "10"]
    assert all("has a checkpoint here" in line for line in other)
    assert call("there", "--list").out.count("step 5 of 12") == 1
    assert call("there").status == 0
    assert call("there", "--export", tmp_path / "slim").out == "no training of this queue is under way\n"
    assert not list((tmp_path / "slim").iterdir()), "what is finished needs no checkpoint"
    files[1].write_bytes(b"damaged")
    assert str(files[1]) in refused(call("elsewhere", "--import", tmp_path / "slim"))
    for seed, step in ((0, 5), (1, 10)):
        assert runs.load(tmp_path / f"there/mini/only/b0008/seed{seed}.parquet").provenance["slim_checkpoints"] == [step]


def test_one_that_cannot_be_exported_is_told_and_keeps_no_other_back(
    write_preset: Writer, eosslib: Command, tmp_path: Path, tiny: Settings, monkeypatch: pytest.MonkeyPatch
) -> None:
    rows = tmp_path / "queue.txt"
    rows.write_text(f"{write_preset()}/only/b0008\n", encoding="utf-8")
    broken, _ = (stop_at(5, Group("only/b0008", (tiny(seed=seed),)), tmp_path / "runs/mini", monkeypatch) for seed in (0, 1))
    broken.write_bytes(b"broken")
    finished = eosslib("queue", rows, "--out", tmp_path / "runs", "--device", "cpu", "--export", tmp_path / "slim")
    assert finished.status == 1
    assert finished.err.startswith(f"error: {broken} cannot be read")
    assert [path.name for path in (tmp_path / "slim").iterdir()] == ["mini__only__b0008__seed1.slim"]
