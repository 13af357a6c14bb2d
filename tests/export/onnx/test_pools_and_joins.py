"""Pools, activations, dropout, upsampling, joins and strided same padding in files: 0 differences, off and on."""

import pytest
import torch
from torch import nn

import bitwright.nn as qnn
from bitwright.export import ExportError, export_onnx_qcdq, export_onnx_qdq, verify_onnx
from bitwright.quantizers import Int4Act, Int8Act, Int8ActPerChannel, Int32Bias, ShiftedUint8Act, Uint8Act

pytest.importorskip("onnxruntime")

EXPORTS = {"qcdq": export_onnx_qcdq, "qdq": export_onnx_qdq}
ON = {"return_quant_tensor": True}


def images(seed=0):
    return torch.randn(2, 4, 8, 9, generator=torch.Generator().manual_seed(seed))


class Branches(nn.Module):
    """Layers side by side behind one quantizer, so that one export tests them all; behind each, one needs its grid."""

    def __init__(self, layers, dims=2, convolve=True, entry=Int8Act):
        super().__init__()
        self.dims = dims
        self.entry = qnn.QuantIdentity(act_quant=entry, **ON)
        self.layers = nn.ModuleList(layers)
        kind = {1: qnn.QuantConv1d, 2: qnn.QuantConv2d, 3: qnn.QuantConv3d}[dims]
        self.convs = nn.ModuleList(
            kind(4, 3, 1, bias_quant=Int32Bias) if convolve else nn.Identity() for _ in self.layers
        )

    def forward(self, x):
        x = x if self.dims == 2 else x.flatten(2) if self.dims == 1 else x.unflatten(3, (3, 3))
        x = self.entry(x)
        return tuple(conv(layer(x)) for layer, conv in zip(self.layers, self.convs, strict=True))


def trained(model):
    for seed in range(2):
        model(images(seed))
    qnn.finish_calibration(model)
    return model.eval()


def exported(model, export, x=None, **options):
    """A report of a file against another batch."""
    x = images(2) if x is None else x
    program = EXPORTS[export](model, x, verify=False, **options)
    report = verify_onnx(model, program, images(3))
    assert report.differences == 0, report.table()
    assert report.tie_flips == 0, report.table()
    return program


CASES = {
    "averages": lambda: Branches(
        [
            qnn.QuantAvgPool2d(2, **ON),
            qnn.QuantAvgPool2d(3, 2, 1, True, False, **ON),
            qnn.QuantAvgPool2d(3, 2, 1, True, act_quant=Uint8Act, **ON),
            qnn.QuantAvgPool2d(2, divisor_override=3, **ON),
            qnn.QuantAvgPool2d(2, 2, 0, True, divisor_override=1, act_quant=ShiftedUint8Act, **ON),
            qnn.QuantAdaptiveAvgPool2d(1, **ON),
            qnn.QuantAdaptiveAvgPool2d((4, 3), **ON),
            qnn.QuantAdaptiveAvgPool2d(5, act_quant=Int4Act, **ON),
        ]
    ),
    "maxima": lambda: Branches(
        [
            qnn.QuantMaxPool2d(2),
            qnn.QuantMaxPool2d(3, 2, 1, 1, False, True),
            qnn.QuantMaxPool2d(2, 1, 0, 2, input_quant=Int4Act, **ON),
            qnn.QuantAdaptiveMaxPool2d(1),
            qnn.QuantAdaptiveMaxPool2d((4, 3)),
            qnn.QuantAdaptiveMaxPool2d(5),
        ]
    ),
    "truncating": lambda: Branches(
        [
            qnn.TruncAvgPool2d(2, **ON),
            qnn.TruncAvgPool2d(2, rounding="floor", **ON),
            qnn.TruncAvgPool2d(3, 2, 1, True, False, rounding="half_up", **ON),
            qnn.TruncAvgPool2d(3, 2, 1, bit_width=8, **ON),
            qnn.TruncAvgPool2d(2, bit_width=4, rounding="toward_zero", **ON),
            qnn.TruncAvgPool2d(2, divisor_override=1, **ON),
            qnn.TruncAvgPool2d(2, input_quant=Int4Act, rounding="ceil", **ON),
            qnn.TruncAdaptiveAvgPool2d(1, **ON),
            qnn.TruncAdaptiveAvgPool2d((4, None), **ON),
            qnn.TruncAdaptiveAvgPool2d(5, rounding="floor", **ON),
        ]
    ),
    "truncating with a zero point": lambda: Branches(
        [qnn.TruncAvgPool2d(2, **ON), qnn.TruncAdaptiveAvgPool2d(3, **ON)], entry=ShiftedUint8Act
    ),
    "truncating per channel": lambda: Branches([qnn.TruncAvgPool2d(2)], entry=Int8ActPerChannel, convolve=False),
    "activations": lambda: Branches(
        [
            qnn.QuantELU(0.5, **ON),
            qnn.QuantCELU(0.5, **ON),
            qnn.QuantSELU(**ON),
            qnn.QuantMish(**ON),
            qnn.QuantSoftplus(2.0, 5.0, **ON),
            qnn.QuantHardsigmoid(**ON),
            qnn.QuantLogSigmoid(**ON),
            qnn.QuantLogSoftmax(1, act_quant=Int4Act, **ON),
        ]
    ),
    "dropout and upsampling": lambda: Branches(
        [
            qnn.QuantDropout(),
            qnn.QuantDropout2d(act_quant=Int4Act, **ON),
            qnn.QuantUpsample(None, 2),
            qnn.QuantUpsample((12, 20), None, "nearest-exact"),
            qnn.QuantUpsample(None, 2, "bilinear", act_quant=Int8Act, **ON),
            qnn.QuantUpsample(None, 2, "bicubic", True, act_quant=Int8Act, **ON),
            qnn.QuantUpsamplingNearest2d(None, 2),
            qnn.QuantUpsamplingBilinear2d((12, 20), **ON),
        ]
    ),
    "same padding with a stride": lambda: Branches(
        [
            qnn.QuantConv2d(4, 4, 3, 2, "same", bias_quant=Int32Bias, output_quant=Int8Act, **ON),
            qnn.QuantConv2d(4, 4, 2, (3, 2), "same", output_quant=Int8Act, **ON),
            qnn.QuantConv2d(4, 4, (3, 2), 2, "same", (1, 2), 2, padding_mode="replicate", output_quant=Int8Act, **ON),
        ],
        entry=ShiftedUint8Act,
    ),
    "1-D": lambda: Branches(
        [
            qnn.QuantAvgPool1d(3, 2, 1, True, False, **ON),
            qnn.QuantAdaptiveAvgPool1d(5, **ON),
            qnn.QuantMaxPool1d(3, 2, 1),
            qnn.QuantAdaptiveMaxPool1d(5),
            qnn.QuantDropout1d(),
            qnn.QuantUpsample(None, 2, "linear", act_quant=Int8Act, **ON),
            qnn.QuantConv1d(4, 4, 3, 2, "same", output_quant=Int8Act, **ON),
        ],
        dims=1,
    ),
    "3-D": lambda: Branches(
        [
            qnn.QuantAvgPool3d(2, 1, divisor_override=3, **ON),
            qnn.QuantAdaptiveAvgPool3d((3, 2, 2), **ON),
            qnn.QuantMaxPool3d(3, 2, 1),
            qnn.QuantAdaptiveMaxPool3d((3, 2, 2)),
            qnn.QuantUpsample(None, 2, "trilinear", act_quant=Int8Act, **ON),
            qnn.QuantConv3d(4, 4, 3, 2, "same", output_quant=Int8Act, **ON),
        ],
        dims=3,
    ),
}


@pytest.mark.parametrize("name", ["maxima", "truncating with a zero point"])
def test_some_layers_have_no_differences(name):
    exported(trained(CASES[name]()), "qcdq")


@pytest.mark.slow
@pytest.mark.parametrize("export", EXPORTS)
@pytest.mark.parametrize("name", CASES)
def test_all_layers_have_no_differences(name, export):
    exported(trained(CASES[name]()), export)


class Joins(nn.Module):
    """Every join of two tensors, on grids of their own and on one."""

    def __init__(self):
        super().__init__()
        self.a, self.b = qnn.QuantIdentity(**ON), qnn.QuantIdentity(act_quant=Uint8Act, **ON)
        self.add, self.sum = qnn.QuantAdd(**ON), qnn.QuantAdd(act_quant=None, **ON)
        self.own = qnn.QuantAdd(input_quant=None, bit_width=4)
        self.cat, self.mul, self.matmul = qnn.QuantCat(**ON), qnn.QuantMul(), qnn.QuantMatmul(input_bit_width=4)
        self.conv = qnn.QuantConv2d(4, 3, 1, bias_quant=Int32Bias)

    def forward(self, x):
        a, b = self.a(x), self.b(x.flip(1))
        return (
            self.conv(self.add(a, b)),
            self.sum(a, b),
            self.own(a, b),
            self.cat([a, b, a], dim=1),
            self.mul(a, b),
            self.matmul(a, b.transpose(-1, -2)),
        )


@pytest.mark.parametrize("export", ["qcdq", pytest.param("qdq", marks=pytest.mark.slow)])
def test_joins_have_no_differences(export):
    exported(trained(Joins()), export)


def test_a_size_that_is_left_open():
    layers = [
        qnn.TruncAvgPool2d(2, **ON),
        qnn.QuantAvgPool2d(2, divisor_override=3, **ON),
        qnn.QuantMaxPool2d(2),
        qnn.QuantConv2d(4, 4, 3, 2, "same", output_quant=Int8Act, **ON),
    ]
    model = trained(Branches(layers))
    size = {2: torch.export.Dim("height", min=4, max=64), 3: torch.export.Dim("width", min=4, max=64)}
    program = export_onnx_qcdq(model, images(2), verify=False, dynamic_shapes=(size,))
    for seed, shape in enumerate([(2, 4, 8, 9), (2, 4, 11, 6)]):
        x = torch.randn(shape, generator=torch.Generator().manual_seed(seed))
        report = verify_onnx(model, program, x)
        assert (report.differences, report.tie_flips) == (0, 0), report.table()


def test_indices_are_an_output_of_the_file():
    model = nn.Sequential(qnn.QuantIdentity(scale=0.1, **ON), qnn.QuantMaxPool2d(2, return_indices=True)).eval()
    exported(model, "qcdq")


def test_torchs_own_pooling_with_a_divisor_is_still_refused():
    model = nn.Sequential(qnn.QuantIdentity(scale=0.1), nn.AvgPool2d(2, divisor_override=3)).eval()
    with pytest.raises(ExportError) as caught:
        export_onnx_qcdq(model, images())
    assert str(caught.value) == (
        "torch.onnx.export would write 1 operation of this model as something else:\n"
        "  1 (AvgPool2d): average pooling with divisor_override=3, which it drops. Write it without ceil_mode, with "
        "count_include_pad=True, and multiply: avg_pool(x) * (4 / 3)."
    )
