"""Which examples each step sees."""

from __future__ import annotations

import itertools

import pytest
import torch

from eosslib.sampling import batches, independent_batches


@pytest.mark.parametrize(("n", "b"), [(12, 4), (13, 4), (12, 12), (5, 1), (7, 5)])
def test_an_epoch_of_reshuffling_sees_no_example_twice_and_all_but_the_rest(n: int, b: int) -> None:
    per_epoch = n // b
    drawn = batches(n, b, "reshuffle", 0, 0, 6 * per_epoch)
    assert drawn.shape == (6 * per_epoch, b)
    for epoch in drawn.view(6, -1):
        assert len(set(epoch.tolist())) == per_epoch * b
        assert set(epoch.tolist()) <= set(range(n))


def test_every_epoch_has_an_order_of_its_own() -> None:
    epochs = batches(12, 4, "reshuffle", 0, 0, 15).view(5, 12)
    assert len({tuple(epoch.tolist()) for epoch in epochs}) == 5


@pytest.mark.parametrize("sampling", ["reshuffle", "iid"])
def test_a_step_sees_the_same_batch_whichever_steps_are_asked_for(sampling: str) -> None:
    whole = batches(13, 4, sampling, 5, 0, 20)
    for start, stop in itertools.combinations(range(21), 2):
        assert torch.equal(batches(13, 4, sampling, 5, start, stop), whole[start:stop])


@pytest.mark.parametrize("sampling", ["reshuffle", "iid"])
def test_seeds_see_different_batches(sampling: str) -> None:
    assert not torch.equal(batches(50, 10, sampling, 0, 0, 5), batches(50, 10, sampling, 1, 0, 5))


@pytest.mark.parametrize(("sampling", "b"), [("reshuffle", 3), ("reshuffle", 4), ("iid", 3)])
def test_all_examples_are_drawn_equally_often(sampling: str, b: int) -> None:
    """With b = 3 of 10 the ragged rest sits out an epoch, a different one every time; counts are hypergeometric or binomial."""
    n, steps = 10, 4_000
    counts = torch.bincount(batches(n, b, sampling, 0, 0, steps).flatten(), minlength=n).double()
    share = b / n
    error = (steps * share * (1 - share)) ** 0.5  # an upper bound for reshuffling
    assert bool(((counts - steps * share).abs() < 4.5 * error).all())


def test_independent_examples_repeat_within_a_batch() -> None:
    drawn = batches(10, 10, "iid", 0, 0, 100)
    assert max(len(set(batch.tolist())) for batch in drawn) < 10
    assert (int(drawn.min()), int(drawn.max())) == (0, 9)


@pytest.mark.parametrize("sampling", ["reshuffle", "iid"])
def test_independent_batches_are_those_of_their_name_and_drawn_as_a_run_draws_them(sampling: str) -> None:
    drawn = independent_batches(10, 4, sampling, range(5_000), "test", 1)
    assert drawn.shape == (5_000, 4)
    assert torch.equal(independent_batches(10, 4, sampling, range(3, 7), "test", 1), drawn[3:7])
    assert not torch.equal(independent_batches(10, 4, sampling, range(7), "test", 2), drawn[:7])
    distinct = [len(set(batch)) for batch in drawn.tolist()]
    assert (min(distinct) == 4) == (sampling == "reshuffle")
    counts = torch.bincount(drawn.flatten(), minlength=10).double()
    assert bool(((counts - 2_000).abs() < 4.5 * 2_000**0.5).all())


@pytest.mark.parametrize(
    ("b", "sampling", "words"),
    [
        (2, "replace", "unknown sampling 'replace': use reshuffle or iid"),
        (0, "reshuffle", "batch size 0: a batch has at least one example"),
        (0, "iid", "batch size 0: a batch has at least one example"),
        (6, "reshuffle", "batch size 6: without replacement a batch has at most all 5 examples"),
    ],
)
def test_batches_that_cannot_be_drawn_are_refused(b: int, sampling: str, words: str) -> None:
    with pytest.raises(ValueError, match=words):
        batches(5, b, sampling, 0, 0, 3)
    with pytest.raises(ValueError, match=words):
        independent_batches(5, b, sampling, range(3), "test")


def test_more_independent_examples_than_there_are_can_be_drawn() -> None:
    assert batches(5, 8, "iid", 0, 0, 3).shape == independent_batches(5, 8, "iid", range(3), "test").shape == (3, 8)
