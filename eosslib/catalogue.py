"""What runs are made of and what is measured of them: every model, data set, loss, noise model and quantity, a row each.

A row says how its kind is shown and what makes it, as ``module:name``, which is imported when it is asked for: the catalogue
itself imports no torch. Settings accept the names that stand here, figures show them as their rows say. To add one, write what
makes it and its row; a package of your own may add rows from outside before it loads a preset::

    catalogue.MODELS["mine"] = catalogue.Model("Mine", "my_package:build", marker="P", color=6)
"""

from __future__ import annotations

import pkgutil
from dataclasses import dataclass
from typing import Any, Literal

Reads = Literal["images", "text"]


@dataclass(frozen=True)
class Made:
    """A row whose kind is made by something."""

    label: str  # in figures and texts
    maker: str  # module:name

    def load(self) -> Any:
        """Import what makes it.

        Raises:
            ImportError: There is no such module.
            AttributeError: The module has no such name.
        """
        return pkgutil.resolve_name(self.maker)


@dataclass(frozen=True)
class Model(Made):
    """A network; made by a function of (C, H, W), the number of outputs K and ``models.Sizes``."""

    marker: str
    color: int  # of seaborn's palette "colorblind", 0 to 9, as the following
    reads: Reads = "images"
    width: int | None = None  # at which the benchmarks measure it on CIFAR-10; None: they don't


@dataclass(frozen=True)
class Dataset(Made):
    """A data set; made by a function of the number of training examples and the folder of files, as ``datasets`` has them."""

    classes: int
    axes: tuple[int, ...]  # over which inputs are standardised; none for codes
    reads: Reads = "images"
    file: str | None = None  # that has to be fetched; None: it comes with a package


@dataclass(frozen=True)
class Loss(Made):
    """A loss; made is a ``losses.Loss``."""


@dataclass(frozen=True)
class Noise(Made):
    """A model of the noise of mini-batches; made is a ``dynamics.Direction``."""

    color: int
    projects: Literal["", "u", "top"] = ""  # on no eigenvector, the top one, or the setting ``noise_directions`` of them
    batch: bool = False  # whether it draws a mini-batch


@dataclass(frozen=True)
class Quantity:
    """A column of a run's trajectory."""

    label: str
    color: int


MODELS = {
    "fc-tanh": Model("FC-tanh", "eosslib.models:fc_tanh", "o", 0, width=200),
    "fc-relu": Model("FC-ReLU", "eosslib.models:fc_relu", "s", 1, width=200),
    "cnn": Model("CNN", "eosslib.models:cnn", "^", 2, width=32),
    "cnn5": Model("CNN-5", "eosslib.models:cnn5", "^", 2),
    "cnn-tanh": Model("CNN-tanh", "eosslib.models:cnn_tanh", "v", 5, width=32),
    "resnet10": Model("ResNet-10", "eosslib.models:resnet10", "D", 3),
    "resnet10-bn": Model("ResNet-10 with BN", "eosslib.models:resnet10_bn", "D", 4),
    "transformer": Model("transformer", "eosslib.models:transformer", "o", 0, reads="text"),
    "lstm": Model("LSTM", "eosslib.models:lstm", "s", 1, reads="text"),
}
DATASETS = {
    "digits": Dataset("digits", "eosslib.datasets:digits", 10, (0, 1, 2, 3)),  # one mean of all
    "cifar10": Dataset("CIFAR-10", "eosslib.datasets:cifar10", 10, (0, 2, 3), file="cifar10_5k.npz"),  # one a channel
    "topics": Dataset("text", "eosslib.datasets:topics", 27, (), reads="text"),
}
LOSSES = {
    "mse": Loss("squared error", "eosslib.losses:MSE"),
    "cross-entropy": Loss("cross-entropy", "eosslib.losses:CROSS_ENTROPY"),
}
NOISES = {  # in the order of bars
    "sgd": Noise("mini-batch SGD", "eosslib.dynamics:sgd", 0, batch=True),
    "gaussian": Noise("GD + full covariance", "eosslib.dynamics:gaussian", 1),
    "diagonal": Noise("GD + its diagonal", "eosslib.dynamics:diagonal", 2),
    "isotropic": Noise("GD + isotropic", "eosslib.dynamics:isotropic", 3),
    "along_u": Noise("GD + noise along u", "eosslib.dynamics:along", 4, "u", True),
    "without_u": Noise("GD + noise without u", "eosslib.dynamics:without", 5, "u", True),
    "along_top": Noise("GD + noise along the top k", "eosslib.dynamics:along", 6, "top", True),
    "without_top": Noise("GD + noise without the top k", "eosslib.dynamics:without", 7, "top", True),
}
QUANTITIES = {
    "minibatch_sharpness": Quantity("MiniBS", 0),
    "batch_sharpness": Quantity("batch sharpness", 1),
    "sharpness": Quantity("FullBS", 2),
    "preconditioned_sharpness": Quantity("preconditioned sharpness", 3),
}


def names() -> tuple[tuple[str, ...], ...]:
    """Return the names that settings accept."""
    return tuple(tuple(rows) for rows in (MODELS, DATASETS, LOSSES, NOISES))
