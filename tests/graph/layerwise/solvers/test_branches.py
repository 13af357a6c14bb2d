import re
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from bitwright.graph import GraphError
from bitwright.graph.layerwise.problem import Problem, WeightGrid
from bitwright.graph.layerwise.solvers.branches import METHODS, low_rank
from bitwright.qcore import Integers

GOLDEN = Path(__file__).parent / "golden"


def per_row(weight, gram, cross=None, bits=3):
    groups, outputs, _ = weight.shape
    index = torch.arange(groups * outputs).reshape(groups, outputs, 1)
    scales = weight.abs().amax(2).flatten().clamp(min=1e-6) / (2 ** (bits - 1) - 1)
    return Problem(weight, WeightGrid(scales, index, Integers(bits, narrow_range=True)), gram, cross)


def drawn(seed, groups=2, outputs=6, inputs=8, rows=64, dead=0):
    generator = torch.Generator().manual_seed(seed)
    mix = torch.randn(inputs, inputs, generator=generator, dtype=torch.float64)
    x = torch.randn(groups, rows, inputs, generator=generator, dtype=torch.float64) @ mix
    x[:, :, :dead] = 0
    weight = torch.randn(groups, outputs, inputs, generator=generator, dtype=torch.float64)
    return weight, x


def gram(x, other=None):
    return (x if other is None else other).mT @ x / x.shape[1]


def test_golden():
    golden = {name: torch.from_numpy(each) for name, each in np.load(GOLDEN / "lowrank.npz").items()}
    problem = per_row(golden["W"][None], gram(golden["X"][None]))
    assert torch.equal(problem.nearest()[0], golden["Q"])
    for method, loss in zip(("lorc", "lqer", "svd"), golden["losses"].tolist()[1:], strict=True):
        branch = low_rank(problem, 4, method)
        got = branch.figures["left"] * float(problem.loss(problem.nearest()).mean())
        assert got == pytest.approx(loss, rel=1e-9)
        if method != "svd":
            torch.testing.assert_close(branch.weight[0], golden[method], rtol=0, atol=1e-12)
    assert low_rank(problem, 4, "qera").figures["left"] < low_rank(problem, 4, "lqer").figures["left"] < 0.051


@settings(max_examples=10)
@given(st.integers(0, 99), st.sampled_from([(6, 8), (8, 6)]))
def test_more_rank_leaves_less_and_the_optimum_least(seed, sides):
    weight, x = drawn(seed, 2, *sides, dead=1)
    problem = per_row(weight, gram(x))
    left = {method: [low_rank(problem, rank, method).figures["left"] for rank in range(1, 7)] for method in METHODS}
    best = left["qera"]
    assert all(after <= before + 1e-9 for before, after in zip([1, *best], best, strict=False))
    assert all(one <= other + 1e-9 for name in ("lqer", "lorc") for one, other in zip(best, left[name], strict=True))
    assert max(found[-1] for found in left.values()) < 1e-20  # the whole rank: exact


def test_other_inputs_than_the_float_model():
    """Inputs that came out too small: what is missing from the outputs is more than what rounding took."""
    weight, x = drawn(5)
    signal = (weight @ (1.25 * x).mT).square().mean(-1)
    problem = replace(per_row(weight, gram(x), gram(x, 1.25 * x)), signal=signal)
    torch.testing.assert_close(
        problem.nearest() + low_rank(problem, 6, "qera").weight, 1.25 * weight, rtol=0, atol=0.06
    )
    assert low_rank(problem, 6, "qera").figures["left"] < 0.01 < low_rank(problem, 6, "lqer").figures["left"]


def test_optimum_by_search():
    """No other matrix of the rank does better: gradient descent from where it is finds nothing."""
    weight, x = drawn(0, 1)
    problem = per_row(weight, gram(x))
    branch = low_rank(problem, 2, "qera")
    up, down = branch.up.clone().requires_grad_(), branch.down.clone().requires_grad_()
    error = problem.nearest() + up @ down - weight
    ((error @ problem.gram) * error).sum().backward()
    assert up.grad is not None
    assert down.grad is not None
    assert float(up.grad.abs().max()) < 1e-9
    assert float(down.grad.abs().max()) < 1e-9


def test_equal_inputs_are_the_plain_error():
    weight, x = drawn(1)
    x = torch.nn.functional.normalize(torch.randn(2, 8, 8, dtype=torch.float64), dim=1)
    x = torch.linalg.qr(x).Q * 8**0.5
    problem = per_row(weight, gram(x))
    expected = low_rank(problem, 2, "lorc").weight
    for method in ("lqer", "qera"):
        torch.testing.assert_close(low_rank(problem, 2, method).weight, expected, rtol=1e-9, atol=1e-9)


def test_what_it_corrects_may_be_given():
    weight, x = drawn(2)
    problem = per_row(weight, gram(x))
    quantized = problem.nearest() + 0.25
    torch.testing.assert_close(low_rank(problem, 6, quantized=quantized).weight, weight - quantized)


@pytest.mark.parametrize("method", METHODS)
@pytest.mark.parametrize("kind", ["weight", "gram"])
def test_zeros(method, kind):
    weight, x = drawn(3)
    problem = per_row(weight * (kind == "gram"), gram(x) * (kind == "weight"))
    branch = low_rank(problem, 2, method)
    assert bool(branch.up.isfinite().all())
    assert bool(branch.down.isfinite().all())
    assert branch.figures == {"rank": 2, "left": 1.0}


@pytest.mark.parametrize(
    ("rank", "method", "message"),
    [
        (2, "pca", "low_rank: method='pca' is none of lqer, qera, lorc, svd."),
        *[
            (
                rank,
                "lqer",
                f"low_rank: rank={rank!r} is not possible for a weight of 6 outputs and 8 inputs. Pass a whole number "
                "from 1 to 6.",
            )
            for rank in (0, 7, True, 2.0)
        ],
        (1, "svd", 'low_rank: method="svd" quantizes what the branch leaves. Leave quantized out.'),
    ],
)
def test_refused(rank, method, message):
    weight, x = drawn(4)
    problem = per_row(weight, gram(x))
    with pytest.raises(GraphError, match=f"^{re.escape(message)}$"):
        low_rank(problem, rank, method, quantized=problem.nearest() if method == "svd" else None)
