"""Loss and accuracy, over all training examples and over the test set."""

from __future__ import annotations

import torch

from eosslib.curvature import Point, chunks
from eosslib.measure.moment import Columns, Measurement, Moment, always


def loss_and_accuracy(point: Point) -> tuple[torch.Tensor, torch.Tensor]:
    """Mean loss and fraction of rightly classified examples of each network: (R,), (R,); nothing is kept for derivatives.

    Raises:
        ConfigError: Batch normalisation needs more than ``point.memory``.
    """
    objective, theta, x, y = point.objective, point.theta, point.x, point.y
    params = objective.network.views(theta)
    loss, right = theta.new_zeros(len(theta)), theta.new_zeros(len(theta))
    with torch.no_grad():
        for part in chunks(objective, params, x, point.memory):
            outputs = objective.network(params, x[:, part])
            loss += objective.loss.value(outputs, y[:, part]).sum(1)
            right += (outputs.argmax(-1) == y[:, part].argmax(-1)).sum(1)
    n = x.shape[1]
    return loss / n, right / n


def _of_training(moment: Moment) -> Columns:
    hessian = moment.point.hessian()  # whose pass serves eigenpairs and noise variance too
    return {"loss": hessian.loss, "accuracy": hessian.accuracy}


def _of_test(moment: Moment) -> Columns:
    assert moment.test is not None
    return {"test_accuracy": loss_and_accuracy(moment.test)[1]}


LOSS = Measurement(
    settings=(),
    columns={"loss": "mean over all training examples [loss]", "accuracy": "part of them that is classified rightly [1]"},
    due=always,
    compute=_of_training,
)
TEST_ACCURACY = Measurement(
    settings=(),
    columns={"test_accuracy": "part of the test examples that is classified rightly [1]"},
    due=lambda moment: moment.test is not None,
    compute=_of_test,
)
