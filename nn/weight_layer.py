"""The base of layers with a weight."""

import math
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from typing import Any, ClassVar, Self

import torch
from torch import Tensor, nn

from ..qcore import (
    BiasQuant,
    Grid,
    GridQuant,
    QuantizerError,
    QuantTensor,
    TensorQuant,
    grid_of,
    int_bounds,
    path_of,
    values_of,
)
from ..qcore.formats.integers import Integers
from ..qcore.granularity import Granularity, PerAxis, PerGroup, PerTensor
from ..qcore.grid import along_axis, bits_to_spare, integers_of, products_source
from ..qcore.int_quant import in_words, resting, several
from ..qcore.kernels.fused import LARGE
from ..qcore.quant_tensor import grid_lost
from ..qcore.tracing import exporting
from .branches.low_rank import adopt_branch
from .bypass import OwnParameter
from .kernels.backward import with_quantized_gradient
from .kernels.recompute import not_kept
from .layer import QuantLayer
from .slots import Described, QuantizerLike, Slot, checked_flag, split_overrides

__all__ = ["WeightLayer"]


class WeightLayer(QuantLayer):
    """What quantized layers with a weight share; a subclass names the torch layer and its one line of arithmetic.

    Keyword arguments of every such layer, besides torch's own:

    Args:
        weight_quant: quantizer of the weight, or None.
        bias_quant: quantizer of the bias, or None (float).
        input_quant: quantizer of the input, or None.
        output_quant: quantizer of the output, or None.
        grad_quant: quantizer of the gradient that comes back to the output, before the layer works out the gradients of
            its input, weight and bias from it; or None.
        return_quant_tensor: return a `QuantTensor` that carries the output's grid.
        **overrides: settings of these quantizers, with the prefix of the slot: ``weight_bit_width=4``.

    Attributes:
        weight_quant, bias_quant, input_quant, output_quant, grad_quant: the resolved modules, or None.

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

    slots: tuple[Slot, ...] = (
        Slot("weight", "weight"),
        Slot("bias", "bias", follows=("input", "weight")),
        Slot("input"),
        Slot("output"),
        Slot("grad", backward=True),
    )
    channel_axis = 0  # the weight's dimension that runs over output channels
    sums_products: ClassVar[bool] = True  # whether outputs are sums of products, on whose scale a bias may lie
    quantizes_parameters: ClassVar[bool] = True  # whether quantizers see the parameters, not what follows from them

    weight: Tensor = OwnParameter()  # type: ignore[assignment]
    bias: Tensor | None
    weight_quant: TensorQuant | None
    bias_quant: TensorQuant | None
    input_quant: TensorQuant | None
    output_quant: TensorQuant | None
    grad_quant: TensorQuant | None
    return_quant_tensor: bool
    _seen: Grid | None = None  # of the last input, for quant_bias() and output_bit_width

    def _attach(
        self,
        weight_quant: QuantizerLike,
        bias_quant: QuantizerLike,
        input_quant: QuantizerLike,
        output_quant: QuantizerLike,
        grad_quant: QuantizerLike,
        return_quant_tensor: bool,
        overrides: Mapping[str, object],
    ) -> None:
        """Resolve the slots; called by constructors once weight and bias exist."""
        quantizers = {"weight": weight_quant, "bias": bias_quant, "input": input_quant, "output": output_quant}
        self._equip({**quantizers, "grad": grad_quant}, return_quant_tensor, overrides)

    def _equip(
        self, quantizers: Mapping[str, QuantizerLike], return_quant_tensor: bool, overrides: Mapping[str, object]
    ) -> None:
        """Resolve the slots: a quantizer for each by its name, and keywords with their prefixes."""
        self.return_quant_tensor = checked_flag(self, "return_quant_tensor", return_quant_tensor)
        slots = {slot: quantizers[slot.name] for slot in self.slots}
        vars(self)["grad_quant"] = None  # a layer with slots of its own may have none for it
        given = split_overrides(self, slots, overrides)
        for slot, quantizer in slots.items():
            if quantizer is not None and self._lacks(slot.name):
                for setting, item in given[slot.name].items():
                    raise QuantizerError(self._lacking(slot, f"{slot.keywords}{setting}", item))
                if quantizer != self.usual_quantizer(slot):
                    raise QuantizerError(self._lacking(slot, f"{slot.name}_quant", quantizer))
                slots[slot] = None
        self._fill_slots(slots, given)

    def _convert(self, given: Mapping[str, object], device: torch.device | None, dtype: torch.dtype | None) -> None:
        overrides = dict(given)
        quantizers: dict[str, Any] = {}
        for slot in self.slots:
            usual = None if self._lacks(slot.name) else self.usual_quantizer(slot)
            quantizers[slot.name] = overrides.pop(f"{slot.name}_quant", usual)
        flag: Any = overrides.pop("return_quant_tensor", False)
        self._equip(quantizers, flag, overrides)

    def _lacks(self, slot: str) -> bool:
        """Whether a slot has nothing to quantize: the layer was made without that parameter."""
        found = next((each for each in self.slots if each.name == slot), None)
        return found is None or (found.parameter is not None and getattr(self, found.parameter) is None)

    def _shape_of(self, slot: str) -> tuple[int, ...]:
        """The shape of what the quantizer of a slot quantizes."""
        return tuple(self.tensor_of(slot).shape)

    def _lacking(self, slot: Slot, keyword: str, item: object) -> str:
        """What is wrong with a keyword for a parameter that the layer lacks."""
        return (
            f"{Described(self)}: {keyword}={item!r} is given, but there is no {slot.name}. Write "
            f"{self._remedy(slot.name)}, or leave {keyword} out."
        )

    def _remedy(self, slot: str) -> str:
        """The argument of the constructor that gives the layer a parameter."""
        return f"{slot}=True"

    def _channel_axis(self, slot: Slot) -> int:
        return self.channel_axis if slot.name == "weight" else 0

    def _check_slots(self) -> None:
        for slot in self.slots:
            quant = getattr(self, f"{slot.name}_quant")
            if quant is not None and self._lacks(slot.name):
                raise QuantizerError(self._lacking(slot, f"{slot.name}_quant", quant.quantizer))
        bias_quant = self.bias_quant
        if bias_quant is not None and bias_quant.follows_input and not self.sums_products:
            raise QuantizerError(
                f"{Described(self)}: {bias_quant.quantizer!r} lies on the scale of products, input scale x weight "
                "scale, and this layer multiplies floats. Write bias_quant=Int8BiasOwnScale."
            )
        self._check_axes()
        self._check_input_scales()
        if self._needs_sums_grid():
            self._check_output_grid()

    def _check_axes(self) -> None:
        follows = self.bias_quant is not None and self.bias_quant.follows_input
        summed = self.sums_products and (follows or self._needs_sums_grid())
        for slot, usual in (("weight", self.channel_axis), ("bias", 0)):
            granularity: Granularity | None = getattr(getattr(self, f"{slot}_quant"), "granularity", None)
            if granularity is None or granularity.single or self._lacks(slot):
                continue
            ndim = len(self._shape_of(slot))
            axis, each_output = granularity.axis, f"{slot}_axis={usual} for one scale for each output channel"
            if not granularity.fits(ndim):
                if axis is None:
                    raise QuantizerError(_misfit(self, slot, granularity, ndim, min(1 - usual, ndim - 1)))
                wrong = f"{slot}_axis={axis} is not a dimension of the {slot}, which has {ndim}"
            elif slot == "weight" and summed and not self._one_scale_each(granularity):
                asks = "a bias on the scale of the products" if follows else self._asks_for_grid()
                given = f"weight_axis={axis}" if axis is not None else str(granularity)
                wrong = (
                    f"with {given} the products that one output sums have several scales, and {asks} needs a common one"
                )
                if axis is None:
                    each_output = "weight_quant=Int8WeightPerChannel for one scale for each output channel"
            else:
                continue
            one = f"{slot}_axis=None" if axis is not None else f"{slot}_quant=Int8WeightPerTensor"
            raise QuantizerError(f"{Described(self)}: {wrong}. Write {each_output}, or {one} for one scale.")

    def _check_input_scales(self) -> None:
        """Products of an input with a scale for each token or group have no common scale."""
        granularity: Granularity | None = getattr(self.input_quant, "granularity", None)
        follows = self.bias_quant is not None and self.bias_quant.follows_input
        if granularity is None or granularity.single or granularity.axis is not None or not self.sums_products:
            return
        if follows or self._needs_sums_grid():
            asks = "a bias on the scale of the products" if follows else self._asks_for_grid()
            remedy = "bias_quant=Int8BiasOwnScale" if follows else "output_quant=Int8Act"
            raise QuantizerError(
                f"{Described(self)}: with input_quant {granularity} the products have several scales, and {asks} needs "
                f"a common one. Write input_quant=Int8DynamicAct for one scale, or {remedy}."
            )

    def _one_scale_each(self, granularity: Granularity) -> bool:
        """Whether the weights that one output sums share a scale."""
        if granularity.axis is not None:
            return granularity.axis % len(self._shape_of("weight")) == self.channel_axis
        scales = granularity.scales_shape(self._shape_of("weight"))
        return granularity.single or all(size == 1 for dim, size in enumerate(scales) if dim != self.channel_axis)

    def _check_output_grid(self) -> None:
        lacking = ""
        if not self.sums_products:
            raise QuantizerError(
                f"{Described(self)}: {self._asks_for_grid()} needs outputs that lie on a grid, and this layer "
                "computes in floats. Set output_quant=Int8Act to quantize the output."
            )
        if self.weight_quant is None:
            lacking = "the weight is not quantized. Set weight_quant=Int8WeightPerTensor"
        elif not self._lacks("bias") and not (self.bias_quant is not None and self.bias_quant.follows_input):
            lacking = "the bias is not quantized on the scale of the products. Set bias_quant=Int32Bias"
        elif self._modules.get("correction") is not None:
            lacking = "the low-rank correction adds floats. Remove it, del layer.correction"
        if lacking:
            raise QuantizerError(
                f"{Described(self)}: {self._asks_for_grid()} needs outputs that lie on a grid, and {lacking}, or "
                "output_quant=Int8Act to quantize the output."
            )

    # Forward

    def _compute(self, x: Tensor, weight: Tensor, bias: Tensor | None, *extra: object) -> Tensor:
        """The torch operation of the layer."""
        raise NotImplementedError

    def forward(self, input: Tensor, *extra: object) -> Tensor:  # noqa: A002 - torch's name for it
        """The layer's output for an input of torch's shape; a `QuantTensor` with ``return_quant_tensor=True``."""
        values, inputs = self._take_input(input)
        if inputs is None:
            self._check_needs_no_grid(input)
        weight, weights = self._take_weight(inputs)
        bias, biases = self._take_bias(inputs, weights)
        if torch.compiler.is_compiling() or (  # first: sizes may be open
            values.numel() < LARGE and (weight is None or weight.ndim < 2 or weight.numel() < LARGE)
        ):
            out = self._compute(values, weight, bias, *extra)
        else:
            with not_kept(values, weight):
                out = self._compute(values, weight, bias, *extra)
        branch: Any = self._modules.get("correction")
        if branch is not None and weight is not self._parameters.get("weight"):  # whose quantizer is off
            out = out + branch(self._compute(values, branch.down, None, *extra))
        return self._leave(out, inputs, weights, bias, biases)

    def _leave(
        self, out: Tensor, inputs: Grid | None, weights: Grid | None, bias: Tensor | None, biases: Grid | None
    ) -> Tensor:
        """The output, quantized where there is a quantizer for it, with its grid where it is to carry one."""
        if self.grad_quant is not None:
            out = with_quantized_gradient(out, self.grad_quant)
        if self.output_quant is None:
            grid = self._sums_grid(inputs, weights, bias, biases, out) if self.return_quant_tensor else None
        elif self.output_quant.truncates:
            out, grid = self.output_quant.quantize(out, self._sums_grid(inputs, weights, bias, biases, out))
        else:
            out, grid = self.output_quant.quantize(out)
        return self._leaving(out, grid)

    def _sums_grid(
        self, inputs: Grid | None, weights: Grid | None, bias: Tensor | None, biases: Grid | None, out: Tensor
    ) -> Grid | None:
        """The grid of sums of products, which the output must have; None where something stands in for quantizers."""
        if self._intercepted() and (inputs is None or weights is None or (bias is not None and biases is None)):
            return None
        if weights is None or bias is not None or self._modules.get("correction") is not None:
            self._check_output_grid()  # the flag, or a bias, may have been set since the layer was built
            if weights is None:
                raise QuantizerError(
                    f"{path_of(self)}: {self._asks_for_grid()} needs outputs that lie on a grid, and "
                    f"{type(self.weight_quant).__name__} puts the weight on none. Set output_quant=Int8Act, or "
                    "return_quant_tensor=False."
                )
        return self._output_grid(inputs, weights, biases, out.ndim, out.dtype)

    def _needs_sums_grid(self) -> bool:
        """Whether outputs must lie on the grid of the products."""
        quant = self.output_quant
        return self.return_quant_tensor if quant is None else quant.truncates

    def _asks_for_grid(self) -> str:
        """What asks for outputs that lie on a grid."""
        quant = self.output_quant
        return "return_quant_tensor=True" if quant is None else f"output_quant={quant.quantizer!r}"

    def _check_needs_no_grid(self, x: Tensor) -> None:
        """Say what became of the grid of an input that arrives without one, and is needed."""
        quant = self.bias_quant
        if quant is not None and self._lacks("bias"):
            quant = None
        if quant is not None and quant.follows_input and quant.intercept is None:
            asks = f"{path_of(self)}: the scale of bias_quant follows the input's"
            remedy = "or choose a bias with a scale of its own: bias_quant=Int8BiasOwnScale"
        elif self._needs_sums_grid() and not self._intercepted():
            asks = f"{path_of(self)}: {self._asks_for_grid()} needs a quantized input"
            remedy = "or output_quant=Int8Act"
        else:
            return
        raise QuantizerError(
            f"{asks}, and the input is a plain tensor. {grid_lost(x)} Or give this layer input_quant=Int8Act, {remedy}."
        )

    def _intercepted(self) -> bool:
        return self.weight_quant is not None and self.weight_quant.intercept is not None

    def _take_input(self, x: Tensor) -> tuple[Tensor, Grid | None]:
        grid, x = grid_of(x), values_of(x)
        quant = self.input_quant
        if quant is not None:
            x, grid = quant.quantize(x, grid) if quant.truncates else quant.quantize(x)
        if exporting():
            grid = self._seen if grid is None else grid  # torch.export carries plain tensors: the grid is recorded
        elif not torch.compiler.is_compiling():
            vars(self)["_seen"] = grid  # past nn.Module's bookkeeping
        return x, grid

    def _take_weight(self, inputs: Grid | None) -> tuple[Tensor, Grid | None]:
        """The quantized weight and its grid."""
        quant = self.weight_quant
        if quant is None:
            return self.weight, None
        values, grid = self._take("weight", quant, self._weight_context(quant, inputs), inputs)
        return self._as_stored(values), grid

    def tensor_of(self, slot: str) -> Tensor:
        """What the quantizer of a slot quantizes: the weight, with its outputs first, or the bias."""
        return self._outputs_first(self.weight) if slot == "weight" else super().tensor_of(slot)

    def _outputs_first(self, weight: Tensor) -> Tensor:
        """The weight as its quantizer sees it: with a dimension, `channel_axis`, that counts the outputs."""
        return weight

    def _as_stored(self, weight: Tensor) -> Tensor:
        """The way back from `_outputs_first`."""
        return weight

    def _grid_as_stored(self, grid: Grid) -> Grid:
        """The grid of the weight in its own shape."""
        return grid

    def _weight_context(
        self, quant: TensorQuant, inputs: Grid | None, bias: Tensor | None = None
    ) -> tuple[object, ...]:
        """What the weight's quantizer gets besides: the scales below which the bias would be clipped.

        A transform gets the grid of the input, too, and the bias where it lies on the scale of the products.
        """
        if isinstance(quant, GridQuant) and quant.transform is not None:
            return self._transform_context(quant, inputs, bias)
        return self._floor_context(quant, inputs, bias)

    def _transform_context(self, quant: GridQuant, inputs: Grid | None, bias: Tensor | None) -> tuple[object, ...]:
        """No floor or a floor, the grid of the input for each output, and the bias that is added to the products."""
        found = self._floor_context(quant, inputs, bias)
        follower = self.bias_quant
        if follower is None or not follower.follows_input or self._lacks("bias"):
            return (False, None, inputs, None)
        by_output = None if inputs is None else self._inputs_by_output(inputs)
        if by_output is None:
            return (False, None, inputs, None)
        return (False, found[1] if found else None, by_output, self.tensor_of("bias") if bias is None else bias)

    def _floor_context(self, quant: TensorQuant, inputs: Grid | None, bias: Tensor | None) -> tuple[object, ...]:
        if inputs is None or self._lacks("bias") or not isinstance(self.bias_quant, BiasQuant):
            return ()
        bias, follower = self.tensor_of("bias") if bias is None else bias, self.bias_quant
        if not isinstance(quant, GridQuant) or type(quant)._quantize is not GridQuant._quantize:
            return ()
        by_output = self._inputs_by_output(inputs)
        if by_output is None:
            return ()
        by_channel = not quant.granularity.single and self._one_scale_each(quant.granularity)
        floor = follower.floor(bias, by_output, by_channel, getattr(quant.transform, "accumulator_bit_width", None))
        return () if floor is None else (False, floor)

    def _inputs_by_output(self, inputs: Grid) -> Grid | None:
        """The grid of the input with one scale, or, of a depthwise layer, as many as there are outputs."""
        if inputs.scale.numel() == 1:
            return inputs
        ones, each = self._per_output(inputs, Grid(inputs.scale.new_ones(())))
        if ones is None or each is None or ones.scale.numel() != 1:
            return None
        return ones.replace(scale=ones.scale * each.scale, granularity=PerAxis(0))

    def _take_bias(self, inputs: Grid | None, weights: Grid | None) -> tuple[Tensor | None, Grid | None]:
        """The quantized bias and its grid."""
        quant, bias = self.bias_quant, self.bias
        if quant is None or bias is None:
            return bias, None
        context = self._per_output(inputs, weights) if quant.follows_input else ()
        return self._take("bias", quant, context, inputs)

    def _per_output(self, inputs: Grid | None, weights: Grid | None) -> tuple[Grid | None, Grid | None]:
        """The grids whose scales multiply: of the input, and of the weight with one for each output, or one for all."""
        return inputs, weights

    def _output_grid(
        self, inputs: Grid | None, weights: Grid | None, biases: Grid | None, ndim: int, dtype: torch.dtype
    ) -> Grid:
        """The grid of sums of products: input scale x weight scale."""
        for tensor, grid in (("input", inputs), ("weight", weights)):
            if grid is not None and not isinstance(grid.number_format, Integers):
                raise QuantizerError(
                    f"{path_of(self)}: {self._asks_for_grid()} needs outputs that lie on a grid, and products with "
                    f"the levels of the {tensor}, {grid.number_format}, lie on none. Set output_quant=Int8Act, or "
                    "return_quant_tensor=False."
                )
        inputs, weights = self._per_output(inputs, weights)
        assert inputs is not None
        assert weights is not None
        if inputs.scale.numel() != 1 or several(inputs):
            raise QuantizerError(
                f"{path_of(self)}: {in_words(inputs)}, so its products with the weight lie on no common grid. Quantize "
                "the input per tensor (axis=None), or set output_quant=Int8Act."
            )
        scale = inputs.scale.reshape(-1) * weights.scale.reshape(-1)
        granularity: Granularity = PerTensor()
        if scale.numel() == 1:
            scale = scale.reshape(())
        else:
            granularity = PerAxis(self._output_axis(ndim))
            scale = along_axis(scale, granularity.axis, ndim)
        width = self._sum_bit_width(inputs, weights, biases)
        low, high = self._sum_bounds(inputs, weights)
        spare = bits_to_spare(max(-low, high), dtype)
        source = products_source(inputs.source, weights.source)
        return Grid(scale, None, Integers(width), granularity, source, spare)

    def _output_axis(self, ndim: int) -> int:
        """The dimension of an output of so many dimensions that counts the channels; also without a batch."""
        return ndim - self.weight.ndim + 1

    def _sum_bounds(self, inputs: Grid, weights: Grid) -> tuple[int, int]:
        """The smallest and the largest sum of products that the integer ranges allow."""
        sides = []
        for grid in (inputs, weights):
            low, high = _bounds(grid)
            if grid.zero_point is not None:  # integers are used minus the zero point, which lies in range
                low, high = low - high, high - low
            sides.append((low, high))
        products = [one * other for one in sides[0] for other in sides[1]]
        return self._fan_in() * min(products), self._fan_in() * max(products)

    def _sum_bit_width(self, inputs: Grid, weights: Grid, biases: Grid | None) -> int:
        """Bits that hold every sum the integer ranges allow, sign included."""
        low, high = self._sum_bounds(inputs, weights)
        if biases is not None:
            lowest, highest = _bounds(biases)
            low, high = low + lowest, high + highest
        return max(high.bit_length(), (-low - 1).bit_length()) + 1  # and the sign

    def _fan_in(self) -> int:
        """How many products one output sums at most."""
        return math.prod(self.weight.shape[1:])

    # What the layer can be asked for

    @contextmanager
    def _asked(self, quant: TensorQuant) -> Iterator[None]:
        """A quantizer that is asked, and measures nothing; what is kept in a frozen model is not the answer."""
        kept, self._kept = self._kept, None
        try:
            with resting(quant):
                yield
        finally:
            self._kept = kept

    def _inputs_known(self) -> Grid | None:
        """The grid of the last input; before there was one, what a transform can have of the layer's own quantizer."""
        quant, weights = self.input_quant, self.weight_quant
        asked = isinstance(weights, GridQuant) and weights.transform is not None
        if self._seen is not None or not asked or not isinstance(quant, GridQuant) or not quant.granularity.single:
            return self._seen
        if quant.calibrated and not quant.dynamic:
            return quant.grid(self.weight.new_zeros(1))
        zero_point = None if quant.zero_point is None else self.weight.new_zeros(())
        return Grid(self.weight.new_full((), math.inf), zero_point, quant.number_format)  # a bias has no integers yet

    def quant_weight(self) -> Tensor:
        """The quantized weight as a `QuantTensor`; the plain weight if it has no quantizer."""
        quant = self.weight_quant
        if quant is None:
            return self.weight if self.quantizes_parameters else self.tensor_of("weight")
        with self._asked(quant):
            values, grid = self._take_weight(self._inputs_known())
        return values if grid is None else QuantTensor.wrap(values, self._grid_as_stored(grid))

    def quant_bias(self) -> Tensor | None:
        """The quantized bias as a `QuantTensor`; the plain bias, or None, if there is no quantizer or bias.

        Raises:
            QuantizerError: its scale depends on the input, and no input was seen yet.
        """
        quant = self.bias_quant
        if self._lacks("bias"):
            return None
        if quant is None:
            return self.tensor_of("bias")
        context = self._bias_context(quant)
        with self._asked(quant):
            values, grid = quant.quantize(self.tensor_of("bias"), *context)
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
        assert self.weight_quant is not None
        with self._asked(self.weight_quant):
            weights = self._take_weight(self._seen)[1]
        return self._per_output(self._seen, weights)

    def int_weight(self) -> Tensor:
        """The weight's integers, in the smallest integer type that holds their range.

        Raises:
            QuantizerError: the weight has no quantizer.
        """
        if self.weight_quant is None:
            raise QuantizerError(f"{Described(self)}: the weight has no quantizer, so it has no integers.")
        with self._asked(self.weight_quant):
            context = self._weight_context(self.weight_quant, self._inputs_known())
            return self._as_stored(self.weight_quant.codes(self.tensor_of("weight"), *context)[0])

    def int_bias(self) -> Tensor | None:
        """The bias's integers, or None if there is no bias.

        Raises:
            QuantizerError: the bias has no quantizer, or its scale depends on an input that was not seen yet.
        """
        if self._lacks("bias"):
            return None
        if self.bias_quant is None:
            raise QuantizerError(
                f"{Described(self)}: the bias has no quantizer, so it has no integers. Write bias_quant=Int32Bias."
            )
        context = self._bias_context(self.bias_quant)
        with self._asked(self.bias_quant):
            return self.bias_quant.codes(self.tensor_of("bias"), *context)[0]

    @property
    def output_bit_width(self) -> int | None:
        """Bits of the output's integers: the output quantizer's, or what the sums of products need at most.

        None where the output is no integers: without quantized weight or input, or before one was seen.
        """
        if self.output_quant is not None:
            width = self.output_quant.bit_width
            return int(width()) if isinstance(width, nn.Module) else int(width)
        if self.weight_quant is None or self._seen is None:
            return None
        with torch.no_grad(), self._asked(self.weight_quant):
            weights = self._take_weight(self._seen)[1]
            biases = None
            if self.bias_quant is not None and self.bias_quant.follows_input and not self._lacks("bias"):
                biases = self.bias_quant.quantize(self.tensor_of("bias"), *self._bias_context(self.bias_quant))[1]
            return None if weights is None else self._sum_bit_width(self._seen, weights, biases)

    # State

    def _apply(self, fn: Callable[[Tensor], Tensor], recurse: bool = True) -> Self:
        self._seen = None
        return super()._apply(fn, recurse)

    def _load_from_state_dict(self, state_dict: dict[str, Tensor], prefix: str, *args: Any, **kwargs: Any) -> None:
        adopt_branch(self, state_dict, prefix)
        super()._load_from_state_dict(state_dict, prefix, *args, **kwargs)
        self._seen = None

    def __getstate__(self) -> dict[str, object]:
        return {**super().__getstate__(), "_seen": None}

    def extra_repr(self) -> str:
        extra = super().extra_repr()
        return f"{extra}, return_quant_tensor=True" if self.return_quant_tensor else extra


def _bounds(grid: Grid) -> tuple[int, int]:
    """The ends of a grid, by fields alone: torch 2.9 compiles no properties of named tuples."""
    levels = integers_of(grid)
    return int_bounds(int(levels.bit_width), levels.signed, levels.narrow_range)


def _misfit(layer: nn.Module, slot: str, granularity: Granularity, ndim: int, usual: int) -> str:
    if isinstance(granularity, PerGroup):
        wrong = f"{slot}_group_axis={granularity.group_axis} is not a dimension of the {slot}, which has {ndim}"
        return f"{Described(layer)}: {wrong}. Write {slot}_group_axis={usual}."
    return f"{Described(layer)}: {granularity} do not fit the {slot}, which has {ndim} dimensions."
