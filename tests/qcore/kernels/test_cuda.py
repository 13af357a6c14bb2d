"""The fast forms on GPUs: their numbers are those of the CPU."""

import copy
import warnings

import pytest
import torch
from torch import Tensor

from bitwright.qcore import resolve
from bitwright.qcore.kernels.dispatch import fake_quant
from bitwright.quantizers import Int4WeightPerChannel, Int8Act, Int8WeightPerChannel, Uint8Act

pytestmark = pytest.mark.skipif(not torch.cuda.is_available(), reason="there is no GPU here that torch can use")

TYPES = [torch.float32, torch.bfloat16, torch.float16]
GRIDS = {  # shape, shape of the scales, zero point, lowest, highest, relu
    "per tensor": ((3, 5001), (), None, -128, 127, False),
    "unsigned after a ReLU": ((7, 64, 9, 9), (), None, 0, 255, True),
    "a zero point": ((4099,), (), 117, 0, 255, False),
    "of weights": ((37, 5, 3, 3), (37, 1, 1, 1), None, -7, 7, False),
    "of weights, with zero points": ((6, 4096), (6, 1), 3, -8, 7, False),
    "of channels": ((3, 5, 40, 7), (5, 1, 1), None, -128, 127, False),
    "of features": ((50, 16), (16,), 2, -128, 127, False),
}


def alike(found: Tensor, expected: Tensor, precise: bool = False, digits: float = 1e-5) -> None:
    """Equal where that is promised; else as close as sums of another order are, in the type that holds them."""
    found, tolerance = found.detach().cpu(), max(torch.finfo(expected.dtype).eps, digits)
    assert (found.dtype, found.shape) == (expected.dtype, expected.shape)
    if precise:
        assert torch.equal(found, expected.detach())
    else:
        torch.testing.assert_close(
            found, expected.detach(), rtol=tolerance, atol=tolerance * float(expected.abs().max())
        )


@pytest.mark.parametrize("clips", [True, False])
@pytest.mark.parametrize("dtype", TYPES)
@pytest.mark.parametrize("grid", GRIDS)
def test_levels_and_gradients(grid: str, dtype: torch.dtype, clips: bool) -> None:
    shape, scales, zero, low, high, relu = GRIDS[grid]
    generator = torch.Generator().manual_seed(0)
    x = (torch.randn(shape, generator=generator) * 4).to(dtype)
    x.view(-1)[:3] = torch.tensor([0.5, -1.5, 2.5]) * 0.03125  # ties, where the scale is a power of two
    scale = 0.03125 * torch.randint(1, 4, scales, generator=generator)
    zero_point = None if zero is None else torch.full(scales, float(zero))
    grad = torch.randn(shape, generator=generator).to(dtype)
    results = []
    for device in ("cpu", "cuda"):
        inputs = [None if each is None else each.to(device).requires_grad_() for each in (x, scale, zero_point)]
        values, step, shift = inputs
        assert values is not None
        assert step is not None
        y = fake_quant(values, step, low, high, shift, relu=relu, clips=clips)
        y.backward(grad.to(device))
        results.append([y, *(each.grad for each in inputs if each is not None)])
        for each in inputs:
            if each is not None:
                each.requires_grad_(False)
                each.grad = None
    (expected, passed, *sums), (found, passed_there, *sums_there) = results
    alike(found, expected, precise=True)
    alike(passed_there, passed, precise=True)
    for one, other in zip(sums_there, sums, strict=True):
        alike(one, other)


@pytest.mark.parametrize("dtype", TYPES)
@pytest.mark.parametrize(
    ("declared", "shape"),
    [
        (Int8WeightPerChannel, (37, 5, 3, 3)),
        (Int8WeightPerChannel, (8, 5000)),
        (Int4WeightPerChannel(scaling="learned"), (6, 200)),
        (Int8Act(scaling="learned"), (4, 3000)),
        (Uint8Act(scaling="learned", scale_gradient="lsq"), (4, 16, 8, 8)),
    ],
    ids=str,
)
def test_quantizers(declared: type, shape: tuple[int, ...], dtype: torch.dtype) -> None:
    generator = torch.Generator().manual_seed(1)
    x = torch.randn(shape, generator=generator).to(dtype)
    x[1] = 0  # a dead channel
    x.view(-1)[:2] = torch.tensor([6.0, -6.0])  # the first of the largest gets the gradient
    grad = torch.randn(shape, generator=generator).to(dtype)
    quant = resolve(declared, {"channel_axis": 0, "shape": shape, "channels": shape[0]}).train()
    quant(x)  # what is learned starts from it
    results = []
    for device in ("cpu", "cuda"):
        there, own = copy.deepcopy(quant).to(device).train(), x.to(device).clone().requires_grad_()
        y, grid = there.quantize(own * 1)
        y.backward(grad.to(device))
        learned = [each.grad for each in there.parameters()]
        results.append([y, grid.scale, own.grad, *learned])
    (y, scale, passed, *learned), (found, scale_there, passed_there, *learned_there) = results
    alike(found, y, precise=True)
    alike(scale_there, scale, precise=True)
    alike(passed_there, passed)
    for one, other in zip(learned_there, learned, strict=True):
        alike(one, other, digits=1e-4)  # the CPU takes the difference of two sums


def test_nothing_waits_for_the_device() -> None:
    act = resolve(Int8Act(scaling="learned"), {}).cuda().train()
    weight_quant = resolve(Int8WeightPerChannel, {"channel_axis": 0}).cuda()
    x = torch.randn(64, 32, device="cuda", dtype=torch.bfloat16, requires_grad=True)
    weight = torch.randn(16, 32, device="cuda", dtype=torch.bfloat16, requires_grad=True)
    act(x), weight_quant(weight)  # measures; compiles the kernels
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # torch says that its check does not see everything
        torch.cuda.set_sync_debug_mode("error")
    try:
        (act(x) @ weight_quant(weight).t()).sum().backward()
    finally:
        torch.cuda.set_sync_debug_mode("default")
    assert x.grad is not None
    assert bool(x.grad.isfinite().all())


def test_layouts_and_what_is_not_finite() -> None:
    x = torch.randn(2, 8, 5, 6)
    x[0, 0, 0, :3] = torch.tensor([float("nan"), float("inf"), -float("inf")])
    scale = torch.tensor(0.05)
    expected = fake_quant(x, scale, -8, 7)
    for laid_out in (
        x.cuda().contiguous(memory_format=torch.channels_last),
        x.cuda().transpose(1, 3).contiguous().transpose(1, 3),
        torch.cat([torch.zeros(1), x.reshape(-1)]).cuda()[1:].view(x.shape),  # not aligned
    ):
        found = fake_quant(laid_out, scale.cuda(), -8, 7)
        torch.testing.assert_close(found.cpu(), expected, rtol=0, atol=0, equal_nan=True)


def test_gradients_of_gradients() -> None:
    results = []
    for device in ("cpu", "cuda"):
        x = torch.linspace(-2, 2, 96).reshape(4, 24).to(device).requires_grad_()
        scale = torch.full((4, 1), 0.3, device=device, requires_grad=True)
        y = fake_quant(x, scale, -4, 3)
        (grad,) = torch.autograd.grad((y * y).sum(), scale, create_graph=True)
        results.append(torch.autograd.grad(grad.sum(), x)[0])
    alike(results[1], results[0])
