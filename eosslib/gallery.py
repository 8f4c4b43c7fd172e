"""The pages that show all figures, the table of a preset's numbers, and the scoreboard of README: all made from records."""

from __future__ import annotations

import json
from importlib import resources
from pathlib import Path
from typing import Any

import jinja2

from eosslib import figures, papers
from eosslib.config import Preset, load_preset
from eosslib.errors import RunFileError
from eosslib.runs import atomic

COLUMNS = {"digits": ("digits",), "CIFAR-10": ("cifar10", "eoss")}  # of the scoreboard: presets whose figures stand in each
BEGIN, END = "<!-- scoreboard: python -m eosslib readme -->", "<!-- end of scoreboard -->"


def drawn(folder: Path, preset: Preset) -> list[dict[str, Any]]:
    """Read what the notebooks of a preset recorded of their figures, in the preset's order; those not drawn yet are left out.

    Raises:
        RunFileError: No notebook left a figure.
    """
    found = []
    for notebook in preset.notebooks:
        record = folder / f"{notebook}.json"
        if not record.is_file():
            continue
        page = f"{notebook}.html" if (folder / f"{notebook}.html").is_file() else None
        row = figures.rows()[notebook]
        shown = {"question": row.question, "stated": papers.named(row.paper), "page": page}
        found.append({"more": [], **json.loads(record.read_text(encoding="utf-8")), **shown})
    if not found:
        raise RunFileError(f"{folder} holds no figures: run `snakemake --cores 4 all --config preset={preset.name}`")
    return found


def verdict(record: dict[str, Any]) -> str:
    """Say in a sign how much of what a figure claims its numbers bear out: ✔ all, ◐ some, ✘ none of it."""
    holding = [word == "holds" for word in record["claims"].values()]
    return "✔" if all(holding) else "◐" if any(holding) else "✘"


def write_index(folder: Path, preset: Preset) -> Path:
    """Write ``index.html`` into the folder of a preset's figures and return its path.

    Raises:
        RunFileError: There are no figures, or the folder cannot be written to.
    """
    found = drawn(folder, preset)
    undrawn = [notebook for notebook in preset.notebooks if notebook not in {figure["name"] for figure in found}]
    return _write(folder / "index.html", _page("index.html", preset=preset, figures=found, undrawn=undrawn))


def write_site(folder: Path, presets: list[Preset]) -> Path:
    """Write the page that links the indices of all presets that are drawn, and return its path.

    Args:
        folder: That of the presets' folders.
        presets: Those to link where they have an index.

    Raises:
        RunFileError: The folder cannot be written to.
    """
    there = [preset for preset in presets if (folder / preset.name / "index.html").is_file()]
    return _write(folder / "index.html", _page("site.html", presets=there))


def write_results(folder: Path, preset: Preset) -> Path:
    """Write ``results.md``, all findings of a preset beside the paper's, into the folder of its figures.

    Raises:
        RunFileError: There are no figures, or the folder cannot be written to.
    """
    lines = [
        f"# Results: the {preset.name} preset",
        "",
        f"{preset.description}. ± is the standard error over seeds; that of the regression or over batch sizes where the row says",
        "so; of one seed that of its plateaus in time or of its draws. Numbers without it come from one seed or are",
        "counts.",
        "",
        "| figure | quantity | ours | paper |",
        "|---|---|---|---|",
    ]
    found = drawn(folder, preset)
    for figure in found:
        lines += [_row(figure["title"], f["quantity"], f["text"], f["paper"]) for f in figure["findings"] if f["quantity"]]
    reduced = [f"- {figure['title']}: not trained yet are {figure['missing']}." for figure in found if figure.get("missing")]
    lines += ["", "Reduced, because not all runs are trained:", "", *reduced] if reduced else []
    failed = [f"- {f['title']}: {word}: {claim}." for f in found for claim, word in f["claims"].items() if word != "holds"]
    lines += ["", "Claims that these runs do not bear out:", "", *failed] if failed else []
    return _write(folder / "results.md", "\n".join(lines))


def scoreboard(folder: Path) -> str:
    """Tabulate what came out of every figure, one answer a cell, from the records of the presets in ``COLUMNS``.

    Args:
        folder: That of the presets' folders.

    Returns:
        The table, in Markdown, with links as seen from the folder above.

    Raises:
        RunFileError: A preset has no figures.
    """
    answers: dict[str, dict[str, dict[str, Any]]] = {}
    for head, names in COLUMNS.items():
        for name in names:
            for record in drawn(folder / name, load_preset(name)):
                answers.setdefault(record["name"], {})[head] = record
    lines = [_row("figure", *COLUMNS, "the paper, or theory"), "|---" * (len(COLUMNS) + 2) + "|"]
    for name, records in sorted(answers.items()):
        last = list(records.values())[-1]  # the papers' own set-up, where it is drawn
        cells = [f"{verdict(records[head])} {records[head]['answer']}" if head in records else "" for head in COLUMNS]
        lines.append(_row(f"{figures.rows()[name].number} [{last['title']}](notebooks/{name}.ipynb)", *cells, last["expected"]))
    return "\n".join(lines)


def write_readme(path: Path, table: str) -> Path:
    """Put the scoreboard between its markers in README and return the path.

    Raises:
        RunFileError: There are no markers, or the file cannot be written.
    """
    text = path.read_text(encoding="utf-8")
    if BEGIN not in text or END not in text:
        raise RunFileError(f"{path} has no place for the scoreboard: a line {BEGIN} and a line {END}")
    before, after = text.split(BEGIN)[0], text.split(END)[1]
    return _write(path, f"{before}{BEGIN}\n{table}\n{END}{after}".rstrip("\n"))


def _row(*cells: str) -> str:
    return "| " + " | ".join(cell.replace("|", "\\|") for cell in cells) + " |"


def _page(name: str, **values: Any) -> str:
    source = resources.files("eosslib").joinpath(name).read_text(encoding="utf-8")
    return jinja2.Environment(autoescape=True, undefined=jinja2.StrictUndefined).from_string(source).render(**values)


def _write(path: Path, text: str) -> Path:
    with atomic(path) as temporary:
        temporary.write_text(text + "\n", encoding="utf-8")
    return path
