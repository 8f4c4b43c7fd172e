"""A figure from its runs to its files: opened by name; then a record of its findings, the texts that tell them, and its claims."""

from __future__ import annotations

import json
import logging
from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
from IPython.display import Markdown

from eosslib import figures, papers, plotting, prose, runs
from eosslib.config import Preset, load_preset
from eosslib.errors import ConfigError
from eosslib.findings import Findings, words
from eosslib.runs import atomic

if TYPE_CHECKING:
    from matplotlib.figure import Figure
    from pandas.api.typing import NAType

DIGITS = 10  # of a number in a record: what another processor's rounding does not reach


def open_figure(name: str, preset: str | Path, runs_folder: str | Path | None = None) -> Record:
    """Open a figure: set the house style, load the preset and the runs that the figure shows of it, and begin its record.

    Args:
        name: Of its row in ``config/figures.yaml`` and of its notebook.
        preset: Name or file of the preset.
        runs_folder: Where the runs lie; default: as ``runs.locate``.

    Raises:
        ConfigError: There is no such figure or preset, or the preset shows no such figure.
        RunFileError: A run is missing or unreadable.
        ConfigMismatch: A run was trained with other settings than the preset's.
    """
    if name not in figures.rows():
        raise ConfigError(f"no figure '{name}': give it a row in {figures.FILE}")
    figure, chosen = figures.rows()[name], load_preset(preset)
    entries = chosen.entries_of(name) if any(figure.runs.values()) else ()  # toys and formulas are the same for every preset
    plotting.use_style()
    return Record(figure, chosen, runs.collect(chosen, entries, runs_folder) if entries else None)


class Record:
    """What a notebook finds and says, from the runs it shows to the files of its figure."""

    def __init__(self, figure: figures.Figure, preset: Preset, found: runs.Collection | None = None) -> None:
        """Begin the record of a figure.

        Args:
            figure: Its row.
            preset: Whose figure it is.
            found: Runs it shows; None: it shows none.

        Raises:
            ConfigError: The row names a value of a paper that is not there.
        """
        self.name, self.preset = figure.name, preset
        self.frame = None if found is None else found.frame  # what the caption says the settings of
        self.source, self.missing = ("no runs", "") if found is None else (found.source, found.missing)
        self._papers = papers.named(figure.paper)
        self.findings, self._claims = Findings(self._papers), dict[str, str]()

    def fill(self, text: str, **more: Any) -> str:
        """Fill a text with findings, as ``prose.fill`` does; ``missing`` names the runs that are not trained yet.

        Raises:
            ValueError: The text asks for what is not there.
        """
        known = {"preset": self.preset.name, "missing": self.missing, "claims": self._claims}
        return prose.fill(text, self.findings, self._papers, **known, **more)

    def say(self, text: str, **more: Any) -> Markdown:
        """Show a text filled with findings.

        Args:
            text: Markdown, a template as ``prose.fill`` takes it.
            more: Further names for it.

        Raises:
            ValueError: The text asks for what is not there.
        """
        return Markdown(self.fill(text, **more))

    def claim(self, claims: Mapping[str, bool | np.bool_ | float | NAType]) -> None:
        """State what the reader should have seen, and whether the numbers say so (``pandas.NA``, NaN: not measured).

        Raises:
            ValueError: A claim was stated before.
        """
        if twice := set(claims) & set(self._claims):
            raise ValueError(f"claimed twice: {min(twice)}")
        self._claims |= words(claims)

    def check(self) -> list[str]:
        """Say for each claim whether it holds, and insist on it where the preset does and no run is missing.

        Returns:
            A line a claim.

        Raises:
            AssertionError: A claim does not hold or was not measured; the message names all of these.
            ValueError: Nothing was claimed.
        """
        if not self._claims:
            raise ValueError(f"{self.name} claims nothing")
        failed = [f"{word}: {claim}" for claim, word in self._claims.items() if word != "holds"]
        if failed and self.preset.claims and not self.missing:
            raise AssertionError("; ".join(failed))
        return [f"{word}: {claim}" for claim, word in self._claims.items()]

    def save(
        self, folder: str | Path | None, fig: Figure, texts: Mapping[str, str], more: Mapping[str, Figure] | None = None
    ) -> list[Path]:
        """Write the figure as PNG and PDF, and the record as JSON.

        Args:
            folder: Where to; None or empty: nothing is written (a notebook opened by hand must not overwrite the pipeline's).
            fig: The figure.
            texts: ``title``, a few words; ``caption``, what is shown and what to see; ``answer``, what came out, with one number
                (for README); and ``expected``, what the paper says in its place. All are templates; line breaks in them count as
                spaces. The settings of the runs and those that are missing are added to the caption.
            more: Further figures of the same page by name; they are written as ``name-<their name>``.

        Returns:
            The files written.

        Raises:
            RunFileError: The folder cannot be written to.
            ValueError: A text is missing, unknown, or asks for what is not there.
        """
        if set(texts) != {"title", "caption", "answer", "expected"}:
            raise ValueError(f"a figure has title, caption, answer and expected, not {', '.join(texts)}")
        said = {name: " ".join(self.fill(text).split()) for name, text in texts.items()}
        if self.frame is not None:
            said["caption"] += f" {plotting.settings(self.frame)}"
        said["caption"] += f" Reduced: not trained yet are {self.missing}." if self.missing else ""
        if not folder:
            logging.getLogger(__name__).info("figures are only saved where `figures_folder` names a folder")
            return []
        images = plotting.save({self.name: fig, **{f"{self.name}-{part}": f for part, f in (more or {}).items()}}, folder)
        record: dict[str, Any] = {"name": self.name, **said, "findings": self._rows(), "claims": self._claims}
        record |= {"more": list(more)} if more else {}
        record |= {"missing": self.missing} if self.missing else {}
        record |= {} if self.frame is None else {"source": self.source}
        path = Path(folder) / f"{self.name}.json"
        with atomic(path) as temporary:
            temporary.write_text(json.dumps(record, indent=2, ensure_ascii=False, allow_nan=False) + "\n", encoding="utf-8")
        return [*images, path]

    def _rows(self) -> list[dict[str, Any]]:
        """Findings as they stand in the file; JSON has no NaN, so what was not measured is null."""
        return [
            {
                "key": f.key,
                "quantity": f.quantity,
                "ours": _short(f.ours),
                "error": _short(f.error),
                "text": str(f),
                "paper": f.beside,
            }
            for f in self.findings.values()
        ]


def _short(value: float | None) -> float | None:
    return float(f"{value:.{DIGITS}g}") if value is not None and np.isfinite(value) else None
