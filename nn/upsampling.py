"""Quantized upsampling: the nearest value is one of the input's, any other way makes new ones.

Each takes torch's positional arguments and, by keyword, those of `ActivationLayer`: ``**options`` are the ones that a
layer passes on.
"""

from typing import Any

from torch import nn

from ..quantizers import Int8Act
from .activations.layer import ActivationLayer
from .slots import QuantizerLike

__all__ = ["QuantUpsample", "QuantUpsamplingBilinear2d", "QuantUpsamplingNearest2d"]

_Sizes = int | tuple[int, ...] | None
_Factors = float | tuple[float, ...] | None


class QuantUpsample(ActivationLayer, nn.Upsample):
    """`torch.nn.Upsample`; input (N, C, L), (N, C, H, W) or (N, C, D, H, W).

    With ``mode="nearest"`` or ``"nearest-exact"`` a `QuantTensor` stays on its grid. The other modes take means of
    neighbours, which lie on no grid: give them an ``act_quant``.

    Positional arguments are torch's; for the keyword-only ones see `ActivationLayer`.

    Example:
        >>> import torch
        >>> from bitwright.quantizers import Int8Act
        >>> x = torch.tensor([[[1.0, 2.0]]])
        >>> QuantUpsample(scale_factor=2)(x)
        tensor([[[1., 1., 2., 2.]]])
        >>> QuantUpsample(scale_factor=2, mode="linear", act_quant=Int8Act, scale=0.5)(x)
        tensor([[[1., 1., 2., 2.]]])
    """

    mode: str

    def __init__(
        self,
        size: _Sizes = None,
        scale_factor: _Factors = None,
        mode: str = "nearest",
        align_corners: bool | None = None,
        recompute_scale_factor: bool | None = None,
        *,
        act_quant: QuantizerLike = None,
        **options: Any,
    ) -> None:
        arguments = (size, scale_factor, mode, align_corners, recompute_scale_factor)
        super().__init__(*arguments, act_quant=act_quant, **options)

    @property
    def _keeps_grid(self) -> bool:
        return self.mode in ("nearest", "nearest-exact")


class QuantUpsamplingNearest2d(ActivationLayer, nn.UpsamplingNearest2d):
    """`torch.nn.UpsamplingNearest2d`; input (N, C, H, W). A `QuantTensor` stays on its grid.

    Positional arguments are torch's; for the keyword-only ones see `ActivationLayer`.

    Example:
        >>> import torch
        >>> QuantUpsamplingNearest2d(scale_factor=2)(torch.tensor([[[[1.0, 2.0]]]]))
        tensor([[[[1., 1., 2., 2.],
                  [1., 1., 2., 2.]]]])
    """

    _keeps_grid = True

    def __init__(
        self,
        size: _Sizes = None,
        scale_factor: _Factors = None,
        *,
        act_quant: QuantizerLike = None,
        **options: Any,
    ) -> None:
        super().__init__(size, scale_factor, act_quant=act_quant, **options)


class QuantUpsamplingBilinear2d(ActivationLayer, nn.UpsamplingBilinear2d):
    """`torch.nn.UpsamplingBilinear2d`, quantized; input (N, C, H, W).

    Positional arguments are torch's; for the keyword-only ones see `ActivationLayer`.

    Example:
        >>> import torch
        >>> QuantUpsamplingBilinear2d(size=(1, 3), scale=0.5)(torch.tensor([[[[1.0, 2.0]]]]))
        tensor([[[[1.0000, 1.5000, 2.0000]]]])
    """

    def __init__(
        self,
        size: _Sizes = None,
        scale_factor: _Factors = None,
        *,
        act_quant: QuantizerLike = Int8Act,
        **options: Any,
    ) -> None:
        super().__init__(size, scale_factor, act_quant=act_quant, **options)
