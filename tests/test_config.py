"""Presets and settings: what is accepted, and that everything else is refused in one line that names file and key."""

from __future__ import annotations

import dataclasses
import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from helpers import TINY

from eosslib import catalogue, config, figures, settings
from eosslib.config import PRESET_FOLDER, load_preset
from eosslib.errors import ConfigError
from eosslib.settings import RunConfig

Writer = Callable[..., Path]


def refusal(path: Path | str) -> str:
    """The one line with which a preset is refused."""
    with pytest.raises(ConfigError) as caught:
        load_preset(path)
    text = str(caught.value)
    assert "\n" not in text
    return text


# --- what is accepted --------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("path", sorted(PRESET_FOLDER.glob("*.yaml")), ids=lambda path: path.stem)
def test_every_shipped_preset_loads_by_name_and_by_path(path: Path) -> None:
    preset = load_preset(path.stem)
    assert preset == load_preset(path)
    assert preset.groups
    assert preset.notebooks
    for group in preset.groups.values():
        assert [run.seed for run in group.runs] == list(preset.seeds)
        assert {dataclasses.replace(run, seed=0) for run in group.runs} == {dataclasses.replace(group.runs[0], seed=0)}


def test_the_schema_for_editors_is_that_of_the_code() -> None:
    assert json.loads(config.SCHEMA_FILE.read_text(encoding="utf-8")) == config.schema(), "run `python -m eosslib schema`"


def test_the_schema_tells_editors_what_every_setting_means() -> None:
    rules = config.schema()["$defs"]["settings"]["properties"]
    assert rules.keys() == {field.name for field in dataclasses.fields(RunConfig)} - {"seed"}
    assert all(rule["description"] for rule in rules.values())
    assert rules["model"]["enum"] == list(catalogue.MODELS)


def test_the_number_of_noise_directions_is_a_setting_only_of_the_runs_that_use_it(write_preset: Writer) -> None:
    runs = {"one": {"noise": ["gaussian", "along_u", "along_top", "without_top"], "noise_directions": 3}}
    preset = load_preset(write_preset(runs=runs, notebooks={"n": ["one"]}))
    assert [group.runs[0].noise_directions for group in preset.groups.values()] == [1, 1, 3, 3]


def test_a_preset_is_its_groups_for_all_seeds(write_preset: Writer) -> None:
    runs = {"one": {"batch_size": [8, "full"], "noise": ["sgd", "gaussian"]}, "two": {"lr": 0.2}}
    preset = load_preset(write_preset(seeds=[4, 2], runs=runs, notebooks={"n": ["one"], "m": ["two", "one"]}, description="d"))
    assert list(preset.groups) == ["one/b0008", "one/b0008-gaussian", "one/full", "one/full-gaussian", "two/b0008"]
    group = preset.groups["one/full-gaussian"]
    assert group.entry == "one"
    assert [(run.seed, run.batch_size, run.noise, run.lr) for run in group.runs] == [
        (4, 40, "gaussian", 0.1),
        (2, 40, "gaussian", 0.1),
    ]
    assert preset.groups["two/b0008"].runs[0].lr == 0.2
    assert (preset.name, preset.description, preset.seeds) == ("mini", "d", (4, 2))
    assert preset.notebooks == {"n": ("one",), "m": ("two", "one")}
    assert [group.name for group in preset.select(["two"])] == ["two/b0008"]


def test_threshold_is_two_over_the_step_size() -> None:
    assert RunConfig(**TINY | {"lr": 0.01}).threshold == 200.0


FULL_BATCH = [
    ("sgd", "reshuffle", 40, True),
    ("sgd", "reshuffle", 39, False),
    ("sgd", "iid", 40, False),
    ("gaussian", "reshuffle", 40, False),
]


@pytest.mark.parametrize(("noise", "sampling", "size", "expected"), FULL_BATCH)
def test_full_batch_means_no_noise_of_any_kind(noise: str, sampling: str, size: int, expected: bool) -> None:
    assert RunConfig(**TINY | {"noise": noise, "sampling": sampling, "batch_size": size}).full_batch is expected


def test_difference_names_the_first_key_with_both_values() -> None:
    one = RunConfig(**TINY).to_dict()
    assert settings.difference(one, one) is None
    assert settings.difference(one, {**one, "lr": 0.2, "steps": 3}) == "lr is 0.1, not 0.2"
    assert settings.difference({**one, "old": 1}, one) == "old is 1, not None"


# --- what is refused ---------------------------------------------------------------------------------------------------------

SETTINGS: dict[str, tuple[dict[str, Any], list[str]]] = {
    "unknown key": ({"learning_rat": 0.1}, ["unknown key 'learning_rat'"]),
    "misspelt key": ({"step": 5}, ["unknown key 'step'", "did you mean 'steps'?"]),
    "number as a string": ({"lr": "1e-3"}, ["lr: '1e-3' is not of type number above 0", "write 1.0e-3"]),
    "word for a number": ({"steps": "many"}, ["steps: 'many' is not of type integer"]),
    "boolean for a number": ({"width": True}, ["width: True is not of type integer"]),
    "hidden layer of no units": ({"hidden": 0}, ["hidden: 0 is not of type integer at least 1"]),
    "null": ({"width": None}, ["width: None is not"]),
    "fraction of a step": ({"steps": 2.5}, ["steps: 2.5 is not of type integer"]),
    "whole float for an integer": ({"batch_size": 8.0}, ["batch_size"]),
    "unknown model": ({"model": "resnet"}, ["model: 'resnet' is not one of fc-tanh, fc-relu, cnn, cnn5"]),
    "unknown loss": ({"loss": "hinge"}, ["loss: 'hinge' is not one of mse, cross-entropy"]),
    "unknown noise": ({"noise": "pink"}, ["noise: 'pink' is not one of sgd, gaussian"]),
    "unknown data set": ({"dataset": "mnist"}, ["dataset: 'mnist' is not one of digits, cifar10, topics"]),
    "batch size above n": ({"batch_size": 41}, ["batch_size 41 is above the 40 training examples"]),
    "batch size of zero": ({"batch_size": 0}, ["batch_size: 0 is not of type integer at least 1"]),
    "zero among batch sizes": ({"batch_size": [8, 0]}, ["batch_size", "[8, 0] is not"]),
    "no batch sizes": ({"batch_size": []}, ["batch_size: [] is not"]),
    "a batch size twice": ({"batch_size": [8, 8]}, ["batch_size: [8, 8] is not", "without repetition"]),
    "step size of zero": ({"lr": 0}, ["lr: 0 is not of type number above 0"]),
    "negative step size": ({"lr": -0.1}, ["lr: -0.1 is not of type number above 0"]),
    "step size not a number": ({"lr": float("nan")}, ["lr"]),
    "infinite step size": ({"lr": float("inf")}, ["lr"]),
    "no steps": ({"steps": 0}, ["steps: 0 is not of type integer at least 1"]),
    "tolerance of one": ({"eig_tol": 1.0}, ["eig_tol: 1.0 is not of type number above 0 below 1"]),
    "samples between measurements": ({"sample_every": 7}, ["sample_every 7 is not a multiple of measure_every 5"]),
    "a single draw, no standard error": ({"sample_every": 5, "batch_sharpness_draws": 1}, ["batch_sharpness_draws"]),
    "a single draw of MiniBS": ({"sample_every": 5, "minibs_draws": 1}, ["minibs_draws"]),
    "a single draw of the overlap": ({"sample_every": 5, "overlap_draws": 1}, ["overlap_draws"]),
    "static sizes that nothing measures": ({"static_sizes": [4]}, ["static_sizes need minibs_draws"]),
    "a static size above n": ({"static_sizes": [41], "minibs_draws": 2}, ["batch_size 41 is above the 40 training examples"]),
    "unknown key of a change": ({"schedule": [{"step": 5, "rate": 1}]}, ["unknown key 'rate' in", "schedule.0"]),
    "a change of nothing": ({"schedule": [{"step": 5}]}, ["schedule.0: {'step': 5} is not of type object with keys, at least 2"]),
    "a change without a step": ({"schedule": [{"lr": 1, "batch_size": 4}]}, ["key 'step' is missing in", "schedule.0"]),
    "a change at the end": ({"schedule": [{"step": 15, "lr": 1}]}, ["schedule: step 15 is not before the end, 12 steps"]),
    "a change twice": ({"schedule": [{"step": 5, "lr": 1}] * 2}, ["schedule: step 5 does not come after step 5"]),
    "a change between measurements": (
        {"schedule": [{"step": 6, "lr": 1}]},
        ["schedule: step 6 is not a multiple of measure_every 5"],
    ),
    "a change to a batch above n": (
        {"schedule": [{"step": 5, "batch_size": 41}]},
        ["schedule: step 5: batch_size 41 is above the 40 training examples"],
    ),
    "a change to a negative step size": (
        {"schedule": [{"step": 5, "lr": -1}]},
        ["schedule.0.lr: -1 is not of type number above 0"],
    ),
    "a change to no number": ({"schedule": [{"step": 5, "lr": float("nan")}]}, ["schedule: lr: nan is not a finite number"]),
    "a change of the window's settings": (
        {"schedule": [{"step": 5, "lr": 1}], "window": 5, "window_every": 5},
        ["schedule: not together with windows"],
    ),
    "a schedule that is no list": ({"schedule": 3}, ["schedule: 3 is not"]),
    "an unknown optimizer": ({"optimizer": "rmsprop"}, ["optimizer: 'rmsprop' is not one of sgd, nesterov, adam"]),
    "momentum one": ({"momentum": 1}, ["momentum: 1 is not of type number at least 0 below 1"]),
    "Nesterov without momentum": ({"optimizer": "nesterov"}, ["optimizer nesterov needs momentum above 0"]),
    "a window of Adam": ({"optimizer": "adam", "window": 5, "window_every": 5}, ["optimizer adam: α and β"]),
    "the predicted dynamics of momentum": ({"momentum": 0.5, "coupled_steps": 2}, ["coupled_steps: the predicted dynamics"]),
    "seed among the settings": ({"seed": 3}, ["unknown key 'seed'"]),
}


@pytest.mark.parametrize("where", ["settings", "runs.only"])
@pytest.mark.parametrize(("change", "words"), SETTINGS.values(), ids=SETTINGS.keys())
def test_a_wrong_setting_is_refused_by_file_place_and_key(
    change: dict[str, Any], words: list[str], where: str, write_preset: Writer
) -> None:
    parts = {"settings": TINY | change} if where == "settings" else {"runs": {"only": change}}
    text = refusal(write_preset(**parts))
    assert "/mini.yaml: " in text
    assert where in text or "runs.only" in text  # what only the whole of a run contradicts is told of the run
    for part in words:
        assert part in text


PRESETS: dict[str, tuple[dict[str, Any], list[str]]] = {
    "unknown key": ({"stings": {}}, ["unknown key 'stings'", "did you mean 'settings'?"]),
    "no seeds": ({"seeds": None}, ["key 'seeds' is missing"]),
    "an empty list of seeds": ({"seeds": []}, ["seeds: [] is not"]),
    "a negative seed": ({"seeds": [-1]}, ["seeds.0: -1 is not of type integer at least 0"]),
    "a seed twice": ({"seeds": [1, 1]}, ["seeds: [1, 1] is not", "without repetition"]),
    "no runs": ({"runs": None}, ["key 'runs' is missing"]),
    "runs without any": ({"runs": {}}, ["runs: {} is not"]),
    "a run that is not a mapping": ({"runs": {"only": 3}}, ["runs.only: 3 is not of type object"]),
    "a run with a slash in its name": ({"runs": {"a/b": {}}, "notebooks": {"n": ["a/b"]}}, ["a/b"]),
    "a key nobody gives": ({"settings": {k: v for k, v in TINY.items() if k != "lr"}}, ["key 'lr' is missing in runs.only"]),
    "the notebooks of a preset of other runs": ({"notebooks": "smoke"}, ["notebooks.01_", "no runs named", "only"]),
    "a notebook of unknown runs": ({"notebooks": {"n": ["others"]}}, ["notebooks.n", "no runs named 'others'", "only"]),
    "another name than the file's": ({"name": "other"}, ["name is 'other'", "mini.yaml"]),
    "a name that is no folder": ({"name": "../up"}, ["name: '../up' is not"]),
}


@pytest.mark.parametrize(("change", "words"), PRESETS.values(), ids=PRESETS.keys())
def test_a_wrong_preset_is_refused_by_file_and_key(change: dict[str, Any], words: list[str], write_preset: Writer) -> None:
    text = refusal(write_preset(**change))
    assert "/mini.yaml: " in text
    for part in words:
        assert part in text


@pytest.mark.parametrize("content", ["", "- a\n- list\n", "just words"])
def test_a_file_that_is_no_mapping_is_refused_by_name(content: str, tmp_path: Path) -> None:
    (tmp_path / "mini.yaml").write_text(content)
    assert "/mini.yaml: " in refusal(tmp_path / "mini.yaml")


@pytest.mark.parametrize("content", [b"name: [unclosed", b"a: b: c", b"\xff\xfe\xfa", b"a: \x00"])
def test_a_file_that_is_no_yaml_is_refused_by_name(content: bytes, tmp_path: Path) -> None:
    (tmp_path / "mini.yaml").write_bytes(content)
    assert "/mini.yaml: not valid YAML" in refusal(tmp_path / "mini.yaml")


@pytest.mark.parametrize("name", ["nothing", "nowhere/nothing.yaml"])
def test_a_preset_that_is_not_there_is_named_with_those_that_are(name: str) -> None:
    text = refusal(name)
    assert f"no preset '{name}'" in text
    assert "digits" in text
    assert "smoke" in text


def test_a_notebook_that_a_preset_does_not_show_is_named_with_the_presets_that_do(write_preset: Writer) -> None:
    preset = load_preset(write_preset(notebooks={"07_minibatch_sharpness": ["only"]}))
    assert preset.entries_of("07_minibatch_sharpness") == ("only",)
    with pytest.raises(ConfigError, match=r"preset mini has no runs for 09_static_gap; these have: digits, eoss, smoke$"):
        preset.entries_of("09_static_gap")
    with pytest.raises(ConfigError, match=r"no runs for 99_nothing; these have: none$"):
        preset.entries_of("99_nothing")


@pytest.mark.parametrize("notebooks", ["smoke", None])
def test_a_preset_that_names_no_notebooks_draws_what_the_figures_say_of_it_or_of_another(
    notebooks: str | None, write_preset: Writer, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    path = tmp_path / "figures.yaml"
    path.write_text(f"{{90_toy: {{question: q, paper: [], runs: {{{notebooks or 'mini'}: [only], eoss: [mlp]}}}}}}")
    monkeypatch.setattr(figures, "FILE", path)
    assert load_preset(write_preset(notebooks=notebooks)).notebooks == {"90_toy": ("only",)}


def test_a_preset_without_any_figure_is_told_how_to_have_some(write_preset: Writer) -> None:
    assert "figures.yaml has no figures of mini: write `notebooks: digits`" in refusal(write_preset(notebooks=None))


INVALID: dict[str, dict[str, Any]] = {
    "a list of noise models": {"noise": ["sgd"]},
    "the word full": {"batch_size": "full"},
    "a list of batch sizes": {"batch_size": [8]},
    "a string": {"lr": "0.1"},
    "a batch above n": {"batch_size": 41},
    "a seed that is no integer": {"seed": "one"},
    "a negative seed": {"seed": -1},
    "a schedule that is no list": {"schedule": 3},
    "a change to the word full": {"batch_size": 8, "schedule": [{"step": 5, "batch_size": "full"}]},
}


@pytest.mark.parametrize("change", INVALID.values(), ids=INVALID.keys())
def test_a_configuration_built_in_python_is_checked_too(change: dict[str, Any]) -> None:
    with pytest.raises(ConfigError, match=next(iter(change))):
        RunConfig(**TINY | change)
