"""The command line, as a user meets it: exit status, what is printed, and errors in one line."""

from __future__ import annotations

import json
import subprocess
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from helpers import TINY, Finished, refused

from eosslib import datasets, runs
from eosslib.config import load_preset

Writer = Callable[..., Path]
Command = Callable[..., Finished]


# --- what it does ------------------------------------------------------------------------------------------------------------


def test_train_writes_one_file_a_run_and_says_how_each_ended(eosslib: Command, write_preset: Writer, tmp_path: Path) -> None:
    path = write_preset(runs={"only": {"batch_size": [8, "full"]}})
    finished = eosslib("train", path, "--out", tmp_path / "runs", "--device", "cpu")
    assert finished.status == 0
    preset = load_preset(path)
    for group in preset.groups.values():
        for config in group.runs:
            assert runs.load(runs.run_path(tmp_path / "runs", group, config), expect=config).config == config
            assert f"{group.name} seed {config.seed}: 12 steps, loss" in finished.err
    assert len(finished.err.splitlines()) == 4
    again = eosslib("train", path, "--out", tmp_path / "runs", "--device", "cpu")
    assert again == Finished(0, "", "")


def test_train_takes_the_groups_named(eosslib: Command, write_preset: Writer, tmp_path: Path) -> None:
    path = write_preset(runs={"only": {"batch_size": [8, "full"]}})
    assert eosslib("train", path, "only/full", "--out", tmp_path / "runs", "--device", "cpu").status == 0
    assert sorted(p.parent.name for p in (tmp_path / "runs").rglob("*.parquet")) == ["full", "full"]


def test_train_takes_an_entry_for_all_of_its_groups_and_each_of_them_once(
    eosslib: Command, write_preset: Writer, tmp_path: Path
) -> None:
    path = write_preset(seeds=[0], runs={"only": {"batch_size": [8, "full"]}, "other": {}})
    finished = eosslib("train", path, "only/full", "only", "--out", tmp_path / "runs", "--device", "cpu")
    assert finished.status == 0
    assert sorted(p.parent.name for p in (tmp_path / "runs").rglob("*.parquet")) == ["b0008", "full"]
    assert sum("only/full seed 0" in line for line in finished.err.splitlines()) == 1


def test_list_names_every_group(eosslib: Command) -> None:
    finished = eosslib("list", "digits")
    assert finished.status == 0
    assert [line.split()[0] for line in finished.out.splitlines()] == list(load_preset("digits").groups)


ENDS = {"whole": ({}, 12), "diverged": ({"lr": 1e4}, 5), "diverged at once": ({"model": "fc-relu", "init_scale": 1e30}, 0)}


@pytest.mark.parametrize(("change", "step"), ENDS.values(), ids=ENDS.keys())
def test_describe_prints_settings_origin_and_end_as_json(
    change: dict[str, Any], step: int, eosslib: Command, write_preset: Writer, tmp_path: Path
) -> None:
    path = write_preset(seeds=[3], settings=TINY | change)
    eosslib("train", path, "--out", tmp_path / "runs", "--device", "cpu")
    finished = eosslib("describe", tmp_path / "runs/only/b0008/seed3.parquet")
    assert (finished.status, finished.err) == (0, "")
    described = json.loads(finished.out, parse_constant=lambda word: pytest.fail(f"{word} is no JSON"))
    assert described["config"] == load_preset(path).groups["only/b0008"].runs[0].to_dict()
    assert described["provenance"]["diverged_at"] == (step if change else None)
    assert described["last"]["step"] == step


def test_fetch_prints_the_file_that_is_there(eosslib: Command, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    names = [f"{kind}_{part}" for kind in ("train", "test") for part in ("images", "labels", "indices")]
    arrays = {name: np.zeros(3) for name in names}
    np.savez(tmp_path / datasets.CIFAR_FILE, **arrays)
    monkeypatch.setattr(datasets, "CIFAR_SHA256", datasets.checksum(arrays))
    finished = eosslib("fetch", "cifar10", "--data", tmp_path)
    assert (finished.status, finished.out) == (0, f"{tmp_path / datasets.CIFAR_FILE}\n")


def test_a_reader_that_goes_away_is_no_error(start: Callable[..., subprocess.Popen[str]]) -> None:
    process = start("list", "digits")
    assert process.stdout is not None
    process.stdout.close()
    assert process.wait(60) == 0
    assert process.stderr is not None
    assert process.stderr.read() == ""


# --- errors ------------------------------------------------------------------------------------------------------------------

WRONG_PRESETS: dict[str, tuple[dict[str, Any], list[str]]] = {
    "unknown key at the top": ({"stings": {}}, ["stings"]),
    "unknown key in settings": ({"settings": TINY | {"learning_rate": 0.1}}, ["learning_rate", "settings"]),
    "unknown key in a run": ({"runs": {"only": {"learning_rate": 0.1}}}, ["learning_rate", "runs.only"]),
    "string for a number": ({"settings": TINY | {"lr": "1e-3"}}, ["settings.lr", "'1e-3'"]),
    "unknown model": ({"settings": TINY | {"model": "vgg"}}, ["settings.model", "'vgg'"]),
    "batch size above n": ({"settings": TINY | {"batch_size": 99}}, ["batch_size", "99", "40"]),
    "batch size of zero": ({"settings": TINY | {"batch_size": 0}}, ["settings.batch_size"]),
    "step size not positive": ({"settings": TINY | {"lr": -1.0}}, ["settings.lr"]),
    "missing key": ({"seeds": None}, ["seeds"]),
    "missing setting": ({"settings": {k: v for k, v in TINY.items() if k != "loss"}}, ["loss"]),
    "name of another file": ({"name": "other"}, ["name", "'other'"]),
}


@pytest.mark.parametrize(("change", "words"), WRONG_PRESETS.values(), ids=WRONG_PRESETS.keys())
@pytest.mark.parametrize("command", ["train", "list"])
def test_a_wrong_preset_ends_in_one_line_that_names_file_and_key(
    command: str, change: dict[str, Any], words: list[str], eosslib: Command, write_preset: Writer
) -> None:
    line = refused(eosslib(command, write_preset(**change)))
    for word in ["mini.yaml", *words]:
        assert word in line


IMPOSSIBLE: dict[str, tuple[dict[str, Any], str]] = {
    "more examples than there are": ({"train_size": 1798}, "digits has 1797 training examples"),
    "a CNN too deep": ({"model": "cnn", "depth": 4}, "depth 4 is too much"),
    "more eigenvalues than parameters": ({"width": 1, "depth": 1, "eig_k": 1000}, "eig_k"),
}


@pytest.mark.parametrize(("change", "words"), IMPOSSIBLE.values(), ids=IMPOSSIBLE.keys())
def test_settings_that_contradict_the_data_end_in_one_line(
    change: dict[str, Any], words: str, eosslib: Command, write_preset: Writer, tmp_path: Path
) -> None:
    path = write_preset(settings=TINY | change)
    assert words in refused(eosslib("train", path, "--out", tmp_path / "runs", "--device", "cpu"))


def test_batch_normalisation_trains_where_the_memory_that_is_allowed_holds_all_examples(
    eosslib: Command, write_preset: Writer, tmp_path: Path
) -> None:
    path = write_preset(settings=TINY | {"model": "resnet10-bn", "width": 1, "depth": 1, "steps": 1}, seeds=[0])
    command = ["train", path, "--out", tmp_path / "runs", "--device", "cpu"]
    assert "GiB of 0.0: allow more memory, take fewer examples" in refused(eosslib(*command, "--memory", "1e-5"))
    finished = eosslib(*command, "--memory", "0.5")
    assert finished.status == 0, finished.err


def test_all_digits_can_be_trained_on_although_none_are_left_to_test(
    eosslib: Command, write_preset: Writer, tmp_path: Path
) -> None:
    path = write_preset(settings=TINY | {"train_size": 1797, "steps": 1}, seeds=[0])
    finished = eosslib("train", path, "--out", tmp_path / "runs", "--device", "cpu")
    assert finished.status == 0, finished.err


def test_a_preset_that_is_not_there_ends_in_one_line(eosslib: Command) -> None:
    line = refused(eosslib("train", "nothing"))
    assert "'nothing'" in line
    assert "config/presets/nothing.yaml" in line
    assert "digits" in line


def test_an_unknown_group_ends_in_one_line_that_names_it(eosslib: Command, write_preset: Writer) -> None:
    path = write_preset()
    line = refused(eosslib("train", path, "only/b0009"))
    assert "'only/b0009'" in line
    assert str(path) in line


@pytest.mark.parametrize("device", ["cuda:7", "gpu", "mps"])
def test_a_device_that_is_not_there_ends_in_one_line_that_names_it(
    device: str, eosslib: Command, write_preset: Writer, tmp_path: Path
) -> None:
    assert device in refused(eosslib("train", write_preset(), "--device", device, "--out", tmp_path / "runs"))


@pytest.mark.parametrize("content", [None, b"", b"half a file"])
def test_a_data_file_that_is_missing_or_damaged_ends_in_one_line_that_names_it(
    content: bytes | None, eosslib: Command, write_preset: Writer, tmp_path: Path
) -> None:
    if content is not None:
        (tmp_path / datasets.CIFAR_FILE).write_bytes(content)
    path = write_preset(settings=TINY | {"dataset": "cifar10"})
    line = refused(eosslib("train", path, "--data", tmp_path, "--out", tmp_path / "runs", "--device", "cpu"))
    assert str(tmp_path / datasets.CIFAR_FILE) in line
    assert ("missing" if content is None else "corrupt") in line


def test_a_folder_that_cannot_be_written_to_ends_in_one_line_that_names_it(
    eosslib: Command, write_preset: Writer, tmp_path: Path
) -> None:
    path = write_preset()
    assert str(path / "runs") in refused(eosslib("train", path, "--out", path / "runs", "--device", "cpu"))


def test_a_file_that_is_no_run_ends_in_one_line_that_names_it(eosslib: Command, tmp_path: Path) -> None:
    (tmp_path / "some.parquet").write_text("not a run")
    for name in ("some.parquet", "none.parquet"):
        assert str(tmp_path / name) in refused(eosslib("describe", tmp_path / name))


def test_a_folder_is_described_as_one(eosslib: Command, tmp_path: Path) -> None:
    assert f"{tmp_path} is a folder: name one of the run files in it" in refused(eosslib("describe", tmp_path))


@pytest.mark.parametrize(
    ("option", "value", "words"),
    [("--threads", value, "not a number of threads: give a whole number from 1 on") for value in ("0", "-1", "1.5", "two")]
    + [("--memory", value, "not a number of GiB: give one above 0") for value in ("nan", "inf", "0", "-1", "much")]
    + [("--max-seconds", value, "not a number of seconds: give one from 0 on") for value in ("nan", "inf", "-1", "long")]
    + [("--checkpoint-seconds", "nan", "not a number of seconds: give one from 0 on")],
)
def test_threads_memory_and_seconds_that_are_no_number_of_them_are_refused(
    option: str, value: str, words: str, eosslib: Command, capsys: pytest.CaptureFixture[str]
) -> None:
    with pytest.raises(SystemExit) as caught:
        eosslib("train", "smoke", f"{option}={value}")
    assert caught.value.code == 2
    assert f"argument {option}: '{value}' is {words}" in capsys.readouterr().err


def test_an_index_of_figures_that_are_not_drawn_ends_in_one_line(eosslib: Command, tmp_path: Path) -> None:
    assert str(tmp_path) in refused(eosslib("index", tmp_path, "smoke"))


def test_in_a_process_of_its_own_an_error_is_one_line_and_status_one(
    start: Callable[..., subprocess.Popen[str]], write_preset: Writer
) -> None:
    process = start("train", write_preset(settings=TINY | {"lr": "1e-3"}))
    out, err = process.communicate(timeout=60)
    assert "settings.lr" in refused(Finished(process.returncode, out, err))


def test_some_seeds_of_a_preset_can_be_trained_alone(eosslib: Command, write_preset: Writer, tmp_path: Path) -> None:
    path, out = write_preset(), tmp_path / "runs"
    assert eosslib("train", path, "--out", out, "--seeds", "1").status == 0
    assert [file.name for file in sorted(out.rglob("*.parquet"))] == ["seed1.parquet"]
    assert "--seeds: preset mini has no seed 7; it has 0, 1" in refused(eosslib("train", path, "--out", out, "--seeds", "7"))
    assert eosslib("train", path, "--out", out).status == 0
    assert [file.name for file in sorted(out.rglob("*.parquet"))] == ["seed0.parquet", "seed1.parquet"]
