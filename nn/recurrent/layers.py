"""Quantized LSTM, GRU and simple recurrent layers."""

from collections.abc import Mapping, Sequence
from typing import Any

import torch
from torch import _VF, Tensor, nn
from torch.types import Device

from ...qcore import QuantizerError
from ...quantizers import Int8Act, Int8WeightPerChannel
from ..layer import Family
from ..slots import Described, QuantizerLike, checked_flag
from . import sequence
from .base import families
from .measuring import Quantizers
from .recurrent_layer import RecurrentLayer, Weights
from .scan import Tensors
from .sequence import Steps
from .steps import GRUStep, LSTMStep, RecurrentStep, RNNStep, Sites

__all__ = ["QuantGRU", "QuantLSTM", "QuantRNN"]


class QuantLSTM(RecurrentLayer):
    """`torch.nn.LSTM` with quantized weights and states.

    Positional arguments are torch's, and so are inputs and outputs: tensors with or without a batch, packed sequences,
    ``(h, c)``. `RecurrentLayer` documents the keyword-only arguments that are not listed here. It is no subclass of
    `torch.nn.LSTM`, which `torch.compile` would refuse.

    Args:
        cell_quant: quantizer of the cell state, or None. Give it 16 bits: 8 lose more than all else together.
        sigmoid_quant: quantizer of what the sigmoids give, or None.
        tanh_quant: quantizer of what the tanhs give, or None.
        projection_quant: quantizer of the hidden state before its projection, or None; with ``proj_size``.
        coupled_input_forget_gates: forget what the input gate lets in: f = 1 - i. The weights have no rows for f, three
            blocks for i, g, o.

    Raises:
        QuantizerError: an unused or impossible setting.

    Example:
        >>> from bitwright.quantizers import Int16ActPowerOfTwo
        >>> layer = QuantLSTM(4, 3, cell_quant=Int16ActPowerOfTwo, weight_bit_width=4)
        >>> out, (h, c) = layer(torch.randn(5, 2, 4))
        >>> out.shape, c.shape, layer.cell_l0_quant.bit_width
        (torch.Size([5, 2, 3]), torch.Size([1, 2, 3]), 16)
    """

    _kind = LSTMStep
    stands_for = nn.LSTM
    slots = families(LSTMStep.slots, "weight_ih_l0", "bias_ih_l0")
    cell_quant = Family()
    sigmoid_quant = Family()
    tanh_quant = Family()
    projection_quant = Family()
    coupled_input_forget_gates: bool = False

    def __init__(
        self,
        input_size: int,
        hidden_size: int,
        num_layers: int = 1,
        bias: bool = True,
        batch_first: bool = False,
        dropout: float = 0.0,
        bidirectional: bool = False,
        proj_size: int = 0,
        device: Device = None,
        dtype: torch.dtype | None = None,
        *,
        weight_quant: QuantizerLike = Int8WeightPerChannel,
        bias_quant: QuantizerLike = None,
        input_quant: QuantizerLike = None,
        hidden_quant: QuantizerLike = Int8Act,
        cell_quant: QuantizerLike = None,
        gate_quant: QuantizerLike = None,
        sigmoid_quant: QuantizerLike = None,
        tanh_quant: QuantizerLike = None,
        projection_quant: QuantizerLike = None,
        coupled_input_forget_gates: bool = False,
        return_quant_tensor: bool = False,
        **overrides: object,
    ) -> None:
        nn.RNNBase.__init__(
            self,
            "LSTM",
            input_size,
            hidden_size,
            num_layers,
            checked_flag(self, "bias", bias),
            batch_first,
            dropout,
            bidirectional,
            proj_size,
            device,
            dtype,
        )
        coupled = checked_flag(self, "coupled_input_forget_gates", coupled_input_forget_gates)
        self.coupled_input_forget_gates = coupled
        if coupled:
            self._drop_forget_gates()
        self._attach(
            {
                "weight_quant": weight_quant,
                "bias_quant": bias_quant,
                "input_quant": input_quant,
                "hidden_quant": hidden_quant,
                "cell_quant": cell_quant,
                "gate_quant": gate_quant,
                "sigmoid_quant": sigmoid_quant,
                "tanh_quant": tanh_quant,
                "projection_quant": projection_quant,
                "return_quant_tensor": return_quant_tensor,
                **overrides,
            }
        )

    def _drop_forget_gates(self) -> None:
        """Keep the rows of i, g and o."""
        size = self.hidden_size
        for name, parameter in list(self.named_parameters(recurse=False)):
            if not name.startswith("weight_hr"):
                i, _, g, o = parameter.detach().split(size)
                setattr(self, name, nn.Parameter(torch.cat([i, g, o])))
        self._init_flat_weights()

    def _prepared(self, given: Mapping[str, object]) -> dict[str, object]:
        rest = dict(given)
        if rest.pop("coupled_input_forget_gates", False):
            raise QuantizerError(
                f"{Described(self)}: coupled_input_forget_gates=True needs weights without rows for the forget gate, "
                "and those of a float LSTM have them. Build a QuantLSTM with it, and train that."
            )
        return super()._prepared(rest)

    def _sites(self) -> tuple[str, ...]:
        return tuple(slot for slot in self._kind.slots if slot != "projection" or self.proj_size)

    def _step(self, sites: Sites) -> RecurrentStep:
        return LSTMStep(sites, self.bias, self.proj_size > 0, self.coupled_input_forget_gates)

    def _has_kernel(self) -> bool:
        return super()._has_kernel() and not self.coupled_input_forget_gates

    def _kernel(self, *args: Any) -> Sequence[Tensor]:
        return _VF.lstm(*args)

    def _has_sequence(self, inside: Quantizers) -> bool:
        return super()._has_sequence(inside) and not self.coupled_input_forget_gates

    def _sequence(
        self,
        x: Tensor,
        sizes: list[int] | None,
        states: Tensors,
        weights: Weights,
        steps: Mapping[str, Steps],
        reverse: bool,
    ) -> Tensors:
        h, c = states
        return sequence.lstm(x, sizes, h, c, weights, steps.get("hidden"), steps.get("cell"), reverse)

    def extra_repr(self) -> str:
        extra = super().extra_repr()
        return f"{extra}, coupled_input_forget_gates=True" if self.coupled_input_forget_gates else extra


class QuantGRU(RecurrentLayer):
    """`torch.nn.GRU` with quantized weights and states.

    Positional arguments are torch's, and so are inputs and outputs. `RecurrentLayer` documents the keyword-only
    arguments that are not listed here. It is no subclass of `torch.nn.GRU`, which `torch.compile` would refuse.

    Args:
        sigmoid_quant: quantizer of what the sigmoids give, or None.
        tanh_quant: quantizer of what tanh gives, or None.

    Raises:
        QuantizerError: an unused or impossible setting.

    Example:
        >>> layer = QuantGRU(4, 3, batch_first=True, hidden_scale=2**-7, return_quant_tensor=True)
        >>> out, h = layer(torch.randn(2, 5, 4))
        >>> out.scale, out.shape
        (tensor(0.0078), torch.Size([2, 5, 3]))
    """

    _kind = GRUStep
    stands_for = nn.GRU
    slots = families(GRUStep.slots, "weight_ih_l0", "bias_ih_l0")
    sigmoid_quant = Family()
    tanh_quant = Family()

    def __init__(
        self,
        input_size: int,
        hidden_size: int,
        num_layers: int = 1,
        bias: bool = True,
        batch_first: bool = False,
        dropout: float = 0.0,
        bidirectional: bool = False,
        device: Device = None,
        dtype: torch.dtype | None = None,
        *,
        weight_quant: QuantizerLike = Int8WeightPerChannel,
        bias_quant: QuantizerLike = None,
        input_quant: QuantizerLike = None,
        hidden_quant: QuantizerLike = Int8Act,
        gate_quant: QuantizerLike = None,
        sigmoid_quant: QuantizerLike = None,
        tanh_quant: QuantizerLike = None,
        return_quant_tensor: bool = False,
        **overrides: object,
    ) -> None:
        nn.RNNBase.__init__(
            self,
            "GRU",
            input_size,
            hidden_size,
            num_layers,
            checked_flag(self, "bias", bias),
            batch_first,
            dropout,
            bidirectional,
            device=device,
            dtype=dtype,
        )
        self._attach(
            {
                "weight_quant": weight_quant,
                "bias_quant": bias_quant,
                "input_quant": input_quant,
                "hidden_quant": hidden_quant,
                "gate_quant": gate_quant,
                "sigmoid_quant": sigmoid_quant,
                "tanh_quant": tanh_quant,
                "return_quant_tensor": return_quant_tensor,
                **overrides,
            }
        )

    def _kernel(self, *args: Any) -> Sequence[Tensor]:
        return _VF.gru(*args)

    def _sequence(
        self,
        x: Tensor,
        sizes: list[int] | None,
        states: Tensors,
        weights: Weights,
        steps: Mapping[str, Steps],
        reverse: bool,
    ) -> Tensors:
        (h,) = states
        return sequence.gru(x, sizes, h, weights, steps.get("hidden"), reverse)


class QuantRNN(RecurrentLayer):
    """`torch.nn.RNN` with quantized weights and states: a simple recurrent layer with tanh or ReLU.

    Positional arguments are torch's, and so are inputs and outputs. `RecurrentLayer` documents the keyword-only
    arguments. It is no subclass of `torch.nn.RNN`, which `torch.compile` would refuse.

    Raises:
        QuantizerError: an unused or impossible setting.

    Example:
        >>> layer = QuantRNN(4, 3, 1, "relu", weight_bit_width=4)
        >>> out, h = layer(torch.randn(5, 2, 4))
        >>> out.shape, h.shape
        (torch.Size([5, 2, 3]), torch.Size([1, 2, 3]))
    """

    _kind = RNNStep
    stands_for = nn.RNN
    slots = families(RNNStep.slots, "weight_ih_l0", "bias_ih_l0")

    def __init__(
        self,
        input_size: int,
        hidden_size: int,
        num_layers: int = 1,
        nonlinearity: str = "tanh",
        bias: bool = True,
        batch_first: bool = False,
        dropout: float = 0.0,
        bidirectional: bool = False,
        device: Device = None,
        dtype: torch.dtype | None = None,
        *,
        weight_quant: QuantizerLike = Int8WeightPerChannel,
        bias_quant: QuantizerLike = None,
        input_quant: QuantizerLike = None,
        hidden_quant: QuantizerLike = Int8Act,
        gate_quant: QuantizerLike = None,
        return_quant_tensor: bool = False,
        **overrides: object,
    ) -> None:
        if nonlinearity not in ("tanh", "relu"):
            raise ValueError(f"QuantRNN: nonlinearity={nonlinearity!r} is not possible: expected 'tanh' or 'relu'.")
        nn.RNNBase.__init__(
            self,
            f"RNN_{nonlinearity.upper()}",
            input_size,
            hidden_size,
            num_layers,
            checked_flag(self, "bias", bias),
            batch_first,
            dropout,
            bidirectional,
            device=device,
            dtype=dtype,
        )
        self.nonlinearity = nonlinearity
        self._attach(
            {
                "weight_quant": weight_quant,
                "bias_quant": bias_quant,
                "input_quant": input_quant,
                "hidden_quant": hidden_quant,
                "gate_quant": gate_quant,
                "return_quant_tensor": return_quant_tensor,
                **overrides,
            }
        )

    def _step(self, sites: Sites) -> RecurrentStep:
        return RNNStep(sites, self.bias, self.nonlinearity)

    def _kernel(self, *args: Any) -> Sequence[Tensor]:
        return _VF.rnn_tanh(*args) if self.nonlinearity == "tanh" else _VF.rnn_relu(*args)

    def _sequence(
        self,
        x: Tensor,
        sizes: list[int] | None,
        states: Tensors,
        weights: Weights,
        steps: Mapping[str, Steps],
        reverse: bool,
    ) -> Tensors:
        (h,) = states
        return sequence.rnn(x, sizes, h, weights, steps.get("hidden"), self.nonlinearity, reverse)
