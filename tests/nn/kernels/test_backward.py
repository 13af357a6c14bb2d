"""Gradients that are quantized on their way back."""

import copy
import re
from typing import Any

import pytest
import torch
from torch import Tensor, nn

import bitwright.nn as qnn
from bitwright import describe
from bitwright.qcore import QuantizerError
from bitwright.quantizers import Fp8e5m2Grad, Int8Act, Int8Grad

LAYERS: list[tuple[Any, tuple[Any, ...], tuple[int, ...]]] = [
    (qnn.QuantLinear, (4, 3), (5, 4)),
    (qnn.QuantConv2d, (2, 3, 3), (2, 2, 5, 5)),
    (qnn.QuantConvTranspose2d, (2, 3, 3), (2, 2, 5, 5)),
    (qnn.QuantBatchNorm2d, (2,), (3, 2, 4, 4)),
    (qnn.QuantLayerNorm, (4,), (3, 4)),
    (qnn.QuantRMSNorm, (4,), (3, 4)),
    (qnn.QuantScaleBias, (4,), (3, 4)),
]


class Steps(Int8Grad):
    """Whole numbers from -7 to 7."""

    bit_width = 4
    rounding = "half_even"
    scaling = "constant"
    scale = 1.0


def test_what_comes_back_is_quantized_before_it_is_used() -> None:
    layer = qnn.QuantLinear(2, 3, weight_quant=None, grad_quant=Steps)
    x = torch.tensor([[1.0, 2.0]], requires_grad=True)
    layer(x).backward(torch.tensor([[0.6, -1.5, 99.0]]))
    weight, bias = layer.weight, layer.bias
    assert bias is not None
    assert bias.grad is not None
    assert bias.grad.tolist() == [1.0, -2.0, 7.0]
    assert weight.grad is not None
    assert weight.grad.tolist() == [[1.0, 2.0], [-2.0, -4.0], [7.0, 14.0]]
    assert x.grad is not None
    assert torch.equal(x.grad, torch.tensor([[1.0, -2.0, 7.0]]) @ weight)


@pytest.mark.parametrize(("kind", "arguments", "shape"), LAYERS, ids=lambda each: getattr(each, "__name__", ""))
def test_every_layer_with_a_weight_has_it(kind: Any, arguments: tuple[Any, ...], shape: tuple[int, ...]) -> None:
    torch.manual_seed(0)
    layer = kind(*arguments, grad_quant=Steps)
    plain = copy.deepcopy(layer)
    plain.grad_quant = None
    x = torch.randn(shape)
    with torch.no_grad():
        gradient = torch.randn_like(plain(x)) * 5
    assert torch.equal(layer(x), plain(x))
    given = [x.clone().requires_grad_() for _ in range(2)]
    layer(given[0]).backward(gradient)
    plain(given[1]).backward(gradient.round().clamp(-7, 7))
    for one, other in zip((given[0], *layer.parameters()), (given[1], *plain.parameters()), strict=True):
        assert (one.grad is None) == (other.grad is None)
        if one.grad is not None:
            torch.testing.assert_close(one.grad, other.grad)


def test_rows_of_a_table() -> None:
    layer = qnn.QuantEmbedding(3, 2, weight_quant=None, grad_quant=Steps)
    layer(torch.tensor([1, 1])).backward(torch.tensor([[0.6, 0.4], [0.6, 9.0]]))
    assert layer.weight.grad is not None
    assert layer.weight.grad.tolist() == [[0.0, 0.0], [2.0, 7.0], [0.0, 0.0]]


def test_compiled_it_gives_the_same() -> None:
    torch.manual_seed(0)
    layer = qnn.QuantLinear(4, 3, weight_quant=None, grad_quant=Fp8e5m2Grad)
    x, gradient = torch.randn(5, 4), torch.randn(5, 3)
    layer(x).backward(gradient)
    eager = [each.grad for each in layer.parameters()]
    layer.zero_grad()
    torch.compile(layer, backend="aot_eager", fullgraph=True)(x).backward(gradient)
    for one, each in zip(eager, layer.parameters(), strict=True):
        torch.testing.assert_close(each.grad, one)


def test_a_vanishing_gradient_is_scaled_not_flushed() -> None:
    layer = qnn.QuantLinear(1, 2, bias=False, weight_quant=None, grad_quant=Fp8e5m2Grad)
    layer(torch.ones(1)).backward(torch.tensor([1e-20, 1.3e-20]))
    assert layer.weight.grad is not None
    assert (layer.weight.grad > 0.8e-20).all()
    layer.zero_grad()
    layer(torch.ones(1)).backward(torch.zeros(2))
    assert layer.weight.grad.tolist() == [[0.0], [0.0]]


def test_integers_are_right_on_average() -> None:
    torch.manual_seed(0)
    layer = qnn.QuantLinear(1, 1, bias=False, weight_quant=None, grad_quant=Int8Grad, grad_bit_width=2)
    layer(torch.ones(10000, 1)).backward(torch.cat([torch.ones(1, 1), torch.full((9999, 1), 0.25)]))
    assert layer.weight.grad is not None
    assert abs(layer.weight.grad.item() - 2500.75) < 260  # six standard deviations


def test_gradients_of_samples() -> None:
    layer = qnn.QuantLinear(2, 2, bias=False, weight_quant=None, grad_quant=Steps)
    parameters = {name: each.detach() for name, each in layer.named_parameters()}

    def loss(parameters: dict[str, Tensor], x: Tensor) -> Tensor:
        return (torch.func.functional_call(layer, parameters, x) * torch.tensor([0.6, 9.0])).sum()

    found = torch.func.vmap(torch.func.grad(loss), (None, 0))(parameters, torch.tensor([[1.0, 2.0], [3.0, 4.0]]))
    assert found["weight"].tolist() == [[[1.0, 2.0], [7.0, 14.0]], [[3.0, 4.0], [21.0, 28.0]]]


def test_second_derivatives_pass_straight_through() -> None:
    layer = qnn.QuantLinear(1, 1, bias=False, weight_quant=None, grad_quant=Steps)
    layer.weight.data.fill_(1.0)
    x = torch.tensor([1.3], requires_grad=True)
    (first,) = torch.autograd.grad(layer(x).pow(2).sum(), x, create_graph=True)
    assert first.item() == 3.0  # of 2.6
    (second,) = torch.autograd.grad(first, x)
    assert second.item() == 2.0


def test_it_is_no_part_of_the_forward() -> None:
    layer = qnn.QuantLinear(2, 2, grad_quant=Int8Grad)
    assert list(qnn.quantizers_of(layer)) == ["weight_quant"]
    assert describe(layer).find("grad_quant").value == "Int8Grad (of what flows backward)"
    with torch.no_grad():
        assert layer(torch.ones(2)).grad_fn is None
    again = qnn.QuantLinear(2, 2, grad_quant=Int8Grad)
    again.load_state_dict(layer.state_dict())
    again.load_state_dict(nn.Linear(2, 2).state_dict())


def test_a_gradient_has_a_quantizer_made_for_it() -> None:
    layer = "QuantLinear(in_features=4, out_features=3, bias=True): "
    with pytest.raises(
        QuantizerError,
        match=re.escape(
            f"{layer}Int8Act quantizes activations and can't be grad_quant. Write grad_quant=Fp8e5m2Grad, or say that "
            "it quantizes a gradient as well: Int8Act(quantizes='gradient')."
        ),
    ):
        qnn.QuantLinear(4, 3, grad_quant=Int8Act)


@pytest.mark.parametrize(
    ("make", "message"),
    [
        (
            lambda: qnn.QuantLSTM(4, 3, grad_quant=Int8Grad),
            "QuantLSTM(4, 3): grad_quant=Int8Grad is for no quantizer of this layer: keywords start with one of "
            "weight_, bias_, input_, gate_, sigmoid_, tanh_, cell_, hidden_. Layers with one weight, such as "
            "QuantLinear, quantize the gradients that come back to them.",
        ),
        (
            lambda: qnn.QuantReLU(grad_quant=Int8Grad),
            "QuantReLU(): grad_quant=Int8Grad is for no quantizer of this layer. Layers with one weight, such as "
            "QuantLinear, quantize the gradients that come back to them.",
        ),
    ],
)
def test_other_layers_say_which_have_it(make: Any, message: str) -> None:
    with pytest.raises(QuantizerError, match=f"^{re.escape(message)}$"):
        make()


@pytest.mark.parametrize("scaling", ["running", "calibrated"])
def test_a_stored_range_is_no_gradients(scaling: str) -> None:
    layer = "QuantLinear(in_features=4, out_features=3, bias=True): "
    with pytest.raises(
        QuantizerError,
        match=re.escape(
            f"{layer}the scale of Int8Grad(scaling={scaling!r}) is measured in forwards or learned from a loss, and a "
            "gradient's is neither. Write grad_quant=Fp8e5m2Grad, or scaling='statistic', which follows each gradient."
        ),
    ):
        qnn.QuantLinear(4, 3, grad_quant=Int8Grad(scaling=scaling))
