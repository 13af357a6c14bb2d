"""QuantTensor: a tensor of quantized values that knows its grid."""

from collections.abc import Callable
from functools import lru_cache
from typing import Any

import torch
from torch import Tensor

from .errors import QuantTensorError
from .fused import apply_eagerly
from .grid import Grid

__all__ = ["QuantTensor", "grid_of", "values_of"]

aten = torch.ops.aten
_COMPOSITE = torch._C.DispatchKey.CompositeImplicitAutograd


class QuantTensor(torch.Tensor):
    """A tensor of quantized values with the grid they lie on: scale, zero point, bit width, signedness.

    It is a `torch.Tensor`: every operation works on it. Those that leave values on the grid (views, slices, max
    pooling, ReLU, zero padding, ``cat`` and ``+`` on one shared grid ...) return a QuantTensor, all others the plain
    tensor of values. Two tensors share a grid if one quantizer made both; numbers are not compared, so the outcome is
    the same in training and in evaluation. Gradients flow through the values; the grid itself is detached.

    Layers make them (``return_quant_tensor=True``); `wrap` makes one from values and a grid.

    Example:
        >>> q = QuantTensor.wrap(torch.tensor([0.5, -1.0]), Grid(torch.tensor(0.25), bit_width=4, signed=True))
        >>> q.int(), q.scale, q.bit_width, type(q[:1]).__name__, type(q * 2).__name__
        (tensor([ 2, -4], dtype=torch.int8), tensor(0.2500), 4, 'QuantTensor', 'Tensor')
    """

    scale: Tensor  # step between neighbouring values: 0-d, or broadcastable to the values
    _inner: Tensor
    _zero_point: Tensor | None
    _form: tuple[Any, ...] | None  # the rest of the grid, constants; None once the values may have left it

    @staticmethod
    def __new__(
        cls: type["QuantTensor"],
        values: Tensor,
        scale: Tensor | None,
        zero_point: Tensor | None,
        form: tuple[Any, ...] | None,
    ) -> "QuantTensor":
        self = torch.Tensor._make_wrapper_subclass(
            cls,
            values.size(),
            strides=values.stride(),
            storage_offset=values.storage_offset(),
            dtype=values.dtype,
            device=values.device,
            layout=values.layout,
            requires_grad=values.requires_grad,
        )
        self._inner, self._zero_point, self._form = values, zero_point, form
        self.scale = scale  # type: ignore[assignment]  # None off the grid
        return self

    def __init__(self, *parts: Any) -> None:
        pass

    @staticmethod
    def wrap(values: Tensor, grid: Grid) -> "QuantTensor":
        """A QuantTensor of values that lie on a grid; gradients pass through to ``values``.

        Raises:
            QuantTensorError: under a transform of torch.func, which takes no tensors of another type.
        """
        if torch.compiler.is_compiling():
            return _Wrap.apply(values, grid.scale, grid.zero_point, _form_of(grid, values.ndim))
        if not (values.requires_grad and torch.is_grad_enabled()):
            return _on(values, grid)
        wrapped = apply_eagerly(_Wrap, values, grid.scale, grid.zero_point, _form_of(grid, values.ndim))
        if wrapped is None:
            raise QuantTensorError(
                "QuantTensors can't go through the transforms of torch.func, such as grad and vmap. Give the layers "
                "return_quant_tensor=False for them, or take gradients with torch.autograd.grad."
            )
        return wrapped

    @property
    def value(self) -> Tensor:
        """The plain tensor of values; gradients pass through."""
        return values_of(self)

    @property
    def grid(self) -> Grid | None:
        """The grid, or None after an in-place operation that left it."""
        return grid_of(self)

    def _known(self) -> Grid:
        grid = self.grid
        if grid is None:
            raise QuantTensorError(
                "This QuantTensor was changed in place by an operation that leaves its grid. Use the operation that "
                "returns a new tensor (x = x * 2 instead of x.mul_(2)), or quantize the result again."
            )
        return grid

    @property
    def zero_point(self) -> Tensor:
        """The integer that stands for 0, shaped like the scale."""
        self._known()
        return torch.zeros_like(self.scale) if self._zero_point is None else self._zero_point

    @property
    def bit_width(self) -> int:
        """Bits of the integers."""
        return int(self._known().bit_width)

    @property
    def signed(self) -> bool:
        """Whether the integers may be negative."""
        return self._known().signed

    @property
    def is_valid(self) -> bool:
        """Whether every value lies on the grid (to within a fifth of a step) and in its range.

        In half precision: whether every value stands for one integer only.
        """
        grid = self.grid
        if grid is None:
            return False
        with torch.no_grad():
            steps = self._inner.double() / grid.scale
            whole = steps.round()
            if self.dtype in (torch.float32, torch.float64):
                near = (steps - whole).abs() < 0.2
            else:
                below, here, above = (
                    ((whole + offset).float() * grid.scale).to(self.dtype) == self._inner for offset in (-1, 0, 1)
                )
                near = here & ~below & ~above
            codes = whole if grid.zero_point is None else whole + grid.zero_point
            low, high = grid.bounds
            return bool((near & (codes >= low) & (codes <= high)).all())

    def int(self) -> Tensor:
        """The integers, in the smallest integer type that holds the grid's range.

        Raises:
            QuantTensorError: a value is off the grid.
        """
        grid = self._known()
        if not self.is_valid:
            raise QuantTensorError(
                f"Not every value lies on the grid of scale {_short(grid.scale)} and {_bits(grid)}, so there are no "
                "integers to return. Quantize the tensor again, for example with QuantIdentity."
            )
        return grid.to_int(self._inner.detach())

    def numpy(self, *, force: bool = False) -> Any:
        """The values as a numpy array."""
        return values_of(self).numpy(force=force)

    def tolist(self) -> Any:
        """The values as nested lists of numbers, or as a number."""
        return values_of(self).tolist()

    def __array__(self, dtype: Any = None) -> Any:
        return values_of(self).__array__(dtype)

    def __format__(self, format_spec: str) -> str:
        return format(values_of(self), format_spec) if self.ndim == 0 else super().__format__(format_spec)

    def __repr__(self, *, tensor_contents: Any = None) -> str:
        known = self.grid
        grid = "off its grid" if known is None else f"scale={_short(known.scale)}, {_bits(known)}"
        gradient = ", requires_grad=True" if self.requires_grad else ""
        return f"QuantTensor({_contents(self._inner)}, {grid}{gradient})"

    def __iadd__(self, other: Any) -> Tensor:
        return self + other  # rebinds: x += y must not write values off the grid into x

    def __isub__(self, other: Any) -> Tensor:
        return self - other

    def __imul__(self, other: Any) -> Tensor:
        return self * other

    def __reduce_ex__(self, protocol: Any) -> Any:
        form = None if self.grid is None else self._form
        return _restore, (self._inner.detach(), self.scale, self._zero_point, form, self.requires_grad)

    def __deepcopy__(self, memo: dict[Any, Any]) -> "QuantTensor":
        form = None if self.grid is None else self._form
        copied = _restore(self._inner.detach().clone(), self.scale, self._zero_point, form, self.requires_grad)
        memo[id(self)] = copied
        return copied

    # What torch.compile and torch.autograd need to take the tensor apart and put it together again.

    def __tensor_flatten__(self) -> Any:
        names = ["_inner"]
        if self._form is not None:
            names += ["scale"] if self._zero_point is None else ["scale", "_zero_point"]
        return names, self._form

    @staticmethod
    def __tensor_unflatten__(inner: dict[str, Tensor], context: Any, size: Any, stride: Any) -> "QuantTensor":
        return QuantTensor(inner["_inner"], inner.get("scale"), inner.get("_zero_point"), context)

    def __coerce_same_metadata_as_tangent__(self, expected: Any, expected_type: type | None = None) -> Tensor | None:
        return self._inner if expected_type is None or not issubclass(expected_type, QuantTensor) else self

    __torch_function__ = torch._C._disabled_torch_function_impl  # type: ignore[assignment]

    @classmethod
    def __torch_dispatch__(cls, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        kwargs = kwargs or {}
        keep = _KEEP.get(func)
        if keep is None and func._schema.is_mutable:
            return _in_place(func, args, kwargs)
        if keep is None:
            if _is_composite(func.name()):
                return func._op_dk(_COMPOSITE, *args, **kwargs)
            return func(*_plain(args), **_plain(kwargs))
        out = func(*_plain(args), **_plain(kwargs))
        first = out[0] if isinstance(out, (tuple, list)) else out
        grid = keep(func, args, kwargs, first)
        if grid is None:
            return out
        if not isinstance(out, (tuple, list)):
            return _on(out, grid)
        return type(out)(_on(each, grid) if each.dtype == first.dtype else each for each in out)


def values_of(x: Tensor) -> Tensor:
    """The plain values of a tensor that may be a QuantTensor; gradients pass through.

    Functions, not properties: compilers trace into them.

    Example:
        >>> q = QuantTensor.wrap(torch.tensor([0.5, -1.0]), Grid(torch.tensor(0.25)))
        >>> values_of(q), values_of(torch.ones(1))
        (tensor([ 0.5000, -1.0000]), tensor([1.]))
    """
    if not isinstance(x, QuantTensor):
        return x
    if torch.compiler.is_compiling() or (x.requires_grad and torch.is_grad_enabled()):
        return _Unwrap.apply(x)
    return x._inner


def grid_of(x: Tensor) -> Grid | None:
    """The grid of a tensor; None for plain tensors, and for one that an in-place operation moved off its grid.

    Example:
        >>> q = QuantTensor.wrap(torch.tensor([0.5, -1.0]), Grid(torch.tensor(0.25), bit_width=4))
        >>> grid_of(q).bounds, grid_of(torch.ones(1))
        ((-8, 7), None)
    """
    if not isinstance(x, QuantTensor) or x._form is None:
        return None
    if not torch.compiler.is_compiling() and isinstance(x._base, QuantTensor) and x._base._form is None:
        return None  # a view of one that left it
    return Grid(x.scale, x._zero_point, *x._form)


class _Wrap(torch.autograd.Function):
    @staticmethod
    def forward(
        ctx: Any, values: Tensor, scale: Tensor, zero_point: Tensor | None, form: tuple[Any, ...]
    ) -> QuantTensor:
        return QuantTensor(values.detach(), scale, zero_point, form)

    @staticmethod
    def backward(ctx: Any, grad: Tensor) -> tuple[Tensor, None, None, None]:  # type: ignore[override]
        return grad, None, None, None


class _Unwrap(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, tensor: QuantTensor) -> Tensor:
        return tensor._inner.detach()

    @staticmethod
    def backward(ctx: Any, grad: Tensor) -> Tensor:  # type: ignore[override]
        return grad


def behind(x: Tensor) -> Any:
    """The autograd node that made a tensor; for what was in a QuantTensor, the one that made its values."""
    node: Any = x.grad_fn
    while isinstance(node, (_Wrap._backward_cls, _Unwrap._backward_cls)):
        node = node.next_functions[0][0]
    return node


def _form_of(grid: Grid, ndim: int) -> tuple[Any, ...]:
    axis = None if grid.axis is None else grid.axis % ndim  # the rules below count from the first dimension
    return (int(grid.bit_width), grid.signed, grid.narrow_range, axis, grid.source)


def _on(values: Tensor, grid: Grid) -> QuantTensor:
    """A QuantTensor below autograd, where operations are dispatched."""
    return QuantTensor(values, grid.scale, grid.zero_point, _form_of(grid, values.ndim))


def _restore(values: Tensor, *rest: Any) -> QuantTensor:
    *parts, requires_grad = rest
    restored = QuantTensor(values, *parts)
    restored.requires_grad_(requires_grad)
    return restored


@lru_cache(maxsize=1024)
def _is_composite(operation: str) -> bool:
    """Whether an operation is made of others, and nothing else: inference mode hands such a one over whole."""
    known = torch._C._dispatch_has_kernel_for_dispatch_key
    return known(operation, "CompositeImplicitAutograd") and not known(operation, "CPU")


def _inner_of(tensor: Any) -> Any:
    return tensor._inner if isinstance(tensor, QuantTensor) else tensor


def _plain(arguments: Any) -> Any:
    """The arguments of an operation with each QuantTensor replaced by its values."""
    if isinstance(arguments, (tuple, list)):
        return type(arguments)(_plain(each) for each in arguments)
    if isinstance(arguments, dict):
        return {name: _plain(each) for name, each in arguments.items()}
    return _inner_of(arguments)


def _in_place(func: Any, args: Any, kwargs: Any) -> Any:
    """Run an operation that writes into a QuantTensor; unless it is known to stay, the grid is gone."""
    result = func(*_plain(args), **_plain(kwargs))
    target = kwargs.get("out", args[0] if args else None)
    if isinstance(target, QuantTensor):
        if func not in _IN_PLACE:
            for each in (target, target._base):  # what a view changes is its base's
                if isinstance(each, QuantTensor):
                    each._form = None
                    each.scale = None  # type: ignore[assignment]
        return target
    return result


# Which operations keep the grid. Each rule returns the grid of the result, or None.

Rule = Callable[[Any, Any, Any, Tensor], Grid | None]
_KEEP: dict[Any, Rule] = {}
_IN_PLACE = {aten.relu_.default, aten.zero_.default, aten.detach_.default}


def _keeps(*operations: Any) -> Callable[[Rule], Rule]:
    def register(rule: Rule) -> Rule:
        _KEEP.update(dict.fromkeys(operations, rule))
        return rule

    return register


@_keeps(
    aten.alias.default,
    aten.clone.default,
    aten.detach.default,
    aten.flip.default,
    aten.lift_fresh.default,
    aten.relu.default,
    aten.roll.default,
)
def _in_place_of_each(func: Any, args: Any, kwargs: Any, out: Tensor) -> Grid | None:
    """Values stay where they are, or move among values of one scale, or become 0."""
    grid = args[0].grid
    moves = func in (aten.flip.default, aten.roll.default)
    return None if grid is None or (moves and grid.axis is not None) else grid


@_keeps(aten._to_copy.default)
def _converted(func: Any, args: Any, kwargs: Any, out: Tensor) -> Grid | None:
    grid = args[0].grid
    if grid is None or not out.dtype.is_floating_point:
        return None
    zero_point = None if grid.zero_point is None else grid.zero_point.to(out.device)
    return grid.replace(scale=grid.scale.to(out.device), zero_point=zero_point)


@_keeps(
    aten.adaptive_max_pool2d.default,
    aten.adaptive_max_pool3d.default,
    aten.max_pool2d_with_indices.default,
    aten.max_pool3d_with_indices.default,
    aten.upsample_nearest1d.default,
    aten.upsample_nearest2d.default,
    aten.upsample_nearest3d.default,
    aten.upsample_nearest1d.vec,
    aten.upsample_nearest2d.vec,
    aten.upsample_nearest3d.vec,
    aten._upsample_nearest_exact1d.default,
    aten._upsample_nearest_exact2d.default,
    aten._upsample_nearest_exact3d.default,
    aten._upsample_nearest_exact1d.vec,
    aten._upsample_nearest_exact2d.vec,
    aten._upsample_nearest_exact3d.vec,
)
def _spatial(func: Any, args: Any, kwargs: Any, out: Tensor) -> Grid | None:
    """Values are selected along the last dimensions; batch and channels stay."""
    grid = args[0].grid
    return grid if grid is not None and (grid.axis is None or grid.axis <= 1) else None


@_keeps(
    aten._reshape_alias.default,
    aten._unsafe_view.default,
    aten.as_strided.default,
    aten.gather.default,
    aten.im2col.default,
    aten.index.Tensor,
    aten.index_select.default,
    aten.masked_select.default,
    aten.pixel_shuffle.default,
    aten.pixel_unshuffle.default,
    aten.repeat.default,
    aten.unfold.default,
)
def _anywhere(func: Any, args: Any, kwargs: Any, out: Tensor) -> Grid | None:
    """Values may end up anywhere: fine with one scale for all."""
    grid = _inner_grid(args[0])
    return grid if grid is not None and grid.axis is None else None


@_keeps(aten.constant_pad_nd.default)
def _padded(func: Any, args: Any, kwargs: Any, out: Tensor) -> Grid | None:
    grid = args[0].grid
    value = args[2] if len(args) > 2 else kwargs.get("value", 0)
    if grid is None or value != 0:  # 0 is on every grid, other values may not be
        return None
    touched = {out.ndim - 1 - index // 2 for index, width in enumerate(args[1]) if width}
    return None if grid.axis in touched else grid


@_keeps(aten.view.default)
def _viewed(func: Any, args: Any, kwargs: Any, out: Tensor) -> Grid | None:
    tensor, grid = args[0], args[0].grid
    if grid is None or grid.axis is None:
        return grid
    kept = grid.axis + 1
    return _moved(grid, grid.axis, out.ndim) if tensor.shape[:kept] == out.shape[:kept] else None


@_keeps(
    aten.expand.default,
    aten.permute.default,
    aten.select.int,
    aten.slice.Tensor,
    aten.split.Tensor,
    aten.split_with_sizes.default,
    aten.squeeze.default,
    aten.squeeze.dim,
    aten.squeeze.dims,
    aten.t.default,
    aten.transpose.int,
    aten.unbind.int,
    aten.unsqueeze.default,
)
def _dimensions(func: Any, args: Any, kwargs: Any, out: Tensor) -> Grid | None:
    """Dimensions are exchanged, dropped or cut; a stride that only the axis has tells where it went."""
    tensor, grid = args[0], args[0].grid
    if grid is None or grid.axis is None:
        return grid
    mark = 7919
    strides = [mark if dim == grid.axis else 0 for dim in range(tensor.ndim)]
    marked = torch.empty(mark * tensor.shape[grid.axis], device="meta").as_strided(tensor.shape, strides)
    result = func(marked, *args[1:], **kwargs)
    result = result[0] if isinstance(result, (tuple, list)) else result
    if mark not in result.stride():
        return None
    axis = result.stride().index(mark)
    return _moved(grid, axis, result.ndim) if result.shape[axis] == tensor.shape[grid.axis] else None


def _moved(grid: Grid, axis: int, ndim: int) -> Grid:
    """The grid with its scales along another axis of a tensor of another rank."""
    shape = [1] * ndim
    shape[axis] = -1
    zero_point = None if grid.zero_point is None else grid.zero_point.reshape(shape)
    return grid.replace(scale=grid.scale.reshape(shape), zero_point=zero_point, axis=axis)


def _inner_grid(tensor: Any) -> Grid | None:
    return tensor.grid if isinstance(tensor, QuantTensor) else None


@_keeps(aten.cat.default, aten.stack.default)
def _joined(func: Any, args: Any, kwargs: Any, out: Tensor) -> Grid | None:
    """One grid for all, made by one quantizer."""
    grids = [_inner_grid(tensor) for tensor in args[0]]
    first = grids[0]
    dim = (args[1] if len(args) > 1 else kwargs.get("dim", 0)) % out.ndim
    if first is None or first.source is None or any(g is None or g.source != first.source for g in grids):
        return None
    return first if first.axis is None or (func is aten.cat.default and dim != first.axis) else None


@_keeps(aten.add.Tensor, aten.sub.Tensor)
def _summed(func: Any, args: Any, kwargs: Any, out: Tensor) -> Grid | None:
    """On one shared scale integers add up; the result needs one bit more."""
    one, other = _inner_grid(args[0]), _inner_grid(args[1])
    if one is None or other is None or one.source is None or other.source is None:
        return None
    alpha = args[2] if len(args) > 2 else kwargs.get("alpha", 1)
    if alpha != 1 or _origin(one.source) != _origin(other.source) or one.axis != other.axis:
        return None
    if args[0].ndim != args[1].ndim and one.axis is not None:
        return None
    subtracts = func is aten.sub.Tensor
    zero_point = _combined(one.zero_point, other.zero_point, subtracts)
    signed = one.signed or other.signed or subtracts
    spare = 2 if one.signed != other.signed else 1  # an unsigned range of b bits needs b + 1 signed ones
    width = max(int(one.bit_width), int(other.bit_width)) + spare
    source = (_origin(one.source), "-" if subtracts else "+", one.source, other.source)
    return Grid(one.scale, zero_point, width, signed, False, one.axis, source)


def _origin(source: Any) -> Any:
    """The quantizer whose scale a grid has: sums keep it as their first entry."""
    return source[0] if isinstance(source, tuple) else source


def _combined(one: Tensor | None, other: Tensor | None, subtracts: bool) -> Tensor | None:
    if one is None or other is None:
        return one if other is None else (-other if subtracts else other)
    return one - other if subtracts else one + other


def _short(scale: Tensor) -> str:
    if scale.numel() != 1 or scale.is_meta:
        return f"[{scale.numel()} values]"
    number = scale.item()
    return f"{number:.6g}" if isinstance(number, float) else str(number)  # a symbol while a compiler traces


def _bits(grid: Grid) -> str:
    return f"{'' if grid.signed else 'u'}int{int(grid.bit_width)}"


def _contents(values: Tensor) -> str:
    text = repr(values.detach())
    return text[len("tensor(") : -1] if text.startswith("tensor(") else text
