"""Typed configuration of runs and presets, and its validation.

A *run* is one training with one seed. A *group* is a run for all seeds of a preset: its runs differ only in the seed and
are trained stacked. A *preset* (one YAML file under ``config/``) names groups and says which notebook shows which of them.
"""

from __future__ import annotations

import dataclasses
import itertools
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import yaml

from eosslib import theory
from eosslib.errors import ConfigError
from eosslib.validation import check_numbers, check_settings, validate

PRESET_FOLDER = Path(__file__).resolve().parents[1] / "config"
TOP_NOISES = ("along_top", "without_top")  # the noise models that ``noise_directions`` is a setting of


@dataclass(frozen=True)
class Change:
    """A change of settings during a run; None leaves a setting as it is."""

    step: int  # the first step made with the new settings
    lr: float | None = None
    batch_size: int | None = None

    def to_dict(self) -> dict[str, Any]:
        """Return what changes as plain JSON values."""
        return {key: value for key, value in dataclasses.asdict(self).items() if value is not None}


@dataclass(frozen=True)
class RunConfig:
    """Everything that determines one run; two equal configurations give the same numbers on the same machine.

    ``lr`` is the step size η; ``threshold`` is 2/η, or what takes its place with momentum and Adam; ``batch_size ==
    train_size`` is gradient descent.
    The meaning of each key stands beside it in ``preset.schema.json``.
    """

    model: str
    loss: str
    batch_size: int
    lr: float
    steps: int
    seed: int = 0
    dataset: str = "digits"
    train_size: int = 1500
    width: int = 64
    depth: int = 2
    hidden: int = 200
    init_scale: float = 1.0
    optimizer: str = "sgd"
    momentum: float = 0.0
    beta2: float = 0.999
    sampling: str = "reshuffle"
    noise: str = "sgd"
    noise_directions: int = 1
    refresh_every: int = 10
    dtype: str = "float32"
    measure_every: int = 50
    eig_tol: float = 1e-3
    eig_k: int = 1
    sample_every: int = 0
    batch_sharpness_draws: int = 0
    minibs_draws: int = 0
    sample_precision: float = 0.0
    window: int = 0
    window_every: int = 0
    window_from: int = 0
    window_k: int = 1
    newton_steps: int = 2
    coupled_steps: int = 0
    static_sizes: tuple[int, ...] = ()
    overlap_draws: int = 0
    schedule: tuple[Change, ...] = ()

    def __post_init__(self) -> None:
        """Check the values, also of a configuration built in Python.

        Raises:
            ConfigError: A value is of the wrong type or out of its range, or two values contradict each other.
        """
        for key in ("static_sizes", "schedule"):
            if not isinstance(getattr(self, key), list | tuple):
                raise ConfigError(f"{key}: {getattr(self, key)!r} is not a list")
        check_settings({k: v for k, v in self.to_dict().items() if k != "seed"}, "RunConfig")
        changes = [change if isinstance(change, Change) else Change(**change) for change in self.schedule]
        object.__setattr__(self, "schedule", tuple(changes))
        object.__setattr__(self, "static_sizes", tuple(self.static_sizes))
        sizes, later = (self.batch_size, *self.static_sizes), [change.batch_size or 1 for change in self.schedule]
        if not all(isinstance(size, int) for size in (*sizes, *later)) or not isinstance(self.noise, str):
            raise ConfigError("batch_size and noise of a run are one number and one name")
        if type(self.seed) is not int or self.seed < 0:
            raise ConfigError(f"seed: {self.seed!r} is not of type integer at least 0")
        for key in ("batch_sharpness_draws", "minibs_draws", "overlap_draws"):
            if getattr(self, key) == 1:
                raise ConfigError(f"{key} 1 gives no standard error: 0, or at least 2")
        for size in sizes:
            if size > self.train_size:
                raise ConfigError(f"batch_size {size} is above the {self.train_size} training examples")
        if self.model.endswith("-bn") and (self.noise != "sgd" or self.window or self.coupled_steps):
            raise ConfigError(f"{self.model}: noise models, windows and coupled steps need the gradients of single examples")
        if self.optimizer == "nesterov" and not self.momentum:
            raise ConfigError("optimizer nesterov needs momentum above 0")
        if self.optimizer == "adam" and self.window:
            raise ConfigError("optimizer adam: α and β of a window are those of the Hessian without a preconditioner")
        if self.coupled_steps and (self.optimizer, self.momentum) != ("sgd", 0.0):
            raise ConfigError("coupled_steps: the predicted dynamics are those of SGD without momentum")
        if self.static_sizes and not self.minibs_draws:
            raise ConfigError("static_sizes need minibs_draws")
        self._check_schedule()
        if self.sample_every % self.measure_every:
            raise ConfigError(f"sample_every {self.sample_every} is not a multiple of measure_every {self.measure_every}")
        if self.window and (self.window_every < self.window or self.window_every % self.measure_every):
            wanted = f"a multiple of measure_every {self.measure_every}, at least window {self.window}"
            raise ConfigError(f"window_every {self.window_every} is not {wanted}")
        if self.coupled_steps and (self.steps - self.coupled_steps) % self.measure_every:
            raise ConfigError(f"steps − coupled_steps is not a multiple of measure_every {self.measure_every}")
        if self.coupled_steps > self.steps or (self.coupled_steps and self.noise != "sgd"):
            raise ConfigError(f"coupled_steps {self.coupled_steps}: at most steps {self.steps}, and only with noise sgd")

    def _check_schedule(self) -> None:
        if self.schedule and (self.window or self.coupled_steps):
            raise ConfigError("schedule: not together with windows or coupled steps, whose settings must not change")
        last = 0
        for change in self.schedule:
            where = f"schedule: step {change.step}"
            if change.step >= self.steps:
                raise ConfigError(f"{where} is not before the end, {self.steps} steps")
            if change.step <= last:
                raise ConfigError(f"{where} does not come after {f'step {last}' if last else 'the start'}")
            if (change.batch_size or 1) > self.train_size:
                raise ConfigError(f"{where}: batch_size {change.batch_size} is above the {self.train_size} training examples")
            if change.step % self.measure_every:
                raise ConfigError(f"{where} is not a multiple of measure_every {self.measure_every}")
            last = change.step

    def at(self, step: int) -> RunConfig:
        """Return the settings with which this step is made, as a run without a schedule."""
        if not self.schedule:
            return self
        values: dict[str, Any] = {"schedule": ()}
        for change in self.schedule:
            if change.step <= step:
                values |= {key: value for key, value in change.to_dict().items() if key != "step"}
        return dataclasses.replace(self, **values)

    def next_change(self, step: int) -> int:
        """Return the first step after this one that is made with other settings, or the end."""
        return min((change.step for change in self.schedule if change.step > step), default=self.steps)

    @property
    def threshold(self) -> float:
        """The stability threshold, 2/η for SGD, in units of (with Adam preconditioned) sharpness; of the start where η changes."""
        if self.optimizer == "adam":
            return theory.adam_threshold(self.lr, self.momentum)
        return theory.momentum_threshold(self.lr, self.momentum, nesterov=self.optimizer == "nesterov")

    @property
    def full_batch(self) -> bool:
        """Whether this is full-batch gradient descent without noise, from the start to the end."""
        whole = self.batch_size == self.train_size and all(c.batch_size in (None, self.train_size) for c in self.schedule)
        return whole and self.noise == "sgd" and self.sampling == "reshuffle"

    def in_window(self, step: int) -> bool:
        """Whether the iterate before this step belongs to a window; every window ends with a measurement."""
        if not self.window:
            return False
        end = (step // self.window_every + 1) * self.window_every
        return self.window_from <= end - self.window <= step and end <= self.steps

    def to_dict(self) -> dict[str, Any]:
        """Return the configuration as plain JSON values."""
        changes = [c.to_dict() if isinstance(c, Change) else c for c in self.schedule]
        return {f.name: getattr(self, f.name) for f in dataclasses.fields(self)} | {
            "static_sizes": list(self.static_sizes),
            "schedule": changes,
        }


def defaults() -> dict[str, Any]:
    """Return the settings that have a default; a file from before a setting was there was made with its default."""
    values = {f.name: f.default for f in dataclasses.fields(RunConfig) if f.default is not dataclasses.MISSING}
    return {key: list(value) if isinstance(value, tuple) else value for key, value in values.items()}


def difference(stored: Mapping[str, Any], wanted: Mapping[str, Any]) -> str | None:
    """Name the first key in which two configurations differ, with both values, or return None."""
    for key in sorted({*stored, *wanted}):
        if stored.get(key) != wanted.get(key):
            return f"{key} is {stored.get(key)!r}, not {wanted.get(key)!r}"
    return None


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
            known = [path.stem for path in sorted(PRESET_FOLDER.glob("*.yaml")) if notebook in load_preset(path).notebooks]
            raise ConfigError(f"preset {self.name} has no runs for {notebook}; these have: {', '.join(known) or 'none'}")
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
        if noise not in TOP_NOISES:  # beside others in a list: what does not concern a run is none of its settings
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
    try:
        raw = yaml.safe_load(path.read_text(encoding="utf-8"))
    except (yaml.YAMLError, UnicodeDecodeError) as error:
        raise ConfigError(f"{source}: not valid YAML: {' '.join(str(error).split())}") from None
    validate(raw, None, source)
    if raw["name"] != path.stem:
        raise ConfigError(f"{source}: name is '{raw['name']}', but the file is called {path.name}")
    groups = _groups(raw, source)
    notebooks = {notebook: tuple(entries) for notebook, entries in raw["notebooks"].items()}
    description, claims = raw.get("description", ""), raw.get("claims", True)
    preset = Preset(raw["name"], description, tuple(raw["seeds"]), groups, notebooks, claims)
    for notebook, entries in preset.notebooks.items():
        try:
            preset.select(entries)
        except ConfigError as error:
            raise ConfigError(f"{source}: notebooks.{notebook}: {error}") from None
    return preset
