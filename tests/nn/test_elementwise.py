"""Sums, products and concatenations as layers."""

import copy
import inspect
import pickle

import pytest
import torch

import bitwright.nn as qnn
from bitwright.qcore import QuantizerError, QuantTensor, grid_of
from bitwright.quantizers import Int8Act, Uint8Act

A = torch.tensor([[0.6, 9.9], [-1.0, 0.2]])
B = torch.tensor([[1.1, -0.1], [2.0, -3.0]])
LAYERS = {
    "QuantAdd": (lambda layer: layer(A, B), A + B),
    "QuantMul": (lambda layer: layer(A, B), A * B),
    "QuantMatmul": (lambda layer: layer(A, B), A @ B),
    "QuantCat": (lambda layer: layer([A, B, A], 1), torch.cat([A, B, A], 1)),
}


@pytest.mark.parametrize("name", LAYERS)
def test_without_quantizers_it_is_torchs(name):
    call, expected = LAYERS[name]
    assert torch.equal(call(getattr(qnn, name)(act_quant=None, input_quant=None)), expected)


@pytest.mark.parametrize("name", LAYERS)
def test_the_default_quantizes_and_is_close(name):
    call, expected = LAYERS[name]
    layer = getattr(qnn, name)(return_quant_tensor=True)
    out = call(layer)
    assert isinstance(out, QuantTensor)
    assert out.bit_width == 8
    assert (out.value - expected).abs().max() < 0.5
    assert not torch.equal(out.value, expected)


def test_operands_of_a_sum_share_a_grid_and_its_result_has_another():
    add = qnn.QuantAdd(input_scale=0.5, scale=1.0, return_quant_tensor=True)
    assert list(qnn.quantizers_of(add)) == ["act_quant", "input_quant"]
    # halves: 1, 20, -2, 0 and 2, 0, 4, -6: sums 3, 20, 2, -6, that is 1.5, 10, 1 and -3
    assert add(A, B).int().tolist() == [[2, 10], [1, -3]]
    halves = qnn.QuantAdd(act_quant=None, input_scale=0.5, return_quant_tensor=True)(A, B)
    assert halves.int().tolist() == [[3, 20], [2, -6]]
    assert (halves.scale, halves.bit_width) == (0.5, 9)


def test_a_grid_of_its_own_for_each():
    add = qnn.QuantAdd(input_quant=(Int8Act(scale=0.5), Int8Act(scale=0.25)), act_quant=None)
    assert add(A, B).tolist() == [[1.5, 10.0], [1.0, -3.0]]
    assert sorted(add.input_quant) == ["input_1", "input_2"]
    mul = qnn.QuantMul(input_2_bit_width=4)
    assert {name: quant.bit_width for name, quant in mul.input_quant.items()} == {"input_1": 8, "input_2": 4}
    mul.input_quant = Uint8Act
    assert {name: quant.signed for name, quant in mul.input_quant.items()} == {"input_1": False, "input_2": False}
    shared = qnn.QuantMul(share=True)
    assert shared.input_quant is shared.get_submodule("input_quant")


def test_a_concatenation_stays_on_the_grid_of_its_operands():
    cat = qnn.QuantCat(input_scale=0.5, return_quant_tensor=True)
    out = cat([A, B, A])
    assert out.shape == (6, 2)
    assert out.int()[:2].tolist() == [[1, 20], [-2, 0]]
    assert out.scale == 0.5
    assert cat((A, B), dim=1).shape == (2, 4)
    own = qnn.QuantCat(input_quant=(Int8Act, Uint8Act), return_quant_tensor=False)
    assert own([A, B]).shape == (4, 2)


def test_operands_that_come_on_one_grid():
    quantize = qnn.QuantIdentity(scale=0.5, return_quant_tensor=True)
    one, other = quantize(A), quantize(B)
    out = qnn.QuantAdd(input_quant=None, act_quant=None)(one, other)
    assert torch.equal(out.int(), one.int().short() + other.int())
    quantized = qnn.QuantAdd(input_quant=None, scale=1.0, return_quant_tensor=True)(one, other)
    assert grid_of(quantized).scale == 1.0
    assert isinstance(qnn.QuantCat(input_quant=None)([one, other]), QuantTensor)


def test_arguments_of_torch():
    add = qnn.QuantAdd(act_quant=None, input_scale=0.5)
    assert add(input=A, other=B, alpha=2).tolist() == [[2.5, 10.0], [3.0, -6.0]]
    assert qnn.QuantMul(act_quant=None, input_scale=0.5)(A, other=B[0]).tolist() == [[0.5, 0.0], [-1.0, 0.0]]
    assert qnn.QuantAdd(act_quant=None, input_scale=0.5)(A, 1.0).tolist() == [[1.5, 11.0], [0.0, 1.0]]


def test_signatures_name_everything():
    for name in LAYERS:
        parameters = inspect.signature(getattr(qnn, name)).parameters
        assert list(parameters)[:2] == ["act_quant", "input_quant"]
        assert {"share", "operands", "return_quant_tensor", "device", "dtype", "overrides"} <= {*parameters}
        assert {each.kind for each in parameters.values()} == {
            inspect.Parameter.KEYWORD_ONLY,
            inspect.Parameter.VAR_KEYWORD,
        }


def refusal(call):
    with pytest.raises(QuantizerError) as caught:
        call()
    return str(caught.value)


def test_refusals():
    assert refusal(lambda: qnn.QuantAdd(input_quant=None, input_bit_width=4)) == (
        "QuantAdd(torch.add): input_bit_width=4 is given, but input_quant is None. Write input_quant=Int8Act too, or "
        "leave input_bit_width out."
    )
    assert refusal(lambda: qnn.QuantAdd(bitwidth=4)) == (
        "QuantAdd(torch.add): nothing in Int8Act uses bitwidth=4. Did you mean bit_width?"
    )
    assert refusal(lambda: qnn.QuantCat(share=False)([A, B])) == (
        "QuantCat: torch.cat is called with 2 tensors, and has one quantizer for its operand. Write operands=2, or "
        "operands=1 to leave the others as they are."
    )
    assert refusal(lambda: qnn.QuantMatmul(act_quant=None, return_quant_tensor=True)(A, B)) == (
        "QuantMatmul: return_quant_tensor=True needs a result that lies on a grid, and that of torch.matmul lies on "
        "none. Write act_quant=Int8Act, or return_quant_tensor=False."
    )


@pytest.mark.parametrize("name", LAYERS)
def test_copies_compute_the_same(name):
    call, _ = LAYERS[name]
    layer = getattr(qnn, name)(calibration_steps=1) if name != "QuantCat" else qnn.QuantCat()
    call(layer)
    layer.eval()
    for each in (copy.deepcopy(layer), pickle.loads(pickle.dumps(layer))):
        assert torch.equal(call(each), call(layer))
        assert repr(each) == repr(layer)


@pytest.mark.slow
def test_compiled_is_eager():
    class Net(torch.nn.Module):
        def __init__(self):
            super().__init__()
            self.add, self.cat = qnn.QuantAdd(return_quant_tensor=True), qnn.QuantCat()
            self.mul, self.matmul = qnn.QuantMul(), qnn.QuantMatmul()

        def forward(self, a, b):
            total = self.add(a, b)
            return self.cat([total, a], dim=1), self.mul(total, b), self.matmul(a, b)

    model = Net()
    model(A, B)
    model.eval()
    torch._dynamo.reset()
    for one, other in zip(torch.compile(model, backend="aot_eager", fullgraph=True)(A, B), model(A, B), strict=True):
        assert torch.equal(one, other)
