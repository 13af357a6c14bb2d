"""The base of layers with a weight."""

import math
from typing import Any

import torch
from torch import Tensor, nn

from ..qcore import Grid, QuantizerError, QuantTensor, TensorQuant, grid_of, path_of, values_of
from ..qcore.attributes import assign
from ..qcore.fused import LARGE
from ..qcore.version import tensors_of, version_of
from .bypass import OwnParameter
from .recompute import not_kept
from .slots import Described, fill_slot, key_of, refill, remember, split_overrides

__all__ = ["WeightLayer"]


class WeightLayer(nn.Module):
    """What quantized layers with a weight share; a subclass names the torch layer and its one line of arithmetic.

    Keyword arguments of every such layer, besides torch's own:

    Args:
        weight_quant: quantizer of the weight, or None.
        bias_quant: quantizer of the bias, or None (float).
        input_quant: quantizer of the input, or None.
        output_quant: quantizer of the output, or None.
        return_quant_tensor: return a `QuantTensor` that carries the output's grid.
        **overrides: settings of these quantizers, with the prefix of the slot: ``weight_bit_width=4``.

    Attributes:
        weight_quant, bias_quant, input_quant, output_quant: the resolved modules, or None.

    Raises:
        QuantizerError: in the constructor, for a keyword or setting that nothing uses, or an impossible one; in
            forward, where a bias or output on the scale of the products finds no quantized input.

    Example:
        >>> from bitwright.nn import QuantLinear
        >>> from bitwright.quantizers import Int8Act, Int32Bias
        >>> layer = QuantLinear(8, 4, weight_bit_width=4, bias_quant=Int32Bias, input_quant=Int8Act, input_scale=2**-7)
        >>> _ = layer(torch.randn(2, 8))
        >>> layer.int_weight().shape, layer.int_bias().dtype, layer.output_bit_width
        (torch.Size([4, 8]), torch.int32, 33)
    """

    channel_axis = 0  # the weight's dimension that runs over output channels

    weight: Tensor = OwnParameter()  # type: ignore[assignment]
    bias: Tensor | None
    weight_quant: TensorQuant | None
    bias_quant: TensorQuant | None
    input_quant: TensorQuant | None
    output_quant: TensorQuant | None
    return_quant_tensor: bool
    _cached: tuple[Any, Tensor, Grid | None, list[Tensor]] | None
    _cached_bias: tuple[Any, Tensor, Grid | None, list[Tensor]] | None
    _seen: Grid | None

    def _attach(
        self,
        weight_quant: Any,
        bias_quant: Any,
        input_quant: Any,
        output_quant: Any,
        return_quant_tensor: bool,
        overrides: dict[str, Any],
    ) -> None:
        """Resolve the slots; called by constructors once weight and bias exist."""
        # `_seen` is the grid of the last input, for quant_bias() and output_bit_width
        assign(self, return_quant_tensor=return_quant_tensor, _cached=None, _cached_bias=None, _seen=None)
        slots = {"weight": weight_quant, "bias": bias_quant, "input": input_quant, "output": output_quant}
        weight, bias = self._parameters["weight"], self._parameters["bias"]
        assert weight is not None
        given = (return_quant_tensor, weight.shape, bias is None, weight.device, weight.dtype)
        key = key_of(self, slots, overrides, *given)
        if not refill(self, key):
            remember(key, self._fill(slots, overrides))
        self._start_state()

    def _fill(self, slots: dict[str, Any], overrides: dict[str, Any]) -> dict[str, TensorQuant | None]:
        """Resolve the slots one by one, with all the checks."""
        filled: dict[str, TensorQuant | None] = {}
        given = split_overrides(self, slots, overrides)
        where = {"device": self.weight.device, "dtype": self.weight.dtype}
        shapes = {"weight": self._outputs_first(self.weight), "bias": self.bias}
        for slot, quantizer in slots.items():
            if slot == "bias" and quantizer is not None and self.bias is None:
                raise QuantizerError(
                    f"{Described(self)}: bias_quant={quantizer!r} is given, but there is no bias. Write bias=True, or "
                    "leave bias_quant out."
                )
            provided: dict[str, Any] = dict(where)
            tensor = shapes.get(slot)
            if tensor is not None:
                axis = self.channel_axis if slot == "weight" else 0
                provided |= {"channel_axis": axis, "channels": tensor.shape[axis], "shape": tuple(tensor.shape)}
            filled[slot] = fill_slot(self, slot, quantizer, given[slot], f"{slot}_", provided)
            assign(self, **{f"{slot}_quant": filled[slot]})
        self._check_axes()
        if self.return_quant_tensor and self.output_quant is None:
            self._check_output_grid()
        return filled

    def _check_axes(self) -> None:
        follows = self.bias_quant is not None and self.bias_quant.follows_input
        summed = follows or (self.return_quant_tensor and self.output_quant is None)
        for slot, tensor, usual in (("weight", self.weight, self.channel_axis), ("bias", self.bias, 0)):
            axis = getattr(getattr(self, f"{slot}_quant"), "axis", None)
            if tensor is None or axis is None:
                continue
            if not -tensor.ndim <= axis < tensor.ndim:
                wrong = f"{slot}_axis={axis} is not a dimension of the {slot}, which has {tensor.ndim}"
            elif slot == "weight" and axis % tensor.ndim != usual and summed:
                asks = "a bias on the scale of the products" if follows else "return_quant_tensor=True"
                wrong = (
                    f"with weight_axis={axis} the products that one output sums have several scales, and {asks} needs "
                    "a common one"
                )
            else:
                continue
            raise QuantizerError(
                f"{Described(self)}: {wrong}. Write {slot}_axis={usual} for one scale for each output channel, or "
                f"{slot}_axis=None for one scale."
            )

    def _start_state(self) -> None:
        for name, quant in self._modules.items():
            tensor = self._parameters.get(name.removesuffix("_quant"))  # of the weight or the bias
            if tensor is not None and isinstance(quant, TensorQuant) and not tensor.is_meta:
                quant.initialize(self._outputs_first(tensor) if name == "weight_quant" else tensor)

    def _check_output_grid(self) -> None:
        lacking = ""
        if self.weight_quant is None:
            lacking = "the weight is not quantized. Set weight_quant=Int8WeightPerTensor"
        elif self.bias is not None and not (self.bias_quant is not None and self.bias_quant.follows_input):
            lacking = "the bias is not quantized on the scale of the products. Set bias_quant=Int32Bias"
        if lacking:
            raise QuantizerError(
                f"{Described(self)}: return_quant_tensor=True needs outputs that lie on a grid, and {lacking}, or "
                "output_quant=Int8Act to quantize the output."
            )

    # Forward

    def _compute(self, x: Tensor, weight: Tensor, bias: Tensor | None, *extra: Any) -> Tensor:
        """The torch operation of the layer."""
        raise NotImplementedError

    def forward(self, input: Tensor, *extra: Any) -> Tensor:  # noqa: A002 - torch's name for it
        """The layer's output for an input of torch's shape; a `QuantTensor` with ``return_quant_tensor=True``."""
        values, inputs = self._take_input(input)
        weight, weights = self._take_weight()
        bias, biases = self.bias, None
        if self.bias_quant is not None and bias is not None:
            context = self._per_output(inputs, weights) if self.bias_quant.follows_input else ()
            bias, biases = self._take_bias(self.bias_quant, bias, context)
        if torch.compiler.is_compiling() or (values.numel() < LARGE and weight.numel() < LARGE):
            out = self._compute(values, weight, bias, *extra)
        else:
            with not_kept(values, weight):
                out = self._compute(values, weight, bias, *extra)
        if self.output_quant is not None:
            out, grid = self.output_quant.quantize(out)
        elif self.return_quant_tensor and not (self._lowered() and (inputs is None or weights is None)):
            grid = self._output_grid(inputs, weights, biases, out.ndim)
        else:
            return out
        if grid is None or not self.return_quant_tensor or torch.compiler.is_exporting():
            return out
        return QuantTensor.wrap(out, grid)

    def _lowered(self) -> bool:
        return self.weight_quant is not None and self.weight_quant.lowering is not None

    def _take_input(self, x: Tensor) -> tuple[Tensor, Grid | None]:
        grid, x = grid_of(x), values_of(x)
        if self.input_quant is not None:
            x, grid = self.input_quant.quantize(x)
        if torch.compiler.is_exporting():
            grid = self._seen if grid is None else grid  # torch.export carries plain tensors: the grid is recorded
        elif not torch.compiler.is_compiling():
            vars(self)["_seen"] = grid  # past nn.Module's bookkeeping
        return x, grid

    def _take_weight(self) -> tuple[Tensor, Grid | None]:
        """The quantized weight; in evaluation computed once for each version of the parameters."""
        quant = self.weight_quant
        if quant is None:
            return self.weight, None
        if self.training or quant.lowering is not None or torch.is_grad_enabled() or torch.compiler.is_compiling():
            return self._quantize_weight(quant)
        sources = (self.weight, *tensors_of(quant))
        version = version_of(*sources)
        if "weight" not in self._parameters or version is None:
            return self._quantize_weight(quant)
        if self._cached is None or self._cached[0] != version:
            self._cached = (version, *self._quantize_weight(quant), [each.detach() for each in sources])
        return self._cached[1], self._cached[2]

    def _quantize_weight(self, quant: TensorQuant) -> tuple[Tensor, Grid | None]:
        """The quantized weight, and the grid: along dimension `channel_axis` of `_outputs_first`."""
        values, grid = quant.quantize(self._outputs_first(self.weight))
        return self._as_stored(values), grid

    def _outputs_first(self, weight: Tensor) -> Tensor:
        """The weight as its quantizer sees it: with a dimension, `channel_axis`, that counts the outputs."""
        return weight

    def _as_stored(self, weight: Tensor) -> Tensor:
        """The way back from `_outputs_first`."""
        return weight

    def _grid_as_stored(self, grid: Grid) -> Grid:
        """The grid of the weight in its own shape."""
        return grid

    def _take_bias(self, quant: TensorQuant, bias: Tensor, context: Any) -> tuple[Tensor, Grid | None]:
        """The quantized bias; in evaluation computed once for each version of the bias and the scales it follows."""
        if self.training or quant.lowering is not None or torch.is_grad_enabled() or torch.compiler.is_compiling():
            return quant.quantize(bias, *context)
        scales = [grid.scale for grid in context if grid is not None]
        sources = (bias, *tensors_of(quant), *scales)
        version = version_of(*sources)
        if "bias" not in self._parameters or version is None:
            return quant.quantize(bias, *context)
        if self._cached_bias is None or self._cached_bias[0] != version:
            self._cached_bias = (version, *quant.quantize(bias, *context), [each.detach() for each in sources])
        return self._cached_bias[1], self._cached_bias[2]

    def _per_output(self, inputs: Grid | None, weights: Grid | None) -> tuple[Grid | None, Grid | None]:
        """The grids whose scales multiply: of the input, and of the weight with one for each output, or one for all."""
        return inputs, weights

    def _output_grid(self, inputs: Grid | None, weights: Grid | None, biases: Grid | None, ndim: int) -> Grid:
        """The grid of sums of products: input scale x weight scale."""
        if inputs is None or weights is None:
            raise QuantizerError(
                f"{path_of(self)}: return_quant_tensor=True needs a quantized input, and the input is a plain tensor. "
                "Set return_quant_tensor=True on the layer before, or give this one input_quant=Int8Act or "
                "output_quant=Int8Act."
            )
        inputs, weights = self._per_output(inputs, weights)
        assert inputs is not None
        assert weights is not None
        if inputs.scale.numel() != 1:
            raise QuantizerError(
                f"{path_of(self)}: the input has {inputs.scale.numel()} scales (axis {inputs.axis}), so its products "
                "with the weight lie on no common grid. Quantize the input per tensor (axis=None), or set "
                "output_quant=Int8Act."
            )
        scale = inputs.scale.reshape(()) * weights.scale.reshape(-1)
        axis = None
        if scale.numel() == 1:
            scale = scale.reshape(())
        else:
            axis = ndim - self.weight.ndim + 1  # also of outputs without a batch
            scale = scale.reshape([-1 if dim == axis else 1 for dim in range(ndim)])
        width = self._sum_bit_width(inputs, weights, biases)
        return Grid(scale, None, width, True, False, axis, ("products", inputs.source, weights.source))

    def _sum_bit_width(self, inputs: Grid, weights: Grid, biases: Grid | None) -> int:
        """Bits that hold every sum the integer ranges allow, sign included."""
        sides = []
        for grid in (inputs, weights):
            low, high = grid.bounds
            if grid.zero_point is not None:  # integers are used minus the zero point, which lies in range
                low, high = low - high, high - low
            sides.append((low, high))
        products = [one * other for one in sides[0] for other in sides[1]]
        low, high = self._fan_in() * min(products), self._fan_in() * max(products)
        if biases is not None:
            low, high = low + biases.bounds[0], high + biases.bounds[1]
        return max(high.bit_length(), (-low - 1).bit_length()) + 1  # and the sign

    def _fan_in(self) -> int:
        """How many products one output sums at most."""
        return math.prod(self.weight.shape[1:])

    # What the layer can be asked for

    def quant_weight(self) -> Tensor:
        """The quantized weight as a `QuantTensor`; the plain weight if it has no quantizer."""
        if self.weight_quant is None:
            return self.weight
        values, grid = self._quantize_weight(self.weight_quant)
        return values if grid is None else QuantTensor.wrap(values, self._grid_as_stored(grid))

    def quant_bias(self) -> Tensor | None:
        """The quantized bias as a `QuantTensor`; the plain bias, or None, if there is no quantizer or bias.

        Raises:
            QuantizerError: its scale depends on the input, and no input was seen yet.
        """
        if self.bias_quant is None or self.bias is None:
            return self.bias
        values, grid = self.bias_quant.quantize(self.bias, *self._bias_context(self.bias_quant))
        return values if grid is None else QuantTensor.wrap(values, grid)

    def _bias_context(self, quant: TensorQuant) -> tuple[Grid | None, ...]:
        """The grids that the bias's follows, if it follows any: of the last input and of the weight."""
        if not quant.follows_input:
            return ()
        if self._seen is None:
            raise QuantizerError(
                f"{Described(self)}: the scale of {quant!r} depends on the input's, and the layer has seen no "
                "quantized input yet. Run the model on one batch first."
            )
        return self._per_output(self._seen, self._take_weight()[1])

    def int_weight(self) -> Tensor:
        """The weight's integers, in the smallest integer type that holds their range.

        Raises:
            QuantizerError: the weight has no quantizer.
        """
        if self.weight_quant is None:
            raise QuantizerError(f"{Described(self)}: the weight has no quantizer, so it has no integers.")
        return self._as_stored(_integers(self.weight_quant, self._outputs_first(self.weight)))

    def int_bias(self) -> Tensor | None:
        """The bias's integers, or None if there is no bias.

        Raises:
            QuantizerError: the bias has no quantizer, or its scale depends on an input that was not seen yet.
        """
        if self.bias is None:
            return None
        if self.bias_quant is None:
            raise QuantizerError(
                f"{Described(self)}: the bias has no quantizer, so it has no integers. Write bias_quant=Int32Bias."
            )
        return _integers(self.bias_quant, self.bias, *self._bias_context(self.bias_quant))

    @property
    def output_bit_width(self) -> int | None:
        """Bits of the output's integers: the output quantizer's, or what the sums of products need at most.

        None where the output is no integers: without quantized weight or input, or before one was seen.
        """
        if self.output_quant is not None:
            width = self.output_quant.bit_width
            return int(width()) if isinstance(width, nn.Module) else int(width)
        with torch.no_grad():
            weights = self._take_weight()[1]
            if weights is None or self._seen is None:
                return None
            biases = None
            if self.bias is not None and self.bias_quant is not None and self.bias_quant.follows_input:
                biases = self.bias_quant.quantize(self.bias, *self._per_output(self._seen, weights))[1]
            return self._sum_bit_width(self._seen, weights, biases)

    # State

    def train(self, mode: bool = True) -> "WeightLayer":
        """Switch to training or evaluation; forgets the cached quantized weight."""
        self._cached = self._cached_bias = None
        return super().train(mode)

    def _apply(self, fn: Any, recurse: bool = True) -> "WeightLayer":
        self._cached = self._cached_bias = self._seen = None
        return super()._apply(fn, recurse)

    def _load_from_state_dict(self, state_dict: Any, prefix: str, *args: Any, **kwargs: Any) -> None:
        super()._load_from_state_dict(state_dict, prefix, *args, **kwargs)
        self._cached = self._cached_bias = self._seen = None
        for name in ("weight", "bias"):
            quant = getattr(self, f"{name}_quant")
            holds = any(key.startswith(f"{prefix}{name}_quant.") for key in state_dict)
            if quant is not None and f"{prefix}{name}" in state_dict and not holds:
                tensor = getattr(self, name)
                quant.rederive(
                    self._outputs_first(tensor) if name == "weight" else tensor
                )  # a float checkpoint: scales start from its weights

    def __getstate__(self) -> dict[str, Any]:
        return {**self.__dict__, "_cached": None, "_cached_bias": None, "_seen": None}

    def extra_repr(self) -> str:
        extra = super().extra_repr()
        return f"{extra}, return_quant_tensor=True" if self.return_quant_tensor else extra


@torch.no_grad()
def _integers(quant: TensorQuant, tensor: Tensor, *context: Grid | None) -> Tensor:
    """The integers that a weight or bias is moved to: from wide values, half precision can't tell all of them apart."""
    values, grid = quant.quantize(tensor if tensor.dtype == torch.float64 else tensor.float(), *context)
    assert grid is not None
    return QuantTensor.wrap(values, grid).int()
