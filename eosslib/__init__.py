"""Training and Hessian routines behind the edge-of-stability companion: where to find what.

**Measure a network of your own.** `eosslib.tracker` puts all measurements beside your training loop
(``from eosslib import SharpnessTracker``); `eosslib.optimizers` says where the edge is for your optimizer.

**Read runs and draw figures**, without torch, so that a figure redraws anywhere. `eosslib.config` reads a preset,
`eosslib.runs` the run files, `eosslib.analysis` makes plateaus, gaps and predictions of them, `eosslib.powerlaw` fits,
`eosslib.plotting` and `eosslib.panels` draw, `eosslib.findings` holds headline numbers and claims. `eosslib.theory` has the
papers' formulas, `eosslib.toys` the systems that can be solved by hand.

**Measure at given parameters.** A `eosslib.curvature.Point` is networks at parameters, before data; `eosslib.measure` has a file
for each measurement of it, and the one list that training and tracker walk, `eosslib.measure.record`. `eosslib.predicted`: the
predicted dynamics beside the real ones.

**Underneath.** `eosslib.eigen` finds top eigenpairs of any symmetric operator, `eosslib.curvature` multiplies by Hessians,
`eosslib.objective` joins network and loss, `eosslib.flat` and `eosslib.automatic` make a network a function of flat parameters,
`eosslib.layers` are what it is made of,
`eosslib.products` its matrix products; `eosslib.models`, `eosslib.losses` and `eosslib.datasets` are built by name,
`eosslib.devices` says where and in how much memory. What a user can do wrong ends in one of `eosslib.errors`.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from eosslib.tracker import SharpnessTracker as SharpnessTracker

__version__ = "0.1.0"


def __getattr__(name: str) -> Any:
    """Import what needs torch when it is asked for."""
    if name == "SharpnessTracker":
        from eosslib.tracker import SharpnessTracker

        return SharpnessTracker
    raise AttributeError(f"module 'eosslib' has no attribute '{name}'")
