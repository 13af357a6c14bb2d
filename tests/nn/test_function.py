"""A function of tensors as a layer."""

import copy
import math
import operator
import pickle
import re

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn

import bitwright.nn as qnn
from bitwright import export
from bitwright.qcore import QuantizerError, QuantTensor, ReadOnlyError
from bitwright.quantizers import Int8Act, Int8ActPerChannel, Int8WeightPerTensor, Int32Bias, Uint8Act

HALF, FIVE = torch.tensor([0.6, 0.9]), torch.tensor([4.9, -5.1])


def own_function(x, y, *, times=1):
    return (x + y) * times


# What is quantized


def test_operands_are_quantized_each_by_its_own():
    add = qnn.QuantFunction(torch.add, input_quant=Int8Act, input_1_scale=0.5, input_2_scale=2.0)
    assert add(HALF, FIVE).tolist() == [0.5 + 4.0, 1.0 - 6.0]
    assert add(HALF, other=FIVE, alpha=2).tolist() == [0.5 + 8.0, 1.0 - 12.0]
    assert add(HALF, 0.25).tolist() == [0.75, 1.25]  # a number has no quantizer


def test_the_result_is_quantized():
    add = qnn.QuantFunction(torch.add, act_quant=Int8Act, scale=2.0)
    assert add(HALF, FIVE).tolist() == [6.0, -4.0]


def test_one_operand_alone_is_quantized():
    add = qnn.QuantFunction(torch.add, input_quant=(None, Int8Act), input_2_scale=2.0)
    assert torch.equal(add(HALF, FIVE), HALF + torch.tensor([4.0, -6.0]))
    add = qnn.QuantFunction(torch.add, input_quant=Int8Act, input_1_quant=None, input_2_scale=2.0)
    assert torch.equal(add(HALF, FIVE), HALF + torch.tensor([4.0, -6.0]))


def test_operands_in_a_list():
    cat = qnn.QuantFunction(torch.cat, input_quant=Int8Act, operands=2, input_1_scale=0.5, input_2_scale=2.0)
    assert cat([HALF, FIVE]).tolist() == [0.5, 1.0, 4.0, -6.0]
    assert cat(tensors=(HALF, FIVE), dim=0).tolist() == [0.5, 1.0, 4.0, -6.0]
    assert cat([HALF, FIVE, HALF]).tolist()[4:] == HALF.tolist()  # operands=2 says so


def test_query_key_and_value_have_one_each():
    attention = qnn.QuantFunction(F.scaled_dot_product_attention, input_quant=Int8Act, input_scale=0.25)
    x = torch.tensor([[[0.3, 1.1], [0.6, -0.2]]])
    on = torch.tensor([[[0.25, 1.0], [0.5, -0.25]]])
    assert list(qnn.quantizers_of(attention)) == ["input_1_quant", "input_2_quant", "input_3_quant"]
    assert torch.equal(attention(x, x, x), F.scaled_dot_product_attention(on, on, on))
    assert torch.equal(
        attention(query=x, key=x, value=x, is_causal=True), F.scaled_dot_product_attention(on, on, on, is_causal=True)
    )
    mask = torch.full((x.shape[-2], x.shape[-2]), -1e30).triu(1)  # no operand: on a grid, it would mask nothing
    assert torch.equal(attention(x, x, x, mask), F.scaled_dot_product_attention(on, on, on, mask))
    assert torch.equal(attention(x, x, value=x, attn_mask=mask), F.scaled_dot_product_attention(on, on, on, mask))


def test_what_is_no_floating_point_tensor_is_passed_on():
    where = qnn.QuantFunction(torch.where, input_quant=Int8Act, operands=2, input_scale=0.5)
    assert where(torch.tensor([True, False]), HALF, FIVE).tolist() == [0.5, -5.0]
    embed = qnn.QuantFunction(F.embedding, input_quant=Int8Act, input_scale=0.5)
    assert embed(torch.tensor([1]), HALF.reshape(2, 1)).tolist() == [[1.0]]


def test_bit_widths_and_quantizers_by_operand():
    given = {"input_quant": (Uint8Act, Int8Act), "input_bit_width": 6, "input_2_bit_width": 3}
    layer = qnn.QuantFunction(torch.matmul, act_quant=Int8Act, bit_width=4, **given)
    quantizers = qnn.quantizers_of(layer)
    assert {name: (each.bit_width, each.signed) for name, each in quantizers.items()} == {
        "act_quant": (4, True),
        "input_1_quant": (6, False),
        "input_2_quant": (3, True),
    }


@pytest.mark.parametrize("function", [torch.add, Tensor.add, operator.add, own_function])
def test_without_quantizers_it_is_the_function(function):
    layer = qnn.QuantFunction(function)
    assert list(layer.state_dict()) == []
    x = HALF.clone().requires_grad_()
    assert torch.equal(layer(x, FIVE), function(x, FIVE))
    assert layer(x, FIVE).requires_grad


# One grid


def test_a_shared_grid_is_measured_as_one_tensor():
    small, large = torch.linspace(-1, 1, 256).reshape(16, 16), torch.linspace(-40, 40, 256).reshape(16, 16)
    assert list(qnn.quantizers_of(qnn.QuantFunction(torch.add, input_quant=Int8Act, share=True))) == ["input_quant"]
    add = qnn.QuantFunction(torch.add, input_quant=Int8Act, share=True, input_statistic="abs_max")
    add(small, large)
    assert add.input_quant.scaling.steps == 1  # one call, one measurement
    for _ in range(3):
        add(small, large)
    scale = add.input_quant.scale().item()
    assert scale == 40 / 128  # one operand after the other, the average would be 10 / 128 and more
    assert (add.eval()(small, large) - small - large).abs().max() < 1.6 * scale
    assert add(large, small).equal(add(small, large))


def test_a_shared_grid_gives_one_scale_before_anything_was_measured():
    dynamic = qnn.QuantFunction(
        torch.cat, input_quant=Int8Act, share=True, input_scaling="statistic", input_statistic="abs_max"
    )
    assert dynamic([HALF, torch.tensor([-128.0])]).tolist() == [1.0, 1.0, -128.0]
    assert dynamic([HALF]).tolist() != [1.0, 1.0]


@pytest.mark.parametrize("axis", [0, 1, 2, -1])
def test_a_shared_grid_of_channels(axis):
    x, y = torch.randn(3, 4, 5), torch.randn(3, 4, 5) * 10
    add = qnn.QuantFunction(
        torch.add, input_quant=Int8ActPerChannel, share=True, input_axis=axis, input_statistic="abs_max"
    )
    add(x, y)
    both = torch.maximum(x.abs(), y.abs()).movedim(axis, 0).flatten(1).amax(1)
    assert torch.allclose(add.input_quant.scale(), both / 127, rtol=0.01)
    scale = add.input_quant.scale()
    shape = [1, 1, 1]
    shape[axis] = -1
    on = [(each / scale.reshape(shape)).round().clamp(-128, 127) * scale.reshape(shape) for each in (x, y)]
    assert torch.allclose(add.eval()(x, y), on[0] + on[1], atol=1e-5)
    assert torch.allclose(add.train()(x, y), on[0] + on[1], atol=1e-5)


def test_channels_of_different_numbers_share_no_scales():
    cat = qnn.QuantFunction(torch.cat, input_quant=Int8ActPerChannel, share=True)
    with pytest.raises(
        QuantizerError,
        match=re.escape(
            "QuantFunction: the operands have 2 and 3 channels along axis 1, so they can't share a scale for each."
            " Write input_axis=None, or leave share=True out."
        ),
    ):
        cat([torch.ones(1, 2), torch.ones(1, 3)], 1)


def test_a_quantizer_of_another_layer_serves_all_operands():
    entry = qnn.QuantIdentity(scale=0.5)
    add = qnn.QuantFunction(torch.add, input_quant=entry.act_quant)
    assert add.share
    assert add.input_quant is entry.act_quant
    assert add(HALF, HALF).tolist() == [1.0, 2.0]


def test_sums_on_a_shared_grid_lie_on_a_grid():
    add = qnn.QuantFunction(
        torch.add, input_quant=Int8Act, share=True, input_scale=0.5, return_quant_tensor=True
    ).eval()
    out = add(HALF, FIVE)
    assert isinstance(out, QuantTensor)
    assert (out.scale.item(), out.bit_width, out.int().tolist()) == (0.5, 9, [11, -8])


def test_a_quantized_result_carries_its_grid():
    softmax = qnn.QuantFunction(torch.softmax, act_quant=Uint8Act, scale=2**-8, return_quant_tensor=True)
    out = softmax(torch.zeros(4), -1)
    assert (type(out), out.int().tolist()) == (QuantTensor, [64] * 4)


def test_a_result_on_no_grid_is_refused():
    layer = qnn.QuantFunction(torch.softmax, input_quant=Int8Act, return_quant_tensor=True)
    with pytest.raises(
        QuantizerError,
        match=re.escape(
            "QuantFunction: return_quant_tensor=True needs a result that lies on a grid, and that of torch.softmax "
            "lies on none. Write act_quant=Int8Act, or return_quant_tensor=False."
        ),
    ):
        layer(HALF, -1)


# In place


@pytest.mark.parametrize(
    ("function", "args", "kwargs"),
    [
        (Tensor.add_, (), {}),
        (operator.iadd, (), {}),
        (torch.add, (), {"inplace": True}),
    ],
)
def test_the_result_is_written_into_the_first_operand(function, args, kwargs):
    layer = qnn.QuantFunction(function, input_quant=Int8Act, input_scale=0.5, act_quant=Int8Act, scale=2.0, **kwargs)
    assert layer.inplace
    for base in (HALF.clone(), HALF.clone().requires_grad_()):
        x = base * 1.0
        out = layer(x, FIVE, *args)
        assert out is x
        assert x.tolist() == [6.0, -4.0]
        if x.requires_grad:
            x.sum().backward()
            assert base.grad.tolist() == [1.0, 1.0]


def test_an_argument_inplace_is_obeyed():
    layer = qnn.QuantFunction(F.relu, act_quant=Int8Act, scale=0.5)
    for args, kwargs, written in (((), {}, False), ((True,), {}, True), ((), {"inplace": True}, True)):
        x = FIVE.clone()
        assert layer(x, *args, **kwargs).tolist() == [5.0, 0.0]
        assert (x.tolist() == [5.0, 0.0]) is written
        assert written or torch.equal(x, FIVE)


def test_an_output_argument_is_refused():
    layer = qnn.QuantFunction(torch.add, act_quant=Int8Act)
    with pytest.raises(
        QuantizerError,
        match=re.escape(
            "QuantFunction: torch.add(..., out=...) writes a result that is not quantized. Use the one that is "
            "returned."
        ),
    ):
        layer(HALF, FIVE, out=torch.empty(2))


# The function's name


@pytest.mark.parametrize(
    ("function", "name"),
    [
        (torch.add, "torch.add"),
        (Tensor.softmax, "torch.Tensor.softmax"),
        (Tensor.add_, "torch.Tensor.add_"),
        (operator.matmul, "operator.matmul"),
        (F.softmax, "torch.nn.functional.softmax"),
        (F.scaled_dot_product_attention, "torch.nn.functional.scaled_dot_product_attention"),
        (F.max_pool2d, "torch.nn.functional.max_pool2d"),
        (math.sqrt, "math.sqrt"),
        (copy.copy, "copy.copy"),
    ],
)
def test_functions_travel_by_name(function, name):
    layer = qnn.QuantFunction(function)
    assert repr(layer).startswith(f"QuantFunction({name}")
    state = pickle.dumps(layer)
    for twin in (pickle.loads(state), copy.deepcopy(layer)):
        assert twin.function is function
        assert repr(twin) == repr(layer)


def test_a_function_of_a_module_of_ones_own(tmp_path, monkeypatch):
    (tmp_path / "functions_of_a_user.py").write_text("def halved(x):\n    return x / 2\n")
    monkeypatch.syspath_prepend(tmp_path)
    from functions_of_a_user import halved  # type: ignore[misc]

    layer = qnn.QuantFunction(halved, act_quant=Int8Act, scale=0.5)
    assert repr(layer).startswith("QuantFunction(\n  functions_of_a_user.halved\n")
    assert pickle.loads(pickle.dumps(layer))(FIVE).tolist() == [2.5, -2.5]


# State


def full(**kwargs):
    torch.manual_seed(0)
    return qnn.QuantFunction(torch.add, act_quant=Int8Act, input_quant=Int8Act, bit_width=5, **kwargs)


def test_copies_pickles_and_files_give_the_same():
    layer, x, y = full(), torch.randn(4, 4), torch.randn(4, 4)
    layer(x, y)
    layer.eval()
    loaded = full().eval()
    loaded.load_state_dict(layer.state_dict())
    for twin in (copy.deepcopy(layer), pickle.loads(pickle.dumps(layer)), loaded):
        assert torch.equal(twin(x, y), layer(x, y))
        twin.input_1_quant = None  # its slots are its own
        assert layer.input_1_quant is not None
        assert twin.slots == layer.slots


def test_keys_and_slots():
    assert {key.rpartition("quant.")[0] + "quant" for key in full().state_dict()} == {
        "act_quant",
        "input_1_quant",
        "input_2_quant",
    }
    assert [each.name for each in full().slots] == ["act", "input_1", "input_2"]
    assert [each.name for each in full(share=True).slots] == ["act", "input"]
    assert qnn.QuantFunction.slots == ()  # those of an instance are not those of the class


def test_slots_of_a_built_layer_can_be_set():
    layer = full()
    layer.input_2_quant = Uint8Act
    assert (layer.input_1_quant.signed, layer.input_2_quant.signed) == (True, False)
    layer.input_quant = Uint8Act(bit_width=3)
    assert (layer.input_1_quant.bit_width, layer.input_2_quant.bit_width) == (3, 3)
    assert layer.input_1_quant is not layer.input_2_quant
    layer.input_quant = (None, Int8Act)
    assert (layer.input_1_quant, layer.input_2_quant.bit_width) == (None, 8)
    layer.input_quant = layer.act_quant = None
    assert torch.equal(layer(HALF, FIVE), HALF + FIVE)
    with pytest.raises(
        QuantizerError,
        match=re.escape(
            "QuantFunction(torch.add): input_quant has 3 quantizers, for 2 operands. Give one for each, or None where "
            "an operand has none."
        ),
    ):
        layer.input_quant = [Int8Act] * 3


def test_settings_of_a_built_layer_are_refused():
    for name, slot in (("input_bit_width", "input"), ("input_2_bit_width", "input_2"), ("bit_width", "act")):
        wanted = f"layer.{slot}_quant = Int8Act(bit_width={5 if slot != 'act' else 3})"
        with pytest.raises(ReadOnlyError, match=re.escape(wanted)):
            setattr(full(), name, 3 if slot == "act" else 5)


def test_frozen_and_unquantized():
    layer, x, y = full(), torch.randn(4, 4), torch.randn(4, 4)
    layer(x, y)
    layer.eval()
    with qnn.frozen(layer), torch.no_grad():
        first = layer(x, y)
        assert torch.equal(layer(x, y), first)
    assert torch.equal(layer(x, y), first)
    for share in (True, False):
        layer = full(share=share)
        with qnn.unquantized(layer):
            assert torch.equal(layer(x, y), x + y)
        assert all(each.scaling.steps == 0 for each in qnn.quantizers_of(layer).values())


def test_devices_and_types():
    layer = qnn.QuantFunction(torch.add, input_quant=Int8Act, device="meta", dtype=torch.bfloat16)
    assert {each.device.type for each in layer.parameters()} == {"meta"}
    assert {each.dtype for each in layer.parameters()} == {torch.bfloat16}
    layer = full().to(torch.float64)
    assert layer(HALF.double(), FIVE.double()).dtype == torch.float64


# Compilers and files


class Net(nn.Module):
    def __init__(self):
        super().__init__()
        self.one = qnn.QuantConv2d(3, 4, 3, padding=1, input_quant=Int8Act, bias_quant=Int32Bias)
        self.two = qnn.QuantConv2d(3, 4, 3, padding=1)
        self.add = qnn.QuantFunction(torch.add, input_quant=Int8Act, share=True)
        self.cat = qnn.QuantFunction(torch.cat, input_quant=Int8Act, operands=2)
        self.matmul = qnn.QuantFunction(torch.matmul, input_quant=(Uint8Act, Int8Act), act_quant=Int8Act)
        self.add_ = qnn.QuantFunction(Tensor.add_, input_quant=Int8Act)
        self.attention = qnn.QuantFunction(F.scaled_dot_product_attention, input_quant=Int8Act)

    def forward(self, x):
        y = self.add(self.one(x), self.two(x))
        z = self.cat([y, x], dim=1)
        z = self.matmul(z.relu(), z.transpose(-1, -2))
        z = 2 * z
        self.add_(z, y.mean())
        return self.attention(z, z, value=z)


@pytest.fixture(scope="module")
def net():
    torch.manual_seed(0)
    model = Net()
    with qnn.calibrating(model):
        for _ in range(2):
            model(torch.randn(2, 3, 6, 6))
    return model.eval()


@pytest.mark.parametrize("name", ["export_onnx_qcdq", "export_onnx_qdq"])
def test_exports_are_verified(net, name, tmp_path):
    getattr(export, name)(net, torch.randn(2, 3, 6, 6), tmp_path / "net.onnx")
    assert (tmp_path / "net.onnx").stat().st_size > 0


def test_compilers_see_one_graph(net):
    x = torch.randn(2, 3, 6, 6)
    compiled = torch.compile(net.forward, fullgraph=True, backend="eager")
    with torch.no_grad():
        assert torch.equal(compiled(x), net(x))
    torch.compiler.reset()
    for share in (True, False):
        one, other = full(share=share), full(share=share)
        compiled = torch.compile(one, fullgraph=True, backend="eager")
        for step in range(3):
            a, b = torch.randn(3, 4) * (step + 1), torch.randn(3, 4)
            assert torch.allclose(compiled(a, b), other(a, b), atol=1e-6)
    torch.compiler.reset()


def test_everything_trains():
    torch.manual_seed(0)
    model, x = Net(), torch.randn(2, 3, 6, 6)
    model(x)
    qnn.finish_calibration(model)
    model(x).square().sum().backward()
    assert all(each.grad is not None and each.grad.isfinite().all() for each in model.parameters())


# What is refused


REFUSED = [
    (
        lambda: qnn.QuantFunction(nn.ReLU()),
        "QuantFunction: function=ReLU() is a module. Pass a function such as torch.add.",
    ),
    (
        lambda: qnn.QuantFunction("torch.add"),
        "QuantFunction: function='torch.add' is no function. Pass a function such as torch.add.",
    ),
    (
        lambda: qnn.QuantFunction(torch.add, bit_width=3),
        "QuantFunction(torch.add): bit_width=3 is given, but act_quant is None. Write act_quant=Int8Act too, or leave "
        "bit_width out.",
    ),
    (
        lambda: qnn.QuantFunction(torch.add, input_bit_width=3),
        "QuantFunction(torch.add): input_bit_width=3 is given, but input_quant is None. Write input_quant=Int8Act too, "
        "or leave input_bit_width out.",
    ),
    (
        lambda: qnn.QuantFunction(torch.add, act_quant=Int8Act, act_bit_width=3),
        "QuantFunction(torch.add): act_bit_width=3 is for no quantizer of this layer. An activation layer has one set "
        "of keywords: settings take no prefix. Did you mean bit_width=3?",
    ),
    (
        lambda: qnn.QuantFunction(torch.add, input_quant=Int8Act, input_bitwidth=3),
        "QuantFunction(torch.add): nothing in Int8Act uses input_bitwidth=3. Did you mean input_bit_width?",
    ),
    (
        lambda: qnn.QuantFunction(torch.add, input_quant=Int8Act, input_3_bit_width=3),
        "QuantFunction(torch.add): input_3_bit_width=3 is for no operand of this layer: keywords start with one of "
        "input_, input_1_, input_2_. Write operands=3 if there are so many.",
    ),
    (
        lambda: qnn.QuantFunction(torch.add, input_quant=Int8Act, share=True, input_2_bit_width=3),
        "QuantFunction(torch.add): input_2_bit_width=3 is for one operand, and share=True has one quantizer for all. "
        "Write input_bit_width=3, or leave share=True out.",
    ),
    (
        lambda: qnn.QuantFunction(torch.add, input_quant=(Int8Act, Int8Act), share=True),
        "QuantFunction(torch.add): share=True is for one quantizer, and input_quant has 2. Write input_quant=Int8Act, "
        "or leave share=True out.",
    ),
    (
        lambda: qnn.QuantFunction(torch.add, input_quant=(Int8Act,), operands=2),
        "QuantFunction(torch.add): input_quant has 1 quantizers, for 2 operands. Give one for each, or None where an "
        "operand has none.",
    ),
    (
        lambda: qnn.QuantFunction(torch.add, input_quant=Int8Act, operands=0),
        "QuantFunction(torch.add): operands=0 is not possible: expected a number from 1.",
    ),
    (
        lambda: qnn.QuantFunction(torch.add, input_quant=Int8Act, share=1),
        "QuantFunction: share=1 is not possible: expected True or False.",
    ),
    (
        lambda: qnn.QuantFunction(torch.add, input_quant=Int8WeightPerTensor),
        "QuantFunction(torch.add): Int8WeightPerTensor quantizes weights and can't be input_1_quant. Write "
        "input_1_quant=Int8Act, or say that it quantizes an activation as well: "
        "Int8WeightPerTensor(quantizes='activation').",
    ),
    (
        lambda: qnn.QuantFunction(torch.addcmul, input_quant=Int8Act)(HALF, HALF, FIVE),
        "QuantFunction: torch.addcmul is called with 3 tensors, and has one quantizer for its operand. Write "
        "operands=3, or operands=1 to leave the others as they are.",
    ),
    (
        lambda: qnn.QuantFunction(torch.add, input_quant=Int8Act)(*[HALF] * 2, FIVE),
        "QuantFunction: torch.add is called with 3 tensors, and has 2 quantizers for operands. Write operands=3, or "
        "operands=2 to leave the others as they are.",
    ),
    (
        lambda: qnn.QuantFunction(torch.split, act_quant=Int8Act)(FIVE, 1),
        "QuantFunction: torch.split returns no tensor but a tuple, and act_quant quantizes one tensor. Quantize its "
        "parts: a qnn.QuantIdentity() for each.",
    ),
]


@pytest.mark.parametrize(("make", "message"), REFUSED, ids=range(len(REFUSED)))
def test_what_makes_no_sense_is_refused(make, message):
    with pytest.raises(QuantizerError, match=f"^{re.escape(message)}$"):
        make()


def test_a_function_without_a_name_is_refused():
    def local(x):
        return x

    for function in (local, lambda x: x):
        with pytest.raises(
            QuantizerError,
            match=re.escape(
                f"QuantFunction: {function!r} can't be imported, so the layer could not be saved. Define it by def at "
                "the top level of a module."
            ),
        ):
            qnn.QuantFunction(function)


def test_a_group_is_no_grid_to_share():
    from bitwright.qcore import PerToken

    with pytest.raises(
        QuantizerError,
        match=re.escape(
            "QuantFunction(torch.add): share=True needs a quantizer with one scale, or one for each channel"
        ),
    ):
        qnn.QuantFunction(
            torch.add,
            input_quant=Int8Act,
            share=True,
            input_granularity=PerToken(),
            input_axis=None,
            input_scaling="statistic",
            input_statistic="abs_max",
        )
