"""Random streams are functions of their names, and of nothing else."""

from __future__ import annotations

import torch

from eosslib.streams import generator, seed_of


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
