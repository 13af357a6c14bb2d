"""Golden vectors: chosen numbers quantized in every format, computed without torch and without this library.

For integers, the oracles are the definitions of ONNX ``QuantizeLinear`` written in numpy with exact fractions, and for
formats that `ml_dtypes` has (int2, uint2, int4, uint4) a check that its types hold exactly the same integers; other
formats are in `levels`. The vectors are beside this file, one JSON file for each format; float32 numbers are written as
their bits in hexadecimal.

``python -m bitwright.testing.golden.make`` rewrites the files.
"""

import json
import math
from collections.abc import Iterator
from dataclasses import dataclass
from fractions import Fraction

import numpy as np

from .level_vectors import read
from .levels import LEVELS
from .vector import FOLDER, Vector, bits_of, numbers_of

__all__ = ["FORMATS", "VERSION", "Format", "golden_vectors", "made", "written"]

VERSION = 1  # of the files: raise it when the numbers change, and say why in the changelog


@dataclass(frozen=True)
class Format:
    """An integer format.

    Attributes:
        name: also of its file.
        bit_width: how many bits.
        signed: whether there are negative integers.
        narrow_range: whether the range leaves out one end.
        zero_points: the zero points of its vectors.

    Example:
        >>> FORMATS["int4_narrow"].bounds
        (-7, 7)
    """

    name: str
    bit_width: int
    signed: bool
    narrow_range: bool = False
    zero_points: tuple[int, ...] = (0,)

    @property
    def bounds(self) -> tuple[int, int]:
        """The smallest and the largest integer."""
        if self.signed:
            return -(2 ** (self.bit_width - 1)) + self.narrow_range, 2 ** (self.bit_width - 1) - 1
        return 0, 2**self.bit_width - 1 - self.narrow_range


def _formats() -> Iterator[Format]:
    for bits in (2, 3, 4, 8, 16):
        middle = 2 ** (bits - 1)
        yield Format(f"int{bits}", bits, True)
        yield Format(f"int{bits}_narrow", bits, True, True)
        yield Format(f"uint{bits}", bits, False)
        yield Format(f"uint{bits}_shifted", bits, False, False, (1, middle, 2 * middle - 1))


FORMATS = {each.name: each for each in _formats()}
ROUNDINGS = ("half_even", "half_up", "floor", "ceil", "toward_zero")
SCALES = (1.0, 0.1, 1 / 3, 1 / 127, 3.0, 1e-6)


def rounded(quotient: Fraction, rounding: str) -> int:
    """A fraction rounded to a whole number, by the definition of each rounding.

    Example:
        >>> [rounded(Fraction(-5, 2), each) for each in ROUNDINGS]
        [-2, -2, -3, -2, -2]
    """
    down = math.floor(quotient)
    rest = quotient - down
    half = Fraction(1, 2)
    up = {
        "half_even": rest > half or (rest == half and down % 2 == 1),
        "half_up": rest >= half,
        "floor": False,
        "ceil": rest > 0,
        "toward_zero": rest > 0 and quotient < 0,
    }[rounding]
    return down + up


def quantized(x: float, scale: float, zero_point: int, form: Format, rounding: str) -> tuple[int, float]:
    """The integer of a number, and its value: ``clamp(round(x / scale) + zero_point)``, in float32 like ONNX.

    Example:
        >>> quantized(0.3, 0.25, 0, FORMATS["int8"], "half_even")
        (1, 0.25)
    """
    quotient = np.float32(x) / np.float32(scale)  # IEEE division, rounded once; the rest is exact
    code = rounded(Fraction(float(quotient)), rounding) + zero_point
    code = min(max(code, form.bounds[0]), form.bounds[1])
    return code, float(np.float32(code - zero_point) * np.float32(scale))


def inputs(scale: float, zero_point: int, form: Format) -> list[float]:
    """Numbers that test rounding and clipping: integers, ties and their neighbours, ends, and values beyond."""
    low, high = (end - zero_point for end in form.bounds)
    codes = sorted({*range(max(low, -3), min(high, 3) + 1), low - 1, low, low + 1, high - 1, high, high + 1})
    found: list[float] = [0.0, 1e-30, -1e-30, 1e30, -1e30]
    for code in codes:
        for step in (float(code), code + 0.25, code + 0.5):
            number = np.float32(np.float64(step) * np.float64(np.float32(scale)))
            found += [float(np.nextafter(number, np.float32(toward))) for toward in (-np.inf, np.inf)]
            found.append(float(number))
    return list(dict.fromkeys(found))


def made(form: Format) -> Iterator[Vector]:
    """The vectors of a format, computed anew.

    Example:
        >>> next(made(FORMATS["int2"])).codes.max()
        np.int64(1)
    """
    _agrees_with_ml_dtypes(form)
    for scale in (float(np.float32(each)) for each in SCALES):
        for zero_point in form.zero_points:
            for rounding in ROUNDINGS:
                x = inputs(scale, zero_point, form)
                pairs = [quantized(each, scale, zero_point, form, rounding) for each in x]
                codes, values = np.array([pair[0] for pair in pairs]), np.array([pair[1] for pair in pairs])
                yield Vector(scale, zero_point, rounding, np.asarray(x, np.float32), codes, values.astype(np.float32))


def _agrees_with_ml_dtypes(form: Format) -> None:
    """Check that the range is that of the same type in `ml_dtypes`, if it has it."""
    import ml_dtypes

    kind = getattr(ml_dtypes, f"{'int' if form.signed else 'uint'}{form.bit_width}", None)
    if kind is None or form.narrow_range:
        return
    info = ml_dtypes.iinfo(kind)
    every = np.arange(info.min, info.max + 1)
    if (info.min, info.max) != form.bounds or not np.array_equal(every.astype(kind).astype(np.int64), every):
        raise AssertionError(f"ml_dtypes.{form.name} holds {info.min} to {info.max}, the definition says {form.bounds}")


def written(form: Format) -> str:
    """The text of a format's file."""
    low, high = form.bounds
    vectors = []
    shared: dict[tuple[float, int], Vector] = {}
    for each in made(form):
        first = shared.setdefault((each.scale, each.zero_point), each)
        if first is each:
            vectors.append(
                {
                    "scale": bits_of(np.array([each.scale])),
                    "zero_point": each.zero_point,
                    "x": bits_of(each.x),
                    "codes": {},
                }
            )
        vectors[-1]["codes"][each.rounding] = " ".join(map(str, each.codes.tolist()))
    head = {"version": VERSION, "format": form.name, "low": low, "high": high}
    return json.dumps({**head, "vectors": vectors}, indent=1) + "\n"


def golden_vectors(name: str) -> list[Vector]:
    """The vectors of a format, as stored in ``golden/``.

    Args:
        name: of integers, such as ``int4_narrow`` or ``uint8_shifted``; ``e4m3fn``, ``e5m2``, ``e4m3fnuz``,
            ``e5m2fnuz``, ``e3m2fn``, ``e2m3fn``, ``e2m1fn``, ``e3m0b7fn`` (powers of two), ``nf4``, ``binary`` or
            ``ternary``.

    Raises:
        KeyError: another name.

    Example:
        >>> first = golden_vectors("int4")[0]
        >>> first.scale, first.rounding, int(first.codes.min()), int(first.codes.max())
        (1.0, 'half_even', -8, 7)
    """
    if name in LEVELS:
        return read(LEVELS[name])
    content = json.loads((FOLDER / f"{FORMATS[name].name}.json").read_text(encoding="utf-8"))
    found = []
    for each in content["vectors"]:
        scale, zero_point = float(numbers_of(each["scale"])[0]), each["zero_point"]
        x = numbers_of(each["x"])
        for rounding, text in each["codes"].items():
            codes = np.array(text.split(), dtype=np.int64)
            values = (codes - zero_point).astype(np.float32) * np.float32(scale)
            found.append(Vector(scale, zero_point, rounding, x, codes, values))
    return found
