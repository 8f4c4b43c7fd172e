"""Which examples each step sees: per-epoch reshuffling, or i.i.d. examples. A function of seed and step alone."""

from __future__ import annotations

import torch

from eosslib.streams import generator


def batches(n: int, batch_size: int, sampling: str, seed: int, start: int, stop: int) -> torch.Tensor:
    """Return the mini-batches of steps ``start`` … ``stop − 1`` of a run.

    With ``reshuffle`` an epoch is ⌊n/b⌋ batches of a fresh permutation (the ragged rest sits out until the next epoch);
    with ``iid`` every example of every batch is drawn independently, with replacement.

    Args:
        n: Number of training examples.
        batch_size: b, 1 ≤ b ≤ n.
        sampling: ``reshuffle`` or ``iid``.
        seed: The run's seed.
        start: First step.
        stop: One past the last step.

    Returns:
        Indices (stop − start, b), on the CPU, the same on every device.

    Example:
        >>> batches(4, 2, "reshuffle", 0, 0, 2).flatten().sort().values.tolist()
        [0, 1, 2, 3]
    """
    if sampling == "iid":
        rows = [torch.randint(n, (batch_size,), generator=generator("batch", seed, step)) for step in range(start, stop)]
        return torch.stack(rows)
    per_epoch = n // batch_size
    first, last = start // per_epoch, (stop - 1) // per_epoch
    epochs = [
        torch.randperm(n, generator=generator("epoch", seed, epoch))[: per_epoch * batch_size] for epoch in range(first, last + 1)
    ]
    whole = torch.stack(epochs).view(-1, batch_size)
    return whole[start - first * per_epoch : stop - first * per_epoch]
