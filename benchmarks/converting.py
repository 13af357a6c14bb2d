"""Models made by rule: what conversion, calibration and repair take, and what a converted model costs."""

import time
from collections.abc import Callable
from typing import Any

import torch
from torch import nn

import bitwright.nn as qnn
from bitwright.graph import (
    adaround,
    autoround,
    calibrate,
    correct_biases,
    fold_batch_norms,
    gpfq,
    gptq,
    qronos,
    quantize,
)
from bitwright.quantizers import Int8Act, Int8WeightPerChannel, Int8WeightPerTensor

from .layers import Layers, Scheme
from .models import RESNET18, MobileNetV2
from .networks import WARM_UP, Step
from .timing import Timed
from .workload import Sampler, Workload, absolute

__all__ = ["CONVERTING"]

SETTINGS: dict[str, Any] = {"weight_quant": Int8WeightPerTensor, "input_quant": Int8Act}
RULES: dict[Any, Any] = {nn.Conv2d: SETTINGS, nn.Linear: SETTINGS}
PHOTOS = (8, 3, 224, 224)


class ByHand(Layers):
    """The layers that `RULES` make, written by hand."""

    def conv(self, *args: Any, input_quant: bool = False, **options: Any) -> nn.Module:
        return qnn.QuantConv2d(*args, **options, **SETTINGS)

    def linear(self, *args: Any, input_quant: bool = False) -> nn.Module:  # type: ignore[override]
        return qnn.QuantLinear(*args, **SETTINGS)


def step(library: str) -> Sampler:
    """Times a training step of ResNet-18, W8A8: by hand as "float", converted as "bitwright"."""
    torch.manual_seed(0)
    if library == "float":
        model = RESNET18.build(ByHand(Scheme()))
    else:
        model = quantize(RESNET18.build(Layers(Scheme())), RULES)
    model.train()
    model(RESNET18.batch()[0])
    qnn.finish_calibration(model)
    run = Step(model, list(model.parameters()), RESNET18)
    for _ in range(WARM_UP):
        run()
    return Timed(run)


def mobilenet() -> nn.Module:
    """MobileNetV2 in float, evaluating."""
    torch.manual_seed(0)
    return MobileNetV2(Layers(Scheme())).eval()


def seconds(call: Callable[[], object]) -> float:
    """CPU seconds of a call."""
    begun = time.thread_time()
    call()
    return time.thread_time() - begun


def conversion(library: str) -> Sampler:
    """Times the conversion of MobileNetV2, with an example."""
    model, examples = mobilenet(), (torch.randn(1, *PHOTOS[1:]),)
    if library == "float":
        return lambda: 1.0
    return lambda: seconds(lambda: quantize(model, RULES, examples=examples))


def calibration(library: str) -> Sampler:
    """Times the calibration of MobileNetV2, or the float model's forward on the same batches."""
    model, batches = mobilenet(), [torch.randn(PHOTOS) for _ in range(2)]
    if library == "float":

        def forward() -> None:
            with torch.no_grad():
                for batch in batches:
                    model(batch)

        return lambda: seconds(forward)
    converted = quantize(model, RULES, examples=(batches[0][:1],))

    def calibrated() -> None:
        with calibrate(converted):
            for batch in batches:
                converted(batch)

    return lambda: seconds(calibrated)


def repair(call: Callable[..., object]) -> Callable[[str], Sampler]:
    """Times an algorithm that repairs MobileNetV2, W4 per channel by the largest weight, on 24 images."""

    def build(library: str) -> Sampler:
        if library == "float":
            return lambda: 1.0
        model, images = mobilenet(), torch.randn(24, *PHOTOS[1:])
        for module in model.modules():
            if isinstance(module, nn.Conv2d):  # signals that neither vanish nor explode
                nn.init.kaiming_normal_(module.weight, nonlinearity="relu")
        model = fold_batch_norms(model, images[:1])

        def repaired() -> float:
            quantized = quantize(model, W4, examples=images[:1])
            return seconds(lambda: call(quantized, images))

        return repaired

    return build


OWN = ("bitwright",)
W4 = {"weight_quant": Int8WeightPerChannel, "weight_bit_width": 4}
REPAIRS: dict[str, Callable[..., object]] = {
    "correct_biases": correct_biases,
    "gptq": gptq,
    "gpfq": gpfq,
    "qronos": qronos,
    "autoround": autoround,
    "adaround": adaround,
}

CONVERTING = {
    "converted-step": Workload("ResNet-18, W8A8, training step: converted, against the same by hand", OWN, step),
    "conversion": Workload("`quantize(MobileNetV2, rules, examples=...)`", OWN, conversion, compare=absolute, unit="s"),
    "calibration": Workload(
        "`calibrate` MobileNetV2, W8A8, on 16 photos, against one float forward of them", OWN, calibration
    ),
    **{
        name: Workload(f"`{name}(MobileNetV2, 24 photos)`, W4", OWN, repair(call), compare=absolute, unit="s")
        for name, call in REPAIRS.items()
    },
}
