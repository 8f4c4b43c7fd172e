"""Settings of a run: what each means, its unit and its bounds, once; and what two of them must not be together.

A *run* is one training with one seed, ``RunConfig``. Presets write the same settings (``config``); the JSON schema by which
editors complete and check presets is made from the fields that stand here.
"""

from __future__ import annotations

import dataclasses
import itertools
import math
from collections.abc import Iterator, Mapping
from dataclasses import MISSING, dataclass
from functools import cache
from typing import Any

from eosslib import catalogue, theory
from eosslib.errors import ConfigError
from eosslib.validation import Checker, object_schema, setting

MAX_LOTS = 100  # of draws; with 40 each, 1 % of a quantity that scatters by 60 %
SIZE: dict[str, Any] = {"anyOf": [{"type": "integer", "minimum": 1}, {"const": "full"}]}  # of a batch, in presets


def several(rule: Mapping[str, Any]) -> dict[str, Any]:
    """Allow one value or, in presets, a list of them, which stands for a run each."""
    return {"anyOf": [*rule.get("anyOf", [rule]), {"type": "array", "minItems": 1, "uniqueItems": True, "items": rule}]}


@dataclass(frozen=True)
class Change:
    """A change of settings during a run; None leaves a setting as it is."""

    step: int = setting("the first step made with the new settings; a multiple of measure_every", minimum=1)
    lr: float | None = setting("the step size from then on", None, type="number", exclusiveMinimum=0)
    batch_size: int | None = setting("the batch size from then on", None, **SIZE)

    def to_dict(self) -> dict[str, Any]:
        """Return what changes as plain JSON values."""
        return {key: value for key, value in dataclasses.asdict(self).items() if value is not None}


CHANGE = {**object_schema(Change), "required": ["step"], "minProperties": 2}


@dataclass(frozen=True, kw_only=True)
class RunConfig:
    """Everything that determines one run; two equal configurations give the same numbers on the same machine.

    ``batch_size == train_size`` is gradient descent. To add a setting, add its field; what trains or measures reads it.
    """

    seed: int = 0  # no setting of presets, which list theirs

    # --- data
    dataset: str = setting("the data set", "digits", enum=catalogue.DATASETS.keys())
    train_size: int = setting("n, the number of training examples", 1500, minimum=1)

    # --- network and loss
    model: str = setting("the network", enum=catalogue.MODELS.keys())
    width: int = setting(
        "hidden units, or channels (cnn-tanh: of the first block; each further one has twice as many)", 64, minimum=1
    )
    depth: int = setting("hidden layers, convolutions, blocks of a transformer, layers of an LSTM", 2, minimum=1)
    hidden: int = setting("units of the hidden layer behind the convolutions of cnn-tanh; not used by the others", 200, minimum=1)
    init_scale: float = setting("factor on PyTorch's default initialisation", 1.0, exclusiveMinimum=0)
    loss: str = setting("the loss, of which the mean over the examples is trained", enum=catalogue.LOSSES.keys())
    dtype: str = setting("of parameters and data", "float32", enum=["float32", "float64"])

    # --- steps
    steps: int = setting("the number of steps", minimum=1)
    lr: float = setting("the step size η", unit="squared parameter per loss: 2/η is a sharpness", exclusiveMinimum=0)
    batch_size: int = setting("b, the examples of a step; full: all, which is gradient descent", unit="examples", **several(SIZE))
    sampling: str = setting(
        "per-epoch reshuffling, or every example drawn independently with replacement", "reshuffle", enum=["reshuffle", "iid"]
    )
    optimizer: str = setting("with their recurrences in torch.optim", "sgd", enum=["sgd", "nesterov", "adam"])
    momentum: float = setting("μ of SGD (heavy ball) and Nesterov; β₁ of Adam", 0.0, minimum=0, exclusiveMaximum=1)
    beta2: float = setting("decay of Adam's running mean of squares", 0.999, minimum=0, exclusiveMaximum=1)
    schedule: tuple[Change, ...] = setting("changes of η or b during the run", (), type="array", items=CHANGE)

    # --- noise models
    noise: str = setting("the noise that steps are made with", "sgd", **several({"enum": catalogue.NOISES.keys()}))
    noise_directions: int = setting("number of top eigenvectors that along_top and without_top project on", 1, minimum=1)
    refresh_every: int = setting("between two refreshes of the eigenvectors in these models", 10, unit="steps", minimum=1)

    # --- every measurement
    measure_every: int = setting("between two rows of the trajectory", 50, unit="steps", minimum=1)
    eig_tol: float = setting(
        "residual at which the eigen-solver stops", 1e-3, unit="of the eigenvalue", exclusiveMinimum=0, exclusiveMaximum=1
    )
    eig_k: int = setting("number of top eigenvalues to record", 1, minimum=1)

    # --- samples of mini-batches: batch sharpness, MiniBS, overlap with the Gauss–Newton part
    sample_every: int = setting(
        "between two sampled measurements; 0: never; a multiple of measure_every", 0, unit="steps", minimum=0
    )
    batch_sharpness_draws: int = setting("mini-batches drawn for one batch sharpness; 0: not measured", 0, minimum=0)
    minibs_draws: int = setting("mini-batches drawn for one mini-batch sharpness; 0: not measured", 0, minimum=0)
    sample_precision: float = setting(
        f"draw as many again, up to {MAX_LOTS} times in all, until the standard error is at most this; 0: draw no more",
        0.0,
        unit="of the quantity",
        minimum=0,
    )
    static_sizes: tuple[int, ...] = setting(
        "batch sizes at which MiniBS is measured besides, at the first and at the last step",
        (),
        type="array",
        uniqueItems=True,
        items=SIZE,
    )
    overlap_draws: int = setting(
        "mini-batches drawn to compare the Hessian with its Gauss-Newton part and with the NTK; 0: not measured", 0, minimum=0
    )

    # --- windows: α, β and E[x²]
    window: int = setting("over which the iterate is averaged; 0: not measured", 0, unit="steps", minimum=0)
    window_every: int = setting(
        "between the ends of two windows; a multiple of measure_every, at least window", 0, unit="steps", minimum=0
    )
    window_from: int = setting("no window begins before this step", 0, minimum=0)
    window_k: int = setting("number of top eigen-directions that a window measures", 1, minimum=1)
    newton_steps: int = setting("Newton steps that remove from a window's mean what is left along these directions", 2, minimum=0)

    # --- predicted dynamics
    coupled_steps: int = setting(
        "last steps, along which the constrained trajectory and the predicted dynamics run beside the training; best in float64",
        0,
        unit="steps",
        minimum=0,
    )

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
        for refusal in itertools.chain(self._no_run(), self._no_steps(), self._no_schedule(), self._no_measurement()):
            raise ConfigError(refusal)

    def _no_run(self) -> Iterator[str]:
        """Say what a preset may leave open and a run may not, and which sizes there cannot be."""
        sizes, later = (self.batch_size, *self.static_sizes), [change.batch_size or 1 for change in self.schedule]
        if not all(isinstance(size, int) for size in (*sizes, *later)) or not isinstance(self.noise, str):
            yield "batch_size and noise of a run are one number and one name"
        if type(self.seed) is not int or self.seed < 0:
            yield f"seed: {self.seed!r} is not of type integer at least 0"
        for size in sizes:
            if size > self.train_size:
                yield f"batch_size {size} is above the {self.train_size} training examples"

    def _no_steps(self) -> Iterator[str]:
        """Say which steps cannot be made."""
        if self.model.endswith("-bn") and (self.noise != "sgd" or self.window or self.coupled_steps):
            yield f"{self.model}: noise models, windows and coupled steps need the gradients of single examples"
        if self.optimizer == "nesterov" and not self.momentum:
            yield "optimizer nesterov needs momentum above 0"
        if self.optimizer == "adam" and self.window:
            yield "optimizer adam: α and β of a window are those of the Hessian without a preconditioner"
        if self.coupled_steps and (self.optimizer, self.momentum) != ("sgd", 0.0):
            yield "coupled_steps: the predicted dynamics are those of SGD without momentum"

    def _no_schedule(self) -> Iterator[str]:
        """Say which changes cannot be made."""
        if self.schedule and (self.window or self.coupled_steps):
            yield "schedule: not together with windows or coupled steps, whose settings must not change"
        last = 0
        for change in self.schedule:
            where = f"schedule: step {change.step}"
            if change.step >= self.steps:
                yield f"{where} is not before the end, {self.steps} steps"
            if change.step <= last:
                yield f"{where} does not come after {f'step {last}' if last else 'the start'}"
            if (change.batch_size or 1) > self.train_size:
                yield f"{where}: batch_size {change.batch_size} is above the {self.train_size} training examples"
            if change.step % self.measure_every:
                yield f"{where} is not a multiple of measure_every {self.measure_every}"
            last = change.step

    def _no_measurement(self) -> Iterator[str]:
        """Say what cannot be measured, or not then."""
        for key in ("batch_sharpness_draws", "minibs_draws", "overlap_draws"):
            if getattr(self, key) == 1:
                yield f"{key} 1 gives no standard error: 0, or at least 2"
        if self.static_sizes and not self.minibs_draws:
            yield "static_sizes need minibs_draws"
        if self.sample_every % self.measure_every:
            yield f"sample_every {self.sample_every} is not a multiple of measure_every {self.measure_every}"
        if self.window and (self.window_every < self.window or self.window_every % self.measure_every):
            wanted = f"a multiple of measure_every {self.measure_every}, at least window {self.window}"
            yield f"window_every {self.window_every} is not {wanted}"
        if self.coupled_steps and (self.steps - self.coupled_steps) % self.measure_every:
            yield f"steps − coupled_steps is not a multiple of measure_every {self.measure_every}"
        if self.coupled_steps > self.steps or (self.coupled_steps and self.noise != "sgd"):
            yield f"coupled_steps {self.coupled_steps}: at most steps {self.steps}, and only with noise sgd"

    def at(self, step: int) -> RunConfig:
        """Return the settings with which this step is made, as a run without a schedule."""
        if not self.schedule:
            return self
        values: dict[str, Any] = {"schedule": ()}
        for change in self.schedule:
            if change.step <= step:
                values |= {key: value for key, value in change.to_dict().items() if key != "step"}
        return dataclasses.replace(self, **values)

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


REAL = {field.name for field in dataclasses.fields(RunConfig) if field.type == "float"}


def defaults() -> dict[str, Any]:
    """Return the settings that have a default; a file from before a setting was there was made with its default."""
    values = {f.name: f.default for f in dataclasses.fields(RunConfig) if f.default is not MISSING}
    return {key: list(value) if isinstance(value, tuple) else value for key, value in values.items()}


def difference(stored: Mapping[str, Any], wanted: Mapping[str, Any]) -> str | None:
    """Name the first key in which two configurations differ, with both values, or return None."""
    for key in sorted({*stored, *wanted}):
        if stored.get(key) != wanted.get(key):
            return f"{key} is {stored.get(key)!r}, not {wanted.get(key)!r}"
    return None


@cache
def _checker(names: object) -> Checker:
    return Checker(object_schema(RunConfig))


def check_settings(settings: Mapping[str, Any], source: str) -> None:
    """Check a set of settings, as presets write them.

    Raises:
        ConfigError: A key is unknown, or a value has the wrong type or is out of range; the message names it.
    """
    _checker(catalogue.names())(dict(settings), source)  # compiled anew where a row was added
    check_numbers(settings, source)


def check_numbers(settings: Mapping[str, Any], source: str) -> None:
    """Refuse what a schema lets pass: 8.0 counts as an integer there, and NaN and infinity as numbers.

    Raises:
        ConfigError: A number is not finite, or a whole one was asked for; the message names its key.
    """
    for change in settings.get("schedule", []):
        check_numbers(change, f"{source}.schedule")
    for key, value in settings.items():
        for number in value if isinstance(value, list) else [value]:
            if isinstance(number, float) and not (key in REAL and math.isfinite(number)):
                raise ConfigError(f"{source}: {key}: {number!r} is not {'a finite number' if key in REAL else 'an integer'}")
