import re

import pytest
import torch

from bitwright.graph import GraphError
from bitwright.graph.layerwise.solvers import factors
from bitwright.graph.layerwise.solvers.factors import check_damping, factorize, is_dead, is_finite, mean_power
from tests.graph.layerwise.solvers.problems import made

EYE = torch.eye(2, dtype=torch.float64)


def correlated(by):
    return torch.tensor([[1.0, by], [by, 1.0]], dtype=torch.float64)


def test_factor_of_damped_moments():
    gram = made(groups=2).gram
    factor = factorize(gram, 0.25)
    torch.testing.assert_close(factor.upper, factor.upper.triu(), rtol=0, atol=0)
    damped = gram + 0.25 * mean_power(gram).view(2, 1, 1) * torch.eye(6)
    torch.testing.assert_close(factor.upper @ factor.upper.mT, damped)
    assert (factor.damping.tolist(), factor.failed.tolist()) == ([0.25, 0.25], [False, False])
    assert (factor.figures(), factor.note(0.25)) == ({"damping": 0.25}, "")


def test_trailing_factor_solves():
    gram = made(groups=2).gram
    trailing = factorize(gram, 0.0).trailing()
    right = torch.arange(30.0, dtype=torch.float64).view(2, 3, 5)
    torch.testing.assert_close(trailing.solved(right) @ gram[:, 1:, 1:], right)


def test_feedback_is_below_a_diagonal_of_ones():
    factor = factorize(torch.tensor([[[5.0, 2.0], [2.0, 1.0]]]), 0.0)
    assert factor.feedback(torch.float32).tolist() == [[[1.0, 0.0], [2.0, 1.0]]]


def test_dead_inputs_get_the_mean_power():
    gram = torch.diag(torch.tensor([3.0, 0.0, 0.0])).unsqueeze(0)
    assert is_dead(gram).tolist() == [[False, True, True]]
    assert mean_power(gram).tolist() == [1.0]
    torch.testing.assert_close(
        factorize(gram, 0.5).upper[0].square().diagonal(), torch.tensor([3.5, 1.5, 1.5]).double()
    )
    nothing = factorize(torch.zeros(1, 2, 2), 0.01)
    torch.testing.assert_close(nothing.upper[0].square(), 1.01 * EYE)


@pytest.mark.parametrize(
    ("grams", "damping", "used", "failed", "note"),
    [
        ([correlated(1.0)], 0.0, [1e-4], [False], "damping raised from 0, up to 0.0001"),
        ([correlated(1.05)], 0.01, [0.1], [False], "damping raised from 0.01, up to 0.1"),
        (
            [correlated(1.5), EYE],
            0.05,
            [1.0, 0.05],
            [False, False],
            "damping raised from 0.05, up to 1 for 1 of 2 groups",
        ),
        (
            [correlated(3.0)],
            0.01,
            [1.0],
            [True],
            "rounded to nearest: the second moments of the inputs have no Cholesky factor, even with damping 1",
        ),
        (
            [EYE, correlated(1.05), correlated(3.0), torch.nan * EYE],
            0.01,
            [0.01, 0.1, 1.0, 1.0],
            [False, False, True, True],
            "damping raised from 0.01, up to 0.1 for 1 of 4 groups; rounded to nearest for 1 of 4 groups: the second "
            "moments of the inputs have no Cholesky factor, even with damping 1; rounded to nearest for 1 of 4 groups: "
            "the second moments of the inputs aren't finite",
        ),
    ],
)
def test_ladder(grams, damping, used, failed, note):
    factor = factorize(torch.stack(grams), damping)
    assert (factor.damping.tolist(), factor.failed.tolist(), factor.note(damping)) == (used, failed, note)
    assert factor.figures() == {"damping": max(used)}
    assert bool((factor.upper[factor.failed] == EYE).all())


def test_groups_whose_moments_are_not_finite_fail():
    factor = factorize(torch.stack([EYE, EYE]), 0.01, torch.tensor([True, False]))
    assert factor.failed.tolist() == [False, True]
    assert factor.note(0.01) == "rounded to nearest for 1 of 2 groups: the second moments of the inputs aren't finite"


def test_many_inputs_are_tried_in_float32_first(monkeypatch):
    monkeypatch.setattr(factors, "_EXACT", 1)
    factor = factorize(torch.stack([EYE, correlated(1 - 1e-12)]), 0.0)
    assert (factor.upper.dtype, factor.damping.tolist(), factor.failed.tolist()) == (torch.float32, [0, 0], [False] * 2)
    torch.testing.assert_close(factor.upper @ factor.upper.mT, torch.stack([EYE, correlated(1.0)]).float())


def test_finite_moments():
    moments = torch.tensor([[[1.0]], [[torch.nan]], [[torch.inf]], [[3e38]]])
    assert is_finite(moments).tolist() == [True, False, False, True]
    assert is_finite(moments, moments.flip(0)).tolist() == [True, False, False, True]
    assert is_finite(torch.ones(4, 1, 1), moments).tolist() == [
        True,
        False,
        False,
        True,
    ]


@pytest.mark.parametrize("damping", [-0.1, 2, True, "0.1", None, float("nan")])
def test_damping_is_checked(damping):
    message = (
        f"gptq: damping={damping!r} is not a number from 0 to 1, in units of the mean power of a layer's inputs; "
        "0.01 is usual."
    )
    with pytest.raises(GraphError, match=f"^{re.escape(message)}$"):
        check_damping("gptq", damping)
