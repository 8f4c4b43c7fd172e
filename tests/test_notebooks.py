"""The notebooks keep to the house rules: small, parameterised, without outputs, numerics or settings."""

from __future__ import annotations

from pathlib import Path

import nbformat
import pytest

from eosslib.config import PRESET_FOLDER, load_preset

NOTEBOOKS = sorted((PRESET_FOLDER.parent / "notebooks").glob("*.ipynb"))


def code_cells(path: Path) -> list:
    return [cell for cell in nbformat.read(path, 4).cells if cell.cell_type == "code"]


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
        sources = [cell.source.splitlines() for cell in code_cells(path)]
        assert max(map(len, sources)) <= 15
        assert sum(map(len, sources)) <= 110  # formatted: a line holds one thought, so there are more of them
        assert max(len(line) for lines in sources for line in lines) <= 110  # what JupyterLab shows without scrolling
        assert not any(line.lstrip().startswith(("def ", "class ")) for lines in sources for line in lines)

    def test_ends_by_checking_its_claims(self, path):
        assert "findings.check(claims" in code_cells(path)[-1].source

    def test_is_part_of_the_default_preset_and_saves_a_figure_of_its_own_name(self, path):
        assert any(f'"{path.stem}"' in cell.source and "figures_folder" in cell.source for cell in code_cells(path)) or any(
            f'name = "{path.stem}"' in cell.source for cell in code_cells(path)
        )
        assert path.stem in load_preset("digits").notebooks
        # Toys and formulas are the same for every preset: they are drawn once, with the default one.
        if load_preset("digits").notebooks[path.stem]:
            assert path.stem in load_preset("smoke").notebooks
            if path.stem < "20":  # a figure of the papers
                assert any(path.stem in load_preset(name).notebooks for name in ("cifar10", "eoss"))


def test_every_notebook_of_a_preset_exists():
    for preset in PRESET_FOLDER.glob("*.yaml"):
        assert set(load_preset(preset.stem).notebooks) <= {path.stem for path in NOTEBOOKS}
