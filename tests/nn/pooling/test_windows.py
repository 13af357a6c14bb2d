"""Where windows lie, as torch has it; and sums over them that are exact."""

import torch
import torch.nn.functional as F
from hypothesis import assume, given
from hypothesis import strategies as st

from bitwright.nn.pooling.windows import (
    adaptive_counts,
    adaptive_windows,
    each_dimension,
    lengths_of,
    overhang,
    sums_between,
    sums_of_windows,
)


@st.composite
def windows(draw):
    """A size, and a kernel, stride and padding that torch takes for it."""
    kernel = draw(st.integers(1, 5))
    padding = draw(st.integers(0, kernel // 2))
    size = draw(st.integers(max(kernel - 2 * padding, 1), 12))
    return size, kernel, draw(st.integers(1, 6)), padding


@given(windows(), st.booleans(), st.booleans())
def test_windows_have_the_lengths_that_torch_divides_by(window, ceil_mode, with_padding):
    size, kernel, stride, padding = window
    ones = torch.ones(1, 1, size, 1, dtype=torch.float64)
    sides = ((kernel, 1), (stride, 1), (padding, 0))
    sums = F.avg_pool2d(ones, *sides, ceil_mode, True, divisor_override=1)
    averages = F.avg_pool2d(ones, *sides, ceil_mode, with_padding)
    assume((sums > 0).all())  # a window of padding alone has no length to be seen
    assert lengths_of(size, kernel, stride, padding, ceil_mode, with_padding) == (sums / averages).flatten().tolist()


@given(windows(), windows(), st.booleans())
def test_sums_are_torchs(rows, columns, ceil_mode):
    x = torch.randint(-128, 128, (2, rows[0], columns[0])).double()
    kernel, stride, padding = ((one, other) for one, other in zip(rows[1:], columns[1:], strict=True))
    expected = F.avg_pool2d(x, kernel, stride, padding, ceil_mode, True, divisor_override=1)
    assert torch.equal(sums_of_windows(x, kernel, stride, padding, ceil_mode), expected)


def test_literal_overhangs():
    assert [overhang(size, 3, 2, 1) for size in (4, 5, 6)] == [1, 0, 1]
    assert overhang(5, 2, 3, 0) == 0


@given(st.integers(1, 12), st.integers(1, 12))
def test_adaptive_windows_are_torchs(size, count):
    x = torch.randint(-128, 128, (3, size)).double()
    starts, ends = adaptive_windows(size, count)
    lengths = torch.tensor(ends) - torch.tensor(starts)
    assert torch.equal(sums_between(x, 1, starts, ends) / lengths, F.adaptive_avg_pool1d(x, count))


def test_arguments_of_torch():
    assert each_dimension(3, 2) == each_dimension([3], 2) == (3, 3)
    assert each_dimension((3, 1), 2) == (3, 1)
    assert adaptive_counts(3, (7, 8)) == [3, 3]
    assert adaptive_counts(None, (7, 8)) == [7, 8]
    assert adaptive_counts((2, None), (7, 8)) == [2, 8]
