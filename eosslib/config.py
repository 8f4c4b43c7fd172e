"""Presets: YAML files that name groups of runs.

A *group* is a run (``settings.RunConfig``) for all seeds of a preset: its runs differ only in the seed and are trained stacked.
A *preset* (one file under ``config/presets/``) names groups; which figure shows which of them stands in ``config/figures.yaml``
(``figures``), or in a preset of your own.
"""

from __future__ import annotations

import dataclasses
import itertools
import json
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from functools import cache
from pathlib import Path
from typing import Any

from eosslib import catalogue, figures
from eosslib.errors import ConfigError
from eosslib.settings import RunConfig, check_numbers
from eosslib.validation import Checker, as_lines, object_schema, read_yaml

PRESET_FOLDER = Path(__file__).resolve().parents[1] / "config/presets"
SCHEMA_FILE = Path(__file__).with_name("preset.schema.json")  # its part of the settings is for editors alone


def schema() -> dict[str, Any]:
    """Return the JSON schema of a preset: that of the file, with the settings as their fields have them."""
    return _checker(catalogue.names()).schema


@cache
def _checker(names: object) -> Checker:
    frame = json.loads(SCHEMA_FILE.read_text(encoding="utf-8"))
    return Checker({**frame, "$defs": {"settings": object_schema(RunConfig)}})


def write_schema(path: Path) -> Path:
    """Write the JSON schema of a preset to a file, for editors, and return the path.

    Raises:
        ConfigError: It cannot be written.
    """
    try:
        path.write_text(as_lines(schema()) + "\n", encoding="utf-8")
    except OSError as error:
        raise ConfigError(f"cannot write {path}: {error.strerror}") from None
    return path


@dataclass(frozen=True)
class Group:
    """The runs of one setting over all seeds; ``name`` is also its folder, ``<entry>/<variant>``."""

    name: str
    runs: tuple[RunConfig, ...]

    @property
    def entry(self) -> str:
        """The name under ``runs:`` in the preset."""
        return self.name.split("/")[0]


@dataclass(frozen=True)
class Preset:
    """A validated preset: its groups by name, and the entries each notebook shows."""

    name: str
    description: str
    seeds: tuple[int, ...]
    groups: dict[str, Group]
    notebooks: dict[str, tuple[str, ...]]
    claims: bool = True  # whether the notebooks insist on what the papers claim

    def select(self, entries: tuple[str, ...] | list[str]) -> list[Group]:
        """Return the groups of the named entries, in the order of the preset.

        Raises:
            ConfigError: The preset has no such entry.
        """
        known = {group.entry for group in self.groups.values()}
        for entry in entries:
            if entry not in known:
                raise ConfigError(f"preset {self.name} has no runs named '{entry}'; it has {', '.join(sorted(known))}")
        return [group for group in self.groups.values() if group.entry in entries]

    def entries_of(self, notebook: str) -> tuple[str, ...]:
        """Return the entries that a notebook shows.

        Raises:
            ConfigError: The preset does not show this notebook; the message names those that do.
        """
        if notebook not in self.notebooks:
            known = sorted(figures.rows()[notebook].runs) if notebook in figures.rows() else ["none"]
            raise ConfigError(f"preset {self.name} has no runs for {notebook}; these have: {', '.join(known)}")
        return self.notebooks[notebook]


def preset_path(name: str | Path) -> Path:
    """Return the file of a preset given by name (``digits``) or by path (``my/preset.yaml``).

    Raises:
        ConfigError: There is no such file; the message lists the presets there are.
    """
    path = Path(name)
    if path.suffix not in (".yaml", ".yml"):
        path = PRESET_FOLDER / f"{name}.yaml"
    if not path.is_file():
        known = ", ".join(sorted(p.stem for p in PRESET_FOLDER.glob("*.yaml")))
        raise ConfigError(f"no preset '{name}': {path} does not exist (there are: {known})")
    return path


def _variants(settings: Mapping[str, Any]) -> Iterator[tuple[str, dict[str, Any]]]:
    """Expand lists of batch sizes and of noise models into (variant name, settings)."""
    sizes, noises = settings["batch_size"], settings.get("noise", "sgd")
    sizes = sizes if isinstance(sizes, list) else [sizes]
    noises = noises if isinstance(noises, list) else [noises]
    for size, noise in itertools.product(sizes, noises):
        batch_size = _number(size, settings)
        size_name = "full" if batch_size == settings["train_size"] else f"b{batch_size:04d}"
        name = size_name if noise == "sgd" else f"{size_name}-{noise}"
        schedule = [
            c | {"batch_size": _number(c["batch_size"], settings)} if "batch_size" in c else c for c in settings["schedule"]
        ]
        static = [_number(size, settings) for size in settings["static_sizes"]]
        own = {"batch_size": batch_size, "noise": noise, "schedule": schedule, "static_sizes": static}
        if (
            catalogue.NOISES[noise].projects != "top"
        ):  # beside others in a list: what does not concern a run is none of its settings
            own["noise_directions"] = 1
        yield name, {**settings, **own}


def _number(size: Any, settings: Mapping[str, Any]) -> Any:
    return settings["train_size"] if size == "full" else size


def _groups(raw: Mapping[str, Any], source: str) -> dict[str, Group]:
    """Build the groups of a preset whose keys are known to be right."""
    groups: dict[str, Group] = {}
    for part, settings in {"settings": raw["settings"], **{f"runs.{entry}": own for entry, own in raw["runs"].items()}}.items():
        check_numbers(settings, f"{source}: {part}")
    for entry, own in raw["runs"].items():
        settings = {**{f.name: f.default for f in dataclasses.fields(RunConfig) if f.name != "seed"}, **raw["settings"], **own}
        missing = [key for key, value in settings.items() if value is dataclasses.MISSING]
        if missing:
            raise ConfigError(f"{source}: key '{missing[0]}' is missing in runs.{entry} and in settings")
        for variant, values in _variants(settings):
            try:
                runs = tuple(RunConfig(**values, seed=seed) for seed in raw["seeds"])
            except ConfigError as error:
                raise ConfigError(f"{source}: runs.{entry}: {error}") from None
            groups[f"{entry}/{variant}"] = Group(f"{entry}/{variant}", runs)
    return groups


def load_preset(name: str | Path) -> Preset:
    """Read and validate a preset, given by name or by path.

    Raises:
        ConfigError: The file is missing, is not YAML, or has an unknown, missing or mistyped key; one line says which.
    """
    path = preset_path(name)
    source = f"{path.parent.name}/{path.name}"
    raw = read_yaml(path, source)
    _checker(catalogue.names())(raw, source)
    if raw["name"] != path.stem:
        raise ConfigError(f"{source}: name is '{raw['name']}', but the file is called {path.name}")
    groups = _groups(raw, source)
    shown = raw.get("notebooks", raw["name"])
    notebooks = figures.of_preset(shown) if isinstance(shown, str) else {name: tuple(some) for name, some in shown.items()}
    if not notebooks:
        raise ConfigError(f"{source}: figures.yaml has no figures of {shown}: write `notebooks: digits`, or your own")
    description, claims = raw.get("description", ""), raw.get("claims", True)
    preset = Preset(raw["name"], description, tuple(raw["seeds"]), groups, notebooks, claims)
    for notebook, entries in preset.notebooks.items():
        try:
            preset.select(entries)
        except ConfigError as error:
            raise ConfigError(f"{source}: notebooks.{notebook}: {error}") from None
    return preset
