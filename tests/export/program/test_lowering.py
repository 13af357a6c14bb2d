"""Compilers find the quantizers of a program: kernels for integers take the place of floats."""

import platform

import pytest
import torch
from torch import nn

import bitwright.nn as qnn
from bitwright.export import export_program
from bitwright.quantizers import Int8WeightPerChannel, ShiftedUint8Act

pytestmark = pytest.mark.slow


def model_of(zoo, *layers):
    entry = qnn.QuantIdentity(act_quant=ShiftedUint8Act, return_quant_tensor=True)
    return zoo.trained(nn.Sequential(entry, *layers), torch.randn(4, 3, 8, 8))


@pytest.mark.skipif(
    platform.machine() not in ("x86_64", "AMD64") or not torch.backends.mkldnn.is_available(),
    reason="Inductor's quantization passes are for x86",
)
@pytest.mark.filterwarnings("ignore::DeprecationWarning", "ignore::FutureWarning", "ignore::UserWarning")
def test_inductor_picks_quantized_kernels(zoo):
    from torch._inductor import config
    from torch._inductor.utils import run_and_get_code

    per_channel = {"weight_quant": Int8WeightPerChannel}
    model = model_of(
        zoo,
        qnn.QuantConv2d(3, 8, 3, **per_channel),
        qnn.QuantReLU(),
        nn.Flatten(),
        qnn.QuantIdentity(act_quant=ShiftedUint8Act),
        qnn.QuantLinear(8 * 36, 5, **per_channel),
    )
    x = torch.randn(4, 3, 8, 8)
    program = export_program(model, x)
    with config.patch(freezing=True), torch.no_grad():
        found, code = run_and_get_code(torch.compile(program.module()), x)
    kernels = "\n".join(code)
    assert "onednn.qconv_pointwise" in kernels
    assert "onednn.qlinear_pointwise" in kernels
    expected = model(x)
    assert (found - expected).abs().max() <= 0.02 * expected.abs().max()  # a code next to a boundary may be another


@pytest.mark.filterwarnings("ignore")  # what ExecuTorch and torchao warn of
def test_xnnpack_takes_the_quantized_layers(zoo):
    xnnpack = pytest.importorskip("executorch.backends.xnnpack.partition.xnnpack_partitioner")
    exir = pytest.importorskip("executorch.exir")
    model = nn.Sequential(
        qnn.QuantIdentity(), qnn.QuantLinear(8, 4, weight_quant=Int8WeightPerChannel), qnn.QuantIdentity()
    )
    x = torch.randn(16, 8, generator=torch.Generator().manual_seed(0))
    program = export_program(zoo.trained(model, x), x)
    expected = model(x).detach()
    edge = exir.to_edge_transform_and_lower(program, partitioner=[xnnpack.XnnpackPartitioner()])
    left = [str(node.target) for node in edge.exported_program().graph.nodes if node.op == "call_function"]
    assert left == ["executorch_call_delegate", "<built-in function getitem>"]

    runtime = pytest.importorskip("executorch.runtime").Runtime.get()
    loaded = runtime.load_program(edge.to_executorch().buffer).load_method("forward")
    (found,) = loaded.execute([x])
    steps = (found - expected).abs() / model[-1].act_quant.scale()
    assert steps.max() <= 1.001  # XNNPACK rounds what lies at a boundary otherwise
    assert (steps > 0.5).float().mean() <= 0.05
