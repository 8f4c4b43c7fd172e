"""Matrix products of a stack, whichever library makes them."""

from __future__ import annotations

import math
from pathlib import Path

import pytest
import torch
from oracles import randn

from eosslib import products

SHAPES = {"a layer": (256, 300, 200), "a wide layer": (50, 3072, 200), "one output": (4096, 300, 1), "small": (15, 64, 64)}
THIN = {"small, one output": (50, 64, 1), "one input": (300, 1, 200), "one example": (1, 200, 10)}
LAYOUTS = ["plain", "left transposed", "right transposed", "both transposed", "rows of a larger one"]


def factors(shape: tuple[int, int, int], layout: str, stack: int = 1) -> tuple[torch.Tensor, torch.Tensor]:
    m, k, n = shape
    a, b = randn(stack, m, k).float(), randn(stack, k, n).float()
    if "left" in layout or "both" in layout:
        a = a.mT.contiguous().mT
    if "right" in layout or "both" in layout:
        b = b.mT.contiguous().mT
    if "rows" in layout:
        a = torch.cat([a, a, a], dim=1)[:, m : 2 * m]
    return a, b


@pytest.fixture(params=["as chosen", "onednn", "own"])
def library(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> str:
    """The library that this processor gets, and either of the two whatever it is."""
    if request.param == "onednn" and products.ONEDNN is None:
        pytest.skip("this PyTorch is without oneDNN")
    if request.param != "as chosen":
        monkeypatch.setattr(products, "_onednn", products.ONEDNN if request.param == "onednn" else None)
    return str(request.param)


@pytest.mark.usefixtures("library")
@pytest.mark.parametrize("layout", LAYOUTS)
@pytest.mark.parametrize("shape", SHAPES.values(), ids=SHAPES.keys())
def test_a_product_has_the_errors_of_float32_and_not_more(shape: tuple[int, int, int], layout: str) -> None:
    a, b = factors(shape, layout)
    exact = a.double() @ b.double()
    bound = shape[1] * torch.finfo(torch.float32).eps * (a.double().abs() @ b.double().abs())  # Higham, §3.5
    assert ((products.product(a, b).double() - exact).abs() <= bound).all()
    # Rounding accumulates like a random walk; TF32 and bfloat16 would be off by 3e-4 and 2e-3.
    assert (products.product(a, b).double() - exact).norm() < 3e-6 * exact.norm()


@pytest.mark.usefixtures("library")
@pytest.mark.parametrize("shape", SHAPES.values(), ids=SHAPES.keys())
def test_what_is_added_is_added_and_left_as_it_was(shape: tuple[int, int, int]) -> None:
    a, b = factors(shape, "plain", stack=2)
    for plus in (randn(2, 1, shape[2]).float(), randn(2, shape[0], shape[2]).float()):
        before = plus.clone()
        torch.testing.assert_close(products.product(a, b, plus=plus), a @ b + plus, rtol=1e-5, atol=1e-3)
        assert torch.equal(plus, before)


@pytest.mark.usefixtures("library")
@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
@pytest.mark.parametrize("shape", [*SHAPES.values(), *THIN.values()], ids=[*SHAPES, *THIN])
def test_a_networks_product_does_not_depend_on_the_stack(shape: tuple[int, int, int], dtype: torch.dtype) -> None:
    a, b = (factor.to(dtype) for factor in factors(shape, "plain", stack=3))
    plus = randn(3, 1, shape[2]).to(dtype)
    for added in (None, plus):
        together = products.product(a, b, plus=added)
        for r in range(3):
            one = slice(r, r + 1)
            alone = products.product(a[one].clone(), b[one].clone(), plus=None if added is None else plus[one])
            assert torch.equal(alone, together[one])


def test_large_products_in_float32_go_to_onednn_and_no_others(monkeypatch: pytest.MonkeyPatch) -> None:
    a, b = factors(SHAPES["a layer"], "plain")
    monkeypatch.setattr(products, "_onednn", object())
    assert products.uses_onednn(a, b)
    assert not products.uses_onednn(*factors(SHAPES["small"], "plain"))
    assert not products.uses_onednn(a.double(), b.double())
    assert not products.uses_onednn(a.requires_grad_(), b)
    with torch.no_grad():
        assert products.uses_onednn(a, b)


def test_a_product_that_is_differentiated_automatically_has_its_gradient() -> None:
    a, b = factors(SHAPES["a layer"], "plain")
    a.requires_grad_()
    (grad,) = torch.autograd.grad(products.product(a, b).sum(), a)
    torch.testing.assert_close(grad, b.sum(2).unsqueeze(1).expand_as(a))


def test_without_onednn_the_products_are_pytorchs_own(monkeypatch: pytest.MonkeyPatch) -> None:
    a, b = factors(SHAPES["a layer"], "plain")
    monkeypatch.setattr(products, "_onednn", None)
    assert torch.equal(products.product(a, b), a @ b)


def test_intels_processors_are_told_from_others(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    cpuinfo = tmp_path / "cpuinfo"
    for vendor, intel in (("GenuineIntel", True), ("AuthenticAMD", False)):
        cpuinfo.write_text(f"processor\t: 0\nvendor_id\t: {vendor}\n", encoding="utf-8")
        assert products.made_by_intel(cpuinfo) == intel
        monkeypatch.setattr("platform.processor", lambda vendor=vendor: f"Intel64 Family 6 Model 85 Stepping 7, {vendor}")
        assert products.made_by_intel(tmp_path / "none") == intel  # Windows, which has no such file


@pytest.mark.usefixtures("library")
@pytest.mark.parametrize("shape", [(50, 16, 16, 32), (3, 5, 7, 1)])
def test_tanh_is_right_to_two_roundings(shape: tuple[int, ...]) -> None:
    size = math.prod(shape)
    x = torch.cat([randn(size // 2), torch.logspace(-8, 1.5, size - size // 2, dtype=torch.float64)]).float().view(shape)
    exact = x.double().tanh()
    assert ((products.tanh(x).double() - exact).abs() <= 2 * 2.0**-24 * exact.abs()).all()
    assert products.tanh(x).shape == x.shape


@pytest.mark.usefixtures("library")
def test_tanh_of_a_number_is_the_same_whichever_numbers_lie_around_it() -> None:
    x = randn(40, 16, 16, 3).float()
    whole = products.tanh(x)
    for part in (slice(0, 1), slice(1, 8), slice(7, 40)):
        assert torch.equal(products.tanh(x[part]), whole[part])
        assert torch.equal(products.tanh(x[part].clone()), whole[part])


@pytest.mark.usefixtures("library")
def test_tanh_keeps_the_layout_of_feature_maps_and_what_is_no_number() -> None:
    maps = randn(4, 8, 6, 6).float().contiguous(memory_format=torch.channels_last).permute(0, 2, 3, 1)
    assert products.tanh(maps).is_contiguous()
    ends = torch.tensor([math.inf, -math.inf, 0.0, -0.0, math.nan])
    assert torch.equal(products.tanh(ends)[:4], torch.tensor([1.0, -1.0, 0.0, -0.0]))
    assert products.tanh(ends)[4].isnan()


@pytest.mark.usefixtures("library")
def test_tanh_can_be_differentiated() -> None:
    x = randn(2, 3, 3, 2).float().requires_grad_()
    (slope,) = torch.autograd.grad(products.tanh(x).sum(), x)
    torch.testing.assert_close(slope, 1 - x.detach().tanh().square(), rtol=1e-6, atol=1e-6)
