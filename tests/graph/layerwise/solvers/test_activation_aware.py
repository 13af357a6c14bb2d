from pathlib import Path

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from bitwright.graph.layerwise.problem import Problem, WeightGrid
from bitwright.graph.layerwise.solvers.activation_aware import (
    channel_scales,
    clipping_thresholds,
    importance,
    scaled_loss,
)
from bitwright.qcore import Integers

GOLDEN = Path(__file__).parents[2] / "passes" / "golden"  # smoothing reads the same file


def grouped(weight, gram, size=8):
    """Symmetric 4 bit grids for groups of columns."""
    groups, outputs, inputs = weight.shape
    index = torch.arange(groups * outputs * inputs // size).reshape(groups, outputs, -1).repeat_interleave(size, 2)
    return Problem(weight, WeightGrid(torch.ones(int(index.max()) + 1), index, Integers(4)), gram)


def quantized(weight, size=8):
    apart = weight.unflatten(-1, (-1, size))
    scale = apart.abs().amax(-1, keepdim=True).clamp(min=1e-9) / 7
    return ((apart / scale).round() * scale).flatten(-2)


def drawn(seed, dead=0):
    generator = torch.Generator().manual_seed(seed)
    x = torch.randn(1, 64, 16, generator=generator, dtype=torch.float64)
    x = x * torch.rand(16, generator=generator, dtype=torch.float64).mul(5).exp()
    x[:, :, :dead] = 0
    weight = torch.randn(1, 5, 16, generator=generator, dtype=torch.float64)
    return weight, x


def test_golden():
    golden = {name: torch.from_numpy(each) for name, each in np.load(GOLDEN / "smooth_awq.npz").items()}
    x = golden["X"]
    problem = grouped(golden["W"][None], (x.T @ x / len(x))[None])
    tried = channel_scales(x.abs().mean(0))
    torch.testing.assert_close(tried[3], golden["awq_s"], rtol=1e-12, atol=0)
    losses = torch.tensor([scaled_loss(problem, scales, quantized) / 5 for scales in tried], dtype=torch.float64)
    torch.testing.assert_close(losses, golden["awq_losses"], rtol=1e-9, atol=0)
    assert int(losses.argmin()) == 3
    assert float(golden["awq_alpha"]) == pytest.approx(3 / 20)


@settings(max_examples=10)
@given(st.integers(0, 99), st.booleans(), st.integers(0, 16))
def test_scales_are_positive_and_ones_are_among_them(seed, duo, dead):
    weight, x = drawn(seed, dead)
    problem = grouped(weight, x.mT @ x / 64)
    tried = channel_scales(x.abs().mean((0, 1)), importance([problem])[0] if duo else None)
    assert tried.shape == (20 + duo, 16)
    assert bool((tried[0] == 1).all())
    assert bool((tried[:, :dead] == 1).all())
    assert bool(tried.isfinite().all())
    assert bool((tried > 0).all())
    assert scaled_loss(problem, tried[0], quantized) == scaled_loss(problem, torch.ones(16), lambda w: quantized(w))


def test_duo_scaling():
    """Channels of equal activations are divided by how much their weights matter."""
    tried = channel_scales(torch.tensor([4.0, 4.0, 0.0]), torch.tensor([0.25, 1.0, 0.5]))
    assert tried[1].tolist() == [2.0, 0.5, 1.0]  # exponent 0
    torch.testing.assert_close(tried[11], torch.tensor([2**0.5, 0.5**0.5, 1.0], dtype=torch.float64))


@settings(max_examples=10)
@given(st.integers(0, 99))
def test_clipping_never_hurts_its_own_loss(seed):
    weight, x = drawn(seed)
    gram = x.mT @ x / 64
    gram[:, :8, 8:] = gram[:, 8:, :8] = 0  # what the search leaves out
    problem = grouped(weight, gram)
    bound = problem.grid.spread(clipping_thresholds(problem, quantized))
    before, after = (problem.loss(quantized(each)) for each in (weight, weight.clamp(-bound, bound)))
    assert bool((after <= before + 1e-12).all())
    shares = bound / problem.grid.spread(clipping_thresholds(grouped(weight, torch.zeros_like(gram)), quantized))
    assert bool((shares > 0.499).all())
    assert bool((shares <= 1).all())  # where nothing comes in, nothing is clipped


def test_zeros():
    weight, x = drawn(0)
    zero = grouped(weight * 0, x.mT @ x / 64)
    assert clipping_thresholds(zero, quantized).tolist() == [0.0] * 10
    assert scaled_loss(zero, torch.ones(16), quantized) == 0.0
    assert importance([zero]).tolist() == [[0.0] * 16]
    assert channel_scales(torch.ones(16), importance([zero])[0]).eq(1).all()
