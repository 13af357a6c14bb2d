"""The figures that the tests of real models and the pages use."""

import math

import pytest
import torch

from tests.graph.models.metrics import agreement, cosine, pearson, sqnr, top

LOGITS = torch.tensor([[3.0, 2, 1, 0], [0, 1, 2, 3], [1, 3, 2, 0]])


def test_top():
    labels = torch.tensor([0, 2, 0])
    assert top(1, LOGITS, labels) == pytest.approx(1 / 3)
    assert top(2, LOGITS, labels) == pytest.approx(2 / 3)
    assert top(3, LOGITS, labels) == 1


def test_agreement():
    other = torch.tensor([[9.0, 0, 0, 0], [9, 0, 0, 0], [0, 9, 0, 0]])
    assert agreement(LOGITS, other) == pytest.approx(2 / 3)


def test_sqnr():
    assert sqnr(torch.tensor([3.0, 4.0]), torch.tensor([3.0, 3.5])) == pytest.approx(20)
    assert sqnr(LOGITS, LOGITS) == math.inf


def test_pearson():
    assert pearson(torch.tensor([1.0, 2, 3]), torch.tensor([10.0, 20, 30])) == pytest.approx(1)
    assert pearson(torch.tensor([1.0, 2, 3]), torch.tensor([1.0, 3, 2])) == pytest.approx(0.5)


def test_cosine():
    assert cosine(torch.tensor([[1.0, 0], [0, 2]]), torch.tensor([[1.0, 1], [0, 5]])) == pytest.approx(
        (math.sqrt(0.5) + 1) / 2
    )
