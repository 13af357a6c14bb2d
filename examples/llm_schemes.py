"""How the layers of a language model are quantized: rules, from a few words."""

from dataclasses import dataclass
from typing import Any

from torch import nn
from torch.nn import functional as F

from bitwright import quantizers
from bitwright.graph import last
from bitwright.qcore.declare.inject import QuantizerType

__all__ = ["ACTIVATIONS", "CACHES", "WEIGHTS", "Scheme"]


@dataclass(frozen=True)
class Weights:
    """A number format of weights, by what shares a scale: a group of neighbours, or all that an output reads."""

    grouped: QuantizerType
    whole: QuantizerType | None = None
    bits: int | None = None
    group: int | None = None  # the only size that the format has

    def settings(self, group: int) -> dict[str, Any]:
        """Keywords of a layer; group 0 is one scale for each output."""
        if self.group is not None:
            return {"weight_quant": self.grouped}
        found: dict[str, Any] = {"weight_quant": self.grouped, "weight_group_size": group}
        if not group:
            if self.whole is None:
                raise SystemExit(f"{self.grouped.__name__} is for groups. Write --group 64.")
            found = {"weight_quant": self.whole}
        return found if self.bits is None else {**found, "weight_bit_width": self.bits}


WEIGHTS = {
    **{
        f"int{bits}": Weights(quantizers.Int8WeightPerGroup, quantizers.Int8WeightPerChannel, bits)
        for bits in (2, 3, 4, 5, 6, 8)
    },
    **{
        f"uint{bits}": Weights(quantizers.ShiftedUint8WeightPerGroup, quantizers.ShiftedUint8WeightPerChannel, bits)
        for bits in (2, 3, 4)
    },
    "nf4": Weights(quantizers.NF4Weight),
    "mxfp4": Weights(quantizers.MXFloat4e2m1Weight, group=32),
    "mxfp8": Weights(quantizers.MXFloat8e4m3Weight, group=32),
    "nvfp4": Weights(quantizers.NVFloat4Weight, group=16),
}
"""By --weights. ``int`` is symmetric, ``uint`` has a zero point."""

ACTIVATIONS = {
    "int8": quantizers.Int8DynamicActPerToken,
    "uint8": quantizers.ShiftedUint8DynamicActPerToken,
    "int4": quantizers.Int4DynamicActPerToken,
    "fp8": quantizers.Fp8e4m3DynamicActPerToken,
    "mxfp8": quantizers.MXFloat8e4m3Act,
    "mxfp4": quantizers.MXFloat4e2m1Act,
    "static8": quantizers.Int8Act,
}
"""By --activations: what every linear layer reads. All but ``static8`` follow each token; that one is calibrated."""

CACHES = {
    "int8": quantizers.Int8DynamicActPerToken,
    "uint8": quantizers.ShiftedUint8DynamicActPerToken,
    "int4": quantizers.Int4DynamicActPerToken,
    "uint4": quantizers.ShiftedUint4DynamicActPerToken,
    "fp8": quantizers.Fp8e4m3DynamicActPerToken,
}
"""By --cache: keys and values of attention, each head of each token on its own."""


@dataclass(frozen=True)
class Scheme:
    """What is quantized, and to what.

    Attributes:
        weights: of linear layers, in `WEIGHTS`.
        group: how many neighbours share a scale; 0: all weights of an output.
        activations: what linear layers read, in `ACTIVATIONS`.
        cache: keys and values, in `CACHES`.
        head: weights of the last layer, likewise; None leaves it float.
    """

    weights: str | None = "int4"
    group: int = 128
    activations: str | None = None
    cache: str | None = None
    head: str | None = None

    def rules(self) -> dict[Any, Any]:
        """Rules for `bitwright.graph.quantize`."""
        rules: dict[Any, Any] = {}
        if self.weights is not None:
            rules[nn.Linear] = WEIGHTS[self.weights].settings(self.group)
            if self.activations is not None:
                rules[nn.Linear] |= {"input_quant": ACTIVATIONS[self.activations]}
            rules[last(nn.Linear)] = None if self.head is None else WEIGHTS[self.head].settings(self.group)
        if self.cache is not None:
            # A token's key and value have scales of their own: quantized here, where attention reads them, they are
            # what they would be if they had been quantized when they entered the cache.
            quantizer = CACHES[self.cache]
            rules[F.scaled_dot_product_attention] = {"key_quant": quantizer, "value_quant": quantizer}
        return rules

    def __str__(self) -> str:
        """Such as ``int4 g128, activations int8, cache int8``."""
        parts = []
        if self.weights is not None:
            group = WEIGHTS[self.weights].group or self.group
            parts.append(f"{self.weights} g{group}" if group else self.weights)
        parts += [f"{name} {each}" for name in ("activations", "cache", "head") if (each := getattr(self, name))]
        return ", ".join(parts) or "float"
