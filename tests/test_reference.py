"""The committed runs, the presets and the committed figures belong together."""

from __future__ import annotations

import json
import subprocess

import numpy as np
import pandas as pd
import pytest

from eosslib import analysis, config, papers, powerlaw, runs
from eosslib.gallery import BEGIN, END, scoreboard, write_results
from eosslib.probing import CARRIED_MISS
from eosslib.settings import RunConfig

REFERENCE, FIGURES = runs.ROOT / "data/reference", runs.ROOT / "figures"
PRESETS = sorted(path.name for path in REFERENCE.iterdir() if path.is_dir())


def shown_groups(preset: config.Preset) -> list[config.Group]:
    return preset.select([entry for entries in preset.notebooks.values() for entry in entries])


def committed(name: str) -> list[tuple[config.Group, RunConfig]]:
    """Groups and settings of the committed runs of a preset."""
    every = [(group, run) for group in shown_groups(config.load_preset(name)) for run in group.runs]
    return [(group, run) for group, run in every if runs.run_path(REFERENCE / name, group, run).is_file()]


def drawn_record(preset: str, name: str) -> dict:
    """Return the record of a figure, unless ``make all`` has drawn it anew from other runs than the committed ones."""
    record = json.loads((FIGURES / preset / f"{name}.json").read_text(encoding="utf-8"))
    if "freshly trained" in record.get("source", ""):
        pytest.skip("drawn from runs trained here")
    return record


def test_the_committed_figures_are_drawn_from_the_committed_runs():
    def git(*arguments: str) -> str:
        return subprocess.run(["git", "-C", str(runs.ROOT), *arguments], capture_output=True, text=True, check=True).stdout

    try:
        paths = git("ls-files", "figures/*/*.json").split()
    except (OSError, subprocess.CalledProcessError):
        pytest.skip("not a git checkout")
    records = {path: json.loads(git("show", f"HEAD:{path}")) for path in paths}
    shown = {f"figures/{preset}/{name}.json" for preset, name in drawn_figures()}
    assert shown <= set(records)
    assert [path for path in shown if " committed runs of preset " not in records[path]["source"]] == []


def test_the_digits_preset_is_whole():
    assert len(committed("digits")) == sum(len(group.runs) for group in shown_groups(config.load_preset("digits")))


@pytest.mark.parametrize("name", PRESETS)
class TestReference:
    def test_holds_runs_of_the_preset_with_just_its_settings(self, name):
        assert committed(name)
        for group, run in committed(name):
            runs.load(runs.run_path(REFERENCE / name, group, run), expect=run)

    def test_says_which_runs_of_the_preset_are_missing(self, name):
        preset, there = config.load_preset(name), {group.name for group, _ in committed(name)}
        for entries in preset.notebooks.values():
            groups = preset.select(entries)
            if any(group.name in there for group in groups):
                found = runs.collect(preset, entries, REFERENCE / name)
                lacking = [group for group in groups if group.name not in there]
                wholly = {group.entry for group in groups} - {name.split("/")[0] for name in there}
                assert all(f"all of {entry}" in found.missing for entry in wholly)
                assert all(group.name.split("/")[1] in found.missing for group in lacking if group.entry not in wholly)
                assert bool(found.missing) == (
                    len(found.frame.groupby(["entry", "batch_size", "noise", "seed"])) < sum(len(g.runs) for g in groups)
                )

    def test_holds_nothing_else(self, name):
        preset = config.load_preset(name)
        wanted = {runs.run_path(REFERENCE / name, g, r) for g in shown_groups(preset) for r in g.runs}
        assert {path for path in (REFERENCE / name).rglob("*") if path.is_file()} <= wanted

    def test_every_run_is_whole_and_says_where_it_comes_from(self, name):
        for group, wanted in committed(name):
            run = runs.load(runs.run_path(REFERENCE / name, group, wanted))
            measured, coupled = run.frame[run.frame.sharpness.notna()], wanted.steps - wanted.coupled_steps
            expected = [*range(0, coupled, wanted.measure_every), *([coupled] if wanted.coupled_steps else []), wanted.steps]
            assert measured.step.tolist() == expected
            assert run.provenance["git_commit"]
            assert "+changes" not in run.provenance["git_commit"]
            assert run.diverged_at is None
            assert measured.sharpness_residual.max() <= wanted.eig_tol
            if wanted.coupled_steps:
                assert run.frame[run.frame.coupling_error.notna()].step.tolist() == list(range(coupled, wanted.steps))

    def test_a_solve_from_a_random_vector_finds_the_sharpness_that_was_followed(self, name):
        columns = ["step", "sharpness", "sharpness_check", "sharpness_miss"]
        loaded = (runs.load(runs.run_path(REFERENCE / name, group, wanted)).frame for group, wanted in committed(name))
        checks = pd.concat([frame.reindex(columns=columns) for frame in loaded])
        checks = checks[checks.sharpness_check.notna() & (checks.step > 0)]
        now, before = checks[checks.sharpness_miss.notna()], checks[checks.sharpness_miss.isna()]
        assert ((now.sharpness_check / now.sharpness - 1).abs() < 1e-3).all()
        assert (now.sharpness_miss <= CARRIED_MISS).all()
        assert (before.sharpness_check <= before.sharpness * (1 + 1e-3)).all()
        missed = (before.sharpness == before.sharpness_check).mean()  # where it had been, the check's value was taken
        assert len(before) == 0 or 0 < missed < {"cifar10": 0.0055, "eoss": 0.0125}[name]

    def test_batch_sharpness_and_minibs_have_errors_below_those_known(self, name):
        coarsest = {"cifar10/fc-tanh": 0.012, "cifar10/fc-relu": 0.015, "cifar10": 0.02, "eoss": 0.11, "digits": 0.36}
        measured = 0
        for group, wanted in committed(name):
            frame = runs.load(runs.run_path(REFERENCE / name, group, wanted)).frame
            for quantity in {"batch_sharpness", "minibatch_sharpness"} & set(frame):
                relative = (frame[f"{quantity}_se"] / frame[quantity].abs()).dropna()
                measured += len(relative)
                assert (relative <= coarsest.get(f"{name}/{group.entry}", coarsest[name])).all(), (group.name, quantity)
        assert measured

    def test_the_committed_figures_show_these_runs(self, name):
        preset = config.load_preset(name)
        if "02_gap_vs_batch_size" not in preset.notebooks:
            pytest.skip("shows other figures")
        record = drawn_record(name, "02_gap_vs_batch_size")
        stated = {finding["key"]: finding for finding in record["findings"]}
        frame = runs.collect(preset, ("fc-tanh",), REFERENCE / name).frame
        gaps = analysis.gaps(analysis.plateaus(frame))
        means = analysis.over_seeds(gaps, "gap", ["batch_size"])
        theirs = papers.gaps(frame)
        means = means[means.batch_size.isin(theirs.batch_size) | theirs.empty]
        fit = powerlaw.fit(means.batch_size, means["mean"])
        assert stated["gap.slope.fc_tanh"]["ours"] == pytest.approx(fit.slope, rel=1e-9)


def drawn_figures() -> list[tuple[str, str]]:
    """Presets and notebooks of the committed figures that show runs."""
    notebooks = {name: config.load_preset(name).notebooks for name in PRESETS}
    return [(name, path.stem) for name in PRESETS for path in sorted((FIGURES / name).glob("*.json")) if notebooks[name][path.stem]]


def test_every_figure_of_the_digits_is_committed():
    shown = {name for name, entries in config.load_preset("digits").notebooks.items() if entries}
    assert {name for preset, name in drawn_figures() if preset == "digits"} == shown


@pytest.mark.parametrize(("preset", "name"), drawn_figures())
def test_the_committed_runs_give_the_committed_numbers_and_keep_every_claim(preset, name, tmp_path):
    import papermill

    committed = drawn_record(preset, name)
    parameters = {"preset": str(config.preset_path(preset)), "runs_folder": str(REFERENCE / preset)}
    options = {"cwd": runs.ROOT / "notebooks", "kernel_name": "python3", "progress_bar": False}
    path = runs.ROOT / f"notebooks/{name}.ipynb"
    papermill.execute_notebook(path, tmp_path / path.name, parameters | {"figures_folder": str(tmp_path)}, **options)
    drawn = json.loads((tmp_path / f"{name}.json").read_text(encoding="utf-8"))
    assert [(f["key"], f["text"]) for f in drawn["findings"]] == [(f["key"], f["text"]) for f in committed["findings"]]
    assert {**drawn, "findings": None} == {**committed, "findings": None}


@pytest.mark.parametrize("name", PRESETS)
def test_the_committed_figures_name_the_runs_they_lack_and_the_table_has_their_numbers(name, tmp_path):
    preset, drawn = config.load_preset(name), sorted((FIGURES / name).glob("*.json"))
    for path in drawn:
        record = json.loads(path.read_text(encoding="utf-8"))
        if entries := preset.notebooks[path.stem]:
            assert record.get("missing", "") == runs.collect(preset, entries, REFERENCE / name).missing, path.name
        (tmp_path / path.name).write_text(json.dumps(record))
    assert write_results(tmp_path, preset).read_text("utf-8") == (FIGURES / name / "results.md").read_text("utf-8")


def test_there_are_three_seeds_and_eleven_batch_sizes_for_the_gap_on_digits():
    frame = runs.collect(config.load_preset("digits"), ("fc-tanh",), REFERENCE / "digits").frame
    sgd = frame[~frame.full_batch]
    assert sgd.seed.nunique() >= 3
    assert sgd.batch_size.nunique() == 11
    assert np.isfinite(sgd.sharpness).all()


def test_the_scoreboard_of_the_readme_says_what_the_records_say():
    for path in FIGURES.glob("*/*.json"):
        drawn_record(path.parent.name, path.stem)
    readme = (runs.ROOT / "README.md").read_text(encoding="utf-8")
    assert readme.split(BEGIN)[1].split(END)[0].strip() == scoreboard(FIGURES)


def test_the_reference_is_small():
    assert sum(path.stat().st_size for path in REFERENCE.rglob("*.parquet")) < 50e6
