"""Hadamard matrices of many orders, and the layer that multiplies by one."""

import re

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

import bitwright.nn as qnn
from bitwright.graph import record
from bitwright.nn.hadamard_transform import hadamard_block, hadamard_matrix
from bitwright.qcore import QuantizerError

KNOWN = [1, 2, 4, 8, 64, 12, 20, 24, 28, 36, 44, 52, 56, 60, 76, 100, 108, 140, 148, 152, 344]


def message(text):
    return f"^{re.escape(text)}$"


@pytest.mark.parametrize("order", KNOWN)
def test_orders(order):
    matrix = hadamard_matrix(order)
    assert bool((matrix.abs() == 1).all())
    assert torch.equal(matrix @ matrix.T, order * torch.eye(order, dtype=torch.float64))


def test_signs():
    """The second and the last row, and the sum, of matrices that were made independently."""
    expected = {
        12: ("010100011101", "001000111011", 12),
        20: ("01011000010101111001", "00110000101011110011", 20),
        28: ("0010101010101010101010101010", "1010011010010101011010011000", 24),
        36: ("001010101010101010101010101010101010", "101010011001010110100101011001101000", 32),
    }
    for order, (second, last, total) in expected.items():
        matrix = hadamard_matrix(order)
        assert ["".join("1" if x > 0 else "0" for x in row) for row in matrix[[1, -1]].tolist()] == [second, last]
        assert matrix.sum().item() == total


@settings(max_examples=20)
@given(st.sampled_from([*KNOWN, 96, 112, 512]), st.integers(1, 3), st.booleans(), st.integers(0, 9))
def test_transform_is_the_product(order, blocks, signed, seed):
    generator = torch.Generator().manual_seed(seed)
    size = order * blocks
    x = torch.randn(2, 3, size, generator=generator, dtype=torch.float64)
    signs = torch.randint(0, 2, (size,), generator=generator) * 2.0 - 1 if signed else None
    transform = qnn.HadamardTransform(size, order, signs=signs)
    matrix = torch.block_diag(*[hadamard_matrix(order) / order**0.5] * blocks)
    expected = (x if signs is None else x * signs) @ matrix
    torch.testing.assert_close(transform(x), expected, rtol=1e-12, atol=1e-12)


def test_numbers():
    x = torch.tensor([[1.0, 2.0, 3.0, 4.0]])
    assert qnn.HadamardTransform(4)(x).tolist() == [[5.0, -1.0, -2.0, 0.0]]
    assert qnn.HadamardTransform(4, signs=torch.tensor([1.0, -1.0, 1.0, 1.0]))(x).tolist() == [[3.0, 1.0, -4.0, 2.0]]
    assert qnn.HadamardTransform(4)(x.bfloat16()).dtype is torch.bfloat16
    assert qnn.HadamardTransform(4)(torch.zeros(0, 4)).shape == (0, 4)


@pytest.mark.parametrize(
    ("size", "block"), [(86, 2), (14336, 14336), (11008, 11008), (18944, 18944), (6656, 6656), (15, 1), (92, 4)]
)
def test_blocks(size, block):
    assert hadamard_block(size) == block


def test_state_and_text():
    assert list(qnn.HadamardTransform(12).state_dict()) == []
    assert list(qnn.HadamardTransform(4, signs=torch.ones(4)).state_dict()) == ["signs"]
    assert repr(qnn.HadamardTransform(48, 12)) == "HadamardTransform(48, 4 blocks of 12)"
    assert repr(qnn.HadamardTransform(24)) == "HadamardTransform(24 = 12 x 2)"


def test_it_is_one_operation_of_a_graph():
    graph = record(torch.nn.Sequential(qnn.HadamardTransform(4), torch.nn.Linear(4, 2)), torch.ones(1, 4))
    assert [node.kind for node in graph.nodes] == ["input", "HadamardTransform", "Linear", "output"]


def test_it_compiles_to_one_graph():
    transform = qnn.HadamardTransform(24)
    x = torch.randn(3, 24)
    program = torch.export.export(transform, (x,)).module()
    assert torch.equal(program(x), transform(x))


@pytest.mark.parametrize(
    ("call", "said"),
    [
        (
            lambda: qnn.HadamardTransform(92),
            "HadamardTransform: no Hadamard matrix of order 92 is known here. Set block_size=4 to rotate by blocks.",
        ),
        (
            lambda: qnn.HadamardTransform(8, 3),
            "HadamardTransform: size=8 and block_size=3: expected whole numbers above 0, the block a divisor of the "
            "size.",
        ),
        (
            lambda: qnn.HadamardTransform(2, signs=torch.zeros(2)),
            "HadamardTransform: signs are 1 or -1 for each of 2 channels, and a tensor of the shape (2,) with other "
            "values was given.",
        ),
        (
            lambda: qnn.HadamardTransform(4)(torch.ones(2, 8)),
            "HadamardTransform: the input has the shape (2, 8), and its last dimension should be 4.",
        ),
        (lambda: hadamard_matrix(3), "hadamard_matrix: no Hadamard matrix of order 3 is known here."),
        (lambda: hadamard_matrix(4.0), "hadamard_matrix: no Hadamard matrix of order 4.0 is known here."),  # type: ignore[arg-type]
    ],
)
def test_errors(call, said):
    with pytest.raises(QuantizerError, match=message(said)):
        call()
