"""The step loop: against loops over the plain module, and against itself in other company."""

from __future__ import annotations

import contextlib
import dataclasses
import functools
import itertools
from collections.abc import Callable, Iterable
from typing import Any

import pytest
import torch
from oracles import WRITTEN_OUT, randn
from torch import nn
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves

from eosslib import catalogue, datasets, eigen, models, probing, stepping
from eosslib.errors import ConfigError
from eosslib.measure import moment, sharpness
from eosslib.measure.loss import loss_and_accuracy
from eosslib.measure.noise import variance_of_batch_means
from eosslib.sampling import batches
from eosslib.settings import RunConfig
from eosslib.training import Row, State, Trainer

Settings = Callable[..., RunConfig]


@functools.cache
def digits(train_size: int, dtype: str, device: torch.device | str) -> datasets.Dataset:
    """Digits with but 20 test images, which would otherwise take most of the time."""
    data = datasets.load("digits", train_size, dtype=getattr(torch, dtype), device=device)
    return dataclasses.replace(data, x_test=data.x_test[:20], y_test=data.y_test[:20])


def trainer_of(*configs: RunConfig, **options: Any) -> Trainer:
    data = digits(configs[0].train_size, configs[0].dtype, options.get("device", "cpu"))
    return Trainer(configs, data=data, **options)


def test_data_of_another_size_than_the_settings_say_is_refused(tiny: Settings) -> None:
    with pytest.raises(ConfigError, match="train_size is 40, but the data set that is given has 30 training examples"):
        Trainer([tiny()], data=digits(30, "float32", "cpu"))


def train(*configs: RunConfig, **options: Any) -> State:
    return trainer_of(*configs, **options).run()


def optimizer_of(config: RunConfig, parameters: Iterable[nn.Parameter]) -> torch.optim.Optimizer:
    """PyTorch's own optimizer of these settings."""
    if config.optimizer == "adam":
        return torch.optim.Adam(parameters, config.lr, (config.momentum, config.beta2))
    return torch.optim.SGD(parameters, config.lr, config.momentum, nesterov=config.optimizer == "nesterov")


def by_hand(config: RunConfig, full_batch: bool = False) -> tuple[torch.Tensor, list[float]]:
    """Train the plain module with PyTorch's optimizer; its final parameters and the full loss before every step and at the end."""
    data = digits(config.train_size, "float64", "cpu")
    network = models.initialised(
        config.model,
        data.shape,
        10,
        width=config.width,
        depth=config.depth,
        hidden=config.hidden,
        seed=config.seed,
        scale=config.init_scale,
    ).double()

    def loss(indices: torch.Tensor | slice) -> torch.Tensor:
        f, y = network(data.x[indices]), data.y[indices]
        if config.loss == "mse":
            return (f - y).square().sum(1).mean() / 2
        return nn.functional.cross_entropy(f, y.argmax(1))

    everything = slice(None)
    drawn = batches(config.train_size, config.batch_size, config.sampling, config.seed, 0, config.steps)
    history, optimizer = [], optimizer_of(config, network.parameters())
    for batch in drawn:
        history.append(loss(everything).item())
        optimizer.zero_grad()
        loss(everything if full_batch else batch).backward()
        optimizer.step()
    history.append(loss(everything).item())
    return nn.utils.parameters_to_vector(network.parameters()).detach(), history


@pytest.mark.parametrize("sampling", ["reshuffle", "iid"])
@pytest.mark.parametrize("loss", ["mse", "cross-entropy"])
@pytest.mark.parametrize("model", WRITTEN_OUT)
def test_sgd_is_a_plain_loop_over_the_same_batches(model: str, loss: str, sampling: str, tiny: Settings) -> None:
    config = tiny(model=model, loss=loss, sampling=sampling, dtype="float64", measure_every=1, batch_size=9)
    theta, losses = by_hand(config)
    state = train(config)
    torch.testing.assert_close(state.theta[0], theta, rtol=1e-9, atol=1e-12)
    assert [row["loss"] for row in state.rows[0]] == pytest.approx(losses, rel=1e-9)


OPTIMIZERS: dict[str, dict[str, Any]] = {
    "heavy ball": {"momentum": 0.9},
    "Nesterov": {"optimizer": "nesterov", "momentum": 0.6},
    "Adam": {"optimizer": "adam", "momentum": 0.9, "beta2": 0.99, "lr": 0.01},
    "Adam without momentum": {"optimizer": "adam", "beta2": 0.9, "lr": 0.01},
}


@pytest.mark.parametrize("size", [9, 40])
@pytest.mark.parametrize("name", OPTIMIZERS)
def test_an_optimizer_is_pytorchs_over_the_same_batches(name: str, size: int, tiny: Settings) -> None:
    config = tiny(dtype="float64", measure_every=1, batch_size=size, **OPTIMIZERS[name])
    theta, losses = by_hand(config, full_batch=config.full_batch)
    state = train(config)
    torch.testing.assert_close(state.theta[0], theta, rtol=1e-9, atol=1e-12)
    assert [row["loss"] for row in state.rows[0]] == pytest.approx(losses, rel=1e-9)


@pytest.mark.parametrize("name", OPTIMIZERS)
def test_with_any_optimizer_going_on_is_bit_identical_and_so_is_a_run_alone(name: str, tiny: Settings) -> None:
    runs = [tiny(seed=seed, **OPTIMIZERS[name]) for seed in (0, 1)]
    seen: list[State] = []
    whole = trainer_of(*runs).run(lambda state: seen.append(state.copy()))
    trainer = trainer_of(*runs)
    trainer.state = seen[1]
    again = trainer.run()
    assert torch.equal(again.theta, whole.theta)
    assert again.rows == whole.rows
    assert train(runs[1]).rows[1] == whole.rows[1]


def test_adams_sharpness_is_that_of_the_dense_preconditioned_hessian(tiny: Settings) -> None:
    config = tiny(dtype="float64", eig_tol=1e-9, width=4, **OPTIMIZERS["Adam"])
    trainer = trainer_of(config)
    state = trainer.run()
    hessian = trainer.point().hessian()
    dense = torch.stack([hessian(e.unsqueeze(0))[0] for e in torch.eye(hessian.size, dtype=torch.float64)])
    p = (1 - 0.9**config.steps) * ((state.kept[0, 1] / (1 - 0.99**config.steps)).sqrt() + 1e-8)  # Cohen et al. 2022, P_t
    expected = torch.linalg.eigvalsh(dense / (p.sqrt()[:, None] * p.sqrt()))[-1]
    assert state.rows[0][-1]["preconditioned_sharpness"] == pytest.approx(expected.item(), rel=1e-7)
    assert "preconditioned_sharpness" not in state.rows[0][0]  # no preconditioner before the first step


def test_a_diverged_run_takes_what_its_optimizer_keeps_with_it(tiny: Settings) -> None:
    trainer = trainer_of(*(tiny(seed=seed, **OPTIMIZERS["heavy ball"]) for seed in (0, 1)))
    trainer.run(lambda state: state.theta[0].fill_(torch.nan) if state.step == 5 else None)
    assert trainer.state.seeds == [1]
    assert trainer.state.rows[1] == train(tiny(seed=1, **OPTIMIZERS["heavy ball"])).rows[1]


THRESHOLDS = {
    "SGD": ({}, 20.0),
    "heavy ball": ({"momentum": 0.5}, 30.0),
    "Nesterov": ({"optimizer": "nesterov", "momentum": 0.5}, 15.0),
    "Adam": ({"optimizer": "adam", "momentum": 0.9}, 380.0),
}


@pytest.mark.parametrize("name", THRESHOLDS)
def test_the_threshold_is_the_optimizers(name: str, tiny: Settings) -> None:
    settings, expected = THRESHOLDS[name]
    assert tiny(lr=0.1, **settings).threshold == pytest.approx(expected)


@pytest.mark.parametrize("model", WRITTEN_OUT)
def test_the_full_batch_is_gradient_descent(model: str, tiny: Settings) -> None:
    config = tiny(model=model, batch_size=40, dtype="float64")
    assert config.full_batch
    torch.testing.assert_close(train(config).theta[0], by_hand(config, full_batch=True)[0], rtol=1e-9, atol=1e-12)


def test_initial_scale_multiplies_the_initialisation(tiny: Settings) -> None:
    one, two = (trainer_of(tiny(init_scale=scale)).state.theta for scale in (1.0, 0.5))
    assert torch.equal(two, one / 2)


def test_gradient_descent_below_the_threshold_decreases_the_loss_at_every_step(tiny: Settings) -> None:
    config = tiny(batch_size=40, lr=0.05, steps=40, measure_every=1, dtype="float64")
    rows = train(config).rows[0]
    assert max(row["sharpness"] for row in rows) < config.threshold / 2
    losses = [row["loss"] for row in rows]
    assert all(after < before for before, after in itertools.pairwise(losses))


@pytest.mark.parametrize("noise", ["gaussian", "diagonal", "isotropic"])
def test_synthetic_noise_is_drawn_anew_after_every_measurement(noise: str, tiny: Settings) -> None:
    """With a step size so small that the parameters stay, what two stretches of five steps add up differs by their noise alone."""
    seen: list[State] = []
    trainer_of(tiny(noise=noise, lr=1e-6, steps=10, dtype="float64")).run(lambda state: seen.append(state.copy()))
    first, second = ((after.theta - before.theta)[0] for before, after in itertools.pairwise(seen))
    assert float((first - second).norm()) > 0.1 * float(first.norm())


SAMPLED = {"sample_every": 10, "batch_sharpness_draws": 3, "minibs_draws": 2}


@pytest.mark.parametrize("noise", catalogue.NOISES)
@pytest.mark.parametrize("model", WRITTEN_OUT)
def test_a_run_is_bit_identical_whichever_others_it_is_stacked_with(model: str, noise: str, tiny: Settings) -> None:
    kinds = {"model": model, "noise": noise, "noise_directions": 4}
    runs = [tiny(**kinds, seed=seed, refresh_every=3, eig_k=2, **SAMPLED) for seed in (0, 3, 7)]
    alone = train(runs[1])
    for company in (runs[:2], runs[2:0:-1]):
        stacked = train(*company)
        position = stacked.seeds.index(3)
        assert torch.equal(stacked.theta[position], alone.theta[0])
        mine, rest = stacked.vectors[position].split([alone.vectors.shape[1], stacked.vectors.shape[1] - alone.vectors.shape[1]])
        assert torch.equal(mine, alone.vectors[0])
        assert not rest.any()  # the others may have more start vectors
        assert stacked.rows[3] == alone.rows[3]
    assert not torch.equal(train(runs[0]).theta, alone.theta)


def test_the_hidden_layer_of_the_papers_cnn_is_a_setting_of_the_run(tiny: Settings) -> None:
    sizes = [trainer_of(tiny(model="cnn-tanh", hidden=hidden)).objective.network.shapes[4] for hidden in (7, 200)]
    assert sizes == [(7, 2 * 2 * 8), (200, 2 * 2 * 8)]


@pytest.mark.parametrize(
    ("model", "noise"), [*itertools.product(["fc-tanh", "cnn"], catalogue.NOISES), ("cnn-tanh", "sgd"), ("cnn-tanh", "diagonal")]
)
def test_going_on_from_any_measurement_is_bit_identical(model: str, noise: str, tiny: Settings) -> None:
    runs = [tiny(model=model, noise=noise, noise_directions=4, seed=seed, refresh_every=2, **SAMPLED) for seed in (0, 1)]
    seen: list[State] = []
    whole = trainer_of(*runs).run(lambda state: seen.append(state.copy()))
    assert [state.step for state in seen] == [0, 5, 10, 12]
    for state in seen[:-1]:
        trainer = trainer_of(*runs)
        trainer.state = state
        again = trainer.run()
        assert torch.equal(again.theta, whole.theta)
        assert again.rows == whole.rows


@pytest.mark.parametrize("noise", ["sgd", "along_u"])
def test_measuring_sampled_quantities_does_not_change_the_trajectory(noise: str, tiny: Settings) -> None:
    plain, sampled = tiny(noise=noise), tiny(noise=noise, **SAMPLED)
    assert torch.equal(train(plain).theta, train(sampled).theta)


def test_how_often_is_measured_does_not_change_an_sgd_trajectory(tiny: Settings) -> None:
    assert torch.equal(train(tiny(measure_every=1)).theta, train(tiny(measure_every=7)).theta)


@pytest.mark.parametrize(("steps", "expected"), [(12, [0, 5, 10, 12]), (10, [0, 5, 10]), (3, [0, 3])])
def test_rows_stand_every_measure_every_steps_and_at_the_last_one(steps: int, expected: list[int], tiny: Settings) -> None:
    assert [row["step"] for row in train(tiny(steps=steps)).rows[0]] == expected


def test_what_is_sampled_stands_only_where_it_was_due(tiny: Settings) -> None:
    rows = train(tiny(sample_every=10, batch_sharpness_draws=3, minibs_draws=2)).rows[0]
    names = {"batch_sharpness", "batch_sharpness_mean_of_ratios", "minibatch_sharpness"}
    names |= {f"{name}_se" for name in names}
    assert [row["step"] for row in rows if names <= row.keys()] == [0, 10]
    assert [row["step"] for row in rows if names & row.keys()] == [0, 10]


def test_a_row_holds_what_the_measurements_say_of_the_parameters_at_that_step(tiny: Settings) -> None:
    config = tiny(eig_k=3, eig_tol=1e-9, dtype="float64")
    trainer = trainer_of(config)
    state = trainer.run()
    row, point = state.rows[0][-1], trainer.point()
    start = torch.randn(1, 1, state.theta.shape[1], generator=torch.Generator().manual_seed(1), dtype=torch.float64)
    pairs = sharpness.sharpness(point, start, k=3, tol=1e-9)
    assert [row["sharpness"], row["sharpness_2"], row["sharpness_3"]] == pytest.approx(pairs.values[0].tolist(), rel=1e-9)
    assert 0 <= row["sharpness_residual"] <= 1e-9
    assert row["sharpness_products"] >= 1
    noise = variance_of_batch_means(point.hessian().slopes(pairs.vectors[:, 0]), 8, "reshuffle")
    assert row["noise_variance"] == pytest.approx(noise.item(), rel=1e-6)
    loss, accuracy = loss_and_accuracy(point)
    assert (row["loss"], row["accuracy"]) == pytest.approx((loss.item(), accuracy.item()), rel=1e-12)
    test = dataclasses.replace(point, x=trainer.data.x_test[None], y=trainer.data.y_test[None])
    assert row["test_accuracy"] == loss_and_accuracy(test)[1].item()


@pytest.mark.parametrize("memory", [1, 1 << 16])
def test_a_small_memory_budget_changes_the_numbers_by_rounding_only(memory: int, tiny: Settings) -> None:
    config = tiny(dtype="float64", noise="along_u", eig_tol=1e-9, train_size=10, batch_size=4, steps=6)
    whole, cut = train(config), train(config, memory=memory)
    torch.testing.assert_close(cut.theta, whole.theta, rtol=1e-9, atol=1e-11)
    torch.testing.assert_close(sharpnesses(cut.rows[0]), sharpnesses(whole.rows[0]), rtol=1e-9, atol=0)


def sharpnesses(rows: list[Row]) -> torch.Tensor:
    return torch.tensor([row["sharpness"] for row in rows], dtype=torch.float64)


def trained_with_its_top_pairs(run: RunConfig) -> tuple[Trainer, eigen.Eigenpairs]:
    trainer = trainer_of(run)
    state = trainer.run()
    return trainer, sharpness.sharpness(trainer.point(), randn(1, 1, state.theta.shape[1]), k=2, tol=1e-10)


def test_a_warm_start_that_sits_on_a_smaller_eigenvalue_leaves_it(tiny: Settings) -> None:
    """An exact eigenvector of λ₂ has residual 0: without a probe a solve that starts from it never leaves it."""
    trainer, exact = trained_with_its_top_pairs(tiny(dtype="float64", steps=10, eig_tol=1e-6))
    state = trainer.state
    assert exact.values[0, 0] > 1.01 * exact.values[0, 1]
    state.vectors, state.probe, state.step = exact.vectors[:, 1:2], randn(1, state.theta.shape[1], seed=2), 9
    trainer.measure()
    row = state.rows[0][-1]
    assert row["sharpness"] == pytest.approx(float(exact.values[0, 0]), rel=1e-9)
    assert row["sharpness_miss"] <= probing.CARRIED_MISS
    assert float((state.vectors[0, 0] @ exact.vectors[0, 0]).abs()) == pytest.approx(1, abs=1e-5)


def test_at_the_last_step_the_larger_of_two_solves_is_taken_and_said_to_have_been_missed(
    tiny: Settings, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    trainer, exact = trained_with_its_top_pairs(tiny(dtype="float64", steps=10, sample_every=10, eig_tol=1e-6))
    state = trainer.state
    state.vectors = exact.vectors[:, 1:2]
    monkeypatch.setattr(probing, "CARRIED_MISS", 1.0)  # the probe may find what it likes
    trainer.measure()
    assert "had missed the top eigenvalue" in caplog.text
    assert state.rows[0][-1]["sharpness"] == state.rows[0][-1]["sharpness_check"]
    assert state.rows[0][-1]["sharpness"] == pytest.approx(float(exact.values[0, 0]), rel=1e-9)


def test_a_solve_that_is_given_up_is_said_to_be_uncertain(
    tiny: Settings, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    monkeypatch.setattr(moment, "top_eigenpairs", functools.partial(eigen.top_eigenpairs, max_products=4))
    state = train(tiny(steps=1))
    assert "step 0, λ_max: 1 of 1 eigen-solves given up: residual up to" in caplog.text
    assert 0.9 < state.rows[0][0]["sharpness_miss"] <= 1


def test_an_eigenvalue_that_overtakes_is_followed_where_no_samples_are_due(tiny: Settings) -> None:
    """Exact eigenvectors in the wrong order: the measurement starts from all that are close, so the second is seen."""
    trainer, exact = trained_with_its_top_pairs(tiny(dtype="float64", steps=10, eig_tol=1e-6))
    state = trainer.state
    state.vectors, state.step = exact.vectors.flip(1), 9
    trainer.measure()
    assert state.rows[0][-1]["sharpness"] == pytest.approx(float(exact.values[0, 0]), rel=1e-9)


def test_a_measurement_leaves_the_vectors_that_are_close_for_the_next(tiny: Settings, monkeypatch: pytest.MonkeyPatch) -> None:
    """As many as each run has; in a stack those with fewer have zeros in the last places."""
    monkeypatch.setattr(eigen, "CLOSE", 0.3)  # where tiny networks differ
    runs = [tiny(seed=seed, dtype="float64") for seed in range(6)]
    alone = [train(run).vectors.shape[1] for run in runs]
    assert len(set(alone)) > 1, "or this shows nothing"
    assert max(alone) > 1
    stacked = train(*runs)
    assert stacked.vectors.shape[1] == max(alone)
    assert stacked.vectors.any(2).sum(1).tolist() == alone


# --- divergence --------------------------------------------------------------------------------------------------------------


def test_a_run_with_a_huge_step_size_is_stopped_and_marked_and_keeps_what_was_measured(tiny: Settings) -> None:
    state = train(tiny(lr=1e4, steps=50))
    assert state.seeds == []
    assert state.diverged_at == {0: 5}
    assert [row["step"] for row in state.rows[0]] == [0, 5]
    assert state.rows[0][0].keys() >= {"loss", "sharpness", "noise_variance"}
    assert state.rows[0][0] == train(tiny(steps=1)).rows[0][0]


@pytest.mark.parametrize("bad", [1e3, float("inf"), float("nan")])
@pytest.mark.parametrize("noise", catalogue.NOISES)
def test_a_diverging_run_leaves_its_stack_neighbours_unaffected(bad: float, noise: str, tiny: Settings) -> None:
    runs = [tiny(noise=noise, seed=seed, refresh_every=2, **SAMPLED) for seed in (0, 1, 2)]

    def spoil(state: State) -> None:
        if state.step == 5:
            state.theta[1] *= bad

    together = trainer_of(*runs).run(spoil)
    assert together.seeds == [0, 2]
    assert together.diverged_at == {1: 10}
    assert [row["step"] for row in together.rows[1]] == [0, 5, 10]
    for position, run in ((0, runs[0]), (1, runs[2])):
        alone = train(run)
        assert torch.equal(together.theta[position], alone.theta[0])
        assert together.rows[run.seed] == alone.rows[run.seed]


def test_a_run_that_starts_beyond_all_numbers_diverges_at_the_first_measurement(tiny: Settings) -> None:
    state = train(tiny(model="fc-relu", init_scale=1e30))
    assert state.diverged_at == {0: 0}
    assert [set(row) for row in state.rows[0]] == [{"step", "loss", "accuracy"}]


# --- precision, devices, what is refused -------------------------------------------------------------------------------------


@pytest.mark.parametrize("dtype", ["float32", "float64"])
def test_everything_is_computed_in_the_precision_asked_for(dtype: str, tiny: Settings) -> None:
    trainer = trainer_of(tiny(dtype=dtype))
    state = trainer.run()
    for tensor in (trainer.x, trainer.y, trainer.data.x_test, state.theta, state.vectors):
        assert tensor.dtype == getattr(torch, dtype)


def test_single_and_double_precision_differ_by_rounding_only(tiny: Settings) -> None:
    single, double = (train(tiny(dtype=dtype)) for dtype in ("float32", "float64"))
    assert not torch.equal(single.theta.double(), double.theta)
    torch.testing.assert_close(single.theta.double(), double.theta, rtol=0, atol=1e-5)


@pytest.mark.parametrize("change", [{"lr": 0.2}, {"noise": "gaussian"}, {"measure_every": 6}])
def test_runs_that_differ_in_more_than_the_seed_are_not_stacked(change: dict[str, Any], tiny: Settings) -> None:
    with pytest.raises(ValueError, match="only in their seed"):
        trainer_of(tiny(), tiny(seed=1, **change))


# --- the projected noise -----------------------------------------------------------------------------------------------------


@pytest.mark.slow
@pytest.mark.parametrize("noise", ["along_u", "without_u"])
def test_the_projected_noise_uses_the_top_eigenvector_at_the_edge_of_stability(noise: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """FC-tanh on 1,000 digits, b = 25, steps 500 to 750: λ₁ is 17–19 of 20, and noise along u makes it cross λ₂ often.

    After every refresh uᵀHu is within 1 % of λ₁; ten steps later, just before the next, it is on average still within 2 %,
    and never off by 10 %.
    """
    config = RunConfig(
        model="fc-tanh", loss="mse", batch_size=25, lr=0.1, steps=750, train_size=1000, measure_every=250, noise=noise
    )
    trainer, refresh = trainer_of(config), Trainer.refresh
    refreshes, before, after = [], [], []

    def watched(self: Trainer, *old: torch.Tensor) -> torch.Tensor:
        new = refresh(self, *old)
        refreshes.append(self.state.step)
        if self.state.step >= 500 and len(refreshes) % 2:
            point = self.point()
            start = torch.randn(1, 1, point.theta.shape[1], generator=torch.Generator().manual_seed(0))
            top, hessian = sharpness.sharpness(point, start, k=3, tol=1e-3).values[0, 0], point.hessian()
            for vectors, quotients in ((old[0], before), (new, after)):
                u = vectors.flatten(0, -2)[:1]  # the first, if several are tracked
                quotients.append(float((u * hessian(u)).sum() / top))
        return new

    monkeypatch.setattr(Trainer, "refresh", watched)
    trainer.run()
    assert len(after) == 12
    assert min(after) > 0.99
    assert min(before) > 0.90
    assert sum(before) / len(before) > 0.98


# --- CUDA --------------------------------------------------------------------------------------------------------------------


def make_plainly(trainer: Trainer, start: int, stop: int, u: torch.Tensor) -> None:
    """Make steps one after the other, without cutting them into stretches for graphs."""
    stepper = trainer._stepper_of(0)
    if stepper._u is not None:
        stepper._u.copy_(u[:, : stepper._u.shape[1]])
    stepper._step.fill_(start)
    stepper._make(stop - start, stepper.draw(start, stop) if stepper._uses_batch else None)


class Graph:
    """What a CUDA graph does, on a CPU: the operations of a stretch, run again on the same memory, whatever Python would do now."""

    def __init__(self) -> None:
        self.operations: list[tuple[Callable[..., Any], tuple[Any, ...], dict[str, Any], Any]] = []

    @torch.no_grad()
    def replay(self) -> None:
        for operation, arguments, options, results in self.operations:
            again = operation(*arguments, **options)
            for old, new in zip(tree_leaves(results), tree_leaves(again), strict=True):
                if isinstance(old, torch.Tensor) and old.data_ptr() != new.data_ptr():
                    old.copy_(new)


class Capture(TorchDispatchMode):
    """Records into a graph. Unlike CUDA it also makes the steps, which is why ``_capture`` must put everything back."""

    def __init__(self, graph: Graph, stream: object) -> None:
        super().__init__()
        self.graph = graph

    def __torch_dispatch__(self, operation: Any, types: Any, arguments: Any = (), options: Any = None) -> Any:
        assert operation is not torch.ops.aten._local_scalar_dense.default, "a graph cannot wait for a number"
        results = operation(*arguments, **(options or {}))
        self.graph.operations.append((operation, arguments, options or {}, results))
        return results


@pytest.fixture
def graphs_on_the_cpu(monkeypatch: pytest.MonkeyPatch) -> None:
    class Stream:
        def wait_stream(self, other: object) -> None: ...

    monkeypatch.setattr(stepping, "GRAPHED", ("cpu",))
    monkeypatch.setattr(stepping, "MAX_GRAPH", 4)
    monkeypatch.setattr(torch.cuda, "CUDAGraph", Graph)
    monkeypatch.setattr(torch.cuda, "graph", Capture)
    for name in ("Stream", "current_stream"):
        monkeypatch.setattr(torch.cuda, name, Stream)
    for name in ("stream", "device"):
        monkeypatch.setattr(torch.cuda, name, lambda _: contextlib.nullcontext())


@pytest.mark.usefixtures("graphs_on_the_cpu")
@pytest.mark.parametrize(
    ("model", "options"),
    [
        *(("fc-tanh", {"noise": noise}) for noise in catalogue.NOISES),
        ("fc-relu", {"batch_size": 40}),
        ("fc-relu", {"sampling": "iid", "optimizer": "adam", "momentum": 0.9}),
        ("cnn", {"optimizer": "nesterov", "momentum": 0.5}),
        ("resnet10", {}),
    ],
)
def test_graphs_hold_nothing_that_changes_from_step_to_step(model: str, options: dict[str, Any], tiny: Settings) -> None:
    """Two stretches, of 4, 4, 2 and of 4, 3 steps: graphs used once and again with other batches, noise and eigenvectors."""
    runs = [tiny(model=model, seed=seed, dtype="float64", **{"batch_size": 8, **options}) for seed in (0, 1)]
    replayed, plain = trainer_of(*runs), trainer_of(*runs)
    u = [torch.nn.functional.normalize(randn(2, 9, replayed.state.theta.shape[1], seed=seed), dim=-1) for seed in (1, 2)]
    for (start, stop), vectors in zip([(3, 13), (13, 20)], u, strict=True):
        replayed._stepper_of(0).advance(start, stop, vectors)
        make_plainly(plain, start, stop, vectors)
        torch.testing.assert_close(replayed.state.theta, plain.state.theta, rtol=1e-12, atol=1e-14)
        torch.testing.assert_close(replayed.state.kept, plain.state.kept, rtol=1e-12, atol=1e-14)
    assert sorted(replayed._stepper_of(0)._graphs) == [2, 3, 4]


@pytest.mark.parametrize("model", WRITTEN_OUT)
def test_a_stack_solved_for_in_one_as_on_a_gpu_measures_what_its_networks_do_one_by_one(
    model: str, tiny: Settings, monkeypatch: pytest.MonkeyPatch
) -> None:
    runs = [tiny(model=model, seed=seed, dtype="float64", eig_tol=1e-8, eig_k=2, **SAMPLED) for seed in (0, 1, 2)]
    one_by_one = train(*runs)
    monkeypatch.setattr(sharpness, "solved_together", lambda theta: [slice(0, len(theta))])
    together = train(*runs)
    for seed in (0, 1, 2):
        for ours, theirs in zip(together.rows[seed], one_by_one.rows[seed], strict=True):
            same = ours.keys() - {"sharpness_residual", "sharpness_products"}
            assert {key: theirs[key] for key in same} == pytest.approx({key: ours[key] for key in same}, rel=1e-6, nan_ok=True)


@pytest.mark.gpu
@pytest.mark.parametrize("batch_size", [8, 40])
@pytest.mark.parametrize("noise", catalogue.NOISES)
@pytest.mark.parametrize("model", WRITTEN_OUT)
def test_cuda_and_cpu_agree_on_a_short_training_in_float64(
    model: str, noise: str, batch_size: int, cuda: torch.device, tiny: Settings
) -> None:
    options = {"model": model, "noise": noise, "batch_size": batch_size, "dtype": "float64", "eig_tol": 1e-8, "refresh_every": 1}
    runs = [tiny(seed=seed, **options, **SAMPLED) for seed in (0, 1)]
    here, there = train(*runs), train(*runs, device=cuda)
    torch.testing.assert_close(there.theta.cpu(), here.theta, rtol=1e-6, atol=1e-9)
    for seed in (0, 1):
        for ours, theirs in zip(here.rows[seed], there.rows[seed], strict=True):
            assert theirs.keys() == ours.keys()
            same = ours.keys() - {"sharpness_residual", "sharpness_products"}
            assert {key: theirs[key] for key in same} == pytest.approx({key: ours[key] for key in same}, rel=1e-3, nan_ok=True)


@pytest.mark.gpu
@pytest.mark.parametrize(("model", "noise"), [("resnet10", "sgd"), *(("fc-tanh", noise) for noise in catalogue.NOISES)])
def test_replayed_graphs_make_the_same_steps_as_a_plain_loop(
    model: str, noise: str, cuda: torch.device, tiny: Settings, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Stretches of 4, 4 and 2 steps: a graph used once, again, and another one."""
    monkeypatch.setattr(stepping, "MAX_GRAPH", 4)
    replayed, plain = (
        trainer_of(*[tiny(model=model, noise=noise, seed=seed, dtype="float64") for seed in (0, 1)], device=cuda) for _ in "ab"
    )
    start, u = replayed.state.theta.clone(), replayed.state.vectors
    stepper = replayed._stepper_of(0)
    stepper.advance(3, 13, u)
    torch.cuda.set_sync_debug_mode("error")  # what would wait for the device is an error, now that all graphs are captured
    try:
        stepper.advance(3, 13, u)
    finally:
        torch.cuda.set_sync_debug_mode("default")
    replayed.state.theta.copy_(start)
    replayed.state.kept.zero_()
    stepper.advance(3, 13, u)
    make_plainly(plain, 3, 13, u)
    assert not torch.equal(replayed.state.theta, start)
    torch.testing.assert_close(replayed.state.theta, plain.state.theta, rtol=1e-12, atol=1e-14)
