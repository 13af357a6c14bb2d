"""torch programs of whole networks: any batch, from a file, in a process that has no bitwright."""

import subprocess
import sys

import pytest
import torch
from torch.export import Dim

from bitwright.export import export_program, verify_program
from bitwright.graph import W8A8, calibrate, quantize
from tests.graph.models.minilm import MiniLM, Sizes
from tests.graph.models.mobilenet import MobileNetV2
from tests.graph.models.resnet import ResNet


def images(count, size):
    return (torch.randn(count, 3, size, size),)


def sentences(count, length):
    tokens, mask = torch.randint(1000, (count, length)), torch.ones(count, length, dtype=torch.long)
    mask[1:, length - 3 :] = 0
    return tokens, mask


BATCH = ({0: Dim("batch")},)
TOKENS = ({0: Dim("batch"), 1: Dim("length", max=64)},) * 2
# The model, what it is exported with, what else it is given, which dimensions are open, and how many weights it has
NETWORKS = {
    "ResNet": (lambda: ResNet((1, 1, 1, 1), 8, 10), lambda: images(2, 32), lambda: images(5, 32), BATCH, 78_232),
    "MobileNetV2": (MobileNetV2, lambda: images(2, 64), lambda: images(5, 64), BATCH, 3_469_760),
    "MiniLM": (
        lambda: MiniLM(Sizes(vocabulary=1000, positions=64, layers=2)),
        lambda: sentences(2, 16),
        lambda: sentences(5, 11),
        TOKENS,
        3_538_944,
    ),
}

ALONE = """
import sys
class Blocked:
    def find_spec(self, name, *rest):
        if name.split(".")[0] == "bitwright":
            raise ImportError(name)
sys.meta_path.insert(0, Blocked())
import torch
import torch.ao.quantization.fx._decomposed
given, expected = torch.load(sys.argv[2])
assert torch.equal(torch.export.load(sys.argv[1]).module()(*given), expected)
assert "bitwright" not in sys.modules
"""


@pytest.mark.slow
@pytest.mark.parametrize("name", NETWORKS)
def test_any_batch_in_any_process(name, tmp_path):
    torch.manual_seed(0)
    make, examples, others, shapes, stored = NETWORKS[name]
    x, more = examples(), others()
    model = quantize(make().eval(), W8A8, examples=x)
    with calibrate(model, progress=False), torch.no_grad():
        model(*x)
    path = tmp_path / "model.pt2"
    program = export_program(model, x, path, dynamic_shapes=shapes, exact=True)
    integers = [each for each in program.state_dict.values() if each.dtype == torch.int8]
    assert sum(each.numel() for each in integers) == stored
    report = verify_program(model, path, more)
    assert report.differences == report.tie_flips == 0, report.table()
    with torch.no_grad():
        expected = model(*more)
    torch.save((more, expected), tmp_path / "tensors.pt")
    command = [sys.executable, "-c", ALONE, str(path), str(tmp_path / "tensors.pt")]
    done = subprocess.run(command, capture_output=True, text=True, cwd=tmp_path)
    assert done.returncode == 0, done.stderr
