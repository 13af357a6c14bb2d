"""What `lenet_formats` tells the layers of Brevitas, where it has the format: needs Brevitas 0.13."""

# pyright: reportMissingImports=false
from collections.abc import Mapping
from typing import Any

import brevitas.nn as layers
from brevitas.inject.enum import ScalingPerOutputType
from brevitas.quant import (
    Int8WeightPerChannelFloat,
    SignedBinaryWeightPerTensorConst,
    SignedTernaryWeightPerTensorConst,
)
from brevitas.quant.experimental.float_quant_ocp import Fp8e4m3OCPActPerTensorFloat, Fp8e4m3OCPWeightPerTensorFloat
from brevitas.quant.experimental.mx_quant_ocp import GroupwiseWeightProxyMixin, MXFloat8e4m3Weight

__all__ = ["FORMATS", "layers"]


class _MXFloat4Weight(MXFloat8e4m3Weight):
    bit_width = 4
    exponent_bit_width = 2
    mantissa_bit_width = 1


class _Int4GroupWeight(GroupwiseWeightProxyMixin, Int8WeightPerChannelFloat):
    bit_width = 4
    group_size = 32
    scaling_per_output_type = ScalingPerOutputType.GROUP


FORMATS: dict[str, Mapping[str, Any]] = {
    "FP8 e4m3": {"weight_quant": Fp8e4m3OCPWeightPerTensorFloat, "act_quant": Fp8e4m3OCPActPerTensorFloat},
    "MXFP4 e2m1": {"weight_quant": _MXFloat4Weight},
    "int4, groups of 32": {"weight_quant": _Int4GroupWeight},
    "ternary, scale 0.1": {"weight_quant": SignedTernaryWeightPerTensorConst},
    "binary, scale 0.1": {"weight_quant": SignedBinaryWeightPerTensorConst},
}
