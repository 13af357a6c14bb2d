"""Post-training quantization by bitwright."""

from collections.abc import Callable
from contextlib import suppress
from typing import Any

from torch import Tensor, nn

from bitwright.graph import (
    GraphError,
    adaround,
    autoround,
    calibrate,
    correct_biases,
    fold_batch_norms,
    gpfq,
    gptq,
    lqer,
    qronos,
    quantize,
    rotate,
)
from bitwright.quantizers import Int8Act, Int8WeightPerChannel, Int8WeightPerChannelMSE

__all__ = ["WAYS"]

REPAIRS: dict[str, Callable[..., object]] = {
    "GPTQ": gptq,
    "GPFQ": gpfq,
    "Qronos": qronos,
    "AutoRound": autoround,
    "AdaRound": adaround,
    "LQER": lqer,
}


def _quantized(model: nn.Module, scheme: Any, batches: list[tuple[Tensor, ...]]) -> nn.Module:
    example = tuple(part[:1] for part in batches[0])
    with suppress(GraphError):  # it has none
        model = fold_batch_norms(model, example)
    if scheme.rotate:
        model = rotate(model, example, where="layers")
    weight = Int8WeightPerChannelMSE if scheme.mse else Int8WeightPerChannel
    rules: dict[str, object] = {"weight_quant": weight, "weight_bit_width": scheme.weight_bits}
    if scheme.act_bits:
        rules |= {"input_quant": Int8Act, "input_bit_width": scheme.act_bits}
    quantized = quantize(model, rules, examples=example)
    if scheme.act_bits:
        with calibrate(quantized):
            for batch in batches:
                quantized(*batch)
    if scheme.repair:
        REPAIRS[scheme.repair](quantized, batches, progress=False)
    if scheme.correct:
        correct_biases(quantized, batches, model)
    return quantized


WAYS: dict[str, Callable[..., nn.Module]] = {"bitwright": _quantized}
