"""Export to ONNX's integer operators: exact by construction."""

import ast
import os
from collections.abc import Mapping
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor, nn

from ....nn.contexts.intercepting import quantizers_of
from ....qcore.models import require_model
from ...capture.caveats import warn_of_caveats
from ...capture.model_state import evaluating, unchanged
from ...capture.record import record
from ...comparing.agreement import compare_exactly
from ...comparing.portion import tensors_in
from ...comparing.report import VerificationReport, VerificationRow
from ...errors import ExportError, with_causes
from ...onnx.check import check
from ...onnx.dialects import INTEGER
from ...onnx.exporter import checked_options
from ...onnx.lower import lower
from ...onnx.operators import check_operators
from ...onnx.protect import protect
from ...onnx.tracing.trace import trace
from ...onnx.write import fits_one_file, write
from ...optional import installed, required
from ...targets.doors import ONNX_INTEGER
from ..extraction import integers_of
from ..float_modules import FloatModule, remedy
from ..model import Integers
from ..reference.comparison import ExportedFile
from ..reference.run import IntegerRun, run_lowered
from .check import HEADLINE, check_layers, refuse_layers
from .lower import integerize

if TYPE_CHECKING:
    import onnx
    import onnx_ir as ir

__all__ = ["export_onnx_integer"]


def export_onnx_integer(
    module: nn.Module,
    args: Tensor | tuple[object, ...],
    export_path: str | os.PathLike[str] | None = None,
    *,
    verify: bool = True,
    **options: object,
) -> torch.onnx.ONNXProgram:
    """Export a model to ONNX with integer arithmetic: ``ConvInteger`` and ``MatMulInteger`` on 8-bit integers.

    A layer's products are summed in int32, its bias is added in int32, and one multiplication by the scale turns the
    sums to floats, which ``QuantizeLinear`` moves to the next grid. No sum of floats is left whose order could matter:
    the runtime's bits are those of `run_integers`, and of a model evaluated on integer-valued floats. Averages are sums
    of integers, too, and so are additions of tensors on one grid. Additions of tensors on different grids are done in
    floats, one rounding each, alike everywhere. Nothing else is computed in floats: a layer without quantizers, a batch
    norm that was not folded or a softmax is refused. Before the first quantizer numbers may be scaled and shifted.

    Args:
        module: a model with quantized layers, float32; left as it was.
        args: example input: one tensor, or a tuple of all positional arguments.
        export_path: the file to write; None only returns the program.
        verify: run the file in onnxruntime, where that is installed, and compare its bits with `run_integers`; a
            difference raises and no file is written.
        options: further keywords of `torch.onnx.export`.

    Returns:
        What `torch.onnx.export` returns.

    Raises:
        ExportError: layers that the dialect can't hold (all of them are listed: more than 8 bits, a float bias, an
            input without quantizer, whatever is computed in floats), or what
            `export_onnx_qcdq` raises.

    Example:
        >>> import bitwright.nn as qnn
        >>> from bitwright.quantizers import Int8Act, Int32Bias
        >>> layer = qnn.QuantLinear(8, 4, bias_quant=Int32Bias, input_quant=Int8Act(scale=0.1))
        >>> program = export_onnx_integer(nn.Sequential(layer), torch.randn(2, 8))
        >>> [node.op_type for node in program.model_proto.graph.node]
        ['QuantizeLinear', 'MatMulInteger', 'Add', 'Cast', 'Mul']
    """
    call = "export_onnx_integer"
    require_model(call, module, ExportError)
    export_path, given = checked_options(call, export_path, options)
    for package in ("onnx", "onnxscript"):
        required(package, call)
    arguments = args if isinstance(args, tuple) else (args,)
    kwargs = given.get("kwargs")
    quantizers = quantizers_of(module)
    with unchanged(module), evaluating(module):
        refuse_layers(module)
        recording = record(module, quantizers, arguments, kwargs)
        given["opset_version"] = check(recording, INTEGER, ONNX_INTEGER, given.get("opset_version"))
        warn_of_caveats(call, module, quantizers, recording.calls)
        found = integers_of(call, module, quantizers, recording, arguments, kwargs)
        check_layers(module, found)
        program = trace(module, quantizers, recording, arguments, given)
        check_operators(program)
        scopes = {str(value.name): _scope(node) for node in program.model.graph for value in node.outputs}
        lower(program.model, recording, INTEGER)
        _refuse_nodes(module, integerize(program.model, recording), scopes)
        protect(program.model)
        if verify and installed("onnxruntime") and fits_one_file(program.model):
            report = _verified(module, found, program.model_proto, arguments, kwargs)
            if not report.ok:
                raise ExportError(
                    f"{call}: onnxruntime does not reproduce the integers, so no file was written.\n{report}\n"
                    "Please report it. verify=False writes the file all the same."
                )
    if export_path is not None:
        write(program, export_path, given)
    return program


_ON_INTEGERS = {"AveragePool", "Conv", "Gemm", "GlobalAveragePool", "MatMul", "ReduceMean", "ReduceSum"}
_NARROWER = (
    "It takes integers of more than 8 bits or of several scales, and integer operators take 8 bits and one scale. Put "
    "a QuantIdentity in front of it."
)


def _scope(node: "ir.Node") -> str:
    """The path of the innermost module that a node was traced from."""
    names = ast.literal_eval(node.metadata_props.get("pkg.torch.onnx.name_scopes", "['', '']"))
    return names[-2].partition("@")[0] if len(names) > 1 else ""  # the last is the operator's; "@1" marks a second call


def _refuse_nodes(module: nn.Module, nodes: list[Any], scopes: dict[str, str]) -> None:
    """Refuse what is left of float arithmetic in the graph, by the modules that it was traced from."""
    found: dict[str, list[str]] = {}
    for node in nodes:
        path = scopes.get(node.outputs[0].name, "")
        found.setdefault(path, []).append(node.op_type)
    causes = []
    for path, kinds in found.items():
        each = FloatModule(path, type(module.get_submodule(path)).__name__, tuple(dict.fromkeys(kinds)), "between")
        causes.append(f"{each}. {_NARROWER if _ON_INTEGERS.issuperset(kinds) else remedy(each)}")
    if causes:
        raise ExportError(with_causes(HEADLINE, causes))


def _verified(
    module: nn.Module,
    found: Integers,
    proto: "onnx.ModelProto",
    args: tuple[object, ...],
    kwargs: Mapping[str, object] | None,
) -> VerificationReport:
    """Equal bits, with the runtime's optimizations off and on."""
    file, report = ExportedFile("export_onnx_integer", proto, tensors_in((args, kwargs or {}))), VerificationReport()
    own = run_lowered(module, quantizers_of(module), found.quantized(), args, kwargs)
    for optimizations in ("off", "on"):
        report.add(_bits(file, own, optimizations))
    return report


def _bits(file: ExportedFile, own: IntegerRun, optimizations: str) -> list[VerificationRow]:
    codes, outputs, plain = file.codes_and_outputs(optimizations)
    rows = [
        compare_exactly(name, "activation", optimizations, own.codes[name], each.reshape(own.codes[name].shape))
        for name, each in codes.items()
        if name in own.codes
    ]
    expected = tensors_in(own.outputs)
    for kind, found in ((optimizations, outputs), ("plain", plain)):
        if found:  # the file as it is runs with optimizations only
            pairs = zip(expected, found.items(), strict=True)
            rows += [compare_exactly(name, "output", kind, one, other) for one, (name, other) in pairs]
    return rows
