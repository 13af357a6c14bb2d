"""Every layer goes to ONNX with 0 differences, and says its integers, or that it computes in floats."""

import re
from typing import Any

import pytest
import torch
from torch import Tensor, nn

from bitwright.export import export_onnx_qcdq, export_onnx_qdq, integers, run_integers, verify_onnx
from bitwright.nn import finish_calibration, quantizers_of
from tests.conformance.examples import LAYERS, full, inputs_of, made, values, warm

pytestmark = pytest.mark.filterwarnings("ignore:.* is clipped:bitwright.qcore.BitwrightWarning")

EXPORTERS = {"qcdq": export_onnx_qcdq, "qdq": export_onnx_qdq}
KINDS = ["usual", "full"]


def ready(name: str, kind: str) -> Any:
    """A layer that has seen a batch, evaluating."""
    layer = LAYERS[name]
    module = warm(made(layer, **(full(layer) if kind == "full" else {}))).eval()
    finish_calibration(module)
    return module


class Zoo(nn.Module):
    """All layers, each called with inputs of its own."""

    def __init__(self, layers: dict[str, Any]) -> None:
        super().__init__()
        self.layers = nn.ModuleDict(layers)
        self.counts = [len(inputs_of(layer)) for layer in layers.values()]

    def forward(self, *inputs: Any) -> list[Tensor]:
        given = iter(inputs)
        found: list[Tensor] = []
        for layer, count in zip(self.layers.values(), self.counts, strict=True):
            found += values(layer(*(next(given) for _ in range(count))))
        return found


QUICK = [name for name in LAYERS if not re.search(r"[13]d$|LSTM|GRU|RNN|Attention|Transformer", name)]


def test_many_layers_are_exported_at_once(tmp_path):
    """The quick half of what follows, which exports each of them alone."""
    pytest.importorskip("onnxscript")
    pytest.importorskip("onnxruntime")
    zoo = Zoo({name: ready(name, "full") for name in QUICK}).eval()
    inputs = tuple(each for layer in zoo.layers.values() for each in inputs_of(layer))
    export_onnx_qcdq(zoo, inputs, tmp_path / "zoo.onnx", verify=False)
    report = verify_onnx(zoo, tmp_path / "zoo.onnx", inputs)
    assert report.differences == 0
    assert {row.name for row in report.rows} >= set(quantizers_of(zoo))


@pytest.mark.slow
@pytest.mark.parametrize("dialect", EXPORTERS)
@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("name", LAYERS)
def test_a_layer_is_exported(name, kind, dialect, tmp_path):
    pytest.importorskip("onnxscript")
    pytest.importorskip("onnxruntime")
    module = ready(name, kind)
    EXPORTERS[dialect](module, inputs_of(module), tmp_path / "layer.onnx", verify=False)
    report = verify_onnx(module, tmp_path / "layer.onnx", inputs_of(module))
    assert report.differences == 0, report
    assert {row.name for row in report.rows} >= set(quantizers_of(module))


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("name", LAYERS)
def test_a_layer_says_its_integers(name, kind):
    module = ready(name, kind)
    found = integers(module, inputs_of(module))
    assert set(found.quantized()) >= set(quantizers_of(module))


@pytest.mark.parametrize("name", LAYERS)
def test_integers_run_to_the_same_result_or_name_what_is_float(name):
    module = ready(name, "full")
    run = run_integers(module, inputs_of(module))
    assert run.integer_only or all(operations for operations in run.floats.values())
    for one, other in zip(values(run.outputs), values(module(*inputs_of(module))), strict=True):
        torch.testing.assert_close(one, other, rtol=1e-4, atol=1e-4)
