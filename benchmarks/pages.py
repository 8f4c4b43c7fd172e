"""The page that a benchmark writes: what its docstring says after the usage, and its lines."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path


def write(path: Path, title: str, docstring: str | None, lines: Sequence[str]) -> None:
    """Write a page of Markdown.

    Args:
        path: The file.
        title: Its heading.
        docstring: Of the benchmark; its third paragraph and all after it stand above the lines.
        lines: What was measured, as Markdown.
    """
    text = (docstring or "").split("\n\n", 2)[2].strip()
    path.write_text("\n".join([f"# {title}", "", text, "", *lines]) + "\n", encoding="utf-8")
