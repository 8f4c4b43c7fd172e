"""Pages, tables and README's scoreboard show what the records say."""

from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path

import pytest

from eosslib import figures, gallery
from eosslib.config import Preset
from eosslib.errors import RunFileError
from eosslib.figures import Figure

PRESET = Preset("digits", "digits & more", (0, 1), {}, {"01_a": ("x",), "02_b": ("x",)})


ROWS = {name: Figure(name, f"Why {name}?", ("gap_slope",), {"digits": ("x",)}) for name in PRESET.notebooks}


@pytest.fixture(autouse=True)
def two_figures(monkeypatch):
    monkeypatch.setattr(figures, "rows", lambda: ROWS)


def write(folder: Path, name: str, **changes: object) -> None:
    finding = {"key": "a", "quantity": "S < 2/η", "ours": 0.97, "error": 0.01, "text": "0.970 ± 0.010", "paper": "≈ 1"}
    record = {"name": name, "title": f"Title {name}", "caption": "b < n", "answer": "S = 0.97", "expected": "1"}
    record |= {"findings": [finding, finding | {"quantity": None, "text": "hidden"}], "claims": {"it falls": "holds"}} | changes
    folder.mkdir(exist_ok=True)
    (folder / f"{name}.json").write_text(json.dumps(record), encoding="utf-8")


def test_the_index_shows_every_figure_with_caption_and_numbers_and_escapes_text(tmp_path):
    for name in PRESET.notebooks:
        write(tmp_path, name)
    (tmp_path / "01_a.html").write_text("page")
    page = gallery.write_index(tmp_path, PRESET).read_text()
    for part in (
        "Title 01_a",
        "Title 02_b",
        "Why 01_a?",
        "−1.27 (arXiv:2604.21016, figure 2",
        "b &lt; n",
        "S &lt; 2/η",
        "0.970 ± 0.010",
        "≈ 1",
        "01_a.png",
        'href="01_a.html"',
    ):
        assert part in page
    assert 'href="02_b.html"' not in page
    assert "hidden" not in page


def test_further_figures_of_a_page_are_linked_from_the_index(tmp_path):
    write(tmp_path, "01_a", more=["mlp", "cnn"])
    assert '<a href="01_a-mlp.png">mlp</a><a href="01_a-cnn.png">cnn</a>' in gallery.write_index(tmp_path, PRESET).read_text()


def test_an_index_without_figures_is_refused(tmp_path):
    with pytest.raises(RunFileError, match="holds no figures"):
        gallery.write_index(tmp_path, PRESET)


def test_an_index_names_the_notebooks_that_are_not_drawn_yet(tmp_path):
    write(tmp_path, "01_a")
    assert "because their runs are not there: 02_b." in gallery.write_index(tmp_path, PRESET).read_text()
    assert "because their runs" not in gallery.write_index(tmp_path, replace(PRESET, notebooks={"01_a": ("x",)})).read_text()


def test_index_and_table_name_the_claims_that_do_not_hold(tmp_path):
    write(tmp_path, "01_a", claims={"it falls": "does not hold", "it rises": "holds"})
    for path in (gallery.write_index(tmp_path, PRESET), gallery.write_results(tmp_path, PRESET)):
        assert "does not hold: it falls" in path.read_text()
        assert "it rises" not in path.read_text()


def test_the_table_of_results_has_a_row_a_number_and_names_what_is_missing(tmp_path):
    finding = {"key": "a", "quantity": "|cos|", "ours": 2.0, "error": None, "text": "2", "paper": "–"}
    write(tmp_path, "01_a", findings=[finding])
    write(tmp_path, "02_b", missing="x full (seed 1)")
    text = gallery.write_results(tmp_path, PRESET).read_text()
    rows = [line for line in text.splitlines() if line.startswith("| ")][1:]
    assert rows == [r"| Title 01_a | \|cos\| | 2 | – |", "| Title 02_b | S < 2/η | 0.970 ± 0.010 | ≈ 1 |"]
    assert "- Title 02_b: not trained yet are x full (seed 1)." in text
    assert "- Title 01_a: not trained" not in text


@pytest.mark.parametrize(
    ("words", "sign"), [(["holds", "holds"], "✔"), (["holds", "does not hold"], "◐"), (["not measured", "does not hold"], "✘")]
)
def test_a_verdict_says_whether_all_some_or_no_claims_hold(words, sign):
    assert gallery.verdict({"claims": dict(enumerate(words))}) == sign


def test_the_scoreboard_has_a_row_a_figure_and_the_answers_of_every_preset_side_by_side(tmp_path, monkeypatch):
    monkeypatch.setattr(gallery, "load_preset", lambda name: replace(PRESET, name=name))
    for preset, answer in (("digits", "S = 1"), ("cifar10", "S = 2")):
        write(tmp_path / preset, "01_a", answer=answer, expected=preset)
    write(tmp_path / "eoss", "02_b", claims={"it falls": "does not hold"})
    assert gallery.scoreboard(tmp_path).splitlines() == [
        "| figure | digits | CIFAR-10 | the paper, or theory |",
        "|---|---|---|---|",
        "| 1 [Title 01_a](notebooks/01_a.ipynb) | ✔ S = 1 | ✔ S = 2 | cifar10 |",
        "| 2 [Title 02_b](notebooks/02_b.ipynb) |  | ✘ S = 0.97 | 1 |",
    ]


def test_the_scoreboard_replaces_the_one_before_and_nothing_else(tmp_path):
    readme = tmp_path / "README.md"
    readme.write_text(f"above\n{gallery.BEGIN}\nold\n{gallery.END}\nbelow\n")
    assert gallery.write_readme(readme, "new").read_text() == f"above\n{gallery.BEGIN}\nnew\n{gallery.END}\nbelow\n"


def test_a_readme_without_a_place_for_the_scoreboard_is_refused(tmp_path):
    (tmp_path / "README.md").write_text("text")
    with pytest.raises(RunFileError, match="no place for the scoreboard"):
        gallery.write_readme(tmp_path / "README.md", "new")


def test_the_site_links_the_presets_that_are_drawn(tmp_path):
    (tmp_path / "digits").mkdir()
    (tmp_path / "digits/index.html").write_text("page")
    page = gallery.write_site(tmp_path, [PRESET, replace(PRESET, name="eoss")]).read_text()
    assert 'href="digits/index.html"' in page
    assert "eoss/" not in page
