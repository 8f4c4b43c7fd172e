"""One list of pins for every way to install, and no torch where a figure only has to be redrawn."""

from __future__ import annotations

import ast
import html
import itertools
import re
import subprocess
import sys
import tomllib
from pathlib import Path

import yaml
from helpers import ROOT
from packaging.requirements import Requirement
from packaging.utils import canonicalize_name

PROJECT = tomllib.loads((ROOT / "pyproject.toml").read_text(encoding="utf-8"))["project"]
# `__main__` imports torch only to train; the others never do.
WITHOUT_TORCH = ["config", "errors", "runs", "analysis", "plotting", "gallery", "__main__"]


def constraints() -> dict[str, str]:
    """Name → version specifier of every line of constraints.txt."""
    lines = [line.split("#")[0].strip() for line in (ROOT / "constraints.txt").read_text(encoding="utf-8").splitlines()]
    requirements = [Requirement(line) for line in lines if line]
    names = [canonicalize_name(r.name) for r in requirements]
    assert len(names) == len(set(names)), "a name is pinned twice"
    return {name: str(r.specifier) for name, r in zip(names, requirements, strict=True)}


def declared() -> set[str]:
    """Names of the dependencies in pyproject.toml, those of the extras among them."""
    lines = [*PROJECT["dependencies"], *itertools.chain(*PROJECT["optional-dependencies"].values())]
    requirements = [Requirement(line) for line in lines]
    assert not any(str(r.specifier) for r in requirements), "versions stand in constraints.txt alone"
    return {canonicalize_name(r.name) for r in requirements}


def test_every_dependency_is_pinned_and_nothing_else_is() -> None:
    assert constraints().keys() == declared()


def test_every_pin_is_one_released_version() -> None:
    for name, specifier in constraints().items():
        assert re.fullmatch(r"==\d+(\.\d+)*(\.post\d+)?", specifier), f"{name}{specifier}"


def test_the_conda_environment_installs_through_the_same_pins() -> None:
    environment = yaml.safe_load((ROOT / "environment.yml").read_text(encoding="utf-8"))
    *conda, pip = environment["dependencies"]
    assert [re.split("[<>=]", name)[0] for name in conda] == ["python", "pip"]
    assert conda[0].removeprefix("python") == PROJECT["requires-python"]
    assert pip == {"pip": ["-c constraints.txt", "-e .[all]"]}


def test_the_makefile_installs_through_the_same_pins() -> None:
    installs = [line for line in (ROOT / "Makefile").read_text(encoding="utf-8").splitlines() if "pip install" in line]
    assert installs
    assert all("-c constraints.txt" in line for line in installs)


def test_what_redraws_a_figure_does_not_import_torch() -> None:
    code = f"""
import importlib, sys
for name in {WITHOUT_TORCH}:
    importlib.import_module("eosslib." + name)
    if "torch" in sys.modules:
        sys.exit(name)
"""
    finished = subprocess.run([sys.executable, "-c", code], cwd=ROOT, capture_output=True, text=True)
    assert finished.returncode == 0, finished.stderr


def test_the_package_holds_every_module_and_data_file() -> None:
    """An installed copy works without the checkout: what lies in the package folder is code, or declared as package data."""
    patterns = tomllib.loads((ROOT / "pyproject.toml").read_text(encoding="utf-8"))["tool"]["setuptools"]["package-data"]["eosslib"]
    files = [path for path in (ROOT / "eosslib").iterdir() if path.is_file() and path.suffix != ".py"]
    assert files
    for path in files:
        assert any(Path(path.name).match(pattern) for pattern in patterns), path


def test_the_committed_api_reference_has_every_public_name_and_its_docstring():
    pages = sorted((ROOT / "figures/api/eosslib").glob("*.html"))
    assert len(pages) > 15
    for page in pages:
        text = html.unescape(re.sub(r"<[^>]+>", "", page.read_text(encoding="utf-8")))
        module = ast.parse((ROOT / f"eosslib/{page.stem}.py").read_text(encoding="utf-8"))
        for node in module.body:
            if isinstance(node, ast.FunctionDef | ast.ClassDef) and not node.name.startswith("_"):
                assert f'id="{node.name}"' in page.read_text(encoding="utf-8"), f"{page.name}: {node.name}"
                first = re.split(r"[`*_\[<]", (ast.get_docstring(node) or "").split("\n")[0])[0].strip()
                assert first in text, f"{page.name}: {node.name}"
