"""What an SGD step and a sharpness measurement cost, in units of one full-batch gradient measured in the same run.

    python benchmarks/cost.py                       the paper's MLP 3072-200-200-10, n = 5,000, on the device there is
    python benchmarks/cost.py --steps 2000          after so many steps of gradient descent (default 300)

Uses data/cifar10_5k.npz where it is there, else random images of the same shape (the ratios are alike, the spectrum is not).
Every figure is the median over rounds in which all jobs take turns, so that a drifting machine speed drops out of the ratios.
The relative error is that of the eigenvalue, against a float64 solve of the same Hessian to a residual of 1e-7.
"""

from __future__ import annotations

import argparse
import dataclasses
import platform
import statistics
import sys
import time
from collections.abc import Callable

import pandas as pd
import torch

from eosslib import config, datasets, dynamics, eigen, measurements
from eosslib.curvature import Hessian, full_gradient
from eosslib.errors import DataError
from eosslib.flat import Objective
from eosslib.sampling import batches
from eosslib.training import Trainer, choose_device

SETTINGS = config.RunConfig(
    model="fc-tanh", loss="mse", batch_size=50, lr=0.01, steps=1_000_000, dataset="cifar10", train_size=5000, width=200
)


def load(device: torch.device) -> tuple[datasets.Dataset, str]:
    try:
        return datasets.load("cifar10", 5000, device=device), "CIFAR-10"
    except DataError:
        g = torch.Generator().manual_seed(0)
        x, xt = torch.randn(5000, 3, 32, 32, generator=g), torch.randn(1000, 3, 32, 32, generator=g)
        y, yt = (torch.eye(10)[torch.randint(10, (n,), generator=g)] for n in (5000, 1000))
        return datasets.Dataset(x.to(device), y.to(device), xt.to(device), yt.to(device)), "random images"


def trainer(seeds: int, device: torch.device, data: datasets.Dataset, **changes: object) -> Trainer:
    runs = [dataclasses.replace(SETTINGS, seed=seed, **changes) for seed in range(seeds)]  # type: ignore[arg-type]
    built = Trainer(runs, device, data=data)
    built.state.step = 0
    return built


def clock(job: Callable[[], object], device: torch.device) -> float:
    if device.type == "cuda":
        torch.cuda.synchronize()
    start = time.perf_counter()
    job()
    if device.type == "cuda":
        torch.cuda.synchronize()
    return time.perf_counter() - start


def sgd_step(built: Trainer, size: int, steps: int) -> Callable[[], None]:
    """A loop of SGD steps as the training makes them, on parameters of its own."""
    config_ = dataclasses.replace(built.config, batch_size=size)
    params = built.objective.network.views(built.state.theta.clone())
    context = dynamics.StepContext(built.objective, built.x, built.y, built.parts, 0.0, torch.tensor([]), 0)
    drawn = [batches(config_.train_size, size, config_.sampling, seed, 0, steps, built.device) for seed in built.state.seeds]
    indices = torch.stack(drawn, dim=1)

    def job() -> None:
        for step in range(steps):
            update = dynamics.sgd(context, params, indices[step])
            torch._foreach_add_(list(params), list(update), alpha=-config_.lr)

    return job


def exact(built: Trainer) -> float:
    """The top eigenvalue in float64."""
    theta, x, y = (t.double() for t in (built.state.theta[:1], built.x, built.y))
    objective = Objective(built.objective.network, built.objective.loss)
    start = torch.randn(1, 1, theta.shape[1], dtype=theta.dtype, generator=torch.Generator().manual_seed(1)).to(theta.device)
    pairs = eigen.top_eigenpairs(Hessian(objective, theta, x, y), start, tol=1e-7, max_products=600)
    assert bool(pairs.converged.all())
    return pairs.values.item()


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--device", default="auto")
    parser.add_argument("--threads", type=int, default=1)
    parser.add_argument("--steps", type=int, default=300, help="gradient descent steps before measuring")
    parser.add_argument("--rounds", type=int, default=7)
    args = parser.parse_args()
    torch.set_num_threads(args.threads)
    device = choose_device(args.device)
    data, name = load(device)

    built = trainer(1, device, data, batch_size=5000)
    built.advance(args.steps)
    size = built.objective.network.size
    start = torch.randn(1, 1, size, generator=torch.Generator().manual_seed(0)).to(device)

    def solve(vectors: torch.Tensor, tol: float) -> eigen.Eigenpairs:
        return measurements.sharpness(built.objective, built.state.theta, built.x, built.y, vectors, tol=tol)

    before = solve(start, 1e-3).vectors
    built.advance(args.steps + 5)
    truth = exact(built)
    params = built.objective.network.views(built.state.theta.clone())
    operator = Hessian(built.objective, built.state.theta, built.x, built.y)
    vector = torch.randn_like(built.state.theta)
    three = trainer(3, device, data)
    small = {"dataset": "digits", "train_size": 1500, "width": 64}
    digits = datasets.load("digits", 1500, device=device)
    small_one, small_three = trainer(1, device, digits, **small), trainer(3, device, digits, **small)

    jobs: dict[str, tuple[Callable[[], object], float]] = {
        "full-batch gradient": (lambda: full_gradient(built.objective, params, built.x, built.y, built.parts), 1.0),
        "SGD step, b = 50": (sgd_step(built, 50, 50), 50.0),
        "SGD step, b = 50, of 3 stacked seeds, per seed": (sgd_step(three, 50, 50), 150.0),
        "the same, MLP 64-64-64-10": (sgd_step(small_one, 50, 50), 50.0),
        "the same, MLP 64-64-64-10, of 3 stacked seeds, per seed": (sgd_step(small_three, 50, 50), 150.0),
        "Hessian product, passes kept": (lambda: operator(vector), 1.0),
        "Hessian's forward and backward pass": (lambda: Hessian(built.objective, built.state.theta, built.x, built.y), 1.0),
        "λ_max warm (5 steps later), residual 1e-2": (lambda: solve(before, 1e-2), 1.0),
        "λ_max warm (5 steps later), residual 1e-3": (lambda: solve(before, 1e-3), 1.0),
        "λ_max cold, residual 1e-2": (lambda: solve(start, 1e-2), 1.0),
        "λ_max cold, residual 1e-3": (lambda: solve(start, 1e-3), 1.0),
        "σ_u²": (
            lambda: measurements.noise_variance(built.objective, built.state.theta, before[:, 0], built.x, built.y, batch_size=50),
            1.0,
        ),
    }
    times: dict[str, list[float]] = {job: [] for job in jobs}
    for job, _ in jobs.values():
        job()
    for _ in range(args.rounds):
        for label, (job, count) in jobs.items():
            times[label].append(clock(job, device) / count)
    unit = times["full-batch gradient"]
    rows = []
    for label, seconds in times.items():
        row = {"job": label, "ms": 1e3 * statistics.median(seconds)}
        row["in full-batch gradients"] = statistics.median(t / u for t, u in zip(seconds, unit, strict=True))
        if label.startswith("λ_max"):
            tol = float(label.rsplit(" ", 1)[1])
            pairs = solve(before if "warm" in label else start, tol)
            row |= {"products": pairs.products.item(), "relative error": abs(pairs.values.item() / truth - 1)}
        rows.append(row)
    where = torch.cuda.get_device_name(device) if device.type == "cuda" else f"{platform.machine()} CPU, {args.threads} thread(s)"
    print(f"MLP 3072-200-200-10, n = 5,000 ({name}), after {args.steps} steps of GD at η = 0.01, λ_max = {truth:.3f}")
    print(f"torch {torch.__version__}, {where}, float32, median of {args.rounds} rounds\n")
    formats = {"ms": "{:.2f}".format, "in full-batch gradients": "{:.4f}".format, "relative error": "{:.1e}".format}
    frame = pd.DataFrame(rows).set_index("job")
    print(frame.to_string(formatters=formats, na_rep="–"))
    return 0


if __name__ == "__main__":
    sys.exit(main())
