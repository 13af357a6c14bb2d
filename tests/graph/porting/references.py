"""Brevitas' example models, as its package builds them; narrow ones for files of a size to keep."""

from collections.abc import Callable
from contextlib import nullcontext
from typing import Any, NamedTuple
from unittest.mock import patch

import torch
from brevitas_examples.bnn_pynq.models import CNV, FC, resnet  # pyright: ignore[reportMissingImports]
from torch import Tensor, nn

__all__ = ["REFERENCES", "Reference"]


class Reference(NamedTuple):
    """How a model is made, in its published size or a narrow one, and a batch for it."""

    build: Callable[[bool], nn.Module]
    batch: Callable[[bool], Tensor]


def image(channels: int, size: int) -> Tensor:
    """A batch of images of 8 bits."""
    return torch.randint(0, 256, (8, channels, size, size)) / 255


def fully_connected(weight_bits: int, act_bits: int, width: int) -> Reference:
    """TFC, SFC and LFC: three hidden layers."""

    def build(full: bool) -> nn.Module:
        features, size = ([width] * 3, (28, 28)) if full else ([32, 24, 16], (8, 8))
        return FC.FC(10, weight_bits, act_bits, act_bits, 1, features, size)

    return Reference(build, lambda full: image(1, 28 if full else 8))


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

    return Reference(build, lambda full: image(3, 32))


REFERENCES = {
    "tfc_1w1a": fully_connected(1, 1, 64),
    "tfc_1w2a": fully_connected(1, 2, 64),
    "tfc_2w2a": fully_connected(2, 2, 64),
    "cnv_1w1a": cnv(1, 1),
    "cnv_1w2a": cnv(1, 2),
    "cnv_2w2a": cnv(2, 2),
}
