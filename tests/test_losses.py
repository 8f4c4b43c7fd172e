"""Losses per example against torch's own."""

from __future__ import annotations

import pytest
import torch
from oracles import randn
from torch.nn import functional

from eosslib import catalogue, losses
from eosslib.errors import ConfigError

OUTPUTS, LABELS = randn(2, 7, 4), torch.tensor([[0, 1, 2, 3, 0, 1, 2], [3, 2, 1, 0, 3, 2, 1]])
TARGETS = functional.one_hot(LABELS, 4).double()


def test_mse_is_half_the_squared_error_summed_over_the_outputs() -> None:
    expected = functional.mse_loss(OUTPUTS, TARGETS, reduction="none").sum(-1) / 2
    torch.testing.assert_close(losses.mse(OUTPUTS, TARGETS), expected, rtol=1e-14, atol=0)


def test_the_hessian_of_mse_in_the_outputs_is_the_identity() -> None:
    hessian = torch.autograd.functional.hessian(lambda f: losses.mse(f, TARGETS[0, 0]), OUTPUTS[0, 0])
    torch.testing.assert_close(hessian, torch.eye(4, dtype=torch.float64), rtol=0, atol=0)


def test_cross_entropy_is_that_of_torch() -> None:
    expected = functional.cross_entropy(OUTPUTS.flatten(0, 1), LABELS.flatten(), reduction="none").view(2, 7)
    torch.testing.assert_close(losses.cross_entropy(OUTPUTS, TARGETS), expected, rtol=1e-13, atol=0)


def test_cross_entropy_takes_soft_targets() -> None:
    soft = randn(7, 4, seed=1).softmax(-1)
    expected = functional.cross_entropy(OUTPUTS[0], soft, reduction="none")
    torch.testing.assert_close(losses.cross_entropy(OUTPUTS[0], soft), expected, rtol=1e-13, atol=0)


def test_cross_entropy_of_huge_outputs_is_finite() -> None:
    huge = torch.tensor([[1e4, -1e4, 0.0]])
    torch.testing.assert_close(losses.cross_entropy(huge, torch.tensor([[0.0, 1.0, 0.0]])), torch.tensor([2e4]))


@pytest.mark.parametrize("targets", [TARGETS[0, 0], randn(4, seed=2).softmax(-1)], ids=["one-hot", "soft"])
@pytest.mark.parametrize("name", catalogue.LOSSES)
def test_the_derivatives_of_a_loss_are_those_of_automatic_differentiation(name: str, targets: torch.Tensor) -> None:
    loss, f, v = losses.by_name(name), OUTPUTS[0, 0], randn(4, seed=3)
    gradient = torch.autograd.functional.jacobian(lambda f: loss.value(f, targets), f)
    hessian = torch.autograd.functional.hessian(lambda f: loss.value(f, targets), f)
    torch.testing.assert_close(loss.gradient(f, targets), gradient, rtol=1e-12, atol=1e-14)
    torch.testing.assert_close(loss.curvature(f, targets, v), hessian @ v, rtol=1e-12, atol=1e-14)


def test_losses_are_found_by_name_and_others_refused_by_name() -> None:
    assert [losses.by_name(name).value for name in ("mse", "cross-entropy")] == [losses.mse, losses.cross_entropy]
    with pytest.raises(ConfigError, match="unknown loss 'hinge'; there are mse, cross-entropy"):
        losses.by_name("hinge")
