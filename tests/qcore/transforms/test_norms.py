import re

import pytest
import torch

from bitwright.qcore import SettingError
from bitwright.qcore.transforms.norms import ChannelNorm, LearnedNorm, above_zero, beside, by_channel


def test_norms_of_rows() -> None:
    rows = torch.tensor([[3.0, -4.0], [0.0, 0.0]])
    assert ChannelNorm(1)(rows).tolist() == [7.0, 0.0]
    assert ChannelNorm(2)(rows).tolist() == [5.0, 0.0]
    assert ChannelNorm(2).above_zero(rows).tolist() == pytest.approx([5.0, 1e-30])
    assert above_zero(torch.tensor([float("nan"), 2.0])).tolist() == [float("inf"), 2.0]


@pytest.mark.parametrize("order", [0, 3, True, "1"])
def test_other_orders(order: object) -> None:
    message = f"norm_order={order!r} is not possible: expected 1, the sum of magnitudes, or 2, the Euclidean length."
    with pytest.raises(SettingError, match=f"^{re.escape(message)}$"):
        ChannelNorm(order)  # type: ignore[arg-type]


def test_learned_by_the_logarithm_of_its_ratio_to_the_start() -> None:
    norm, rows = LearnedNorm(ChannelNorm(1), channels=2), torch.tensor([[3.0, -4.0], [0.0, 0.0]])
    assert norm.eval()(2 * rows).tolist() == [[14.0], [1.0]]  # it follows the rows until there is training
    assert norm.train()(rows).tolist() == [[7.0], [1.0]]
    assert norm(2 * rows).tolist() == [[7.0], [1.0]]
    assert norm.magnitude_offset is not None
    with torch.no_grad():
        norm.magnitude_offset.copy_(torch.tensor([1.0, -1.0]))
    assert norm(rows).tolist() == [[14.0], [0.5]]
    norm.reset_parameters()
    assert norm(10 * rows).tolist() == [[70.0], [1.0]]


def test_channels_of_any_axis() -> None:
    weight = torch.arange(12.0).reshape(2, 3, 2)
    assert by_channel(weight, 1).tolist() == [[0.0, 1.0, 6.0, 7.0], [2.0, 3.0, 8.0, 9.0], [4.0, 5.0, 10.0, 11.0]]
    assert torch.equal(by_channel(weight * beside(torch.tensor([1.0, 0.0, 2.0]), weight, 1), 1)[1], torch.zeros(4))
