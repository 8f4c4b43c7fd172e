"""The papers' formulas against simulation and algebra."""

from __future__ import annotations

import itertools

import numpy as np
import pytest

from eosslib.theory import finite_population


@pytest.mark.parametrize("b", [1, 2, 4, 5])
def test_the_finite_population_factor_is_the_variance_of_a_mean_over_all_batches(b: int) -> None:
    values = np.array([0.3, -1.0, 2.0, 5.0, 0.1])
    without = np.var([np.mean(batch) for batch in itertools.combinations(values, b)])
    independent = np.var([np.mean(batch) for batch in itertools.product(values, repeat=b)])
    assert without == pytest.approx(values.var() * finite_population(5, b))
    assert independent == pytest.approx(values.var() * finite_population(5, b, "iid"))


def test_the_factor_takes_arrays_and_a_single_example() -> None:
    np.testing.assert_allclose(finite_population(100, np.array([1, 50, 100])), [1.0, 1 / 99, 0.0])
    assert (finite_population(1, 1), finite_population(1, 1, "iid")) == (0.0, 1.0)
