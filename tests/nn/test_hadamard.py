"""The classifier with a fixed matrix of signs."""

import re

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

import bitwright.nn as qnn
from bitwright.nn.hadamard import hadamard
from bitwright.qcore import QuantizerError, QuantTensor
from bitwright.quantizers import Int8Act


def message(text):
    return f"^{re.escape(text)}$"


@given(st.integers(0, 6))
def test_rows_are_orthogonal(power):
    size = 2**power
    matrix = hadamard(size, size)
    assert torch.equal(matrix @ matrix.T, size * torch.eye(size))
    assert torch.equal(hadamard(size, 2 * size)[:, size:], matrix)


def test_scores():
    classifier = qnn.QuantHadamardClassifier(3, 4)
    assert classifier.scale.item() == 0.5
    x = torch.tensor([[3.0, 0.0, 4.0], [0.0, -2.0, 0.0]])
    expected = -0.5 * torch.tensor([[7.0, 7.0, -1.0, -1.0], [-2.0, 2.0, -2.0, 2.0]]) / torch.tensor([[5.0], [2.0]])
    torch.testing.assert_close(classifier(x), expected)
    assert torch.equal(classifier(x[:1]), classifier(x)[:1])  # a sample alone has the same scores
    assert torch.equal(classifier(torch.zeros(1, 3)), torch.zeros(1, 4))


def test_it_learns_one_number():
    classifier = qnn.QuantHadamardClassifier(8, 4)
    assert [name for name, _ in classifier.named_parameters()] == ["scale"]
    assert list(classifier.state_dict()) == ["scale"]
    classifier(torch.randn(2, 8)).sum().backward()
    assert classifier.scale.grad is not None
    fixed = qnn.QuantHadamardClassifier(8, 4, fixed_scale=True)
    assert not list(fixed.parameters())
    fixed.load_state_dict({"scale": torch.tensor(2.0)}, strict=True)
    assert fixed.scale == 2


def test_quantizers():
    classifier = qnn.QuantHadamardClassifier(
        2,
        2,
        fixed_scale=True,
        input_quant=Int8Act,
        input_scale=0.5,
        output_quant=Int8Act,
        output_scale=0.25,
        return_quant_tensor=True,
    )
    out = classifier(torch.tensor([[1.4, -2.1]]))  # on the grid (1.5, -2.0), of length 2.5
    assert isinstance(out, QuantTensor)
    assert out.int().tolist() == [[1, -4]]  # 0.5 and -3.5, times -0.7071 / 2.5, in steps of 0.25


@pytest.mark.parametrize(
    ("make", "text"),
    [
        (
            lambda: qnn.QuantHadamardClassifier(6, 3, return_quant_tensor=True),
            "QuantHadamardClassifier(in_features=6, out_features=3, return_quant_tensor=True): "
            "return_quant_tensor=True needs outputs that lie on a grid, and each sample is divided by its own length. "
            "Set output_quant=Int8Act to quantize the output.",
        ),
        (
            lambda: qnn.QuantHadamardClassifier(6, 3, weight_bit_width=4),
            "QuantHadamardClassifier(in_features=6, out_features=3): weight_bit_width=4 is for no quantizer of this "
            "layer: keywords start with one of input_, output_.",
        ),
        (
            lambda: qnn.QuantHadamardClassifier(6, 3)(torch.ones(2, 5)),
            "QuantHadamardClassifier: the input has the shape (2, 5), and its last dimension should be 6.",
        ),
        (
            lambda: qnn.QuantHadamardClassifier(6, 3, fixed_scale=0.5),
            "QuantHadamardClassifier: fixed_scale=0.5 is not possible: expected True or False.",
        ),
    ],
)
def test_what_is_refused(make, text):
    with pytest.raises(QuantizerError, match=message(text)):
        make()
