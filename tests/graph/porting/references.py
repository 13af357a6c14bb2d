"""Brevitas' example models, as its package builds them; narrow ones for files of a size to keep."""

import importlib
import json
import re
import sys
from collections.abc import Callable
from contextlib import nullcontext
from pathlib import Path
from typing import Any, NamedTuple
from unittest.mock import MagicMock, patch

import brevitas.nn as qnn  # pyright: ignore[reportMissingImports] - it has an environment of its own
import brevitas.quant as quant  # pyright: ignore[reportMissingImports]
import torch
from brevitas.core.function_wrapper import RoundSte  # pyright: ignore[reportMissingImports]
from brevitas.nn.utils import merge_bn  # pyright: ignore[reportMissingImports]
from brevitas.proxy.groupwise_int_parameter_quant import (  # pyright: ignore[reportMissingImports]
    GroupwiseWeightQuantProxyFromInjector,
)
from torch import Tensor, nn

__all__ = ["REFERENCES", "Reference"]

# What the package prepares sound with: the networks don't need it.
for unused in ("inflect", "librosa", "ruamel", "ruamel.yaml", "scipy", "soundfile", "torch_stft", "unidecode"):
    sys.modules.setdefault(unused, MagicMock())


def _example(path: str) -> Any:
    """A module of Brevitas' examples."""
    return importlib.import_module(f"brevitas_examples.{path}")


CNV, FC, resnet = (_example(f"bnn_pynq.models.{name}") for name in ("CNV", "FC", "resnet"))
mobilenetv1 = _example("imagenet_classification.models.mobilenetv1")
quartznet_models = _example("speech_to_text.quartznet.quartznet")
espcn_models = _example("super_resolution.models.espcn")
generator_brevitas, res_stack_brevitas = (
    _example(f"text_to_speech.melgan.{name}") for name in ("generator_brevitas", "res_stack_brevitas")
)


class Reference(NamedTuple):
    """How a model is made, in its published size or a narrow one, and a batch for it."""

    build: Callable[[bool], nn.Module]
    batch: Callable[[bool], Tensor]
    examples: int = 1  # of a batch, in the file
    spread: float | None = None  # of the weights; None for that of usual first ones


def image(channels: int, size: int) -> Tensor:
    """A batch of images of 8 bits."""
    return torch.randint(0, 256, (8, channels, size, size)) / 255


def fully_connected(weight_bits: int, act_bits: int, width: int) -> Reference:
    """TFC, SFC and LFC: three hidden layers."""

    def build(full: bool) -> nn.Module:
        features, size = ([width] * 3, (28, 28)) if full else ([32, 24, 16], (8, 8))
        return FC.FC(10, weight_bits, act_bits, act_bits, 1, features, size)

    return Reference(build, lambda full: image(1, 28 if full else 8), spread=0.5)


def cnv(weight_bits: int, act_bits: int) -> Reference:
    """The VGG-like network for CIFAR-10."""

    def build(full: bool) -> nn.Module:
        narrow: dict[str, Any] = {
            "CNV_OUT_CH_POOL": [(8, False), (8, True), (12, False), (12, True), (16, False), (16, False)],
            "INTERMEDIATE_FC_FEATURES": [(16, 32), (32, 32)],
            "LAST_FC_IN_FEATURES": 32,
        }
        with nullcontext() if full else patch.multiple(CNV, **narrow):
            return CNV.CNV(10, weight_bits, act_bits, 8, 3)

    return Reference(build, lambda full: image(3, 32), spread=0.5)


class Groups(quant.Int8WeightPerTensorFloat):
    """Weights with a learned scale for each group of four input channels."""

    proxy_class = GroupwiseWeightQuantProxyFromInjector
    scaling_per_output_type = "group"
    scaling_impl_type = "parameter_from_stats"
    group_size = 4
    bit_width = 4


class Quantizers(nn.Module):
    """Layers with every kind of quantizer that has state, side by side."""

    def __init__(self) -> None:
        super().__init__()
        running = {"scaling_impl_type": "stats"}
        channels = {"scaling_per_output_channel": True, "scaling_stats_permute_dims": (1, 0)}
        learned = {"weight_scaling_impl_type": "parameter_from_stats"}
        bits = {"bit_width_impl_type": "parameter", "bit_width": 5}
        self.acts = nn.ModuleDict(
            {
                "collected": qnn.QuantIdentity(),
                "power_of_two": qnn.QuantIdentity(act_quant=quant.Int8ActPerTensorFixedPoint),
                "rounded_power": qnn.QuantIdentity(
                    act_quant=quant.Int8ActPerTensorFixedPoint, restrict_value_float_to_int_impl=RoundSte
                ),
                "logarithm": qnn.QuantIdentity(restrict_scaling_type="log_fp"),
                "running": qnn.QuantIdentity(**running),
                "running_logarithm": qnn.QuantIdentity(restrict_scaling_type="log_fp", **running),
                "running_power_of_two": qnn.QuantIdentity(act_quant=quant.Int8ActPerTensorFixedPoint, **running),
                "shifted": qnn.QuantIdentity(act_quant=quant.ShiftedUint8ActPerTensorFloat),
                "from_range": qnn.QuantIdentity(
                    act_quant=quant.Int8ActPerTensorFloatMinMaxInit, min_val=-2.0, max_val=1.5, bit_width=4
                ),
                "constant": qnn.QuantIdentity(scaling_impl_type="const", min_val=-1.0, max_val=1.0),
                "learned_bits": qnn.QuantIdentity(**bits),
                "kept_bits": qnn.QuantIdentity(bit_width_impl_type="stateful_const", bit_width=6),
                "channels": qnn.QuantIdentity(per_channel_broadcastable_shape=(1, 8), bit_width=4, **channels),
                "relu": qnn.QuantReLU(bit_width=4),
                "tanh": qnn.QuantTanh(),
            }
        )
        shared = qnn.QuantReLU(bit_width=3)
        self.first, self.second = shared, shared
        self.linears = nn.ModuleDict(
            {
                "plain": qnn.QuantLinear(8, 6),
                "grouped": qnn.QuantLinear(8, 6, weight_quant=Groups),
                "mse": qnn.QuantLinear(8, 6, weight_quant=quant.Int8WeightPerTensorFloatMSE, weight_bit_width=4),
                "power_of_two": qnn.QuantLinear(8, 6, weight_quant=quant.Int8WeightPerTensorFixedPointMSE),
                "channels": qnn.QuantLinear(8, 6, weight_quant=quant.Int8WeightPerChannelFloat, **learned),
                "rescaled": qnn.QuantLinear(8, 6, weight_scaling_affine_rescaling_init=0.8),
                "learned_bits": qnn.QuantLinear(8, 6, **{f"weight_{name}": each for name, each in bits.items()}),
                "shifted": qnn.QuantLinear(8, 6, weight_quant=quant.ShiftedUint8WeightPerTensorFloatMSE),
                "integer": qnn.QuantLinear(
                    8,
                    6,
                    input_quant=quant.Int8ActPerTensorFloat,
                    bias_quant=quant.Int32Bias,
                    output_quant=quant.Int8ActPerTensorFloat,
                ),
                "own_bias": qnn.QuantLinear(8, 6, bias_quant=quant.Int8BiasPerTensorFloatInternalScaling),
                "normed": nn.utils.weight_norm(qnn.QuantLinear(8, 6, weight_bit_width=4, **learned)),
                "parametrized": nn.utils.parametrizations.weight_norm(qnn.QuantLinear(8, 6, weight_bit_width=4)),
                "merged": qnn.QuantLinear(8, 6, bias=False, weight_bit_width=4),
            }
        )
        self.conv = qnn.QuantConv2d(2, 4, 2, weight_quant=quant.Int8WeightPerChannelFloatMSE, weight_bit_width=4)
        self.transposed = qnn.QuantConvTranspose2d(
            4, 2, 2, weight_quant=quant.Int8WeightPerChannelFloatMSE, weight_bit_width=4
        )
        self.grouped_conv = qnn.QuantConv2d(8, 3, 2, weight_quant=Groups)
        self.grouped_transposed = qnn.QuantConvTranspose2d(8, 3, 2, weight_quant=Groups)
        merge_bn(self.linears["merged"], nn.BatchNorm1d(6))

    def forward(self, x: Tensor) -> Tensor:
        """All results in one row."""
        found = [each(x) for each in (*self.acts.values(), *self.linears.values())]
        found += [self.first(x), self.second(x - 0.5), self.transposed(self.conv(x.reshape(-1, 2, 2, 2))).flatten(1)]
        grid = x.reshape(8, 8, 1, 1).expand(8, 8, 2, 2)
        found += [each(grid).reshape(8, -1) for each in (self.grouped_conv, self.grouped_transposed)]
        return torch.cat([each.value if hasattr(each, "value") else each for each in found], 1)


class Layers(nn.Module):
    """Layers of other kinds than the networks have: sums, embeddings, pools, upsampling, norms, attention."""

    def __init__(self) -> None:
        super().__init__()
        self.embedding = qnn.QuantEmbedding(16, 8, weight_bit_width=4)
        self.acts = nn.ModuleList(
            [qnn.QuantSigmoid(), qnn.QuantHardSwish(), qnn.QuantHardTanh(min_val=-1.0, max_val=1.0), qnn.QuantTanh()]
        )
        self.add = qnn.QuantEltwiseAdd()
        self.identity = qnn.QuantIdentity(bit_width=6, return_quant_tensor=True)
        self.dropout = nn.Dropout(0.5)
        self.pools = nn.ModuleList(
            [
                qnn.TruncAvgPool2d(2, float_to_int_impl_type="floor"),
                qnn.TruncAvgPool2d(2, bit_width=4),
                qnn.TruncAdaptiveAvgPool2d(1, bit_width=5),
                nn.MaxPool2d(2),
            ]
        )
        self.nearest = qnn.QuantUpsamplingNearest2d(scale_factor=2)
        self.bilinear = qnn.QuantUpsample(scale_factor=2, mode="bilinear", align_corners=False)
        self.scale = qnn.QuantScaleBias(2, bias=True, weight_bit_width=6)
        nn.init.uniform_(self.scale.weight, -1, 1)
        self.attention = qnn.QuantMultiheadAttention(8, 2)
        self.dot = qnn.QuantScaledDotProductAttention()

    def forward(self, x: Tensor) -> Tensor:
        """All results in one row."""
        whole = self.embedding((x.abs() * 5).long().clamp(max=15))
        found = [each(x) for each in self.acts] + [self.add(x, x.flip(1)), whole]
        image = self.dropout(self.identity(x.reshape(-1, 2, 2, 2)))
        found += [each(image) for each in self.pools] + [self.nearest(image), self.bilinear(image)]
        found += [self.scale(image)]
        steps = x[:, None]
        found += [self.attention(steps, steps, steps)[0], self.dot(x[None], x[None] * 0.5, x[None])]
        values = [each.value if hasattr(each, "value") else each for each in found]
        return torch.cat([each.reshape(-1) for each in values])


def espcn(bits: int) -> Reference:
    """Super-resolution by 2."""
    return Reference(
        lambda full: espcn_models.quant_espcn_base(2, bits, bits),
        lambda full: torch.randint(0, 256, (4, 3, *((64, 64) if full else (8, 8)))) / 255,
    )


def melgan() -> Reference:
    """The generator of sound; the narrow one has a sixteenth of the channels."""

    def narrow(make: Callable[..., nn.Module]) -> Callable[..., nn.Module]:
        def made(inputs: int, outputs: int, *rest: Any, **more: Any) -> nn.Module:
            return make(_sixteenth(inputs), _sixteenth(outputs), *rest, **more)

        return made

    def build(full: bool) -> nn.Module:
        if full:
            return generator_brevitas.Generator(80, 8, 16)
        conv, transposed = narrow(generator_brevitas.make_quantconv1d), narrow(generator_brevitas.make_transpconv1d)
        with (
            patch.multiple(generator_brevitas, make_quantconv1d=conv, make_transpconv1d=transposed),
            patch.object(res_stack_brevitas, "make_quantconv1d", conv),
        ):
            return generator_brevitas.Generator(8, 8, 16)

    return Reference(build, lambda full: torch.randn(2, 80, 24) * 2 - 5 if full else torch.randn(2, 8, 2) * 2 - 5)


def _sixteenth(channels: int) -> int:
    return channels // 16 if channels >= 32 else channels


def resnet18() -> Reference:
    """For CIFAR-10; the narrow one has an eighth of the channels."""

    def build(full: bool) -> nn.Module:
        if full:
            return resnet.QuantResNet(resnet.QuantBasicBlock, [2] * 4, act_bit_width=4, weight_bit_width=4)
        make, linear, norm = resnet.make_quant_conv2d, qnn.QuantLinear, nn.BatchNorm2d

        def conv(in_planes: int, planes: int, **rest: Any) -> nn.Module:
            return make(in_planes if in_planes == 3 else in_planes // 8, planes // 8, **rest)

        with (
            patch.object(resnet, "make_quant_conv2d", conv),
            patch.object(qnn, "QuantLinear", lambda inputs, *rest, **more: linear(inputs // 8, *rest, **more)),
            patch.object(nn, "BatchNorm2d", _Eighth),
        ):
            assert issubclass(_Eighth, norm)
            return resnet.QuantResNet(resnet.QuantBasicBlock, [2] * 4, act_bit_width=4, weight_bit_width=4)

    return Reference(build, lambda full: torch.randint(0, 256, (4, 3, 32, 32)) / 255)


class _Eighth(nn.BatchNorm2d):
    def __init__(self, channels: int) -> None:
        super().__init__(channels // 8)


def mobilenet() -> Reference:
    """For ImageNet; the narrow one has fewer stages."""

    def build(full: bool) -> nn.Module:
        channels = (
            [[32], [64], [128, 128], [256, 256], [512] * 6, [1024, 1024]] if full else [[8], [12], [16, 16], [24]]
        )
        return mobilenetv1.MobileNet(
            channels,
            False,
            4,
            4,
            last_layer_bit_width=4,
            **({} if full else {"avg_pool_kernel_size": 3, "num_classes": 10}),
        )

    return Reference(build, lambda full: torch.randn(2, 3, *((224, 224) if full else (25, 25))))


class Speech(nn.Module):
    """QuartzNet between its spectrogram and its letters."""

    def __init__(self, jasper: list[dict[str, Any]], features: int) -> None:
        super().__init__()
        self.encoder = quartznet_models.JasperEncoder(
            jasper=jasper,
            outer_bit_width=8,
            inner_bit_width=4,
            weight_scaling_per_output_channel=True,
            absolute_act_val=1,
            activation_inner_scaling_per_output_channel=True,
            activation_other_scaling_per_output_channel=False,
            activation="relu",
            feat_in=features,
            conv_mask=False,
        )
        self.decoder = quartznet_models.JasperDecoderForCTC(
            feat_in=jasper[-1]["filters"], num_classes=28, bit_width=8, weight_scaling_per_channel=False
        )

    def forward(self, x: Tensor) -> Tensor:
        """Logarithms of probabilities."""
        return self.decoder(self.encoder(x))


def _topology() -> list[dict[str, Any]]:
    """The blocks that the package lists in a file; without a reader of YAML."""
    path = Path(_example("speech_to_text").__file__).parent / "cfg" / "topology" / "quartznet15x5.yaml"
    blocks = re.split(r"\n\s+- (?=filters)", path.read_text().partition("labels:")[0])[1:]
    return [{name: json.loads(each) for name, each in re.findall(r"(\w+): (\S+)", block)} for block in blocks]


def quartznet() -> Reference:
    """Speech to letters; the narrow one has one block of each kind."""
    jasper = _topology()
    narrow = [{**jasper[number], "filters": width} for number, width in ((0, 12), (1, 12), (9, 16), (16, 16), (17, 20))]
    narrow = [{**each, "repeat": min(2, each["repeat"])} for each in narrow]
    return Reference(
        lambda full: Speech(jasper if full else narrow, 64 if full else 8),
        lambda full: torch.randn(2, 64, 96) if full else torch.randn(2, 8, 48),
    )


REFERENCES = {
    "layers": Reference(lambda full: Layers(), lambda full: torch.randn(8, 8), 8),
    "resnet18_4w4a": resnet18(),
    "mobilenet_v1_4b": mobilenet(),
    "quartznet_4b": quartznet(),
    "espcn_w4a4": espcn(4),
    "espcn_w8a8": espcn(8),
    "melgan_8b": melgan(),
    "quantizers": Reference(lambda full: Quantizers(), lambda full: torch.randn(8, 8), 8),
    "tfc_1w1a": fully_connected(1, 1, 64),
    "tfc_1w2a": fully_connected(1, 2, 64),
    "tfc_2w2a": fully_connected(2, 2, 64),
    "cnv_1w1a": cnv(1, 1),
    "cnv_1w2a": cnv(1, 2),
    "cnv_2w2a": cnv(2, 2),
}
