"""The integers of a model as a C header.

For each layer, with its path in capitals as prefix: ``<LAYER>_WEIGHT`` and ``<LAYER>_BIAS``, arrays in row-major order
in the narrowest C type that holds them (one number each, not packed); their shapes and the bit widths as macros; scales
as exact hexadecimal floats; zero points; and for sums that go on to a quantizer, the multiplier and shift that take
the place of the scales: ``output = clamp(round(sum * multiplier / 2**shift) + zero_point)``, ties to even.
"""

import re
from collections.abc import Iterable
from typing import Any

import torch
from torch import Tensor

from .integer_grid import IntegerGrid, Quantized
from .integer_requantize import multiplier_and_shift
from .layer_integers import Integers, LayerIntegers

__all__ = ["to_c_header"]

_TYPES = {
    torch.int8: "int8_t",
    torch.uint8: "uint8_t",
    torch.int16: "int16_t",
    torch.int32: "int32_t",
    torch.int64: "int64_t",
}


def to_c_header(integers: Integers, name: str = "model") -> str:
    """The text of a header; ``name`` is for its include guard.

    Example:
        >>> import torch, bitwright.nn as qnn
        >>> from bitwright.export.integers import integers
        >>> layer = qnn.QuantLinear(2, 1, bias=False, weight_bit_width=4)
        >>> _ = layer.weight.data.copy_(torch.tensor([[0.7, -0.3]]))
        >>> print(to_c_header(integers(torch.nn.Sequential(layer), torch.ones(1, 2)), "tiny"))
        /* Integers of a quantized model: value = (integer - zero point) * scale. Written by bitwright. */
        #ifndef TINY_H
        #define TINY_H
        <BLANKLINE>
        #include <stdint.h>
        <BLANKLINE>
        /* 0: QuantLinear */
        #define L0_WEIGHT_BITS 4
        #define L0_WEIGHT_SIGNED 1
        #define L0_WEIGHT_DIM0 1
        #define L0_WEIGHT_DIM1 2
        static const int8_t L0_WEIGHT[2] = {
            7, -3,
        };
        static const float L0_WEIGHT_SCALE[1] = {0x1.99999a0000000p-4f};
        static const int32_t L0_WEIGHT_ZERO_POINT[1] = {0};
        <BLANKLINE>
        #endif
        <BLANKLINE>
    """
    guard = f"{_identifier(name)}_H"
    lines = [
        "/* Integers of a quantized model: value = (integer - zero point) * scale. Written by bitwright. */",
        *(f"#ifndef {guard}", f"#define {guard}", "", "#include <stdint.h>"),
    ]
    taken: set[str] = set()
    for layer in integers.layers.values():
        prefix = _identifier(layer.name or name)
        while prefix in taken:
            prefix += "_"
        taken.add(prefix)
        lines += ["", f"/* {layer.name or name}: {layer.kind} */", *_layer(prefix, layer)]
    return "\n".join([*lines, "", "#endif", ""])


def _layer(prefix: str, layer: LayerIntegers) -> Iterable[str]:
    for setting, number in layer.settings.items():
        yield from _setting(f"{prefix}_{setting.upper()}", number)
    for slot, each in layer.quantizers.items():
        yield from _quantized(f"{prefix}_{_identifier(slot)}", each)
    if layer.weight is not None and layer.input is not None and "input" not in layer.quantizers:
        yield from _grid(f"{prefix}_INPUT", layer.input)
    sums, steps = _requantization(layer)
    if sums is not None and steps is not None:
        ratio = sums.double().reshape(-1) / steps.double().reshape(-1)
        (multiplier,), shift = multiplier_and_shift([ratio])
        yield _array(f"{prefix}_MULTIPLIER", "int32_t", map(str, multiplier.tolist()), multiplier.numel())
        yield _array(f"{prefix}_SHIFT", "int32_t", map(str, shift.tolist()), shift.numel())


def _requantization(layer: LayerIntegers) -> tuple[Tensor | None, Tensor | None]:
    """The scale of the sums that come, and that of the grid that they go to, where both are known."""
    act, output, weight, given = (
        layer.quantizers.get("act"),
        layer.quantizers.get("output"),
        layer.weight,
        layer.input,
    )
    if act is not None and given is not None and (act.grid.axis is None or act.grid.axis == given.axis):
        return given.scale, act.grid.scale
    if output is not None and output.grid.axis is None and weight is not None and given is not None:
        return (given.scale.reshape(()) * weight.grid.scale, output.grid.scale) if given.axis is None else (None, None)
    return None, None


def _setting(name: str, number: Any) -> Iterable[str]:
    if isinstance(number, str):
        return
    if isinstance(number, list):
        for dim, each in enumerate(number):
            yield f"#define {name}_{dim} {each}"
    else:
        yield f"#define {name} {number}"


def _quantized(name: str, part: Quantized) -> Iterable[str]:
    codes = part.codes
    yield f"#define {name}_BITS {part.grid.bit_width}"
    yield f"#define {name}_SIGNED {int(part.grid.signed)}"
    if codes is not None:
        for dim, size in enumerate(codes.shape):
            yield f"#define {name}_DIM{dim} {size}"
        yield f"static const {_TYPES[codes.dtype]} {name}[{max(codes.numel(), 1)}] = {{"
        yield from _rows(codes)
        yield "};"
    else:
        low, high = part.grid.bounds
        yield f"#define {name}_MIN ({low})"
        yield f"#define {name}_MAX ({high})"
    yield from _scales(name, part.grid)


def _grid(name: str, grid: IntegerGrid) -> Iterable[str]:
    low, high = grid.bounds
    yield f"#define {name}_BITS {grid.bit_width}"
    yield f"#define {name}_SIGNED {int(grid.signed)}"
    yield f"#define {name}_MIN ({_c_integer(low)})"
    yield f"#define {name}_MAX ({_c_integer(high)})"
    yield from _scales(name, grid)


def _scales(name: str, grid: IntegerGrid) -> Iterable[str]:
    count = grid.scale.numel()
    scales = (f"{each.hex()}f" for each in grid.scale.reshape(-1).tolist())
    yield _array(f"{name}_SCALE", "float", scales, count)
    yield _array(f"{name}_ZERO_POINT", "int32_t", map(str, grid.zero_point.reshape(-1).tolist()), count)


def _array(name: str, kind: str, numbers: Iterable[str], count: int) -> str:
    return f"static const {kind} {name}[{count}] = {{{', '.join(numbers)}}};"


def _rows(codes: Tensor) -> Iterable[str]:
    flat = codes.reshape(-1).tolist() or [0]
    for start in range(0, len(flat), 16):
        yield f"    {', '.join(map(_c_integer, flat[start : start + 16]))},"


def _c_integer(number: int) -> str:
    return "(-2147483647 - 1)" if number == -(2**31) else str(number)  # -2147483648 is no constant of C's


def _identifier(path: str) -> str:
    """A path in capitals: ``features.3`` as FEATURES_3; one that starts with a digit gets an L."""
    name = re.sub(r"\W", "_", path).upper() or "MODEL"
    return f"L{name}" if name[0].isdigit() else name
