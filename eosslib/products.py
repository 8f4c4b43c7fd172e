"""Matrix products of a stack of networks, by whichever of PyTorch's two libraries is the faster.

On the CPU PyTorch's own products are MKL's, which on AMD's processors takes a path of half their speed. oneDNN, which PyTorch has
on board for convolutions, writes its code for the processor at hand: on AVX-512 of either make it is at least as fast, in plain
float32 all the same (a test holds its errors against float64). It is used for products that are worth the call; which ones these
are depends on the size of one network's product alone, so that a run's numbers do not depend on the runs beside it.
"""

from __future__ import annotations

import torch

WORTH_IT = 1 << 20  # multiplications, from which on oneDNN's longer call is made good
_onednn = getattr(torch.ops.mkldnn, "_linear_pointwise", None) if torch.backends.mkldnn.is_available() else None


def uses_onednn(a: torch.Tensor, b: torch.Tensor) -> bool:
    """Whether a product goes to oneDNN: float32 on the CPU, large enough, and nothing to be differentiated automatically."""
    return (
        _onednn is not None
        and a.dtype == b.dtype == torch.float32
        and a.device.type == b.device.type == "cpu"
        and a.shape[1] * a.shape[2] * b.shape[2] >= WORTH_IT
        and not (torch.is_grad_enabled() and (a.requires_grad or b.requires_grad))
    )


def product(a: torch.Tensor, b: torch.Tensor, plus: torch.Tensor | None = None) -> torch.Tensor:
    """Return a b, plus a matrix or row that does not change: (R, m, k), (R, k, n) and (R, m, n) or (R, 1, n) → (R, m, n).

    Args:
        a: Left factors.
        b: Right factors.
        plus: What to add.
    """
    if not uses_onednn(a, b):
        return a @ b if plus is None else torch.baddbmm(plus, a, b)
    assert _onednn is not None
    parts = [_onednn(left, right.mT, None, "none", [], "") for left, right in zip(a, b, strict=True)]
    result = parts[0].unsqueeze(0) if len(parts) == 1 else torch.stack(parts)
    return result if plus is None else result.add_(plus)
