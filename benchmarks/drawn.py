"""How far MiniBS is off because λ_max of drawn mini-batches is solved for without a probe, in its standard errors.

    python benchmarks/drawn.py [--write]     --write puts the table into benchmarks/DRAWN.md as well

Networks of the digits preset after some training; 64 draws each by ``minibatch_sharpness``, held against solves of the same
draws to a residual of 1e-4 and a probability of a miss of 1e-6; the worst of three such lots. The goal is a tenth of the
standard error.
"""

from __future__ import annotations

import argparse
import sys
from pathlib import Path
from typing import Any

import pages
import torch

from eosslib import datasets, eigen
from eosslib.curvature import Point
from eosslib.measure.drawn import Draws
from eosslib.measure.minibatch import minibatch_sharpness
from eosslib.probing import Probe
from eosslib.settings import RunConfig
from eosslib.streams import generator
from eosslib.training import Trainer

PAGE, DRAWS, LOTS = Path(__file__).with_name("DRAWN.md"), 64, 3
CASES = [("fc-relu", 32, 3000, 0.4), ("fc-relu", 8, 1000, 0.4), ("fc-tanh", 50, 3000, 0.1), ("cnn", 16, 600, 0.05)]


def compare(point: Point, batch_size: int) -> str:
    """The cells of a row for one network (1, P)."""
    theta, size = point.theta, point.theta.shape[1]
    first = Probe(torch.randn(1, size, generator=generator("drawn", "u")))
    u = eigen.top_eigenpairs(point.hessian(), theta.new_zeros(1, 0, size), probe=first).vectors[:, 0]
    cells = []
    for lot in range(LOTS):
        key = ("drawn", lot)
        draws = Draws(batch_size, DRAWS, [key])
        found = minibatch_sharpness(point, u, draws).value
        operator = point.drawn(0, next(draws.lots(point.x, key))).hessian()
        tight = Probe(torch.randn(DRAWS, size, generator=generator("drawn tight", lot)))
        truth = eigen.top_eigenpairs(operator, theta.new_zeros(DRAWS, 0, size), tol=1e-4, probe=tight).values[:, 0].double()
        bias, error = float(found.value - truth.mean()), float(found.standard_error)
        cells.append((bias / float(truth.mean()), error / float(truth.mean()), abs(bias) / error))
    worst = max(cells, key=lambda cell: cell[2])
    return f"{worst[0]:.1e} | {worst[1]:.1e} | {worst[2]:.3f}"


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--write", action="store_true", help="write benchmarks/DRAWN.md")
    args = parser.parse_args()
    torch.set_num_threads(1)
    lines = ["| network | b | steps | bias | standard error | bias, in standard errors |", "| :-- | --: | --: | --: | --: | --: |"]
    data = datasets.load("digits", 1500)
    for model, size, steps, lr in CASES:
        shape: dict[str, Any] = {"width": 8 if model == "cnn" else 64, "init_scale": 1.0 if model == "fc-tanh" else 0.5, "lr": lr}
        run = RunConfig(model=model, loss="mse", batch_size=size, steps=steps, dataset="digits", train_size=1500, **shape)
        trainer = Trainer([run], data=data)
        trainer.state.step = 0
        trainer.advance(steps)
        lines.append(f"| {model} | {size} | {steps} | {compare(trainer.point(), size)} |")
    print("\n".join(lines))
    if args.write:
        pages.write(PAGE, "MiniBS without a probe", __doc__, lines)
    return 0


if __name__ == "__main__":
    sys.exit(main())
