"""The base of quantized recurrent layers."""

from collections.abc import Mapping, Sequence
from contextlib import nullcontext
from typing import Any, ClassVar, NamedTuple

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.nn.utils.rnn import PackedSequence

from ...qcore import Grid, QuantizerError, QuantTensor, grid_of, path_of, values_of
from ...qcore.tracing import exporting, loop_operators
from ..layer import Family
from ..slots import Slot
from .base import Recurrent
from .layout import Layout
from .measuring import Quantizers, grid_of_steps, measured_once, quantizing, settled_steps
from .scan import Tensors
from .sequence import Steps
from .steps import RecurrentStep, Sites

__all__ = ["RecurrentLayer", "Weights"]

Weights = tuple[Tensor, Tensor, Tensor | None, Tensor | None]  # w_ih, w_hh, b_ih, b_hh


class _Run(NamedTuple):
    """One direction of one layer."""

    suffix: str
    reverse: bool
    given: Tensors | None  # states to begin with, not quantized; None for zeros
    weight: Tensor  # that the input meets
    bias: Tensor | None


class RecurrentLayer(Recurrent, nn.RNNBase):
    """What `QuantLSTM`, `QuantGRU` and `QuantRNN` share: everything but what a step computes.

    Torch's kernels compute a layer that quantizes nothing inside of a step. All else runs step by step, through
    the quantizers' modules.

    Keyword arguments of every such layer, besides torch's own:

    Args:
        weight_quant: quantizer of the weights: each matrix has its own.
        bias_quant: quantizer of the biases, or None.
        input_quant: quantizer of the input of the first layer, or None.
        hidden_quant: quantizer of the hidden state, which is the output and the next step's input; one for each layer,
            which both directions share.
        gate_quant: quantizer of the sums before sigmoid and tanh, or None.
        return_quant_tensor: return the output as a `QuantTensor` that carries the grid of the hidden state.
        **overrides: settings of these quantizers, with a prefix: ``weight_bit_width=4`` for all weights,
            ``weight_hh_bit_width=8`` for those of the states, ``weight_hh_l0_bit_width=8`` for one.

    Attributes:
        weight_quant, bias_quant, hidden_quant, gate_quant: the quantizers by the names of their slots, such as
            ``weight_ih_l0``; each is an attribute ``weight_ih_l0_quant`` as well.
        input_quant: the module, or None.

    Raises:
        QuantizerError: in the constructor, for a keyword or setting that nothing uses, or an impossible one.

    Example:
        >>> import bitwright.nn as qnn
        >>> layer = qnn.QuantGRU(4, 3, weight_bit_width=4, weight_hh_l0_bit_width=8)
        >>> {name: quant.bit_width for name, quant in layer.weight_quant.items()}
        {'weight_ih_l0': 4, 'weight_hh_l0': 8}
    """

    stands_for: ClassVar[type[nn.Module]]
    weight_quant = Family()
    bias_quant = Family()
    hidden_quant = Family()
    gate_quant = Family()

    # Slots

    def _slots(self) -> tuple[Slot, ...]:
        """For each parameter one, and for each layer those inside of a step."""
        weights, biases = [], []
        for layer in range(self.num_layers):
            sources = {"ih": f"hidden_l{layer - 1}" if layer else "input", "hh": f"hidden_l{layer}"}
            for suffix in self._suffixes(layer):
                for part in ("ih", "hh", "hr") if self.proj_size else ("ih", "hh"):
                    name = f"weight_{part}{suffix}"
                    weights.append(Slot(name, name, family=("weight", f"weight_{part}")))
                for part in ("ih", "hh") if self.bias else ():
                    name = f"bias_{part}{suffix}"
                    follows = (sources[part], f"weight_{part}{suffix}")
                    biases.append(Slot(name, name, follows=follows, family=("bias", f"bias_{part}")))
        layers = range(self.num_layers)
        inside = [Slot(f"{slot}_l{layer}", family=(slot,)) for slot in self._sites() for layer in layers]
        return (*weights, *biases, Slot("input"), *inside)

    def _suffixes(self, layer: int) -> list[str]:
        return [f"_l{layer}", f"_l{layer}_reverse"] if self.bidirectional else [f"_l{layer}"]

    def _output_slot(self) -> str:
        return f"hidden_l{self.num_layers - 1}"

    # Forward

    def forward(self, input: Any, hx: Any = None) -> Any:  # noqa: A002 - torch's name for it
        """The output and the states at the end, for what torch's layer takes.

        Args:
            input: (T, B, F), (B, T, F) with ``batch_first``, (T, F), or a `PackedSequence`.
            hx: the states to begin with, zeros by default. Those that are given pass the quantizers of the states.

        Returns:
            As torch's layer: the output in the form of the input, and the states.
        """
        given = input.data if isinstance(input, PackedSequence) else input
        layout = self._layout_of(input, given)
        x, grid = self._take_input(values_of(given), grid_of(given))
        x = layout.time_first(x)
        states = None if hx is None else self._given(hx, x, layout)
        inside = [self._inside(f"_l{layer}") for layer in range(self.num_layers)]
        if not any(inside) and self._has_kernel() and (exporting() or not torch.compiler.is_compiling()):
            x, last = self._by_kernel(x, layout, states, grid)
        else:
            x, last, grid = self._layer_by_layer(x, layout, states, grid, inside)
        return self._given_back(x, last, layout, grid)

    def _layout_of(self, given: Any, x: Tensor) -> Layout:
        """How the input lies, if it is one that the layer takes."""
        packed = isinstance(given, PackedSequence)
        if x.is_nested:
            raise QuantizerError(
                f"{path_of(self)}: the input is a nested tensor, which recurrent layers don't take. Pad it, "
                "x.to_padded_tensor(0.0), or pack it, torch.nn.utils.rnn.pack_sequence(x.unbind())."
            )
        if not packed and x.dim() not in (2, 3):
            raise ValueError(f"{path_of(self)}: the input has {x.dim()} dimensions, expected 2 or 3.")
        if x.shape[-1] != self.input_size:
            raise RuntimeError(
                f"{path_of(self)}: the input has {x.shape[-1]} features, expected input_size={self.input_size}."
            )
        dtype = self.tensor_of("weight_ih_l0").dtype
        if x.dtype != dtype and not torch._C._is_any_autocast_enabled():
            raise ValueError(
                f"{path_of(self)}: the input is {x.dtype}, and the weights are {dtype}. Write x.to({dtype}), or "
                f"model.to({x.dtype})."
            )
        layout = Layout.of(given, self.batch_first)
        if not exporting() and layout.time_first(x).shape[0] == 0:
            raise RuntimeError(f"{path_of(self)}: the input has no steps, expected one or more.")
        return layout

    def _given(self, hx: Any, x: Tensor, layout: Layout) -> Tensors:
        """The states to begin with, (layers * directions, B, H) each."""
        states = tuple(values_of(each) for each in self._pair(hx))
        for slot, state in zip(self._kind.states, states, strict=True):
            expected = (self._runs(), layout.batch_of(x), self._width(slot))
            expected = expected if layout.batched else expected[::2]
            if state.shape != expected:
                raise RuntimeError(
                    f"{path_of(self)}: the {slot} state has the shape {tuple(state.shape)}, expected "
                    f"{tuple(map(int, expected))}."
                )
        return tuple(layout.state(state) for state in states)

    def _runs(self) -> int:
        return self.num_layers * (2 if self.bidirectional else 1)

    def _width(self, state: str) -> int:
        return self._state_size() if state == "hidden" else self.hidden_size

    def _state_size(self) -> int:
        return self.proj_size or self.hidden_size

    def _zeros(self, x: Tensor, *size: int) -> Tensors:
        return tuple(x.new_zeros((*size, self._width(slot))) for slot in self._kind.states)

    # Torch's kernels

    def _has_kernel(self) -> bool:
        """Whether torch computes what this layer does, once the weights are quantized; and a file."""
        return not self.proj_size or loop_operators() is None

    def _kernel(self, *args: Any) -> Sequence[Tensor]:
        """Torch's function: output and states."""
        raise NotImplementedError

    def _by_kernel(self, x: Tensor, layout: Layout, given: Tensors | None, grid: Grid | None) -> tuple[Tensor, Tensors]:
        flat: list[Tensor] = []
        for layer in range(self.num_layers):
            for suffix in self._suffixes(layer):
                weight_ih, bias_ih = self._products("ih", suffix, None if layer else grid)
                weight_hh, bias_hh = self._products("hh", suffix, None)
                biases = [] if bias_ih is None or bias_hh is None else [bias_ih, bias_hh]
                flat += [weight_ih, weight_hh, *biases, *self._projection(suffix)]
        states = self._zeros(x, self._runs(), layout.batch_of(x)) if given is None else given
        operators = loop_operators()
        if operators is not None:
            out, *last = operators.recurrence(self.mode, x, states, flat, bool(self.bias), self.bidirectional)
            return out, tuple(last)
        start = self._as_torchs(states)
        options = (flat, self.bias, self.num_layers, self.dropout, self.training, self.bidirectional)
        if layout.packed is not None:
            out, *last = self._kernel(x, layout.packed.batch_sizes, start, *options)
        else:
            out, *last = self._kernel(x, start, *options, False)
        return out, tuple(last)

    def _projection(self, suffix: str) -> Tensors:
        """The weight that projects the hidden state of an LSTM, if there is one."""
        return (self.take(f"weight_hr{suffix}")[0],) if self.proj_size else ()

    # Layer by layer

    def _layer_by_layer(
        self, x: Tensor, layout: Layout, given: Tensors | None, grid: Grid | None, quantizers: Sequence[Quantizers]
    ) -> tuple[Tensor, Tensors, Grid | None]:
        last: list[Tensors] = []
        for layer, inside in enumerate(quantizers):
            if layer and self.dropout and self.training:
                x = F.dropout(x, self.dropout)  # off the grid
            suffixes = self._suffixes(layer)
            runs = []
            for at, suffix in enumerate(suffixes):
                start = None if given is None else tuple(each[layer * len(suffixes) + at] for each in given)
                runs.append(_Run(suffix, at == 1, start, *self._products("ih", suffix, grid)))
            x, ends, grid = self._one_layer(layer, x, runs, layout, inside)
            last += ends
        return x, tuple(map(torch.stack, zip(*last, strict=True))), grid

    def _one_layer(
        self, layer: int, x: Tensor, runs: list[_Run], layout: Layout, inside: Quantizers
    ) -> tuple[Tensor, list[Tensors], Grid | None]:
        """The output of a layer, the states at the end of each direction, and the output's grid."""
        follows = any(self._follows_state(run.suffix) for run in runs)
        grids: dict[str, Grid | None] = {}

        def dry(sites: Sites) -> None:
            for run in runs:
                self._defined(sites, run, x, layout, self._constants(run.suffix, None, quantized=not follows))

        with measured_once(inside, dry):
            grid = self._grid_of_state(f"hidden_l{layer}", x) if follows else None
            constants = [self._constants(run.suffix, grid) for run in runs]
            steps = settled_steps(inside, x) if self._has_sequence(inside) else None
            if steps is None:
                sites = quantizing(inside, grids)
                done = [self._defined(sites, run, x, layout, each) for run, each in zip(runs, constants, strict=True)]
            else:
                pairs = zip(runs, constants, strict=True)
                done = [self._at_once(steps, inside, run, x, layout, each) for run, each in pairs]
                grids = {slot: grid_of_steps(inside[slot], each) for slot, each in steps.items()}
        outs = [out for _, out in done]
        return outs[0] if len(outs) == 1 else torch.cat(outs, -1), [ends for ends, _ in done], grids.get("hidden")

    def _defined(
        self, sites: Sites, run: _Run, x: Tensor, layout: Layout, constants: Tensors
    ) -> tuple[Tensors, Tensor]:
        """All steps of one direction, by the definition: the states at the end, and the output.

        Computed in the type of the weights, under autocast, too; in float32 where that is half precision.
        """
        held, wide = run.weight.dtype, _wide(run.weight.dtype)
        step = self._step(sites)
        cast = not x.is_meta and torch.is_autocast_enabled(x.device.type)
        with torch.autocast(x.device.type, enabled=False) if cast else nullcontext():
            bias = None if run.bias is None else run.bias.to(wide)
            projected = F.linear(x.to(wide), run.weight.to(wide), bias)
            start, every = self._start(step, run, projected, layout), _each_to(wide, constants)
            states, out = layout.run(step, start, projected, every, run.reverse)
        return _each_to(held, states), out.to(held)

    def _start(self, step: RecurrentStep, run: _Run, x: Tensor, layout: Layout) -> Tensors:
        """The states before the first step."""
        if run.given is None:
            return self._zeros(x, layout.batch_of(x))
        given = _each_to(x.dtype, run.given)
        return tuple(step.at(slot, each) for slot, each in zip(step.states, given, strict=True))

    def _has_sequence(self, inside: Quantizers) -> bool:
        """Whether a sequence function computes what this layer does, if its grids are settled."""
        plain = set(inside) <= set(self._kind.states) and not self.proj_size
        return plain and not exporting() and loop_operators() is None

    def _at_once(
        self, steps: Mapping[str, Steps], inside: Quantizers, run: _Run, x: Tensor, layout: Layout, constants: Tensors
    ) -> tuple[Tensors, Tensor]:
        """All steps of one direction, as one function: the states at the end, and the output."""
        held = run.weight.dtype
        start = self._start(self._step(quantizing(inside, {})), run, x.to(_wide(held)), layout)
        weight_hh, *biases = constants
        weights = (run.weight, weight_hh, run.bias, biases[0] if biases else None)
        rows, sizes = layout.rows(x)
        out, *states = self._sequence(rows.to(held), sizes, start, weights, steps, run.reverse)
        return tuple(states), layout.as_before(out, x)

    def _sequence(
        self,
        x: Tensor,
        sizes: list[int] | None,
        states: Tensors,
        weights: Weights,
        steps: Mapping[str, Steps],
        reverse: bool,
    ) -> Tensors:
        """The sequence function of this kind of layer."""
        raise NotImplementedError

    # The result

    def _given_back(self, x: Tensor, last: Tensors, layout: Layout, grid: Grid | None) -> Any:
        """Output and states as torch's layer returns them."""
        out = layout.given_back(x)
        if self.return_quant_tensor and grid is not None and not exporting():
            out = QuantTensor.wrap(out, self._spread(grid, out.ndim, copies=2 if self.bidirectional else 1))
        states = tuple(layout.state_given_back(each) for each in last)
        if layout.packed is not None:
            _, sizes, order, way_back = layout.packed
            out = PackedSequence(out, sizes, order, way_back)
        return out, self._as_torchs(states)

    # State

    def __getstate__(self) -> dict[str, object]:
        self._update_flat_weights()
        state = dict(super().__getstate__())
        state.pop("_flat_weight_refs", None)  # weak references, which torch makes anew
        return state


def _wide(dtype: torch.dtype) -> torch.dtype:
    """What is computed in."""
    return dtype if dtype in (torch.float32, torch.float64) else torch.float32


def _each_to(dtype: torch.dtype, tensors: Tensors) -> Tensors:
    return tuple(each.to(dtype) for each in tensors)
