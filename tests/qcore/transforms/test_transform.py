"""The attribute ``transform``: where a transform acts, what it is given, and where it is refused."""

import copy
import pickle
import re
from typing import Any

import pytest
import torch
from torch import Tensor, nn

import bitwright.nn as qnn
from bitwright.qcore import Grid, QuantizerError, ReadOnlyError, SettingError, describe
from bitwright.quantizers import Int8Act, Int8BiasOwnScale, Int8WeightPerChannel, Int8WeightPerTensor, Int32Bias


class Squash(nn.Module):
    """tanh of a multiple; remembers what it was given."""

    seen: Grid | None = None

    def __init__(self, gain: float = 1.0) -> None:
        super().__init__()
        self.gain = nn.Parameter(torch.tensor(gain))

    def forward(self, weight: Tensor, inputs: Grid | None) -> Tensor:
        self.seen = inputs
        return torch.tanh(weight * self.gain)

    def scheme(self) -> str:
        return "squashed"


class Halved(nn.Module):
    """A transform that acts once the scale is known."""

    def forward(self, weight: Tensor, inputs: Grid | None) -> Tensor:
        return weight

    def limit(self, weight: Tensor, scale: Tensor, inputs: Grid | None, bias: Tensor | None) -> Tensor:
        assert scale.shape == (2, 1)
        return weight / 2 if bias is None else weight / 2 - bias.reshape(-1, 1)


def layer(**given: Any) -> qnn.QuantLinear:
    made = qnn.QuantLinear(3, 2, weight_quant=Int8WeightPerChannel, **given)
    with torch.no_grad():
        made.weight.copy_(torch.tensor([[1.0, -0.5, 0.25], [0.5, 0.1, -2.0]]))
        assert made.bias is not None
        made.bias.copy_(torch.tensor([0.5, -0.25]))
    return made


def test_weight_is_transformed_before_it_is_measured() -> None:
    found = layer(weight_transform=Squash, weight_bit_width=4)
    largest = torch.tanh(torch.tensor([1.0, -2.0])).abs()
    assert torch.equal(found.quant_weight().scale.reshape(-1), largest / 7)  # type: ignore[union-attr]
    assert found.int_weight().tolist() == [[7, -4, 2], [3, 1, -7]]
    found(torch.ones(1, 3)).sum().backward()
    assert found.weight_quant is not None
    assert found.weight_quant.transform.gain.grad is not None  # type: ignore[union-attr]


def test_transform_gets_the_grid_of_the_input() -> None:
    found = layer(weight_transform=Squash, input_quant=Int8Act, input_scale=0.5)
    found(torch.ones(1, 3))
    assert found.weight_quant.transform.seen.scale == 0.5  # type: ignore[union-attr]
    plain = layer(weight_transform=Squash)
    plain(torch.ones(1, 3))
    assert plain.weight_quant.transform.seen is None  # type: ignore[union-attr]


def test_limit_acts_when_the_scale_is_known_and_sees_a_bias_on_the_products() -> None:
    assert layer(weight_transform=Halved).int_weight().tolist() == [[64, -32, 16], [16, 3, -64]]
    summed = layer(weight_transform=Halved, input_quant=Int8Act, input_scale=2.0**-7, bias_quant=Int32Bias)
    summed(torch.ones(1, 3))
    assert summed.int_weight().tolist() == [[0, -95, -48], [32, 19, -48]]


@pytest.mark.slow
def test_compiled() -> None:
    found, x = layer(weight_transform=Squash).eval(), torch.tensor([[0.5, -1.0, 0.25]])
    assert torch.equal(torch.compile(found, backend="aot_eager", fullgraph=True)(x), found(x))


def test_frozen_copied_and_in_half_precision() -> None:
    found, x = layer(weight_transform=Squash).eval(), torch.tensor([[0.5, -1.0, 0.25]])
    expected = found(x)
    with qnn.frozen(found), torch.no_grad():
        assert torch.equal(found(x), expected)
        assert torch.equal(found(x), expected)
    assert torch.equal(copy.deepcopy(found)(x), expected)
    assert torch.equal(pickle.loads(pickle.dumps(found))(x), expected)
    half = found.to(torch.bfloat16)
    assert half.quant_weight().dtype == torch.bfloat16


def test_second_derivatives() -> None:
    found = layer(weight_transform=Squash).double()
    quant = found.weight_quant
    assert quant is not None

    def through(weight: Tensor) -> Tensor:
        return quant(weight).square().sum()

    weight = found.weight.detach()
    smooth = torch.autograd.functional.hessian(lambda w: torch.tanh(w).square().sum() / 2, weight)
    assert torch.isfinite(smooth).all()
    exact = torch.autograd.functional.hessian(through, weight)
    assert torch.isfinite(exact).all()
    assert exact.abs().sum() > 0


def test_files_say_what_the_weights_become() -> None:
    found, plain = layer(weight_transform=Squash), layer()
    assert found.weight_quant.scheme() == "int8 narrow, axis 0, float scale, squashed"  # type: ignore[union-attr]
    other = layer(weight_transform=Squash, weight_gain=3.0)
    other.load_state_dict(found.state_dict())
    assert torch.equal(other.int_weight(), found.int_weight())
    found.load_state_dict(nn.Linear(3, 2).state_dict())  # of floats: strictly
    with pytest.raises(RuntimeError, match="the file holds int8 narrow, axis 0, float scale, squashed, the model is"):
        plain.load_state_dict(found.state_dict())
    assert layer(weight_transform=Halved).weight_quant.scheme().endswith(", transformed")  # type: ignore[union-attr]


def test_described() -> None:
    tree = describe(layer(weight_transform=Squash, weight_gain=2.0)).find("transform")
    assert (tree.value, tree.set_by, tree.used_by) == ("Squash", "keyword weight_transform", ("tensor_quant",))
    assert [(each.attribute, each.value) for each in tree.needs] == [("gain", "2.0")]


def test_settled_once_built() -> None:
    quant: Any = layer(weight_transform=Squash).weight_quant
    with pytest.raises(ReadOnlyError, match="transform=None can't be set on a quantizer that is built"):
        quant.transform = None


SERVED = layer(weight_transform=Squash)
_REFUSED = {
    "activation": (
        lambda: qnn.QuantIdentity(act_quant=Int8Act, transform=Squash),
        "QuantIdentity(): Int8Act(transform=Squash) has a transform, which only weights can have, and can't be "
        "act_quant. Write transform=None.",
    ),
    "bias": (
        lambda: qnn.QuantLinear(3, 2, bias_quant=Int8BiasOwnScale, bias_transform=Squash),
        "QuantLinear(in_features=3, out_features=2, bias=True): Int8BiasOwnScale(transform=Squash) has a transform, "
        "which only weights can have, and can't be bias_quant. Write bias_transform=None.",
    ),
    "shared": (
        lambda: qnn.QuantLinear(3, 2, weight_quant=SERVED.weight_quant),
        "QuantLinear: Int8WeightPerChannel(transform=Squash) transforms the weight of another layer "
        "(transform=Squash), and can't be shared. Pass the class, not the module.",
    ),
}


@pytest.mark.parametrize("case", _REFUSED)
def test_refused(case: str) -> None:
    build, message = _REFUSED[case]
    with pytest.raises(QuantizerError, match=f"^{re.escape(message)}$"):
        build()


@pytest.mark.parametrize("wrong", [3, lambda weight: weight])
def test_no_transform(wrong: object) -> None:
    with pytest.raises(SettingError, match="or a class or function of your own that is called with \\(weight, inputs"):
        qnn.QuantLinear(3, 2, weight_quant=Int8WeightPerTensor, weight_transform=wrong)
