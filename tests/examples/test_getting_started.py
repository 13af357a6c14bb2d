import runpy
from pathlib import Path

import onnx
import pytest
import torch

from bitwright.export import verify_onnx
from bitwright.qcore import BitwrightWarning

SCRIPT = Path(__file__).parents[2] / "examples" / "getting_started.py"
FILES = {
    "quant_weight_lenet": "4b_weight_lenet.onnx",
    "quant_weight_act_lenet": "4b_weight_act_lenet.onnx",
    "quant_weight_act_bias_lenet": "4b_weight_act_bias_lenet.onnx",
}


def test_the_page_runs_as_it_stands(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    with pytest.warns(BitwrightWarning, match="is evaluated before it saw any data"):
        found = runpy.run_path(str(SCRIPT))
    assert sorted(path.name for path in tmp_path.iterdir()) == sorted(FILES.values())
    images = torch.randn(8, 3, 32, 32)  # the other two know no range yet: their files keep that of the example
    assert verify_onnx(found["quant_weight_lenet"], FILES["quant_weight_lenet"], images).ok
    biases = [each for each in onnx.load(FILES["quant_weight_act_bias_lenet"]).graph.initializer if "bias" in each.name]
    assert onnx.TensorProto.INT32 in {each.data_type for each in biases}
