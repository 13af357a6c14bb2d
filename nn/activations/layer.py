"""The base of activation layers."""

import inspect
import numbers
from collections.abc import Callable, Mapping
from typing import Any, ClassVar

import torch
from torch import Tensor, nn
from torch.types import Device

from ...qcore import Grid, QuantizerError, QuantTensor, SettingError, TensorQuant, path_of, values_of
from ...qcore.declare.inject import QuantizerType
from ...qcore.formats.int_range import check_flag
from ...qcore.tracing import exporting
from ..layer import QuantLayer
from ..slots import GRADIENTS, Described, QuantizerLike, Slot, split_overrides

__all__ = ["ActivationLayer", "own_settings", "spelled_out"]


class ActivationLayer(QuantLayer):
    """What quantized activation layers share; a subclass applies a function, the base quantizes its result.

    A subclass has torch's layer as its second base, and a constructor that names torch's arguments and the default of
    ``act_quant``. The function is torch's, unless the subclass has a ``_function`` of its own.

    Args:
        *args: torch's own, in torch's order.
        act_quant: quantizer of the result, or None.
        input_quant: quantizer of the input, or None.
        return_quant_tensor: return a `QuantTensor` that carries the result's grid.
        device: of the quantizer's state.
        dtype: of the quantizer's state.
        **overrides: settings of ``act_quant``, without a prefix: ``bit_width=4``; those of ``input_quant`` with one:
            ``input_bit_width=4``.

    Attributes:
        act_quant, input_quant: the resolved modules, or None.

    Raises:
        QuantizerError: in the constructor, for a keyword or setting that nothing uses, or an impossible one.

    Example:
        >>> from bitwright.quantizers import Int8Act
        >>> from torch import nn
        >>> class QuantSoftsign(ActivationLayer, nn.Softsign):
        ...     def __init__(self, *, act_quant=Int8Act, **options):
        ...         super().__init__(act_quant=act_quant, **options)
        >>> layer = QuantSoftsign(bit_width=4, scale=0.125, return_quant_tensor=True)
        >>> out = layer(torch.tensor([-9.0, 0.0, 1.0]))
        >>> out.int(), out.scale, out.bit_width
        (tensor([-7,  0,  4], dtype=torch.int8), tensor(0.1250), 4)
    """

    slots: tuple[Slot, ...] = (Slot("act", prefix=""), Slot("input"))
    __signature__: ClassVar[inspect.Signature]
    _torch: ClassVar[type[nn.Module]] = nn.Module  # torch's layer
    _torchs: ClassVar[tuple[str, ...]] = ()  # the names of its arguments
    _keeps_grid = False  # whether the function leaves values on the grid that they come on

    act_quant: TensorQuant | None
    input_quant: TensorQuant | None
    return_quant_tensor: bool

    def __init_subclass__(cls, **kwargs: object) -> None:
        super().__init_subclass__(**kwargs)
        cls._torch = next(
            each for each in cls.__mro__ if issubclass(each, nn.Module) and not issubclass(each, QuantLayer)
        )
        torchs = inspect.signature(cls._torch.__init__).parameters
        cls._torchs = tuple(each.name for each in torchs.values() if each.kind is each.POSITIONAL_OR_KEYWORD)[1:]
        cls.__signature__ = spelled_out(cls, ActivationLayer)

    def __init__(
        self,
        *args: object,
        act_quant: QuantizerLike,
        input_quant: QuantizerLike = None,
        return_quant_tensor: bool = False,
        device: Device = None,
        dtype: torch.dtype | None = None,
        **overrides: object,
    ) -> None:
        given = dict(zip(self._torchs, args, strict=False))
        given["return_quant_tensor"] = return_quant_tensor
        checked = [_checked(self, name, item) for name, item in given.items()]
        super().__init__(*checked[:-1], *args[len(self._torchs) :])
        self._attach(act_quant, input_quant, bool(checked[-1]), overrides, device, dtype)

    def _attach(
        self,
        act_quant: QuantizerLike,
        input_quant: QuantizerLike,
        return_quant_tensor: bool,
        overrides: Mapping[str, object],
        device: Device,
        dtype: torch.dtype | None,
    ) -> None:
        """Resolve the slots."""
        self.return_quant_tensor = return_quant_tensor
        own, inputs = self._split(act_quant, input_quant, overrides)
        self._where = {"device": device, "dtype": dtype}
        self._fill_slots(dict(zip(self.slots, (act_quant, input_quant), strict=True)), {"act": own, "input": inputs})

    def _convert(self, given: Mapping[str, object], device: torch.device | None, dtype: torch.dtype | None) -> None:
        overrides = dict(given)
        act_quant, input_quant = (
            overrides.pop(f"{slot.name}_quant", self.usual_quantizer(slot)) for slot in self.slots
        )
        flag = _checked(self, "return_quant_tensor", overrides.pop("return_quant_tensor", False))
        self._attach(act_quant, input_quant, bool(flag), overrides, device, dtype)  # type: ignore[arg-type]

    def _provided(self, slot: Slot) -> dict[str, object]:
        return dict(self._where)

    def _check_slots(self) -> None:
        if self.act_quant is not None and self.act_quant.truncates and self._torch is not nn.Identity:
            raise QuantizerError(
                f"{Described(self)}: {self.act_quant.quantizer!r} drops bits of integers, and this layer computes in "
                "floats. Write it as the act_quant of a QuantIdentity, or act_quant=Int8Act."
            )
        lacks = self.act_quant is None and self.input_quant is not None and not self._keeps_grid
        if self.return_quant_tensor and lacks:
            raise QuantizerError(
                f"{Described(self)}: return_quant_tensor=True needs act_quant, which is None. Write act_quant=Int8Act."
            )

    def _split(
        self, act_quant: QuantizerLike, input_quant: QuantizerLike, overrides: Mapping[str, object]
    ) -> tuple[dict[str, object], dict[str, object]]:
        """The keywords for ``act_quant``, and those for ``input_quant`` without their prefix."""
        prefixed = {keyword: item for keyword, item in overrides.items() if keyword.startswith("input_")}
        own = {keyword: item for keyword, item in overrides.items() if keyword not in prefixed}
        own = own_settings(self, act_quant, own)
        return own, split_overrides(self, {self.slot("input"): input_quant}, prefixed)["input"]

    def _function(self, x: Tensor) -> Any:
        """What the layer computes before it quantizes."""
        return self._torch.forward(self, x)

    def forward(self, input: Tensor) -> Any:  # noqa: A002 - torch's name for it
        """The quantized result; a `QuantTensor` with ``return_quant_tensor=True``."""
        quant = self.act_quant
        if quant is not None and quant.truncates:
            return self._leaving(*quant.quantize(*self.pass_through("input", input)))
        x = self._entering(input)
        if quant is None:
            return self._function(x)
        values = self._real(values_of(x))
        if values is not x and getattr(self, "inplace", False):
            values = values.clone()  # a function in place must not write into a QuantTensor unseen
        return self._leaving(*self._quantized(values, quant))

    def _entering(self, x: Tensor) -> Tensor:
        """The input, quantized by ``input_quant``."""
        if self.input_quant is None:
            return x
        values, grid = self.input_quant.quantize(self._flat(values_of(x)))
        carries = self._keeps_grid and self.return_quant_tensor and not exporting()
        return QuantTensor.wrap(values, grid) if carries and grid is not None else values

    def _real(self, x: Tensor) -> Tensor:
        """The input as floating numbers, which grids have; complex ones lie on no grid."""
        if self._flat(x).is_floating_point():
            return x
        if x.is_complex():
            raise QuantizerError(
                f"{path_of(self)}: the input is {x.dtype}, and only real numbers can be quantized. Quantize "
                "torch.view_as_real(x), or the magnitude x.abs()."
            )
        return x.to(torch.get_default_dtype())

    def _flat(self, x: Tensor) -> Tensor:
        """The input, which must be one tensor and not a list of them in one."""
        self._refuse_nested(x)
        return x

    def _quantized(self, x: Tensor, quant: TensorQuant) -> tuple[Tensor, Grid | None]:
        return quant.quantize(self._function(x))

    def extra_repr(self) -> str:
        extra = super().extra_repr()
        flag = "return_quant_tensor=True" if self.return_quant_tensor else ""
        return ", ".join(each for each in (extra, flag) if each)


def own_settings(layer: QuantLayer, act_quant: QuantizerLike, given: Mapping[str, object]) -> dict[str, object]:
    """The keywords for ``act_quant``, which have no prefix.

    Raises:
        QuantizerError: a keyword with the prefix of a slot that the layer lacks, or for an ``act_quant`` that is None.
    """
    for keyword, item in given.items():
        prefix, _, rest = keyword.partition("_")
        if prefix == "grad" and rest:
            raise QuantizerError(
                f"{Described(layer)}: {keyword}={item!r} is for no quantizer of this layer. {GRADIENTS}"
            )
        if prefix in ("weight", "bias", "act", "output") and rest:
            what = "has no weight or bias, and its" if prefix in ("weight", "bias") else "has one set of keywords:"
            rest = "act_quant" if rest == "quant" else rest
            raise QuantizerError(
                f"{Described(layer)}: {keyword}={item!r} is for no quantizer of this layer. An activation layer "
                f"{what} settings take no prefix. Did you mean {rest}={item!r}?"
            )
        if act_quant is None:
            raise QuantizerError(
                f"{Described(layer)}: {keyword}={item!r} is given, but act_quant is None. Write act_quant=Int8Act "
                f"too, or leave {keyword} out."
            )
    return dict(given)


def spelled_out(layer: type[QuantLayer], base: type[QuantLayer]) -> inspect.Signature:
    """The signature of a layer with everything that its ``**options`` stand for: the keywords of its base."""
    own = [*inspect.signature(layer.__init__).parameters.values()][1:]
    if not any(each.kind is each.VAR_KEYWORD for each in own):
        return inspect.Signature(own)
    named = {each.name for each in own}
    shared = [
        each
        for each in inspect.signature(base.__init__).parameters.values()
        if each.kind in (each.KEYWORD_ONLY, each.VAR_KEYWORD) and each.name not in named
    ]
    return inspect.Signature([*(each for each in own if each.kind is not each.VAR_KEYWORD), *shared])


# torch's arguments: torch stores whatever it is given, and what is wrong shows much later or never


def _checked(layer: ActivationLayer, name: str, item: object) -> object:
    """The argument, or what is wrong with it and what was probably meant."""
    check = _KINDS.get(name)
    if check is None:
        return item
    try:
        return check(name, item)
    except SettingError as error:
        remedy = ""
        if isinstance(item, QuantizerType | TensorQuant):
            remedy = f" Write {type(layer).__name__}(act_quant={item!r})."
        elif name in layer._torchs[:1] and isinstance(item, numbers.Integral) and int(item) >= 2:
            remedy = f" Write {type(layer).__name__}(bit_width={item}) for {item} bits."
        raise QuantizerError(f"{type(layer).__name__}: {error}{remedy}") from None


def _flag(name: str, item: object) -> bool:
    numpys = type(item).__module__ == "numpy" and type(item).__name__ in ("bool", "bool_")
    return check_flag(name, bool(item) if numpys else item)


def _number(name: str, item: object) -> int | float:
    if isinstance(item, bool) or not isinstance(item, numbers.Real) or item != item:
        raise SettingError(name, item, "a number")
    return int(item) if isinstance(item, numbers.Integral) else float(item)


def _dimension(name: str, item: object) -> int | None:
    if item is not None and (isinstance(item, bool) or not isinstance(item, numbers.Integral)):
        raise SettingError(name, item, "a dimension such as -1")
    return None if item is None else int(item)


def _approximation(name: str, item: object) -> str:
    if item not in ("none", "tanh"):
        raise SettingError(name, item, "'none' or 'tanh'")
    return str(item)


_KINDS: dict[str, Callable[[str, object], object]] = {
    "alpha": _number,
    "approximate": _approximation,
    "beta": _number,
    "ceil_mode": _flag,
    "count_include_pad": _flag,
    "dim": _dimension,
    "inplace": _flag,
    "max_val": _number,
    "min_val": _number,
    "negative_slope": _number,
    "return_indices": _flag,
    "return_quant_tensor": _flag,
    "threshold": _number,
}
