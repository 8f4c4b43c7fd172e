"""A figure's record is written whole, says what its runs bear out, and insists on its claims where all runs are there."""

from __future__ import annotations

import json

import matplotlib.pyplot as plt
import numpy as np
import pandas as pd
import pytest

from eosslib.config import Preset
from eosslib.figures import Figure
from eosslib.record import Record
from eosslib.runs import Collection

TEXTS = {"title": "Gap", "caption": "What is seen.", "answer": "slope {{ slope }}", "expected": "{{ paper.gap_slope }}"}
RUN = {
    "model": "cnn",
    "depth": 2,
    "loss_name": "mse",
    "optimizer": "sgd",
    "momentum": 0.0,
    "lr": 0.05,
    "steps": 2000,
    "measure_every": 50,
    "seed": 0,
    "batch_size": 2000,
    "noise": "sgd",
    "diverged": False,
    "entry": "cnn",
}


FIGURE = Figure("02_x", "How does the gap fall?", ("gap_slope",), {"digits": ("x",)})


@pytest.fixture(autouse=True)
def close_figures():
    yield
    plt.close("all")


def preset(claims: bool = True) -> Preset:
    return Preset("digits", "", (0,), {}, {"02_x": ("x",)}, claims)


def found(missing: str = "") -> Collection:
    return Collection(pd.DataFrame([RUN]), "2 committed runs", missing)


@pytest.fixture
def record() -> Record:
    record = Record(FIGURE, preset())
    record.findings.number("slope", "slope", -0.9412, 0.0213, "gap_slope")
    record.claim({"it falls": np.True_})
    return record


def written(record: Record, folder, **changes: str) -> dict:
    path = record.save(folder, plt.figure(), TEXTS | changes)[-1]
    return json.loads(path.read_text(encoding="utf-8"))


def test_a_saved_figure_is_a_png_a_pdf_and_a_record(record, tmp_path):
    paths = record.save(tmp_path, plt.figure(), TEXTS)
    assert [p.name for p in paths] == ["02_x.png", "02_x.pdf", "02_x.json"]
    assert paths[0].read_bytes().startswith(b"\x89PNG")
    assert paths[1].read_bytes().startswith(b"%PDF")


def test_a_record_has_findings_texts_and_claims(record, tmp_path):
    assert written(record, tmp_path) == {
        "name": "02_x",
        "title": "Gap",
        "caption": "What is seen.",
        "answer": "slope −0.941 ± 0.021",
        "expected": "−1.27",
        "findings": [
            {"key": "slope", "quantity": "slope", "ours": -0.9412, "error": 0.0213, "text": "−0.941 ± 0.021", "paper": "−1.27"}
        ],
        "claims": {"it falls": "holds"},
    }


def test_a_record_is_strict_json_where_one_seed_leaves_no_error(record, tmp_path):
    record.findings.number("a", "a", -0.94, float("nan"))
    record.findings.number("b", "b", float("nan"))
    rows = {row["key"]: (row["ours"], row["error"]) for row in written(record, tmp_path)["findings"]}
    assert (rows["a"], rows["b"]) == ((-0.94, None), (None, None))


def test_a_records_numbers_have_no_digits_that_another_processor_rounds_otherwise(record, tmp_path):
    record.findings.number("third", "a", 1 / 3, 2 / 3)
    row = written(record, tmp_path)["findings"][-1]
    assert (row["ours"], row["error"]) == (0.3333333333, 0.6666666667)


def test_a_caption_is_one_line_and_ends_with_the_runs_settings_and_what_is_missing(tmp_path):
    record = Record(FIGURE, preset(), found("x full (seed 1)"))
    record.claim({"it falls": False})
    made = written(record, tmp_path, caption="\n    What is seen,\n    and what else.\n", answer="", expected="")
    settings = "CNN, squared error: η = 0.05, 2,000 steps, measured every 50. One seed."
    assert made["caption"] == f"What is seen, and what else. {settings} Reduced: not trained yet are x full (seed 1)."
    assert (made["missing"], made["source"]) == ("x full (seed 1)", "2 committed runs")


def test_further_figures_of_a_page_are_written_beside_it(record, tmp_path):
    paths = record.save(tmp_path, plt.figure(), TEXTS, {"mlp": plt.figure(), "cnn": plt.figure()})
    stems = ("02_x", "02_x-mlp", "02_x-cnn")
    assert [p.name for p in paths] == [f"{stem}.{kind}" for stem in stems for kind in ("png", "pdf")] + ["02_x.json"]
    assert json.loads(paths[-1].read_text())["more"] == ["mlp", "cnn"]


def test_without_a_folder_nothing_is_written(record, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    assert record.save(None, plt.figure(), TEXTS) == []
    assert list(tmp_path.iterdir()) == []


def test_a_figure_without_one_of_its_texts_is_refused(record, tmp_path):
    with pytest.raises(ValueError, match="title, caption, answer and expected"):
        record.save(tmp_path, plt.figure(), {"title": "Gap"})


def test_a_text_is_shown_filled(record):
    record.findings.number("sizes", None, 11)
    assert record.say("{{ sizes }} sizes of {{ preset }}").data == "11 sizes of digits"


@pytest.mark.parametrize("boolean", [bool, np.bool_])
def test_a_claim_that_does_not_hold_stops_the_notebook(record, boolean):
    record.claim({"one is more than two": boolean(1 > 2)})
    with pytest.raises(AssertionError, match="does not hold: one is more than two"):
        record.check()


def test_a_claim_that_was_not_measured_stops_the_notebook(record):
    record.claim({"a is more than b": pd.NA})
    with pytest.raises(AssertionError, match="not measured: a is more than b"):
        record.check()


@pytest.mark.parametrize("open_record", [lambda: Record(FIGURE, preset(False)), lambda: Record(FIGURE, preset(), found("x"))])
def test_a_preset_that_is_exempt_or_lacks_runs_says_what_does_not_hold_and_goes_on(open_record):
    record = open_record()
    record.claim({"two is more than one": 2 > 1, "one is more than two": 1 > 2})
    assert record.check() == ["holds: two is more than one", "does not hold: one is more than two"]


def test_a_figure_that_claims_nothing_or_something_twice_is_refused(record):
    with pytest.raises(ValueError, match="claims nothing"):
        Record(FIGURE, preset()).check()
    with pytest.raises(ValueError, match="claimed twice: it falls"):
        record.claim({"it falls": False})
