"""Checkpoints of Brevitas in models that were ported by hand."""

from collections.abc import Mapping

from torch import Tensor, nn

from ...nn import QuantLayer, QuantLSTM, QuantRNN, QuantScaleBias
from ...qcore import ConstantScaling, StatisticScaling, TensorQuant
from ...qcore.models import require_model
from ..conversion.snapshot import restored_on_failure
from ..passes.reports import Entry, Report
from .matching import matched, suggestion
from .names import renamed
from .problems import CheckpointError
from .ranges import Place, parts_of, translated
from .reading import Checkpoint, tensors_of

__all__ = ["load_brevitas"]

_CALL = "load_brevitas"
_CONSTANT = "zero_hw_sentinel"  # early versions of Brevitas saved it; it is always 0


def load_brevitas(model: nn.Module, checkpoint: Checkpoint) -> Report:
    """Load a checkpoint of Brevitas into a model that was ported to the layers of this library, in place.

    Modules have the names that they have in the file, and quantizers are declared as there: what the file has of a
    quantizer is a number, and the model says what it means. Ranges that were learned or collected, running averages,
    learned bit widths, zero points, weight normalization and batch norms are taken. Constant scales, and those that
    follow a weight, are not in the file: the model's stay. Everything fits, or nothing is loaded.

    Args:
        model: the ported model.
        checkpoint: a state dict, or the path of the file that holds it; as it is, or as training scripts wrap it
            (``{"state_dict": ...}``, names that start with ``module.``).

    Returns:
        A `Report` with an entry for each quantizer; those that keep no state are left.

    Raises:
        CheckpointError: keys of the file that the model has no place for, places that the file has nothing for, other
            shapes, granularities or bit widths; with what to write instead.

    Example:
        >>> import torch
        >>> import bitwright.nn as qnn
        >>> file = {
        ...     "fc.weight": torch.ones(1, 2),
        ...     "relu.act_quant.fused_activation_quant_proxy.tensor_quant.scaling_impl.value": torch.tensor(5.1),
        ... }
        >>> model = nn.Sequential()
        >>> model.add_module("fc", qnn.QuantLinear(2, 1, bias=False))
        >>> model.add_module("relu", qnn.QuantReLU())
        >>> print(load_brevitas(model, file))
        load_brevitas: 1 changed, 1 left (tensors 1)
          relu.act_quant   range 5.1
          fc.weight_quant  left: its scale follows the weight
        >>> model.eval()(torch.tensor([[0.25, 0.26]])).item()
        0.5199999809265137
    """
    require_model(_CALL, model)
    file = renamed(tensors_of(_CALL, checkpoint, model), model)
    recurrent = _recurrent(model, file)
    if recurrent:
        raise CheckpointError(_CALL, recurrent)
    modules = dict(model.named_modules(remove_duplicate=False))
    numbers, rest = _apart(file)
    converted = {key for key in rest if _converts(key, modules)}
    places = _places_of(model)
    own = model.state_dict(keep_vars=True)
    quantizers = {key for key in own if _within(key, places)}
    wanted = {key: each for key, each in own.items() if key not in quantizers}
    plain = matched(model, wanted, {key: each for key, each in rest.items() if key not in converted})
    state = {key: own[key].detach() for key in quantizers} | plain.state | {key: rest[key] for key in converted}
    problems = [*plain.problems]
    entries = []
    found = {place.quant: numbers[path] for path, place in places.items() if path in numbers}
    for path, place in places.items():
        own_numbers = numbers.pop(path, None) or found.get(place.quant, {})  # of any layer that shares the quantizer
        taken = translated(place, own_numbers, _parameter_of(place, plain.state))
        problems += taken.problems
        state |= {f"{path}.{name}": tensor for name, tensor in taken.state.items()}
        entries.append(Entry(path, taken.said) if taken.said else Entry(path, "left", _without_state(place.quant)))
    problems += [_homeless(path, modules) for path in numbers]
    problems += _at_odds(model, state)
    if any(each.is_meta for each in own.values()):
        problems.append("the model: it has tensors without data. Write model.to_empty(device='cpu') before.")
    if problems:
        raise CheckpointError(_CALL, problems)
    _put(model, state)
    return Report(_CALL, tuple(entries), figures={"tensors": len(rest)})


def _apart(file: Mapping[str, Tensor]) -> tuple[dict[str, dict[str, Tensor]], dict[str, Tensor]]:
    """The numbers of each quantizer, and all other tensors."""
    numbers: dict[str, dict[str, Tensor]] = {}
    rest: dict[str, Tensor] = {}
    for key, tensor in file.items():
        parts = parts_of(key)
        if parts is not None:
            numbers.setdefault(parts[0], {})[parts[1]] = tensor
        elif not key.endswith(_CONSTANT):
            rest[key] = tensor
    return numbers, rest


def _converts(key: str, modules: Mapping[str, nn.Module]) -> bool:
    """Whether a layer takes the statistics of a batch norm, and makes factors and offsets of them as it loads."""
    path, _, name = key.rpartition(".")
    statistics = ("running_mean", "running_var", "num_batches_tracked")
    return name in statistics and isinstance(modules.get(path), QuantScaleBias)


def _recurrent(model: nn.Module, file: Mapping[str, Tensor]) -> list[str]:
    """The recurrent layers that the file has with quantizers for each gate: they compute something else."""
    found = {path for path, module in model.named_modules() if isinstance(module, QuantLSTM | QuantRNN)}
    return [
        f"{path or 'the model'}: the recurrent layer of the file has ranges for each gate and rounds other products, "
        "so that its numbers mean nothing here. Load its weights alone (docs/coming-from-brevitas.md), and calibrate."
        for path in sorted(found)
        if any(key.startswith(f"{path}.layers." if path else "layers.") for key in file)
    ]


def _places_of(model: nn.Module) -> dict[str, Place]:
    """The quantizers of a model, by path; one that layers share is at each of its places."""
    found: dict[str, Place] = {}
    for path, module in model.named_modules(remove_duplicate=False):
        for name, child in module.named_children():
            if isinstance(child, TensorQuant):
                slots = module.slots if isinstance(module, QuantLayer) else ()
                slot = next((slot for slot in slots if f"{slot.name}_quant" == name), None)
                full = f"{path}.{name}" if path else name
                found[full] = Place(full, path, module, slot, child)
    return found


def _without_state(quant: TensorQuant) -> str:
    """Why the file says nothing of a quantizer, where that is in order."""
    if quant.follows_input:
        return "its scale is that of the products"
    scaling = getattr(quant, "scaling", None)
    if isinstance(scaling, StatisticScaling):
        return "its scale follows the weight" if quant.of_parameter else "its scale follows the input"
    return "its scale is constant" if isinstance(scaling, ConstantScaling) else "it has no state"


def _within(key: str, places: Mapping[str, Place]) -> bool:
    """Whether a key names state of a quantizer."""
    while key:
        key = key.rpartition(".")[0]
        if key in places:
            return True
    return False


def _parameter_of(place: Place, state: Mapping[str, Tensor]) -> Tensor | None:
    """What the file has for the parameter that a quantizer quantizes."""
    if place.slot is None or place.slot.parameter is None:
        return None
    prefix = f"{place.layer_path}." if place.layer_path else ""
    return state.get(prefix + place.slot.parameter)


def _homeless(path: str, modules: Mapping[str, nn.Module]) -> str:
    """What to say of numbers for a quantizer that the model doesn't have."""
    where, _, name = path.rpartition(".")
    layer = modules.get(where)
    said = f"{path}: the file has the state of a quantizer, and "
    if layer is None:
        return f"{said}the model has no module {where!r}.{suggestion(where, modules)}"
    slots = {f"{slot.name}_quant": slot for slot in layer.slots} if isinstance(layer, QuantLayer) else {}
    if name in slots:
        return f"{said}the model has none there. Write {name}={slots[name].example}."
    has = f"has {', '.join(slots)}" if slots else "has no quantizers"
    return f"{said}{type(layer).__name__} {has}."


def _at_odds(model: nn.Module, state: Mapping[str, Tensor]) -> list[str]:
    """Tensors that are one in the model and have several values in the file."""
    first: dict[int, str] = {}
    problems = []
    for key, held in model.state_dict(keep_vars=True).items():
        if key not in state or key.endswith(".scheme"):
            continue
        before = first.setdefault(id(held), key)
        if before != key and not state[before].equal(state[key]):
            problems.append(f"{key}: in the model it is the same tensor as {before}, and the file has two that differ.")
    return problems


def _put(model: nn.Module, state: Mapping[str, Tensor]) -> None:
    """Load a state that was found to fit; should a module refuse it all the same, everything is as it was."""
    before = {key: each.detach().clone() for key, each in model.state_dict(keep_vars=True).items()}
    try:
        with restored_on_failure(model):
            model.load_state_dict(state, strict=True)
    except BaseException as error:
        for key, tensor in model.state_dict(keep_vars=True).items():
            tensor.data = before[key]
        if isinstance(error, RuntimeError):
            raise CheckpointError(_CALL, [f"the model refuses the state: {error}"]) from None
        raise
