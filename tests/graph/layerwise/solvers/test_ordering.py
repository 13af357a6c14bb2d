import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from bitwright.graph.layerwise.problem import Problem
from bitwright.graph.layerwise.solvers.ordering import by_power, columns_of, grouped, in_order, restored
from tests.graph.layerwise.solvers.problems import GRIDS, made, per_row


def powers(*rows):
    weight = torch.zeros(len(rows), 1, len(rows[0]))
    return Problem(weight, per_row(weight), torch.diag_embed(torch.tensor(rows)))


def test_most_power_first_and_of_equals_the_first():
    assert by_power(powers([1.0, 3.0, 1.0, 3.0], [0.0, 0.0, 0.0, 5.0])).tolist() == [[1, 3, 0, 2], [3, 0, 1, 2]]


def test_columns_that_share_scales_stay_together():
    sharing = torch.tensor([0, 1, 0, 1, 2])
    problem = powers([1.0, 2.0, 4.0, 9.0, 5.0], [1.0, 2.0, 0.0, 1.0, 0.0])
    assert grouped(problem, sharing, act_order=False).tolist() == [[0, 2, 1, 3, 4]] * 2
    # the largest of each group: 4, 9, 5 and 1, 2, 0
    assert grouped(problem, sharing, act_order=True).tolist() == [[3, 1, 2, 0, 4], [1, 3, 0, 2, 4]]


@settings(max_examples=15)
@given(st.integers(0, 1000), st.sampled_from([*GRIDS.values()]), st.sampled_from([0.0, 1.0]))
def test_order_changes_no_loss(seed, grid, mismatch):
    problem = made(seed, groups=2, grid=grid, mismatch=mismatch)
    order = torch.stack([torch.randperm(6, generator=torch.Generator().manual_seed(seed + each)) for each in range(2)])
    ordered = in_order(problem, order)
    torch.testing.assert_close(restored(ordered.weight, order), problem.weight, rtol=0, atol=0)
    torch.testing.assert_close(restored(ordered.nearest(), order), problem.nearest(), rtol=0, atol=0)
    torch.testing.assert_close(ordered.loss(ordered.nearest()), problem.loss(problem.nearest()))


def test_no_order():
    problem = made()
    assert in_order(problem, None) is problem
    assert restored(problem.weight, None) is problem.weight
    assert columns_of(torch.tensor([[[5.0, 6.0]]]), torch.tensor([[1, 0]])).tolist() == [[[6.0, 5.0]]]
