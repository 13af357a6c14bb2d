"""Rounding at random between the levels of any format."""

import pytest
import torch

from bitwright.qcore import E2M1, E4M3, NF4, Codebook, NumberFormat, StochasticRounding


@pytest.mark.parametrize("number_format", [E4M3, E2M1, NF4, Codebook((-2.0, 0.0, 1.0))], ids=str)
def test_it_is_right_on_average(number_format: NumberFormat) -> None:
    levels = sorted({each for each in number_format.levels if each == each})
    low, high = levels[-2], levels[-1]
    rounding = StochasticRounding(seed=1)
    for share in (0.0, 0.25, 0.8):
        steps = torch.full((4000,), low + share * (high - low))
        found = number_format.nearest(steps, rounding)
        assert set(found.unique().tolist()) <= {low, high}
        mean = ((found.double() - low) / (high - low)).mean().item()
        assert abs(mean - share) <= 6 * (share * (1 - share) / 4000) ** 0.5 + 1e-6


def test_in_evaluation_ties_go_to_the_even_code() -> None:
    assert E2M1.nearest(torch.tensor([2.5, 3.5, 5.0]), StochasticRounding().eval()).tolist() == [2.0, 4.0, 4.0]
