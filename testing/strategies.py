"""Hypothesis strategies for quantizers: grids, and tensors that test rounding and clipping.

Example:
    >>> from hypothesis import given, settings
    >>> from bitwright.testing import quantizer_strategies as strategies
    >>> from bitwright.qcore import Grid, Integers, fake_quant
    >>> grid = Grid(torch.tensor(0.1), number_format=Integers(4))
    >>> @settings(database=None, max_examples=20)
    ... @given(strategies.tensors(grid))
    ... def test_rounding_is_within_half_a_step(x):
    ...     inside = x.clamp(-0.8, 0.7)
    ...     assert ((fake_quant(inside, grid.scale, *grid.bounds) - inside).abs() <= 0.0500001).all()
    >>> test_rounding_is_within_half_a_step()
"""

from collections.abc import Iterator
from functools import lru_cache
from typing import NamedTuple

import torch
from hypothesis import strategies as st
from hypothesis.strategies import SearchStrategy
from torch import Tensor

from ..qcore import E2M1, E4M3, NF4, Codebook, Grid, Integers, Minifloat, NumberFormat, OddIntegers
from .places import Places

__all__ = [
    "Placement",
    "bit_widths",
    "dtypes",
    "grids",
    "number_formats",
    "place",
    "placements",
    "scales",
    "shapes",
    "single_places",
    "sweep",
    "tensors",
]

_AWKWARD = (0.1, 0.3, 1 / 3, 1 / 127, 1 / 255, 0.7, 1.1, 3.0, 1e-6, 1e4)  # no powers of two: quotients round
# Beside an integer: fractions of a step, and representable numbers; ties twice as often as the rest.
_BESIDE = ((0.0, 0), (0.5, 0), (0.5, 0), (0.25, 0), (0.0, 1), (0.0, -1), (0.5, 1), (0.5, -1), (-0.49, 0))


def bit_widths(smallest: int = 2, largest: int = 8) -> SearchStrategy[int]:
    """Whole numbers of bits.

    Example:
        >>> from hypothesis import find
        >>> find(bit_widths(), lambda bits: bits > 3)
        4
    """
    return st.integers(smallest, largest)


def dtypes(half: bool = True) -> SearchStrategy[torch.dtype]:
    """Floating types; with ``half`` float16 and bfloat16 too.

    Example:
        >>> from hypothesis import find
        >>> find(dtypes(), lambda dtype: True)
        torch.float32
    """
    wide = [torch.float32, torch.float64]
    return st.sampled_from([*wide, torch.float16, torch.bfloat16] if half else wide)


def shapes(dims: int | None = None, longest: int = 4, empty: bool = False) -> SearchStrategy[tuple[int, ...]]:
    """Small shapes.

    Args:
        dims: how many dimensions; None for 0 to 4.
        longest: the maximal length of a dimension.
        empty: whether a dimension may have length 0.

    Example:
        >>> from hypothesis import find
        >>> find(shapes(2, empty=True), lambda shape: 0 in shape)
        (0, 0)
    """
    sides = st.integers(0 if empty else 1, longest)
    low, high = (0, 4) if dims is None else (dims, dims)
    return st.lists(sides, min_size=low, max_size=high).map(tuple)


def scales() -> SearchStrategy[float]:
    """Positive float32 scales: powers of two, for which quotients are exact, and others.

    Example:
        >>> from hypothesis import find
        >>> find(scales(), lambda scale: scale < 1)
        0.5
    """
    powers = st.integers(0, 32).map(lambda code: 2.0 ** (-(code + 1) // 2 if code % 2 else code // 2))
    awkward = st.sampled_from(_AWKWARD).map(lambda scale: torch.tensor(scale).item())
    return st.one_of(powers, awkward)


@st.composite
def grids(draw: st.DrawFn, smallest: int = 2, largest: int = 8, zero_points: bool = True) -> Grid:
    """Integer grids with one scale, of any width, signedness and range; some with a zero point.

    Of other levels: ``grids().map(lambda grid: grid.replace(number_format=E4M3, zero_point=None))``.

    Example:
        >>> from hypothesis import find
        >>> find(grids(), lambda grid: not grid.signed).bounds
        (0, 3)
    """
    width = draw(bit_widths(smallest, largest))
    signed, narrow = not draw(st.booleans()), draw(st.booleans())
    grid = Grid(torch.tensor(draw(scales())), number_format=Integers(width, signed=signed, narrow_range=narrow))
    if zero_points and draw(st.booleans()):
        grid = grid.replace(zero_point=torch.tensor(float(draw(st.integers(*grid.bounds)))))
    return grid


def number_formats(largest: int = 8) -> SearchStrategy[NumberFormat]:
    """Levels of every kind, of so many bits at most: integers, floats, tables, levels without 0; ready ones and others.

    Example:
        >>> from hypothesis import find
        >>> find(number_formats(), lambda levels: levels.bits == 4 and levels.high == 6).low
        -6.0
    """
    integers = st.builds(Integers, bit_widths(2, largest), st.booleans(), st.booleans())
    wholes = st.lists(st.integers(-64, 64), min_size=2, max_size=2 ** min(largest, 4), unique=True)
    tables = wholes.map(lambda found: Codebook(sorted(found)))
    odd = st.builds(OddIntegers, st.integers(1, min(largest, 8)))
    ready = [each for each in (E2M1, NF4, E4M3) if each.bits <= largest]
    floats = st.integers(1, min(largest - 1, 5)).flatmap(
        lambda exponent: st.integers(0, largest - 1 - exponent).map(lambda mantissa: Minifloat(exponent, mantissa))
    )
    return st.one_of(integers, tables, odd, *([st.sampled_from(ready)] if ready else []), floats)


class Placement(NamedTuple):
    """Where on a grid values lie, before the grid is known.

    Attributes:
        steps: integers of the grid plus fractions, float64: 2.5 is a tie between 2 and 3. Of other levels, `Places`.
        nudges: the offset of each value from that place, in representable numbers: -1, 0 or 1.

    Example:
        >>> tie = Placement(torch.tensor([2.5], dtype=torch.float64), torch.tensor([0]))
        >>> place(tie, Grid(torch.tensor(0.5), number_format=Integers(4)))
        tensor([1.2500])
    """

    steps: Tensor
    nudges: Tensor


@st.composite
def placements(draw: st.DrawFn, shape: tuple[int, ...], low: int, high: int) -> Placement:
    """Places on a grid of integers from ``low`` to ``high``: on them, on ties, just beside, at and beyond the ends.

    Example:
        >>> from hypothesis import find
        >>> find(placements((1,), -8, 7), lambda placement: (placement.steps > 7).all()).steps.item() > 7
        True
    """
    count = int(torch.Size(shape).numel())
    drawn = draw(st.lists(_beside(low, high), min_size=count, max_size=count))
    steps = torch.tensor([code + fraction for code, fraction, _ in drawn], dtype=torch.float64)
    nudges = torch.tensor([nudge for *_, nudge in drawn], dtype=torch.int64)
    return Placement(steps.reshape(shape), nudges.reshape(shape))


@lru_cache(maxsize=256)
def _beside(low: int, high: int) -> SearchStrategy[tuple[int, float, int]]:
    """Code, fraction and nudge: one draw from a table, because draws are most of the cost of an example."""
    return st.sampled_from(_table(low, high))


def _table(low: int, high: int) -> list[tuple[int, float, int]]:
    """Simple entries first: failures shrink towards them."""
    return [(code, *beside) for beside in _BESIDE for code in _codes(low, high, 16)]


def single_places(low: int, high: int) -> Iterator[Placement]:
    """Every place that `placements` draws from, one by one, simple ones first.

    Example:
        >>> next(single_places(-8, 7)).steps
        tensor([0.], dtype=torch.float64)
    """
    for code, fraction, nudge in dict.fromkeys(_table(low, high)):
        yield Placement(torch.tensor([code + fraction], dtype=torch.float64), torch.tensor([nudge]))


def _codes(low: int, high: int, count: int) -> list[int]:
    """About so many integers of a range, small ones and the ends among them, and some beyond; simple ones first."""
    spread = range(low, high + 1, max(1, (high - low) // count))
    near = range(max(low, -3), min(high, max(low, 0) + 3) + 1)
    ends = (low, high, low - 1, high + 1, low - 2, high + 2)
    return sorted({*near, *spread, *ends}, key=lambda code: (abs(code), code < 0))


def sweep(low: int, high: int, count: int = 64) -> Placement:
    """Every kind of place beside about so many integers of a range, in one row.

    Example:
        >>> sweep(-2, 1).steps.unique()[:4]
        tensor([-4.4900, -4.0000, -3.7500, -3.5000], dtype=torch.float64)
    """
    drawn = [(code, *beside) for code in _codes(low, high, count) for beside in dict.fromkeys(_BESIDE)]
    steps = torch.tensor([code + fraction for code, fraction, _ in drawn], dtype=torch.float64)
    return Placement(steps, torch.tensor([nudge for *_, nudge in drawn], dtype=torch.int64))


def place(placement: Placement, grid: Grid, dtype: torch.dtype = torch.float32) -> Tensor:
    """The values at these places of a grid, to the nearest number of a type (and its neighbour, where nudged).

    Example:
        >>> place(Placement(torch.zeros(1), torch.ones(1)), Grid(torch.tensor(0.5)))
        tensor([1.4013e-45])
    """
    steps = Places(grid.number_format).steps(placement.steps)
    if grid.zero_point is not None:
        steps = steps - grid.along(grid.zero_point, steps.shape)
    values = (steps * grid.along(grid.scale, steps.shape).double()).to(dtype)
    toward = torch.where(placement.nudges > 0, torch.inf, -torch.inf).to(dtype)
    return torch.where(placement.nudges == 0, values, torch.nextafter(values, toward))


@st.composite
def tensors(
    draw: st.DrawFn, grid: Grid | None = None, shape: tuple[int, ...] | None = None, dtype: torch.dtype = torch.float32
) -> Tensor:
    """Tensors whose values test rounding and clipping on a grid: see `placements`.

    Args:
        draw: provided by Hypothesis.
        grid: the grid, with one scale; None for a different one each time.
        shape: None for a different one each time, empty ones too.
        dtype: of the values.

    Example:
        >>> from hypothesis import find
        >>> grid = Grid(torch.tensor(0.5), number_format=Integers(4))
        >>> find(tensors(grid, shape=(1,)), lambda x: bool(x > 3.5)).item() > 3.5
        True
    """
    grid = draw(grids()) if grid is None else grid
    shape = draw(shapes(empty=True)) if shape is None else shape
    places = Places(grid.number_format)
    return place(draw(placements(shape, places.low, places.high)), grid, dtype)
