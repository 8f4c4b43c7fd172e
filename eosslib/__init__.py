"""Training and Hessian routines behind the edge-of-stability companion.

``config``, ``runs``, ``analysis``, ``plotting`` and ``gallery`` do not import torch, so a figure redraws anywhere. To measure a
network of your own, ``from eosslib import SharpnessTracker``.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from eosslib.tracker import SharpnessTracker as SharpnessTracker

__version__ = "0.1.0"
__all__ = ["SharpnessTracker"]


def __getattr__(name: str) -> Any:
    """Import what needs torch when it is asked for."""
    if name == "SharpnessTracker":
        from eosslib.tracker import SharpnessTracker

        return SharpnessTracker
    raise AttributeError(f"module 'eosslib' has no attribute '{name}'")
