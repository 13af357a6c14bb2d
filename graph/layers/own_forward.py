"""Quantized layers out of a user's subclasses of torch's layers, which go on computing in their own way."""

import inspect
from threading import get_ident
from typing import Any, NamedTuple

import torch
from torch import Tensor, nn

from ...nn import ActivationLayer, QuantLayer, WeightLayer
from ...nn.slots import Described
from ...qcore import QuantizerError

__all__ = ["parametrized", "quantized_subclass"]

_STANDING = ("weight", "bias")
_COMPUTING = ("forward", "__call__", "_conv_forward", "_output_padding")  # what torch's layers compute with


def quantized_subclass(cls: type[nn.Module], base: type[nn.Module], layer: type[QuantLayer]) -> type[QuantLayer]:
    """The quantized layer for one of torch's layers, or a subclass of one.

    If a subclass computes in its own way, the quantized layer runs that, with the quantized weight and bias in place
    of the float ones. It pickles by the subclass, and has its methods and attributes.

    Args:
        cls: the subclass, or ``base`` itself.
        base: the layer of torch that it extends.
        layer: the quantized layer that stands for ``base``.

    Raises:
        QuantizerError: the subclass computes in its own way, and the quantized layer can't run that.

    Example:
        >>> import bitwright.nn as qnn
        >>> class Doubled(nn.Linear):
        ...     def forward(self, x):
        ...         return 2 * super().forward(x)
        >>> made = quantized_subclass(Doubled, nn.Linear, qnn.QuantLinear)
        >>> made.__name__, made is quantized_subclass(Doubled, nn.Linear, qnn.QuantLinear), issubclass(made, Doubled)
        ('QuantDoubled', True, True)
    """
    if cls is base or issubclass(layer, cls):
        return layer
    made: dict[type, type[QuantLayer]] = vars(cls).get("__quantized__", {})  # kept by the class: it goes with it
    if layer not in made:
        made = {**made, layer: _made(cls, base, layer)}
        type.__setattr__(cls, "__quantized__", made)
    return made[layer]


def _made(cls: type[nn.Module], base: type[nn.Module], layer: type[QuantLayer]) -> type[QuantLayer]:
    names: dict[str, Any] = {
        "__module__": cls.__module__,
        "__doc__": f"`{cls.__name__}` with quantizers.",
        "__reduce_ex__": _reduce,
        "_recipe": (cls, base, layer),
    }
    above = cls.__mro__[: cls.__mro__.index(base)]
    if any(name in vars(each) for each in above for name in _COMPUTING):
        if issubclass(layer, WeightLayer) and layer.quantizes_parameters:
            names |= _with_weights(cls, layer)
        elif issubclass(layer, ActivationLayer) and not any(slot.parameter for slot in layer.slots):
            names |= {"_function": lambda self, x: cls.forward(self, x), "_quantized": ActivationLayer._quantized}
        else:
            raise QuantizerError(
                f"{cls.__name__} computes in its own way, which {layer.__name__} can't run. Write a quantized layer of "
                f"your own, and name it in a rule: {{{cls.__name__}: Quant{cls.__name__}}}."
            )
    bases: tuple[type, ...] = (layer, cls)
    made: Any = type(f"Quant{cls.__name__}", bases, names)
    return made


def _reduce(self: Any, protocol: int) -> tuple[object, ...]:
    return _restored, type(self)._recipe, self.__getstate__()


def _restored(cls: type[nn.Module], base: type[nn.Module], layer: type[QuantLayer]) -> QuantLayer:
    made = quantized_subclass(cls, base, layer)
    return made.__new__(made)


# Its own forward, on quantized weights


class _Rest(NamedTuple):
    """What a forward is called with besides its input."""

    args: tuple[object, ...]
    options: dict[str, object]


def _with_weights(cls: type[nn.Module], layer: type[WeightLayer]) -> dict[str, Any]:
    """What a quantized layer needs that runs the forward of a subclass: weight and bias stand in for the float ones."""
    names = list(inspect.signature(cls.forward).parameters)[1:]

    def forward(self: Any, *args: object, **options: object) -> Tensor:
        if not args:
            args = (options.pop(names[0]),)
        return layer.forward(self, args[0], _Rest(args[1:], options))  # type: ignore[arg-type]

    def compute(self: Any, x: Tensor, weight: Tensor, bias: Tensor | None, *extra: _Rest) -> Tensor:
        args, options = extra[0]
        if torch.compiler.is_compiling():
            self._standing_in = (weight, bias)
            try:
                return cls.forward(self, x, *args, **options)
            finally:
                self._standing_in = None
        thread, by_thread = get_ident(), vars(self).setdefault("_by_thread", {})
        by_thread[thread] = (weight, bias)  # each thread that runs the model has its own
        try:
            return cls.forward(self, x, *args, **options)
        finally:
            del by_thread[thread]

    parameters = {slot.parameter for slot in layer.slots}
    standing = {name: _standing_in(name, place, None) for place, name in enumerate(_STANDING) if name in parameters}
    return {
        "forward": forward,
        "_compute": compute,
        "_standing_in": None,
        "_by_thread": {},
        "_check_output_grid": _refuse_sums,
        **standing,
    }


def _refuse_sums(self: nn.Module) -> None:
    raise QuantizerError(
        f"{Described(self)}: return_quant_tensor=True needs outputs that lie on a grid, and what this layer's own "
        "forward returns need not be sums of products. Set output_quant=Int8Act."
    )


def _standing_in(name: str, index: int, below: property | None) -> property:
    """A parameter as forward sees it: the quantized one while that runs, else the parameter."""

    def get(self: Any) -> Tensor | None:
        standing = self._standing_in if torch.compiler.is_compiling() else self._by_thread.get(get_ident())
        if standing is not None:
            return standing[index]
        if below is not None and below.fget is not None:
            return below.fget(self)
        for held in (self.__dict__, self._parameters):
            if name in held:
                return held[name]
        raise AttributeError(name)  # pruning takes it away for a moment

    def put(self: Any, item: object) -> None:
        if below is not None and below.fset is not None:
            below.fset(self, item)
        else:
            self.__dict__[name] = item  # pruning and weight normalisation put a tensor in the parameter's place

    def remove(self: Any) -> None:
        del self.__dict__[name]

    return property(get, put, remove)


def parametrized(layer: type[QuantLayer], before: type[nn.Module]) -> type[QuantLayer]:
    """The class of a parametrized module with its parametrized tensors, on top of a quantized layer.

    Args:
        layer: the quantized layer.
        before: the class that `torch.nn.utils.parametrize` has made for the module.

    Example:
        >>> import bitwright.nn as qnn
        >>> from torch.nn.utils.parametrizations import orthogonal
        >>> made = parametrized(qnn.QuantLinear, type(orthogonal(nn.Linear(2, 2))))
        >>> made.__name__, made.__bases__, isinstance(made.weight, property)
        ('ParametrizedQuantLinear', (<class 'bitwright.nn.linear.QuantLinear'>,), True)
    """
    kept = ("__getstate__", "__deepcopy__")
    names = {name: item for name, item in vars(before).items() if isinstance(item, property) or name in kept}
    if "_standing_in" in vars(layer):
        for index, name in enumerate(_STANDING):
            if name in names:
                names[name] = _standing_in(name, index, names[name])
    return type(f"Parametrized{layer.__name__}", (layer,), {**names, "__module__": before.__module__})
