"""One list of pins for every way to install, and no torch where a figure only has to be redrawn."""

from __future__ import annotations

import ast
import itertools
import json
import re
import subprocess
import sys
import tomllib
from pathlib import Path

import pytest
import yaml
from helpers import ROOT
from packaging.requirements import Requirement
from packaging.utils import canonicalize_name

PROJECT = tomllib.loads((ROOT / "pyproject.toml").read_text(encoding="utf-8"))["project"]
# `__main__` imports torch only to train; the others never do.
WITHOUT_TORCH = [
    "catalogue",
    "settings",
    "figures",
    "config",
    "errors",
    "runs",
    "analysis",
    "findings",
    "gaplines",
    "papers",
    "prose",
    "record",
    "plotting",
    "panels",
    "pictures",
    "toys",
    "gallery",
    "__main__",
]


# What settings, figures and errors are, from which no number comes.
SAID = {"config", "errors", "figures", "settings", "validation"}


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
    declared = tomllib.loads((ROOT / "pyproject.toml").read_text(encoding="utf-8"))["tool"]["setuptools"]
    folders = {path.parent.relative_to(ROOT).as_posix().replace("/", ".") for path in (ROOT / "eosslib").rglob("[a-z]*.py")}
    assert folders == set(declared["packages"])
    patterns = declared["package-data"]["eosslib"]
    files = [path for path in (ROOT / "eosslib").iterdir() if path.is_file() and path.suffix != ".py"]
    assert files
    for path in files:
        assert any(Path(path.name).match(pattern) for pattern in patterns), path


def imported(left: list[str]) -> set[str]:
    """These modules of the package and all that they import of it."""
    reached = set()
    while left:
        module = left.pop()
        reached.add(module)
        for node in ast.walk(ast.parse((ROOT / f"eosslib/{module}.py").read_text(encoding="utf-8"))):
            if isinstance(node, ast.ImportFrom) and (node.module or "").partition(".")[0] == "eosslib":
                where = node.module.replace(".", "/").removeprefix("eosslib").removeprefix("/")
                names = [where, *(f"{where}/{alias.name}".removeprefix("/") for alias in node.names)]
                left += [name for name in names if (ROOT / f"eosslib/{name}.py").is_file() and name not in reached]
    return reached


def listed(name: str) -> set[str]:
    """The modules of one of the Snakefile's lists."""
    snakefile = (ROOT / "Snakefile").read_text(encoding="utf-8")
    start = snakefile.index(f"\n{name} = [")
    words = re.findall(r'"([^"]+)"', snakefile[start : snakefile.index(".split()", start)])
    return set(" ".join(words).split()) - {"eosslib/{module}.py"}


def engine() -> set[str]:
    """What trains again: the list, and every measurement."""
    assert "\nENGINE += MEASURE\n" in (ROOT / "Snakefile").read_text(encoding="utf-8")
    return listed("ENGINE") | {f"measure/{path.stem}" for path in (ROOT / "eosslib/measure").glob("[a-z]*.py")}


def test_an_edit_of_whatever_a_training_imports_trains_again() -> None:
    """But for what names, settings, errors and formulas are, whose edits would train everything anew for nothing."""
    assert engine() == imported(["training"]) - {*SAID, "catalogue", "theory"}


def test_an_edit_of_whatever_a_notebook_imports_draws_again() -> None:
    """But for what settings and errors are."""
    used = {"tracker"}  # which the package gives out as SharpnessTracker
    for path in (ROOT / "notebooks").glob("*.ipynb"):
        source = "".join(line for cell in json.loads(path.read_text(encoding="utf-8"))["cells"] for line in cell["source"])
        used |= {name for names in re.findall(r"from eosslib import ([\w, ]+)", source) for name in names.split(", ")}
    modules = [name for name in used if (ROOT / f"eosslib/{name}.py").is_file()]
    assert len(modules) > 10
    assert engine() | listed("DRAWING") >= imported(modules) - SAID


def tracked() -> list[Path]:
    """The files that git holds, but for run files."""
    try:
        listed = subprocess.run(["git", "-C", str(ROOT), "ls-files", "-z"], capture_output=True, text=True, check=True).stdout
    except (OSError, subprocess.CalledProcessError):
        pytest.skip("not a git checkout")
    paths = [ROOT / name for name in listed.split("\0") if name and not name.startswith("data/reference/")]
    return [path for path in paths if path.is_file()]


def test_what_git_tracks_besides_runs_is_at_most_12_megabytes() -> None:
    assert sum(path.stat().st_size for path in tracked()) < 12e6


def test_nothing_that_is_built_is_tracked() -> None:
    built = {".html", ".pdf", ".gif"}
    assert [path for path in tracked() if path.suffix in built and (ROOT / "figures") in path.parents] == []


def test_the_readme_links_only_what_is_tracked() -> None:
    paths = {path.relative_to(ROOT) for path in tracked()}
    there = paths | {parent for path in paths for parent in path.parents}
    links = re.findall(r"\]\(([^)#\s]+)", (ROOT / "README.md").read_text(encoding="utf-8"))
    links = [link for link in links if not link.startswith("http")]
    assert links
    assert [link for link in links if Path(link) not in there] == []
