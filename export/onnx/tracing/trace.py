"""A model as an ONNX graph in which every call of a quantizer is one placeholder node."""

import inspect
import logging
import re
import warnings
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from typing import Any

import torch
from torch import Tensor, nn
from torch.export import Dim
from torch.utils._pytree import tree_flatten, tree_leaves, tree_map, tree_unflatten

from ....nn.contexts.intercepting import intercepted
from ....qcore import Grid, TensorQuant, grid_of, values_of
from ....qcore.aliases import Keywords
from ....qcore.tensor_quant import Intercept
from ....qcore.tracing import loops_become
from ...capture.caveats import silent_quantizers, unreached
from ...capture.numbering import Counts
from ...capture.record import Call, Recording
from ...capture.traced_tensor import TracedQuantTensor
from ...errors import ExportError
from ..stored.stand_ins import StandIns
from .loops import OnnxLoops
from .placeholder import DOMAIN, placeholder, translations
from .unlisted import unlisted

__all__ = ["Emitter", "grids_of_layers", "handing_on", "quiet", "trace"]

Emitter = Callable[[Call, Tensor], Tensor]


def trace(
    module: nn.Module,
    quantizers: dict[str, TensorQuant],
    recording: Recording,
    args: tuple[object, ...],
    options: Keywords,
    emit: "Emitter | None" = None,
) -> torch.onnx.ONNXProgram:
    """Export a model whose quantizers emit placeholders: ``Quantize`` nodes with the path and number of the call.

    A rounding that QuantizeLinear does not do is traced as the torch code it is, between ``Divide`` (by the scale) and
    ``Quantize``; ``emit`` traces what else QuantizeLinear does not do.

    Layers hand on plain tensors. Where that fails, as some module reads the grid of its input, they hand
    on QuantTensors with the grids that they have in torch.

    Args:
        module: the model, in evaluation mode.
        quantizers: by path.
        recording: what they were asked for with the same arguments.
        args: positional arguments.
        options: further keywords of `torch.onnx.export`.
        emit: what a call is traced as, where it is no integer on a scale that stays.
    """
    emit = emit or _placeholders
    args = tree_map(_dense, args)
    if options.get("kwargs"):
        options = {**options, "kwargs": tree_map(_dense, options["kwargs"])}
    if options.get("dynamic_shapes"):
        options = {**options, "dynamic_shapes": _spelled_out(module, options["dynamic_shapes"], args, options)}
    try:
        return _traced(module, quantizers, recording, args, options, emit)
    except ExportError:
        raise
    except Exception as error:  # torch's, or the model's own
        failure = error
    grids = grids_of_layers(module, args, options.get("kwargs"))
    if any(grids.values()):
        try:
            with handing_on(module, grids):
                return _traced(module, quantizers, recording, args, options, emit)
        except Exception as error:
            if type(_root(error)) is not type(_root(failure)):
                raise  # the first is mended
    raise failure


def _dense(each: object) -> object:
    """An example without gaps: strides of open sizes would become part of the trace, and ONNX has none."""
    return each.contiguous() if type(each) is Tensor else each


def _spelled_out(module: nn.Module, shapes: Any, args: tuple[object, ...], options: Keywords) -> Any:
    """Dynamic shapes with ``{}`` in place of None: torch.onnx takes ``(None, None)`` for dimensions of one tensor."""
    try:
        given = inspect.signature(module.forward).bind(*args, **(options.get("kwargs") or {})).arguments
    except TypeError:
        return shapes  # torch says what is wrong
    if isinstance(shapes, Mapping):
        return {name: _spelled(each, given.get(name)) for name, each in shapes.items()}
    return _spelled(shapes, tuple(given.values()))


def _spelled(shapes: Any, given: object) -> Any:
    if isinstance(shapes, tuple | list) and isinstance(given, tuple | list) and len(shapes) == len(given):
        return type(shapes)(_spelled(*pair) for pair in zip(shapes, given, strict=True))
    return {} if shapes is None and isinstance(given, Tensor) else shapes


def _check_open(
    module: nn.Module, program: torch.onnx.ONNXProgram | None, args: tuple[object, ...], options: Keywords
) -> None:
    """Refuse a file that fixes a size which was to stay open: torch narrows dynamic shapes without a word."""
    shapes = options.get("dynamic_shapes")
    if program is None or not shapes:
        return
    given = inspect.signature(module.forward).bind(*args, **(options.get("kwargs") or {})).arguments
    named = shapes if isinstance(shapes, Mapping) else dict(zip(given, shapes, strict=False))
    asked = [each for name, tree in given.items() for each in _open(named.get(name), tree)]
    inputs = program.model.graph.inputs
    for wanted, value in zip(asked, inputs, strict=True) if len(asked) == len(inputs) else ():
        for dim in wanted:
            size = None if value.shape is None else value.shape[dim]
            if isinstance(size, int):
                raise ExportError(
                    f"dynamic_shapes leaves dimension {dim} of {value.name} open, and torch.export fixed it at {size}: "
                    "something in the model works for that size alone, as torch's own nn.LSTM, nn.GRU and nn.RNN do "
                    "for the number of steps (qnn.QuantLSTM and its kin do not). Replace that, leave the dimension "
                    f"out, or name it by a string, {{{dim}: 'size'}}, with which torch tries more."
                )


def _open(shapes: Any, given: object) -> list[list[int]]:
    """For each tensor of an argument the dimensions that are to stay open."""
    if isinstance(given, tuple | list):
        parts = shapes if isinstance(shapes, tuple | list) and len(shapes) == len(given) else [None] * len(given)
        return [each for pair in zip(parts, given, strict=True) for each in _open(*pair)]
    if not isinstance(given, Tensor):
        return []
    items = shapes.items() if isinstance(shapes, Mapping) else enumerate(shapes or ())
    return [[dim for dim, size in items if isinstance(size, str | Dim) or size == Dim.DYNAMIC]]


def _root(error: BaseException) -> BaseException:
    while error.__cause__ is not None:
        error = error.__cause__
    return error


Grids = dict[nn.Module, list[list[Grid | None]]]


def grids_of_layers(module: nn.Module, args: tuple[object, ...], kwargs: Mapping[str, object] | None) -> Grids:
    """For each layer that returns QuantTensors the grids of its results, for each call one by one."""
    owners = {part for part in module.modules() if any(isinstance(each, TensorQuant) for each in part.children())}
    grids: Grids = {part: [] for part in owners}

    def note(part: nn.Module, given: object, output: object) -> None:
        grids[part].append([grid_of(each) if isinstance(each, Tensor) else None for each in tree_leaves(output)])

    handles = [part.register_forward_hook(note) for part in owners]
    try:
        with torch.no_grad(), silent_quantizers():
            module(*args, **(kwargs or {}))
    finally:
        for handle in handles:
            handle.remove()
    return {part: calls for part, calls in grids.items() if any(grid is not None for call in calls for grid in call)}


@contextmanager
def handing_on(module: nn.Module, grids: Grids) -> Iterator[None]:
    """Layers that return QuantTensors while they are traced, too; the model as a whole returns plain tensors."""
    counts: dict[nn.Module, int] = {}

    def carry(part: nn.Module, given: object, output: object) -> object:
        index = counts.get(part, 0)
        counts[part] = index + 1
        leaves, form = tree_flatten(output)
        call = grids[part][index] if index < len(grids[part]) else [None] * len(leaves)
        return tree_unflatten([_carrying(*pair) for pair in zip(leaves, call, strict=True)], form)

    def plain(part: nn.Module, given: object, output: object) -> object:
        return tree_map(lambda each: values_of(each) if isinstance(each, Tensor) else each, output)

    handles = [module.register_forward_pre_hook(lambda *_: counts.clear())]
    handles += [part.register_forward_hook(carry) for part in grids]
    handles.append(module.register_forward_hook(plain))
    try:
        yield
    finally:
        for handle in handles:
            handle.remove()


def _carrying(leaf: Tensor, grid: Grid | None) -> Tensor:
    return leaf if grid is None else TracedQuantTensor.of(values_of(leaf), grid)


def _traced(
    module: nn.Module,
    quantizers: dict[str, TensorQuant],
    recording: Recording,
    args: tuple[object, ...],
    options: Keywords,
    emit: Emitter,
) -> torch.onnx.ONNXProgram:
    counts, stand_ins = Counts(), StandIns(quantizers, recording)
    surplus: list[str] = []

    def emitter(path: str) -> Intercept:
        def placed(quantizer: TensorQuant, x: Tensor, *context: object) -> tuple[Tensor, None]:
            index = counts.next(path)
            calls = recording.calls.get(path, [])
            if index >= len(calls):
                surplus.append(path)
                return x, None
            stored = stand_ins.of(calls[index])
            return (emit(calls[index], x) if stored is None else stored), None

        return placed

    handle = module.register_forward_pre_hook(lambda *_: counts.clear())  # torch may run forward more than once
    try:
        with intercepted(quantizers, emitter), loops_become(OnnxLoops()), quiet(), torch.no_grad():
            with unlisted(module, quantizers, recording), stand_ins.registered():
                program = torch.onnx.export(module, args, **{**options, "optimize": False, **_translating(options)})
            assert program is not None  # it is for dynamo=False only
            stand_ins.mark(program.model)
            if options.get("optimize", True):
                program.optimize()
    finally:
        handle.remove()
    missed = next((path for path in surplus if path not in recording.calls), None)
    if missed is not None:
        raise ExportError(
            f"{missed} is called while the model is traced, but not when it runs on the example input:\n  {missed}: "
            f"{unreached(missed, module, recording.calls)}"
        )
    if surplus:
        raise ExportError(
            f"{surplus[0]} is called more often while the model is traced than when it runs on the example input. Let "
            "the forward take the same path both times (no branch on torch.compiler.is_exporting())."
        )
    _check_open(module, program, args, options)
    _name_outputs(program.model, recording)
    _rename(program.model.graph, options)
    return program


def _rename(graph: Any, options: Keywords) -> None:
    """Give inputs and outputs the names that the user asked for, which further passes may have taken away.

    Up to torch 2.10, two outputs of one value got their own names only after these were given; and optimizing renames
    an input that is an output, too.
    """
    for output, name in zip(graph.outputs, options.get("output_names") or (), strict=False):
        output.name = name
    for value, name in zip(graph.inputs, options.get("input_names") or (), strict=False):
        for output in graph.outputs:
            if output.name == name and output is not value:
                output.name = f"{name}.output"
        value.name = name


def _name_outputs(model: Any, recording: Recording) -> None:
    """Outputs that quantizers make are called by these, and not by the operator that stands for them in the trace."""
    for output in model.graph.outputs:
        found = re.fullmatch(r"placeholder(?:_\d+)?(?:_(alias_\d+))?", output.name)
        node = output.producer()
        while node is not None and node.op_type == "Identity":  # one value returned twice
            node = node.inputs[0].producer()
        if found is not None and node is not None and node.domain == DOMAIN:
            path, index = node.attributes["path"].as_string(), node.attributes["index"].as_int()
            output.name = ".".join(filter(None, (recording.calls[path][index].name, found[1])))


def _placeholders(call: Call, x: Tensor) -> Tensor:
    if not (call.half_even or call.stored):
        x = call.quantizer.rounding(placeholder("Divide", call, x))  # type: ignore[operator]
    return placeholder("Quantize", call, x)


def _translating(options: Keywords) -> Keywords:
    """The user's own translations, and those of placeholders."""
    return {"custom_translation_table": {**(options.get("custom_translation_table") or {}), **translations()}}


@contextmanager
def quiet() -> Iterator[None]:
    """Without the exporter's notices about itself; errors pass."""
    logger = logging.getLogger("torch.onnx")
    level = logger.level
    with warnings.catch_warnings():
        for category in (DeprecationWarning, FutureWarning):
            warnings.simplefilter("ignore", category)
        warnings.filterwarnings("ignore", module=r"torch\.|onnxscript\.|onnx_ir\.")
        logger.setLevel(logging.ERROR)
        try:
            yield
        finally:
            logger.setLevel(level)
