"""The page that shows all figures of a preset with their captions and headline numbers, and the table of all numbers."""

from __future__ import annotations

import json
from importlib import resources
from pathlib import Path
from typing import Any

import jinja2

from eosslib.config import Preset
from eosslib.errors import RunFileError
from eosslib.runs import atomic


def figures(folder: Path, preset: Preset) -> list[dict[str, Any]]:
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
        found.append({"more": [], **json.loads(record.read_text(encoding="utf-8")), "page": page})
    if not found:
        raise RunFileError(f"{folder} holds no figures: run `snakemake --cores 4 all --config preset={preset.name}`")
    return found


def write_index(folder: Path, preset: Preset) -> Path:
    """Write ``index.html`` into the folder of a preset's figures and return its path.

    Raises:
        RunFileError: There are no figures, or the folder cannot be written to.
    """
    source = resources.files("eosslib").joinpath("index.html").read_text(encoding="utf-8")
    template = jinja2.Environment(autoescape=True, undefined=jinja2.StrictUndefined).from_string(source)
    found = figures(folder, preset)
    undrawn = [notebook for notebook in preset.notebooks if notebook not in {figure["name"] for figure in found}]
    page = template.render(preset=preset, figures=found, undrawn=undrawn)
    with atomic(folder / "index.html") as temporary:
        temporary.write_text(page + "\n", encoding="utf-8")
    return folder / "index.html"


def write_results(folder: Path, preset: Preset) -> Path:
    """Write ``results.md``, all headline numbers of a preset beside the paper's, into the folder of its figures.

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
    found = figures(folder, preset)
    for figure in found:
        for headline in figure["headlines"]:
            cells = [f"{figure['title']}", headline["quantity"], headline["text"], headline["paper"]]
            lines.append("| " + " | ".join(cell.replace("|", "\\|") for cell in cells) + " |")
    reduced = [f"- {figure['title']}: not trained yet are {figure['missing']}." for figure in found if figure.get("missing")]
    lines += ["", "Reduced, because not all runs are trained:", "", *reduced] if reduced else []
    with atomic(folder / "results.md") as temporary:
        temporary.write_text("\n".join(lines) + "\n", encoding="utf-8")
    return folder / "results.md"
