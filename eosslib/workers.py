"""The trainings of a queue as processes of their own: started in order, so many at a time, waited for, stopped together."""

from __future__ import annotations

import logging
import os
import signal
import subprocess
import sys
import tempfile
import time
from dataclasses import dataclass, field
from pathlib import Path
from typing import IO

from eosslib import runs
from eosslib.errors import EosslibError, Interrupted
from eosslib.processes import BEING_TRAINED
from eosslib.queue import Settings, Training, finished, folders, total, trainer

log = logging.getLogger(__name__)

POLL = 0.2  # seconds between looks at the trainings
LINES = 10  # of a training's messages that are passed on when it ends


@dataclass
class _Child:
    process: subprocess.Popen[bytes]
    output: IO[bytes]  # a file without a name: nothing is left of it, and a child never waits for a reader

    def said(self) -> list[str]:
        self.output.seek(0)
        return self.output.read().decode("utf-8", "replace").splitlines()[-LINES:]


@dataclass
class _Queue:
    """The trainings that wait, in order, those that run, and those that failed."""

    settings: Settings
    waiting: list[Training]
    running: dict[str, tuple[Training, _Child]] = field(default_factory=dict)
    failed: list[str] = field(default_factory=list)
    told: set[str] = field(default_factory=set)  # of whom it was said that another process trains them

    def start(self) -> None:
        """Start as many as may run; one that another process trains is left for later."""
        for training in list(self.waiting):
            if len(self.running) >= self.settings.jobs:
                return
            if finished(training, self.settings):  # by another process
                self.waiting.remove(training)
            elif (whose := trainer(training, self.settings)) is not None:
                self.tell_busy(training, whose)
            else:
                self.waiting.remove(training)
                log.info("%s: started", training.name)
                self.running[training.name] = (training, _spawn(training, self.settings))

    def collect(self) -> None:
        """See which have ended, and how."""
        for name, (training, child) in list(self.running.items()):
            status = child.process.poll()
            if status is None:
                continue
            said = child.said()
            del self.running[name]
            child.output.close()
            if status == 1 and said and BEING_TRAINED in said[-1]:  # it began in the meantime
                self.waiting.insert(0, training)
                continue
            for line in said:
                log.info("%s: %s", name, line)
            if status != 0 or not finished(training, self.settings):
                how = f"signal {-status}" if status < 0 else f"exit status {status}"
                log.error("%s: failed with %s; the queue goes on with the others", name, how)
                self.failed.append(name)
            left = [*(t for t, _ in self.running.values()), *self.waiting]
            log.info("%s", total(left, self.settings))

    def tell_busy(self, training: Training, whose: str) -> None:
        if training.name not in self.told:
            self.told.add(training.name)
            log.info("%s: %s %s; it is waited for", training.name, BEING_TRAINED, whose)

    def stop(self) -> None:
        """Have all stop with a checkpoint, and wait for them undisturbed by another Ctrl-C."""
        before = {number: signal.signal(number, signal.SIG_IGN) for number in (signal.SIGINT, signal.SIGTERM)}
        for _, child in self.running.values():
            child.process.terminate()
        for name, (_, child) in self.running.items():
            child.process.wait()
            for line in child.said()[-1:]:
                log.info("%s: %s", name, line)
        for number, handler in before.items():
            signal.signal(number, handler)


def _spawn(training: Training, settings: Settings) -> _Child:
    """Start a training, in a session of its own: a Ctrl-C at the terminal is the queue's to pass on, once."""
    source = str(Path(training.source).resolve()) if training.source.endswith((".yaml", ".yml")) else training.source
    group, folder = training.group, folders(training, settings)[0].resolve()
    command = ["train", source, group.name, "--seeds", str(group.runs[0].seed), "--out", str(folder), "--threads", "1"]
    command += ["--device", settings.device, "--checkpoint-seconds", str(settings.checkpoint_seconds), "--parent", str(os.getpid())]
    if settings.data_folder is not None:
        command += ["--data", str(settings.data_folder.resolve())]
    output = tempfile.TemporaryFile()  # noqa: SIM115, it is closed when the training has ended
    process = subprocess.Popen(
        [sys.executable, "-m", "eosslib", *command],
        cwd=runs.ROOT,  # so that this package is the one that trains
        stdin=subprocess.DEVNULL,
        stdout=output,
        stderr=output,
        start_new_session=True,
    )
    return _Child(process, output)


def run(trainings: list[Training], settings: Settings) -> None:
    """Train what is left, in order, so many at a time.

    Raises:
        EosslibError: Trainings failed; the others were trained nevertheless.
        Interrupted: Stopped from outside; checkpoints hold what was reached.
    """
    queue = _Queue(settings, [training for training in trainings if not finished(training, settings)])
    try:
        while queue.waiting or queue.running:
            queue.start()
            time.sleep(POLL)
            queue.collect()
    except KeyboardInterrupt:
        queue.stop()
        raise Interrupted("the queue is stopped; run the same command to go on from the checkpoints") from None
    if queue.failed:
        raise EosslibError(f"{len(queue.failed)} of {len(trainings)} trainings failed: {', '.join(queue.failed)}")
