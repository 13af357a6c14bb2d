"""What is peculiar to one kind of recurrent layer."""

import pytest
import torch
from torch import nn

import bitwright.nn as qnn
from bitwright.quantizers import Int8Act, Int16ActPowerOfTwo, Uint8Act


def test_coupled_gates_are_an_lstm_whose_forget_gate_mirrors_the_input_gate():
    """sigmoid(-x) = 1 - sigmoid(x): torch's LSTM with f's rows the negative of i's."""
    torch.manual_seed(0)
    coupled = qnn.QuantLSTM(
        4, 3, 2, bidirectional=True, coupled_input_forget_gates=True, weight_quant=None, hidden_quant=None,
        dtype=torch.float64,
    )  # fmt: skip
    plain = nn.LSTM(4, 3, 2, bidirectional=True, dtype=torch.float64)
    state = {}
    for name, each in coupled.state_dict().items():
        i, g, o = each.split(3)
        state[name] = torch.cat([i, -i, g, o])
    plain.load_state_dict(state)
    assert coupled.weight_hh_l0.shape == (9, 3)
    x = torch.randn(5, 2, 4, dtype=torch.float64)
    for one, other in zip((coupled(x)[0], *coupled(x)[1]), (plain(x)[0], *plain(x)[1]), strict=True):
        torch.testing.assert_close(one, other, rtol=0, atol=1e-12)
    coupled.flatten_parameters()
    assert "coupled_input_forget_gates=True" in repr(coupled)


def test_every_tensor_of_a_step_lies_on_the_grid_of_its_slot():
    seen = {}

    def record(path):
        def call(quant, x, *context):
            values, grid = quant._quantize(x, *context)
            if not quant.of_parameter:
                seen.setdefault(path, set()).update((values / grid.scale).flatten().tolist())
            return values, grid

        return call

    layer = qnn.QuantLSTM(
        4, 3, proj_size=2, input_quant=Int8Act, cell_quant=Int16ActPowerOfTwo, gate_quant=Int8Act,
        sigmoid_quant=Uint8Act, tanh_quant=Int8Act, projection_quant=Int8Act, dtype=torch.float64,
    )  # fmt: skip
    x = torch.randn(5, 2, 4, dtype=torch.float64)
    layer(x)
    with qnn.intercepted(qnn.quantizers_of(layer), record):
        layer.eval()(x)
    inside = ("gate", "sigmoid", "tanh", "cell", "projection", "hidden")
    assert set(seen) == {"input_quant", *(f"{slot}_l0_quant" for slot in inside)}
    for codes in seen.values():
        assert all(abs(code - round(code)) < 1e-9 for code in codes)
        assert len(codes) > 5
    assert min(seen["sigmoid_l0_quant"]) >= 0


@pytest.mark.parametrize(("bits", "most"), [(16, 2e-3), (4, None)])
def test_a_cell_of_16_bits_is_hardly_seen(bits, most):
    torch.manual_seed(0)
    layer = qnn.QuantLSTM(
        4, 8, cell_quant=Int16ActPowerOfTwo, cell_bit_width=bits, hidden_quant=None, weight_quant=None
    )
    x = torch.randn(20, 2, 4)
    layer(x)
    error = (layer.eval()(x)[0] - nn.LSTM.forward(_float_twin(layer), x)[0]).abs().max().item()
    assert error < most if most else error > 2e-3


def _float_twin(layer):
    twin = nn.LSTM(4, 8)
    twin.load_state_dict({name: each for name, each in layer.state_dict().items() if "_quant." not in name})
    return twin
