"""The base of norms over the features of a sample."""

from torch import Tensor

from ...qcore import Grid
from ..slots import Slot
from ..weight_layer import WeightLayer

__all__ = ["NormLayer"]


class NormLayer(WeightLayer):
    """What norms share whose statistics are those of each sample: mean and variance stay floats, the rest may not.

    The input is quantized, normalized in floats, multiplied by the quantized weight, and the bias is added; the output
    is quantized. There is no scale of products, so that a bias has one of its own, ``bias_quant=Int8BiasOwnScale``, and
    ``return_quant_tensor=True`` needs ``output_quant``.

    A layer without a weight (``elementwise_affine=False``) has nothing to quantize there: the default quantizer of the
    weight is left out, any other is refused.
    """

    sums_products = False
    slots: tuple[Slot, ...] = WeightLayer.slots

    def _take_input(self, x: Tensor) -> tuple[Tensor, Grid | None]:
        self._refuse_nested(x)
        return super()._take_input(x)
