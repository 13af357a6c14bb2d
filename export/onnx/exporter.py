"""The exports that users call: check, record, trace, lower, verify, write."""

import inspect
import os
from collections.abc import Collection, Mapping

import torch
from torch import Tensor, nn

from ...nn.contexts.intercepting import quantizers_of
from ...qcore.aliases import Keywords
from ...qcore.errors import nearest
from ...qcore.models import require_model
from ..capture.caveats import warn_of_caveats
from ..capture.model_state import evaluating, unchanged
from ..capture.record import record
from ..comparing.report import VerificationReport
from ..errors import ExportError
from ..optional import installed, required
from ..paths import require_folder
from ..targets.doors import ONNX_QCDQ, ONNX_QDQ
from .activations.placeholders import emitter
from .activations.untraceable import naming_untraceable
from .check import check
from .dialects import QCDQ, QDQ, Dialect
from .lower import lower
from .operators import check_operators, refusing_packed
from .protect import protect
from .runtime.acceptance import accept
from .runtime.kernels import hasten
from .tracing.trace import trace
from .verify import compare_with_file
from .write import write

__all__ = ["checked_options", "export_onnx_qcdq", "export_onnx_qdq"]


def export_onnx_qcdq(
    module: nn.Module,
    args: Tensor | tuple[object, ...],
    export_path: str | os.PathLike[str] | None = None,
    *,
    verify: bool = True,
    fast: bool = False,
    **options: object,
) -> torch.onnx.ONNXProgram:
    """Export a model to ONNX as QuantizeLinear, Clip and DequantizeLinear nodes, in 8- and 16-bit integers.

    Weights and biases are stored as integers. A tensor of fewer bits than its type goes through Clip, so that a reader
    of the file sees its width. The model is exported as it evaluates, whatever mode it is in, and is left as it was.

    Args:
        module: a model with quantized layers, float32.
        args: example input: one tensor, or a tuple of all positional arguments.
        export_path: the file to write; None only returns the program.
        verify: run the model in onnxruntime, where that is installed, and compare every quantized tensor with torch's,
            see `verify_onnx`; a difference raises and no file is written.
        fast: write the file for onnxruntime's integer kernels, which round in other places: integers may be off by one.
            A `BitwrightWarning` says how many are, how far off outputs are, and how often the top class is the same;
            only what such roundings can't explain is an error. Integers of fewer bits are computed with as integers of
            8.
        options: further keywords of `torch.onnx.export`, such as ``kwargs``, ``input_names``, ``dynamic_shapes`` or
            ``opset_version`` (by default the oldest that will do).

    Returns:
        What `torch.onnx.export` returns: ``program.model_proto``, ``program.save(...)``.

    Raises:
        ExportError: something that the format can't hold (all of it is listed), an unknown keyword, a package that is
            not installed, or a file that disagrees with the model. What was there before is untouched.

    Example:
        >>> import bitwright.nn as qnn
        >>> model = nn.Sequential(qnn.QuantLinear(8, 4, weight_bit_width=4), nn.ReLU())
        >>> program = export_onnx_qcdq(model, torch.randn(2, 8))
        >>> [node.op_type for node in program.model_proto.graph.node]
        ['Clip', 'DequantizeLinear', 'Gemm', 'Relu']
    """
    return _export(QCDQ, module, args, export_path, verify, options, _speed("export_onnx_qcdq", fast, 4))


def export_onnx_qdq(
    module: nn.Module,
    args: Tensor | tuple[object, ...],
    export_path: str | os.PathLike[str] | None = None,
    *,
    verify: bool = True,
    fast: bool = False,
    accuracy_level: int = 4,
    **options: object,
) -> torch.onnx.ONNXProgram:
    """Export a model to ONNX in its narrow types: (U)INT2, (U)INT4, (U)INT8, (U)INT16, and the 8-bit floats.

    A width that is not a type takes the next wider one, and values are clipped before they are quantized. Weights in
    other number formats are stored in a type that has all their levels, or as codes beside a table of them, whichever
    takes fewer bits; `storage_report` says how. Narrow types are young: 8-bit floats need opset 19, 16 and 4 bits
    opset 21, 2 bits opset 25. The rest is as in `export_onnx_qcdq`.

    Activations in 8-bit floats (opset 19) are QuantizeLinear nodes, too. Those in other number formats are computed by
    the format's own arithmetic, and so are scales that follow the input.

    Args:
        module: a model with quantized layers, float32.
        args: example input: one tensor, or a tuple of all positional arguments.
        export_path: the file to write; None only returns the program.
        verify: compare the result with torch's in onnxruntime, where that is installed.
        fast: write the file for onnxruntime's integer kernels, as in `export_onnx_qcdq`. Matrix products with weights
            alone quantized become ``MatMulNBits``, an operator of onnxruntime; the file is verified twice, first with
            ``accuracy_level=1``.
        accuracy_level: of these: 4 rounds their inputs to 8 bits, 1 computes in float32.
        options: further keywords of `torch.onnx.export`.

    Returns:
        What `torch.onnx.export` returns.

    Raises:
        ExportError: as for `export_onnx_qcdq`.

    Example:
        >>> import bitwright.nn as qnn
        >>> program = export_onnx_qdq(qnn.QuantLinear(8, 4, bias=False, weight_bit_width=4), torch.randn(2, 8))
        >>> program.model.graph.initializers["weight_quant.codes"].dtype.name
        'INT4'
    """
    return _export(QDQ, module, args, export_path, verify, options, _speed("export_onnx_qdq", fast, accuracy_level))


def _speed(call: str, fast: bool, accuracy_level: int) -> int | None:
    """The accuracy level of a fast file; None for an exact one."""
    if not isinstance(fast, bool):
        raise ExportError(f"{call}(fast={fast!r}) is not possible. Write fast=True or fast=False.")
    if type(accuracy_level) is not int or accuracy_level not in (1, 4):
        raise ExportError(
            f"{call}(accuracy_level={accuracy_level!r}) is not possible. Write 4, with which MatMulNBits rounds its "
            "inputs to 8 bits, or 1, with which it computes in float32."
        )
    if accuracy_level == 1 and not fast:
        raise ExportError(
            f"{call}(accuracy_level=1) has no effect without fast=True, which writes MatMulNBits. Give both, or "
            "neither."
        )
    return accuracy_level if fast else None


_OWN = {"QCDQ": ("export_path", "fast", "verify"), "QDQ": ("accuracy_level", "export_path", "fast", "verify")}
_TARGETS = {each.name: each for each in (ONNX_QCDQ, ONNX_QDQ)}


def _export(
    dialect: Dialect,
    module: nn.Module,
    args: Tensor | tuple[object, ...],
    path: str | os.PathLike[str] | None,
    verify: bool,
    given: Mapping[str, object],
    speed: int | None,
) -> torch.onnx.ONNXProgram:
    call = f"export_onnx_{dialect.name.lower()}"
    require_model(call, module, ExportError)
    path, options = checked_options(call, path, given, _OWN[dialect.name])
    for package in ("onnx", "onnxscript"):
        required(package, call)
    arguments = args if isinstance(args, tuple) else (args,)
    kwargs = options.get("kwargs")
    quantizers = quantizers_of(module)
    with unchanged(module), evaluating(module):
        with refusing_packed(call, module):
            recording = record(module, quantizers, arguments, kwargs)
        options["opset_version"] = check(recording, dialect, _TARGETS[dialect.name], options.get("opset_version"))
        warn_of_caveats(call, module, quantizers, recording.calls)
        with naming_untraceable(recording, dialect):
            program = trace(module, quantizers, recording, arguments, options, emitter(dialect))
        check_operators(program)
        lower(program.model, recording, dialect)
        if speed is None:
            protect(program.model)
        else:
            hasten(program.model)

        def compared() -> VerificationReport:
            return compare_with_file(call, module, quantizers, program, arguments, kwargs, recording=recording)[0]

        verifies = verify and installed("onnxruntime")
        if speed is not None:
            accept(call, program.model, speed, compared if verifies else None)
        elif verifies:
            _judge(call, compared())
    if path is not None:
        write(program, path, options)
    return program


def _judge(call: str, report: VerificationReport) -> None:
    """Raise if a file is another model."""
    if not report.ok:
        raise ExportError(
            f"{call}: onnxruntime does not reproduce the model, so no file was written.\n{report}\n"
            "Please report it. verify=False writes the file all the same."
        )


_FIXED = {
    "model": "module, the first argument",
    "dynamo": "no dynamo: exports go through torch.export",
    "input_shape": "args=torch.randn(input_shape)",
    "input_t": "args=input_t",
    "disable_warnings": "nothing: there are none to disable",
    "export_weight_q_node": "nothing: weights are stored as integers",
}


_OF_OTHERS = {"fast": "export_onnx_qcdq and export_onnx_qdq", "accuracy_level": "export_onnx_qdq"}


def checked_options(
    call: str,
    path: str | os.PathLike[str] | None,
    given: Mapping[str, object],
    own: Collection[str] = ("export_path", "verify"),
) -> tuple[str | os.PathLike[str] | None, Keywords]:
    """The path and the keywords for torch, or an error for one that torch does not know.

    Args:
        call: the function that the user called.
        path: its ``export_path``.
        given: further keywords.
        own: keywords of the function, which may be meant by others.
    """
    known = set(inspect.signature(torch.onnx.export).parameters)
    options: Keywords = dict(given)
    if "f" in options:
        if path is not None:
            raise ExportError(f"{call}: export_path={path!r} and f={options['f']!r} are the same setting. Give one.")
        path = options.pop("f")
    for name in options:
        if name in _FIXED and not (name == "dynamo" and options[name] is True):
            raise ExportError(f"{call}({name}=...) is not possible. Write {_FIXED[name]}.")
        if name in _OF_OTHERS:
            raise ExportError(f"{call}({name}=...) is not possible. It is a keyword of {_OF_OTHERS[name]}.")
        if name not in known:
            close = nearest(name, known - {"model", "args", "f"} | {*own})
            hint = f" Did you mean {close}?" if close else " help(torch.onnx.export) lists them."
            raise ExportError(f"{call}({name}=...) is no keyword of torch.onnx.export.{hint}")
    if path is not None:
        require_folder(call, path)
    options.setdefault("verbose", False)
    return path, options
