"""Quantizers and layers by themselves."""

from collections.abc import Callable
from functools import partial
from typing import Any

import torch
from torch import Tensor, nn

from .layers import CALIBRATING, Layers, Scheme
from .libraries import layers_of
from .timing import Timed
from .workload import Workload

__all__ = ["QUANTIZING"]

SHAPES = {"1e3": (10, 100), "1e4": (100, 100), "1e5": (100, 1000), "1e6": (1000, 1000), "1e7": (2500, 4000)}


def forward_backward(call: Callable[[], Tensor], inputs: list[Tensor]) -> Callable[[], tuple[Tensor, ...]]:
    """A call and its backward, to inputs that require gradients."""
    gradient = torch.randn_like(call().detach())
    return lambda: torch.autograd.grad(call(), inputs, gradient, allow_unused=True)


def cloning(shape: tuple[int, ...]) -> Callable[[], float]:
    """The baseline of quantizers: one copy of the tensor, forward only."""
    return Timed(torch.randn(shape).clone)


def weight(shape: tuple[int, int], backward: bool, library: str) -> Callable[[], float]:
    """Times the quantizer of a weight of 8 bits, in training."""
    if library == "float":
        return cloning(shape)
    layers = layers_of(library, Scheme(8))
    layer: Any = layers.linear(*reversed(shape))

    def quantize() -> Tensor:
        return layers.quant_weight(layer)

    return Timed(forward_backward(quantize, [layer.weight]) if backward else quantize)


def grouped_weight(detached: bool, library: str) -> Callable[[], float]:
    """Times the quantizer of a weight of 4 bits, a scale for each group of 32, in training."""
    shape = (1024, 1024)
    if library == "float":
        return cloning(shape)
    layers = layers_of(library, Scheme(4))
    layer: Any = layers.grouped_linear(*reversed(shape), detached=detached)
    return Timed(forward_backward(lambda: layers.quant_weight(layer), [layer.weight]))


def microscaled_weight(detached: bool, library: str) -> Callable[[], float]:
    """Times the quantizer of an MXFP4 weight, in training."""
    shape = (1024, 1024)
    if library == "float":
        return cloning(shape)
    layers = layers_of(library, Scheme(4))
    layer: Any = layers.microscaled_linear(*reversed(shape), detached=detached)
    return Timed(forward_backward(lambda: layers.quant_weight(layer), [layer.weight]))


def float8_activation(library: str) -> Callable[[], float]:
    """Times the quantizer of an activation to FP8 E4M3, in training."""
    shape = SHAPES["1e6"]
    if library == "float":
        return cloning(shape)
    return train_layer(layers_of(library, Scheme(8, 8)).float8_identity().train(), torch.randn(shape))


def activation(shape: tuple[int, int], backward: bool, calibration_steps: int, library: str) -> Callable[[], float]:
    """Times the quantizer of an activation of 8 bits, in training."""
    if library == "float":
        return cloning(shape)
    layer = layers_of(library, Scheme(8, 8, calibration_steps=calibration_steps)).identity().train()
    return train_layer(layer, torch.randn(shape), backward)


def train_layer(layer: nn.Module, x: Tensor, backward: bool = True) -> Callable[[], float]:
    """Times a layer in training, as inside a network: its input requires a gradient."""
    x.requires_grad_()
    for _ in range(2):
        layer(x)
    call = partial(layer, x)
    wanted = [x, *(parameter for parameter in layer.parameters() if parameter.requires_grad)]
    return Timed(forward_backward(call, wanted) if backward else call)


def evaluate_layer(layers: Layers, layer: nn.Module, x: Tensor) -> Callable[[], float]:
    """Times a layer in evaluation."""
    layer(x)
    layers.evaluated(layer)

    def forward() -> None:
        with torch.no_grad():
            layer(x)

    return Timed(forward)


def linear(layers: Layers) -> tuple[nn.Module, Tensor]:
    """Linear 1024x1024, with a batch of 64."""
    return layers.linear(1024, 1024, input_quant=layers.scheme.act_bits is not None), torch.randn(64, 1024)


def conv(layers: Layers) -> tuple[nn.Module, Tensor]:
    """Conv2d of 64 to 64 channels, 3x3, on 8 images of 32x32."""
    layer = layers.conv(64, 64, 3, padding=1, input_quant=layers.scheme.act_bits is not None)
    return layer, torch.randn(8, 64, 32, 32)


def relu(layers: Layers) -> tuple[nn.Module, Tensor]:
    """ReLU on 8 images of 64 channels, 32x32."""
    return layers.relu(), torch.randn(8, 64, 32, 32)


def layer_step(make: Callable[[Layers], tuple[nn.Module, Tensor]], scheme: Scheme, library: str) -> Callable[[], float]:
    """Times forward and backward of a layer, to its input and its parameters."""
    layer, x = make(layers_of(library, scheme))
    return train_layer(layer.train(), x)


def layer_eval(make: Callable[[Layers], tuple[nn.Module, Tensor]], scheme: Scheme, library: str) -> Callable[[], float]:
    """Times a layer in evaluation."""
    layers = layers_of(library, scheme)
    return evaluate_layer(layers, *make(layers))


ALL = ("bitwright", "torch.ao", "torchao", "Brevitas")
CONVS = ("bitwright", "torch.ao", "Brevitas")
W8, W8A8 = Scheme(8), Scheme(8, 8)
W8A8_CALIBRATING = Scheme(8, 8, calibration_steps=CALIBRATING)
PASSES = {"forward": False, "step": True}


def _quantizers() -> dict[str, Workload]:
    found = {}
    for size, shape in SHAPES.items():
        for name, backward in PASSES.items():
            what = f"{size} elements, {'forward and backward' if backward else 'forward'}"
            found[f"weight-{size}-{name}"] = Workload(f"weight, {what}", ALL, partial(weight, shape, backward))
            found[f"act-{size}-{name}"] = Workload(
                f"activation, learned scale, {what}", ALL, partial(activation, shape, backward, 1)
            )
    for name, detached in {"detached": True, "through": False}.items():
        title = f"weight, 4 bits, groups of 32, 1e6 elements, forward and backward, scale {name}"
        found[f"weight-groups-{name}"] = Workload(title, ("bitwright",), partial(grouped_weight, detached))
        title = f"weight, MXFP4, 1e6 elements, forward and backward, scale {name}"
        found[f"weight-mxfp4-{name}"] = Workload(title, ("bitwright",), partial(microscaled_weight, detached))
    title = "activation, FP8 E4M3, learned scale, 1e6 elements, forward and backward"
    found["act-fp8-1e6-step"] = Workload(title, ("bitwright",), float8_activation)
    for size in ("1e3", "1e5", "1e6"):
        title = f"activation, calibrating, {size} elements, forward and backward"
        make = partial(activation, SHAPES[size], True, CALIBRATING)
        found[f"act-{size}-collecting"] = Workload(title, CONVS, make)
    return found


QUANTIZING = {
    **_quantizers(),
    "linear-w8-step": Workload("Linear 1024x1024, batch 64, W8, step", ALL, partial(layer_step, linear, W8)),
    "linear-step": Workload("Linear 1024x1024, batch 64, W8A8, step", ALL, partial(layer_step, linear, W8A8)),
    "linear-eval": Workload("Linear 1024x1024, batch 64, W8A8, evaluation", ALL, partial(layer_eval, linear, W8A8)),
    "conv-w8-step": Workload("Conv2d(64, 64, 3), 8x64x32x32, W8, step", CONVS, partial(layer_step, conv, W8)),
    "conv-step": Workload("Conv2d(64, 64, 3), 8x64x32x32, W8A8, step", CONVS, partial(layer_step, conv, W8A8)),
    "conv-eval": Workload("Conv2d(64, 64, 3), 8x64x32x32, W8A8, evaluation", CONVS, partial(layer_eval, conv, W8A8)),
    "relu-step": Workload("ReLU, 8x64x32x32, A8, learned scale, step", CONVS, partial(layer_step, relu, W8A8)),
    "relu-collecting": Workload(
        "ReLU, 8x64x32x32, A8, calibrating, step", CONVS, partial(layer_step, relu, W8A8_CALIBRATING)
    ),
    "relu-eval": Workload("ReLU, 8x64x32x32, A8, evaluation", CONVS, partial(layer_eval, relu, W8A8)),
}
