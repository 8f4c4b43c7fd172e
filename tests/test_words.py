"""No measured number is typed by hand: decimals in what a reader reads come from records or are the papers' own."""

from __future__ import annotations

import ast
import re
from pathlib import Path

import nbformat
import pytest
from helpers import ROOT

from eosslib import papers
from eosslib.gallery import BEGIN, END

NOTEBOOKS = sorted((ROOT / "notebooks").glob("*.ipynb"))
DECIMAL = re.compile(r"−?\d[\d,]*\.\d+")
NO_PROSE = (
    r"```.*?```",  # code
    r"`[^`]*`",
    r"\{\{.*?\}\}",  # what a template fills in
    r"\{%.*?%\}",
    r"\]\([^)]*\)",  # where a link leads
    r"arXiv:\d+\.\d+",
    r"(lemma|proposition|theorem|definition|§) ?\d+\.\d+",  # where it stands in a paper
)


def decimals(text: str) -> set[str]:
    """The decimal numbers of a text that a reader takes for something measured."""
    for pattern in NO_PROSE:
        text = re.sub(pattern, " ", text, flags=re.DOTALL)
    return set(DECIMAL.findall(text))


def stated_by_papers() -> set[str]:
    return set().union(*(DECIMAL.findall(value.says) for value in papers.values().values()))


def words(path: Path) -> str:
    """What a notebook tells a reader: its Markdown, its texts, and its figure's title, caption, answer and what was expected."""
    said = []
    for cell in nbformat.read(path, 4).cells:
        if cell.cell_type == "markdown":
            said.append(cell.source)
            continue
        tree = ast.parse(cell.source)
        told = [node.value for node in tree.body if isinstance(node, ast.Assign) and ast.unparse(node.targets[0]) == "texts"]
        for node in [tree] if "text" in cell.metadata.get("tags", []) else told:
            said += [part.value for part in ast.walk(node) if isinstance(part, ast.Constant) and isinstance(part.value, str)]
    return "\n\n".join(said)


@pytest.mark.parametrize("path", NOTEBOOKS, ids=lambda p: p.stem)
def test_a_notebook_types_no_decimal_but_the_papers(path):
    assert decimals(words(path)) - stated_by_papers() == set()


@pytest.mark.parametrize("path", [ROOT / "README.md", *sorted((ROOT / "docs").glob("*.md"))], ids=lambda p: p.stem)
def test_a_page_for_readers_types_no_decimal_but_the_papers(path):
    text = re.sub(f"{BEGIN}.*{END}", "", path.read_text(encoding="utf-8"), flags=re.DOTALL)
    assert decimals(text) - stated_by_papers() == set()


@pytest.mark.parametrize(
    ("text", "found"),
    [
        ("slope −1.34 ± 0.02", {"−1.34", "0.02"}),
        ("{{ gap.slope }} and `0.5`, [arXiv:2604.21016](https://a/2.5)", set()),
        ("b = 1,024.5", {"1,024.5"}),
        ("{% if x < 0.5 %}half{% endif %}", set()),
    ],
)
def test_a_decimal_is_found_where_a_reader_reads_it(text, found):
    assert decimals(text) == found


def test_no_paper_value_is_typed_in_a_notebooks_code():
    """But named: what a paper says stands in data/paper/values.yaml alone."""
    said = {value.says for value in papers.values().values() if value.source != "theory" and len(value.says) > 4}
    for path in NOTEBOOKS:
        code = "\n".join(cell.source for cell in nbformat.read(path, 4).cells if cell.cell_type == "code")
        assert not [value for value in said if f'"{value}"' in code], path.stem
