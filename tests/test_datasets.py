"""Data sets: the right images, standardised, and one line where they are missing or damaged."""

from __future__ import annotations

import errno
import string
import urllib.error
from collections import Counter
from collections.abc import Iterator
from pathlib import Path
from pydoc_data.topics import topics
from typing import Any

import numpy as np
import pytest
import torch

from eosslib import datasets
from eosslib.datasets import CIFAR_FILE, DATA_FOLDER
from eosslib.errors import DataError

# --- digits ------------------------------------------------------------------------------------------------------------------


def test_digits_are_the_first_images_of_scikit_learn_standardised_by_one_mean_and_deviation() -> None:
    from sklearn.datasets import load_digits

    data, raw = datasets.load("digits", 1500, dtype=torch.float64), load_digits()
    assert (data.x.shape, data.y.shape) == ((1500, 1, 8, 8), (1500, 10))
    assert (data.x_test.shape, data.y_test.shape) == ((297, 1, 8, 8), (297, 10))
    assert (data.n, data.shape) == (1500, (1, 8, 8))
    assert float(data.x.mean()) == pytest.approx(0, abs=1e-12)
    assert float(data.x.std(correction=0)) == pytest.approx(1, rel=1e-12)
    mean, std = raw.images[:1500].mean(), raw.images[:1500].std()
    torch.testing.assert_close(data.x_test[:, 0], torch.from_numpy((raw.images[1500:] - mean) / std), rtol=1e-12, atol=1e-12)
    assert data.y.argmax(1).tolist() == raw.target[:1500].tolist()
    assert data.y_test.argmax(1).tolist() == raw.target[1500:].tolist()


def test_targets_are_one_hot() -> None:
    data = datasets.load("digits", 100)
    for y in (data.y, data.y_test):
        assert torch.equal(y.sum(1), torch.ones(len(y)))
        assert set(y.unique().tolist()) == {0.0, 1.0}


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
def test_images_and_targets_have_the_precision_asked_for(dtype: torch.dtype) -> None:
    data = datasets.load("digits", 50, dtype=dtype)
    assert {t.dtype for t in (data.x, data.y, data.x_test, data.y_test)} == {dtype}


def test_more_examples_than_there_are_are_refused() -> None:
    with pytest.raises(DataError, match="digits has 1797 training examples, 1798 were asked for"):
        datasets.load("digits", 1798)


@pytest.mark.parametrize("name", ["digits", "topics"])
@pytest.mark.parametrize("train_size", [0, -5])
def test_no_examples_at_all_are_refused(name: str, train_size: int) -> None:
    with pytest.raises(DataError, match=f"{train_size} training examples were asked for: ask for at least 1"):
        datasets.load(name, train_size)


def test_an_unknown_data_set_is_refused_by_name() -> None:
    with pytest.raises(DataError, match="unknown data set 'mnist'; there are digits, cifar10, topics"):
        datasets.load("mnist", 10)


# --- text ----------------------------------------------------------------------------------------------------------------------


def written(data: datasets.Dataset) -> tuple[list[str], list[str]]:
    """Training and test examples of text, each with the character that follows."""
    found = []
    for x, y in ((data.x, data.y), (data.x_test, data.y_test)):
        codes = torch.cat([x.flatten(1).long(), y.argmax(1, keepdim=True)], dim=1)
        found.append(["".join(datasets.ALPHABET[code] for code in row) for row in codes.tolist()])
    return found[0], found[1]


def manual() -> str:
    text = " ".join(topics[key] for key in sorted(topics)).lower()
    return " ".join("".join(symbol if symbol in string.ascii_lowercase else " " for symbol in text).split())


def even_cuts(words: str, count: int) -> Iterator[Counter[str]]:
    """All ways to take so many examples from places evenly apart that do not overlap."""
    for apart in range(17, (len(words) - 17) // (count - 1) + 1):
        yield Counter(words[k * apart : k * apart + 17] for k in range(count))


def test_an_example_of_text_is_sixteen_characters_and_the_one_that_follows() -> None:
    data = datasets.load("topics", 300)
    assert (data.shape, data.y.shape, data.x_test.shape) == ((1, 1, 16), (300, 27), (500, 1, 1, 16))
    words, (train, test) = manual(), written(data)
    assert all(example in words for example in train + test)
    assert any(cut == Counter(train + test) for cut in even_cuts(words, 800)), "no test example is a training example"
    repeated = {*train} & {*test}  # how often a text says the same again differs between versions of Python
    assert all(words.count(example) > 1 for example in repeated), "nor is it spelled like one, but where the text repeats itself"
    assert float(data.y.sum(1).min()) == float(data.y.max()) == 1.0


def test_text_is_cut_into_at_most_as_many_examples_as_do_not_overlap() -> None:
    n = 20_000
    data = datasets.load("topics", n)
    words, (train, test) = manual(), written(data)
    found, count = Counter(train + test), n + datasets.TEST_TOPICS
    assert found.total() == count
    assert any(cut == found for cut in even_cuts(words, count)), "in order, each example 17 characters or more after the one before"
    with pytest.raises(DataError, match=r"topics has \d+ training examples, 100000 were asked for"):
        datasets.load("topics", 100_000)


# --- CIFAR-10 ----------------------------------------------------------------------------------------------------------------


def small_cifar() -> dict[str, np.ndarray]:
    stream = np.random.default_rng(0)
    arrays: dict[str, np.ndarray] = {}
    for kind, n in (("train", 30), ("test", 10)):
        arrays[f"{kind}_images"] = stream.integers(0, 256, (n, 3, 32, 32), dtype=np.uint8)
        arrays[f"{kind}_labels"] = stream.integers(0, 10, n, dtype=np.uint8)
        arrays[f"{kind}_indices"] = np.arange(n, dtype=np.int32)
    return arrays


@pytest.fixture
def cifar(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A folder with a small file that passes for the real one."""
    arrays = small_cifar()
    np.savez_compressed(tmp_path / CIFAR_FILE, **arrays)
    monkeypatch.setattr(datasets, "CIFAR_SHA256", datasets.checksum(arrays))
    return tmp_path


def test_each_channel_of_cifar10_is_standardised_over_the_images_used(cifar: Path) -> None:
    data, raw = datasets.load("cifar10", 20, dtype=torch.float64, folder=cifar), small_cifar()
    assert (data.x.shape, data.x_test.shape) == ((20, 3, 32, 32), (10, 3, 32, 32))
    torch.testing.assert_close(data.x.mean((0, 2, 3)), torch.zeros(3, dtype=torch.float64), rtol=0, atol=1e-12)
    torch.testing.assert_close(data.x.std((0, 2, 3), correction=0), torch.ones(3, dtype=torch.float64), rtol=1e-12, atol=0)
    for channel in range(3):
        used = raw["train_images"][:20, channel]
        expected = (raw["test_images"][:, channel] - used.mean()) / used.std()
        torch.testing.assert_close(data.x_test[:, channel], torch.from_numpy(expected), rtol=1e-12, atol=1e-12)
    assert data.y.argmax(1).tolist() == raw["train_labels"][:20].tolist()


def test_more_images_than_the_file_has_are_refused(cifar: Path) -> None:
    with pytest.raises(DataError, match="cifar10 has 30 training examples, 31 were asked for"):
        datasets.load("cifar10", 31, folder=cifar)


def damage(path: Path, how: str) -> None:
    whole = path.read_bytes()
    if how == "truncated":
        path.write_bytes(whole[: len(whole) // 2])
    elif how == "empty":
        path.write_bytes(b"")
    elif how == "not a zip":
        path.write_bytes(b"<html>404 not found</html>")
    elif how == "a flipped byte":
        path.write_bytes(whole[:500] + bytes([whole[500] ^ 1]) + whole[501:])
    elif how == "a single array":
        with path.open("wb") as file:
            np.save(file, np.zeros(3))
    elif how == "another image":
        arrays = small_cifar()
        arrays["train_images"][3, 0, 0, 0] ^= 1
        np.savez_compressed(path, **arrays)
    elif how == "an array missing":
        np.savez_compressed(path, **{k: v for k, v in small_cifar().items() if k != "test_labels"})


DAMAGES = ["truncated", "empty", "not a zip", "a flipped byte", "a single array", "another image", "an array missing"]


@pytest.mark.parametrize("how", DAMAGES)
def test_a_damaged_file_is_recognised_and_named_in_one_line(how: str, cifar: Path) -> None:
    damage(cifar / CIFAR_FILE, how)
    for use in (lambda: datasets.load("cifar10", 20, folder=cifar), lambda: datasets.fetch_cifar10(cifar)):
        with pytest.raises(DataError) as caught:
            use()
        assert str(cifar / CIFAR_FILE) in str(caught.value)
        assert "is corrupt" in str(caught.value)
        assert "\n" not in str(caught.value)


def test_a_missing_file_is_named_with_the_command_that_fetches_it(tmp_path: Path) -> None:
    with pytest.raises(DataError, match=r"cifar10_5k\.npz is missing: fetch it with `python -m eosslib fetch cifar10`"):
        datasets.load("cifar10", 20, folder=tmp_path)


def test_checksum_depends_on_names_and_contents_only() -> None:
    arrays = small_cifar()
    reference = datasets.checksum(arrays)
    assert datasets.checksum(dict(reversed(arrays.items()))) == reference
    assert datasets.checksum({**arrays, "test_labels": arrays["test_labels"][::-1]}) != reference
    renamed = {("other" if key == "test_labels" else key): value for key, value in arrays.items()}
    assert datasets.checksum(renamed) != reference


def numbered(count: int) -> np.ndarray:
    """``count`` images of one pixel whose channels are its number, and 1 and 2 more."""
    return (np.arange(count, dtype=np.int32)[:, None, None, None] + np.arange(3)).astype(np.int32)


def test_the_images_are_the_first_thousand_of_each_training_batch_and_of_the_test_set() -> None:
    labels = np.arange(50_000) % 10
    cut = datasets.cut_cifar10(numbered(50_000), labels, numbered(10_000), labels[::-1])
    index = [10_000 * batch + i for batch in range(5) for i in range(1_000)]
    assert cut["train_images"].shape == (5_000, 3, 1, 1)
    assert cut["train_indices"].tolist() == index
    assert cut["train_images"][:, 0, 0, 0].tolist() == index
    assert (cut["train_images"][:, :, 0, 0] - cut["train_images"][:, :1, 0, 0] == [0, 1, 2]).all()
    assert cut["train_labels"].tolist() == labels[index].tolist()
    assert cut["test_images"][:, 0, 0, 0].tolist() == cut["test_indices"].tolist() == list(range(1_000))
    assert cut["test_labels"].tolist() == labels[::-1][:1_000].tolist()


@pytest.mark.skipif(not (DATA_FOLDER / CIFAR_FILE).is_file(), reason="needs data/cifar10_5k.npz")
def test_the_real_file_passes_its_checksum() -> None:
    data = datasets.load("cifar10", 5_000)
    assert (data.x.shape, data.x_test.shape) == ((5_000, 3, 32, 32), (1_000, 3, 32, 32))


# --- fetching ----------------------------------------------------------------------------------------------------------------


class Cifar10:
    """Stands in for torchvision's: a small full set, in its layout."""

    calls = 0

    def __init__(self, root: str | Path, train: bool, download: bool = False) -> None:
        assert Path(root).is_dir()
        type(self).calls += 1
        self.data, self.targets = (numbered(50_000), [3] * 50_000) if train else (numbered(10_000), [4] * 10_000)


def cut_of_numbers() -> dict[str, np.ndarray]:
    return datasets.cut_cifar10(numbered(50_000), np.full(50_000, 3), numbered(10_000), np.full(10_000, 4))


@pytest.fixture
def torchvision_set(monkeypatch: pytest.MonkeyPatch) -> type[Cifar10]:
    import torchvision.datasets

    monkeypatch.setattr(torchvision.datasets, "CIFAR10", Cifar10)
    monkeypatch.setattr(Cifar10, "calls", 0)
    return Cifar10


def test_fetching_does_nothing_where_the_file_is(cifar: Path, torchvision_set: type[Cifar10]) -> None:
    before = (cifar / CIFAR_FILE).stat()
    assert datasets.fetch_cifar10(cifar) == cifar / CIFAR_FILE
    assert torchvision_set.calls == 0
    assert (cifar / CIFAR_FILE).stat().st_mtime_ns == before.st_mtime_ns


def test_fetching_cuts_the_download_and_leaves_nothing_else(
    tmp_path: Path, torchvision_set: type[Cifar10], monkeypatch: pytest.MonkeyPatch
) -> None:
    cut = cut_of_numbers()
    monkeypatch.setattr(datasets, "CIFAR_SHA256", datasets.checksum(cut))
    path = datasets.fetch_cifar10(tmp_path / "new")
    assert list((tmp_path / "new").iterdir()) == [path]
    with np.load(path) as archive:
        assert {key: archive[key].tolist() for key in archive.files} == {key: value.tolist() for key, value in cut.items()}


def test_a_download_of_other_images_is_refused_and_not_kept(tmp_path: Path, torchvision_set: type[Cifar10]) -> None:
    with pytest.raises(DataError, match="differs from the one this project was checked with"):
        datasets.fetch_cifar10(tmp_path)
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize(
    "error",
    [urllib.error.URLError("no route to host"), RuntimeError("File not found or corrupted."), ConnectionResetError("reset")],
)
def test_a_failed_download_is_told_in_one_line(error: Exception, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    import torchvision.datasets

    def fail(*args: Any, **options: Any) -> None:
        raise error

    monkeypatch.setattr(torchvision.datasets, "CIFAR10", fail)
    with pytest.raises(DataError, match="CIFAR-10 could not be downloaded") as caught:
        datasets.fetch_cifar10(tmp_path)
    assert "\n" not in str(caught.value)
    assert CIFAR_FILE in str(caught.value)
    assert list(tmp_path.iterdir()) == []


def test_a_folder_that_cannot_be_made_is_told_in_one_line(tmp_path: Path, torchvision_set: type[Cifar10]) -> None:
    (tmp_path / "file").touch()
    with pytest.raises(DataError, match="file/data"):
        datasets.fetch_cifar10(tmp_path / "file" / "data")


@pytest.mark.parametrize(("where", "what"), [("tempfile", "mkdtemp"), ("np", "savez_compressed"), ("os", "replace")])
def test_a_folder_that_cannot_be_written_to_is_told_in_one_line(
    where: str, what: str, tmp_path: Path, torchvision_set: type[Cifar10], monkeypatch: pytest.MonkeyPatch
) -> None:
    def refuse(*args: Any, **options: Any) -> None:
        raise OSError(errno.EROFS, "Read-only file system")

    monkeypatch.setattr(datasets, "CIFAR_SHA256", datasets.checksum(cut_of_numbers()))
    monkeypatch.setattr(getattr(datasets, where), what, refuse)
    with pytest.raises(DataError) as caught:
        datasets.fetch_cifar10(tmp_path)
    assert str(caught.value) == f"cannot write {tmp_path / CIFAR_FILE}: Read-only file system"
    assert list(tmp_path.iterdir()) == []
