"""Brevitas' example models, ported by hand: in their published sizes, or narrow as golden/ has them."""

from collections.abc import Callable
from functools import partial

from torch import nn

from .espcn import ESPCN
from .layers import Layers
from .melgan import MelGAN
from .mobilenet import STAGES, MobileNetV1
from .pynq import CNV, FullyConnected
from .quantizers import Quantizers
from .quartznet import QUARTZNET, QuartzNet
from .resnet import ResNet18


def _fully_connected(weight_bits: int, act_bits: int, full: bool) -> nn.Module:
    return (
        FullyConnected(weight_bits, act_bits, [64] * 3)
        if full
        else FullyConnected(weight_bits, act_bits, [32, 24, 16], 64)
    )


def _cnv(weight_bits: int, act_bits: int, full: bool) -> nn.Module:
    convs, linears = ([64, 64, 128, 128, 256, 256], [512, 512]) if full else ([8, 8, 12, 12, 16, 16], [32, 32])
    return CNV(weight_bits, act_bits, convs, linears)


def _quartznet(full: bool) -> nn.Module:
    if full:
        return QuartzNet()
    kept = ((0, 12), (1, 12), (9, 16), (16, 16), (17, 20))
    shapes = [QUARTZNET[number]._replace(channels=width) for number, width in kept]
    return QuartzNet([shape._replace(repeat=min(2, shape.repeat)) for shape in shapes], 8)


PORTED: dict[str, Callable[..., nn.Module]] = {
    "layers": lambda full: Layers(),
    "quantizers": lambda full: Quantizers(),
    **{f"tfc_{w}w{a}a": partial(_fully_connected, w, a) for w, a in ((1, 1), (1, 2), (2, 2))},
    **{f"cnv_{w}w{a}a": partial(_cnv, w, a) for w, a in ((1, 1), (1, 2), (2, 2))},
    "espcn_w4a4": lambda full: ESPCN(4),
    "espcn_w8a8": lambda full: ESPCN(8),
    "resnet18_4w4a": lambda full: ResNet18(64 if full else 8),
    "mobilenet_v1_4b": lambda full: (
        MobileNetV1(32, STAGES, 7, 1000) if full else MobileNetV1(8, [[12], [16, 16], [24]], 3, 10)
    ),
    "quartznet_4b": lambda full: _quartznet(full),
    "melgan_8b": lambda full: MelGAN() if full else MelGAN(8, 32),
}
