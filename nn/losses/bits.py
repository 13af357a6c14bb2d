"""A loss that counts bits, for bit widths that are learned."""

import warnings
from collections.abc import Callable, Iterator, Mapping
from contextlib import ExitStack, contextmanager
from typing import Any, NamedTuple

import torch
from torch import Tensor, nn

from ...qcore import Grid, GridQuant, QuantizerError, TensorQuant, grid_of
from ...qcore.errors import UncalibratedWarning, nearest
from ...qcore.formats.bit_width import block_sizes
from ...qcore.models import require_model
from ...qcore.tensor_quant import Intercept
from ..contexts.intercepting import intercepted, quantizers_of
from ..layer import QuantLayer
from .products import products_of

__all__ = ["COUNTS", "BitLoss", "bit_loss"]


class _Weight(NamedTuple):
    """A weight: who holds it, how often it is multiplied, and what quantizes that which it is multiplied with."""

    layer: QuantLayer
    slot: str
    products: int
    inputs: TensorQuant | None


class _Activation(NamedTuple):
    """A tensor that a quantizer made."""

    quant: TensorQuant
    shape: tuple[int, ...]


class _Sizes(NamedTuple):
    weights: list[_Weight]
    activations: list[_Activation]


def _weight_bits(sizes: _Sizes) -> list[Tensor]:
    counted: list[Tensor] = []
    found = []
    for each in sizes.weights:
        tensor, stored = each.layer.tensor_of(each.slot), _parameter(each.layer, each.slot)
        if not any(stored is other for other in counted):  # a weight that layers have in common is stored once
            counted.append(stored)
            found.append(_bits(_quantizer(each), tensor) * tensor.numel())
    return found


def _multiply_bits(sizes: _Sizes) -> list[Tensor]:
    found = []
    for each in sizes.weights:
        tensor = each.layer.tensor_of(each.slot)
        found.append(_bits(_quantizer(each), tensor) * _bits(each.inputs, tensor, inputs=True) * each.products)
    return found


def _memory(sizes: _Sizes) -> list[Tensor]:
    activations = [_bits_of(each.quant, each.shape) * torch.Size(each.shape).numel() for each in sizes.activations]
    return _weight_bits(sizes) + activations


# What is counted; all but the first needs examples
COUNTS: dict[str, Callable[[_Sizes], list[Tensor]]] = {
    "weight_bits": _weight_bits,
    "multiply_bits": _multiply_bits,
    "memory": _memory,
}


class BitLoss:
    """`bit_loss` for training loops: sizes are measured once, and each call counts with the bit widths of the moment.

    Args are those of `bit_loss`.

    Example:
        >>> import bitwright.nn as qnn
        >>> from bitwright.qcore import LearnedBitWidth
        >>> layer = qnn.QuantLinear(4, 2, weight_bit_width=LearnedBitWidth)
        >>> loss = BitLoss(layer)
        >>> with torch.no_grad():
        ...     _ = layer.weight_quant.bit_width.offset.fill_(1.0)
        >>> loss()
        tensor(24., grad_fn=<SumBackward0>)
    """

    def __init__(self, model: nn.Module, counts: str = "weight_bits", examples: object = None) -> None:
        require_model("bit_loss", model)
        if counts not in COUNTS:
            guess = nearest(counts, COUNTS) if isinstance(counts, str) else None
            hint = f" Did you mean {guess!r}?" if guess else ""
            raise QuantizerError(f"bit_loss: counts={counts!r} is not one of {', '.join(map(repr, COUNTS))}.{hint}")
        if counts == "weight_bits" and examples is not None:
            raise QuantizerError("bit_loss: counts='weight_bits' needs no examples. Leave them out.")
        if counts != "weight_bits" and examples is None:
            raise QuantizerError(
                f"bit_loss: counts={counts!r} depends on the size of the input. Give an example, such as "
                f"bit_loss(model, {counts!r}, torch.randn(1, 3, 32, 32)); a tuple holds several arguments."
            )
        self.counts = counts
        self.sizes = _stored(model) if examples is None else _measured(model, examples)
        if not self.sizes.weights and not self.sizes.activations:
            raise QuantizerError(
                f"bit_loss: this {type(model).__name__} has no quantized weight that could be counted. Give it layers "
                "such as qnn.QuantLinear(8, 4, weight_bit_width=LearnedBitWidth)."
            )

    def __call__(self) -> Tensor:
        """The bits, a 0-d tensor."""
        terms = COUNTS[self.counts](self.sizes)
        total = torch.stack([each.to(terms[0].device) for each in terms]).sum()
        if torch.is_grad_enabled() and not total.requires_grad:
            raise QuantizerError(
                f"bit_loss: no bit width that counts for {self.counts!r} is learned, so training can't lower the "
                f"{total.item():g} bits there are. Write weight_bit_width=LearnedBitWidth in a layer, or bit_width= in "
                "an activation; under torch.no_grad() bit_loss only counts."
            )
        return total


def bit_loss(model: nn.Module, counts: str = "weight_bits", examples: object = None) -> Tensor:
    """How many bits a model costs, differentiable in learned bit widths: add a share of it to the loss.

    Bit widths count as they are in use, rounded, with gradients straight through. What is not learned counts as a
    constant; so does what is not quantized, with the bits of its type. Under ``torch.no_grad()`` models without learned
    bit widths can be counted too.

    Args:
        model: any module with quantized layers.
        counts: ``"weight_bits"``, those of all weights, each stored once; ``"multiply_bits"``, bit width of the
            weight x bit width of the input, summed over all products of weights and inputs (bit operations, BOPs);
            ``"memory"``, the bits of all weights and of all tensors that activation quantizers make.
        examples: what the model is called with, for all but ``"weight_bits"``: a tensor, or a tuple of arguments. A
            batch of one counts one inference. Sizes are measured at every call, by a forward in evaluation; `BitLoss`
            measures once.

    Returns:
        The number of bits, a 0-d tensor.

    Raises:
        QuantizerError: no model, one with nothing to count or nothing learned, or no examples where they are needed.

    Example:
        >>> import bitwright.nn as qnn
        >>> from bitwright.qcore import LearnedBitWidth
        >>> model = nn.Sequential(
        ...     qnn.QuantIdentity(bit_width=4, scale=0.1), qnn.QuantLinear(10, 2, weight_bit_width=LearnedBitWidth)
        ... )
        >>> bit_loss(model).item(), bit_loss(model, "multiply_bits", torch.randn(1, 10)).item()
        (160.0, 640.0)
    """
    return BitLoss(model, counts, examples)()


# Bits


def _quantizer(weight: _Weight) -> TensorQuant | None:
    return getattr(weight.layer, f"{weight.slot}_quant")


def _bits(quant: TensorQuant | None, tensor: Tensor, inputs: bool = False) -> Tensor:
    """Bits of a value on average: of a tensor, or of those that it is multiplied with."""
    if quant is None:
        return torch.tensor(float(torch.finfo(tensor.dtype).bits), device=tensor.device)
    return _bits_of(quant, None if inputs else tuple(tensor.shape)).to(tensor.device)


def _bits_of(quant: TensorQuant, shape: tuple[int, ...] | None) -> Tensor:
    """Bits of a value on average, of a tensor of some shape: blocks at its end may be shorter."""
    widths = quant._range().bit_width if isinstance(quant, GridQuant) else 32
    if not isinstance(widths, Tensor):
        return torch.tensor(float(widths))
    if widths.ndim == 0:
        return widths
    if shape is None or not isinstance(quant, GridQuant):
        return widths.mean()
    sizes = block_sizes(quant.granularity, shape).to(widths)
    return (widths * (sizes / sizes.sum())).sum()


# Sizes


def _stored(model: nn.Module) -> _Sizes:
    """The weights of a model, without a forward."""
    layers = [each for each in model.modules() if isinstance(each, QuantLayer)]
    return _Sizes([_Weight(layer, slot, 0, None) for layer in layers for slot in _slots(layer)], [])


def _slots(layer: QuantLayer) -> list[str]:
    """The slots of a layer's weights."""
    names = [slot.name for slot in layer.slots if slot.role == "weight"]
    return [name for name in names if _parameter(layer, name) is not None]


def _parameter(layer: QuantLayer, slot: str) -> Any:
    """The weight of a slot as it is stored; None where there is none."""
    found: Any = layer
    for name in str(layer.slot(slot).parameter).split("."):
        found = getattr(found, name, None)
    return found


def _measured(model: nn.Module, examples: object) -> _Sizes:
    """What a forward in evaluation multiplies and makes."""
    found = _Sizes([], [])
    quantizers = quantizers_of(model)

    def intercept(path: str) -> Intercept:
        before = quantizers[path].__dict__.get("intercept")

        def record(quant: TensorQuant, x: Tensor, *context: Any) -> tuple[Tensor, Grid | None]:
            values, grid = quant._quantize(x, *context) if before is None else before(quant, x, *context)
            if quant.of_parameter:
                return values, grid
            found.activations.append(_Activation(quant, tuple(x.shape)))
            return values, None if grid is None else grid.replace(source=(_MARK, path))  # tensors say who made them

        return record

    def count(layer: nn.Module, args: tuple[Any, ...], kwargs: Mapping[str, Any], result: Any) -> None:
        assert isinstance(layer, QuantLayer)
        entering = args[0] if args else next(iter(kwargs.values()))
        leaving = result[0] if isinstance(result, tuple) and not hasattr(result, "data") else result
        maker = _maker(layer, entering, quantizers)
        for slot in _slots(layer):
            hidden = getattr(layer, f"hidden{slot.removeprefix('weight_hh')}_quant", None) if "_hh" in slot else maker
            products = products_of(layer, _parameter(layer, slot), entering, leaving)
            found.weights.append(_Weight(layer, slot, products, hidden))

    layers = [each for each in model.modules() if isinstance(each, QuantLayer)]
    with ExitStack() as stack:
        for layer in layers:
            if _slots(layer):
                handle = layer.register_forward_hook(count, with_kwargs=True)
                stack.callback(handle.remove)
        stack.enter_context(_carrying(model, layers))
        stack.enter_context(intercepted(quantizers, intercept))
        stack.enter_context(torch.no_grad())
        stack.enter_context(warnings.catch_warnings())
        warnings.simplefilter("ignore", UncalibratedWarning)
        model(*(examples if isinstance(examples, tuple) else (examples,)))
    return found


_MARK = "made by"


def _maker(layer: QuantLayer, entering: object, quantizers: Mapping[str, TensorQuant]) -> TensorQuant | None:
    """What quantizes the input of a layer: a quantizer of its own, or that which made the tensor."""
    own = getattr(layer, "input_quant", None)
    if own is not None:
        return own
    grid = grid_of(entering) if isinstance(entering, Tensor) else None
    source: Any = None if grid is None else grid.source
    marked = isinstance(source, tuple) and len(source) == 2 and source[0] == _MARK
    return quantizers[source[1]] if marked else None


@contextmanager
def _carrying(model: nn.Module, layers: list[QuantLayer]) -> Iterator[None]:
    """A model in evaluation whose layers return tensors with their grids."""
    modes = [(each, each.training) for each in model.modules()]
    flags = [(each, each.return_quant_tensor) for each in layers if "return_quant_tensor" in vars(each)]
    try:
        model.eval()
        for each, _ in flags:
            vars(each)["return_quant_tensor"] = True
        yield
    finally:
        for each, flag in flags:
            vars(each)["return_quant_tensor"] = flag
        for each, mode in modes:
            each.training = mode
