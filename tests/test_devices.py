"""Devices: the right one or a refusal, and float32 products that are what they say, for as long as they say."""

from __future__ import annotations

import ctypes
from pathlib import Path

import pytest
import torch
from oracles import WRITTEN_OUT, problem

from eosslib import devices
from eosslib.curvature import CPU_CHUNK, chunks
from eosslib.devices import choose_device, drawn_memory, float32_products, kept_memory
from eosslib.errors import DeviceError


def test_the_device_is_the_one_asked_for_or_a_gpu_if_there_is_one() -> None:
    assert choose_device("cpu") == torch.device("cpu")
    assert choose_device("auto").type == ("cuda" if torch.cuda.is_available() else "cpu")


@pytest.mark.parametrize("name", ["cuda:7", "gpu", "cuda:x", "meta", "mps", ""])
def test_a_device_this_machine_does_not_have_is_refused_by_name(name: str) -> None:
    with pytest.raises(DeviceError, match=name or "''"):
        choose_device(name)


def precisions() -> list[object]:
    backends = (torch.backends.cuda.matmul, torch.backends.cudnn.conv, torch.backends.cudnn.rnn)
    return [*(backend.fp32_precision for backend in backends), torch.backends.cudnn.deterministic]


@pytest.fixture
def as_with_a_gpu(monkeypatch: pytest.MonkeyPatch) -> None:
    """The settings are there without one too, and nothing reads them."""
    monkeypatch.setattr(torch.cuda, "is_available", lambda: True)


@pytest.mark.usefixtures("as_with_a_gpu")
@pytest.mark.parametrize("conv", ["tf32", "ieee", "none"])
@pytest.mark.parametrize("matmul", ["tf32", "ieee", "none"])
def test_products_are_float32_within_and_as_before_after(matmul: str, conv: str) -> None:
    first = precisions()
    with float32_products():
        torch.backends.cuda.matmul.fp32_precision, torch.backends.cudnn.conv.fp32_precision = matmul, conv
        before = precisions()
        with float32_products():
            assert precisions() == ["ieee", "ieee", "ieee", True]
            with float32_products(tf32=True):
                assert precisions() == ["tf32", "tf32", "tf32", True]
            assert precisions() == ["ieee", "ieee", "ieee", True]
        assert precisions() == before
        with pytest.raises(RuntimeError, match="in the middle"), float32_products():
            raise RuntimeError("in the middle")
        assert precisions() == before
    assert precisions() == first
    assert (torch.backends.cuda.matmul.allow_tf32, torch.backends.cudnn.allow_tf32) == (False, True), "the older names can be read"


@pytest.mark.usefixtures("as_with_a_gpu")
def test_a_module_that_switches_cudnn_off_for_a_while_can_be_measured() -> None:
    first = precisions()
    with float32_products():
        with torch.backends.cudnn.flags(enabled=False):
            assert not torch.backends.cudnn.enabled
        assert not torch.backends.cudnn.allow_tf32
        assert "tf32" not in precisions()
    assert precisions() == first


def test_without_a_gpu_nothing_is_set() -> None:
    if torch.cuda.is_available():
        pytest.skip("there is one")
    first = precisions()
    with float32_products():
        assert precisions() == first


def test_a_cpu_has_its_fixed_budgets() -> None:
    assert (kept_memory(torch.device("cpu")), drawn_memory(torch.device("cpu"))) == (4 << 30, 256 << 20)


def test_a_budget_that_is_asked_for_is_given() -> None:
    assert (kept_memory(torch.device("cpu"), 0), drawn_memory(torch.device("cpu"), 7)) == (0, 7)


@pytest.mark.parametrize("model", WRITTEN_OUT)
def test_on_a_cpu_a_run_is_summed_in_the_same_chunks_whatever_its_stack(model: str, monkeypatch: pytest.MonkeyPatch) -> None:
    one, three = problem(model), problem(model, stack=3)
    each = one.objective.network.output_bytes(one.objective.network.views(one.theta), one.x)
    assert each < CPU_CHUNK
    monkeypatch.setattr("eosslib.curvature.CPU_CHUNK", 5 * each)
    alone, stacked = (chunks(p.objective, p.objective.network.views(p.theta), p.x) for p in (one, three))
    assert alone == stacked == [slice(0, 4), slice(4, 8), slice(8, 12)]


@pytest.mark.gpu
def test_a_gpu_gives_parts_of_its_memory(cuda: torch.device) -> None:
    whole = torch.cuda.mem_get_info(cuda)[1]
    assert 0.3 * whole < kept_memory(cuda) < 0.35 * whole
    assert 0.1 * whole < drawn_memory(cuda) < 0.15 * whole


@pytest.mark.gpu
def test_a_gpu_does_not_round_to_tf32(cuda: torch.device) -> None:
    a, b = (torch.randn(256, 256, generator=torch.Generator().manual_seed(seed), dtype=torch.float64) for seed in (0, 1))
    images, filters = a.reshape(64, 16, 8, 8), b[:16, :144].reshape(16, 16, 3, 3)

    def error() -> tuple[float, float]:
        x, y, i, f = (t.to(cuda, torch.float32) for t in (a, b, images, filters))
        found, expected = (x @ y, torch.conv2d(i, f)), (a @ b, torch.conv2d(images, filters))
        matrices, convolutions = (float((p.cpu() - q).norm() / q.norm()) for p, q in zip(found, expected, strict=True))
        return matrices, convolutions

    with float32_products():
        assert max(error()) < 1e-6
    with float32_products(tf32=True):
        assert min(error()) > 1e-5


def test_the_processor_is_named_as_the_machine_names_it(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    cpuinfo = tmp_path / "cpuinfo"
    cpuinfo.write_text("processor: 0\nmodel\t: 1\nmodel name\t: A: 9B14\nprocessor: 1\nmodel name: B\n", encoding="utf-8")
    assert devices.processor(cpuinfo) == "A: 9B14"
    monkeypatch.setattr("platform.processor", lambda: "arm")
    assert devices.processor(tmp_path / "none") == "arm"  # macOS, which has no such file
    cpuinfo.write_text("processor\t: 0\nBogoMIPS\t: 50.00\n", encoding="utf-8")  # Linux on ARM has no name there
    monkeypatch.setattr("platform.processor", lambda: "")
    monkeypatch.setattr("platform.machine", lambda: "aarch64")
    assert devices.processor(cpuinfo) == "aarch64"


def test_freed_memory_is_kept_only_where_gnus_c_library_is_asked(monkeypatch: pytest.MonkeyPatch) -> None:
    asked: list[tuple[int, int]] = []

    class Library:
        def mallopt(self, option: int, size: int) -> int:
            asked.append((option, size))
            return 1

    monkeypatch.setattr(ctypes, "CDLL", lambda name: Library())
    devices.keep_freed_memory()
    assert asked == [(-3, 32 << 20), (-1, 256 << 20)]
    monkeypatch.setattr(ctypes, "CDLL", lambda name: object())  # another C library
    devices.keep_freed_memory()
    assert len(asked) == 2
