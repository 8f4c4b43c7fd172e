"""Matrix products of a stack of networks, and tanh, by whichever of PyTorch's two libraries is the faster on the processor at hand.

On the CPU PyTorch's own products are MKL's, which on AMD's processors takes a path of half their speed. oneDNN, which PyTorch
has on board for convolutions, writes its code for the processor at hand, in plain float32 all the same (a test holds its errors
against float64): on AMD twice as fast, on Intel no faster than MKL, and 2.7 times as slow for the gradient of a wide layer,
whose right factor it rearranges first. So Intel's processors keep MKL. Large products, and thin ones, are made network by
network, because MKL rounds those of a whole stack otherwise than that of one; which ones these are depends on one network's
product alone, so that a run's numbers do not depend on the runs beside it.
"""

from __future__ import annotations

import platform
from pathlib import Path

import torch

WORTH_IT = 1 << 20  # multiplications, from which on a call for each network, and oneDNN's longer one, are made good


def made_by_intel(cpuinfo: Path = Path("/proc/cpuinfo")) -> bool:
    """Whether this is one of Intel's processors, for which MKL is made."""
    described = cpuinfo.read_text(encoding="utf-8", errors="replace") if cpuinfo.is_file() else platform.processor()
    return "GenuineIntel" in described


ONEDNN = getattr(torch.ops.mkldnn, "_linear_pointwise", None) if torch.backends.mkldnn.is_available() else None
_onednn = None if torch.backends.mkl.is_available() and made_by_intel() else ONEDNN


def is_large(a: torch.Tensor, b: torch.Tensor) -> bool:
    """Whether one network's product has so many multiplications that the time of a call does not count."""
    return a.shape[1] * a.shape[2] * b.shape[2] >= WORTH_IT


def goes_one_by_one(a: torch.Tensor, b: torch.Tensor) -> bool:
    """Whether a product is made network by network: on the CPU, large or with a vector, not to be differentiated automatically."""
    return (
        a.device.type == b.device.type == "cpu"
        and (is_large(a, b) or 1 in (a.shape[1], a.shape[2], b.shape[2]))
        and not (torch.is_grad_enabled() and (a.requires_grad or b.requires_grad))
    )


def uses_onednn(a: torch.Tensor, b: torch.Tensor) -> bool:
    """Whether a product goes to oneDNN: large, float32, and not on one of Intel's processors."""
    return _onednn is not None and a.dtype == b.dtype == torch.float32 and is_large(a, b) and goes_one_by_one(a, b)


def product(a: torch.Tensor, b: torch.Tensor, plus: torch.Tensor | None = None) -> torch.Tensor:
    """Return a b, plus a matrix or row that does not change: (R, m, k), (R, k, n) and (R, m, n) or (R, 1, n) → (R, m, n).

    Args:
        a: Left factors.
        b: Right factors.
        plus: What to add.
    """
    if not goes_one_by_one(a, b):
        return a @ b if plus is None else torch.baddbmm(plus, a, b)
    multiply = _by_onednn if uses_onednn(a, b) else torch.mm
    parts = [multiply(left, right) for left, right in zip(a, b, strict=True)]
    result = parts[0].unsqueeze(0) if len(parts) == 1 else torch.stack(parts)
    return result if plus is None else result.add_(plus)


def _by_onednn(left: torch.Tensor, right: torch.Tensor) -> torch.Tensor:
    assert _onednn is not None
    return _onednn(left, right.mT, None, "none", [], "")


def tanh(x: torch.Tensor) -> torch.Tensor:
    """Return tanh x, by oneDNN where it makes the products: three times as fast as MKL's, to 1.3 roundings (2⁻²⁴) for 1.0.

    For feature maps; small layers gain nothing by it.
    """
    needs_graph = torch.is_grad_enabled() and x.requires_grad
    if _onednn is None or x.device.type != "cpu" or x.dtype != torch.float32 or needs_graph:
        return torch.tanh(x)
    return x.to_mkldnn().tanh().to_dense()
