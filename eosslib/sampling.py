"""Which examples each step sees: per-epoch reshuffling, or i.i.d. examples. A function of seed and step alone."""

from __future__ import annotations

import torch

from eosslib.streams import integers, permutations, seed_of, words
from eosslib.theory import check_batches


def _seeds(key: tuple[str | int, ...], places: range, device: torch.device | str) -> torch.Tensor:
    """Return the seeds of the sub-streams of a stream: (len(places),). Nothing is copied to the device, which would wait for it."""
    seed = torch.full((), seed_of(*key), dtype=torch.int64, device=device)
    return words(seed, torch.arange(places.start, places.stop, device=device))


def batches(
    n: int, batch_size: int, sampling: str, seed: int, start: int, stop: int, device: torch.device | str = "cpu"
) -> torch.Tensor:
    """Return the mini-batches of steps ``start`` … ``stop − 1`` of a run.

    With ``reshuffle`` an epoch is ⌊n/b⌋ batches of a fresh permutation (the ragged rest sits out until the next epoch);
    with ``iid`` every example of every batch is drawn independently, with replacement.

    Args:
        n: Number of training examples.
        batch_size: b ≥ 1, with ``reshuffle`` at most n.
        sampling: ``reshuffle`` or ``iid``.
        seed: The run's seed.
        start: First step.
        stop: One past the last step.
        device: Where to draw; the batches are the same on every device.

    Returns:
        Indices (stop − start, b).

    Raises:
        ValueError: The sampling is unknown, or a batch of this size cannot be drawn.

    Example:
        >>> batches(4, 2, "reshuffle", 0, 0, 2).flatten().sort().values.tolist()
        [0, 1, 2, 3]
    """
    check_batches(n, batch_size, sampling)
    if sampling == "iid":
        return integers(_seeds(("batch", seed), range(start, stop), device), n, batch_size)
    per_epoch = n // batch_size
    first, last = start // per_epoch, (stop - 1) // per_epoch
    orders = permutations(_seeds(("epoch", seed), range(first, last + 1), device), n)
    whole = orders[:, : per_epoch * batch_size].reshape(-1, batch_size)
    return whole[start - first * per_epoch : stop - first * per_epoch]


def independent_batches(
    n: int, batch_size: int, sampling: str, which: range, *key: str | int, device: torch.device | str = "cpu"
) -> torch.Tensor:
    """Return mini-batches drawn independently of each other, each as the run's sampling draws one.

    Args:
        n: Number of training examples.
        batch_size: b ≥ 1, with ``reshuffle`` at most n.
        sampling: ``reshuffle`` (an example at most once in a batch) or ``iid``.
        which: Which batches of the stream.
        key: Name of the random stream.
        device: Where to draw.

    Returns:
        Indices (len(which), b).

    Raises:
        ValueError: The sampling is unknown, or a batch of this size cannot be drawn.
    """
    check_batches(n, batch_size, sampling)
    seeds = _seeds(key, which, device)
    return integers(seeds, n, batch_size) if sampling == "iid" else permutations(seeds, n)[:, :batch_size]
