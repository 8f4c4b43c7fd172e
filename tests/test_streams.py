"""Random streams are functions of their names, and of nothing else."""

from __future__ import annotations

import pytest
import torch

from eosslib.streams import generator, integers, normal, permutations, seed_of, words


def test_the_same_name_gives_the_same_numbers_whatever_was_drawn_before() -> None:
    first = torch.rand(5, generator=generator("batch", 3, 17))
    torch.rand(100)
    torch.rand(100, generator=generator("batch", 3, 16))
    assert torch.equal(torch.rand(5, generator=generator("batch", 3, 17)), first)


def test_the_global_random_state_is_left_alone() -> None:
    before = torch.random.get_rng_state()
    torch.rand(5, generator=generator("init", 0))
    assert torch.equal(torch.random.get_rng_state(), before)


def test_seeds_never_change() -> None:
    """Neither between processes, as Python's hash does, nor between versions: runs that were published stay reproducible."""
    assert seed_of("noise", 2, 40) == 7185678360597472926


def test_streams_of_different_names_have_different_seeds_that_fit_63_bits() -> None:
    names = [(name, seed, step) for name in ("init", "batch", "noise") for seed in range(20) for step in range(50)]
    names += [("batch", 1), ("batch", "1"), ("batch1",), ("batch", 11), ("batch", 1, 1)]
    seeds = {seed_of(*name) for name in names}
    assert len(seeds) == len(set(names))
    assert all(0 <= seed < 1 << 63 for seed in seeds)


def test_streams_of_neighbouring_seeds_are_uncorrelated() -> None:
    """The correlation of two independent streams of N normal numbers has standard deviation 1/√N; four of these."""
    rows = torch.stack([torch.randn(10_000, generator=generator("noise", seed, 0), dtype=torch.float64) for seed in range(5)])
    correlations = torch.corrcoef(rows)[*torch.triu_indices(5, 5, 1)]
    assert float(correlations.abs().max()) < 4 / 10_000**0.5


def test_words_are_those_of_the_published_generator() -> None:
    """SplitMix64 with seed 1234567, the values with which Rosetta Code and the reference implementation are checked."""
    drawn = words(torch.tensor(1234567), torch.arange(5))
    expected = [6457827717110365317, 3203168211198807973, 9817491932198370423, 4593380528125082431, 16408922859458223821]
    assert [word % (1 << 64) for word in drawn.tolist()] == expected


def test_permutations_are_uniform() -> None:
    """All 24 orders of four things, over 24,000 seeds: χ² with 23 degrees of freedom, three σ above its mean at 43."""
    drawn = permutations(words(torch.tensor(seed_of("test")), torch.arange(24_000)), 4)
    counts = torch.bincount((drawn * torch.tensor([64, 16, 4, 1])).sum(1), minlength=256)
    counts = counts[counts > 0].double()
    assert len(counts) == 24
    assert float(((counts - 1000) ** 2 / 1000).sum()) < 23 + 3 * (2 * 23) ** 0.5


def test_integers_are_uniform_and_within_bounds() -> None:
    counts = torch.bincount(integers(words(torch.tensor(5), torch.arange(100)), 10, 1_000).flatten(), minlength=10).double()
    assert len(counts) == 10
    assert float(((counts - 1e4) ** 2 / 1e4).sum()) < 9 + 3 * 18**0.5


def test_normal_numbers_are_normal_and_uncorrelated_between_streams_and_steps() -> None:
    """Moments of N = 100,000 numbers within four standard errors; correlations between five streams within four."""
    count = 100_000
    seeds = torch.cat([words(torch.tensor(seed_of("noise", seed)), torch.arange(3)) for seed in range(3)])
    rows = normal(seeds, count, torch.float64)
    for power, moment, variance in ((1, 0.0, 1.0), (2, 1.0, 2.0), (3, 0.0, 15.0), (4, 3.0, 96.0)):
        assert float((rows.pow(power).mean(1) - moment).abs().max()) < 4 * (variance / count) ** 0.5
    correlations = torch.corrcoef(rows)[*torch.triu_indices(9, 9, 1)]
    assert float(correlations.abs().max()) < 4 / count**0.5
    shifted = (rows[:, 1:] * rows[:, :-1]).mean(1)
    assert float(shifted.abs().max()) < 4 / count**0.5
    assert bool(torch.isfinite(normal(torch.tensor([-1, 0, 1]), 1000, torch.float32)).all())


@pytest.mark.gpu
def test_cuda_and_cpu_draw_the_same(cuda: torch.device) -> None:
    seeds = words(torch.tensor(7), torch.arange(4))
    assert torch.equal(permutations(seeds.to(cuda), 100).cpu(), permutations(seeds, 100))
    assert torch.equal(integers(seeds.to(cuda), 10, 100).cpu(), integers(seeds, 10, 100))
    here, there = (normal(seeds.to(device), 1000, torch.float64).cpu() for device in ("cpu", cuda))
    torch.testing.assert_close(there, here, rtol=1e-12, atol=1e-14)
