"""The layers of a model that rules are for: what each becomes, or why it can't be quantized."""

from collections import Counter
from collections.abc import Collection, Iterable, Sequence
from dataclasses import dataclass

from torch import nn
from torch.nn.modules.lazy import LazyModuleMixin
from torch.nn.utils import parametrize

from ...nn import ActivationLayer, QuantLayer, WeightLayer
from ...qcore import QuantizerError, TensorQuant
from .hooked import hides_class
from .own_forward import quantized_subclass
from .table import compositions, has_weights, quantized_layers

__all__ = ["Layer", "counted", "layers_of", "plain_class", "rounds_otherwise"]


@dataclass(frozen=True)
class Layer:
    """A module of a float model that rules see as one: without modules of its own, or torch's attention.

    Attributes:
        module: it.
        paths: of the module; several if it is shared.
        quantized: the class that it would become, or None.
        refused: why it can't be quantized, although there is a quantized layer for its type.

    Example:
        >>> model = nn.Sequential(nn.Linear(2, 2), nn.Flatten())
        >>> [(layer.path, layer.quantized and layer.quantized.__name__) for layer in layers_of(model)]
        [('0', 'QuantLinear'), ('1', None)]
    """

    module: nn.Module
    paths: tuple[str, ...]
    quantized: type[QuantLayer] | None
    refused: str = ""

    @property
    def path(self) -> str:
        """The first of its paths."""
        return self.paths[0]

    @property
    def name(self) -> str:
        """The path, or for a model that is one layer, its class."""
        return self.path or type(self.module).__name__


def plain_class(module: nn.Module) -> type[nn.Module]:
    """The class of a module without its parametrizations, for which torch makes a class for each module.

    Example:
        >>> plain_class(parametrize.register_parametrization(nn.Linear(2, 2), "weight", nn.Identity())).__name__
        'Linear'
    """
    return type(module).__bases__[0] if parametrize.is_parametrized(module) else type(module)


def layers_of(model: nn.Module, order: Sequence[str] = (), also: Collection[type[nn.Module]] = ()) -> list[Layer]:
    """The layers of a model, each once, in the order of their definition; those of some paths first, in that order.

    Args:
        model: any module.
        order: paths, such as those of the modules that a forward calls.
        also: types that count as one layer, although they hold modules.

    Example:
        >>> shared = nn.ReLU()
        >>> [layer.paths for layer in layers_of(nn.Sequential(shared, nn.Linear(2, 2), shared), ["1"])]
        [('1',), ('0', '2')]
    """
    paths: dict[nn.Module, list[str]] = {}
    for path, module in model.named_modules(remove_duplicate=False):
        paths.setdefault(module, []).append(path)
    leaves = [module for module in paths if _is_leaf(module, tuple(also))]
    inside = {each for module in leaves for each in module.modules() if each is not module}
    layers = [_layer(module, tuple(paths[module])) for module in leaves if module not in inside]
    rank = {path: number for number, path in enumerate(order)}
    return sorted(layers, key=lambda each: min(rank.get(path, len(rank)) for path in each.paths))


def _is_leaf(module: nn.Module, also: tuple[type[nn.Module], ...]) -> bool:
    """Whether rules see a module as one layer: there is a quantized one for it, or it has no modules inside."""
    if isinstance(module, TensorQuant):
        return False
    if isinstance(module, (QuantLayer, *also)) or _nearest(plain_class(module)) is not None:
        return True
    return not any(name != "parametrizations" for name, _ in module.named_children())


def _layer(module: nn.Module, paths: tuple[str, ...]) -> Layer:
    cls = plain_class(module)
    if isinstance(module, QuantLayer):
        return Layer(module, paths, None, "it is quantized already")
    table = {**quantized_layers(), **compositions()}
    base = next((each for each in cls.__mro__ if each in table), None)
    if base is None:
        return Layer(module, paths, None)
    if isinstance(module, LazyModuleMixin):
        return Layer(module, paths, None, "its weight has no shape yet; run the model on one batch first")
    if hides_class(module):
        return Layer(module, paths, None, "a `forward` was set on this module, which hides that of its class")
    try:
        return Layer(module, paths, quantized_subclass(cls, base, table[base]))
    except QuantizerError as error:
        return Layer(module, paths, None, str(error).rstrip("."))


def _nearest(cls: type[nn.Module]) -> type[nn.Module] | None:
    """The layer of torch that a class is or extends, and that has a quantized one."""
    table = quantized_layers()
    return next((base for base in cls.__mro__ if base in table), None)


def rounds_otherwise(module: nn.Module) -> bool:
    """Whether a layer of torch adds up in another order once it is quantized, so that the last bits may differ.

    Recurrent layers and attention do, which torch computes by kernels of its own.

    Example:
        >>> rounds_otherwise(nn.Linear(2, 2)), rounds_otherwise(nn.ReLU())
        (False, False)
    """
    if isinstance(module, QuantLayer):
        return has_weights(type(module)) and not isinstance(module, WeightLayer | ActivationLayer)
    base = _nearest(plain_class(module))
    layer = None if base is None else quantized_layers()[base]
    return layer is not None and has_weights(layer) and not issubclass(layer, (WeightLayer, ActivationLayer))


def counted(layers: Iterable[Layer]) -> str:
    """The types of layers with their numbers, as messages list them.

    Example:
        >>> counted(layers_of(nn.Sequential(nn.Linear(2, 2), nn.ReLU(), nn.Linear(2, 2))))
        'Linear (2), ReLU (1)'
    """
    found = Counter(plain_class(layer.module).__name__ for layer in layers)
    return ", ".join(f"{name} ({count})" for name, count in found.most_common()) or "none"
