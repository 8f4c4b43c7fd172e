"""The figures' file is read whole or refused by key, and a figure is opened by its name."""

from __future__ import annotations

from pathlib import Path

import matplotlib as mpl
import pytest

from eosslib import figures, papers
from eosslib.errors import ConfigError
from eosslib.record import open_figure


@pytest.fixture(autouse=True)
def own_style():
    with mpl.rc_context():
        yield


ROW = {"question": "Why?", "paper": "[one]", "runs": "{smoke: [cnn-mse]}"}


def write(path: Path, name: str = "90_toy", **changes: str) -> Path:
    row = {key: value for key, value in (ROW | changes).items() if value}
    path.write_text(f"{name}:\n" + "".join(f"  {key}: {value}\n" for key, value in row.items()), encoding="utf-8")
    return path


@pytest.mark.parametrize(
    ("changes", "words"),
    [
        ({"qestion": "q"}, ["unknown key 'qestion'", "did you mean 'question'?"]),
        ({"question": ""}, ["key 'question' is missing in 90_toy"]),
        ({"paper": "one"}, ["90_toy.paper: 'one' is not of type array"]),
        ({"runs": "{}"}, ["90_toy.runs: {} is not"]),
        ({"runs": "{smoke: cnn}"}, ["90_toy.runs.smoke: 'cnn' is not of type array"]),
        ({"name": "toy"}, ["toy"]),
    ],
)
def test_a_wrong_row_is_refused_by_file_and_key(changes, words, tmp_path, monkeypatch):
    monkeypatch.setattr(figures, "FILE", write(tmp_path / "figures.yaml", **changes))
    with pytest.raises(ConfigError) as refused:
        figures.rows()
    for part in ["figures.yaml: ", *words]:
        assert part in str(refused.value)


def test_values_that_a_figure_is_held_against_are_the_papers():
    for figure in figures.rows().values():
        assert list(papers.named(figure.paper)) == list(figure.paper)


def test_a_figure_that_is_not_there_is_told_where_its_row_belongs():
    with pytest.raises(ConfigError, match=r"no figure '99_nothing': give it a row in .*figures\.yaml"):
        open_figure("99_nothing", "digits")


def test_an_opened_figure_knows_only_the_values_that_its_row_names(tmp_path, monkeypatch, write_preset):
    monkeypatch.setattr(figures, "FILE", write(tmp_path / "figures.yaml", runs="{smoke: []}"))
    record = open_figure("90_toy", write_preset())  # of toys and formulas, which are the same for every preset
    record.findings.number("a", "a", 1.0, paper="one")
    with pytest.raises(ValueError, match="no value of a paper is called 'zero'"):
        record.findings.number("b", "b", 0.0, paper="zero")
    assert (record.frame, record.source) == (None, "no runs")
