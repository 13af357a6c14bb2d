"""Post-training quantization by Brevitas: layer by layer, and on a traced graph."""

import copy
from collections.abc import Callable
from functools import partial
from typing import Any

import torch
from brevitas.graph.calibrate import (  # pyright: ignore[reportMissingImports] - it has an environment of its own
    bias_correction_mode,
    calibration_mode,
)
from brevitas.graph.gpfq import gpfq_mode  # pyright: ignore[reportMissingImports]
from brevitas.graph.gptq import gptq_mode  # pyright: ignore[reportMissingImports]
from brevitas.graph.qronos import Qronos  # pyright: ignore[reportMissingImports]
from brevitas.graph.quantize import (  # pyright: ignore[reportMissingImports]
    COMPUTE_LAYER_MAP,
    LAYERWISE_COMPUTE_LAYER_MAP,
    layerwise_quantize,
    preprocess_for_quantize,
    quantize,
)
from brevitas.quant import (  # pyright: ignore[reportMissingImports]
    Int8ActPerTensorFloat,
    Int8WeightPerChannelFloat,
    Int8WeightPerChannelFloatMSE,
)
from torch import Tensor, nn

__all__ = ["WAYS"]

Batches = list[tuple[Tensor, ...]]

REPAIRS = {
    "GPTQ": gptq_mode,
    "GPFQ": gpfq_mode,
    "Qronos": partial(gpfq_mode, algorithm_impl=Qronos),
}


def _layers(layers: dict[type, Any], scheme: Any, **acts: Any) -> dict[type, Any]:
    """A map of layers in which convolutions and linear layers follow the scheme."""
    weight = Int8WeightPerChannelFloatMSE if scheme.mse else Int8WeightPerChannelFloat
    settings = {"weight_quant": weight, "weight_bit_width": scheme.weight_bits, "bias_quant": None, **acts}
    return {kind: (layers[kind][0], {**layers[kind][1], **settings}) for kind in (nn.Conv2d, nn.Linear)}


@torch.no_grad()
def _finished(model: nn.Module, scheme: Any, batches: Batches) -> nn.Module:
    """Calibrated, repaired, and corrected."""
    model.eval()
    if scheme.act_bits:
        _run(calibration_mode, model, batches)
    if scheme.repair:
        for batch in batches:
            model(*batch)  # scales that are parameters start here
        with REPAIRS[scheme.repair](model, act_order=True) as repair:
            for _ in range(repair.num_layers):
                for batch in batches:
                    repair.model(*batch)
                repair.update()
    if scheme.correct:
        _run(bias_correction_mode, model, batches)
    return model.eval()


def _run(mode: Callable[[nn.Module], Any], model: nn.Module, batches: Batches) -> None:
    with mode(model):
        for batch in batches:
            model(*batch)


def _by_layers(model: nn.Module, scheme: Any, batches: Batches, **weights: Any) -> nn.Module | None:
    if scheme.rotate or (scheme.repair and scheme.repair not in REPAIRS):
        return None
    model = copy.deepcopy(model)
    if any(isinstance(module, nn.BatchNorm2d) for module in model.modules()):
        model = preprocess_for_quantize(model, relu6_to_relu=False)
    acts = {"input_quant": Int8ActPerTensorFloat, "input_bit_width": scheme.act_bits}
    settings = acts if scheme.act_bits else {"input_quant": None}
    return _finished(
        layerwise_quantize(model, _layers(LAYERWISE_COMPUTE_LAYER_MAP, scheme, **settings, **weights)), scheme, batches
    )


def _with_fixed_scales(model: nn.Module, scheme: Any, batches: Batches) -> nn.Module | None:
    """Its algorithms measure the scale of a weight again on the part that they round, unless it is a parameter."""
    if scheme.mse or not scheme.repair:
        return None  # scales of the least squared error are parameters anyway
    return _by_layers(model, scheme, batches, weight_scaling_impl_type="parameter_from_stats")


def _by_graph(model: nn.Module, scheme: Any, batches: Batches) -> nn.Module | None:
    if scheme.repair or scheme.rotate or not scheme.act_bits:
        return None  # it quantizes activations, too
    model = preprocess_for_quantize(copy.deepcopy(model), relu6_to_relu=False)
    return _finished(quantize(model, compute_layer_map=_layers(COMPUTE_LAYER_MAP, scheme)), scheme, batches)


WAYS: dict[str, Callable[..., nn.Module | None]] = {
    "Brevitas, layers": _by_layers,
    "Brevitas, layers, scales that are parameters": _with_fixed_scales,
    "Brevitas, graph": _by_graph,
}
