"""How far the committed plateaus of sharpness were off: old and new solver along trainings made again without measuring.

    python benchmarks/affected.py [--tight 1e-6] [--write] PRESET/GROUP …     groups as `python -m eosslib list` names them

At a hundred evenly spaced steps of seed 0 λ_max is solved for as it was (where the residual is small) and as it is (with a probe),
each from what its own last solve left, and by a tight solve from nothing (its residual is in the table, the probability of a miss
1e-9), the reference. Shifts of the plateau, the mean over the last quarter, are in units of 2/η; a miss is an error above 1e-3.
"""

from __future__ import annotations

import argparse
import sys
from pathlib import Path

import numpy as np
import pages
import torch

from eosslib import config, eigen
from eosslib.curvature import Hessian
from eosslib.probing import Probe
from eosslib.settings import RunConfig
from eosslib.streams import generator
from eosslib.training import Trainer

PAGE, STEPS = Path(__file__).with_name("AFFECTED.md"), 100


class Solver:
    """Follows λ_max from step to step, with or without a probe."""

    def __init__(self, size: int, *, probing: bool) -> None:
        self.probing, self.size = probing, size
        self.last: eigen.Eigenpairs | None = None
        self.values, self.products = list[float](), list[int]()

    def random(self, step: int) -> torch.Tensor:
        return torch.randn(1, self.size, generator=generator("affected", step))

    def solve(self, hessian: Hessian, step: int) -> None:
        random, start, probe = self.random(step), torch.zeros(1, 0, self.size), None
        if self.last is not None:
            start = self.last.starts
        elif not self.probing:
            start = random.unsqueeze(1)
        if self.probing:
            probe = Probe(random) if self.last is None else Probe.carried(self.last.probe, random)
        self.last = eigen.top_eigenpairs(hessian, start, nearby=eigen.NEARBY, probe=probe)
        self.values.append(float(self.last.values))
        self.products.append(int(self.last.products))


def compare(run: RunConfig, tight: float) -> str:
    """Train again and solve: the cells of a table's row."""
    trainer = Trainer([run])
    trainer.state.step, size = 0, trainer.objective.network.size
    solvers, truth = [Solver(size, probing=p) for p in (False, True)], []
    for step in np.linspace(0, run.steps, STEPS).astype(int).tolist():
        if step > trainer.state.step:
            trainer.advance(step)
        hessian = trainer.point().hessian()
        probe = Probe(torch.randn(1, size, generator=generator("reference", step)), miss=1e-9)
        nothing = torch.zeros(1, 0, size)
        truth.append(float(eigen.top_eigenpairs(hessian, nothing, tol=tight, max_products=1000, probe=probe).values))
        for solver in solvers:
            solver.solve(hessian, step)
    reference, cells = np.array(truth), []
    late = slice(-(STEPS // 4), None)
    for solver in solvers:
        found = np.array(solver.values)
        errors, shift = found / reference - 1, (found - reference)[late].mean() / run.threshold
        missed, products = int((np.abs(errors) > 1e-3).sum()), np.mean(solver.products[1:])
        cells += [str(missed), f"{errors.min():.1e}", f"{shift:.1e}", f"{products:.1f}"]
    return " | ".join(cells)


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("groups", nargs="+")
    parser.add_argument("--tight", type=float, default=1e-6, help="relative residual of the reference")
    parser.add_argument("--write", action="store_true", help="write benchmarks/AFFECTED.md")
    args = parser.parse_args()
    torch.set_num_threads(1)
    half = "missed | worst | shift of the plateau | products"
    lines = [f"| group | reference | before: {half} | now: {half} |", "| :-- |" + " --: |" * 9]
    print("\n".join(lines))
    for name in args.groups:
        preset, group = name.split("/", 1)
        run = config.load_preset(preset).groups[group].runs[0]
        lines.append(f"| {name} | {args.tight:.0e} | {compare(run, args.tight)} |")
        print(lines[-1], flush=True)
    if args.write:
        pages.write(PAGE, "What the solver had missed", __doc__, lines)
    return 0


if __name__ == "__main__":
    sys.exit(main())
