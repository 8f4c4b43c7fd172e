"""The committed runs, the presets and the committed figures belong together."""

from __future__ import annotations

import json

import numpy as np
import pytest

from eosslib import analysis, config, runs

REFERENCE = runs.ROOT / "data/reference"
PRESETS = sorted(path.name for path in REFERENCE.iterdir() if path.is_dir())


def shown_groups(preset: config.Preset) -> list[config.Group]:
    return preset.select([entry for entries in preset.notebooks.values() for entry in entries])


@pytest.mark.parametrize("name", PRESETS)
class TestReference:
    def test_holds_every_run_of_the_preset_with_just_its_settings(self, name):
        preset = config.load_preset(name)
        for group in shown_groups(preset):
            for run in group.runs:
                runs.load(runs.run_path(REFERENCE / name, group, run), expect=run)

    def test_holds_nothing_else(self, name):
        preset = config.load_preset(name)
        wanted = {runs.run_path(REFERENCE / name, g, r) for g in shown_groups(preset) for r in g.runs}
        assert {path for path in (REFERENCE / name).rglob("*") if path.is_file()} == wanted

    def test_every_run_is_whole_and_says_where_it_comes_from(self, name):
        preset = config.load_preset(name)
        for group in shown_groups(preset):
            for wanted in group.runs:
                run = runs.load(runs.run_path(REFERENCE / name, group, wanted))
                assert run.frame.step.tolist() == [*range(0, wanted.steps, wanted.measure_every), wanted.steps]
                assert run.provenance["git_commit"]
                assert "+changes" not in run.provenance["git_commit"]
                assert run.diverged_at is None
                assert run.frame.sharpness_residual.max() <= wanted.eig_tol

    def test_the_committed_figures_show_these_runs(self, name):
        preset = config.load_preset(name)
        record = json.loads((runs.ROOT / "figures" / name / "02_gap_vs_batch_size.json").read_text(encoding="utf-8"))
        stated = {headline["quantity"].split(" (R²")[0]: headline for headline in record["headlines"]}
        frame = runs.collect(preset, ("fc-tanh",), REFERENCE / name)
        gaps = analysis.gaps(analysis.plateaus(frame))
        means = analysis.over_seeds(gaps, "gap", ["batch_size"])
        fit = analysis.fit_power_law(means.batch_size, means["mean"])
        assert stated["slope of the gap, FC-tanh"]["ours"] == pytest.approx(fit.slope, rel=1e-9)

    def test_there_are_three_seeds_and_eleven_batch_sizes_for_the_gap(self, name):
        frame = runs.collect(config.load_preset(name), ("fc-tanh",), REFERENCE / name)
        sgd = frame[~frame.full_batch]
        assert sgd.seed.nunique() >= 3
        assert sgd.batch_size.nunique() == 11
        assert np.isfinite(sgd.sharpness).all()


def test_the_readme_states_the_numbers_of_the_committed_figures():
    readme = (runs.ROOT / "README.md").read_text(encoding="utf-8").replace("−", "-")
    for record in sorted((runs.ROOT / "figures/digits").glob("*.json")):
        headlines = json.loads(record.read_text(encoding="utf-8"))["headlines"]
        assert any(headline["text"] in readme for headline in headlines), record.name


def test_the_reference_is_small():
    assert sum(path.stat().st_size for path in REFERENCE.rglob("*.parquet")) < 50e6
