"""The ends of ranges of integers."""

__all__ = ["int_bounds", "representable_bounds"]


def int_bounds(bit_width: int, signed: bool, narrow_range: bool) -> tuple[int, int]:
    """The smallest and the largest integer of a range.

    Signed: ``-2**(b-1)`` to ``2**(b-1) - 1``; narrow drops the smallest, which makes the range symmetric.
    Unsigned: 0 to ``2**b - 1``; narrow drops the largest.

    Example:
        >>> int_bounds(8, signed=True, narrow_range=True), int_bounds(4, signed=False, narrow_range=False)
        ((-127, 127), (0, 15))
    """
    left_out = int(narrow_range)
    if signed:
        return -(2 ** (bit_width - 1)) + left_out, 2 ** (bit_width - 1) - 1
    return 0, 2**bit_width - 1 - left_out


def representable_bounds(low: int, high: int, mantissa_bits: int) -> tuple[int, int]:
    """The bounds pulled in to whole numbers that a float with so many bits of mantissa holds exactly.

    float32 has 24, so that 2**31 - 1 would be rounded up to 2**31, which no int32 holds.

    Example:
        >>> representable_bounds(-(2**31), 2**31 - 1, 24)
        (-2147483648, 2147483520)
    """

    def pull(bound: int) -> int:
        spare = max(0, abs(bound).bit_length() - mantissa_bits)
        kept = abs(bound) >> spare << spare
        return kept if bound >= 0 else -kept

    return pull(low), pull(high)
