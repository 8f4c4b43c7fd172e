"""The tracker: right numbers on any module, a training left as it is, and clear refusals."""

from __future__ import annotations

import random
from collections.abc import Callable, Sequence

import matplotlib.pyplot as plt
import numpy as np
import pytest
import torch
from oracles import randn
from torch import nn
from torch.nn.attention import SDPBackend, sdpa_kernel
from torch.utils.data import (
    DataLoader,
    Dataset,
    IterableDataset,
    RandomSampler,
    SubsetRandomSampler,
    TensorDataset,
    WeightedRandomSampler,
    default_collate,
)

from eosslib import SharpnessTracker, theory
from eosslib.errors import ConfigError

N = 24
Network = Callable[[], nn.Module]


def data(outputs: int = 3) -> tuple[torch.Tensor, torch.Tensor]:
    return randn(N, 5, seed=1), randn(N, outputs, seed=2)


def labels() -> tuple[torch.Tensor, torch.Tensor]:
    return data()[0], torch.arange(N) % 3


def mlp() -> nn.Module:
    torch.manual_seed(0)
    return nn.Sequential(nn.Linear(5, 6), nn.Tanh(), nn.Linear(6, 3)).double()


def sgd(model: nn.Module, **options: float) -> torch.optim.Optimizer:
    return torch.optim.SGD([p for p in model.parameters() if p.requires_grad], **{"lr": 0.1, **options})


def tracked(model: nn.Module, loss: Callable | None = None, examples: object = None, **options: object) -> SharpnessTracker:
    optimizer = options.pop("optimizer", None) or sgd(model)
    chosen = data() if examples is None else examples
    return SharpnessTracker(model, loss or nn.MSELoss(), chosen, optimizer, **{"batch_size": 6, "tol": 1e-8, **options})


def flat(model: nn.Module) -> torch.Tensor:
    return torch.cat([p.detach().flatten() for p in model.parameters() if p.requires_grad])


def outputs_of(model: nn.Module, inputs: tuple) -> Callable[[torch.Tensor], torch.Tensor]:
    """The outputs as a function of the trained parameters (P,), through the module itself."""
    named = {name: p for name, p in model.named_parameters() if p.requires_grad}

    def outputs(theta: torch.Tensor) -> torch.Tensor:
        parts = theta.split([p.numel() for p in named.values()])
        values = {name: part.reshape(p.shape) for (name, p), part in zip(named.items(), parts, strict=True)}
        return torch.func.functional_call(model, values, inputs)

    return outputs


def dense(model: nn.Module, loss: Callable, inputs: tuple, targets: torch.Tensor) -> torch.Tensor:
    """Hessian of the mean loss with respect to the trained parameters."""
    outputs = outputs_of(model, inputs)
    return torch.autograd.functional.hessian(lambda theta: loss(outputs(theta), targets), flat(model))


# --- numbers -----------------------------------------------------------------------------------------------------------------


class Tied(nn.Module):
    """Uses one matrix twice."""

    def __init__(self) -> None:
        super().__init__()
        torch.manual_seed(0)
        self.first = nn.Linear(5, 5)
        self.second = nn.Linear(5, 5)
        self.second.weight = self.first.weight
        self.last = nn.Linear(5, 3)
        self.double()

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return self.last(torch.tanh(self.second(torch.tanh(self.first(x)))))


class Sum(nn.Module):
    """Two inputs."""

    def __init__(self) -> None:
        super().__init__()
        self.inner = mlp()

    def forward(self, a: torch.Tensor, b: torch.Tensor) -> torch.Tensor:
        return self.inner(a + b**2)


def frozen() -> nn.Module:
    model = mlp()
    model[0].weight.requires_grad_(False)
    return model


def normalised() -> nn.Module:
    torch.manual_seed(0)
    return nn.Sequential(nn.Linear(5, 6), nn.GroupNorm(2, 6), nn.ReLU(), nn.Linear(6, 3)).double()


@pytest.mark.parametrize("memory", [4 << 30, 1])
@pytest.mark.parametrize("network", [mlp, Tied, frozen, normalised])
def test_sharpness_is_that_of_the_dense_hessian(network: Network, memory: int) -> None:
    model = network()
    row = tracked(model, memory=memory).measure(0)
    values = torch.linalg.eigvalsh(dense(model, nn.functional.mse_loss, (data()[0],), data()[1]))
    assert row["sharpness"] == pytest.approx(float(values[-1]), rel=1e-8)
    assert row["loss"] == pytest.approx(nn.functional.mse_loss(model(data()[0]), data()[1]).item(), rel=1e-10)
    assert row["sharpness_residual"] <= 1e-8
    assert row["threshold"] == 20.0


def test_noise_variance_and_batch_sharpness_are_those_of_single_gradients() -> None:
    model, loss = mlp(), nn.CrossEntropyLoss()
    row = tracked(model, loss, labels(), draws=400).measure(0)
    x, y = labels()
    gradients = []
    for i in range(N):
        model.zero_grad()
        loss(model(x[i : i + 1]), y[i : i + 1]).backward()
        gradients.append(torch.cat([p.grad.flatten() for p in model.parameters()]))
    model.zero_grad()
    hessian = dense(model, loss, (x,), y)
    u = torch.linalg.eigh(hessian).eigenvectors[:, -1]
    expected = (torch.stack(gradients) @ u).var(correction=0) * theory.finite_population(N, 6)
    assert row["noise_variance"] == pytest.approx(float(expected), rel=1e-6)
    quotients = []
    generator = torch.Generator().manual_seed(0)
    for _ in range(400):
        batch = torch.randperm(N, generator=generator)[:6]
        g = torch.stack(gradients)[batch].mean(0)
        quotients.append((float(g @ dense(model, loss, (x[batch],), y[batch]) @ g), float(g @ g)))
    mean = np.array(quotients).mean(0)
    spread = np.array(quotients).std(0)[0] / mean[0] / 20  # of the independent estimate, roughly
    assert row["batch_sharpness"] == pytest.approx(
        mean[0] / mean[1], abs=4 * (row["batch_sharpness_se"] + spread * mean[0] / mean[1])
    )
    assert row["minibatch_sharpness"] > row["sharpness"]
    gap = row["minibatch_sharpness"] - row["sharpness"]
    assert row["minibs_gap"] == pytest.approx(gap, abs=4 * row["minibatch_sharpness_se"])


def test_at_the_full_batch_everything_is_the_sharpness() -> None:
    row = tracked(mlp(), batch_size=N).measure(0)
    assert row["minibatch_sharpness"] == pytest.approx(row["sharpness"], rel=1e-6)
    assert row["noise_variance"] == pytest.approx(0.0, abs=1e-15)
    assert row["batch_sharpness_se"] == 0.0


def test_tuple_inputs_dictionaries_loaders_and_datasets_give_the_same_numbers() -> None:
    (a, y), b = data(), randn(N, 5, seed=3)

    class Rows(Dataset):
        def __len__(self) -> int:
            return N

        def __getitem__(self, i: int) -> dict[str, torch.Tensor]:
            return {"a": a[i], "b": b[i], "labels": y[i]}

    expected = tracked(Sum(), examples=(a, b, y)).measure(0)
    for examples in (TensorDataset(a, b, y), DataLoader(TensorDataset(a, b, y), 6, shuffle=True), Rows(), DataLoader(Rows(), 6)):
        row = tracked(Sum(), examples=examples).measure(0)
        assert row == pytest.approx(expected, rel=1e-9)
    loader = DataLoader(Rows(), 6)
    assert tracked(Sum(), examples=loader, batch_size=None).batch_size == 6


@pytest.mark.parametrize("decay", [0.0, 0.05])
def test_a_window_gives_alpha_beta_and_the_predicted_gap(decay: float) -> None:
    """Against dense matrices: where the average of the iterates is brought to, and the noise at the first and the last of them."""
    model = mlp()
    optimizer, iterates = sgd(model, weight_decay=decay), []
    tracker = tracked(model, window=10, optimizer=optimizer)
    for _ in range(10):
        assert "alpha" not in tracker.measure(0)
        optimizer.zero_grad()
        nn.functional.mse_loss(model(data()[0]), data()[1]).backward()
        optimizer.step()
        tracker.after_step()
        iterates.append(flat(model))
    row = tracker.measure(10)

    outputs = outputs_of(model, (data()[0],))

    def losses(theta: torch.Tensor) -> torch.Tensor:
        return (outputs(theta) - data()[1]).square().mean(1)

    def loss(theta: torch.Tensor) -> torch.Tensor:
        return losses(theta).mean() + decay / 2 * theta @ theta

    hessian = torch.func.jacrev(torch.func.jacrev(loss))
    theta = torch.stack(iterates).mean(0)
    for newton in range(3):
        values, vectors = torch.linalg.eigh(hessian(theta))
        u, gradient = vectors[:, -1], torch.func.grad(loss)(theta)
        if newton < 2:
            theta = theta - (u @ gradient) / values[-1] * u
    ascent = torch.func.grad(lambda t: u @ hessian(t) @ u)(theta)
    ascent = ascent - (u @ ascent) * u
    alpha, beta = float(-gradient @ ascent), float(ascent @ ascent)
    slopes = [torch.func.jacrev(losses)(t) @ u for t in (iterates[0], iterates[-1])]
    noise = sum(float(slope.var(correction=0)) for slope in slopes) / 2 / 6 * (N - 6) / (N - 1)
    displacement = float(((torch.stack(iterates) - theta) @ u).square().mean())
    expected = {"alpha": alpha, "beta": beta, "displacement": displacement, "predicted_gap": 0.1 * beta * noise / (4 * alpha)}
    assert {name: row[name] for name in expected} == pytest.approx(expected, rel=1e-5)


def test_a_loader_says_which_examples_there_are_and_how_they_are_drawn() -> None:
    (x, y), chosen = data(), list(range(0, N, 2))
    loader = DataLoader(TensorDataset(x, y), 6, sampler=SubsetRandomSampler(chosen))
    assert tracked(mlp(), examples=loader).measure(0) == pytest.approx(tracked(mlp(), examples=(x[chosen], y[chosen])).measure(0))
    loader = DataLoader(TensorDataset(x, y), 6, sampler=RandomSampler(range(N), replacement=True))
    row, other = tracked(mlp(), examples=loader).measure(0), tracked(mlp()).measure(0)
    assert row["noise_variance"] == pytest.approx(other["noise_variance"] * (N - 1) / (N - 6))
    row = tracked(mlp(), examples=loader, batch_size=N).measure(0)  # with replacement batches differ even then
    assert min(row["noise_variance"], row["batch_sharpness_se"], row["minibatch_sharpness_se"]) > 0
    assert tracked(mlp(), examples=loader, batch_size=2 * N).measure(0)["noise_variance"] < row["noise_variance"]
    loader = DataLoader(TensorDataset(x, y), 6, sampler=RandomSampler(range(12)))
    assert tracked(mlp(), examples=loader).measure(0) == pytest.approx(tracked(mlp(), examples=(x[:12], y[:12])).measure(0))


def test_what_a_data_set_or_its_loader_does_to_examples_is_done() -> None:
    class Scaled(TensorDataset):
        def __getitem__(self, i: int) -> tuple[torch.Tensor, ...]:
            x, y = super().__getitem__(i)
            return 10 * x, y

    def scaled(batch: list) -> tuple[torch.Tensor, torch.Tensor]:
        x, y = default_collate(batch)
        return 10 * x, y

    x, y = data()
    expected = tracked(mlp(), examples=(10 * x, y)).measure(0)
    pairs = list(zip(x, y, strict=True))
    for examples in (Scaled(x, y), *(DataLoader(d, 6, collate_fn=scaled) for d in (TensorDataset(x, y), pairs))):
        assert tracked(mlp(), examples=examples).measure(0) == pytest.approx(expected, rel=1e-9)


def test_examples_are_compared_by_their_numbers_and_lazy_data_sets_are_not_read() -> None:
    class Lazy(Sequence):
        """Comes with arrays, and objects that compare unequal."""

        read = 0

        def __len__(self) -> int:
            return 10 * N

        def __getitem__(self, i: int) -> tuple:
            Lazy.read += 1
            return data()[0][i % N], data()[1][i % N], np.arange(i, i + 2), object()

    def collate(batch: list) -> tuple:
        x, y, ids, objects = zip(*batch, strict=True)
        return torch.stack(x), {"y": torch.stack(y), "ids": np.stack(ids), "more": list(objects)}

    loss = lambda outputs, targets: nn.functional.mse_loss(outputs, targets["y"])  # noqa: E731
    with pytest.raises(ConfigError, match="cannot be taken example by example"):  # of arrays; but that much is the same
        tracked(mlp(), loss, DataLoader(Lazy(), 6, collate_fn=collate))
    assert Lazy.read < 5 * N


def test_a_network_that_changes_its_inputs_is_measured() -> None:
    class InPlace(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.inner = mlp()

        def forward(self, x: torch.Tensor) -> torch.Tensor:
            return self.inner(x.mul_(3.0))

    row = tracked(InPlace()).measure(0)
    assert row == pytest.approx(tracked(mlp(), examples=(3.0 * data()[0], data()[1])).measure(0), rel=1e-9)


def test_images_of_a_batch_of_one_can_be_normalised() -> None:
    torch.manual_seed(0)
    model = nn.Sequential(nn.Conv2d(1, 2, 3), nn.BatchNorm2d(2), nn.Flatten(), nn.Linear(2 * 9, 3)).double()
    row = tracked(model, examples=(randn(N, 1, 5, 5, seed=1), data()[1]), batch_size=1).measure(0)
    assert row["minibatch_sharpness"] > 0


@pytest.mark.parametrize("training", [True, False])
def test_attention_is_measured_by_a_kernel_that_has_second_derivatives(training: bool) -> None:
    torch.manual_seed(0)
    model = nn.Sequential(nn.TransformerEncoderLayer(4, 2, 8, dropout=0.0, batch_first=True), nn.Flatten(), nn.Linear(12, 3))
    model.double().train(training)
    x, y = randn(N, 3, 4, seed=1), randn(N, 3, seed=2)
    row = tracked(model, examples=(x, y), minibs=False).measure(0)
    with sdpa_kernel(SDPBackend.MATH):
        values = torch.linalg.eigvalsh(dense(model, nn.functional.mse_loss, (x,), y))
    assert row["sharpness"] == pytest.approx(float(values[-1]), rel=1e-7)


def test_batch_normalisation_couples_examples_only_where_it_takes_the_statistics_of_the_batch() -> None:
    own = nn.Sequential(nn.Linear(5, 6), nn.BatchNorm1d(6, track_running_stats=False), nn.Linear(6, 3)).double().eval()
    row = tracked(own).measure(0)
    assert "noise_variance" not in row
    kept = with_batch_norm()
    assert "noise_variance" not in tracked(kept).measure(0)
    kept[1].eval()
    row = tracked(kept, memory=1).measure(0)  # in chunks, which what is coupled does not allow
    values = torch.linalg.eigvalsh(dense(kept, nn.functional.mse_loss, (data()[0],), data()[1]))
    assert row["sharpness"] == pytest.approx(float(values[-1]), rel=1e-8)
    assert row["noise_variance"] > 0


# --- the training is left alone ----------------------------------------------------------------------------------------------


def train(network: Network, measured: bool, optimizer: Callable = sgd) -> tuple[dict, list, dict]:
    """Train with the global random stream, batches of 6, and state what is left."""
    model = network()
    steps, losses = optimizer(model), []
    tracker = SharpnessTracker(model, nn.MSELoss(), data(), steps, batch_size=6) if measured else None
    torch.manual_seed(7)
    for step in range(6):
        if tracker is not None and step % 2 == 0:
            tracker.measure(step)
        batch = torch.randperm(N)[:6]
        loss = nn.functional.mse_loss(model(data()[0][batch]), data()[1][batch])
        loss.backward()  # gradients add up: a measurement that touched them would be seen
        steps.step()
        losses.append(loss.item())
    gradients = {name: p.grad for name, p in model.named_parameters()}
    assert model.training
    return model.state_dict() | {"random": torch.get_rng_state()}, losses, gradients


def with_batch_norm() -> nn.Module:
    torch.manual_seed(0)
    return nn.Sequential(nn.Linear(5, 6), nn.BatchNorm1d(6), nn.ReLU(), nn.Linear(6, 3)).double()


@pytest.mark.parametrize("optimizer", [sgd, lambda m: sgd(m, momentum=0.9), lambda m: torch.optim.Adam(m.parameters(), lr=0.01)])
@pytest.mark.parametrize("network", [mlp, with_batch_norm])
def test_a_training_is_the_same_bit_for_bit_with_and_without_measurements(network: Network, optimizer: Callable) -> None:
    (state, losses, gradients), (other, other_losses, other_gradients) = (train(network, m, optimizer) for m in (True, False))
    assert losses == other_losses
    assert all(torch.equal(state[key], other[key]) for key in other)
    assert all(torch.equal(gradients[key], other_gradients[key]) for key in other_gradients)


def test_nothing_of_model_optimizer_and_random_streams_is_touched() -> None:
    class Drawing(Dataset):
        """Gives the same examples, but draws random numbers on the way."""

        def __len__(self) -> int:
            return N

        def __getitem__(self, i: int) -> tuple[torch.Tensor, ...]:
            random.random(), np.random.rand()  # noqa: NPY002
            return data()[0][i], data()[1][i]

    model = mlp()
    optimizer = torch.optim.Adam(model.parameters(), lr=0.01)
    random.seed(3)
    np.random.seed(3)  # noqa: NPY002
    before = random.getstate(), np.random.get_state()[1].tolist()  # noqa: NPY002
    tracked(model, examples=Drawing(), optimizer=optimizer, minibs=False).measure(0)
    assert (random.getstate(), np.random.get_state()[1].tolist()) == before  # noqa: NPY002
    assert optimizer.state_dict()["state"] == {}
    model[1].eval()
    with pytest.raises(RuntimeError, match="shapes cannot be multiplied"):
        tracked(model, examples=(data()[0][:, :2], data()[1]))
    assert [module.training for module in model] == [True, False, True]


# --- thresholds --------------------------------------------------------------------------------------------------------------


def growth(optimizer: Callable, curvature: float) -> float:
    """Size of a one-parameter quadratic's iterate after many steps, over the start."""
    point = nn.Parameter(torch.tensor([1.0], dtype=torch.float64))
    steps = optimizer([point])
    for _ in range(3000):
        steps.zero_grad()
        (curvature / 2 * point.square()).sum().backward()
        steps.step()
        if abs(point.item()) > 1e6:
            break
    return abs(point.item())


@pytest.mark.parametrize(
    "options", [{}, {"momentum": 0.9}, {"momentum": 0.9, "nesterov": True}, {"momentum": 0.5}, {"weight_decay": 3.0}]
)
def test_sgd_diverges_just_above_the_threshold_and_not_below(options: dict) -> None:
    model = nn.Linear(1, 1, bias=False).double()
    optimizer = sgd(model, **options)
    tracker = SharpnessTracker(model, nn.MSELoss(), (randn(4, 1), randn(4, 1)), optimizer)
    threshold = tracker.measure(0)["threshold"]
    optimizer.param_groups[0]["lr"] = 0.0  # as a warm-up may begin
    assert tracker.measure(1)["threshold"] == float("inf")
    assert growth(lambda p: torch.optim.SGD(p, lr=0.1, **options), 0.98 * threshold) < 1e-3
    assert growth(lambda p: torch.optim.SGD(p, lr=0.1, **options), 1.02 * threshold) > 1e3


def test_adams_threshold_is_that_of_its_recurrence() -> None:
    """With the preconditioner held fixed: m ← β₁m + (1−β₁)λx, x ← x − ηm; the spectral radius is one at the threshold."""
    lr, beta = 0.01, 0.9
    for factor, expected in ((0.99, False), (1.01, True)):
        curvature = factor * theory.adam_threshold(lr, beta)
        step = np.array([[1 - lr * (1 - beta) * curvature, -lr * beta], [(1 - beta) * curvature, beta]])
        assert (np.abs(np.linalg.eigvals(step)).max() > 1) == expected
    assert theory.adam_threshold(1.0) == pytest.approx(38.0)


def test_adams_sharpness_is_that_of_the_preconditioned_hessian() -> None:
    model = mlp()
    optimizer = torch.optim.Adam(model.parameters(), lr=0.01)
    tracker = tracked(model, optimizer=optimizer)
    assert "preconditioned_sharpness" not in tracker.measure(0)  # no state yet
    for _ in range(3):
        optimizer.zero_grad()
        nn.functional.mse_loss(model(data()[0]), data()[1]).backward()
        optimizer.step()
    row = tracker.measure(3)
    second = torch.cat([optimizer.state[p]["exp_avg_sq"].flatten() for p in model.parameters()])
    p = (1 - 0.9**3) * ((second / (1 - 0.999**3)).sqrt() + 1e-8)  # Cohen et al. 2022, equation for P_t
    hessian = dense(model, nn.functional.mse_loss, (data()[0],), data()[1])
    expected = torch.linalg.eigvalsh(hessian / (p.sqrt()[:, None] * p.sqrt()[None, :]))[-1]
    assert row["preconditioned_sharpness"] == pytest.approx(float(expected), rel=1e-7)
    assert row["threshold"] == pytest.approx(3800.0)


# --- table and plot ----------------------------------------------------------------------------------------------------------


def test_rows_go_into_the_table_to_the_callback_and_into_the_plot() -> None:
    seen = []
    tracker = tracked(mlp(), callback=lambda step, row: seen.append((step, row["sharpness"])), minibs=False)
    for step in (0, 5):
        tracker.measure(step)
    assert tracker.frame.step.tolist() == [0, 5]
    assert seen == list(zip([0, 5], tracker.frame.sharpness, strict=True))
    assert "minibatch_sharpness" not in tracker.frame
    ax = tracker.plot()
    assert {line.get_label() for line in ax.get_lines()} == {"sharpness", "batch sharpness", "threshold"}
    plt.close(ax.figure)


# --- refusals ----------------------------------------------------------------------------------------------------------------


class Stream(IterableDataset):
    def __iter__(self) -> object:
        return iter([])


class Named(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.inner = mlp()

    def forward(self, x: torch.Tensor) -> dict[str, torch.Tensor]:
        return {"logits": self.inner(x)}


def groups(model: nn.Module) -> torch.optim.Optimizer:
    return torch.optim.SGD([{"params": model[0].parameters()}, {"params": model[2].parameters(), "lr": 0.2}], lr=0.1)


class Dropping(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.inner = mlp()

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return nn.functional.dropout(self.inner(x), 0.1, self.training)


class Recurrent(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.inner = nn.LSTM(5, 3, num_layers=2, dropout=0.5, batch_first=True).double()

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return self.inner(x)[0][:, -1]


class Augmented(Dataset):
    def __len__(self) -> int:
        return N

    def __getitem__(self, i: int) -> tuple[torch.Tensor, ...]:
        return data()[0][i] + torch.randn(5), data()[1][i]


class AugmentedTensors(TensorDataset):
    def __getitem__(self, i: int) -> tuple[torch.Tensor, ...]:
        x, y = super().__getitem__(i)
        return x + torch.randn(5), y


def penalised(model: nn.Module) -> Callable:
    return lambda outputs, targets: nn.functional.mse_loss(outputs, targets) + sum(p.square().sum() for p in model.parameters())


def sequences() -> tuple[torch.Tensor, torch.Tensor]:
    return randn(N, 4, 5, seed=1), data()[1]


def sorted_labels() -> tuple[torch.Tensor, torch.Tensor]:
    return data()[0], torch.arange(N) // 8


def of_two(outputs: torch.Tensor, targets: torch.Tensor) -> torch.Tensor:
    if len(outputs) < 2:
        raise ValueError("two, please")
    return nn.functional.mse_loss(outputs, targets)


def frozen_later() -> SharpnessTracker:
    tracker = tracked(mlp())
    tracker.model[0].weight.requires_grad_(False)
    return tracker


REFUSED: dict[str, tuple[Callable[[], object], str]] = {
    "a stream": (lambda: tracked(mlp(), examples=Stream()), "cannot be fetched by index"),
    "a sum": (lambda: tracked(mlp(), nn.MSELoss(reduction="sum")), "not the mean over its examples"),
    "a loss of many numbers": (lambda: tracked(mlp(), nn.MSELoss(reduction="none")), "not a number: use reduction='mean'"),
    "class weights": (
        lambda: tracked(mlp(), nn.CrossEntropyLoss(torch.tensor([1.0, 2.0, 3.0]).double()), sorted_labels()),
        "not the mean over its examples",
    ),
    "targets that do not count": (
        lambda: tracked(mlp(), nn.CrossEntropyLoss(ignore_index=2), sorted_labels()),
        "without class weights or ignore_index",
    ),
    "a loss that is no tensor": (lambda: tracked(mlp(), lambda a, b: nn.functional.mse_loss(a, b).item()), "returns float"),
    "a loss that needs two examples": (lambda: tracked(mlp(), of_two), "cannot be taken example by example: two, please"),
    "a model that returns a dictionary": (lambda: tracked(Named()), "returns dict, not a tensor: wrap it"),
    "another optimizer": (lambda: tracked(mlp(), optimizer=torch.optim.RMSprop(mlp().parameters())), "RMSprop is not known here"),
    "an optimizer of another model": (lambda: tracked(mlp(), optimizer=sgd(mlp())), "does not train all parameters"),
    "dampening": (lambda: tracked(m := mlp(), optimizer=sgd(m, momentum=0.9, dampening=0.1)), "dampening"),
    "amsgrad": (lambda: tracked(m := mlp(), optimizer=torch.optim.Adam(m.parameters(), amsgrad=True)), "amsgrad"),
    "two step sizes": (lambda: tracked(m := mlp(), optimizer=groups(m)), "parameter groups have different settings"),
    "a batch above n": (lambda: tracked(mlp(), batch_size=N + 1), "batch_size 25 is not between 1 and the 24 examples"),
    "a batch of none": (lambda: tracked(mlp(), batch_size=0), "batch_size 0 is not between 1 and"),
    "one draw": (lambda: tracked(mlp(), draws=1), "needs two"),
    "climbing": (lambda: tracked(m := mlp(), optimizer=sgd(m, maximize=True)), "maximize"),
    "numpy arrays": (lambda: tracked(mlp(), examples=tuple(part.numpy() for part in data())), "torch.as_tensor"),
    "a dictionary of tensors": (lambda: tracked(mlp(), examples={"x": data()[0], "labels": data()[1]}), "give tensors (inputs"),
    "no examples": (lambda: tracked(mlp(), examples=[]), "no examples"),
    "empty tensors": (lambda: tracked(mlp(), examples=(data()[0][:0], data()[1][:0])), "no examples"),
    "targets that are missing": (lambda: tracked(mlp(), examples=(data()[0], data()[1][:5])), "numbers of examples: 24, 5"),
    "random augmentation": (lambda: tracked(mlp(), examples=Augmented()), "another example each time"),
    "random augmentation of tensors": (lambda: tracked(mlp(), examples=AugmentedTensors(*data())), "another example each time"),
    "a penalty": (lambda: tracked(m := mlp(), penalised(m)), "weight_decay= of SGD is known"),
    "a sampler of unknown kind": (
        lambda: tracked(mlp(), examples=DataLoader(Augmented(), 6, sampler=WeightedRandomSampler([1.0] * N, N))),
        "draws with WeightedRandomSampler is not known here",
    ),
    "batches of unknown kind": (
        lambda: tracked(mlp(), examples=DataLoader(Augmented(), batch_sampler=[[0, 1], [2, 3]])),
        "draws with list is not known here",
    ),
    "half precision": (lambda: tracked(mlp().bfloat16()), "are torch.bfloat16: measure it in torch.float32"),
    "parameters frozen later": (lambda: frozen_later().measure(0), "frozen or unfrozen since"),
    "batches of one to normalise": (lambda: tracked(with_batch_norm(), batch_size=1).measure(0), "take a larger batch_size"),
    "a plot of nothing": (lambda: tracked(mlp()).plot(), "nothing was measured yet"),
    "dropout": (
        lambda: tracked(nn.Sequential(nn.Linear(5, 3), nn.Dropout(0.1)).double()).measure(0),
        "random numbers, as dropout makes them: call model.eval()",
    ),
    "dropout by a function": (lambda: tracked(Dropping()).measure(0), "random numbers, as dropout makes them"),
    "dropout of an LSTM": (lambda: tracked(Recurrent(), examples=sequences()).measure(0), "random numbers, as dropout makes them"),
    "batch normalisation beyond the memory": (lambda: tracked(with_batch_norm(), memory=10).measure(0), "in one pass"),
    "nothing to train": (lambda: tracked(nn.Sequential(nn.Tanh()), optimizer=sgd(mlp())), "no parameters that require a gradient"),
    "a dictionary without targets": (
        lambda: tracked(mlp(), examples=[{"x": torch.ones(5), "y": torch.ones(3)}] * 8),
        "say with target= which are the targets",
    ),
}


@pytest.mark.parametrize(("attempt", "words"), REFUSED.values(), ids=REFUSED.keys())
def test_what_cannot_be_measured_is_refused_with_what_to_do(attempt: Callable, words: str) -> None:
    with pytest.raises(ConfigError) as caught:
        attempt()
    assert words in str(caught.value)
    assert "\n" not in str(caught.value)


def test_dropout_in_evaluation_mode_is_measured() -> None:
    plain = mlp()
    model = nn.Sequential(*plain, nn.Dropout(0.5)).double().eval()
    assert tracked(model).measure(0)["sharpness"] == pytest.approx(tracked(plain).measure(0)["sharpness"], rel=1e-9)
    assert not model.training
