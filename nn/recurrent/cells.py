"""Quantized cells: recurrent layers of one step, whose loop the user writes."""

from collections.abc import Sequence
from typing import Any, ClassVar

import torch
import torch.nn.functional as F
from torch import _VF, Tensor, nn
from torch.types import Device

from ...qcore import Grid, QuantizerError, QuantTensor, grid_of, path_of, values_of
from ...qcore.tracing import exporting
from ...quantizers import Int8Act, Int8WeightPerChannel
from ..layer import Family
from ..slots import QuantizerLike, Slot, checked_flag
from .base import Recurrent, families
from .measuring import measured_once, quantizing
from .scan import Tensors
from .steps import GRUStep, LSTMStep, RecurrentStep, RNNStep, Sites

__all__ = ["QuantGRUCell", "QuantLSTMCell", "QuantRNNCell", "RecurrentCell"]


class RecurrentCell(Recurrent):
    """What `QuantLSTMCell`, `QuantGRUCell` and `QuantRNNCell` share: everything but what a step computes.

    Each call is a forward of its own: one that counts, while ranges are calibrated. Keyword arguments of every cell,
    besides torch's own:

    Args:
        weight_quant: quantizer of the weights: each matrix has its own.
        bias_quant: quantizer of the biases, or None.
        input_quant: quantizer of the input, or None.
        hidden_quant: quantizer of the hidden state.
        gate_quant: quantizer of the sums before sigmoid and tanh, or None.
        return_quant_tensor: return the hidden state as a `QuantTensor` that carries its grid.
        **overrides: settings of these quantizers, with a prefix: ``weight_bit_width=4`` for both weights,
            ``weight_hh_bit_width=8`` for one.

    Raises:
        QuantizerError: in the constructor, for a keyword or setting that nothing uses, or an impossible one.

    Example:
        >>> import bitwright.nn as qnn
        >>> cell = qnn.QuantGRUCell(4, 3, weight_bit_width=4, weight_hh_bit_width=8)
        >>> {name: quant.bit_width for name, quant in cell.weight_quant.items()}
        {'weight_ih': 4, 'weight_hh': 8}
    """

    stands_for: ClassVar[type[nn.Module]]
    weight_quant = Family()
    bias_quant = Family()
    input_size: int
    weight_ih: Tensor

    def _slots(self) -> tuple[Slot, ...]:
        parts = {"ih": "input", "hh": "hidden"}
        weights = [Slot(f"weight_{part}", f"weight_{part}", family=("weight",)) for part in parts]
        biases = [
            Slot(f"bias_{part}", f"bias_{part}", follows=(source, f"weight_{part}"), family=("bias",))
            for part, source in parts.items()
        ]
        return (*weights, *(biases if self.bias else ()), Slot("input"), *map(Slot, self._sites()))

    def _output_slot(self) -> str:
        return "hidden"

    def forward(self, input: Tensor, hx: Any = None) -> Any:  # noqa: A002 - torch's name for it
        """The states after a step, for what torch's cell takes.

        Args:
            input: (B, F) or (F,).
            hx: the states before, zeros by default. Those that are given pass the quantizers of the states.
        """
        batched = self._check_input(input)
        x, grid = self._take_input(values_of(input), grid_of(input))
        x = x if batched else x.unsqueeze(0)
        given = None if hx is None else self._given(hx, x, batched)
        quantizers = self._inside("")
        weight, bias = self._products("ih", "", grid)
        grids: dict[str, Grid | None] = {}
        if not quantizers:
            weight_hh, bias_hh = self._products("hh", "", None)
            start = self._zeros(x) if given is None else given
            found = self._kernel(x, self._as_torchs(start), weight, weight_hh, bias, bias_hh)
            states = (found,) if isinstance(found, Tensor) else tuple(found)
        else:
            projected = F.linear(x, weight, bias)
            follows = self._follows_state("")

            def dry(sites: Sites) -> None:
                self._one(sites, given, projected, self._constants("", None, quantized=not follows))

            with measured_once(quantizers, dry):
                constants = self._constants("", self._grid_of_state("hidden", x) if follows else None)
                states = self._one(quantizing(quantizers, grids), given, projected, constants)
        return self._given_back(states, batched, grids.get("hidden"))

    def _check_input(self, x: Tensor) -> bool:
        """Whether the input has a batch dimension, if it is one that the cell takes."""
        if x.is_nested:
            raise QuantizerError(
                f"{path_of(self)}: the input is a nested tensor, which recurrent layers don't take. Pad it, "
                "x.to_padded_tensor(0.0)."
            )
        if x.dim() not in (1, 2):
            raise ValueError(f"{path_of(self)}: the input has {x.dim()} dimensions, expected 1 or 2.")
        if x.shape[-1] != self.input_size:
            raise RuntimeError(
                f"{path_of(self)}: the input has {x.shape[-1]} features, expected input_size={self.input_size}."
            )
        return x.dim() == 2

    def _given(self, hx: Any, x: Tensor, batched: bool) -> Tensors:
        states = tuple(values_of(each) for each in self._pair(hx))
        for slot, state in zip(self._kind.states, states, strict=True):
            expected = (x.shape[0], self.hidden_size) if batched else (self.hidden_size,)
            if state.shape != expected:
                raise RuntimeError(
                    f"{path_of(self)}: the {slot} state has the shape {tuple(state.shape)}, expected "
                    f"{tuple(map(int, expected))}."
                )
        return states if batched else tuple(state.unsqueeze(0) for state in states)

    def _zeros(self, x: Tensor) -> Tensors:
        return tuple(x.new_zeros(x.shape[0], self.hidden_size) for _ in self._kind.states)

    def _one(self, sites: Sites, given: Tensors | None, projected: Tensor, constants: Tensors) -> Tensors:
        """The states after a step."""
        step = self._step(sites)
        if given is None:
            states = self._zeros(projected)
        else:
            states = tuple(step.at(slot, each) for slot, each in zip(step.states, given, strict=True))
        return step.states_after(states, projected, constants)

    def _kernel(self, *args: Any) -> Tensor | Sequence[Tensor]:
        """Torch's function: the states."""
        raise NotImplementedError

    def _given_back(self, states: Tensors, batched: bool, grid: Grid | None) -> Any:
        states = states if batched else tuple(state.squeeze(0) for state in states)
        if self.return_quant_tensor and grid is not None and not exporting():
            hidden, *rest = states
            states = (QuantTensor.wrap(hidden, self._spread(grid, hidden.ndim)), *rest)
        return self._as_torchs(states)


class QuantLSTMCell(RecurrentCell, nn.LSTMCell):
    """`torch.nn.LSTMCell` with quantized weights and states.

    Positional arguments are torch's. `RecurrentCell` documents the keyword-only arguments that are not listed here.

    Args:
        cell_quant: quantizer of the cell state, or None. Give it 16 bits: 8 lose more than all else together.
        sigmoid_quant: quantizer of what the sigmoids give, or None.
        tanh_quant: quantizer of what the tanhs give, or None.

    Raises:
        QuantizerError: an unused or impossible setting.

    Example:
        >>> cell = QuantLSTMCell(4, 3, hidden_scale=2**-7, return_quant_tensor=True)
        >>> h, c = cell(torch.randn(2, 4))
        >>> h, c = cell(torch.randn(2, 4), (h, c))
        >>> h.scale, c.shape
        (tensor(0.0078), torch.Size([2, 3]))
    """

    _kind = LSTMStep
    stands_for = nn.LSTMCell
    slots = families([slot for slot in LSTMStep.slots if slot != "projection"], "weight_ih", "bias_ih")

    def __init__(
        self,
        input_size: int,
        hidden_size: int,
        bias: bool = True,
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
        return_quant_tensor: bool = False,
        **overrides: object,
    ) -> None:
        nn.LSTMCell.__init__(self, input_size, hidden_size, checked_flag(self, "bias", bias), device, dtype)
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
                "return_quant_tensor": return_quant_tensor,
                **overrides,
            }
        )

    def _sites(self) -> tuple[str, ...]:
        return tuple(slot for slot in self._kind.slots if slot != "projection")

    def _kernel(self, *args: Any) -> Sequence[Tensor]:
        return _VF.lstm_cell(*args)


class QuantGRUCell(RecurrentCell, nn.GRUCell):
    """`torch.nn.GRUCell` with quantized weights and states.

    Positional arguments are torch's. `RecurrentCell` documents the keyword-only arguments that are not listed here.

    Args:
        sigmoid_quant: quantizer of what the sigmoids give, or None.
        tanh_quant: quantizer of what tanh gives, or None.

    Raises:
        QuantizerError: an unused or impossible setting.

    Example:
        >>> cell = QuantGRUCell(4, 3, hidden_scale=2**-7, return_quant_tensor=True)
        >>> h = cell(torch.randn(2, 4))
        >>> cell(torch.randn(2, 4), h).scale
        tensor(0.0078)
    """

    _kind = GRUStep
    stands_for = nn.GRUCell
    slots = families(GRUStep.slots, "weight_ih", "bias_ih")

    def __init__(
        self,
        input_size: int,
        hidden_size: int,
        bias: bool = True,
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
        nn.GRUCell.__init__(self, input_size, hidden_size, checked_flag(self, "bias", bias), device, dtype)
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

    def _kernel(self, *args: Any) -> Tensor:
        return _VF.gru_cell(*args)


class QuantRNNCell(RecurrentCell, nn.RNNCell):
    """`torch.nn.RNNCell` with quantized weights and state.

    Positional arguments are torch's. `RecurrentCell` documents the keyword-only arguments.

    Raises:
        QuantizerError: an unused or impossible setting.

    Example:
        >>> cell = QuantRNNCell(4, 3, nonlinearity="relu", weight_bit_width=4)
        >>> cell(torch.randn(2, 4)).shape
        torch.Size([2, 3])
    """

    _kind = RNNStep
    stands_for = nn.RNNCell
    slots = families(RNNStep.slots, "weight_ih", "bias_ih")

    def __init__(
        self,
        input_size: int,
        hidden_size: int,
        bias: bool = True,
        nonlinearity: str = "tanh",
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
            raise ValueError(f"QuantRNNCell: nonlinearity={nonlinearity!r} is not possible: expected 'tanh' or 'relu'.")
        flag = checked_flag(self, "bias", bias)
        nn.RNNCell.__init__(self, input_size, hidden_size, flag, nonlinearity, device, dtype)
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

    def _kernel(self, *args: Any) -> Tensor:
        return _VF.rnn_tanh_cell(*args) if self.nonlinearity == "tanh" else _VF.rnn_relu_cell(*args)
