"""The activation function with a parameter."""

from collections.abc import Mapping
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.types import Device

from ...qcore import TensorQuant
from ...quantizers import Int8Act, Int8WeightPerTensor
from ..layer import QuantLayer
from ..slots import QuantizerLike, Slot, checked_flag, split_overrides
from .layer import ActivationLayer

__all__ = ["QuantPReLU"]


class QuantPReLU(ActivationLayer, nn.PReLU):
    """`torch.nn.PReLU`, quantized: its slopes, and its result.

    Positional arguments are torch's; for the keyword-only ones see `ActivationLayer`. There is a slot more:

    Args:
        weight_quant: quantizer of the slopes, or None; its settings have the prefix ``weight_``.

    Example:
        >>> layer = QuantPReLU(2, 0.3, weight_scale=0.25, scale=0.5)
        >>> layer(torch.tensor([[-4.0, -2.0], [1.2, 9.0]])).tolist()
        [[-1.0, -0.5], [1.0, 9.0]]
    """

    slots: tuple[Slot, ...] = (*ActivationLayer.slots, Slot("weight", "weight"))
    weight_quant: TensorQuant | None

    def __init__(
        self,
        num_parameters: int = 1,
        init: float = 0.25,
        device: Device = None,
        dtype: torch.dtype | None = None,
        *,
        act_quant: QuantizerLike = Int8Act,
        input_quant: QuantizerLike = None,
        weight_quant: QuantizerLike = Int8WeightPerTensor,
        return_quant_tensor: bool = False,
        **options: object,
    ) -> None:
        nn.PReLU.__init__(self, num_parameters, init, device, dtype)
        given = {"act": act_quant, "input": input_quant, "weight": weight_quant}
        self._equip(given, return_quant_tensor, options)

    def _convert(self, given: Mapping[str, object], device: torch.device | None, dtype: torch.dtype | None) -> None:
        overrides = dict(given)
        quantizers: dict[str, Any] = {}
        for slot in self.slots:
            quantizers[slot.name] = overrides.pop(f"{slot.name}_quant", self.usual_quantizer(slot))
        self._equip(quantizers, overrides.pop("return_quant_tensor", False), overrides)

    def _equip(
        self, quantizers: Mapping[str, QuantizerLike], return_quant_tensor: object, overrides: Mapping[str, object]
    ) -> None:
        """Resolve the slots: keywords without a prefix are for the result."""
        self.return_quant_tensor = checked_flag(self, "return_quant_tensor", return_quant_tensor)
        weights = {keyword: item for keyword, item in overrides.items() if keyword.startswith("weight_")}
        rest = {keyword: item for keyword, item in overrides.items() if keyword not in weights}
        own, inputs = self._split(quantizers["act"], quantizers["input"], rest)
        of_weight = split_overrides(self, {self.slot("weight"): quantizers["weight"]}, weights)
        slots = {slot: quantizers[slot.name] for slot in self.slots}
        self._fill_slots(slots, {"act": own, "input": inputs, **of_weight})

    def _provided(self, slot: Slot) -> dict[str, object]:
        return dict(QuantLayer._provided(self, slot))

    def _function(self, x: Tensor) -> Tensor:
        return F.prelu(x, self.take("weight")[0])
