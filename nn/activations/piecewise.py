"""Quantized activations that are made of straight lines.

Each takes torch's positional arguments and, by keyword, those of `ActivationLayer`: ``**options`` are the ones that a
layer passes on.
"""

import numbers
from typing import Any

import torch
from torch import Tensor, nn

from ...qcore import Grid, GridQuant, HalfEven, IntQuant, QuantizerError, TensorQuant
from ...quantizers import Int8Act, ShiftedUint8Act, Uint8Act
from ..slots import Described, QuantizerLike
from .clipping import learns, unclipped
from .layer import ActivationLayer

__all__ = [
    "QuantHardSwish",
    "QuantHardTanh",
    "QuantHardsigmoid",
    "QuantHardswish",
    "QuantHardtanh",
    "QuantIdentity",
    "QuantLeakyReLU",
    "QuantReLU",
    "QuantReLU6",
]


class QuantIdentity(ActivationLayer, nn.Identity):
    """Quantizes its input: for model inputs, and where a tensor needs a grid (residual additions).

    Positional arguments are torch's; for the keyword-only ones see `ActivationLayer`.

    Example:
        >>> import torch
        >>> QuantIdentity(bit_width=4, scale=0.25)(torch.tensor([0.3, 9.0]))
        tensor([0.2500, 1.7500])
    """

    def __init__(self, *, act_quant: QuantizerLike = Int8Act, **options: Any) -> None:
        super().__init__(act_quant=act_quant, **options)


class QuantReLU(ActivationLayer, nn.ReLU):
    """`torch.nn.ReLU`, quantized. Unsigned by default.

    Positional arguments are torch's; for the keyword-only ones see `ActivationLayer`.

    Example:
        >>> import torch
        >>> QuantReLU(bit_width=4, scale=0.25)(torch.tensor([-1.0, 0.3, 9.0]))
        tensor([0.0000, 0.2500, 3.7500])
    """

    def __init__(self, inplace: bool = False, *, act_quant: QuantizerLike = Uint8Act, **options: Any) -> None:
        super().__init__(inplace, act_quant=act_quant, **options)

    def _check_slots(self) -> None:
        super()._check_slots()
        _check_more_than_one_level(self, self.act_quant)

    def _quantized(self, x: Tensor, quant: TensorQuant) -> tuple[Tensor, Grid | None]:
        if quant.intercept is None and isinstance(quant, IntQuant) and quant.folds_relu:
            return quant.quantize(x, True)  # the clamp at the smallest integer, 0, is the ReLU
        return super()._quantized(x, quant)


class QuantReLU6(ActivationLayer, nn.ReLU6):
    """`torch.nn.ReLU6`, quantized. Unsigned by default.

    Positional arguments are torch's; for the keyword-only ones see `ActivationLayer`.

    Example:
        >>> import torch
        >>> QuantReLU6(scale=0.5)(torch.tensor([-1.0, 0.3, 9.0]))
        tensor([0.0000, 0.5000, 6.0000])
    """

    def __init__(self, inplace: bool = False, *, act_quant: QuantizerLike = Uint8Act, **options: Any) -> None:
        super().__init__(inplace, act_quant=act_quant, **options)

    def _check_slots(self) -> None:
        super()._check_slots()
        _check_more_than_one_level(self, self.act_quant)

    def _quantized(self, x: Tensor, quant: TensorQuant) -> tuple[Tensor, Grid | None]:
        return _clipping(self, x, quant)


class QuantLeakyReLU(ActivationLayer, nn.LeakyReLU):
    """`torch.nn.LeakyReLU`, quantized.

    Positional arguments are torch's; for the keyword-only ones see `ActivationLayer`.

    Example:
        >>> import torch
        >>> QuantLeakyReLU(0.5, scale=0.25)(torch.tensor([-1.0, 0.3]))
        tensor([-0.5000,  0.2500])
    """

    def __init__(
        self,
        negative_slope: float = 0.01,
        inplace: bool = False,
        *,
        act_quant: QuantizerLike = Int8Act,
        **options: Any,
    ) -> None:
        super().__init__(negative_slope, inplace, act_quant=act_quant, **options)


class QuantHardTanh(ActivationLayer, nn.Hardtanh):
    """`torch.nn.Hardtanh`, quantized.

    Positional arguments are torch's; for the keyword-only ones see `ActivationLayer`.

    Example:
        >>> import torch
        >>> QuantHardTanh(scale=2**-6)(torch.tensor([-9.0, 0.5]))
        tensor([-1.0000,  0.5000])
        >>> QuantHardtanh is QuantHardTanh  # as torch spells it
        True
    """

    def __init__(
        self,
        min_val: float = -1.0,
        max_val: float = 1.0,
        inplace: bool = False,
        *,
        act_quant: QuantizerLike = Int8Act,
        **options: Any,
    ) -> None:
        if isinstance(min_val, numbers.Real) and isinstance(max_val, numbers.Real) and not min_val < max_val:
            raise QuantizerError(
                f"{type(self).__name__}: max_val={max_val!r} is not possible: expected a number above "
                f"min_val={min_val!r}."
            )
        super().__init__(min_val, max_val, inplace, act_quant=act_quant, **options)

    def _quantized(self, x: Tensor, quant: TensorQuant) -> tuple[Tensor, Grid | None]:
        return _clipping(self, x, quant)


class QuantHardsigmoid(ActivationLayer, nn.Hardsigmoid):
    """`torch.nn.Hardsigmoid`, quantized. Unsigned by default.

    Positional arguments are torch's; for the keyword-only ones see `ActivationLayer`.

    Example:
        >>> import torch
        >>> QuantHardsigmoid(scale=2**-8)(torch.tensor([-9.0, 0.0, 1.5]))
        tensor([0.0000, 0.5000, 0.7500])
    """

    def __init__(self, inplace: bool = False, *, act_quant: QuantizerLike = Uint8Act, **options: Any) -> None:
        super().__init__(inplace, act_quant=act_quant, **options)


class QuantHardSwish(ActivationLayer, nn.Hardswish):
    """`torch.nn.Hardswish`, quantized; with a zero point by default, for its small negative tail.

    Positional arguments are torch's; for the keyword-only ones see `ActivationLayer`.

    Example:
        >>> import torch
        >>> QuantHardSwish(act_quant=Int8Act, scale=0.125)(torch.tensor([-1.5, 3.0]))
        tensor([-0.3750,  3.0000])
        >>> QuantHardswish is QuantHardSwish  # as torch spells it
        True
    """

    def __init__(self, inplace: bool = False, *, act_quant: QuantizerLike = ShiftedUint8Act, **options: Any) -> None:
        super().__init__(inplace, act_quant=act_quant, **options)


QuantHardtanh = QuantHardTanh  # as torch spells them
QuantHardswish = QuantHardSwish


def _clipping(layer: QuantReLU6 | QuantHardTanh, x: Tensor, quant: TensorQuant) -> tuple[Tensor, Grid | None]:
    """The quantized result of a function that clips."""
    if not learns(quant):
        return quant.quantize(layer._function(x))
    before = x.detach().clone() if layer.inplace else x
    return quant.quantize(unclipped(before, layer._function(x), layer.min_val, layer.max_val, quant))


def _check_more_than_one_level(layer: ActivationLayer, quant: TensorQuant | None) -> None:
    """Refuse levels of which a ReLU leaves one, such as -1 and 1: the result would be a constant."""
    if not isinstance(quant, GridQuant) or quant.number_format.has_zero:
        return
    number_format = quant.number_format
    lowest = number_format.nearest(torch.zeros(1), HalfEven()).item()
    if lowest == number_format.high:
        raise QuantizerError(
            f"{Described(layer)}: the levels of act_quant are {number_format}, and after a ReLU all values go to one "
            f"of them, {lowest:g}. Write QuantIdentity(act_quant={quant.quantizer!r}), behind a batch norm."
        )
