"""The integers of a model as a C header, and the functions that compute with them.

For each layer, with its path in capitals as prefix: ``<LAYER>_WEIGHT`` and ``<LAYER>_BIAS``, arrays in row-major order
in the narrowest C type that holds them (one number each, not packed); their shapes and the bit widths as macros; scales
as exact hexadecimal floats; and zero points. C99, without dependencies. Of number formats other than integers the
arrays hold codes, and ``<LAYER>_WEIGHT_LEVELS`` the level of each: ``value = (levels[code] - zero point) * scale``.
Codes of less than 8 bits lie packed, as `bitwright.export.integer.packing` says; ``bitwright_code(array, bits, i)`` is
the one at place i. The other functions, in small letters:

``<layer>_sums(x, [size,] sums)``
    A linear layer or convolution: from integers of the input's grid to sums of products and bias. ``size`` has the
    spatial sizes of ``x``, which is (channels, *size), one sample. Layers with several weights have one for each,
    ``<layer>_<slot>_sums``, from integers of the grid that the weight is multiplied with.
``<layer>_<slot>_requantize(sum, channel)``
    A quantizer that takes integers: ``clamp(round(sum * multiplier / 2**shift) + zero_point)``, ties to even, as
    ``run_integers(..., requantize="multiplier")`` has it. ``sum`` is an integer minus its zero point, ``channel`` the
    index along the dimension with several scales. After an addition of tensors on different grids it takes both.

Pooling, reshaping and additions are the caller's.
"""

import math
import re
from collections.abc import Iterable
from dataclasses import replace

import torch
from torch import Tensor

from ...qcore import HalfEven, StochasticRounding
from ...qcore.formats.integers import storage_dtype
from ..capture.grid import Entering, IntegerGrid, QuantizedTensor
from ..errors import ExportError, with_causes
from .float_modules import remedy
from .layers import LayerIntegers, LayerProduct, LayerTable
from .packing import pack_integers
from .reference.journal import BY_VALUE
from .requantize import ByScale, multiplier_and_shift
from .sums import on_products, products_of, worst_sums

__all__ = ["to_c_header"]

_TYPES = {
    torch.int8: "int8_t",
    torch.uint8: "uint8_t",
    torch.int16: "int16_t",
    torch.int32: "int32_t",
    torch.int64: "int64_t",
}


_ROUND = """
/* total / 2**shift, to nearest, ties to even; then the zero point is added, and low and high are the ends. */
#ifndef BITWRIGHT_REQUANTIZE
#define BITWRIGHT_REQUANTIZE
static inline int64_t bitwright_requantize(
    int64_t total, int32_t shift, int64_t zero_point, int64_t low, int64_t high
) {
    int64_t code = total;
    if (shift > 0) {
        const uint64_t half = (uint64_t)1 << (shift - 1), rest = (uint64_t)total & (2 * half - 1);
        code = total < 0 ? ~(~total >> shift) : total >> shift;
        code += rest > half || (rest == half && (code & 1));
    } else if (shift < 0) {
        code = total * ((int64_t)1 << -shift);
    }
    code += zero_point;
    return code < low ? low : code > high ? high : code;
}
#endif"""


_CODE = """
/* The code at a place of packed ones, the lowest bits first. */
#ifndef BITWRIGHT_CODE
#define BITWRIGHT_CODE
static inline uint32_t bitwright_code(const uint8_t *codes, uint32_t bits, uint64_t place) {
    uint32_t code = 0;
    for (uint32_t i = 0; i < bits; i++) {
        const uint64_t bit = place * bits + i;
        code |= (uint32_t)(codes[bit / 8] >> (bit % 8) & 1) << i;
    }
    return code;
}
#endif"""


def to_c_header(integers: LayerTable, name: str = "model") -> str:
    """The text of a header; ``name`` is for its include guard.

    Raises:
        ExportError: something between two quantizers is computed in floats, or in a way that the header can't say.

    Example:
        >>> import torch, bitwright.nn as qnn
        >>> from bitwright.export import integers
        >>> layer = qnn.QuantLinear(2, 1, bias=False, weight_bit_width=4)
        >>> _ = layer.weight.data.copy_(torch.tensor([[0.7, -0.3]]))
        >>> print(to_c_header(integers(torch.nn.Sequential(layer), torch.ones(1, 2)), "tiny"))
        /* Integers of a quantized model: value = (integer - zero point) * scale. Written by bitwright. */
        /* Computed in floats, and not in this file: 0 (QuantLinear): mm */
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
        /* no l0_sums: its input has no grid */
        <BLANKLINE>
        #endif
        <BLANKLINE>
    """
    _refuse(integers)
    guard = f"{_identifier(name)}_H"
    lines = ["/* Integers of a quantized model: value = (integer - zero point) * scale. Written by bitwright. */"]
    tables = [each.grid.levels for each in integers.quantized().values() if each.grid.levels is not None]
    if tables:
        lines.append("/* Where there are LEVELS, integers are codes: value = (levels[code] - zero point) * scale. */")
    lines += [f"/* Computed in floats, and not in this file: {each} */" for each in integers.floats]
    lines += [f"#ifndef {guard}", f"#define {guard}", ""]
    lines += ["#include <math.h>"] if any(not bool(each.isfinite().all()) for each in tables) else []
    lines += ["#include <stdint.h>"]
    if any(part.entering is not None for part in integers.quantized().values()):
        lines += _ROUND.splitlines()
    if any(_is_packed(part) for part in integers.quantized().values()):
        lines += _CODE.splitlines()
    floats = {each.path for each in integers.floats if "a float bias" in each.operations}
    taken: set[str] = set()
    for layer in integers.layers.values():
        prefix = _identifier(layer.name or name)
        while prefix in taken:
            prefix += "_"
        taken.add(prefix)
        lines += ["", f"/* {layer.name or name}: {layer.kind} */", *_layer(prefix, layer, floats)]
    return "\n".join([*lines, "", "#endif", ""])


def _refuse(integers: LayerTable) -> None:
    causes = [f"{each}. {remedy(each)}" for each in integers.floats if each.place == "between"]
    for part in integers.quantized().values():
        problem = None if part.entering is None else _problem(part.grid, part.entering)
        causes += [] if problem is None else [f"{part.grid.name}: {problem}"]
    if causes:
        raise ExportError(with_causes("a C header can't express this model:", causes))


def _problem(grid: IntegerGrid, entering: Entering) -> str | None:
    if entering.rounding not in (HalfEven.__name__, StochasticRounding.__name__):  # alike in evaluation
        return f"it rounds with {entering.rounding}, and the header half to even. Write rounding='half_even'."
    if entering.axis == BY_VALUE:
        return (
            "what the integers of its input are worth depends on their values, as behind a LeakyReLU, a PReLU or the "
            "larger of two tensors, and the header has one scale for each channel. Use a ReLU, or one scale for both."
        )
    axes = {entering.axis, grid.axis} - {None}
    if len(axes) > 1 or -1 in axes:
        return (
            "its input has scales that vary along another dimension than its own. Quantize what is joined or added "
            "with one scale, by one quantizer."
        )
    return None


def _layer(prefix: str, layer: LayerIntegers, floats: set[str]) -> Iterable[str]:
    for setting, number in layer.settings.items():
        yield from _setting(f"{prefix}_{setting.upper()}", number)
    for slot, each in layer.quantizers.items():
        yield from _quantized(f"{prefix}_{_identifier(slot)}", each)
    matrices = [slot for slot, each in layer.parameters.items() if _is_matrix(slot, each)]
    if matrices and layer.input is not None and "input" not in layer.quantizers:
        yield from _grid(f"{prefix}_INPUT", layer.input)
    for slot in matrices:
        path = layer.quantizers[slot].grid.name.rpartition(f"{slot}_quant")[0].removesuffix(".")
        products = [each for each in products_of(layer) if each.weight == slot]
        for number, product in enumerate(products or [None]):
            yield from _sums(prefix, layer, slot, product, path in floats, "" if number == 0 else f"_{number}")
    for slot, each in layer.quantizers.items():
        if each.entering is not None:
            yield from _requantize(f"{prefix}_{_identifier(slot)}", each.grid, each.entering)


def _requantize(name: str, grid: IntegerGrid, entering: Entering) -> Iterable[str]:
    """Multipliers, a shift and the ends, and the function that applies them."""
    ratios = torch.broadcast_tensors(*(each.double() / grid.scale.double() for each in entering.scales))
    multipliers, shift = multiplier_and_shift([each.reshape(-1) for each in ratios])
    terms = ["", *(f"_{number}" for number in range(1, len(multipliers)))]
    for term, multiplier in zip(terms, multipliers, strict=True):
        yield _array(f"{name}_MULTIPLIER{term}", "int32_t", map(str, multiplier.tolist()), multiplier.numel())
    yield _array(f"{name}_SHIFT", "int32_t", map(str, shift.tolist()), shift.numel())
    kind = _TYPES[storage_dtype(*grid.bounds)]
    for end, bound, default in (("LOW", entering.low, grid.bounds[0]), ("HIGH", entering.high, grid.bounds[1])):
        codes = torch.full_like(grid.zero_point, default).reshape(-1)
        if bound is not None:
            flat = replace(grid, scale=grid.scale.reshape(-1), zero_point=grid.zero_point.reshape(-1), axis=0)
            codes = ByScale()(torch.full(codes.shape, bound), flat, HalfEven())
        yield _array(f"{name}_{end}", kind, map(_c_integer, codes.tolist()), codes.numel())

    def at(array: str, count: int) -> str:
        return f"{name}_{array}[{'channel' if count > 1 else 0}]"

    count, own = shift.numel(), grid.scale.numel()
    products = (f"sum{term} * {at(f'MULTIPLIER{term}', count)}" for term in terms)
    settings = at("SHIFT", count), *(at(each, own) for each in ("ZERO_POINT", "LOW", "HIGH"))
    sums = ", ".join(f"int64_t sum{term}" for term in terms)
    yield f"static inline {kind} {name.lower()}_requantize({sums}, int channel) {{"
    yield "    (void)channel;"
    yield f"    return ({kind})bitwright_requantize({' + '.join(products)}, {', '.join(settings)});"
    yield "}"


def _is_matrix(slot: str, part: QuantizedTensor) -> bool:
    return slot == "weight" or (part.codes is not None and part.codes.ndim > 1)


def _sums(
    prefix: str, layer: LayerIntegers, slot: str, product: LayerProduct | None, float_bias: bool, number: str
) -> Iterable[str]:
    """The function from integers to sums of products and bias, or a word on why there is none.

    Args:
        prefix: of the layer.
        layer: the layer.
        slot: of the weight.
        product: what it is multiplied with, or None where that has no grid.
        float_bias: whether a bias of the layer is float.
        number: of the product, where there are several with this weight.
    """
    problem = _without_sums(layer, slot, product, float_bias)
    name = f"{prefix}_{_identifier(slot)}"
    function = f"{(prefix if slot == 'weight' else name).lower()}_sums{number}"
    if problem is not None or product is None:
        yield f"/* no {function}: {problem} */"
        return
    weight, given, worst = layer.quantizers[slot], product.input, worst_sums(layer, product)
    assert weight.codes is not None
    assert worst is not None
    entering = f"{prefix}_{_identifier(_slot_of(layer, given))}"
    if entering == f"{prefix}_INPUT" and given != layer.input:
        entering = f"{name}_INPUT{number}"
        yield from _grid(entering, given)
    kind = "int32_t" if worst.bits <= 32 else "int64_t"
    spatial = weight.codes.ndim - 2
    axes = range(spatial)
    sizes = "const int *size, " if spatial else ""
    yield f"static inline void {function}(const {_TYPES[storage_dtype(*given.bounds)]} *x, {sizes}{kind} *sums) {{"
    yield f"    const int outs = {name}_DIM0, ins = {name}_DIM1;"
    for axis in axes:
        reach = f"{prefix}_DILATION_{axis} * ({name}_DIM{axis + 2} - 1)"
        padding = _padding(prefix, layer, axis)
        yield f"    const int out{axis} = (size[{axis}] + 2 * {padding} - {reach} - 1) / {prefix}_STRIDE_{axis} + 1;"
    indent = "    "
    for counter, end in [("o", "outs"), *((f"o{axis}", f"out{axis}") for axis in axes)]:
        yield f"{indent}for (int {counter} = 0; {counter} < {end}; {counter}++) {{"
        indent += "    "
    bias = "0" if product.bias is None else f"{prefix}_{_identifier(product.bias)}[o]"
    yield f"{indent}{kind} sum = {bias};"
    inner = indent
    for counter, end in [("i", "ins"), *((f"k{axis}", f"{name}_DIM{axis + 2}") for axis in axes)]:
        yield f"{inner}for (int {counter} = 0; {counter} < {end}; {counter}++) {{"
        inner += "    "
    taken = f"o / (outs / {prefix}_GROUPS) * ins + i" if spatial else "i"
    tap, place = "o * ins + i", "o"
    for axis in axes:
        position = f"o{axis} * {prefix}_STRIDE_{axis} + k{axis} * {prefix}_DILATION_{axis}"
        yield f"{inner}const int p{axis} = {position} - {_padding(prefix, layer, axis)};"
        taken = f"({taken}) * size[{axis}] + p{axis}"
        tap = f"({tap}) * {name}_DIM{axis + 2} + k{axis}"
        place = f"({place}) * out{axis} + o{axis}"
    if spatial:
        outside = " || ".join(f"p{axis} < 0 || p{axis} >= size[{axis}]" for axis in axes)
        yield f"{inner}if ({outside}) continue;"
    row = "o" if weight.grid.zero_point.numel() > 1 else "0"
    yield f"{inner}sum += (({kind})x[{taken}] - {entering}_ZERO_POINT[0])"
    yield f"{inner}     * (({kind}){name}[{tap}] - {name}_ZERO_POINT[{row}]);"
    for _ in range(1 + spatial):
        inner = inner[4:]
        yield f"{inner}}}"
    yield f"{indent}sums[{place}] = sum;"
    for _ in range(1 + spatial):
        indent = indent[4:]
        yield f"{indent}}}"
    yield "}"


_WITH_SUMS = ("QuantLinear", "QuantConv1d", "QuantConv2d", "QuantConv3d")


def _padding(prefix: str, layer: LayerIntegers, axis: int) -> str:
    if not isinstance(layer.settings["padding"], str):
        return f"{prefix}_PADDING_{axis}"
    return "0" if layer.settings["padding"] == "valid" else str(_reach(layer, axis) // 2)


def _reach(layer: LayerIntegers, axis: int) -> int:
    """How far apart the first and the last tap of a kernel are."""
    assert layer.weight is not None
    assert layer.weight.codes is not None
    return layer.settings["dilation"][axis] * (layer.weight.codes.shape[axis + 2] - 1)


def _slot_of(layer: LayerIntegers, grid: IntegerGrid) -> str:
    """The slot of the layer whose grid it is; ``input`` for a grid from elsewhere."""
    return next((slot for slot, each in layer.quantizers.items() if each.grid.name == grid.name), "input")


def _without_sums(layer: LayerIntegers, slot: str, product: LayerProduct | None, float_bias: bool) -> str | None:
    weight = layer.quantizers[slot]
    known = layer.kind in _WITH_SUMS or (product is not None and slot != "weight")
    if weight.codes is None or not (known or (slot != "weight" and weight.codes.ndim == 2)):
        return f"there is none for {layer.kind}"
    if product is None or product.input.axis is not None:
        return "its input has no grid" if product is None else "its input has several scales"
    if weight.grid.axis not in (None, 0) or weight.grid.block is not None:
        return "its weight has several scales in one sum"
    if float_bias and product.bias is None:
        return "its bias is float"
    if product.bias is not None and not on_products(layer, product):
        return "its bias has a scale of its own"
    if layer.settings.get("padding") == "same" and any(each != 1 for each in layer.settings["stride"]):
        return "how much it pads depends on the size of its input"
    if layer.settings.get("padding") == "same" and any(
        _reach(layer, axis) % 2 for axis in range(weight.codes.ndim - 2)
    ):
        return "it pads one side more than the other"
    if "padding_mode" in layer.settings:
        return f"it pads with padding_mode={layer.settings['padding_mode']!r}"
    return None


def _setting(name: str, number: object) -> Iterable[str]:
    if isinstance(number, str):
        return  # "same", "valid", "reflect"
    if isinstance(number, list):
        for dim, each in enumerate(number):
            yield f"#define {name}_{dim} {each}"
    else:
        yield f"#define {name} {number}"


def _quantized(name: str, part: QuantizedTensor) -> Iterable[str]:
    codes = part.codes
    yield f"#define {name}_BITS {part.grid.bit_width}"
    yield f"#define {name}_SIGNED {int(part.grid.signed)}"
    if codes is not None:
        for dim, size in enumerate(codes.shape):
            yield f"#define {name}_DIM{dim} {size}"
        if _is_packed(part):
            codes = pack_integers(codes, part.grid.bit_width, signed=False)
        yield f"static const {_TYPES[codes.dtype]} {name}[{max(codes.numel(), 1)}] = {{"
        yield from _rows(codes)
        yield "};"
    else:
        low, high = part.grid.bounds
        yield f"#define {name}_MIN ({_c_integer(low)})"
        yield f"#define {name}_MAX ({_c_integer(high)})"
    yield from _scales(name, part.grid)


def _is_packed(part: QuantizedTensor) -> bool:
    """Whether codes lie without gaps: those of levels that are no integers, which no function here computes with."""
    return part.codes is not None and part.grid.levels is not None and part.grid.bit_width < 8


def _grid(name: str, grid: IntegerGrid) -> Iterable[str]:
    low, high = grid.bounds
    yield f"#define {name}_BITS {grid.bit_width}"
    yield f"#define {name}_SIGNED {int(grid.signed)}"
    yield f"#define {name}_MIN ({_c_integer(low)})"
    yield f"#define {name}_MAX ({_c_integer(high)})"
    yield from _scales(name, grid)


def _scales(name: str, grid: IntegerGrid) -> Iterable[str]:
    if grid.levels is not None:
        yield _floats(f"{name}_LEVELS", grid.levels)
    yield _floats(f"{name}_SCALE", grid.scale)
    if grid.zero_point.is_floating_point():
        yield _floats(f"{name}_ZERO_POINT", grid.zero_point)
    else:
        zero_points = grid.zero_point.reshape(-1).tolist()
        yield _array(f"{name}_ZERO_POINT", "int32_t", map(str, zero_points), len(zero_points))


def _floats(name: str, numbers: Tensor) -> str:
    flat = numbers.reshape(-1).tolist()
    return _array(name, "float", map(_c_float, flat), len(flat))


def _c_float(number: float) -> str:
    if math.isnan(number):
        return "NAN"
    return f"{number.hex()}f" if math.isfinite(number) else "INFINITY" if number > 0 else "-INFINITY"


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
