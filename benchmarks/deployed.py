"""Networks whose exported files are timed, in float and quantized in the ways that onnxruntime has kernels for."""

from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from functools import partial
from typing import Any

import torch
from torch import Tensor, nn

import bitwright.nn as qnn
from bitwright.export import export_onnx_integer, export_onnx_qcdq, export_onnx_qdq
from bitwright.graph import calibrate, fold_batch_norms, quantize
from bitwright.quantizers import Int4WeightPerGroup, Int8Act, Int8WeightPerChannel, Int32Bias, ShiftedUint8Act

from .layers import Layers, Scheme
from .models import Encoder, MobileNetV2, ResNet18

__all__ = ["NETWORKS", "Deployed", "Lstm", "Vgg", "Way", "fold_batch_norm"]

CHANNELS = (32, 32, 64, 64, 128, 128, 256, 256)
CALIBRATION = 5  # batches


class Vgg(nn.Module):
    """Convolutions of 3x3, each with BatchNorm and ReLU; after every other one a max pooling; a linear layer.

    Args:
        quantized: whether weights and activations have 8 bits.
        folded: whether BatchNorm is left out and the convolutions have biases in its place. Where they are quantized,
            these are `Int32Bias`, and so is the linear layer's.
    """

    def __init__(self, quantized: bool, folded: bool) -> None:
        super().__init__()
        bias_quant = Int32Bias if folded else None

        def conv(in_channels: int, out_channels: int) -> nn.Module:
            if not quantized:
                return nn.Conv2d(in_channels, out_channels, 3, padding=1, bias=folded)
            return qnn.QuantConv2d(in_channels, out_channels, 3, padding=1, bias=folded, bias_quant=bias_quant)

        def quantizing(layer: type[nn.Module]) -> nn.Module:
            return layer(calibration_steps=CALIBRATION, return_quant_tensor=folded)

        self.entry = quantizing(qnn.QuantIdentity) if quantized else nn.Identity()
        self.convs, self.norms, self.relus = nn.ModuleList(), nn.ModuleList(), nn.ModuleList()
        for in_channels, out_channels in zip((3, *CHANNELS), CHANNELS, strict=False):
            self.convs.append(conv(in_channels, out_channels))
            self.norms.append(nn.Identity() if folded else nn.BatchNorm2d(out_channels))
            self.relus.append(quantizing(qnn.QuantReLU) if quantized else nn.ReLU())
        self.pool = nn.MaxPool2d(2)
        features = CHANNELS[-1] * 4 * 4
        self.head = qnn.QuantLinear(features, 10, bias_quant=bias_quant) if quantized else nn.Linear(features, 10)

    def forward(
        self,
        images: Tensor,  # (N, 3, 64, 64)
    ) -> Tensor:
        """The logits, (N, 10)."""
        x = self.entry(images)
        for place, (conv, norm, relu) in enumerate(zip(self.convs, self.norms, self.relus, strict=True)):
            x = relu(norm(conv(x)))
            if place % 2:
                x = self.pool(x)
        return self.head(x.flatten(1))


def fold_batch_norm(model: Vgg) -> dict[str, Tensor]:
    """The state dict of the same network without BatchNorm, whose arithmetic moves into weights and biases."""
    state = {name: each for name, each in model.state_dict().items() if not name.startswith("norms")}
    for place, norm in enumerate(model.norms):
        assert isinstance(norm, nn.BatchNorm2d)
        assert norm.running_mean is not None
        assert norm.running_var is not None
        factor = norm.weight / (norm.running_var + norm.eps).sqrt()
        state[f"convs.{place}.weight"] = state[f"convs.{place}.weight"] * factor[:, None, None, None]
        state[f"convs.{place}.bias"] = norm.bias - norm.running_mean * factor
    return state


class Lstm(nn.Module):
    """One LSTM layer; its last state is classified."""

    def __init__(self) -> None:
        super().__init__()
        self.lstm = nn.LSTM(40, 256, batch_first=True)
        self.head = nn.Linear(256, 10)

    def forward(
        self,
        x: Tensor,  # (N, steps, 40)
    ) -> Tensor:
        """The logits, (N, 10)."""
        return self.head(self.lstm(x)[0][:, -1])


@dataclass(frozen=True)
class Way:
    """One way to quantize and export a network.

    Attributes:
        title: what it is.
        model: makes the quantized network from the float one and an input; the float one itself by default.
        options: of the export.
        export: the function.
    """

    title: str
    model: Callable[[nn.Module, Tensor], nn.Module] = lambda network, example: network
    options: dict[str, Any] = field(default_factory=dict)
    export: Callable[..., object] = export_onnx_qdq

    @property
    def exact(self) -> bool:
        """Whether the file has to agree with the model."""
        return not self.options.get("fast")

    @property
    def compares_itself(self) -> bool:
        """Whether the export compares bits, and `verify_onnx` has no more to say."""
        return self.export is export_onnx_integer


@dataclass(frozen=True)
class Deployed:
    """A network with random weights.

    Attributes:
        title: what it is.
        shape: of an input, without the dimension of samples.
        build: makes it, in float.
        ways: in which it is exported, the float one first.
    """

    title: str
    shape: tuple[int, ...]
    build: Callable[[], nn.Module]
    ways: tuple[Way, ...]

    def network(self) -> nn.Module:
        """The float network, evaluating. Its normalizations have statistics, and factors and shifts to fold."""
        torch.manual_seed(0)
        network = self.build().train()
        for module in network.modules():
            if isinstance(module, nn.Conv2d):
                nn.init.kaiming_normal_(module.weight, nonlinearity="relu")
            if isinstance(module, nn.BatchNorm2d):
                nn.init.uniform_(module.weight, 0.5, 1.5)
                nn.init.uniform_(module.bias, -0.5, 0.5)
        with torch.no_grad():
            for batch in _batches(self.shape, 10):
                network(batch)
        return network.eval()


def _batches(shape: tuple[int, ...], count: int) -> Iterator[Tensor]:
    return (torch.randn(4, *shape) for _ in range(count))


def by_rules(network: nn.Module, example: Tensor, *, folded: bool = False, **rules: Any) -> nn.Module:
    """Every layer quantized, calibrated on noise; ``folded``: batch normalizations are, before that."""
    if folded:
        network = fold_batch_norms(network, example)
    quantized = quantize(network, rules, examples=(example,)).eval()
    if "input_quant" in rules:
        with calibrate(quantized), torch.no_grad():
            for batch in _batches(tuple(example.shape[1:]), 3):
                quantized(batch)
    return quantized


def vgg(network: nn.Module, example: Tensor, *, folded: bool) -> nn.Module:
    """The quantized VGG, which is written by hand."""
    assert isinstance(network, Vgg)
    quantized = Vgg(quantized=True, folded=folded)
    quantized.load_state_dict(fold_batch_norm(network) if folded else network.state_dict())
    with torch.no_grad():
        for batch in _batches(tuple(example.shape[1:]), CALIBRATION):
            quantized(batch)
    return quantized.eval()


FAST: dict[str, Any] = {"fast": True}
FLOAT32: dict[str, Any] = {"fast": True, "accuracy_level": 1}
W8, W4 = {"weight_quant": Int8WeightPerChannel}, {"weight_quant": Int4WeightPerGroup}
W8A8 = {**W8, "input_quant": ShiftedUint8Act}
SIGNED = {**W8, "input_quant": Int8Act}
INTEGER_BIASES = {**W8A8, "bias_quant": Int32Bias}
NORMED = (
    Way("float"),
    Way("W8A8, batch norms kept, float biases", partial(by_rules, **W8A8)),
    Way("W8A8, batch norms kept, float biases, `fast=True`", partial(by_rules, **W8A8), FAST),
    Way("W8A8, batch norms folded, `Int32Bias`", partial(by_rules, folded=True, **INTEGER_BIASES)),
    Way("W8A8, batch norms folded, `Int32Bias`, `fast=True`", partial(by_rules, folded=True, **INTEGER_BIASES), FAST),
)
WEIGHTS_ALONE = tuple(
    Way(f"{title}{how}", partial(by_rules, **rules), options)
    for title, rules in (("weights of 8 bits", W8), ("weights of 4 bits in groups of 32", W4))
    for how, options in (("", {}), (", `fast=True`", FAST), (", `fast=True, accuracy_level=1`", FLOAT32))
)
PLAIN = (
    Way("float"),
    Way("W8A8, float biases", partial(by_rules, **W8A8)),
    Way("W8A8, float biases, `fast=True`", partial(by_rules, **W8A8), FAST),
    Way("W8A8, float biases, signed activations", partial(by_rules, **SIGNED)),
    Way("W8A8, `Int32Bias`", partial(by_rules, **INTEGER_BIASES)),
)

NETWORKS = {
    "vgg": Deployed(
        "VGG of 8 convolutions, 64x64",
        (3, 64, 64),
        partial(Vgg, quantized=False, folded=False),
        (
            Way("float"),
            Way("W8A8, batch norms kept, float biases", partial(vgg, folded=False)),
            Way("W8A8, batch norms kept, float biases, QCDQ", partial(vgg, folded=False), {}, export_onnx_qcdq),
            Way("W8A8, batch norms kept, float biases, `fast=True`", partial(vgg, folded=False), FAST),
            Way("W8A8, batch norms folded, `Int32Bias`", partial(vgg, folded=True)),
            Way("W8A8, batch norms folded, `Int32Bias`, QCDQ", partial(vgg, folded=True), {}, export_onnx_qcdq),
            Way("W8A8, batch norms folded, `Int32Bias`, `fast=True`", partial(vgg, folded=True), FAST),
            Way("W8A8, as integer operators", partial(vgg, folded=True), {}, export_onnx_integer),
        ),
    ),
    "resnet": Deployed("ResNet-18, 32x32", (3, 32, 32), lambda: ResNet18(Layers(Scheme())), NORMED),
    "mobilenet": Deployed("MobileNetV2, 224x224", (3, 224, 224), lambda: MobileNetV2(Layers(Scheme())), NORMED),
    "minilm": Deployed(
        "encoder in MiniLM's shape: 6 layers of width 384, 128 tokens",
        (128, 384),
        lambda: Encoder(Layers(Scheme()), depth=6, width=384, heads=12),
        (*PLAIN, *WEIGHTS_ALONE),
    ),
    "lstm": Deployed("LSTM(40, 256), 50 steps", (50, 40), Lstm, (*PLAIN[:3], PLAIN[-1], *WEIGHTS_ALONE)),
    "linear": Deployed(
        "3 linear layers of 1024",
        (1024,),
        lambda: nn.Sequential(*(nn.Linear(1024, 1024) for _ in range(3))),
        (Way("float"), *WEIGHTS_ALONE),
    ),
}
