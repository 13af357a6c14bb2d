"""What a verification of an ONNX file takes in memory, in a process of its own."""

import subprocess
import sys
from collections.abc import Callable
from functools import partial
from pathlib import Path

from .workload import Workload, absolute

__all__ = ["VERIFYING"]

ROOT = Path(__file__).parents[1]

MEASURING = """
import ctypes, gc, tempfile, warnings
import onnxruntime  # the library is not what a verification takes
import torch
from torch import nn
from bitwright.export import export_onnx_qdq, verify_onnx
from bitwright.graph import calibrate, quantize
from bitwright.quantizers import Int8Act, Int8WeightPerChannel, Int8WeightPerTensor
from benchmarks.layers import Layers, Scheme
from benchmarks.models import Encoder, MobileNetV2

def megabytes(name):
    lines = open("/proc/self/status").read().splitlines()
    return next(int(line.split()[1]) * 1024 / 1e6 for line in lines if line.startswith(name))

torch.manual_seed(0)
torch.set_num_threads(1)
warnings.simplefilter("ignore")
float_layers = Layers(Scheme())
settings = dict(weight_quant=Int8WeightPerChannel, input_quant=Int8Act)
"""

MINILM = """
model = nn.Sequential(nn.Embedding(30522, 384), Encoder(float_layers, depth=6, width=384)).eval()
inputs = torch.randint(30522, (2, 32))
rules = {nn.Linear: settings, nn.Embedding: dict(weight_quant=Int8WeightPerTensor)}
"""

PHOTOS = """
model = MobileNetV2(float_layers).eval()
for each in model.modules():
    if isinstance(each, nn.Conv2d):
        nn.init.kaiming_normal_(each.weight, nonlinearity="relu")
inputs = torch.randn(256, 3, 224, 224)
rules = {nn.Linear: settings, nn.Conv2d: settings}
"""

VERIFIED = """
model = quantize(model, rules, examples=(inputs[:2],))
with calibrate(model):
    model(inputs[:2])
with tempfile.TemporaryDirectory() as folder:
    path = folder + "/model.onnx"
    export_onnx_qdq(model, inputs[:2], path, verify=False, dynamic_shapes=({0: torch.export.Dim("batch")},))
    gc.collect()
    ctypes.CDLL(None).malloc_trim(0)
    open("/proc/self/clear_refs", "w").write("5")  # the peak begins anew
    before = megabytes("VmRSS")
    assert verify_onnx(model, path, inputs).ok
    print(megabytes("VmHWM") - before)
"""


def peak(work: str, library: str) -> Callable[[], float]:
    """The peak of the resident memory of `verify_onnx` beyond what was resident before it, in MB; on Linux."""
    if library == "float":
        return lambda: 1.0

    def measured() -> float:
        code = MEASURING + work + VERIFIED
        ran = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True, cwd=ROOT)
        return float(ran.stdout.split()[-1])

    return measured


def _workload(title: str, work: str) -> Workload:
    return Workload(title, ("bitwright",), partial(peak, work), compare=absolute, unit="MB", repeats=False)


VERIFYING = {
    "verify-memory-minilm": _workload("`verify_onnx`, encoder of MiniLM's size, W8A8: peak memory", MINILM),
    "verify-memory-photos": _workload("`verify_onnx`, MobileNetV2, W8A8, 256 photos: peak memory", PHOTOS),
}
