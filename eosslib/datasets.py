"""The data sets named in ``catalogue``, as standardised tensors on the device, with one-hot targets.

``digits``: scikit-learn's 1,797 handwritten digits (inside the package, no download), standardised by one mean and one
standard deviation. ``cifar10``: images 0–999 of each of the five CIFAR-10 training batches and the first 1,000 test
images, each channel standardised. Both standardise with the statistics of the training images that are used.

``topics``: the standard library's own documentation topics (``pydoc_data``), which every Python carries, as a stream of
lower-case letters and single spaces. An example is 16 characters, as codes 0–26, and the character that follows; training and test
examples are spread evenly over the text and do not overlap. The text is that of the Python that runs (its version is in a
run's provenance); another version has another text, and with it other examples.
"""

from __future__ import annotations

import hashlib
import importlib.util
import logging
import os
import re
import tempfile
import zipfile
import zlib
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import TypeAlias

import numpy as np
import torch

from eosslib import catalogue
from eosslib.errors import DataError

DATA_FOLDER = Path(__file__).resolve().parents[1] / "data"
CIFAR_FILE = str(catalogue.DATASETS["cifar10"].file)
# SHA-256 over names and contents of the arrays, so that it does not depend on how the file was compressed.
CIFAR_SHA256 = "29ba0cfe2726c71d1d80b59c4b00b51bd488464064fbc4e804199584babe522b"
ALPHABET = "abcdefghijklmnopqrstuvwxyz "
CONTEXT = 16  # characters of an example
TEST_TOPICS = 500  # test examples

Arrays: TypeAlias = tuple[np.ndarray, np.ndarray, np.ndarray, np.ndarray]  # images, labels; for training, for testing

log = logging.getLogger(__name__)


@dataclass(frozen=True)
class Dataset:
    """Training and test examples on one device."""

    x: torch.Tensor  # (n, C, H, W); text: (n, 1, 1, W) codes of characters
    y: torch.Tensor  # (n, K) one-hot
    x_test: torch.Tensor  # (n_test, C, H, W)
    y_test: torch.Tensor  # (n_test, K) one-hot

    @property
    def n(self) -> int:
        """Number of training examples."""
        return len(self.x)

    @property
    def shape(self) -> tuple[int, int, int]:
        """Shape of one example (C, H, W)."""
        channels, height, width = self.x.shape[1:]
        return channels, height, width


def load(
    name: str,
    train_size: int,
    *,
    device: torch.device | str = "cpu",
    dtype: torch.dtype = torch.float32,
    folder: Path | None = None,
) -> Dataset:
    """Load a data set.

    Args:
        name: One of ``catalogue.DATASETS``.
        train_size: Number of training examples to use: the first images of the set; of text, examples spread evenly over all
            of it. The digits that are left are the test images; of all 1,797 none is, and there is no test accuracy.
        device: Where the tensors go.
        dtype: Floating-point type of images and targets.
        folder: Where ``cifar10_5k.npz`` lies; default ``data/``.

    Raises:
        DataError: The name is unknown, the file is missing or corrupt, or ``train_size`` is below 1 or above what there is.
    """
    if name not in catalogue.DATASETS:
        raise DataError(f"unknown data set '{name}'; there are {', '.join(catalogue.DATASETS)}")
    if train_size < 1:
        raise DataError(f"{train_size} training examples were asked for: ask for at least 1")
    row = catalogue.DATASETS[name]
    images, labels, test_images, test_labels = row.load()(train_size, folder or DATA_FOLDER)
    if train_size > len(images):
        raise DataError(f"{name} has {len(images)} training examples, {train_size} were asked for")
    images, labels = images[:train_size].astype(np.float64), labels[:train_size]
    mean, std = 0.0, 1.0
    if row.axes:
        mean, std = images.mean(axis=row.axes, keepdims=True), images.std(axis=row.axes, keepdims=True)

    def tensor(array: np.ndarray) -> torch.Tensor:
        return torch.as_tensor((array - mean) / std).to(device=device, dtype=dtype)

    def one_hot(array: np.ndarray) -> torch.Tensor:
        hot = torch.nn.functional.one_hot(torch.as_tensor(array, dtype=torch.int64), row.classes)
        return hot.to(device=device, dtype=dtype)

    return Dataset(tensor(images), one_hot(labels), tensor(test_images.astype(np.float64)), one_hot(test_labels))


def digits(train_size: int, folder: Path) -> Arrays:
    """Read the digits; what is left of them is for testing."""
    # The table behind sklearn.datasets.load_digits, without the seconds that importing scikit-learn takes in every job.
    spec = importlib.util.find_spec("sklearn")
    if spec is None or not spec.submodule_search_locations:
        raise DataError("the digits come with scikit-learn, which is not installed")
    path = Path(spec.submodule_search_locations[0]) / "datasets" / "data" / "digits.csv.gz"
    try:
        table = np.loadtxt(path, delimiter=",")  # (1797, 8·8 + 1)
    except OSError as error:
        raise DataError(f"scikit-learn's digits cannot be read: {error}") from None
    images, labels = table[:, :-1].reshape(-1, 1, 8, 8), table[:, -1].astype(np.int64)
    return images[:train_size], labels[:train_size], images[train_size:], labels[train_size:]


def topics(train_size: int, folder: Path) -> Arrays:
    """Cut the examples out of the text."""
    from pydoc_data.topics import topics as texts

    text = " ".join(re.findall(r"[a-z]+", " ".join(texts[key] for key in sorted(texts)).lower()))
    codes = np.array([ALPHABET.index(symbol) for symbol in text])
    count = train_size + TEST_TOPICS
    if count * (CONTEXT + 1) > len(codes):
        raise DataError(f"topics has {len(codes) // (CONTEXT + 1) - TEST_TOPICS} training examples, {train_size} were asked for")
    starts = np.arange(count) * ((len(codes) - CONTEXT - 1) // (count - 1))
    windows = codes[starts[:, None] + np.arange(CONTEXT + 1)]
    test = np.zeros(count, dtype=bool)
    test[np.arange(TEST_TOPICS) * (count // TEST_TOPICS)] = True
    x, y = windows[:, None, None, :-1], windows[:, -1]
    return x[~test], y[~test], x[test], y[test]


def cifar10(train_size: int, folder: Path) -> Arrays:
    """Read CIFAR-10, all of what was cut out of it."""
    path = folder / CIFAR_FILE
    if not path.is_file():
        raise DataError(f"{path} is missing: fetch it with `python -m eosslib fetch cifar10`")
    try:
        # The file is opened here, because numpy leaves it open where it is no archive.
        with path.open("rb") as file, np.load(file) as archive:
            arrays = {key: archive[key] for key in archive.files}
    except (OSError, ValueError, EOFError, zipfile.BadZipFile, zlib.error, TypeError) as error:
        raise DataError(f"{path} is corrupt ({error}): delete it and fetch it again") from None
    if checksum(arrays) != CIFAR_SHA256:
        raise DataError(f"{path} is corrupt (its checksum differs): delete it and fetch it again")
    return arrays["train_images"], arrays["train_labels"], arrays["test_images"], arrays["test_labels"]


def checksum(arrays: Mapping[str, np.ndarray]) -> str:
    """Return the SHA-256 over names and contents of a set of arrays, whatever their order."""
    digest = hashlib.sha256()
    for key in sorted(arrays):
        digest.update(key.encode())
        digest.update(np.ascontiguousarray(arrays[key]).tobytes())
    return digest.hexdigest()


def fetch_cifar10(folder: Path | None = None) -> Path:
    """Make ``cifar10_5k.npz``: download CIFAR-10 by torchvision (checksum, progress bar) and cut it; nothing if it is there.

    Returns:
        The path of the file.

    Raises:
        DataError: The file that is there is corrupt, the download failed or is another one, or the folder cannot be written to.
    """
    folder = folder or DATA_FOLDER
    path = folder / CIFAR_FILE
    if path.is_file():
        cifar10(0, folder)
        log.info("%s is there and its checksum is right", path)
        return path
    from torchvision.datasets import CIFAR10

    try:
        folder.mkdir(parents=True, exist_ok=True)
        with tempfile.TemporaryDirectory(dir=folder, prefix=".cifar10-") as scratch:
            try:
                train = CIFAR10(scratch, train=True, download=True)
                test = CIFAR10(scratch, train=False)
            except (OSError, RuntimeError) as error:
                raise DataError(
                    f"CIFAR-10 could not be downloaded ({error}):"
                    f" get {CIFAR_FILE} on a machine with internet and put it into {folder}"
                ) from None
            arrays = cut_cifar10(train.data, np.asarray(train.targets), test.data, np.asarray(test.targets))
            if checksum(arrays) != CIFAR_SHA256:
                raise DataError("the downloaded CIFAR-10 differs from the one this project was checked with")
            temporary = Path(scratch) / CIFAR_FILE
            np.savez_compressed(temporary, **arrays)  # type: ignore[arg-type]
            os.replace(temporary, path)
    except OSError as error:
        raise DataError(f"cannot write {path}: {error.strerror or error}") from None
    return path


def cut_cifar10(data: np.ndarray, targets: np.ndarray, test_data: np.ndarray, test_targets: np.ndarray) -> dict[str, np.ndarray]:
    """Cut the 5,000 + 1,000 images out of the full CIFAR-10 arrays (N×32×32×3, as torchvision holds them)."""
    index = np.concatenate([10_000 * batch + np.arange(1_000) for batch in range(5)])
    return {
        "train_images": np.ascontiguousarray(data[index].transpose(0, 3, 1, 2)),
        "train_labels": targets[index].astype(np.uint8),
        "train_indices": index.astype(np.int32),
        "test_images": np.ascontiguousarray(test_data[:1_000].transpose(0, 3, 1, 2)),
        "test_labels": test_targets[:1_000].astype(np.uint8),
        "test_indices": np.arange(1_000, dtype=np.int32),
    }
