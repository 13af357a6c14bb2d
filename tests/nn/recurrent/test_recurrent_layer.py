"""Recurrent layers: torch's without quantizers, one meaning on all paths with them."""

import copy
import pickle
import re
from typing import Any

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch import nn
from torch.nn.utils.rnn import pack_padded_sequence, pack_sequence, pad_packed_sequence
from torch.utils.checkpoint import checkpoint

import bitwright.nn as qnn
from bitwright.nn.recurrent import recurrent_layer
from bitwright.qcore import QuantizerError, QuantTensor, UncalibratedWarning
from bitwright.quantizers import (
    Int8Act,
    Int8ActPerChannel,
    Int8WeightPerChannelLearned,
    Int8WeightPerTensor,
    Int16ActPowerOfTwo,
    Int32Bias,
    ShiftedUint8Act,
    Uint8Act,
)

KINDS = {nn.LSTM: qnn.QuantLSTM, nn.GRU: qnn.QuantGRU, nn.RNN: qnn.QuantRNN}
FLOAT = {"weight_quant": None, "hidden_quant": None}


def tensors(result):
    """Output and states in one list."""
    out, states = result
    out = out.data if isinstance(out, nn.utils.rnn.PackedSequence) else out
    return [out, *(states if isinstance(states, tuple) else (states,))]


def close(ones, others, atol=1e-12):
    for one, other in zip(tensors(ones), tensors(others), strict=True):
        assert one.dtype == other.dtype
        torch.testing.assert_close(one, other, rtol=0, atol=atol)


@st.composite
def calls(draw):
    """A kind, torch's arguments, and what the layer is called with."""
    kind = draw(st.sampled_from(list(KINDS)))
    arguments = {
        "num_layers": draw(st.integers(1, 2)),
        "bias": draw(st.booleans()),
        "batch_first": draw(st.booleans()),
        "bidirectional": draw(st.booleans()),
    }
    if arguments["num_layers"] > 1:
        arguments["dropout"] = draw(st.sampled_from([0.0, 0.5]))
    if kind is nn.LSTM and draw(st.booleans()):
        arguments["proj_size"] = 2
    if kind is nn.RNN:
        arguments["nonlinearity"] = draw(st.sampled_from(["tanh", "relu"]))
    generator = torch.Generator().manual_seed(draw(st.integers(0, 99)))

    def randn(*shape):
        return torch.randn(shape, generator=generator, dtype=torch.float64)

    form = draw(st.sampled_from(["batch", "sequence", "packed"]))
    batch, steps = draw(st.integers(1, 3)), draw(st.integers(1, 4))
    if form == "packed":
        x = pack_sequence([randn(1 + (steps + k) % 4, 4) for k in range(batch)], enforce_sorted=False)
    elif form == "sequence":
        x = randn(steps, 4)
    else:
        x = randn(batch, steps, 4) if arguments["batch_first"] else randn(steps, batch, 4)
    hx = None
    if draw(st.booleans()):
        runs = arguments["num_layers"] * (1 + arguments["bidirectional"])
        lead = (runs,) if form == "sequence" else (runs, batch)
        hx = randn(*lead, arguments.get("proj_size", 3))
        hx = (hx, randn(*lead, 3)) if kind is nn.LSTM else hx
    return kind, arguments, x, hx, draw(st.booleans())


def pair(kind, arguments, **quantizers):
    """Torch's layer and ours, with the same parameters."""
    torch.manual_seed(0)
    torchs = kind(4, 3, **arguments, dtype=torch.float64)
    ours = KINDS[kind](4, 3, **arguments, dtype=torch.float64, **quantizers)
    ours.load_state_dict(torchs.state_dict(), strict=True)
    return torchs, ours


@given(calls())
def test_without_quantizers_it_is_torchs_to_the_bit(call):
    kind, arguments, x, hx, training = call
    torchs, ours = pair(kind, arguments, **FLOAT)
    results = []
    for module in (torchs, ours):
        torch.manual_seed(1)
        result = module.train(training)(x, hx)
        module.zero_grad()
        sum(each.square().sum() for each in tensors(result)).backward()
        results.append([*tensors(result), *(each.grad for each in module.parameters())])
    assert type(torchs(x)[0]) is type(ours(x)[0])
    assert all(map(torch.equal, *results))


@given(calls())
def test_the_general_loop_is_torchs_where_quantizers_let_pass(call):
    kind, arguments, x, hx, _ = call
    torchs, ours = pair(kind, arguments)
    with qnn.unquantized(ours.eval()):
        close(ours(x, hx), torchs.eval()(x, hx))


@given(calls(), st.booleans())
def test_a_whole_sequence_at_once_is_the_general_loop(call, learned):
    """In float64, where no value of these lies at a boundary: equal codes, and gradients of everything."""
    kind, arguments, x, hx, training = call
    scaling = {} if learned else {"hidden_scaling": "constant", "hidden_scale": 2**-7}
    cell = {"cell_quant": Int16ActPowerOfTwo} if kind is nn.LSTM else {}
    _, ours = pair(kind, arguments, **cell, **scaling)
    ours(x, hx)
    qnn.finish_calibration(ours)
    ours.train(training)
    results = []
    for general in (True, False):
        with qnn.intercepted(
            qnn.quantizers_of(ours) if general else {}, lambda path: lambda quant, *x: quant._quantize(*x)
        ):
            torch.manual_seed(1)
            result = ours(x, hx)
        ours.zero_grad()
        sum(each.square().sum() for each in tensors(result)).backward()
        results.append([*tensors(result), *(each.grad for each in ours.parameters() if each.grad is not None)])
    assert len(results[0]) == len(results[1])
    for one, other in zip(*results, strict=True):
        torch.testing.assert_close(one, other, rtol=1e-9, atol=1e-9)


@pytest.mark.parametrize("kind", list(KINDS))
@pytest.mark.parametrize("quantizers", [{}, {"gate_quant": Int8Act}])
def test_a_packed_sequence_is_each_sequence_by_itself(kind, quantizers):
    _, ours = pair(kind, {"bidirectional": True}, **quantizers)
    lengths = [3, 5, 1]
    padded = torch.randn(5, 3, 4, dtype=torch.float64)
    packed = pack_padded_sequence(padded, lengths, enforce_sorted=False)
    ours(packed)
    ours.eval()
    out, states = ours(packed)
    out, _ = pad_packed_sequence(out)
    states = states if isinstance(states, tuple) else (states,)
    for k, length in enumerate(lengths):
        alone, *ends = tensors(ours(padded[:length, k]))
        torch.testing.assert_close(out[:length, k], alone, rtol=0, atol=1e-12)
        for state, end in zip(states, ends, strict=True):
            torch.testing.assert_close(state[:, k], end, rtol=0, atol=1e-12)


def counting(monkeypatch):
    """Which way each layer goes: at once, by a sequence function, or step by step."""
    seen = []
    for name in ("_at_once", "_defined", "_by_kernel"):
        before = getattr(recurrent_layer.RecurrentLayer, name)

        def counted(self, *args, before=before, name=name):
            seen.append(name)
            return before(self, *args)

        monkeypatch.setattr(recurrent_layer.RecurrentLayer, name, counted)
    return seen


@pytest.mark.parametrize(
    ("settings", "path"),
    [
        ({"hidden_quant": None}, "_by_kernel"),
        ({"hidden_quant": None, "input_quant": Int8Act}, "_by_kernel"),
        ({"hidden_quant": None, "coupled_input_forget_gates": True}, "_defined"),
        ({"hidden_scale": 2**-7}, "_at_once"),
        ({"hidden_quant": ShiftedUint8Act}, "_at_once"),
        ({"cell_quant": Int16ActPowerOfTwo, "bias_quant": Int32Bias, "input_quant": Int8Act}, "_at_once"),
        ({"hidden_scaling": "statistic"}, "_defined"),
        ({"hidden_rounding": "floor"}, "_defined"),
        ({"hidden_quant": Int8ActPerChannel}, "_defined"),
        ({"gate_quant": Int8Act}, "_defined"),
        ({"sigmoid_quant": Uint8Act}, "_defined"),
        ({"tanh_quant": Int8Act}, "_defined"),
        ({"proj_size": 2}, "_defined"),
    ],
)
def test_which_way_a_layer_goes(monkeypatch, settings, path):
    layer = qnn.QuantLSTM(4, 3, **settings)
    layer(torch.randn(3, 2, 4))  # calibrates
    seen = counting(monkeypatch)
    layer.eval()(torch.randn(3, 2, 4))
    assert seen == [path]


def test_a_forward_counts_once_whatever_its_length():
    layer = qnn.QuantLSTM(
        4, 3, 2, bidirectional=True, cell_quant=Int8Act, gate_quant=Int8Act, tanh_quant=Int8Act, input_quant=Int8Act
    )
    for length in (1, 7, 3):
        layer(torch.randn(length, 2, 4))
    flowing = [quant for quant in qnn.quantizers_of(layer).values() if not quant.of_parameter]
    assert [quant.scaling.steps.item() for quant in flowing] == [3] * 9


def test_what_is_measured_are_all_steps_of_both_directions():
    """ReLU without recurrence: h = max(x, 0) forwards and max(-2 x, 0) backwards."""
    layer = qnn.QuantRNN(1, 1, 1, "relu", bias=False, bidirectional=True, weight_quant=None, hidden_statistic="abs_max")
    with torch.no_grad():
        layer.weight_ih_l0.fill_(1)
        layer.weight_ih_l0_reverse.fill_(-2)
        layer.weight_hh_l0.zero_()
        layer.weight_hh_l0_reverse.zero_()
    out, _ = layer(torch.tensor([[[1.0]], [[-1.28]], [[0.5]]]))
    assert layer.hidden_l0_quant.scale().item() == pytest.approx(2.56 / 128)
    assert out[1].tolist() == [[0.0, pytest.approx(2.54)]]
    assert layer.hidden_l0_quant.scaling.steps.item() == 1


def test_training_and_evaluation_agree_while_ranges_are_calibrated():
    torch.manual_seed(0)
    layer, x = qnn.QuantGRU(4, 3, 2), torch.randn(5, 2, 4)
    trained = layer(x)
    close(layer.eval()(x), trained)


def test_without_data_evaluation_uses_one_range_for_all_steps():
    torch.manual_seed(0)
    layer = qnn.QuantGRU(4, 3, return_quant_tensor=True).eval()
    with pytest.warns(UncalibratedWarning, match="hidden_l0_quant is evaluated before it saw any data"):
        out, _ = layer(torch.randn(5, 2, 4))
    assert out.is_valid
    assert out.int().abs().max() >= 127
    assert layer.hidden_l0_quant.scaling.phase == "empty"


def test_a_range_that_was_left_goes_on_being_learned():
    """The first forward after the calibration is one that learns: its scale gets a gradient."""
    layer, x = qnn.QuantLSTM(4, 3, hidden_calibration_steps=1), torch.randn(5, 2, 4)
    offset = layer.hidden_l0_quant.scaling.magnitude_offset
    layer(x)[0].sum().backward()
    assert offset.grad is None
    layer(x)[0].sum().backward()
    assert offset.grad is not None
    assert offset.grad.abs().item() > 0


def test_given_states_are_quantized_and_zeros_are_not():
    layer = qnn.QuantLSTM(4, 3, hidden_scale=0.25, cell_quant=Int8Act, cell_scale=0.5, weight_quant=None)
    x, zero = torch.randn(1, 1, 4), torch.zeros(1, 1, 3)
    close(layer(x, (zero + 0.3, zero + 0.7)), layer(x, (zero + 0.25, zero + 0.5)))
    close(layer(x, (zero, zero)), layer(x))


# Quantized tensors


def test_the_output_carries_the_grid_of_the_hidden_state():
    layer = qnn.QuantGRU(4, 3, 2, bidirectional=True, batch_first=True, hidden_scale=2**-7, return_quant_tensor=True)
    out, h = layer(torch.randn(2, 5, 4))
    assert isinstance(out, QuantTensor)
    assert (out.scale.item(), out.bit_width, out.shape, type(h)) == (2**-7, 8, (2, 5, 6), torch.Tensor)
    assert out.is_valid
    assert out.grid.source == layer.hidden_l1_quant.source
    packed, _ = layer(pack_sequence([torch.randn(3, 4), torch.randn(2, 4)]))
    assert packed.data.scale.item() == 2**-7


def test_scales_for_each_feature_go_to_the_features_of_both_directions():
    layer = qnn.QuantGRU(4, 3, bidirectional=True, hidden_quant=Int8ActPerChannel, return_quant_tensor=True)
    out, _ = layer(torch.randn(5, 2, 4))
    scales = layer.hidden_l0_quant.scale()
    assert scales.shape == (3,)
    assert torch.equal(out.scale.flatten(), torch.cat([scales, scales]))
    assert out.is_valid


def test_a_bias_lies_on_the_grid_of_its_products():
    """Both are multiples of the scales that meet, in the layer above, too."""
    layer = qnn.QuantGRU(
        4, 3, 2, weight_quant=Int8WeightPerTensor, bias_quant=Int32Bias, input_quant=Int8Act, input_scale=0.5,
        hidden_scale=0.25, bidirectional=True,
    )  # fmt: skip
    seen = {}

    def record(path):
        def call(quant, x, *context):
            seen[path] = quant._quantize(x, *context)[1]
            return quant._quantize(x, *context)

        return call

    with qnn.intercepted(qnn.quantizers_of(layer), record):
        layer.eval()(torch.randn(3, 2, 4))
    for suffix in ("_l0", "_l0_reverse", "_l1", "_l1_reverse"):
        of_input = 0.5 if suffix.startswith("_l0") else 0.25
        for part, scale in (("ih", of_input), ("hh", 0.25)):
            weight = seen[f"weight_{part}{suffix}_quant"].scale
            assert seen[f"bias_{part}{suffix}_quant"].scale.item() == pytest.approx(scale * weight.item())


def test_a_quantized_input_brings_the_grid_for_the_bias():
    layer = qnn.QuantLSTM(4, 3, bias_quant=Int32Bias, hidden_scale=0.25)
    x = qnn.QuantIdentity(scale=0.5, return_quant_tensor=True)(torch.randn(3, 2, 4))
    out, _ = layer(x)
    assert out.shape == (3, 2, 3)
    with pytest.raises(
        QuantizerError, match="this bias quantizer needs the scales of input and weight, and the input is"
    ):
        layer(x.value)


# State


@pytest.mark.parametrize("kind", list(KINDS))
def test_keys(kind):
    _, ours = pair(kind, {})
    names = ["weight_ih_l0", "weight_hh_l0", "bias_ih_l0", "bias_hh_l0"]
    scaling = ["magnitude_offset", "magnitude_base", "measured", "steps"]
    quantizers = ["weight_ih_l0_quant.scheme", "weight_hh_l0_quant.scheme"]
    quantizers += [*(f"hidden_l0_quant.scaling.{each}" for each in scaling), "hidden_l0_quant.scheme"]
    assert sorted(ours.state_dict()) == sorted([*names, *quantizers])


@pytest.mark.parametrize("kind", list(KINDS))
def test_a_float_checkpoint_derives_learned_scales(kind):
    torchs, _ = pair(kind, {"num_layers": 2, "bidirectional": True})
    ours = KINDS[kind](4, 3, 2, bidirectional=True, dtype=torch.float64, weight_quant=Int8WeightPerChannelLearned)
    ours(torch.randn(3, 2, 4, dtype=torch.float64))
    ours.load_state_dict(torchs.state_dict(), strict=True)
    ours(torch.randn(3, 2, 4, dtype=torch.float64))
    found = ours.weight_hh_l1_reverse_quant.scale()
    torch.testing.assert_close(found, torchs.weight_hh_l1_reverse.abs().amax(1).to(found.dtype) / 127)


@pytest.mark.parametrize("kind", list(KINDS))
def test_state_comes_back(kind):
    torch.manual_seed(0)
    x = torch.randn(5, 2, 4, dtype=torch.float64)
    _, ours = pair(kind, {"num_layers": 2, "bidirectional": True})
    ours(x)
    ours.eval()
    copies = [copy.deepcopy(ours), pickle.loads(pickle.dumps(ours))]
    other = pair(kind, {"num_layers": 2, "bidirectional": True})[1].eval()
    other.load_state_dict(ours.state_dict())
    for each in (*copies, other):
        assert all(map(torch.equal, tensors(each(x)), tensors(ours(x))))
        each.flatten_parameters()
        assert each._flat_weights[0] is each.weight_ih_l0


@pytest.mark.parametrize("kind", list(KINDS))
def test_a_float_layer_changes_its_class(kind):
    torchs, _ = pair(kind, {"num_layers": 2, "bidirectional": True})
    x = torch.randn(5, 2, 4, dtype=torch.float64)
    expected = torchs(x)
    weights = list(torchs.parameters())
    torchs.__class__ = KINDS[kind]
    torchs._convert({"weight_bit_width": 4, "weight_hh_l0_bit_width": 8, "return_quant_tensor": True}, None, None)
    assert [quant.bit_width for quant in torchs.weight_quant.values()] == [4, 8, *[4] * 6]
    assert all(map(lambda one, other: one is other, weights, torchs.parameters()))
    out, _ = torchs(x)
    assert isinstance(out, QuantTensor)
    assert torchs.hidden_l1_quant.scaling.magnitude_base.dtype is torch.float64
    with qnn.unquantized(torchs):
        close(torchs(x), expected)


def test_frozen_keeps_weights():
    layer, x = qnn.QuantLSTM(4, 3, hidden_scale=2**-7).eval(), torch.randn(5, 2, 4)
    with qnn.frozen(layer), torch.no_grad():
        before = layer(x)
        layer.weight_hh_l0.mul_(2)
        assert all(map(torch.equal, tensors(layer(x)), tensors(before)))
    assert not torch.equal(layer(x)[0], before[0])


def test_one_weight_or_a_family_is_set():
    layer = qnn.QuantLSTM(4, 3)
    layer.weight_quant = Int8WeightPerTensor(bit_width=2)
    layer.weight_hh_l0_quant = None
    assert {name: quant and quant.bit_width for name, quant in layer.weight_quant.items()} == {
        "weight_ih_l0": 2,
        "weight_hh_l0": None,
    }
    assert layer.cell_quant == {"cell_l0": None}


# Around it


@pytest.mark.parametrize("quantizers", [{}, {"cell_quant": Int16ActPowerOfTwo}, {"gate_quant": Int8Act}])
def test_gradient_checkpointing(quantizers):
    """The repeated forward takes the same way, in each phase of the calibration, and measures nothing."""
    torch.manual_seed(0)
    layer = qnn.QuantLSTM(4, 3, hidden_calibration_steps=2, **quantizers)
    twin, x = copy.deepcopy(layer), torch.randn(5, 2, 4, requires_grad=True)
    for step in range(4):
        grads = []
        for module, run in ((layer, lambda m, x: m(x)), (twin, lambda m, x: checkpoint(m, x, use_reentrant=False))):
            x.grad = None
            module.zero_grad()
            run(module, x)[0].square().sum().backward()
            grads.append([x.grad, *(each.grad for each in module.parameters() if each.grad is not None)])
        assert all(map(torch.equal, *grads))
        assert twin.hidden_l0_quant.scaling.steps.item() == min(step + 1, 2)


@pytest.mark.parametrize("kind", list(KINDS))
def test_second_derivatives_are_right(kind):
    _, ours = pair(kind, {}, weight_quant=None, hidden_scaling="constant", hidden_scale=2**-20, hidden_bit_width=22)
    x = torch.randn(3, 2, 4, dtype=torch.float64, requires_grad=True)

    def gradient(x):
        return torch.autograd.grad(ours(x)[0].square().sum(), x, create_graph=True)[0]

    (second,) = torch.autograd.grad(gradient(x).square().sum(), x)
    with qnn.unquantized(ours):
        (expected,) = torch.autograd.grad(gradient(x).square().sum(), x)
    torch.testing.assert_close(second, expected, rtol=1e-3, atol=1e-4)


@pytest.mark.parametrize("gates", [{}, {"gate_quant": Int8Act, "gate_scale": 2**-10, "gate_bit_width": 16}])
def test_autocast_computes_in_the_type_of_the_weights(gates):
    layer, x = qnn.QuantGRU(4, 3, hidden_scale=2**-7, **gates), torch.randn(5, 2, 4)
    expected = layer(x)
    with torch.autocast("cpu", dtype=torch.bfloat16):
        assert all(map(torch.equal, tensors(layer(x)), tensors(expected)))
        assert layer(x.bfloat16())[0].dtype is torch.float32


@pytest.mark.parametrize("kind", list(KINDS))
@pytest.mark.parametrize("quantizers", [{}, {"gate_quant": Int8Act}])
def test_half_precision(kind, quantizers):
    torch.manual_seed(0)
    layer, x = KINDS[kind](4, 3, **quantizers), torch.randn(5, 2, 4)
    layer(x)
    expected, _ = layer.eval()(x)
    out, _ = layer.bfloat16()(x.bfloat16())
    assert out.dtype is torch.bfloat16
    assert (out.float() - expected).abs().max() < 0.1


def test_mapped_by_torch_func():
    layer, x = qnn.QuantLSTM(4, 3, hidden_scale=2**-7).eval(), torch.randn(6, 5, 4)
    mapped = torch.func.vmap(lambda x: layer(x)[0])(x)
    alone = torch.stack([layer(each)[0] for each in x])
    torch.testing.assert_close(mapped, alone, rtol=0, atol=1e-6)


def test_dropout_between_layers_is_for_training_only():
    torch.manual_seed(0)
    layer, x = qnn.QuantGRU(4, 8, 2, dropout=0.5, hidden_scale=2**-7), torch.randn(5, 2, 4)
    one, other = layer(x)[0], layer(x)[0]
    assert not torch.equal(one, other)
    assert torch.equal(layer.eval()(x)[0], layer(x)[0])


@pytest.mark.slow
@pytest.mark.parametrize(
    "settings",
    [{"hidden_quant": None}, {"cell_quant": Int16ActPowerOfTwo, "bidirectional": True}, {"gate_quant": Int8Act}],
)
def test_compiled_is_eager(settings):
    """From the first step of the calibration on."""
    torch._dynamo.reset()
    torch.manual_seed(0)
    calibration = {} if settings.get("hidden_quant", Int8Act) is None else {"hidden_calibration_steps": 2}
    layer = qnn.QuantLSTM(4, 3, **settings, **calibration)
    twin = copy.deepcopy(layer)
    compiled: Any = torch.compile(twin, fullgraph=True, backend="aot_eager")
    x = torch.randn(3, 2, 4)
    for _ in range(4):
        close(compiled(x), layer(x), atol=1e-6)
        x = torch.randn(3, 2, 4)
    close(compiled.eval()(x), layer.eval()(x), atol=1e-6)
    for one, other in zip(twin.state_dict().values(), layer.state_dict().values(), strict=True):
        torch.testing.assert_close(one, other)


# Mistakes


def says(text):
    return re.escape(text) + "$"


@pytest.mark.parametrize(
    ("make", "said"),
    [
        (
            lambda: qnn.QuantLSTM(4, 3, bias=False, bias_quant=Int32Bias),
            "QuantLSTM(4, 3, bias=False): bias_quant=Int32Bias is given, but there is no bias. Write bias=True, or "
            "leave bias_quant out.",
        ),
        (
            lambda: qnn.QuantLSTM(4, 3, projection_quant=Int8Act),
            "QuantLSTM(4, 3): projection_quant=Int8Act is given, but there is no projection. Write proj_size=..., or "
            "leave projection_quant out.",
        ),
        (
            lambda: qnn.QuantGRU(4, 3, hidden_quant=None, return_quant_tensor=True),
            "QuantGRU(4, 3): return_quant_tensor=True needs outputs on one grid, that of hidden_l0_quant, which is "
            "None. Write hidden_quant=Int8Act.",
        ),
        (
            lambda: qnn.QuantGRU(4, 3, hidden_scaling="statistic", return_quant_tensor=True),
            "QuantGRU(4, 3): return_quant_tensor=True needs outputs on one grid, that of hidden_l0_quant, and that "
            "of each step has a scale of its own. Write hidden_quant=Int8Act.",
        ),
        (
            lambda: qnn.QuantRNN(4, 3, bias_quant=Int32Bias, hidden_quant=None, input_quant=Int8Act),
            "QuantRNN(4, 3): the scale of bias_hh_l0_quant follows those of hidden_l0_quant and weight_hh_l0_quant, "
            "and hidden_l0_quant is None. Write hidden_quant=Int8Act, or choose a bias with a scale of its own: "
            "bias_quant=Int8BiasOwnScale.",
        ),
        (
            lambda: qnn.QuantRNN(4, 3, bias_quant=Int32Bias, hidden_scaling="statistic"),
            "QuantRNN(4, 3): the scale of bias_hh_l0_quant follows those of hidden_l0_quant and weight_hh_l0_quant, "
            "and hidden_l0_quant has another scale at each step. Write hidden_quant=Int8Act, or choose a bias with a "
            "scale of its own: bias_quant=Int8BiasOwnScale.",
        ),
        (
            lambda: qnn.QuantRNN(4, 3, bias_quant=Int32Bias, weight_quant=Int8WeightPerTensor, weight_axis=1),
            "QuantRNN(4, 3): the scale of bias_ih_l0_quant follows those of input_quant and weight_ih_l0_quant, and "
            "the products that one output sums have several scales. Write weight_quant=Int8WeightPerChannel, or choose "
            "a bias with a scale of its own: bias_quant=Int8BiasOwnScale.",
        ),
        (
            lambda: qnn.QuantGRU(4, 3, hidden_axis=0),
            "QuantGRU(4, 3): hidden_l0_axis=0 would give each sequence of a batch a scale of its own. Write "
            "hidden_l0_axis=1 for one scale for each feature, or hidden_l0_axis=None for one scale.",
        ),
        (
            lambda: qnn.QuantGRU(4, 3, input_quant=Int8ActPerChannel),
            "QuantGRU(4, 3): input_axis=1 would give each part of the input a scale of its own. Write input_axis=-1 "
            "for one scale for each feature, or input_axis=None for one scale.",
        ),
        (
            lambda: qnn.QuantGRU(4, 3, cell_bit_width=8),
            "QuantGRU(4, 3): cell_bit_width=8 is for no quantizer of this layer: keywords start with one of weight_, "
            "bias_, input_, gate_, sigmoid_, tanh_, hidden_. Did you mean weight_bit_width=8?",
        ),
        (
            lambda: qnn.QuantLSTM(4, 3, cell_bit_width=8),
            "QuantLSTM(4, 3): cell_bit_width=8 is given, but cell_quant is None. Write cell_quant=Int8Act too, or "
            "leave cell_bit_width out.",
        ),
    ],
)
def test_impossible_declarations(make, said):
    with pytest.raises(QuantizerError, match=says(said)):
        make()


def test_a_float_layer_has_no_coupled_gates():
    layer = nn.LSTM(4, 3)
    layer.__class__ = qnn.QuantLSTM
    said = (
        "QuantLSTM(4, 3): coupled_input_forget_gates=True needs weights without rows for the forget gate, and those of "
        "a float LSTM have them. Build a QuantLSTM with it, and train that."
    )
    with pytest.raises(QuantizerError, match=says(said)):
        layer._convert({"coupled_input_forget_gates": True}, None, None)


def test_nonlinearities():
    said = "QuantRNN: nonlinearity='sigmoid' is not possible: expected 'tanh' or 'relu'."
    with pytest.raises(ValueError, match=says(said)):
        qnn.QuantRNN(4, 3, nonlinearity="sigmoid")


ROWS = torch.zeros(5, 2, 4)


@pytest.mark.parametrize(
    ("error", "args", "said"),
    [
        (ValueError, (torch.zeros(4),), "1: the input has 1 dimensions, expected 2 or 3."),
        (RuntimeError, (torch.zeros(5, 2, 3),), "1: the input has 3 features, expected input_size=4."),
        (RuntimeError, (torch.zeros(0, 2, 4),), "1: the input has no steps, expected one or more."),
        (
            ValueError,
            (ROWS.double(),),
            "1: the input is torch.float64, and the weights are torch.float32. Write x.to(torch.float32), or "
            "model.to(torch.float64).",
        ),
        (ValueError, (ROWS, torch.zeros(1, 2, 3)), "1: hx is a pair of states, (h, c)."),
        (
            RuntimeError,
            (ROWS, (torch.zeros(1, 2, 3), torch.zeros(1, 3, 3))),
            "1: the cell state has the shape (1, 3, 3), expected (1, 2, 3).",
        ),
        (
            RuntimeError,
            (torch.zeros(5, 4), (torch.zeros(1, 2, 3), torch.zeros(1, 3))),
            "1: the hidden state has the shape (1, 2, 3), expected (1, 3).",
        ),
        (
            QuantizerError,
            (torch.nested.nested_tensor([torch.zeros(3, 4), torch.zeros(2, 4)], layout=torch.jagged),),
            "1: the input is a nested tensor, which recurrent layers don't take. Pad it, x.to_padded_tensor(0.0), or "
            "pack it, torch.nn.utils.rnn.pack_sequence(x.unbind()).",
        ),
    ],
)
def test_wrong_inputs(error, args, said):
    class Model(nn.Sequential):
        def forward(self, input, *args):  # noqa: A002 - torch's name for it
            return self[1](input, *args)

    with pytest.raises(error, match=says(said)):
        Model(nn.Identity(), qnn.QuantLSTM(4, 3))(*args)


def test_a_failed_forward_measures_nothing():
    """And leaves no loop open, in which later inputs would not count."""
    layer = qnn.QuantGRU(4, 3)

    def fail(path):
        def call(quant, x, *context):
            raise RuntimeError("stop")

        return call

    with qnn.intercepted({"hidden_l0_quant": layer.hidden_l0_quant}, fail), pytest.raises(RuntimeError, match="stop"):
        layer(torch.randn(3, 2, 4))
    assert layer.hidden_l0_quant.scaling.phase == "empty"
    layer(torch.randn(3, 2, 4))
    assert layer.hidden_l0_quant.scaling.steps.item() == 1
