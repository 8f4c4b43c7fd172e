"""Devices: which one, how much of its memory to use, and that a GPU computes float32 products in float32."""

from __future__ import annotations

import contextlib
import ctypes
import platform
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import torch

from eosslib.errors import DeviceError

DEFAULT_MEMORY = 4 << 30  # bytes of kept passes on a CPU
M_TRIM_THRESHOLD, M_MMAP_THRESHOLD = -1, -3  # of malloc.h
DRAWN_MEMORY = 256 << 20  # bytes of batched mini-batches on a CPU, where larger lots gain nothing


def choose_device(name: str = "auto") -> torch.device:
    """Return ``cuda`` if there is one, else ``cpu``; or the device that was asked for.

    Raises:
        DeviceError: The device does not exist on this machine.
    """
    if name == "auto":
        return torch.device("cuda" if torch.cuda.is_available() else "cpu")
    try:
        device = torch.device(name)
    except RuntimeError:
        raise DeviceError(f"'{name}' is not a device; use auto, cpu, cuda or cuda:1") from None
    if device.type not in ("cpu", "cuda"):
        raise DeviceError(f"'{name}' is not a device that is supported; use auto, cpu, cuda or cuda:1")
    if device.type == "cuda" and (not torch.cuda.is_available() or (device.index or 0) >= torch.cuda.device_count()):
        raise DeviceError(f"--device {name}: this machine has {torch.cuda.device_count()} CUDA devices; use --device cpu")
    return device


def processor(cpuinfo: Path = Path("/proc/cpuinfo")) -> str:
    """Return the name of the processor: what its products round to, and how fast they are, hang on it."""
    described = cpuinfo.read_text(encoding="utf-8", errors="replace") if cpuinfo.is_file() else ""
    names = (line.split(":", 1)[1].strip() for line in described.splitlines() if line.startswith("model name"))
    return next(names, "") or platform.processor() or platform.machine()


def kept_memory(device: torch.device, asked: int | None = None) -> int:
    """Return how many bytes kept passes may hold: as many as asked for, else 4 GiB, on a GPU a third of its memory."""
    if asked is not None:
        return asked
    return _of_gpu(device) // 3 if device.type == "cuda" else DEFAULT_MEMORY


def drawn_memory(device: torch.device, asked: int | None = None) -> int:
    """Return how many bytes mini-batches computed together may take: as asked, else 256 MiB, on a GPU an eighth of its memory."""
    if asked is not None:
        return asked
    return _of_gpu(device) // 8 if device.type == "cuda" else DRAWN_MEMORY


def keep_freed_memory() -> None:
    """Have the C library keep 256 MiB that were freed, where it is GNU's, instead of fetching them anew for every chunk.

    It gives memory back to the system as soon as some MiB at the end of its heap are free, and the next chunk of examples then
    takes as many page faults: up to a fifth of a Hessian product of a convolutional network.
    """
    with contextlib.suppress(AttributeError, OSError, TypeError):  # no such function, or no library to ask
        mallopt = ctypes.CDLL(None).mallopt
        mallopt(M_MMAP_THRESHOLD, 32 << 20)  # the most it takes
        mallopt(M_TRIM_THRESHOLD, 256 << 20)


def _of_gpu(device: torch.device) -> int:
    # All of it, not what is free: how sums are cut, and so their last digits, must not depend on what else runs there.
    return torch.cuda.get_device_properties(device).total_memory


@contextlib.contextmanager
def float32_products(*, tf32: bool = False) -> Iterator[None]:
    """Have a GPU compute products and convolutions of float32 numbers in float32, or rounded to TF32, and then as before.

    PyTorch lets convolutions round to TF32 (10 bits) unless told otherwise; a sharpness is worth more than that. Convolutions
    take algorithms that give the same bits each time. A setting that was inherited from ``torch.backends.fp32_precision`` is
    afterwards its own, with the same value.
    """
    if not torch.cuda.is_available():
        yield
        return
    cudnn: Any = torch.backends.cudnn
    backends: list[Any] = [torch.backends.cuda.matmul, cudnn.conv, cudnn.rnn]
    before, deterministic = [backend.fp32_precision for backend in backends], cudnn.deterministic
    # The older name first, so that both agree: a module that uses ``cudnn.flags`` reads it.
    cudnn.allow_tf32, cudnn.deterministic = tf32, True
    for backend in backends:
        backend.fp32_precision = "tf32" if tf32 else "ieee"
    try:
        yield
    finally:
        cudnn.allow_tf32, cudnn.deterministic = before[1] == "tf32", deterministic
        for backend, precision in zip(backends, before, strict=True):
            backend.fp32_precision = precision
