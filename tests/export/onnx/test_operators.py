"""Arguments that torch's ONNX exporter drops are refused, by module; those that it writes right are not."""

import re

import pytest
import torch
import torch.nn.functional as F
from torch import nn

import bitwright.nn as qnn
from bitwright.export import ExportError, export_onnx_qcdq

IMAGE, VOLUME = torch.randn(2, 4, 12, 9), torch.randn(2, 4, 6, 4, 8)
HEADLINE = "torch.onnx.export would write {} of this model as something else:"


class Applies(nn.Module):
    def __init__(self, function):
        super().__init__()
        self.function = function

    def forward(self, x):
        return self.function(x)


def around(function):
    """A model with quantizers, and one module that applies the function."""
    return nn.Sequential(qnn.QuantIdentity(scale=0.05), nn.Sequential(Applies(function))).eval()


def pooling(dimensions, **settings):
    pool = F.avg_pool2d if dimensions == 2 else F.avg_pool3d
    return lambda x: pool(x, 2, **settings)


def resizing(**settings):
    return lambda x: F.interpolate(x, antialias=True, **{"mode": "bilinear", **settings})


DROPPED_DIVISOR = (
    "average pooling with divisor_override={}, which it drops. Write it without ceil_mode, with "
    "count_include_pad=True, and multiply: avg_pool(x) * ({} / {})."
)
CORNERS = (
    "interpolate(antialias=True, align_corners=True), whose corners it does not align. Write align_corners=False, or "
    "antialias=False."
)
FACTOR = (
    "interpolate(antialias=True) by a factor that gives no whole size, which it counts otherwise. Write "
    "recompute_scale_factor=True, or size= in place of scale_factor=."
)


@pytest.mark.parametrize(
    ("function", "x", "problem"),
    [
        (pooling(2, divisor_override=3), IMAGE, DROPPED_DIVISOR.format(3, 4, 3)),
        (pooling(3, divisor_override=3), VOLUME, DROPPED_DIVISOR.format(3, 8, 3)),
        (pooling(2, divisor_override=4, ceil_mode=True), IMAGE, DROPPED_DIVISOR.format(4, 4, 4)),
        (
            pooling(2, divisor_override=4, padding=1, count_include_pad=False),
            IMAGE,
            DROPPED_DIVISOR.format(4, 4, 4),
        ),
        (resizing(size=(5, 4), align_corners=True), IMAGE, CORNERS),
        (resizing(size=(5, 4), align_corners=True, mode="bicubic"), IMAGE, CORNERS),
        (resizing(scale_factor=0.6), IMAGE, FACTOR),
        (resizing(scale_factor=(0.5, 0.6), mode="bicubic"), IMAGE, FACTOR),
    ],
)
def test_a_dropped_argument_is_refused(function, x, problem):
    text = f"{HEADLINE.format('1 operation')}\n  1.0 (Applies): {problem}"
    with pytest.raises(ExportError, match=f"^{re.escape(text)}$"):
        export_onnx_qcdq(around(function), x)


@pytest.mark.filterwarnings("ignore:LSTM with projections", "ignore:The tensor attributes")
def test_all_of_them_are_listed():
    layers = (nn.AvgPool2d(2, divisor_override=3), nn.Flatten(2), nn.LSTM(24, 5, proj_size=3, batch_first=True))
    model = nn.Sequential(qnn.QuantIdentity(scale=0.05), *layers)
    text = (
        f"{HEADLINE.format('2 operations')}\n"
        f"  1 (AvgPool2d): {DROPPED_DIVISOR.format(3, 4, 3)}\n"
        "  3 (LSTM): an LSTM with proj_size, whose projection it drops. Write proj_size=0 and a linear layer behind it."
    )
    with pytest.raises(ExportError, match=f"^{re.escape(text)}$"):
        export_onnx_qcdq(model, torch.randn(4, 12, 48))


class Fine(nn.Module):
    """The same operations, with arguments that the file keeps or needs not."""

    def __init__(self):
        super().__init__()
        self.entry = qnn.QuantIdentity(scale=0.05)
        self.lstm = nn.LSTM(9, 5, num_layers=2, bidirectional=True, bias=False, batch_first=True)

    def forward(self, x):
        x = self.entry(x)
        return (
            F.avg_pool2d(x, 2) * (4 / 3),
            F.avg_pool2d(x, 3, 2, 1, divisor_override=9),
            F.avg_pool2d(x, 3, 2, 1, ceil_mode=True, count_include_pad=False),
            F.avg_pool3d(x.unsqueeze(1), 2, divisor_override=8),
            F.interpolate(x, size=(5, 4), mode="bilinear", antialias=True),
            F.interpolate(x, scale_factor=0.6, mode="bicubic", antialias=True, recompute_scale_factor=True),
            F.interpolate(x, scale_factor=(0.25, 2.0), mode="bilinear", antialias=True),
            self.lstm(x[:, 0])[0],
        )


@pytest.mark.filterwarnings("ignore:The tensor attributes")
def test_others_pass_verification():
    export_onnx_qcdq(Fine(), IMAGE)
    free = around(resizing(scale_factor=2.0))
    export_onnx_qcdq(free, IMAGE, dynamic_shapes=({2: "height"},))
    with pytest.raises(ExportError, match="a factor that gives no whole size"):
        export_onnx_qcdq(around(resizing(scale_factor=0.5)), IMAGE, dynamic_shapes=({2: "height"},))
