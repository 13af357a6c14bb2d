"""QuantTensor: a tensor of quantized values that knows its grid."""

import re
from collections.abc import Callable, Hashable
from functools import lru_cache
from typing import TYPE_CHECKING, Any, SupportsIndex, TypeVar

import torch
from torch import Tensor
from torch.autograd.graph import Node

from .aliases import Arguments, Context, Keywords, Operator
from .errors import QuantTensorError
from .formats.integers import Integers
from .formats.number_format import NumberFormat
from .granularity import Granularity
from .grid import Grid
from .grid_rules import CHANGES, RULES, STAYS, Operation, may_hold_zero, may_leave
from .kernels.fused import apply_eagerly
from .rounding import HalfEven
from .tracing import is_tracing, number

if TYPE_CHECKING:
    import numpy as np

__all__ = ["QuantTensor", "grid_lost", "grid_of", "values_of"]

Form = tuple[NumberFormat, Granularity, Hashable, int, NumberFormat | None]  # the rest of a grid

_Kind = TypeVar("_Kind", bound="QuantTensor")

aten = torch.ops.aten
_COMPOSITE = torch._C.DispatchKey.CompositeImplicitAutograd
_SOURCE = 2  # its place in `_form`
_CHANGED = (
    "This QuantTensor was changed in place by an operation that leaves its grid. Use the operation that returns a new "
    "tensor (x = x * 2 instead of x.mul_(2)), or quantize the result again."
)


class QuantTensor(torch.Tensor):
    """A tensor of quantized values with the grid they lie on: scale, zero point, bit width, signedness.

    It is a `torch.Tensor`: every operation works on it. Those that leave values on a grid (views, slices, max
    pooling, ReLU, zero padding, dropout, ``cat`` and ``+`` on one shared grid ...) return a QuantTensor, all others
    the plain tensor of values. Two tensors share a grid if one stored scale made both, in one process; numbers are not
    compared, so the outcome is the same in training and in evaluation. A scale that follows each tensor, such as a
    statistic of it, is shared with nothing. Gradients flow through the values; the grid itself is detached.

    Layers make them (``return_quant_tensor=True``); `wrap` makes one from values and a grid.

    Example:
        >>> q = QuantTensor.wrap(torch.tensor([0.5, -1.0]), Grid(torch.tensor(0.25), number_format=Integers(4)))
        >>> q.int(), q.scale, q.bit_width, type(q[:1]).__name__, type(q * 2).__name__
        (tensor([ 2, -4], dtype=torch.int8), tensor(0.2500), 4, 'QuantTensor', 'Tensor')
    """

    scale: Tensor  # step between neighbouring values: 0-d, or broadcastable to the values
    _inner: Tensor
    _zero_point: Tensor | None
    _form: Form | None  # the rest of the grid, constants; None once the values may have left it

    @staticmethod
    def __new__(
        cls: type[_Kind],
        values: Tensor,
        scale: Tensor | None,
        zero_point: Tensor | None,
        form: Form | None,
    ) -> _Kind:
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

    def __init__(self, *parts: object) -> None:
        pass

    @staticmethod
    def wrap(values: Tensor, grid: Grid) -> "QuantTensor":
        """A QuantTensor of values that lie on a grid; gradients pass through to ``values``.

        Raises:
            QuantTensorError: under a transform of torch.func, which takes no tensors of another type.
        """
        if torch.compiler.is_compiling():
            return _Wrap.apply(values, grid.scale, grid.zero_point, _form_of(grid, values.ndim))
        if is_tracing():  # which can't record the function that passes gradients on
            return _on(values.detach(), grid)
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
        """The grid; None after an in-place operation that left it, and for an empty tensor of the same kind."""
        return grid_of(self)

    def _known(self) -> Grid:
        grid = self.grid
        if grid is None:
            raise QuantTensorError(_CHANGED)
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
        if not grid.number_format.whole:
            return bool(_on_levels(self._inner, grid).all())
        with torch.no_grad():
            scale = grid.along(grid.scale, self.shape)
            steps = self._inner.double() / scale
            whole = steps.round()
            if self.dtype in (torch.float32, torch.float64):
                near = (steps - whole).abs() < 0.2
            else:
                below, here, above = (
                    ((whole + offset).float() * scale).to(self.dtype) == self._inner for offset in (-1, 0, 1)
                )
                near = here & ~below & ~above
            codes = whole if grid.zero_point is None else whole + grid.along(grid.zero_point, self.shape)
            low, high = grid.bounds
            return bool((near & (codes >= low) & (codes <= high)).all())

    def int(self) -> Tensor:
        """The integers, in the smallest integer type that holds the grid's range; codes where levels are none.

        Raises:
            QuantTensorError: a value is off the grid, or rounding may have moved it to another integer's place (sums
                of many products).
        """
        grid = self._known()
        if not grid.number_format.whole and not self.is_valid:
            raise QuantTensorError(
                f"Not every value lies on the grid of scale {_short(grid.scale)} and {_bits(grid)}, so there are no "
                "codes to return. Quantize the tensor again, for example with QuantIdentity."
            )
        if grid.spare_bits < 1 or not self.is_valid:
            where = f"the grid of scale {_short(grid.scale)} and {_bits(grid)}"
            if grid.spare_bits < 5 or (self.dtype != torch.float64 and int(grid.bit_width) > 22):
                raise QuantTensorError(
                    f"Rounding may have moved values by more than half a step of {where}, so their integers are "
                    "unknown. Compute in double precision, model.double()(x.double()), or run the model in integers: "
                    "bitwright.export.run_integers."
                )
            raise QuantTensorError(
                f"Not every value lies on {where}, so there are no integers to return. Quantize the tensor again, for "
                "example with QuantIdentity."
            )
        return grid.to_int(self._inner.detach())

    def numpy(self, *, force: bool = False) -> "np.ndarray":
        """The values as a numpy array."""
        return values_of(self).numpy(force=force)

    def tolist(self) -> Any:
        """The values as nested lists of numbers, or as a number."""
        return values_of(self).tolist()

    def __array__(self, dtype: object = None) -> "np.ndarray":
        return values_of(self).__array__(dtype)

    # What torch does with the memory of a tensor, which a QuantTensor has none of: its values have.

    def __dlpack__(self, **kwargs: Any) -> Any:
        return values_of(self).__dlpack__(**kwargs)

    def share_memory_(self) -> "QuantTensor":
        """Move values and grid to shared memory."""
        for each in (self._inner, self.scale, self._zero_point):
            if each is not None:
                each.share_memory_()
        return self

    def is_shared(self) -> bool:
        """Whether the values are in shared memory."""
        return self._inner.is_shared()

    def apply_(self, callable: Callable[..., Any]) -> Tensor:  # noqa: A002 - torch's name for it
        """Not supported: values would leave the grid.

        Raises:
            QuantTensorError: always.
        """
        raise QuantTensorError(
            "apply_ would write values off the grid into a QuantTensor. Apply it to the plain values: x.value.apply_."
        )

    def __format__(self, format_spec: str) -> str:
        return format(values_of(self), format_spec) if self.ndim == 0 else super().__format__(format_spec)

    def __repr__(self, *, tensor_contents: object = None) -> str:
        known = self.grid
        grid = "off its grid" if known is None else f"scale={_short(known.scale)}, {_bits(known)}"
        gradient = ", requires_grad=True" if self.requires_grad else ""
        return f"QuantTensor({_contents(self._inner)}, {grid}{gradient})"

    def __iadd__(self, other: Tensor | complex) -> Tensor:
        return self + other  # rebinds: x += y must not write values off the grid into x

    def __isub__(self, other: Tensor | complex) -> Tensor:
        return self - other

    def __imul__(self, other: Tensor | complex) -> Tensor:
        return self * other

    def __reduce_ex__(self, protocol: SupportsIndex) -> "tuple[Callable[..., QuantTensor], tuple[object, ...]]":
        grid = self.grid  # another process, or a later one, knows nothing of the sources of this one
        form = None if grid is None else _form_of(grid.replace(source=None), self.ndim)
        return _restore, (self._inner.detach(), self.scale, self._zero_point, form, self.requires_grad)

    def __copy__(self) -> "QuantTensor":
        return self._alike(self._inner.detach())

    def __deepcopy__(self, memo: dict[object, object]) -> "QuantTensor":
        copied = self._alike(self._inner.detach().clone())
        memo[id(self)] = copied
        return copied

    def _alike(self, values: Tensor) -> "QuantTensor":
        form = None if self.grid is None else self._form
        return _restore(values, self.scale, self._zero_point, form, self.requires_grad)

    # What torch.compile and torch.autograd need to take the tensor apart and put it together again.

    def __tensor_flatten__(self) -> tuple[list[str], Form | None]:
        names = ["_inner"]
        if self._form is not None:
            names += ["scale"] if self._zero_point is None else ["scale", "_zero_point"]
        return names, self._form

    @staticmethod
    def __tensor_unflatten__(
        inner: dict[str, Tensor], context: Form | None, size: object, stride: object
    ) -> "QuantTensor":
        return QuantTensor(inner["_inner"], inner.get("scale"), inner.get("_zero_point"), context)

    def __coerce_same_metadata_as_tangent__(self, expected: object, expected_type: type | None = None) -> Tensor | None:
        return self._inner if expected_type is None or not issubclass(expected_type, QuantTensor) else self

    __torch_function__ = torch._C._disabled_torch_function_impl  # type: ignore[assignment]

    @classmethod
    def __torch_dispatch__(
        cls, func: Operator, types: object, args: Arguments = (), kwargs: Keywords | None = None
    ) -> Any:
        kwargs = kwargs or {}
        rule = RULES.get(func)
        if rule is None:
            if _is_composite(func):
                return func._op_dk(_COMPOSITE, *args, **kwargs)  # decompose() may give other digits
            if func._schema.is_mutable:
                return _in_place(func, args, kwargs)
        plain, named = _plain(args), _plain(kwargs)
        out = func(*plain, **named)
        if rule is None:
            return QuantTensor(out, None, None, None) if _may_become_mask(func, args, out) else out
        first = out[0] if isinstance(out, (tuple, list)) else out
        grid = rule(Operation(func, plain, named, _grids(args), first))
        if grid is None:
            return out
        if isinstance(grid, list):
            each = [_on(*pair) for pair in zip(out if isinstance(out, (tuple, list)) else [out], grid, strict=True)]
            return type(out)(each) if isinstance(out, (tuple, list)) else each[0]
        if not isinstance(out, (tuple, list)):
            return _on(out, grid)
        return type(out)(_on(each, grid) if each.dtype == first.dtype else each for each in out)

    def _move(self, grid: Grid | None) -> None:
        """Put the tensor on another grid, where its values have been moved to; None: on no grid."""
        self.scale = None if grid is None else grid.scale  # type: ignore[assignment]
        self._zero_point = None if grid is None else grid.zero_point
        self._form = None if grid is None else _form_of(grid, self.ndim)


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
        >>> q = QuantTensor.wrap(torch.tensor([0.5, -1.0]), Grid(torch.tensor(0.25), number_format=Integers(4)))
        >>> grid_of(q).bounds, grid_of(torch.ones(1))
        ((-8, 7), None)
    """
    if not isinstance(x, QuantTensor) or x._form is None:
        return None
    if not torch.compiler.is_compiling() and isinstance(x._base, QuantTensor):
        form = x._base._form
        if form is None or form[_SOURCE] != x._form[_SOURCE]:
            return None  # a view of one that has left its grid since
    return Grid(x.scale, x._zero_point, *x._form)


def grid_lost(x: Tensor) -> str:
    """What to write so that a layer finds the grid that it misses in its input: one or two sentences for its error.

    Names the operation that left the grid, where autograd knows which it was.

    Example:
        >>> leaf = torch.tensor([[0.5, -1.0]], requires_grad=True)
        >>> grid_lost(torch.sigmoid(QuantTensor.wrap(leaf, Grid(torch.tensor(0.25)))).flatten())
        'Sigmoid left the grid of the layer before: put QuantIdentity(return_quant_tensor=True) behind it.'
    """
    if isinstance(x, QuantTensor):
        return _CHANGED
    found = [] if torch.compiler.is_compiling() else may_leave(_operations_since_wrap(x))
    if found:
        return (
            f"{' or '.join(dict.fromkeys(found))} left the grid of the layer before: put "
            "QuantIdentity(return_quant_tensor=True) behind it."
        )
    return (
        "Set return_quant_tensor=True on the layer before. If it is set, an operation in between has left the grid, "
        "such as average pooling or an activation function of torch's: put QuantIdentity(return_quant_tensor=True) "
        "behind it."
    )


def _operations_since_wrap(x: Tensor) -> list[str]:
    """The names of the operations between the last layer that returned a QuantTensor and a plain tensor, in order."""
    paths: list[tuple[Node | None, tuple[str, ...]]] = [(x.grad_fn, ())]
    seen = set()
    while paths:
        node, after = paths.pop(0)
        if node is None or node in seen or isinstance(node, _Unwrap._backward_cls):  # there, a layer takes values
            continue
        seen.add(node)
        if isinstance(node, _Wrap._backward_cls):
            return list(after)
        name = re.sub(r"Backward\d*$", "", node.name())
        paths += [(before, (name, *after)) for before, _ in node.next_functions]
    return []


class _Wrap(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Context, values: Tensor, scale: Tensor, zero_point: Tensor | None, form: Form) -> QuantTensor:
        return QuantTensor(values.detach(), scale, zero_point, form)

    @staticmethod
    def backward(ctx: Context, grad: Tensor) -> tuple[Tensor, None, None, None]:  # type: ignore[override]
        return grad, None, None, None


class _Unwrap(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Context, tensor: QuantTensor) -> Tensor:
        return tensor._inner.detach()

    @staticmethod
    def backward(ctx: Context, grad: Tensor) -> Tensor:  # type: ignore[override]
        return grad


def behind(x: Tensor) -> Any:
    """The autograd node that made a tensor; for what was in a QuantTensor, the one that made its values."""
    node: Any = x.grad_fn
    while isinstance(node, (_Wrap._backward_cls, _Unwrap._backward_cls)):
        node = node.next_functions[0][0]
    return node


def _form_of(grid: Grid, ndim: int) -> Form:
    number_format = grid.number_format
    if isinstance(number_format, Integers) and isinstance(number_format.bit_width, Tensor):
        number_format = Integers(int(number_format.bit_width), number_format.signed, number_format.narrow_range)
    return (number_format, grid.granularity.placed(ndim), grid.source, grid.spare_bits, grid.scale_format)


def _on(values: Tensor, grid: Grid) -> QuantTensor:
    """A QuantTensor below autograd, where operations are dispatched."""
    return QuantTensor(values, grid.scale, grid.zero_point, _form_of(grid, values.ndim))


def _restore(values: Tensor, *rest: Any) -> QuantTensor:
    *parts, requires_grad = rest
    restored = QuantTensor(values, *parts)
    restored.requires_grad_(requires_grad)
    return restored


@lru_cache(maxsize=1024)
def _is_composite(func: Any) -> bool:
    """Whether an operation is made of others, and nothing else: inference mode hands such a one over whole."""
    return func.has_kernel_for_dispatch_key(_COMPOSITE) and not func.has_kernel_for_dispatch_key("CPU")


def _may_become_mask(func: Operator, args: Arguments, out: Any) -> bool:
    """Whether a result is what dropout starts from: an empty tensor, of one number for each value or channel."""
    if func is aten.empty_like.default:
        return out.dtype.is_floating_point
    one_each = func is aten.new_empty.default and out.ndim == args[0].ndim and all(size == 1 for size in out.shape[2:])
    return one_each and out.dtype.is_floating_point


def _inner_of(tensor: Any) -> Any:
    return tensor._inner if isinstance(tensor, QuantTensor) else tensor


def _plain(arguments: Any) -> Any:
    """The arguments of an operation with each QuantTensor replaced by its values."""
    if isinstance(arguments, (tuple, list)):
        return type(arguments)(_plain(each) for each in arguments)
    if isinstance(arguments, dict):
        return {name: _plain(each) for name, each in arguments.items()}
    return _inner_of(arguments)


def _grids(args: Arguments) -> tuple[Grid | None, ...]:
    """The grid of each tensor among the arguments, or of each in the list that is the first of them."""
    tensors = args[0] if isinstance(args[0], (tuple, list)) else args
    return tuple(grid_of(each) if isinstance(each, QuantTensor) else None for each in tensors)


def _in_place(func: Operator, args: Arguments, kwargs: Keywords) -> Any:
    """Run an operation that writes into QuantTensors: they leave their grids, unless a rule says where they go."""
    rule, written = CHANGES.get(func), _written(func, args, kwargs)
    if written and torch.Tag.inplace_view in func.tags and func not in STAYS:
        raise QuantTensorError(
            f"{func._schema.name.removeprefix('aten::')} changes the shape of a QuantTensor in place, which is not "
            "supported. Use an operation that returns a new tensor (x = x.squeeze() instead of x.squeeze_())."
        )
    plain, named = _plain(args), _plain(kwargs)
    result = func(*plain, **named)
    for target in written:
        if func in STAYS and may_hold_zero(grid_of(target)):
            continue
        for each in (target, target._base):  # what a view changes is its base's
            if not isinstance(each, QuantTensor):
                continue
            grid = None
            if rule is not None and each.numel() == target.numel():
                grids = (grid_of(each), *_grids(args)[1:])
                moved = rule(Operation(func, (each._inner, *plain[1:]), named, grids, each._inner))
                grid = None if isinstance(moved, list) else moved
            each._move(grid)
    wrappers = {id(each._inner): each for each in written}
    if isinstance(result, (tuple, list)):
        return type(result)(wrappers.get(id(each), each) for each in result)
    return wrappers.get(id(result), result)


def _written(func: Operator, args: Arguments, kwargs: Keywords) -> list["QuantTensor"]:
    """The QuantTensors that an operation writes into."""
    found = []
    for index, argument in enumerate(func._schema.arguments):
        if argument.is_write:
            value = args[index] if index < len(args) else kwargs.get(argument.name)
            values = value if isinstance(value, (tuple, list)) else [value]
            found += [each for each in values if isinstance(each, QuantTensor)]
    return found


def _short(scale: Tensor) -> str:
    known = number(scale) if scale.numel() == 1 else None
    if known is None:
        return f"[{scale.numel()} values]"
    return f"{known:.6g}" if isinstance(known, float) else str(known)  # a symbol while a compiler traces


def _bits(grid: Grid) -> str:
    if not isinstance(grid.number_format, Integers):
        return str(grid.number_format)
    return f"{'' if grid.signed else 'u'}int{int(grid.bit_width)}"


@torch.no_grad()
def _on_levels(values: Tensor, grid: Grid) -> Tensor:
    """Which values are levels times their scale, but for the last digits."""
    wide = values.double()
    scale = grid.along(grid.scale, values.shape).double()
    size = wide.abs()
    if grid.zero_point is not None:  # a float one
        shift = grid.along(grid.zero_point, values.shape) * scale
        wide, size = wide + shift, size + shift.abs()
    levels = grid.number_format.nearest(wide / scale, HalfEven())
    return (levels * scale - wide).abs() <= 4 * torch.finfo(values.dtype).eps * size


def _contents(values: Tensor) -> str:
    text = repr(values.detach())
    return text[len("tensor(") : -1] if text.startswith("tensor(") else text
