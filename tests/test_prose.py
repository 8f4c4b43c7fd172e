"""Texts take their numbers from findings, choose words by them, and refuse to speak of what was not found."""

from __future__ import annotations

import pytest

from eosslib import papers, prose
from eosslib.errors import ConfigError
from eosslib.findings import Findings

PAPERS = {"slope": papers.Value("slope", "−1.27", "arXiv:2604.21016", "figure 2")}


@pytest.fixture
def found() -> Findings:
    found = Findings(PAPERS)
    found.number("gap.slope.fc-tanh", "slope", -0.938, 0.071)
    found.number("gap.slope.cnn", "slope", float("nan"))
    found.number("sizes", None, 11)
    found.number("gap.items", None, 3)
    return found


@pytest.mark.parametrize(
    ("text", "filled"),
    [
        ("slope {{ gap.slope.fc_tanh }}, {{ sizes }} sizes", "slope −0.938 ± 0.071, 11 sizes"),
        ("{{ paper.slope }}", "−1.27"),
        ("{{ gap.slope.fc_tanh | digits(1) }} and {{ gap.slope.fc_tanh | percent }} %", "−0.9 and −94 %"),
        ("{% for e in ['fc-tanh'] %}{{ found('gap.slope.' ~ e) }}{% endfor %}", "−0.938 ± 0.071"),
        ("{{ has('gap.slope.fc-tanh') }} {{ has('gap.slope.cnn') }} {{ has('gap.slope.lstm') }}", "True False False"),
        ("{{ gap.items }}", "3"),
        ("{{ word }}", "more"),
    ],
)
def test_a_text_is_filled_with_findings(found, text, filled):
    assert prose.fill(text, found, PAPERS, word="more") == filled


@pytest.mark.parametrize("text", ["{{ gap.slope.fc_relu }}", "{{ found('gap.slope.lstm') }}", "{{ slope }}", "{{ paper.other }}"])
def test_a_text_that_asks_for_what_was_not_found_is_refused(found, text):
    with pytest.raises(ValueError, match="a finding that is not there"):
        prose.fill(text, found, PAPERS)


def test_a_text_that_is_no_template_is_refused_with_its_line(found):
    with pytest.raises(ValueError, match="line 2"):
        prose.fill("\n{% if %}", found, PAPERS)


@pytest.mark.parametrize(("one", "word"), [(1.3, "above"), (1.1, "at"), (0.9, "at"), (0.7, "below")])
def test_a_comparison_calls_alike_what_lies_within_two_of_the_combined_errors(one, word):
    found = Findings({})
    found.number("one", None, one, 0.06)
    found.number("other", None, 1.0, 0.08)
    assert prose.compare(found["one"], found["other"], "below", "at", "above") == word


def test_every_value_of_the_papers_has_its_source_and_place():
    assert len(papers.values()) > 20
    for value in papers.values().values():
        assert value.source == "theory" or value.source.startswith("arXiv:")
        assert value.says
        assert value.where


@pytest.mark.parametrize(
    "text", ["a: {x: {says: '1'}}", "a: {x: {says: 1, where: b}}", "a: {x: {says: '1', where: b}}\nb: {x: {says: '1', where: b}}"]
)
def test_a_value_without_words_or_place_or_that_stands_twice_is_refused(tmp_path, monkeypatch, text):
    (tmp_path / "values.yaml").write_text(text)
    monkeypatch.setattr(papers, "FILE", tmp_path / "values.yaml")
    with pytest.raises(ConfigError, match="'x'"):
        papers.values.__wrapped__()
