"""A function of tensors as a layer: additions, concatenations, products of activations."""

import inspect
import pkgutil
from collections.abc import Callable, Iterator, Mapping, Sequence
from typing import Any

import torch
from torch import Tensor, nn
from torch.types import Device

from ..qcore import Grid, QuantizerError, QuantTensor, TensorQuant, path_of, values_of
from ..qcore.tracing import exporting
from .activations.layer import own_settings
from .layer import QuantLayer
from .slots import Described, QuantizerLike, Slot, checked_flag, split_overrides

__all__ = ["QuantFunction"]


class QuantFunction(QuantLayer):
    """A function of tensors as a layer: its operands are quantized, or its result, or both.

    It is called as the function is, with positional and keyword arguments. Operands are its arguments that are
    floating-point tensors, and those in a list or tuple (`torch.cat`), in the order of the call; everything else, and
    the mask of attention, is passed on. Without quantizers, the layer is the function.

    Args:
        function: a function that can be imported: of torch, of `operator`, a method (``torch.Tensor.softmax``), or
            one that a module of your own defines. It is saved by its name.
        act_quant: quantizer of the result, or None.
        input_quant: quantizer of the operands: a class for all of them, of which each has its own, or a sequence with
            one for each operand; None for none.
        operands: how many operands have a quantizer, from the first one on. Where it is None: as many as there are in
            the sequence ``input_quant``, or as the function usually takes.
        share: one quantizer for all operands, so that they lie on one grid, which is measured over all of them.
        inplace: write the result into the first operand, too. Functions that work in place (``torch.Tensor.add_``)
            always do, and those with an argument ``inplace`` where it is True.
        return_quant_tensor: return a `QuantTensor`. Without ``act_quant``, the function gets its operands as such, and
            its result must be one (a sum on a shared grid, a concatenation).
        device: of the quantizers' state.
        dtype: of the quantizers' state.
        **overrides: settings of ``act_quant``, without a prefix: ``bit_width=4``; of the quantizers of all operands:
            ``input_bit_width=4``; of one operand: ``input_2_bit_width=4``, ``input_2_quant=None``.

    Attributes:
        act_quant: the resolved quantizer of the result, or None.
        input_1_quant, input_2_quant ...: those of the operands; with ``share=True`` there is one, ``input_quant``.
            Assigning ``input_quant`` sets those of all operands, and reading it gives them by name.

    Raises:
        QuantizerError: in the constructor, for something that is no importable function, for a keyword or setting that
            nothing uses, or an impossible one; in forward, for more operands than there are quantizers where their
            number was not given, and for a result that can't be quantized.

    Example:
        >>> from bitwright.quantizers import Int8Act, Uint8Act
        >>> add = QuantFunction(torch.add, input_quant=Int8Act, share=True, input_scale=0.5)
        >>> add(torch.tensor([0.6, 9.9]), torch.tensor([1.1, -0.1]))
        tensor([ 1.5000, 10.0000])
        >>> matmul = QuantFunction(torch.matmul, input_quant=(Uint8Act, Int8Act), input_2_bit_width=4)
        >>> matmul.input_1_quant.bit_width, matmul.input_2_quant.bit_width
        (8, 4)
    """

    act_quant: TensorQuant | None
    return_quant_tensor: bool

    def __init__(
        self,
        function: Callable[..., Any],
        *,
        act_quant: QuantizerLike = None,
        input_quant: QuantizerLike | Sequence[QuantizerLike] = None,
        operands: int | None = None,
        share: bool = False,
        inplace: bool = False,
        return_quant_tensor: bool = False,
        device: Device = None,
        dtype: torch.dtype | None = None,
        **overrides: object,
    ) -> None:
        super().__init__()
        self._name = _name_of(function)
        self.function = function
        for name, flag in (("share", share), ("inplace", inplace), ("return_quant_tensor", return_quant_tensor)):
            setattr(self, name, checked_flag(self, name, flag))
        self.inplace = self.inplace or _works_in_place(self._name)
        self._inplace_at = _position_of_inplace(function)
        self._counted = operands is not None or _is_sequence(input_quant)
        self._where = {"device": device, "dtype": dtype}
        self.share = self.share or isinstance(input_quant, TensorQuant)
        given = self._operand_quantizers(input_quant, operands)
        family = () if self.share else ("input",)
        self.slots = (Slot("act", prefix=""), *(Slot(name, family=family) for name in given))
        self._fill_operands(act_quant, given, overrides)

    def _operand_quantizers(self, given: object, operands: int | None) -> dict[str, object]:
        """The quantizer for each slot of an operand."""
        if operands is not None and (isinstance(operands, bool) or not isinstance(operands, int) or operands < 1):
            raise QuantizerError(f"{Described(self)}: operands={operands!r} is not possible: expected a number from 1.")
        if not _is_sequence(given):
            if self.share:
                return {"input": given}
            return {f"input_{1 + i}": given for i in range(operands or OPERANDS.get(self._name.rpartition(".")[2], 1))}
        assert isinstance(given, list | tuple)
        each = list(given)
        if self.share:
            raise QuantizerError(
                f"{Described(self)}: share=True is for one quantizer, and input_quant has {len(each)}. Write "
                "input_quant=Int8Act, or leave share=True out."
            )
        if not each or operands not in (None, len(each)):
            raise QuantizerError(
                f"{Described(self)}: input_quant has {len(each)} quantizers, for {operands or 'the'} operands. Give "
                "one for each, or None where an operand has none."
            )
        return {f"input_{1 + i}": quantizer for i, quantizer in enumerate(each)}

    def _fill_operands(
        self, act_quant: QuantizerLike, operands: dict[str, object], overrides: Mapping[str, object]
    ) -> None:
        """Sort the keywords by slot, those for all operands first, and fill the slots."""
        inputs = {keyword: item for keyword, item in overrides.items() if keyword.startswith("input_")}
        own = {keyword: item for keyword, item in overrides.items() if keyword not in inputs}
        for name in operands:
            operands[name] = inputs.pop(f"{name}_quant", operands[name])
        slots = {slot: operands[slot.name] for slot in self.slots[1:]}
        filled = any(quantizer is not None for quantizer in slots.values())
        for keyword, item in inputs.items():
            self._check_keyword(keyword, item, filled)
        given = {"act": own_settings(self, act_quant, own)} | split_overrides(self, slots, inputs)
        self._fill_slots({self.slots[0]: act_quant} | slots, given)

    def _check_keyword(self, keyword: str, item: object, filled: bool) -> None:
        """Refuse a keyword for an operand that has no quantizer, or that there is none of."""
        number = keyword.split("_")[1]
        slots = [slot.keywords for slot in self.slots[1:]]
        if number.isdigit() and f"input_{number}_" not in slots:
            raise QuantizerError(
                f"{Described(self)}: {keyword}={item!r} is for no operand of this layer: keywords start with one of "
                f"input_, {', '.join(slots)}. Write operands={number} if there are so many."
                if not self.share
                else f"{Described(self)}: {keyword}={item!r} is for one operand, and share=True has one quantizer for "
                f"all. Write {keyword.replace(f'_{number}', '', 1)}={item!r}, or leave share=True out."
            )
        if not filled and not number.isdigit():
            raise QuantizerError(
                f"{Described(self)}: {keyword}={item!r} is given, but input_quant is None. Write input_quant=Int8Act "
                f"too, or leave {keyword} out."
            )

    def _provided(self, slot: Slot) -> dict[str, object]:
        return dict(self._where)

    def _check_slots(self) -> None:
        quant = self._quantizers()[0] if self.share else None
        granularity = getattr(quant, "granularity", None)
        if granularity is not None and not granularity.single and granularity.axis is None:
            raise QuantizerError(
                f"{Described(self)}: share=True needs a quantizer with one scale, or one for each channel, and "
                f"input_quant has one for each of {granularity}. Write input_quant=Int8Act."
            )

    def _quantizers(self) -> list[TensorQuant | None]:
        """The quantizers of the operands."""
        return [getattr(self, f"{slot.name}_quant", None) for slot in self.slots[1:]]

    def __getattr__(self, name: str) -> Any:
        if name == "input_quant" and self._built and not self.share:  # a family of slots
            return {slot.name: getattr(self, f"{slot.name}_quant") for slot in self.slots[1:]}
        return super().__getattr__(name)

    def __setattr__(self, name: str, item: Any) -> None:
        if self._built and name == "input_quant" and _is_sequence(item) and not self.share:
            if len(item) != len(self.slots) - 1:
                raise QuantizerError(
                    f"{Described(self)}: input_quant has {len(item)} quantizers, for {len(self.slots) - 1} operands. "
                    "Give one for each, or None where an operand has none."
                )
            for slot, quantizer in zip(self.slots[1:], item, strict=True):
                setattr(self, f"{slot.name}_quant", quantizer)
            return
        super().__setattr__(name, item)

    def forward(self, *args: Any, **kwargs: Any) -> Any:
        """The function's result; quantized with ``act_quant``."""
        filled = self.act_quant is not None or any(each is not None for each in self._quantizers())
        if not filled:
            return self.function(*args, **kwargs)
        if kwargs.get("out") is not None:
            raise QuantizerError(
                f"{path_of(self)}: {self._name}(..., out=...) writes a result that is not quantized. Use the one that "
                "is returned."
            )
        into = self._written(args, kwargs)
        if into is not None:
            args = (into.clone(), *args[1:])
        args, kwargs, on_grid = self._take_operands(args, kwargs)
        if into is not None:  # quantizers keep what they get and what they give for the backward pass
            args = (args[0].clone(), *args[1:])
        out = self.function(*args, **kwargs)
        grid: Grid | None = None
        if self.act_quant is not None:
            if not isinstance(out, Tensor):
                raise QuantizerError(
                    f"{path_of(self)}: {self._name} returns no tensor but a {type(out).__name__}, and act_quant "
                    "quantizes one tensor. Quantize its parts: a qnn.QuantIdentity() for each."
                )
            out, grid = self.act_quant.quantize(values_of(out))
        elif on_grid and isinstance(out, Tensor) and not isinstance(out, QuantTensor):
            raise QuantizerError(
                f"{path_of(self)}: return_quant_tensor=True needs a result that lies on a grid, and that of "
                f"{self._name} lies on none. Write act_quant=Int8Act, or return_quant_tensor=False."
            )
        if into is not None:
            out = into.copy_(values_of(out))
        if grid is None or not self.return_quant_tensor or exporting():
            return out
        return QuantTensor.wrap(values_of(out), grid)

    def _written(self, args: tuple[Any, ...], kwargs: Mapping[str, Any]) -> Tensor | None:
        """The operand that the call writes its result into."""
        at = self._inplace_at
        asked = at is not None and (kwargs.get("inplace", False) or (len(args) > at and args[at]))
        return args[0] if args and (self.inplace or asked) else None

    def _take_operands(
        self, args: tuple[Any, ...], kwargs: Mapping[str, Any]
    ) -> tuple[tuple[Any, ...], dict[str, Any], bool]:
        """The arguments with quantized operands, and whether these carry their grids."""
        quantizers = self._quantizers()
        if not any(each is not None for each in quantizers):
            return args, dict(kwargs), False
        masks = _MASKS.get(self._name.rpartition(".")[2], ())
        arguments = [(place in masks, each) for place, each in (*enumerate(args), *kwargs.items())]
        found = list(_operands([each for is_mask, each in arguments if not is_mask]))
        if not self.share and not self._counted and len(found) > len(quantizers):
            raise QuantizerError(
                f"{path_of(self)}: {self._name} is called with {len(found)} tensors, and has {_count(len(quantizers))}."
                f" Write operands={len(found)}, or operands={len(quantizers)} to leave the others as they are."
            )
        carried = self.return_quant_tensor and not exporting()
        quantized = self._moved(found, quantizers)
        on_grid = carried and any(grid is not None for _, grid in quantized)
        given = [QuantTensor.wrap(x, grid) if carried and grid is not None else x for x, grid in quantized]
        rest = iter([*given, *found[len(given) :]])
        taken = [each if is_mask else _replaced(each, rest) for is_mask, each in arguments]
        return tuple(taken[: len(args)]), dict(zip(kwargs, taken[len(args) :], strict=True)), on_grid

    def _moved(self, found: list[Tensor], quantizers: Sequence[TensorQuant | None]) -> list[tuple[Tensor, Grid | None]]:
        """The operands on their grids."""
        if self.share and quantizers[0] is not None:
            quant, tensors = quantizers[0], [values_of(each) for each in found]
            if len(tensors) < 2 or quant.intercept is not None or not _measures(quant):
                return [quant.quantize(each) for each in tensors]
            return _together(self, quant, tensors)
        pairs = zip(found, quantizers, strict=False)
        return [(each, None) if quant is None else quant.quantize(values_of(each)) for each, quant in pairs]

    @property
    def _title(self) -> str:
        return f"{type(self).__name__}({self._name})"

    def extra_repr(self) -> str:
        flags = ("share", "inplace", "return_quant_tensor")
        return ", ".join([self._name, *(f"{flag}=True" for flag in flags if getattr(self, flag))])

    def __getstate__(self) -> dict[str, object]:
        return {**super().__getstate__(), "function": None}

    def __setstate__(self, state: dict[str, object]) -> None:
        super().__setstate__({**state, "function": pkgutil.resolve_name(str(state["_name"]))})


# How many tensors a function usually takes; one, if it isn't listed. Functions whose operands come in a list have no
# usual number.
OPERANDS = {
    **dict.fromkeys(("add", "add_", "iadd", "sub", "sub_", "isub", "subtract", "mul", "mul_", "imul", "multiply"), 2),
    **dict.fromkeys(("div", "div_", "truediv", "itruediv", "true_divide", "divide", "maximum", "minimum"), 2),
    **dict.fromkeys(("matmul", "imatmul", "mm", "bmm", "mv", "dot"), 2),
    "scaled_dot_product_attention": 3,
}

# Arguments that are no operands though they may be floating-point tensors, by position and by name.
_MASKS: Mapping[str, tuple[int | str, ...]] = {"scaled_dot_product_attention": (3, "attn_mask")}

_SPACES = ("torch", "torch.nn.functional", "torch.Tensor", "operator", "torch.linalg", "torch.special", "torch.fft")


def _name_of(function: object) -> str:
    """The name that a function is found by, in this process and another."""
    if isinstance(function, nn.Module) or not callable(function):
        what = "a module" if isinstance(function, nn.Module) else "no function"
        raise QuantizerError(f"QuantFunction: function={function!r} is {what}. Pass a function such as torch.add.")
    name = str(getattr(function, "__name__", ""))
    own = f"{getattr(function, '__module__', None)}.{getattr(function, '__qualname__', name)}"
    for each in (*(f"{space}.{name}" for space in _SPACES), own):
        if _resolves(each, function):
            return each
    raise QuantizerError(
        f"QuantFunction: {function!r} can't be imported, so the layer could not be saved. Define it by def at the top "
        "level of a module."
    )


def _resolves(name: str, function: object) -> bool:
    if "<" in name or "None" in name.split("."):
        return False
    try:
        return pkgutil.resolve_name(name) is function
    except (ImportError, AttributeError, ValueError):
        return False


def _works_in_place(name: str) -> bool:
    last = name.rpartition(".")[2]
    return (last.endswith("_") and not last.endswith("__")) or (name.startswith("operator.i") and last[1:] in OPERANDS)


def _position_of_inplace(function: Callable[..., Any]) -> int | None:
    """Where a function of Python has its argument ``inplace``."""
    try:
        names = list(inspect.signature(function).parameters)
    except (TypeError, ValueError):
        return None
    return names.index("inplace") if "inplace" in names else None


def _is_sequence(item: object) -> bool:
    return isinstance(item, list | tuple)


def _is_operand(item: object) -> bool:
    return isinstance(item, Tensor) and (item.is_floating_point() or item.is_complex())


def _operands(arguments: Sequence[Any]) -> Iterator[Tensor]:
    for each in arguments:
        for item in each if _is_sequence(each) else (each,):
            if _is_operand(item):
                yield item


def _replaced(argument: Any, operands: Iterator[Tensor]) -> Any:
    """The argument with the next operands in the places of its own."""
    if isinstance(argument, list | tuple):
        found = [next(operands) if _is_operand(item) else item for item in argument]
        return found if isinstance(argument, list) else tuple(found)
    return next(operands) if _is_operand(argument) else argument


def _count(quantizers: int) -> str:
    return f"{quantizers} quantizers for operands" if quantizers > 1 else "one quantizer for its operand"


# A shared grid


def _measures(quant: TensorQuant) -> bool:
    """Whether the grid depends on the tensor at hand."""
    return quant.calibrating or not quant.calibrated or getattr(quant, "dynamic", True)


def _together(layer: QuantFunction, quant: TensorQuant, tensors: list[Tensor]) -> list[tuple[Tensor, Grid | None]]:
    """Operands on one grid while it is measured: as one tensor, or the smaller of two ranges would clip the larger."""
    granularity = getattr(quant, "granularity", None)
    axis = None if granularity is None or granularity.single else granularity.axis
    if axis is None:
        values, grid = quant.quantize(torch.cat([each.reshape(-1) for each in tensors]))
        parts = values.split([each.numel() for each in tensors])
        return [(part.reshape(each.shape), grid) for part, each in zip(parts, tensors, strict=True)]
    channels = sorted({each.shape[axis] for each in tensors})
    if len(channels) > 1:
        raise QuantizerError(
            f"{path_of(layer)}: the operands have {' and '.join(map(str, channels))} channels along axis {axis}, so "
            "they can't share a scale for each. Write input_axis=None, or leave share=True out."
        )
    rows = [each.movedim(axis, 0).reshape(channels[0], -1) for each in tensors]  # (C, N) each
    joined = torch.cat(rows, 1)
    if axis:
        joined = joined.t()
        joined = joined if axis < 0 else joined.reshape(-1, *[1] * (axis - 1), channels[0])
    values, grid = quant.quantize(joined)
    if axis:
        values = values.reshape(-1, channels[0]).t()
    parts = values.split([row.shape[1] for row in rows], 1)
    moved = [each.movedim(axis, 0).shape for each in tensors]
    return [(part.reshape(shape).movedim(0, axis), grid) for part, shape in zip(parts, moved, strict=True)]
