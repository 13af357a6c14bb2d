"""Golden vectors of floats, tables and blocks, which `levels` works out."""

import json
import math
from collections.abc import Iterator
from dataclasses import dataclass
from fractions import Fraction

import numpy as np

from .levels import BLOCK_RULES, LEVELS, Float, Levels, block_scale
from .vector import FOLDER, Vector, bits_of, numbers_of

__all__ = ["BLOCKS", "BlockVector", "golden_blocks", "made", "made_blocks", "read", "written", "written_blocks"]

VERSION = 1  # of the files: raise it when the numbers change, and say why in the changelog
BLOCKS = "blocks"  # the name of the file
_ROUNDINGS = ("half_even", "half_up", "floor", "ceil", "toward_zero")
_GRIDS = ((1.0, _ROUNDINGS), (float(np.float32(0.1)), ("half_even",)))  # scales, with their roundings
_ELEMENTS = ("e4m3fn", "e5m2", "e3m2fn", "e2m3fn", "e2m1fn")
_TALL = 64  # more levels of one sign than this are picked from


def _picked(levels: Levels) -> list[Fraction]:
    """Levels to test: all of few, of many the lowest, the highest, and the ends of each binade."""
    above = [level for level, _ in levels.ordered if level >= 0]
    if len(above) <= _TALL or not isinstance(levels, Float):
        return above
    step = 1 << levels.mantissa_bits
    return [level for at, level in enumerate(above) if at < 2 * step or at >= len(above) - step or at % step < 1]


def inputs(levels: Levels, scale: float) -> list[float]:
    """Levels, ties and their neighbours, of both signs, the ends and what lies beyond."""
    known = [level for level, _ in levels.ordered]
    found: list[float] = [0.0, -0.0, 1e-30, -1e-30, math.inf, -math.inf, 3e38, -3e38]
    for level in _picked(levels):
        above = [each for each in known if each > level][:1]
        for place in [level, *[(level + each) / 2 for each in above]]:
            number = np.float32(float(place) * scale)
            beside = [float(np.nextafter(number, np.float32(end))) for end in (-np.inf, np.inf)] if above else []
            found += [sign * each for each in (float(number), *beside) for sign in (1, -1)]
    found += [float(np.float32(float(known[-1]) * scale * factor)) for factor in (1.01, 1.1, 2.0)]
    return list(dict.fromkeys(found)) if levels.negative_zero is None else _distinct(found)


def _distinct(numbers: list[float]) -> list[float]:
    return [*{(each, math.copysign(1, each)): each for each in numbers}.values()]


def made(levels: Levels) -> Iterator[Vector]:
    """The vectors of a format, computed anew: divided in float32, as ONNX divides, the rest exact.

    Example:
        >>> next(made(LEVELS["e2m1fn"])).codes.max()
        np.int64(15)
    """
    for scale, roundings in _GRIDS:
        x = np.asarray(inputs(levels, scale), np.float32)
        with np.errstate(over="ignore"):
            steps = x / np.float32(scale)
        for rounding in roundings:
            codes = np.array([levels.nearest(float(each), rounding) for each in steps])
            yield Vector(scale, 0, rounding, x, codes, _values(levels, codes, scale))


def _values(levels: Levels, codes: np.ndarray, scale: float) -> np.ndarray:
    table = np.array([math.nan if each is None else float(each) for each in levels.values], np.float32)
    if levels.negative_zero is not None:
        table[levels.negative_zero] = -0.0
    return table[codes] * np.float32(scale)


def written(levels: Levels) -> str:
    """The text of a format's file."""
    vectors: dict[float, dict[str, object]] = {}
    for each in made(levels):
        entry = vectors.setdefault(
            each.scale, {"scale": bits_of(np.array([each.scale])), "x": bits_of(each.x), "codes": {}}
        )
        entry["codes"][each.rounding] = " ".join(map(str, each.codes.tolist()))  # type: ignore[index]
    return json.dumps({"version": VERSION, "format": levels.name, "vectors": [*vectors.values()]}, indent=1) + "\n"


def read(levels: Levels) -> list[Vector]:
    """The vectors of a format, as stored."""
    found = []
    for each in json.loads((FOLDER / f"{levels.name}.json").read_text(encoding="utf-8"))["vectors"]:
        scale, x = float(numbers_of(each["scale"])[0]), numbers_of(each["x"])
        for rounding, text in each["codes"].items():
            codes = np.array(text.split(), dtype=np.int64)
            found.append(Vector(scale, 0, rounding, x, codes, _values(levels, codes, scale)))
    return found


# Blocks


@dataclass(frozen=True)
class BlockVector:
    """Blocks of numbers with the scale that each gets by a rule, and the codes of its elements.

    Attributes:
        element: the name of the elements' format.
        rule: ``floor``, ``ceil``, ``even`` or ``rceil`` of microscaling; ``two_level`` of NVFP4.
        x: float32 numbers, one block in a row.
        scales: the float32 scale of each block.
        codes: of the elements.

    Example:
        >>> first = golden_blocks()[0]
        >>> first.element, first.rule, first.x.shape, first.scales.shape
        ('e4m3fn', 'floor', (14, 8), (14,))
    """

    element: str
    rule: str
    x: np.ndarray
    scales: np.ndarray
    codes: np.ndarray


def _block_inputs() -> np.ndarray:
    """Blocks whose largest magnitudes lie at and beside powers of two and the ends of formats."""
    largest = (1.0, 1.0000001, 1.9999999, 1.5, 1.75, 1.7500001, 1.875, 6.0, 7.0, 448.0, 3e-39, 1e-30, 5e30, 3e38)
    shares = (1.0, -0.73, 0.5, -0.2900001, 0.1250001, -0.0625, 0.01, -0.0)
    return np.array([[np.float32(each) * np.float32(share) for share in shares] for each in largest], np.float32)


def made_blocks() -> Iterator[BlockVector]:
    """The vectors of blocks, computed anew.

    Example:
        >>> [float(each) for each in next(made_blocks()).scales[:3]]
        [0.00390625, 0.00390625, 0.00390625]
    """
    x = _block_inputs()
    for name in _ELEMENTS:
        for rule in BLOCK_RULES:
            scales = np.array([block_scale(float(row.max()), LEVELS[name], rule) for row in x], np.float32)
            yield BlockVector(name, rule, x, scales, _codes(LEVELS[name], x, scales))
    ordinary = x[:10]
    elements, steps = LEVELS["e2m1fn"], LEVELS["e4m3fn"]
    largest = ordinary.max(1)
    tensor_scale = largest.max() / np.float32(6 * 448)  # NVFP4: in float32, rounded at each step
    quotients = largest / np.float32(6) / tensor_scale
    known = [steps.values[steps.nearest(max(float(each), 2.0**-9))] for each in quotients]
    scales = np.array([float(each or 0) for each in known], np.float32) * tensor_scale
    yield BlockVector("e2m1fn", "two_level", ordinary, scales, _codes(elements, ordinary, scales))


def _codes(levels: Levels, x: np.ndarray, scales: np.ndarray) -> np.ndarray:
    with np.errstate(over="ignore"):
        steps = x / scales[:, None]
    return np.array([[levels.nearest(float(each)) for each in row] for row in steps])


def written_blocks() -> str:
    """The text of their file."""
    content: list[dict[str, object]] = []
    for each in made_blocks():
        codes = [" ".join(map(str, row)) for row in each.codes.tolist()]
        content.append({"element": each.element, "rule": each.rule, "scales": bits_of(each.scales), "codes": codes})
    x = [bits_of(row) for row in _block_inputs()]
    return json.dumps({"version": VERSION, "x": x, "vectors": content}, indent=1) + "\n"


def golden_blocks() -> list[BlockVector]:
    """The vectors of blocks with a common scale: microscaling by every rule, and NVFP4.

    Example:
        >>> sorted({each.rule for each in golden_blocks()})
        ['ceil', 'even', 'floor', 'rceil', 'two_level']
    """
    content = json.loads((FOLDER / f"{BLOCKS}.json").read_text(encoding="utf-8"))
    x = np.stack([numbers_of(row) for row in content["x"]])
    found = []
    for each in content["vectors"]:
        codes = np.array([row.split() for row in each["codes"]], dtype=np.int64)
        scales = numbers_of(each["scales"])
        found.append(BlockVector(each["element"], each["rule"], x[: len(codes)], scales, codes))
    return found
