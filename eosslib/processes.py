"""What trainings that run beside each other owe each other: a lock a run, and an end with the process that started them."""

from __future__ import annotations

import contextlib
import ctypes
import logging
import os
import signal
import time
from collections.abc import Iterator, Mapping
from pathlib import Path

from eosslib.errors import EosslibError, Interrupted, RunFileError

try:
    import fcntl
except ImportError:  # not a Unix: there are no locks
    fcntl = None  # type: ignore[assignment]

log = logging.getLogger(__name__)

TRIES, PAUSE = 5, 0.1  # of taking a lock, seconds between them: who only looks holds it for an instant
BEING_TRAINED = "is being trained by process"
PR_SET_PDEATHSIG = 1  # of Linux' prctl


class Busy(EosslibError):
    """Another process trains the run."""


@contextlib.contextmanager
def locked(paths: Mapping[str, Path]) -> Iterator[None]:
    """Hold the locks of some runs; the system takes them back when this process dies, however it dies.

    Args:
        paths: The lock file of each run, by the run's name. They are removed afterwards.

    Raises:
        Busy: Another process holds one of them; none is held then.
        RunFileError: The folder cannot be written to.
    """
    held: list[tuple[Path, int]] = []
    try:
        for name, path in paths.items():
            handle = _take_patiently(path)
            if handle is None:
                whose = f"{name} {BEING_TRAINED} {holder(path) or 'that has just ended'}"
                raise Busy(f"{whose}; wait until it is done, or stop it and run the same command")
            held.append((path, handle))
        yield
    finally:
        for path, handle in held:
            path.unlink(missing_ok=True)  # while it is held, see _take
            os.close(handle)


def holder(path: Path) -> str | None:
    """Return the number of the process that holds a lock, None where nobody does; a file a killed process left is no lock."""
    try:
        handle = os.open(path, os.O_RDONLY)
    except OSError:
        return None
    try:
        return None if _lock(handle) else os.read(handle, 20).decode() or "unknown"
    finally:
        os.close(handle)


def _take_patiently(path: Path) -> int | None:
    for attempt in range(TRIES):
        time.sleep(PAUSE if attempt else 0)
        handle = _take(path)
        if handle is not None:
            return handle
    return None


def _take(path: Path) -> int | None:
    """Return an open file that holds the lock, None where another process does."""
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        while True:
            handle = os.open(path, os.O_RDWR | os.O_CREAT, 0o644)
            if not _lock(handle):
                os.close(handle)
                return None
            with contextlib.suppress(FileNotFoundError):
                if os.path.samestat(os.stat(path), os.fstat(handle)):
                    os.ftruncate(handle, 0)
                    os.write(handle, str(os.getpid()).encode())
                    return handle
            os.close(handle)  # the file was removed by its holder after it had been opened here: a lock nobody else would see
    except OSError as error:
        raise RunFileError(f"cannot write {path}: {error.strerror or error}") from None


def _lock(handle: int) -> bool:
    if fcntl is None:
        return True
    try:
        fcntl.flock(handle, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BlockingIOError:
        return False
    except OSError as error:  # some network file systems
        log.warning("this file system has no locks (%s): see to it yourself that no run is trained twice", error.strerror)
    return True


def end_with(parent: int) -> None:
    """Have this process be asked to stop when its parent dies, as by SIGTERM; only Linux can.

    Raises:
        Interrupted: The parent has died already.
    """
    with contextlib.suppress(OSError, AttributeError):  # another system
        ctypes.CDLL(None).prctl(PR_SET_PDEATHSIG, int(signal.SIGTERM))
    if os.getppid() != parent:
        raise Interrupted(f"process {parent}, which started this one, has ended")
