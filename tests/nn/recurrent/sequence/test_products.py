"""Products by either library."""

import pytest
import torch

from bitwright.nn.recurrent.sequence.products import Product, product, weight_grad


@pytest.mark.parametrize(("rows", "dtype"), [(2, torch.float32), (512, torch.float32), (512, torch.float64)])
def test_products(rows: int, dtype: torch.dtype) -> None:
    x = torch.randint(-8, 8, (rows, 48)).to(dtype)  # whole numbers: exact in any order
    weight = torch.randint(-8, 8, (64, 48)).to(dtype)
    bias = torch.randint(-8, 8, (64,)).to(dtype)
    expected = (x.double() @ weight.double().t()).to(dtype)
    assert torch.equal(product(x, weight), expected)
    assert torch.equal(product(x, weight, bias), expected + bias)
    assert torch.equal(product(x.t().contiguous().t(), weight.t().contiguous().t()), expected)
    assert torch.equal(weight_grad(expected, x), (expected.double().t() @ x.double()).to(dtype))
    one = Product(weight, rows)
    total, out = torch.ones(rows, 64, dtype=dtype), torch.empty(rows, 64, dtype=dtype)
    one.sum(total, x, out)
    one.add_to(total, x)
    assert torch.equal(one.of(x), expected)
    assert torch.equal(total, expected + 1)
    assert torch.equal(out, total)


def test_weights_with_gaps_between_their_rows() -> None:
    x, table = torch.randint(-8, 8, (512, 48)).float(), torch.randint(-8, 8, (64, 96)).float()
    weight, expected = table[:, ::2], x @ table[:, ::2].contiguous().t()
    assert torch.equal(product(x, weight), expected)
    assert torch.equal(Product(weight, 512).of(x), expected)
    assert torch.equal(weight_grad(torch.cat([expected, expected], 1)[:, 64:], x), expected.t() @ x)


def test_the_other_library_can_be_switched_off() -> None:
    x, weight = torch.ones(512, 64), torch.ones(64, 64)
    assert Product(weight, 512)._packed is not None or not torch.backends.mkldnn.is_available()
    before = torch._C._get_mkldnn_enabled()
    torch._C._set_mkldnn_enabled(False)
    try:
        assert Product(weight, 512)._packed is None
        assert torch.equal(product(x, weight), torch.full((512, 64), 64.0))
    finally:
        torch._C._set_mkldnn_enabled(before)
