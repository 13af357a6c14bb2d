"""Taking the integers out of a model."""

from collections.abc import Iterator, Mapping
from dataclasses import replace

from torch import Tensor, nn

from ...nn.contexts.intercepting import quantizers_of
from ...qcore import TensorQuant
from ...qcore.aliases import Keywords
from ...qcore.models import require_model, shown
from ..capture.caveats import warn_of_caveats
from ..capture.grid import IntegerGrid, QuantizedTensor
from ..capture.model_state import evaluating, unchanged
from ..capture.record import Call, Recording, record
from ..errors import ExportError, with_causes
from .layers import LayerIntegers, LayerProduct
from .model import Integers
from .reference.journal import ProductSums
from .reference.run import run_lowered
from .sums import worst_sums

__all__ = ["integers", "integers_for", "integers_of", "parts_of"]


def integers(
    model: nn.Module, example: Tensor | tuple[object, ...], *, kwargs: Mapping[str, object] | None = None
) -> Integers:
    """The integers of a model as it evaluates.

    Args:
        model: a model with quantized layers; it is left as it was.
        example: one tensor, or a tuple of all positional arguments; its numbers matter only to quantizers that saw no
            data yet.
        kwargs: keyword arguments.

    Returns:
        An `Integers`: a mapping from the path of each layer to its integers and grids.

    Raises:
        ExportError: not a model, or quantizers that have no plain grid; all are listed.

    Activations whose scale follows the input have no grid to give: they are left out, and what their layers compute
    counts as floats.

    Example:
        >>> import torch, bitwright.nn as qnn
        >>> layer = qnn.QuantLinear(3, 2, bias=False, weight_bit_width=4)
        >>> _ = layer.weight.data.copy_(torch.tensor([[0.7, -0.3, 0.0], [0.1, 0.2, -0.7]]))
        >>> integers(nn.Sequential(layer), torch.ones(1, 3))["0"].weight.codes
        tensor([[ 7, -3,  0],
                [ 1,  2, -7]], dtype=torch.int8)
    """
    return integers_for("integers", model, example, kwargs)


def integers_for(
    call: str,
    model: nn.Module,
    example: Tensor | tuple[object, ...],
    kwargs: Mapping[str, object] | None,
    given: Integers | None = None,
) -> Integers:
    """`integers` for a function that the user called, which errors name; or those that the user gave it."""
    require_model(call, model, ExportError)
    if isinstance(given, Integers):
        causes = [_not_integers(name, each.grid.number_format, call) for name, each in given.quantized().items()]
        _refuse(call, [each for each in causes if each is not None])
        return given
    if given is not None:
        raise ExportError(
            f"{call}: integers={shown(given)} is not possible. Pass what integers(model, example) or Integers.load "
            "returned, or leave it out."
        )
    arguments = example if isinstance(example, tuple) else (example,)
    quantizers = quantizers_of(model)
    with unchanged(model), evaluating(model):
        recording = record(model, quantizers, arguments, kwargs)
        warn_of_caveats(call, model, quantizers, recording.calls)
        return integers_of(call, model, quantizers, recording, arguments, kwargs)


def integers_of(
    call: str,
    model: nn.Module,
    quantizers: dict[str, TensorQuant],
    recording: Recording,
    arguments: tuple[object, ...],
    kwargs: Mapping[str, object] | None,
) -> Integers:
    """The integers of a model in evaluation mode, from the recording of a forward with the same arguments."""
    ungrouped = parts_of(recording, call)
    run = run_lowered(model, quantizers, ungrouped, arguments, kwargs, accumulator_bits=53, dynamic=True)
    modules = dict(model.named_modules())
    layers: dict[str, LayerIntegers] = {}
    for name, slots in run.slots.items():
        module = modules[name] if name in modules else modules[name.rpartition(".")[0]]
        parts = {slot: replace(ungrouped[each], entering=run.entering.get(each)) for slot, each in slots.items()}
        entering, leaving = run.grids[name]
        entering = parts["input"].grid if "input" in parts else entering
        products = tuple(_products({each: slot for slot, each in slots.items()}, run.products))
        layer = LayerIntegers(name, type(module).__name__, parts, entering, leaving, _settings(module), products)
        layers[name] = layer
    return Integers({name: _with_widths(layer, layers) for name, layer in layers.items()}, run.float_modules)


def parts_of(recording: Recording, call: str = "integers") -> dict[str, QuantizedTensor]:
    """What a recording holds of each quantizer's call, by name; ``call`` is the function that errors name."""
    causes = [cause for each in recording if (cause := _problem(each, call)) is not None]
    _refuse(call, causes)
    parts = {}
    for each in recording:
        if _is_left_out(each):
            continue
        stored = each.stored or each.quantizer.follows_input
        part = QuantizedTensor(each.plain, each.codes.detach().cpu().clone() if stored else None)
        if not (stored and each.index and _alike(parts[each.path], part)):
            parts[each.name] = part
    return parts


def _refuse(call: str, causes: list[str]) -> None:
    if causes:
        count = f"{len(causes)} quantizer{'s' * (len(causes) > 1)}"
        raise ExportError(with_causes(f"{call}: {count} of this model can't be given as integers:", causes))


def _not_integers(name: str, levels: str | None, function: str) -> str | None:
    """What is wrong with levels for a function that computes with integers."""
    if levels is None or function == "integers":
        return None
    return (
        f"{name}: its levels are {levels}, and {function} computes with integers. Quantize it to integers, or take its "
        "codes: integers(model, example)."
    )


def _alike(one: QuantizedTensor, other: QuantizedTensor) -> bool:
    """Whether two calls of a quantizer gave a parameter the same integers."""
    return one == replace(other, grid=replace(other.grid, name=one.grid.name))


def _products(slots: Mapping[str, str], summed: Mapping[str, ProductSums]) -> Iterator[LayerProduct]:
    """What a layer sums, by its slots; with each of the grids that a parameter is multiplied with."""
    for name, slot in slots.items():
        if name in summed:
            bias = summed[name].bias
            for grid in summed[name].grids.values():
                yield LayerProduct(slot, None if bias is None else slots.get(bias), grid)


def _problem(call: Call, function: str) -> str | None:
    """Why a call can't be given as integers, or codes."""
    scale = call.grid.scale
    problem = _not_integers(call.path, call.plain.number_format, function)
    if problem is not None:
        return problem
    if call.plain.axis == -1:
        return (
            f"{call.path}: its scale has the shape {tuple(scale.shape)} for values of shape {tuple(call.codes.shape)}. "
            "Write axis=None for one scale, or axis=1 for one for each channel."
        )
    if not bool((scale.isfinite() & (scale > 0)).all()):
        return f"{call.path}: a scale is not a positive, finite number. Check what its scaling computes."
    if not call.on_grid:
        kind = type(call.quantizer).__name__
        return f"{call.path}: the values it returns do not lie on the grid it returns ({kind}._quantize)."
    if call.follows_input and not (function == "integers" and _is_left_out(call)):
        scaling = type(getattr(call.quantizer, "scaling", None)).__name__
        return (
            f"{call.path}: its scale follows the input ({scaling}), so there is no grid to give. Write "
            "scaling='calibrated' or scaling='running', and run some batches in training mode."
        )
    return None


def _is_left_out(call: Call) -> bool:
    """Whether it quantizes an activation whose scale follows the input."""
    declared = call.quantizer.quantizer
    return call.follows_input and getattr(declared, "quantizes", None) not in ("weight", "bias")


def _with_widths(layer: LayerIntegers, layers: dict[str, LayerIntegers]) -> LayerIntegers:
    """Grids of sums get the bits that the sums of that layer may need."""

    def of_sums(grid: IntegerGrid) -> IntegerGrid:
        sums = worst_sums(layers[grid.name]) if grid.name in layers else None
        return grid if sums is None else replace(grid, bit_width=max(sums.bits, 2))

    def widened(grid: IntegerGrid | None) -> IntegerGrid | None:
        return None if grid is None else of_sums(grid)

    products = tuple(replace(each, input=of_sums(each.input)) for each in layer.products)
    return replace(layer, input=widened(layer.input), output=widened(layer.output), products=products)


def _settings(module: nn.Module) -> Keywords:
    """What a convolution needs to know besides its integers."""
    names = ("stride", "padding", "dilation", "groups", "output_padding")
    found = {name: getattr(module, name) for name in names if hasattr(module, name)}
    if getattr(module, "padding_mode", "zeros") != "zeros":
        found["padding_mode"] = module.padding_mode
    return {name: list(each) if isinstance(each, tuple) else each for name, each in found.items()}
