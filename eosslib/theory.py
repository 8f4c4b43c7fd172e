"""The papers' formulas, in numpy alone: what the measurements are held against."""

from __future__ import annotations

from typing import TypeVar

import numpy as np

Number = TypeVar("Number", float, np.ndarray)


def finite_population(n: int, b: Number, sampling: str = "reshuffle") -> Number:
    """Variance of the mean of a batch over the variance of one example (divisor n).

    (1/b)·(n−b)/(n−1) where a batch is drawn without replacement, 1/b where its examples are independent (Cochran 1977, §2.6).

    Args:
        n: Number of training examples.
        b: Batch size, or an array of them.
        sampling: ``reshuffle`` or ``iid``.
    """
    if sampling == "iid" or n == 1:
        return 1.0 / b if sampling == "iid" else 0.0 * b
    return (n - b) / (b * (n - 1))
