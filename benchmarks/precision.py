"""What the precision of matrix products does to the top Hessian eigenvalue.

    python benchmarks/precision.py                    FC-tanh and CNN of the cifar10 preset, on the device there is
    python benchmarks/precision.py --write            put the table into benchmarks/PRECISION.md as well

The network is trained by gradient descent for a few steps; then H v, λ_max and its vector u are computed with everything in
float32, and with the operands of matrix products and convolutions rounded to TF32 (10 bits of mantissa, sums in float32), against
float64. On a CPU the rounding is emulated, operation by operation, which says what it does to the numbers and nothing about
time; on a GPU the device's own TF32 is switched on besides.
"""

from __future__ import annotations

import argparse
import contextlib
import functools
import math
import platform
from collections.abc import Callable
from contextlib import AbstractContextManager
from pathlib import Path
from typing import Any

import cost
import pandas as pd
import torch
from torch.utils._python_dispatch import TorchDispatchMode

from eosslib.curvature import Point
from eosslib.devices import choose_device, float32_products, processor
from eosslib.eigen import top_eigenpairs
from eosslib.training import Trainer

RESULTS = Path(__file__).with_name("PRECISION.md")
TOL = 1e-3  # the presets' residual
aten = torch.ops.aten
OPERANDS = {  # places of the matrices; what is added to their product is not rounded
    aten.mm: (0, 1),
    aten.bmm: (0, 1),
    aten.addmm: (1, 2),
    aten.baddbmm: (1, 2),
    torch.ops.mkldnn._linear_pointwise: (0, 1),
    aten.convolution: (0, 1),
    aten.convolution_backward: (0, 1, 2),
}


def rounded(x: torch.Tensor, bits: int) -> torch.Tensor:
    """Round float32 to so many bits of mantissa, to the nearest, halves away from zero."""
    dropped = 23 - bits
    whole = x.contiguous().view(torch.int32)
    return (((whole + (1 << (dropped - 1))) >> dropped) << dropped).view(torch.float32)


class Rounded(TorchDispatchMode):
    """Rounds the operands of matrix products and convolutions to so many bits of mantissa."""

    def __init__(self, bits: int) -> None:
        super().__init__()
        self.bits, self.count = bits, 0

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        places = OPERANDS.get(func.overloadpacket, ())
        self.count += bool(places)
        args = [rounded(a, self.bits) if i in places and a.dtype == torch.float32 else a for i, a in enumerate(args)]
        return func(*args, **(kwargs or {}))


def angle(u: torch.Tensor, v: torch.Tensor) -> float:
    """Return the angle between two directions, up to their signs."""
    u, v = u / u.norm(), v / v.norm()
    return 2 * math.asin(min((u - v).norm().item(), (u + v).norm().item()) / 2)


def table(built: Trainer, name: str) -> pd.DataFrame:
    """A row a precision: errors of a product and of λ_max against float64, and how the eigen-solver fared."""
    theta, x, y = built.state.theta[:1], built.x, built.y
    generator = torch.Generator().manual_seed(0)
    v, start = (torch.randn(1, theta.shape[1], generator=generator, dtype=torch.float64).to(theta.device) for _ in range(2))
    exact = Point(built.objective, theta.double(), x.double(), y.double()).hessian()
    product, truth = exact(v), top_eigenpairs(exact, start.unsqueeze(1), tol=1e-6)
    del exact
    ways: dict[str, Callable[[], AbstractContextManager[Any]]] = {
        "float32": contextlib.nullcontext,
        "TF32, emulated": lambda: Rounded(10),
    }
    ways |= {"TF32": functools.partial(float32_products, tf32=True)} if theta.device.type == "cuda" else {}
    ways |= {"bfloat16, emulated": lambda: Rounded(7)}
    rows = []
    for way, context in ways.items():
        with float32_products(), context() as mode:
            operator = Point(built.objective, theta, x, y).hessian()
            error = (operator(v.float()).double() - product).norm() / product.norm()
            found = top_eigenpairs(operator, start.float().unsqueeze(1), tol=TOL, max_products=100)
        assert not isinstance(mode, Rounded) or mode.count, "nothing was rounded"
        rows.append(
            {
                "network": f"{name}, λ_max = {truth.values.item():.2f}",
                "products in": way,
                "error of H v": f"{error.item():.1e}",
                "error of λ_max": f"{abs(found.values.item() / truth.values.item() - 1):.1e}",
                "angle of u": f"{angle(found.vectors.double(), truth.vectors):.1e}",
                "residual": f"{found.residuals.item():.1e}",
                "products": str(found.products.item()),
            }
        )
    return pd.DataFrame(rows).set_index("network")


def main() -> None:
    parser = argparse.ArgumentParser(description="Errors of the sharpness by the precision of matrix products.")
    parser.add_argument("--device", default="auto")
    parser.add_argument("--steps", type=int, nargs=2, default=[300, 30], help="of gradient descent before, MLP and CNN")
    parser.add_argument("--write", action="store_true", help=f"write the table into {RESULTS.name} as well")
    args = parser.parse_args()
    device = choose_device(args.device)
    data, images = cost.load(device)
    parts = []
    for (model, name), steps in zip({"fc-tanh": "FC-tanh", "cnn": "CNN"}.items(), args.steps, strict=True):
        built = cost.trainer(1, device, data, batch_size=5000, model=model, width=cost.WIDTH[model])
        built.advance(steps)
        parts.append(table(built, f"{name}, {steps} steps"))
    where = torch.cuda.get_device_name(device) if device.type == "cuda" else processor()
    versions = f"torch {torch.__version__}, Python {platform.python_version()}"
    made = f"n = 5,000 ({images}), squared error, η = 0.01. {where}; {versions}."
    meant = (
        f"Errors are relative, against float64; the solver starts cold and stops at a residual of {TOL:g}, or after 100 products."
    )
    described = (__doc__ or "").split("\n\n", 2)[2].strip()
    lines = ["# Precision", "", described, "", made, meant, "", cost.markdown(pd.concat(parts))]
    text = "\n".join(lines) + "\n"
    print(text)
    if args.write:
        RESULTS.write_text(text, encoding="utf-8")


if __name__ == "__main__":
    main()
