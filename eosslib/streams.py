"""Named random streams: every random number of a run is determined by the name of its stream and its place in it.

A stream is keyed by what it is for, the run's seed and a counter (epoch, step). Nothing depends on how many numbers were
drawn before, so a resumed run needs no generator state and a run is the same whichever others it is stacked with. What a step
draws (batches, noise) comes from ``words``, integer arithmetic that gives the same numbers on every device, inside a captured
CUDA graph too; what is drawn once (initial weights, start vectors) comes from PyTorch's generator on the CPU.
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


def _signed(word: int) -> int:
    """Write a 64-bit word as the int64 of the same bits."""
    return word - (1 << 64) if word >> 63 else word


_GAMMA, _FIRST, _SECOND = map(_signed, (0x9E3779B97F4A7C15, 0xBF58476D1CE4E5B9, 0x94D049BB133111EB))


def _xor_shift(z: torch.Tensor, bits: int) -> torch.Tensor:
    return z ^ ((z >> bits) & ((1 << (64 - bits)) - 1))  # int64 shifts copy the sign; the mask takes the copies off


def words(seed: torch.Tensor, place: torch.Tensor) -> torch.Tensor:
    """Return words of SplitMix64 sequences (Steele, Lea and Flood 2014, doi:10.1145/2660193.2660195), by their place.

    Args:
        seed: Seeds of the sequences, int64.
        place: Which word of the sequence, from 0, int64; broadcast against the seeds. ``words(words(seed, step), i)`` is word
            i of the stream of one step.

    Returns:
        64 random bits each, as int64.

    Example:
        >>> words(torch.tensor(1234567), torch.arange(2)).tolist()
        [6457827717110365317, 3203168211198807973]
    """
    z = seed + (place + 1) * _GAMMA
    z = _xor_shift(z, 30) * _FIRST
    z = _xor_shift(z, 27) * _SECOND
    return _xor_shift(z, 31)


def permutations(seed: torch.Tensor, n: int) -> torch.Tensor:
    """Return a random order of 0 … n−1 for every seed: (E,) → (E, n)."""
    return words(seed[:, None], torch.arange(n, device=seed.device)).argsort(dim=1, stable=True)


def integers(seed: torch.Tensor, n: int, count: int) -> torch.Tensor:
    """Return ``count`` independent integers from 0 … n−1 for every seed: (E,) → (E, count)."""
    drawn = words(seed[:, None], torch.arange(count, device=seed.device)) & ((1 << 63) - 1)
    return drawn % n


def normal(seed: torch.Tensor, count: int, dtype: torch.dtype) -> torch.Tensor:
    """Return ``count`` independent standard normal numbers for every seed: (R,) → (R, count)."""
    drawn = words(seed[:, None], torch.arange(count, device=seed.device)) >> 11  # 53 bits with a sign
    uniform = (drawn.double() + 0.5) * 2.0**-53 + 0.5
    return torch.special.ndtri(uniform).to(dtype)
