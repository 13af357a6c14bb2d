"""What is at work around a forward pass."""

import subprocess
import sys

import torch

from bitwright.qcore.tracing import constant


def test_constants_are_marked_as_torch_marks_them():
    def one():
        return 1

    def other():
        return 1

    torch.compiler.assume_constant_result(one)
    assert vars(constant(other)) == vars(one)
    assert vars(one) != {}


def test_import_leaves_the_compiler_alone():
    code = "import sys, bitwright.nn, bitwright.quantizers; print('torch._dynamo' in sys.modules)"
    said = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True).stdout
    assert said == "False\n"
