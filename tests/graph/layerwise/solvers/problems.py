"""Small problems for solvers, all in float64."""

from pathlib import Path

import numpy as np
import torch
from hypothesis import strategies as st

from bitwright.graph.layerwise.problem import Problem, WeightGrid
from bitwright.qcore import E2M1, NF4, Integers, UnalignedIntegers

GOLDEN = Path(__file__).parent / "golden"
NARROW = Integers(4, narrow_range=True)


def golden(name):
    return {key: torch.from_numpy(value) for key, value in np.load(GOLDEN / f"{name}.npz").items()}


def per_row(weight, number_format=NARROW, zero_points=None):
    groups, outputs, _ = weight.shape
    scales = weight.abs().amax(-1).clamp_min(1e-6).flatten() / number_format.threshold
    return WeightGrid(scales, torch.arange(groups * outputs).view(groups, outputs, 1), number_format, zero_points)


def per_tensor(weight, number_format=NARROW):
    scales = weight.abs().amax().clamp_min(1e-6).view(1) / number_format.threshold
    return WeightGrid(scales, torch.zeros(1, 1, 1, dtype=torch.int64), number_format)


def per_group(weight, width, number_format=NARROW):
    groups, outputs, inputs = weight.shape
    segments = torch.arange(inputs) // width
    count = int(segments[-1]) + 1
    index = torch.arange(groups * outputs).view(groups, outputs, 1) * count + segments
    scales = torch.zeros(groups * outputs * count, dtype=weight.dtype)
    scales = scales.scatter_reduce(0, index.flatten(), weight.abs().flatten(), "amax")
    return WeightGrid(scales.clamp_min(1e-6) / number_format.threshold, index, number_format)


def shifted(weight):
    """Unsigned, with zero points."""
    low, high = weight.amin(-1).clamp_max(0), weight.amax(-1).clamp_min(0)
    scales = ((high - low) / 15).clamp_min(1e-6)
    zero_points = torch.round(-low / scales)
    return per_row(weight)._replace(
        scales=scales.flatten(), zero_points=zero_points.flatten(), number_format=Integers(4, signed=False)
    )


def unaligned(weight):
    """With float zero points."""
    return shifted(weight)._replace(zero_points=shifted(weight).zero_points + 0.3, number_format=UnalignedIntegers(4))


GRIDS = {
    "per row": per_row,
    "per tensor": per_tensor,
    "per group": lambda weight: per_group(weight, 3),
    "zero points": shifted,
    "float zero points": unaligned,
    "nf4": lambda weight: per_row(weight, NF4),
    "e2m1": lambda weight: per_group(weight, 4, E2M1),
}


def made(seed=0, groups=1, outputs=3, inputs=6, rows=40, mismatch=0.0, grid=per_row, dead=()):
    """A problem with correlated inputs; with ``mismatch``, those of the float model differ."""
    generator = torch.Generator().manual_seed(seed)
    draw = lambda *shape: torch.randn(*shape, generator=generator, dtype=torch.float64)  # noqa: E731
    x = draw(groups, rows, inputs) @ (torch.eye(inputs, dtype=torch.float64) + 0.7 * draw(groups, inputs, inputs))
    quantized = x + mismatch * draw(groups, rows, inputs)
    x[:, :, list(dead)] = quantized[:, :, list(dead)] = 0
    weight = draw(groups, outputs, inputs)
    cross = x.mT @ quantized / rows if mismatch else None
    return Problem(weight, grid(weight), quantized.mT @ quantized / rows, cross, rows=rows)


problems = st.builds(
    made,
    seed=st.integers(0, 10**6),
    groups=st.integers(1, 3),
    outputs=st.integers(1, 4),
    inputs=st.integers(1, 9),
    rows=st.sampled_from([5, 40]),
    grid=st.sampled_from([*GRIDS.values()]),
)
mismatched = st.builds(
    made,
    seed=st.integers(0, 10**6),
    groups=st.integers(1, 3),
    outputs=st.integers(1, 4),
    inputs=st.integers(1, 9),
    mismatch=st.sampled_from([0.0, 0.5]),
    grid=st.sampled_from([*GRIDS.values()]),
)
