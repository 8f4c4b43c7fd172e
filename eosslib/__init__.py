"""Training and Hessian routines behind the edge-of-stability companion.

``config``, ``runs``, ``analysis``, ``plotting`` and ``gallery`` do not import torch, so a figure redraws anywhere.
"""

__version__ = "0.1.0"
