"""Named random streams: every random number of a run is drawn from a generator that its name determines.

A stream is keyed by what it is for, the run's seed and a counter (epoch, step). Nothing depends on how many numbers were
drawn before, so a resumed run needs no generator state and a run is the same whichever others it is stacked with.
"""

from __future__ import annotations

import hashlib

import torch


def seed_of(*key: str | int) -> int:
    """Return the 63-bit seed of the stream with this key."""
    digest = hashlib.blake2b(repr(key).encode(), digest_size=8).digest()
    return int.from_bytes(digest, "little") >> 1


def generator(*key: str | int, device: torch.device | str = "cpu") -> torch.Generator:
    """Return a fresh generator for the stream with this key.

    Example:
        >>> a, b = (torch.rand(2, generator=generator("init", 0)) for _ in range(2))
        >>> bool((a == b).all())
        True
    """
    return torch.Generator(device=device).manual_seed(seed_of(*key))
