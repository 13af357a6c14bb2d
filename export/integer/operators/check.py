"""Layers that integer operators can't express, found before anything is traced."""

from collections.abc import Iterator

from torch import nn

from ...errors import ExportError, with_causes
from ...targets.doors import ONNX_INTEGER
from ...targets.rules import called, layer_problems
from ..float_modules import FloatModule, remedy
from ..layers import LayerIntegers
from ..model import Integers

__all__ = ["HEADLINE", "check_layers", "problems_of_layers", "refuse_layers"]

HEADLINE = "the integer dialect can't express this model:"
_ROUND_ONCE = {"abs", "add", "div", "mul", "neg", "rsub", "sub"}  # alike everywhere


def refuse_layers(module: nn.Module) -> None:
    """Refuse types of layers that have no integer arithmetic, before integers are taken.

    Raises:
        ExportError: there are some: these, and float biases.
    """
    found, refused = layer_problems(module, ONNX_INTEGER), tuple(kind for kind, _ in ONNX_INTEGER.refused_layers)
    if any(isinstance(module.get_submodule(path), refused) for path in found):
        raise ExportError(with_causes(HEADLINE, [f"{called(module, path)}: {said}" for path, said in found.items()]))


def check_layers(module: nn.Module, found: Integers) -> None:
    """Refuse layers that integer operators can't express, and what is computed in floats.

    Raises:
        ExportError: with one line for each problem.
    """
    causes = [f"{where}: {said}" for where, said in problems_of_layers(module, found)]
    if causes:
        raise ExportError(with_causes(HEADLINE, causes))


def problems_of_layers(module: nn.Module, found: Integers) -> Iterator[tuple[str, str]]:
    """What keeps layers out of the dialect, by what messages call them.

    Args:
        module: the model.
        found: its integers.
    """
    static = layer_problems(module, ONNX_INTEGER)
    named = set(static)
    yield from ((called(module, path), str(problem)) for path, problem in static.items())
    for name, layer in found.items():
        if layer.weight is not None:
            path = layer.weight.grid.name.partition("weight_quant")[0].removesuffix(".")
            owner = module.get_submodule(path)
            for problem in _problems(owner, layer):
                named.add(path)
                yield f"{name or 'the model'} ({type(owner).__name__})", problem
    for each in found.floats:
        if _refused(each) and each.path not in named:
            where, _, operations = str(each).partition(": ")
            yield where, f"{operations}. {remedy(each)}"


def _refused(found: FloatModule) -> bool:
    """Whether something computed in floats has no place in the file: all but scaling and shifting the model's input."""
    return not (found.place == "before" and _ROUND_ONCE.issuperset(found.operations))


def _problems(owner: nn.Module, layer: LayerIntegers) -> Iterator[str]:
    assert layer.weight is not None
    slopes = isinstance(owner, nn.PReLU)
    if layer.input is None:
        yield "its input is not quantized. Write input_quant=Int8Act, or put a QuantIdentity in front of it."
    elif layer.input.axis is not None:
        count = layer.input.scale.numel()
        yield f"its input has {count} scales. Quantize it per tensor: axis=None."
    elif layer.input.bit_width > 8 and not slopes:
        bits = layer.input.bit_width
        yield f"its input has {bits} bits, and integer operators take 8. Put a QuantIdentity in front of it."
    if layer.weight.grid.block is not None:
        yield (
            "its weight has scales in groups, so the integers that one output sums have no common scale. Write "
            "weight_quant=Int8WeightPerChannel, or use export_onnx_qdq."
        )
