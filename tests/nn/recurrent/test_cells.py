"""Recurrent cells: torch's without quantizers, a layer's step with them."""

import copy
import pickle
import re

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch import nn

import bitwright.nn as qnn
from bitwright.qcore import QuantizerError, QuantTensor
from bitwright.quantizers import Int8Act, Int8ActPerChannel, Int16ActPowerOfTwo, Int32Bias, Uint8Act

KINDS = {nn.LSTMCell: qnn.QuantLSTMCell, nn.GRUCell: qnn.QuantGRUCell, nn.RNNCell: qnn.QuantRNNCell}
LAYERS = {nn.LSTMCell: qnn.QuantLSTM, nn.GRUCell: qnn.QuantGRU, nn.RNNCell: qnn.QuantRNN}


def states_of(result):
    return result if isinstance(result, tuple) else (result,)


@st.composite
def calls(draw):
    kind = draw(st.sampled_from(list(KINDS)))
    arguments = {"bias": draw(st.booleans())}
    if kind is nn.RNNCell:
        arguments["nonlinearity"] = draw(st.sampled_from(["tanh", "relu"]))
    generator = torch.Generator().manual_seed(draw(st.integers(0, 99)))
    lead = draw(st.sampled_from([(), (1,), (3,)]))
    x, *states = (torch.randn(*lead, size, generator=generator, dtype=torch.float64) for size in (4, 3, 3))
    hx = None
    if draw(st.booleans()):
        hx = tuple(states) if kind is nn.LSTMCell else states[0]
    return kind, arguments, x, hx


def pair(kind, arguments, **quantizers):
    torch.manual_seed(0)
    torchs = kind(4, 3, **arguments, dtype=torch.float64)
    ours = KINDS[kind](4, 3, **arguments, dtype=torch.float64, **quantizers)
    ours.load_state_dict(torchs.state_dict(), strict=True)
    return torchs, ours


@given(calls())
def test_without_quantizers_it_is_torchs_to_the_bit(call):
    kind, arguments, x, hx = call
    torchs, ours = pair(kind, arguments, weight_quant=None, hidden_quant=None)
    found, expected = (states_of(each(x, hx)) for each in (ours, torchs))
    assert len(found) == len(expected)
    assert all(map(torch.equal, found, expected))


@given(calls())
def test_the_step_is_torchs_where_quantizers_let_pass(call):
    kind, arguments, x, hx = call
    torchs, ours = pair(kind, arguments)
    with qnn.unquantized(ours.eval()):
        for one, other in zip(states_of(ours(x, hx)), states_of(torchs(x, hx)), strict=True):
            torch.testing.assert_close(one, other, rtol=0, atol=1e-12)


@pytest.mark.parametrize("kind", list(KINDS))
def test_a_loop_over_a_cell_is_the_layer(kind):
    cell_quant = {"cell_quant": Int16ActPowerOfTwo, "cell_scale": 2**-12} if kind is nn.LSTMCell else {}
    given = {"hidden_scale": 2**-7, "input_quant": Int8Act, "input_scale": 2**-5, "bias_quant": Int32Bias, **cell_quant}
    _, cell = pair(kind, {}, **given)
    layer = LAYERS[kind](4, 3, dtype=torch.float64, **given)
    layer.load_state_dict({f"{name}_l0": each for name, each in cell.named_parameters(recurse=False)}, strict=False)
    x = torch.randn(5, 2, 4, dtype=torch.float64)
    out, ends = layer.eval()(x)
    states = None
    for step in range(5):
        states = cell.eval()(x[step], states)
        torch.testing.assert_close(states_of(states)[0], out[step], rtol=0, atol=1e-12)
    for one, other in zip(states_of(states), states_of(ends), strict=True):
        torch.testing.assert_close(one, other[0], rtol=0, atol=1e-12)


def test_every_call_counts():
    cell = qnn.QuantLSTMCell(4, 3, tanh_quant=Int8Act, sigmoid_quant=Uint8Act, cell_quant=Int8Act, gate_quant=Int8Act)
    states = None
    for _ in range(3):
        states = cell(torch.randn(2, 4), states)
    flowing = [quant for quant in qnn.quantizers_of(cell).values() if not quant.of_parameter]
    assert [quant.scaling.steps.item() for quant in flowing] == [3] * 5


def test_the_hidden_state_carries_its_grid():
    cell = qnn.QuantLSTMCell(4, 3, hidden_scale=2**-7, return_quant_tensor=True)
    h, c = cell(torch.randn(2, 4))
    assert (h.scale.item(), type(c)) == (2**-7, torch.Tensor)
    assert torch.equal(cell(torch.zeros(2, 4), (h, c))[0].value, cell(torch.zeros(2, 4), (h.value, c))[0].value)
    alone = qnn.QuantGRUCell(4, 3, hidden_quant=Int8ActPerChannel, return_quant_tensor=True)
    found = alone(torch.randn(4))
    assert isinstance(found, QuantTensor)
    assert (found.shape, found.scale.shape) == ((3,), (3,))


@pytest.mark.parametrize("kind", list(KINDS))
def test_state_comes_back(kind):
    _, cell = pair(kind, {})
    x = torch.randn(2, 4, dtype=torch.float64)
    cell(x)
    cell.eval()
    for each in (copy.deepcopy(cell), pickle.loads(pickle.dumps(cell))):
        assert all(map(torch.equal, states_of(each(x)), states_of(cell(x))))


@pytest.mark.parametrize("kind", list(KINDS))
def test_a_float_cell_changes_its_class(kind):
    torchs, _ = pair(kind, {})
    torchs.__class__ = KINDS[kind]
    torchs._convert({"weight_bit_width": 4, "weight_hh_bit_width": 8}, None, None)
    assert {name: quant.bit_width for name, quant in torchs.weight_quant.items()} == {"weight_ih": 4, "weight_hh": 8}
    assert states_of(torchs(torch.randn(2, 4, dtype=torch.float64)))[0].shape == (2, 3)


@pytest.mark.parametrize("kind", ["QuantGRU", "QuantRNN", "QuantGRUCell", "QuantRNNCell"])
def test_a_pair_of_states_is_refused_where_there_is_one(kind):
    layer = getattr(qnn, kind)(4, 3)
    with pytest.raises(ValueError, match=re.escape(f"{kind}: hx is one state, a tensor, and not a tuple.")):
        layer(torch.zeros(2, 4), (torch.zeros(1, 3), torch.zeros(1, 3)))


@pytest.mark.parametrize(
    ("error", "args", "said"),
    [
        (ValueError, (torch.zeros(5, 2, 4),), "1: the input has 3 dimensions, expected 1 or 2."),
        (RuntimeError, (torch.zeros(2, 3),), "1: the input has 3 features, expected input_size=4."),
        (ValueError, (torch.zeros(2, 4), torch.zeros(2, 3)), "1: hx is a pair of states, (h, c)."),
        (
            RuntimeError,
            (torch.zeros(2, 4), (torch.zeros(2, 3), torch.zeros(3, 3))),
            "1: the cell state has the shape (3, 3), expected (2, 3).",
        ),
        (
            RuntimeError,
            (torch.zeros(4), (torch.zeros(2, 3), torch.zeros(3))),
            "1: the hidden state has the shape (2, 3), expected (3,).",
        ),
        (
            QuantizerError,
            (torch.nested.nested_tensor([torch.zeros(3), torch.zeros(2)], layout=torch.jagged),),
            "1: the input is a nested tensor, which recurrent layers don't take. Pad it, x.to_padded_tensor(0.0).",
        ),
    ],
)
def test_wrong_inputs(error, args, said):
    class Model(nn.Sequential):
        def forward(self, input, *args):  # noqa: A002 - torch's name for it
            return self[1](input, *args)

    with pytest.raises(error, match=re.escape(said) + "$"):
        Model(nn.Identity(), qnn.QuantLSTMCell(4, 3))(*args)


@pytest.mark.parametrize(
    ("make", "said"),
    [
        (
            lambda: qnn.QuantGRUCell(4, 3, hidden_quant=None, return_quant_tensor=True),
            "QuantGRUCell(4, 3): return_quant_tensor=True needs outputs on one grid, that of hidden_quant, which is "
            "None. Write hidden_quant=Int8Act.",
        ),
        (
            lambda: qnn.QuantGRUCell(4, 3, False, bias_quant=Int32Bias),
            "QuantGRUCell(4, 3, bias=False): bias_quant=Int32Bias is given, but there is no bias. Write bias=True, or "
            "leave bias_quant out.",
        ),
        (
            lambda: qnn.QuantLSTMCell(4, 3, projection_bit_width=4),
            "QuantLSTMCell(4, 3): projection_bit_width=4 is for no quantizer of this layer: keywords start with one of "
            "weight_, bias_, input_, gate_, sigmoid_, tanh_, cell_, hidden_. Did you mean weight_bit_width=4?",
        ),
    ],
)
def test_impossible_declarations(make, said):
    with pytest.raises(QuantizerError, match=re.escape(said) + "$"):
        make()


def test_nonlinearities():
    said = "QuantRNNCell: nonlinearity='sigmoid' is not possible: expected 'tanh' or 'relu'."
    with pytest.raises(ValueError, match=re.escape(said) + "$"):
        qnn.QuantRNNCell(4, 3, nonlinearity="sigmoid")
