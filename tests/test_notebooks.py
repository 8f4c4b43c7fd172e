"""The notebooks keep to the house rules: small, parameterised, without outputs, numerics or settings."""

from __future__ import annotations

import re
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import matplotlib.pyplot as plt
import nbformat
import pandas as pd
import pytest
from helpers import ROOT

from eosslib import figures, runs
from eosslib.config import PRESET_FOLDER
from eosslib.record import Record

NOTEBOOKS = sorted((ROOT / "notebooks").glob("*.ipynb"))


def code_cells(path: Path) -> list:
    return [cell for cell in nbformat.read(path, 4).cells if cell.cell_type == "code"]


def is_text(cell) -> bool:
    return "text" in cell.metadata.get("tags", [])


@pytest.mark.parametrize("path", NOTEBOOKS, ids=lambda p: p.stem)
class TestNotebook:
    def test_is_valid_and_stored_without_outputs(self, path):
        nbformat.validate(nbformat.read(path, 4))
        assert all(not cell.outputs and cell.execution_count is None for cell in code_cells(path))

    def test_has_one_parameters_cell_whose_defaults_save_nothing(self, path):
        tagged = [cell for cell in code_cells(path) if "parameters" in cell.metadata.get("tags", [])]
        assert len(tagged) == 1
        values: dict = {}
        exec(tagged[0].source, values)
        assert values["preset"] in {p.stem for p in PRESET_FOLDER.glob("*.yaml")}
        assert values["runs_folder"] is None
        assert values["figures_folder"] is None

    def test_is_small_and_defines_nothing(self, path):
        sources = [cell.source.splitlines() for cell in code_cells(path) if not is_text(cell)]
        assert max(map(len, sources)) <= 15
        assert sum(map(len, sources)) <= 110  # formatted: a line holds one thought, so there are more of them
        assert max(len(line) for lines in sources for line in lines) <= 110  # what JupyterLab shows without scrolling
        assert not any(line.lstrip().startswith(("def ", "class ")) for lines in sources for line in lines)

    def test_ends_by_saying_what_was_seen_saving_its_figure_and_checking_its_claims(self, path):
        cells = code_cells(path)
        assert sum(is_text(cell) for cell in cells) >= 1
        assert "record.check()" in cells[-1].source
        assert sum("record.save(figures_folder, fig, texts" in cell.source for cell in cells) == 1
        for cell in cells:  # a page shows what it says, not its templates
            if "texts = {" in cell.source or "record.save(" in cell.source:
                assert cell.metadata.get("tags") == ["record"]

    def test_a_text_shows_its_filled_words_and_hides_its_template(self, path):
        for cell in filter(is_text, code_cells(path)):
            assert cell.source.startswith("record.say(")
            assert cell.metadata["jupyter"] == {"source_hidden": True}

    def test_opens_the_figure_of_its_own_name_which_the_default_preset_draws(self, path):
        assert sum(f'open_figure("{path.stem}", preset' in cell.source for cell in code_cells(path)) == 1
        shown = figures.rows()[path.stem].runs
        # Toys and formulas are the same for every preset: they are drawn once, with the default one.
        if shown["digits"]:
            assert "smoke" in shown
            if path.stem < "20":  # a figure of the papers
                assert {"cifar10", "eoss"} & set(shown)

    def test_names_every_value_of_a_paper_that_its_row_holds_it_against(self, path):
        source = "\n".join(cell.source for cell in code_cells(path))
        assert [name for name in figures.rows()[path.stem].paper if not re.search(rf"\b{name}\b", source)] == []


def test_every_figure_has_its_notebook_and_presets_that_are_there():
    assert list(figures.rows()) == [path.stem for path in NOTEBOOKS]
    presets = {path.stem for path in PRESET_FOLDER.glob("*.yaml")}
    assert set().union(*(figure.runs for figure in figures.rows().values())) == presets


def gradient_descent_diverged(frame: pd.DataFrame) -> pd.DataFrame:
    return frame.assign(diverged=frame.diverged | frame.full_batch)


def largest_batch_diverged(frame: pd.DataFrame) -> pd.DataFrame:
    largest = frame.batch_size == frame.batch_size[~frame.full_batch].max()
    return frame.assign(diverged=frame.diverged | largest)


def one_seed(frame: pd.DataFrame) -> pd.DataFrame:
    return frame[frame.seed == frame.seed.min()]


def cross_entropy_at_four_times_the_step_size(frame: pd.DataFrame) -> pd.DataFrame:
    return frame.assign(threshold=frame.threshold.where(frame.loss_name == "mse", frame.threshold / 4))


def in_the_papers_set_up(frame: pd.DataFrame) -> pd.DataFrame:
    """The digits' runs as if they were those of the gap paper; its CNN is another one than the digits'."""
    threshold, n = 200.0, 5000
    return frame.assign(
        dataset="cifar10",
        train_size=n,
        lr=2 / threshold,
        threshold=threshold,
        sharpness=frame.sharpness * threshold / frame.threshold,
        batch_size=frame.batch_size.mask(frame.full_batch, n),
        model=frame.model.replace("cnn", "cnn-tanh"),
    )


def values_of(name: str, change: Callable[[pd.DataFrame], pd.DataFrame], monkeypatch: pytest.MonkeyPatch) -> dict:
    """Run the cells of a notebook on the committed digits runs, changed, and return its names and, under ``made``, its claims."""
    collect, claim, made = runs.collect, Record.claim, {}

    def changed(*args: object) -> runs.Collection:
        found = collect(*args)
        return replace(found, frame=change(found.frame))

    monkeypatch.setattr(runs, "collect", changed)
    monkeypatch.setattr(Record, "claim", lambda record, claims: (made.update(claims), claim(record, claims)))
    monkeypatch.setattr(Record, "check", lambda record: [])
    (path,) = (path for path in NOTEBOOKS if path.stem.startswith(name))
    values: dict = {}
    for cell in code_cells(path):
        exec(cell.source, values)
        if "parameters" in cell.metadata.get("tags", []):
            values |= {"preset": "digits", "runs_folder": str(ROOT / "data/reference/digits")}
    plt.close("all")
    return {**values, "made": made}


def claims_of(name: str, change: Callable[[pd.DataFrame], pd.DataFrame], monkeypatch: pytest.MonkeyPatch) -> dict[str, object]:
    return values_of(name, change, monkeypatch)["made"]


@pytest.mark.filterwarnings("ignore::UserWarning")  # of Matplotlib, about empty panels
@pytest.mark.parametrize("change", [gradient_descent_diverged, largest_batch_diverged, one_seed])
@pytest.mark.parametrize("name", ["01", "03", "05", "06", "07", "10", "21", "22"])
def test_a_notebook_draws_what_there_is_where_runs_diverged_or_are_few(name, change, monkeypatch):
    if (name, change) == ("06", gradient_descent_diverged):
        pytest.skip("half of the figure is gradient descent's")
    claims = claims_of(name, change, monkeypatch)
    if change is gradient_descent_diverged:
        needs_gd = [claim for claim in claims if "GD " in claim or claim.startswith(("momentum widens", "full batch trains"))]
        assert not any(claims[claim] is not pd.NA and claims[claim] for claim in needs_gd), needs_gd


def test_without_gradient_descent_there_is_no_gap_to_draw_and_the_notebook_says_so(monkeypatch):
    with pytest.raises(AssertionError, match="gradient descent"):
        claims_of("02", gradient_descent_diverged, monkeypatch)


def test_each_loss_is_held_against_its_own_threshold(monkeypatch):
    claim = "with cross-entropy the mean peak lies below 2/η"
    assert claims_of("03", lambda frame: frame, monkeypatch)[claim]
    assert not claims_of("03", cross_entropy_at_four_times_the_step_size, monkeypatch)[claim]


@pytest.mark.parametrize(("name", "shown"), [("01", {"fc_tanh", "cnn_mse"}), ("03", {"cnn_mse", "cnn_ce"})])
def test_each_curve_of_the_papers_set_up_is_drawn_and_has_its_deviation(name, shown, monkeypatch):
    values = values_of(name, in_the_papers_set_up, monkeypatch)
    keys = {key.split(".")[1] for key in values["record"].findings if key.endswith(".gd.deviation")}
    assert keys == shown
    for ax in values["fig"].axes:
        assert "the paper's" in {line.get_label() for line in ax.get_lines()}


def test_the_gaps_of_the_papers_set_up_are_fitted_over_the_papers_batch_sizes(monkeypatch):
    values = values_of("02", in_the_papers_set_up, monkeypatch)
    for fit in values["whole"].values():
        assert set(fit.x) == {50, 75, 100, 150, 200, 300, 750}  # those of the digits' that are among the eleven


@pytest.mark.parametrize("name", ["01", "02", "03"])
def test_runs_of_another_set_up_have_nothing_of_the_papers_beside_them(name, monkeypatch):
    values = values_of(name, lambda frame: frame, monkeypatch)
    assert not [key for key in values["record"].findings if key.startswith(("curve.", "gap.slope_to_750"))]
    assert not [line for ax in values["fig"].axes for line in ax.get_lines() if str(line.get_label()).startswith("the paper's")]
