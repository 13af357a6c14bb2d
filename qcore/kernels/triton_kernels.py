# ruff: noqa: ANN001, ANN201, ANN202, N803, SIM108 - the language of kernels: no types, constants in capitals
# pyright: reportInvalidTypeForm=false, reportRedeclaration=false
"""The kernels of `device`, in Triton: each reads its tensors once, computes in float32 and writes its results.

Triton comes with torch's builds for GPUs, so that this module is imported where a tensor is on one. A tensor is
``outer`` blocks of ``channels`` rows of ``inner`` numbers; a channel, which has one scale, is handled by ``splits``
programs. Sums have a fixed order: each program writes its part, and another kernel adds the parts.
"""

from types import SimpleNamespace
from typing import Any

import torch

try:
    import triton  # pyright: ignore[reportMissingImports]
    import triton.language as tl  # pyright: ignore[reportMissingImports]
    from triton.language.extra import libdevice  # pyright: ignore[reportMissingImports]
except ImportError:  # the module can be read all the same, and nothing in it runs
    libdevice: Any = None
    triton: Any = SimpleNamespace(jit=lambda *kernel, **_: kernel[0] if kernel else lambda kernel: kernel)
    tl: Any = SimpleNamespace(constexpr=None)

__all__ = ["add_parts", "launch", "quantize", "quantize_backward", "quantize_rows", "quantize_rows_backward"]

_compiled: dict[Any, Any] = {}  # kernels of types and settings: Triton's own search takes longer than a launch


def launch(kernel: Any, grid: tuple[int, int], kinds: tuple[Any, ...], *args: Any) -> None:
    """Run a kernel for tensors of some types, on the device of the first one.

    Args:
        kernel: one of this module's.
        grid: numbers of programs.
        kinds: the types of tensors that may have different ones, and what is constant in the kernel.
        args: its arguments in order; what is constant is last.
    """
    device = args[0].get_device()
    if device != torch.cuda.current_device():
        with torch.cuda.device(device):
            return launch(kernel, grid, kinds, *args)
    key = (id(kernel), device, kinds)
    found = _compiled.get(key)
    if found is None:
        _compiled[key] = kernel[grid](*args)
    else:
        found[(*grid, 1)](*args)
    return None


@triton.jit
def _reached(x, step, shift, low, high, LOWEST_IS_ZERO: tl.constexpr):
    """What is rounded, the integer in range and the one before it was clipped."""
    steps = tl.div_rn(x, step)
    codes = libdevice.rint(steps) + shift
    held = tl.where(codes > high, high, codes)  # NaN stays
    if LOWEST_IS_ZERO:
        held = tl.where(held < 0.0, 0.0, held)
    else:
        held = tl.where(held < low, low, held)
    return steps, codes, held


_SCALARS = ["scale", "zero", "base", "offset", "inner", "channels", "outer", "low", "high", "floor", "threshold"]


@triton.jit(do_not_specialize=_SCALARS)
def quantize(
    x,
    y,
    scale,
    zero,
    base,
    offset,
    inner,
    channels,
    outer,
    low,
    high,
    floor,
    threshold,
    MAGNITUDE: tl.constexpr,
    ZERO: tl.constexpr,
    RELU: tl.constexpr,
    ALIGNED: tl.constexpr,
    BLOCK: tl.constexpr,
):
    """Values on the grid; with MAGNITUDE the scale is worked out here and written."""
    channel, split, splits = tl.program_id(0), tl.program_id(1), tl.num_programs(1)
    if MAGNITUDE:
        magnitude = tl.abs(tl.load(base + channel) + tl.load(offset + channel).to(tl.float32))
        step = tl.div_rn(tl.where(magnitude < floor, floor, magnitude), threshold)
        if split == 0:
            tl.store(scale + channel, step)
    else:
        step = tl.load(scale + channel)
    shift = tl.load(zero + channel).to(tl.float32) if ZERO else 0.0
    if ALIGNED:
        inner = tl.multiple_of(inner, 16)
    for block in range(outer):
        first = (block * channels + channel) * inner
        for start in range(split * BLOCK, inner, splits * BLOCK):
            at = start + tl.arange(0, BLOCK)
            mask = at < inner
            values = tl.load(x + first + at, mask).to(tl.float32)
            _, _, held = _reached(values, step, shift, low, high, RELU)
            tl.store(y + first + at, ((held - shift) * step).to(y.dtype.element_ty), mask)


@triton.jit(do_not_specialize=_SCALARS)
def quantize_backward(
    grad,
    x,
    out,
    parts,
    zero_parts,
    scale,
    zero,
    inner,
    channels,
    outer,
    low,
    high,
    CLIPS: tl.constexpr,
    SCALE: tl.constexpr,
    ZERO: tl.constexpr,
    ZERO_GRAD: tl.constexpr,
    RELU: tl.constexpr,
    ALIGNED: tl.constexpr,
    BLOCK: tl.constexpr,
):
    """The gradient of the values, and the program's part of those of scale and zero point."""
    channel, split, splits = tl.program_id(0), tl.program_id(1), tl.num_programs(1)
    step = tl.load(scale + channel)
    shift = tl.load(zero + channel).to(tl.float32) if ZERO else 0.0
    if ALIGNED:
        inner = tl.multiple_of(inner, 16)
    pull = tl.zeros([BLOCK], tl.float32)
    beyond = tl.zeros([BLOCK], tl.float32)
    for block in range(outer):
        first = (block * channels + channel) * inner
        for start in range(split * BLOCK, inner, splits * BLOCK):
            at = start + tl.arange(0, BLOCK)
            mask = at < inner
            values = tl.load(x + first + at, mask, other=0.0).to(tl.float32)
            given = tl.load(grad + first + at, mask, other=0.0).to(tl.float32)
            steps, codes, held = _reached(values, step, shift, low, high, RELU)
            inside = (codes >= low) & (codes <= high)
            if RELU:
                inside = inside & (values > 0.0)
            if SCALE:
                pull += given * (held - shift - tl.where(inside, steps, 0.0))
            if ZERO_GRAD:
                beyond += tl.where(inside, 0.0, given)
            if CLIPS:
                given = tl.where(inside, given, 0.0)
            elif RELU:
                given = tl.where(values > 0.0, given, 0.0)
            tl.store(out + first + at, given.to(out.dtype.element_ty), mask)
    if SCALE:
        tl.store(parts + channel * splits + split, tl.sum(pull, 0))
    if ZERO_GRAD:
        tl.store(zero_parts + channel * splits + split, -tl.sum(beyond, 0) * step)


@triton.jit(do_not_specialize=["parts", "total", "base", "offset", "splits", "floor", "threshold"])
def add_parts(parts, total, base, offset, splits, floor, threshold, MAGNITUDE: tl.constexpr, BLOCK: tl.constexpr):
    """The sums of parts; with MAGNITUDE, of the scale's gradient, that of the magnitude before its sign was dropped."""
    channel = tl.program_id(0)
    found = tl.zeros([BLOCK], tl.float32)
    for start in range(0, splits, BLOCK):
        at = start + tl.arange(0, BLOCK)
        found += tl.load(parts + channel * splits + at, at < splits, other=0.0)
    pull = tl.sum(found, 0)
    if MAGNITUDE:
        magnitude = tl.load(base + channel) + tl.load(offset + channel).to(tl.float32)
        pull = tl.div_rn(pull, threshold)
        pull = tl.where(tl.abs(magnitude) < floor, 0.0, tl.where(magnitude < 0.0, -pull, pull))
    tl.store(total + channel, pull.to(total.dtype.element_ty))


@triton.jit(do_not_specialize=["scale", "inner", "floor", "threshold"])
def quantize_rows(x, y, scale, inner, floor, threshold, ALIGNED: tl.constexpr, BLOCK: tl.constexpr):
    """Rows on grids that their largest magnitudes set; a row with a number that isn't finite has a magnitude of 1."""
    row = tl.program_id(0)
    if ALIGNED:
        inner = tl.multiple_of(inner, 16)
    first = row * inner
    largest = tl.zeros([BLOCK], tl.float32)
    for start in range(0, inner, BLOCK):
        at = start + tl.arange(0, BLOCK)
        magnitudes = tl.abs(tl.load(x + first + at, at < inner, other=0.0).to(tl.float32))
        magnitudes = tl.where(magnitudes < float("inf"), magnitudes, float("inf"))
        largest = tl.maximum(largest, magnitudes)
    magnitude = tl.max(largest, 0)
    magnitude = tl.where(magnitude < float("inf"), tl.where(magnitude < floor, floor, magnitude), 1.0)
    step = tl.div_rn(magnitude, threshold)
    tl.store(scale + row, step)
    for start in range(0, inner, BLOCK):
        at = start + tl.arange(0, BLOCK)
        values = tl.load(x + first + at, at < inner, other=0.0).to(tl.float32)
        _, _, held = _reached(values, step, 0.0, -threshold, threshold, False)
        tl.store(y + first + at, (held * step).to(y.dtype.element_ty), at < inner)


@triton.jit(do_not_specialize=["scale", "inner", "floor", "threshold"])
def quantize_rows_backward(grad, x, out, scale, inner, floor, threshold, ALIGNED: tl.constexpr, BLOCK: tl.constexpr):
    """The gradient of rows: what comes, and the scale's, which goes to the first of the largest magnitudes."""
    row = tl.program_id(0)
    if ALIGNED:
        inner = tl.multiple_of(inner, 16)
    first = row * inner
    step = tl.load(scale + row)
    pull = tl.zeros([BLOCK], tl.float32)
    largest = tl.zeros([BLOCK], tl.float32) - 1.0
    where = tl.zeros([BLOCK], tl.int32)
    for start in range(0, inner, BLOCK):
        at = start + tl.arange(0, BLOCK)
        values = tl.load(x + first + at, at < inner, other=0.0).to(tl.float32)
        given = tl.load(grad + first + at, at < inner, other=0.0).to(tl.float32)
        _, _, held = _reached(values, step, 0.0, -threshold, threshold, False)
        pull += given * (held * step - values)
        magnitudes = tl.where(tl.abs(values) < float("inf"), tl.abs(values), float("inf"))
        where = tl.where(magnitudes > largest, at, where)
        largest = tl.maximum(largest, magnitudes)
    magnitude = tl.max(largest, 0)
    peak = tl.min(tl.where(largest == magnitude, where, inner), 0)
    total = tl.div_rn(tl.sum(pull, 0), step * threshold)
    fixed = (magnitude < floor) | (magnitude == float("inf"))
    total = tl.where(fixed, 0.0, total)
    for start in range(0, inner, BLOCK):
        at = start + tl.arange(0, BLOCK)
        mask = at < inner
        values = tl.load(x + first + at, mask, other=0.0).to(tl.float32)
        given = tl.load(grad + first + at, mask, other=0.0).to(tl.float32)
        given += tl.where(at == peak, tl.where(values < 0.0, -total, total), 0.0)
        tl.store(out + first + at, given.to(out.dtype.element_ty), mask)
