"""Fixtures of the suite: one CPU thread, settings of a tiny run, presets in a temporary folder, the command line."""

from __future__ import annotations

import logging
import signal
import subprocess
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
import torch
import yaml
from helpers import TINY, Finished, start_process

from eosslib.settings import RunConfig

torch.set_num_threads(1)


@pytest.fixture
def tiny() -> Callable[..., RunConfig]:
    """Settings of a run that takes milliseconds; keywords change them."""
    return lambda **changes: RunConfig(**{**TINY, **changes})


@pytest.fixture
def write_preset(tmp_path: Path) -> Callable[..., Path]:
    """Write ``<tmp>/mini.yaml``, a valid preset of one tiny group ``only/b0008``; keywords replace its parts, None removes one."""

    def write(filename: str = "mini.yaml", **changes: Any) -> Path:
        runs = changes.get("runs") or {"only": {}}
        preset = {"name": "mini", "seeds": [0, 1], "settings": TINY, "runs": runs, "notebooks": {"01_first": list(runs)}}
        kept = {key: value for key, value in {**preset, **changes}.items() if value is not None}
        path = tmp_path / filename
        path.write_text(yaml.safe_dump(kept, sort_keys=False), encoding="utf-8")
        return path

    return write


@pytest.fixture
def eosslib(monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> Iterator[Callable[..., Finished]]:
    """Call the command line in this process, logging to stderr as it does in its own."""
    from eosslib.__main__ import main

    before = {number: signal.getsignal(number) for number in (signal.SIGTERM, signal.SIGINT)}
    monkeypatch.setattr(logging.root, "level", logging.WARNING)
    monkeypatch.setattr(torch, "set_num_interop_threads", lambda number: None)  # torch allows it once a process

    def call(*arguments: str | Path) -> Finished:
        monkeypatch.setattr(logging.root, "handlers", [])  # without pytest's, and those of the call before
        capsys.readouterr()
        status = main([str(a) for a in arguments])
        captured = capsys.readouterr()
        return Finished(status, captured.out, captured.err)

    yield call
    for number, handler in before.items():
        signal.signal(number, handler)


@pytest.fixture
def start() -> Iterator[Callable[..., subprocess.Popen[str]]]:
    """Start command lines in processes of their own; what still runs when the test ends is killed."""
    started: list[subprocess.Popen[str]] = []

    def begin(*arguments: str | Path) -> subprocess.Popen[str]:
        started.append(start_process(*arguments))
        return started[-1]

    yield begin
    for process in started:
        if process.poll() is None:
            process.kill()
        process.wait()
        for stream in (process.stdout, process.stderr):
            if stream is not None:
                stream.close()


@pytest.fixture
def cuda() -> torch.device:
    """A CUDA device; the test is skipped where there is none."""
    if not torch.cuda.is_available():
        pytest.skip("needs a CUDA device")
    return torch.device("cuda")
