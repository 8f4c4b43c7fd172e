"""What several test files share besides fixtures: settings of a tiny run, a stopped training, the command line as a process."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest

from eosslib.config import Group
from eosslib.errors import Interrupted
from eosslib.jobs import Options, train_group
from eosslib.training import Trainer

ROOT = Path(__file__).resolve().parents[1]

TINY: dict[str, Any] = {
    "model": "fc-tanh",
    "loss": "mse",
    "batch_size": 8,
    "lr": 0.1,
    "steps": 12,
    "train_size": 40,
    "width": 4,
    "depth": 2,
    "measure_every": 5,
}


@dataclass(frozen=True)
class Finished:
    """How a call of the command line ended."""

    status: int
    out: str
    err: str


def refused(finished: Finished) -> str:
    """The one line on stderr with which a command was refused."""
    assert finished.status == 1
    assert finished.out == ""
    lines = finished.err.splitlines()
    assert len(lines) == 1, finished.err
    assert lines[0].startswith("error: ")
    return lines[0]


def start_process(*arguments: str | Path) -> subprocess.Popen[str]:
    """Start ``python -m eosslib …`` with buffered output and a Ctrl-C that works, whatever this process was started with."""
    environment = {key: value for key, value in os.environ.items() if key != "PYTHONUNBUFFERED"}
    return subprocess.Popen(
        [sys.executable, "-m", "eosslib", *map(str, arguments)],
        env={**environment, "PYTHONPATH": str(ROOT)},
        cwd=ROOT,
        text=True,
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        preexec_fn=lambda: signal.signal(signal.SIGINT, signal.SIG_DFL),
    )


def stop_after(
    step: int,
    group: Group,
    options: Options,
    monkeypatch: pytest.MonkeyPatch,
    then: str = "run the same command to go on from there",
) -> None:
    """Train with a Ctrl-C at the first step after ``step``."""
    advance = Trainer.advance

    def interrupted(self: Trainer, stop: int) -> None:
        if stop > step:
            raise KeyboardInterrupt
        advance(self, stop)

    with monkeypatch.context() as patch:
        patch.setattr(Trainer, "advance", interrupted)
        with pytest.raises(Interrupted, match=f"stopped at step {step}; {then}"):
            train_group(group, options)
