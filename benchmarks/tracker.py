"""λ_max of a network of your own through SharpnessTracker, curvlinops and PyHessian: lines of code, time, error.

    python benchmarks/tracker.py [--write]     --write puts the table into benchmarks/TRACKER.md as well

The network is that of notebook 20 (a torchvision ResNet, two stages) after 60 steps on 300 digits, with GroupNorm and without
normalisation. A way counts the lines of its function below, imports among them; the times are medians over rounds in which all
take turns; the error is that of the eigenvalue against SciPy's eigsh in float64 to 1e-10. MiniBS, batch sharpness and σ_u² are
left out, because the others do not have them.
"""

from __future__ import annotations

import argparse
import copy
import inspect
import platform
import statistics
import sys
import time
from collections.abc import Callable
from importlib import metadata
from pathlib import Path

import numpy as np
import torch
from scipy.sparse.linalg import LinearOperator, eigsh
from torch import nn
from torchvision.models.resnet import BasicBlock, ResNet

from eosslib import datasets
from eosslib.devices import processor

Way = Callable[[nn.Module, nn.Module, torch.Tensor, torch.Tensor], float]


def trained(x: torch.Tensor, y: torch.Tensor, norm: Callable[[int], nn.Module]) -> nn.Module:
    torch.manual_seed(0)
    model = ResNet(BasicBlock, [1, 1, 1, 1], norm_layer=norm)
    model.layer3, model.layer4, model.fc = nn.Identity(), nn.Identity(), nn.Linear(128, 10)
    optimizer = torch.optim.SGD(model.parameters(), lr=0.1)
    for step in range(60):
        batch = slice(50 * (step % 6), 50 * (step % 6) + 50)
        optimizer.zero_grad()
        nn.functional.mse_loss(model(x[batch]), y[batch]).backward()
        optimizer.step()
    return model


def ours(model: nn.Module, loss: nn.Module, x: torch.Tensor, y: torch.Tensor) -> float:
    from eosslib import SharpnessTracker

    optimizer = torch.optim.SGD(model.parameters(), lr=0.1)
    tracker = SharpnessTracker(model, loss, (x, y), optimizer, minibs=False, draws=2)
    return tracker.measure(0)["sharpness"]


def with_curvlinops(model: nn.Module, loss: nn.Module, x: torch.Tensor, y: torch.Tensor) -> float:
    import curvlinops

    params = [p for p in model.parameters() if p.requires_grad]
    hessian = curvlinops.HessianLinearOperator(model, loss, params, [(x, y)], check_deterministic=False)
    return float(eigsh(hessian.to_scipy(), k=1, which="LA", tol=1e-3, return_eigenvectors=False)[0])


def with_pyhessian(model: nn.Module, loss: nn.Module, x: torch.Tensor, y: torch.Tensor) -> float:
    from pyhessian import hessian

    computer = hessian(model, loss, data=(x, y), cuda=False)
    values, _ = computer.eigenvalues(maxIter=100, tol=1e-3, top_n=1)
    return float(values[0])


def exact(model: nn.Module, x: torch.Tensor, y: torch.Tensor) -> float:
    double = copy.deepcopy(model).double()
    parameters = list(double.parameters())
    value = nn.functional.mse_loss(double(x.double()), y.double())
    slope = torch.cat([part.flatten() for part in torch.autograd.grad(value, parameters, create_graph=True)])

    def product(v: np.ndarray) -> np.ndarray:
        parts = torch.autograd.grad(slope, parameters, torch.from_numpy(v.ravel()), retain_graph=True)
        return torch.cat([part.flatten() for part in parts]).numpy()

    operator = LinearOperator((len(slope),) * 2, matvec=product, dtype=np.float64)
    return float(eigsh(operator, k=1, which="LA", tol=1e-10, return_eigenvectors=False)[0])


WAYS: dict[str, tuple[Way, str]] = {
    "SharpnessTracker": (ours, "eosslib"),
    "curvlinops with SciPy's eigsh": (with_curvlinops, "curvlinops-for-pytorch"),
    "PyHessian": (with_pyhessian, "pyhessian"),
}


def lines(way: Way) -> int:
    """Lines of a way's body, imports among them."""
    return sum(bool(line.strip()) for line in inspect.getsource(way).splitlines()[1:])


NORMS: dict[str, Callable[[int], nn.Module]] = {
    "GroupNorm": lambda channels: nn.GroupNorm(8, channels),
    "no normalisation": lambda channels: nn.Identity(),
}


def compare(ways: dict[str, Way], model: nn.Module, x: torch.Tensor, y: torch.Tensor, rounds: int) -> str:
    truth = exact(model, x, y)
    times: dict[str, list[float]] = {name: [] for name in ways}
    errors: dict[str, float] = dict.fromkeys(ways, 0.0)
    failed: dict[str, str] = {}
    for name, way in list(ways.items()) * rounds:
        if name in failed:
            continue
        began = time.perf_counter()
        try:
            value = way(copy.deepcopy(model), nn.MSELoss(), x, y)
        except (NotImplementedError, RuntimeError) as error:
            failed[name] = str(error).splitlines()[0]
            continue
        times[name].append(time.perf_counter() - began)
        errors[name] = max(errors[name], abs(value / truth - 1))
    medians = {name: statistics.median(seconds) for name, seconds in times.items() if seconds}
    first = next(iter(medians.values()))
    rows = ["| way | lines | seconds | times ours | largest relative error |", "| :-- | --: | --: | --: | --: |"]
    for name, way in ways.items():
        found = f"– | – | {failed.get(name)}"
        if name in medians:
            found = f"{medians[name]:.2f} | {medians[name] / first:.2f} | {errors[name]:.1e}"
        rows.append(f"| {name} | {lines(way)} | {found} |")
    return "\n".join(rows)


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--write", action="store_true", help="write benchmarks/TRACKER.md")
    parser.add_argument("--rounds", type=int, default=3)
    args = parser.parse_args()
    torch.set_num_threads(1)
    data = datasets.load("digits", 300)
    x, y = data.x.expand(-1, 3, -1, -1).contiguous(), data.y
    ways = {}
    for name, (way, package) in WAYS.items():
        try:
            ways[f"{name} {metadata.version(package)}"] = way
        except metadata.PackageNotFoundError:
            print(f"{name} is not installed", file=sys.stderr)
    versions = f"torch {torch.__version__}, Python {platform.python_version()}"
    where = f"{processor()}, one thread; {versions}; median of {args.rounds} rounds."
    parts = [where]
    for norm, make in NORMS.items():
        model = trained(x, y, make)
        parts.append(f"## {norm}, λ_max = {exact(model, x, y):.4f}\n\n{compare(ways, model, x, y, args.rounds)}")
    print("\n\n".join(parts))
    if args.write:
        text = (__doc__ or "").split("\n\n", 2)[2].strip()
        page = "\n\n".join(["# Measuring a network of your own", text, *parts]) + "\n"
        Path(__file__).with_name("TRACKER.md").write_text(page, encoding="utf-8")
    return 0


if __name__ == "__main__":
    sys.exit(main())
