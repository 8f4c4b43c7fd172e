"""Slim checkpoints: what a training needs to go on elsewhere, small enough to be kept under version control.

A checkpoint holds the parameters, what the optimizer keeps, every measurement so far, and the vectors that the eigen-solver
starts from and probes with, up to seventeen as long as the parameters. A slim one leaves these vectors out: 4 bytes a parameter
in float32, as much again for every vector that the optimizer keeps. On the CPU the training goes on bit for bit the same in its
parameters; its first measurement after that starts as the first of a training does, from a random vector, so measurements may
differ within the solver's tolerance. The run file says so: ``slim_checkpoints`` in its provenance holds the steps. Where the
noise of the training is made of eigenvectors (``along_u`` and its like) they are part of it and are kept, and the file is as
large as the checkpoint.
"""

from __future__ import annotations

import dataclasses
import hashlib
import io
import zlib
from pathlib import Path

import torch

from eosslib import runs
from eosslib.config import Group
from eosslib.dynamics import USES_U
from eosslib.errors import ConfigMismatch, RunFileError
from eosslib.jobs import UNREADABLE, checkpoint_path, lock_path, save_checkpoint
from eosslib.processes import locked
from eosslib.settings import defaults, difference
from eosslib.training import State

MAGIC = b"eosslib slim checkpoint 1\n"  # then the SHA-256 of what follows its line, in hexadecimal digits


def progress(path: Path, group: Group) -> State | None:
    """Return the state in a checkpoint of just these runs, or None."""
    try:
        return _state(torch.load(path, map_location="cpu", weights_only=True), group, path)
    except (*UNREADABLE, RunFileError):
        return None


def export(folder: Path, group: Group, out: Path) -> int:
    """Write the slim form of the checkpoint of a group's runs; the training may go on meanwhile.

    Args:
        folder: The preset's runs.
        group: The runs, all those that are trained stacked.
        out: The file to write.

    Returns:
        Its step.

    Raises:
        RunFileError: There is no such checkpoint, it cannot be read, or the file cannot be written.
        ConfigMismatch: It is of other settings.
    """
    path = checkpoint_path(folder, group)
    try:
        stored = torch.load(path, map_location="cpu", weights_only=True)
        state = _state(stored, group, path)
    except UNREADABLE as error:
        reason = (str(error) or type(error).__name__).splitlines()[0]
        raise RunFileError(f"{path} cannot be read ({reason}): start the training, it writes another") from None
    if group.runs[0].noise not in USES_U:
        state = dataclasses.replace(state, vectors=state.vectors[:, :0].clone(), probe=state.probe[:, :0].clone())
    slim = [*stored.get("slim", []), state.step]
    buffer = io.BytesIO()
    torch.save({"configs": stored["configs"], "state": vars(state), "slim": slim}, buffer)
    contents = zlib.compress(buffer.getvalue())
    with runs.atomic(out) as temporary:
        temporary.write_bytes(MAGIC + hashlib.sha256(contents).hexdigest().encode() + b"\n" + contents)
    return state.step


def restore(path: Path, folder: Path, group: Group) -> int | None:
    """Make a slim checkpoint the one that the training of these runs goes on from.

    Args:
        path: The slim checkpoint.
        folder: The preset's runs.
        group: The runs.

    Returns:
        Its step; None where a checkpoint that is there already is as far or further, and stays.

    Raises:
        RunFileError: The file is damaged or no slim checkpoint, or the checkpoint cannot be written.
        ConfigMismatch: It is of other settings.
        Busy: Another process trains one of the runs.
    """
    state, slim = _read(path, group)
    with locked({f"{group.name} seed {run.seed}": lock_path(folder, group, run) for run in group.runs}):
        there = progress(checkpoint_path(folder, group), group)
        if there is not None and there.step >= state.step:
            return None
        save_checkpoint(checkpoint_path(folder, group), group.runs, state, slim)
    return state.step


def _read(path: Path, group: Group) -> tuple[State, list[int]]:
    try:
        content = path.read_bytes()
    except OSError as error:
        raise RunFileError(f"cannot read {path}: {error.strerror or error}") from None
    if not content.startswith(MAGIC):
        raise RunFileError(f"{path} is no slim checkpoint: make one with `python -m eosslib queue FILE --export FOLDER`")
    digest, _, contents = content.removeprefix(MAGIC).partition(b"\n")
    if hashlib.sha256(contents).hexdigest().encode() != digest:
        raise RunFileError(f"{path} is damaged, its contents do not have the SHA-256 that it names: export or copy it again")
    try:
        stored = torch.load(io.BytesIO(zlib.decompress(contents)), map_location="cpu", weights_only=True)
        return _state(stored, group, path), list(stored["slim"])
    except (*UNREADABLE, zlib.error):
        raise RunFileError(f"{path} was written by another version of eosslib: export it again with this one") from None


def _state(stored: dict, group: Group, path: Path) -> State:
    """Return the state in what was read from a checkpoint, once its settings are known to be these."""
    if len(stored["configs"]) != len(group.runs):
        raise ConfigMismatch(f"{path} holds {len(stored['configs'])} runs, not {len(group.runs)}")
    for config, run in zip(stored["configs"], group.runs, strict=True):
        different = difference({**defaults(), **config}, run.to_dict())
        if different:
            raise ConfigMismatch(f"{path} is of other settings: {different}")
    return State(**stored["state"])
