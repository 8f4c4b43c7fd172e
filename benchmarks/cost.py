"""What training steps and measurements cost, in units of one full-batch gradient measured in the same run, and their floors.

    python benchmarks/cost.py                         the paper's MLP 3072-200-200-10, n = 5,000, on the device there is
    python benchmarks/cost.py --model cnn-tanh        its CNN
    python benchmarks/cost.py --write                 put the table into benchmarks/RESULTS.md as well

Uses data/cifar10_5k.npz where it is there, else random images of the same shape (the ratios are alike, the spectrum is not).
Every figure is the median over rounds in which all jobs take turns, so that a drifting machine speed drops out of the ratios.
The relative error is that of the eigenvalue, against a float64 solve of the same Hessian to a residual of 1e-7. A floor is the
larger of the operations of the matrix products and convolutions over the rate a large matrix product reaches here, and the
bytes of parameters and examples read once and gradients written once over the bandwidth a copy reaches here. SciPy's solver
(always), curvlinops and PyHessian (where they are installed) solve the same problem from the same cold start.
"""

from __future__ import annotations

import argparse
import contextlib
import dataclasses
import functools
import math
import platform
import statistics
import sys
import time
from collections.abc import Callable, Iterable, Iterator
from pathlib import Path
from typing import TypeVar

import numpy as np
import pandas as pd
import scipy
import torch
from torch import nn

from eosslib import catalogue, config, datasets, eigen, models, runs
from eosslib import products as matrices
from eosslib.curvature import Point, full_gradient
from eosslib.devices import choose_device, float32_products, processor
from eosslib.errors import DataError
from eosslib.flat import StackedNetwork
from eosslib.measure.batch import batch_sharpness
from eosslib.measure.drawn import Draws, Estimate
from eosslib.measure.minibatch import minibatch_sharpness
from eosslib.measure.sharpness import sharpness
from eosslib.sampling import batches
from eosslib.settings import MAX_LOTS, RunConfig
from eosslib.training import Trainer

RESULTS = Path(__file__).with_name("RESULTS.md")
SETTINGS = RunConfig(
    model="fc-tanh", loss="mse", batch_size=50, lr=0.01, steps=1_000_000, dataset="cifar10", train_size=5000, width=200
)
WIDTH = {name: model.width for name, model in catalogue.MODELS.items() if model.width}
# Entries of the cifar10 preset, which says how often it measures; else they are called as their networks.
ENTRY = {"cnn": "cnn-mse", "cnn-tanh": "cnn-mse"}
SHARPENING = 5000  # steps of it, about, in which the sharpness still rises

PRODUCT, TF32 = "Hessian product at kept passes", "λ_max cold, TF32"
COLD, BATCH, MINI = "λ_max cold, residual 1e-3", "batch sharpness, b = {}, 40 draws", "MiniBS, b = {}, 40 draws"
SIZES = (50, 250, 500)

Job = Callable[[], object]
Result = TypeVar("Result")


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


def in_tf32(job: Callable[[], Result]) -> Result:
    """Run something with products rounded to TF32 on a GPU, as the companion itself never does."""
    with float32_products(tf32=True):
        return job()


def with_the_other_products(job: Job) -> tuple[str, Job]:
    """Return whose matrix products this processor does not get (``eosslib.products``), and the same job with them."""
    ours = matrices._onednn
    others = None if ours else matrices.ONEDNN

    def alone() -> None:
        matrices._onednn = others
        try:
            job()
        finally:
            matrices._onednn = ours

    return "oneDNN's products" if others else "PyTorch's own products", alone


def wait(device: torch.device) -> None:
    if device.type == "cuda":
        torch.cuda.synchronize()


def clock(job: Job, device: torch.device) -> float:
    wait(device)
    start = time.perf_counter()
    job()
    wait(device)
    return time.perf_counter() - start


def steps_of(built: Trainer, size: int, count: int) -> Job:
    """A stretch of SGD steps as the training makes them (on CUDA, a replayed graph)."""
    other = trainer(len(built.state.seeds), built.device, built.data, **{**_changes(built), "batch_size": size})
    stepper = other._stepper_of(0)
    u = other.state.vectors
    return lambda: stepper.advance(0, count, u)


def _changes(built: Trainer) -> dict[str, object]:
    return {name: getattr(built.config, name) for name in ("model", "width", "hidden", "dataset", "train_size")}


def bare_loop(built: Trainer, size: int, count: int) -> Job:
    """The loop a reader would write: nn.Sequential, autograd, torch.optim.SGD, indices from one permutation."""
    c, data = built.config, built.data
    network = models.initialised(c.model, data.shape, 10, width=c.width, depth=c.depth, hidden=c.hidden, seed=0)
    network = network.to(built.device)
    optimizer = torch.optim.SGD(network.parameters(), lr=c.lr)
    drawn = batches(c.train_size, size, "reshuffle", 0, 0, count, built.device)

    def job() -> None:
        for indices in drawn:
            optimizer.zero_grad()
            (0.5 * (network(data.x[indices]) - data.y[indices]).square().sum(1).mean()).backward()
            optimizer.step()

    return job


def exact(built: Trainer) -> float:
    """The top eigenvalue in float64."""
    theta, x, y = (t.double() for t in (built.state.theta[:1], built.x, built.y))
    start = torch.randn(1, 1, theta.shape[1], dtype=theta.dtype, generator=torch.Generator().manual_seed(1)).to(theta.device)
    pairs = eigen.top_eigenpairs(Point(built.objective, theta, x, y).hessian(), start, tol=1e-7, max_products=600)
    assert bool(pairs.converged.all())
    return pairs.values.item()


# --- floors ------------------------------------------------------------------------------------------------------------------


def machine(device: torch.device, rounds: int) -> tuple[float, float]:
    """Operations a second of a large float32 matrix product (by the faster library), bytes a second of a copy."""
    size, length = (8192, 1 << 28) if device.type == "cuda" else (2048, 1 << 26)  # so large that a launch is nothing
    a, b = (torch.randn(1, size, size, device=device) for _ in range(2))
    big, other = (torch.empty(length, device=device) for _ in range(2))
    product, copy = (lambda: matrices.product(a, b)), (lambda: big.copy_(other))
    product(), copy()
    seconds = [(clock(product, device), clock(copy, device)) for _ in range(rounds)]
    return 2 * size**3 / min(s for s, _ in seconds), 2 * 4 * length / min(s for _, s in seconds)


def operations(built: Trainer) -> tuple[float, float, float]:
    """Multiplications and additions for one example: forward pass; gradient; Hessian product at kept passes.

    A layer with m multiply-adds costs 2m in the forward pass, 2m for the weights' gradient and, but for the first, 2m for the
    input's; the tangents of a product cost twice that where the input has a tangent, once where it has none.
    """
    network, forward, gradient, product = built.objective.network, 0.0, 0.0, 0.0
    assert isinstance(network, StackedNetwork)
    with torch.no_grad():
        kept = network.forward([p[:1] for p in network.views(built.state.theta)], built.x[:, :1])
    first = True
    for (layer, _), k in zip(network.layers, kept, strict=True):
        if not layer.parameters:
            continue
        weight = k.p[0][0]
        positions = k.y[0, 0].numel() // weight.shape[0]
        once = 2.0 * weight.numel() * positions
        forward += once
        gradient += once * (2 if first else 3)
        product += once * (2 if first else 6)
        first = False
    return forward, gradient, product


# --- other solvers -----------------------------------------------------------------------------------------------------------


def peers(built: Trainer, start: torch.Tensor) -> Iterator[tuple[str, Callable[[], tuple[float, float]]]]:
    """Solvers of others for the same λ_max; each returns the eigenvalue and the number of Hessian products."""
    theta = built.state.theta[:1]

    def scipy_solver() -> tuple[float, float]:
        hessian = built.point([0]).hessian()

        def product(v: np.ndarray) -> np.ndarray:
            return hessian(torch.from_numpy(v.astype(np.float32)).view(1, -1).to(theta.device))[0].cpu().numpy()

        operator = scipy.sparse.linalg.LinearOperator((theta.shape[1],) * 2, matvec=product, dtype=np.float32)
        first = start[0, 0].cpu().numpy()
        values = scipy.sparse.linalg.eigsh(operator, k=1, which="LA", tol=1e-3, v0=first, return_eigenvectors=False)
        return float(values[0]), hessian.products

    yield f"SciPy {scipy.__version__} eigsh on our product, tol 1e-3", scipy_solver
    c, data = built.config, built.data
    network = models.build(c.model, data.shape, 10, width=c.width, depth=c.depth, hidden=c.hidden)
    network = network.to(built.device)
    nn.utils.vector_to_parameters(theta[0], network.parameters())
    # Theirs is the mean over the outputs as well: 2/K of our loss.
    half, scale = (nn.MSELoss(), data.y.shape[1] / 2) if built.config.loss == "mse" else (nn.CrossEntropyLoss(), 1.0)
    with contextlib.suppress(ImportError):
        import curvlinops

        def curvlinops_solver() -> tuple[float, float]:
            params = list(network.parameters())
            hessian = curvlinops.HessianLinearOperator(network, half, params, [(data.x, data.y)], check_deterministic=False)
            counted = _Counted(hessian.to_scipy())
            first = start[0, 0].cpu().numpy()
            values = scipy.sparse.linalg.eigsh(counted, k=1, which="LA", tol=1e-3, v0=first, return_eigenvectors=False)
            return scale * float(values[0]), counted.products

        yield f"curvlinops {_version('curvlinops-for-pytorch')} with SciPy's eigsh, tol 1e-3", curvlinops_solver
    with contextlib.suppress(ImportError):
        from pyhessian import hessian as pyhessian

        def pyhessian_solver() -> tuple[float, float]:
            computer = pyhessian(network, half, data=(data.x, data.y), cuda=theta.is_cuda)
            values, _ = computer.eigenvalues(maxIter=100, tol=1e-3, top_n=1)
            return scale * float(values[0]), math.nan

        yield f"PyHessian {_version('pyhessian')}, power iteration, tol 1e-3", pyhessian_solver


def _version(package: str) -> str:
    from importlib.metadata import version

    return version(package)


class _Counted(scipy.sparse.linalg.LinearOperator):
    """Counts the products of an operator."""

    def __init__(self, operator: scipy.sparse.linalg.LinearOperator) -> None:
        super().__init__(operator.dtype, operator.shape)
        self.operator, self.products = operator, 0

    def _matvec(self, v: np.ndarray) -> np.ndarray:
        self.products += 1
        return self.operator @ v


# --- the tables --------------------------------------------------------------------------------------------------------------


def run(jobs: dict[str, tuple[Job, float]], device: torch.device, rounds: int) -> tuple[dict[str, list[float]], dict[str, object]]:
    """Time all jobs in turn, for so many rounds; seconds per unit of each job, and what each returned when warming up."""
    kept = (eigen.Eigenpairs, Estimate, tuple)  # a Hessian would keep its passes in memory
    results: dict[str, object] = {label: result for label, (job, _) in jobs.items() if isinstance(result := job(), kept)}
    times: dict[str, list[float]] = {label: [] for label in jobs}
    for _ in range(rounds):
        for label, (job, count) in jobs.items():
            times[label].append(clock(job, device) / count)
    return times, results


def report(model: str, args: argparse.Namespace) -> str:
    device = choose_device(args.device)
    data, name = load(device)
    built = trainer(1, device, data, batch_size=5000, model=model, width=WIDTH[model])
    built.advance(args.steps)
    size = built.objective.network.size
    start = torch.randn(1, 1, size, generator=torch.Generator().manual_seed(0)).to(device)

    def solve(vectors: torch.Tensor, tol: float) -> eigen.Eigenpairs:
        return sharpness(built.point(), vectors, tol=tol, nearby=eigen.NEARBY)

    before = solve(start, 1e-3).starts
    built.advance(args.steps + 5)
    truth = exact(built)
    params = built.objective.network.views(built.state.theta.clone())
    operator = built.point().hessian()
    vector = torch.randn_like(built.state.theta)
    three = trainer(3, device, data, model=model, width=WIDTH[model])

    def measure() -> None:
        built.state.vectors = before
        built.measure()

    def drawn(size: int) -> Draws:
        return Draws(size, 40, [("benchmark",)])

    def sampled(size: int) -> Estimate:
        return batch_sharpness(built.point(), drawn(size)).ratio_of_means

    def minibs(size: int) -> Estimate:
        return minibatch_sharpness(built.point(), before[:, 0], drawn(size)).value

    convolutional = model.startswith("cnn")
    count = 20 if convolutional else 50
    jobs: dict[str, tuple[Job, float]] = {
        "full-batch gradient": (lambda: full_gradient(built.objective, params, built.x, built.y, built.parts), 1.0),
        "forward and backward pass to keep": (lambda: built.point().hessian(), 1.0),
        PRODUCT: (lambda: operator(vector), 1.0),
        "σ_u² at kept passes": (lambda: operator.slopes(vector), 1.0),
        "λ_max warm (5 steps later), residual 1e-3": (lambda: solve(before, 1e-3), 1.0),
        COLD: (lambda: solve(start, 1e-3), 1.0),
        "λ_max cold, residual 1e-2": (lambda: solve(start, 1e-2), 1.0),
        "whole measurement, warm": (measure, 1.0),
        **{BATCH.format(b): (functools.partial(sampled, b), 1.0) for b in SIZES},
        **{MINI.format(b): (functools.partial(minibs, b), 1.0) for b in (50, 250)},
        "SGD step, b = 50": (steps_of(built, 50, count), count),
        "SGD step, b = 50, bare PyTorch loop": (bare_loop(built, 50, count), count),
        "SGD step, b = 50, of 3 stacked seeds, per seed": (steps_of(three, 50, count), 3.0 * count),
        "SGD step, b = 250": (steps_of(built, 250, count), count),
        "SGD step, b = 500": (steps_of(built, 500, count), count),
        "SGD step, b = 500, of 3 stacked seeds, per seed": (steps_of(three, 500, count), 3.0 * count),
    }
    if not convolutional:
        small = {"dataset": "digits", "train_size": 1500, "width": 64}
        digits = datasets.load("digits", 1500, device=device)
        for label, seeds in (("b = 50, MLP 64-64-64-10 (digits)", 1), ("the same, of 3 stacked seeds, per seed", 3)):
            jobs[f"SGD step, {label}"] = (steps_of(trainer(seeds, device, digits, **small), 50, 200), 200.0 * seeds)
    if device.type == "cpu" and not convolutional:  # the CNN's products are convolutions
        for label in ("full-batch gradient", PRODUCT):
            whose, job = with_the_other_products(jobs[label][0])
            jobs[f"{label}, {whose}"] = (job, 1.0)
    if device.type == "cuda":
        jobs[f"{TF32}, residual 1e-3"] = (lambda: in_tf32(lambda: solve(start, 1e-3)), 1.0)
    for label, solver in peers(built, start):
        jobs[f"λ_max cold, {label}"] = (solver, 1.0)
    times, results = run(jobs, device, args.rounds)
    unit = times["full-batch gradient"]

    rate, bandwidth = machine(device, args.rounds)
    forward, gradient, product = operations(built)
    work = {
        "full-batch gradient": (gradient * 5000, 4 * (data.x.numel() + 2 * size)),
        "forward and backward pass to keep": ((gradient - forward) * 5000, 4 * (data.x.numel() + size)),
        PRODUCT: (product * 5000, 4 * (data.x.numel() + 3 * size)),
        "σ_u² at kept passes": (forward * 5000, 4 * (data.x.numel() + 2 * size)),
        **{f"SGD step, b = {b}": (gradient * b, 4 * (data.x[:b].numel() + 4 * size)) for b in SIZES},
    }
    work |= {f"SGD step, b = {b}, of 3 stacked seeds, per seed": work[f"SGD step, b = {b}"] for b in (50, 500)}
    rows = []
    for label, seconds in times.items():
        median = statistics.median(seconds)
        row = {"job": label, "ms": 1e3 * median}
        row["in full-batch gradients"] = statistics.median(t / u for t, u in zip(seconds, unit, strict=True))
        if label in work:
            flops, moved = work[label]
            floor = max(flops / rate, moved / bandwidth)
            row |= {"floor, ms": 1e3 * floor, "times the floor": median / floor}
        if label.startswith("λ_max"):
            value, products = solved(results[label])
            row |= {"products": products, "relative error": abs(value / truth - 1)}
        rows.append(row)
    frame = pd.DataFrame(rows).set_index("job")
    made = int(frame["products"]["λ_max warm (5 steps later), residual 1e-3"])
    for column, form in {"ms": ".2f", "in full-batch gradients": ".4f", "floor, ms": ".2f", "times the floor": ".1f"}.items():
        frame[column] = [format(v, form) if np.isfinite(v) else "–" for v in frame[column]]
    frame["products"] = [f"{v:.0f}" if np.isfinite(v) else "–" for v in frame["products"]]
    frame["relative error"] = [f"{v:.1e}" if np.isfinite(v) else "–" for v in frame["relative error"]]
    chip = torch.cuda.get_device_name(device) if device.type == "cuda" else f"{processor()}, {args.threads} thread(s)"
    kinds = {"cnn": "32-32 channels", "cnn-tanh": f"32-64 channels, hidden layer of {built.config.hidden}"}
    layers = kinds.get(model, "3072-200-200-10")
    middle = {label: statistics.median(seconds) for label, seconds in times.items()}
    errors = {
        label: found.standard_error.item() / found.value.item() for label, found in results.items() if isinstance(found, Estimate)
    }
    preset = config.load_preset("cifar10").select([ENTRY.get(model, model)])[0].runs[0]
    every, sampled_every, wanted = preset.measure_every, preset.sample_every, preset.sample_precision
    # Draws scatter independently; they are made in lots of 40.
    lots = {label: min(max(1, math.ceil((error / wanted) ** 2)), MAX_LOTS) for label, error in errors.items()}
    measured = middle["whole measurement, warm"]

    def part(seconds: float, steps: int) -> str:
        """Say what part of so many steps' training so many seconds are."""
        return listed(seconds / (steps * middle[f"SGD step, b = {b}"]) for b in SIZES)

    def everything(products: float, b: int) -> float:
        many = sampled_every / every * (measured + (products - made) * middle[PRODUCT])
        drawn = lots[BATCH.format(b)] * middle[BATCH.format(b)]
        return (many + middle[COLD] + drawn) / (sampled_every * middle[f"SGD step, b = {b}"])

    return "\n".join([
        f"## {model} on a {'GPU' if device.type == 'cuda' else 'CPU'} ({layers}), n = 5,000 ({name}), {size:,} parameters",
        "",
        f"After {args.steps + 5} steps of gradient descent at η = 0.01, λ_max = {truth:.3f}. {chip}; torch {torch.__version__}, "
        f"Python {platform.python_version()}; float32; median of {args.rounds} rounds. "
        f"Matrix product {rate / 1e9:,.0f} GFLOP/s, copy {bandwidth / 1e9:,.1f} GB/s.",
        "",
        markdown(frame),
        "",
        f"With {made} products, a measurement every {every} steps costs {part(measured, every)}.",
        *(
            f"In the committed runs of this network a warm-started solve takes {products:.1f} products on average {when}: then a "
            f"measurement costs {part(measured + (products - made) * middle[PRODUCT], every)}; with one λ_max from a random start "
            f"and one batch sharpness to {percent(wanted)} every {sampled_every:,} steps, all but the windows of α and β, "
            f"{listed(everything(products, b) for b in SIZES)}."
            for when, products in products_in_runs(model).items()
        ),
        "Standard errors: " + "; ".join(f"{label}, {percent(error)}" for label, error in errors.items()) + ".",
        f"Lots of 40 draws to {percent(wanted)}, by these: "
        + "; ".join(f"{label.rsplit(',', 1)[0]}, {count}" for label, count in lots.items()) + ".",
        "",
    ])  # fmt: skip


def solved(result: object) -> tuple[float, float]:
    """Return the eigenvalue and the number of products of a solve, ours or a peer's; NaN where a peer does not count."""
    if isinstance(result, eigen.Eigenpairs):
        return result.values.item(), float(result.products.item())
    assert isinstance(result, tuple)
    return result


def percent(part: float) -> str:
    return f"{100 * part:.2g} %"


def listed(parts: Iterable[float]) -> str:
    return ", ".join(f"{part:.2f} of the training at b = {b}" for part, b in zip(parts, SIZES, strict=True))


def products_in_runs(model: str) -> dict[str, float]:
    """Return how many products a solve took in the committed runs, the preset's number of steps after the last one."""
    if config.load_preset("cifar10").select([ENTRY.get(model, model)])[0].runs[0].model != model:
        return {}
    files = sorted((runs.ROOT / "data" / "reference" / "cifar10" / ENTRY.get(model, model)).glob("*/seed*.parquet"))
    # Seed 0 was trained when a solve started from the last top vector alone.
    files = [file for file in files if file.stem != "seed0"] or files
    if not files:
        return {}
    frame = pd.concat([pd.read_parquet(file, columns=["step", "sharpness_products"]) for file in files])
    early = frame.step < SHARPENING
    return {
        f"in the first {SHARPENING:,} steps": frame.sharpness_products[early].mean(),
        "after them, at the edge": frame.sharpness_products[~early].mean(),
    }


def markdown(frame: pd.DataFrame) -> str:
    """A table of strings with its index first; pandas' own needs one more package."""
    lines = [[str(frame.index.name), *frame.columns], [":--", *["--:"] * len(frame.columns)]]
    lines += [[str(label), *row] for label, row in zip(frame.index, frame.to_numpy().tolist(), strict=True)]
    return "\n".join(f"| {' | '.join(cells)} |" for cells in lines)


def write(table: str) -> None:
    """Put a table into ``RESULTS.md``, in the place of the one of this network on this kind of device; the others stay."""
    parts = RESULTS.read_text("utf-8").split("\n## ")[1:] if RESULTS.exists() else []
    tables = {part.split(" (")[0]: f"## {part.rstrip()}\n" for part in parts}
    tables[table.removeprefix("## ").split(" (")[0]] = table
    head = ["# What it costs\n", __doc__[__doc__.index("Uses data") :]]
    RESULTS.write_text("\n".join([*head, *(tables[name] for name in sorted(tables, reverse=True))]), "utf-8")


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--model", choices=list(WIDTH), nargs="+", default=["fc-tanh"])
    parser.add_argument("--device", default="auto")
    parser.add_argument("--threads", type=int, default=1)
    parser.add_argument("--steps", type=int, default=300, help="gradient descent steps before measuring")
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--write", action="store_true", help=f"write {RESULTS.name} beside this file")
    args = parser.parse_args()
    torch.set_num_threads(args.threads)
    for model in args.model:
        with float32_products():
            table = report(model, args)
        print(table, flush=True)
        if args.write:  # at once, so that the next one may fail
            write(table)
    return 0


if __name__ == "__main__":
    sys.exit(main())
