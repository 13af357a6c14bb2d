"""Codes, stored integers and outputs of two sides: ties, differences, and how far they are apart."""

import torch

from bitwright.export import IntegerGrid
from bitwright.export.comparing.agreement import compare_codes, compare_exactly, compare_outputs


def codes(values, ours, theirs, bits=4, rounding=torch.round, scale=0.5):
    grid = IntegerGrid("act", torch.tensor(scale), torch.tensor(0), bits, signed=True)
    ours, theirs = torch.tensor(ours), torch.tensor(theirs)
    row, ties = compare_codes("act", "on", torch.tensor(values), ours, theirs, grid, rounding)
    return row.differences, row.tie_flips, row.largest, ties.tolist()


def test_a_tie_flip_is_off_by_one_within_a_thousandth_of_a_step():
    assert codes([0.25, 0.2503, 0.2506, 0.3], [0, 1, 1, 1], [1, 0, 0, 1]) == (1, 2, 1.0, [True, True, False, False])


def test_off_by_two_is_a_difference_on_a_boundary_too():
    assert codes([0.25], [0], [2]) == (1, 0, 2.0, [True])


def test_a_code_on_the_far_side_of_its_value_is_a_difference():
    assert codes([0.75], [3], [2]) == (1, 0, 1.0, [True])  # 0.75 is 1.5 steps: 1 or 2


def test_the_ends_of_the_range_are_no_boundaries():
    assert codes([3.75, 9.0], [7, 7], [7, 7]) == (0, 0, 0.0, [False, False])


def test_wide_codes_have_a_wider_tie():
    near = 0.5 + 2.0**-6  # of a step; 2**-20 of 16 bits are 2**-4
    assert codes([near], [1], [0], bits=16, scale=1.0) == (0, 1, 1.0, [True])
    assert codes([near], [1], [0], bits=8, scale=1.0) == (1, 0, 1.0, [False])


def test_ties_lie_where_the_rounding_breaks():
    assert codes([0.5, 0.25], [0, 0], [1, 1], rounding=torch.floor) == (1, 1, 1.0, [True, False])


def test_scales_of_channels():
    grid = IntegerGrid("act", torch.tensor([0.5, 1.0]), torch.tensor([0, 2]), 4, signed=False, axis=1)
    x = torch.tensor([[0.25, 0.25], [0.5, 0.5]])
    row, ties = compare_codes(
        "act", "off", x, grid.codes(x, torch.round), torch.tensor([[1, 3], [1, 3]]), grid, torch.round
    )
    assert ties.tolist() == [[True, False], [False, True]]
    assert (row.compared, row.differences, row.tie_flips) == (4, 1, 2)


def test_exact_numbers():
    row = compare_exactly("w", "stored", "off", torch.tensor([1, 2, 2**31 - 1]), torch.tensor([1, 5, 2**31 - 2]))
    assert (row.compared, row.differences, row.largest) == (3, 2, 3.0)
    nothing = compare_exactly("y", "output", "on", torch.tensor([float("nan"), 1.0]), torch.tensor([1.0, 1.0]))
    assert nothing.differences == 1
    shapes = compare_exactly("w", "stored", "off", torch.ones(2, 3), torch.ones(3, 2))
    assert (shapes.differences, shapes.note) == (6, "shape (3, 2) in the file")
    assert compare_exactly("w", "stored", "off", torch.ones(0), torch.ones(0)).differences == 0


def test_outputs_are_compared_as_a_share_of_their_range():
    row = compare_outputs("y", "on", torch.tensor([100.0, 1.0]), torch.tensor([100.0, 1.0009]))
    assert (row.differences, row.tie_flips) == (0, 0)
    row = compare_outputs("y", "on", torch.tensor([[100.0], [1.0]]), torch.tensor([[100.0], [1.5]]))
    assert (row.differences, row.largest, row.absolute) == (1, 0.005, 0.5)


def test_outputs_that_are_not_finite():
    nan, inf = float("nan"), float("inf")
    ours = torch.tensor([nan, inf, -inf, 1.0])
    assert compare_outputs("y", "on", ours, ours.clone()).differences == 0
    for theirs in ([0.0, inf, -inf, 1.0], [nan, 9.0, -inf, 1.0], [nan, inf, inf, 1.0], [nan, inf, -inf, 1.5]):
        assert compare_outputs("y", "on", ours, torch.tensor(theirs)).differences == 1


def test_a_tie_explains_outputs_of_its_sample():
    ours, theirs = torch.tensor([[1.0], [1.0], [1.0]]), torch.tensor([[2.0], [1.0], [2.0]])
    tie = torch.tensor([[True, False], [False, False], [False, False]])
    row = compare_outputs("y", "plain", ours, theirs, [tie])
    assert (row.differences, row.tie_flips) == (1, 1)
    assert compare_outputs("y", "plain", ours, theirs, [torch.tensor(True)]).tie_flips == 2


def test_outputs_of_another_shape():
    row = compare_outputs("y", "on", torch.ones(2, 3), torch.ones(3))
    assert (row.differences, row.note) == (6, "shape (3,) in onnxruntime, (2, 3) in torch")
