"""The export to QONNX: check, record, trace, lower, clean, verify, write."""

import os

import torch
from torch import Tensor, nn

from ...nn.contexts.intercepting import quantizers_of
from ...qcore.aliases import Keywords
from ...qcore.models import require_model
from ..arguments import checked_inputs, checks_keywords, require_flag, require_path_or_none
from ..capture.caveats import warn_of_caveats, warn_user
from ..capture.model_state import evaluating, unchanged
from ..capture.record import Call, record
from ..errors import ExportError
from ..onnx.exporter import checked_options
from ..onnx.operators import check_operators, refusing_packed
from ..onnx.tracing.placeholder import placeholder
from ..onnx.tracing.trace import trace
from ..onnx.write import fits_one_file, write
from ..optional import installed, required
from .check import check
from .cleaning import clean
from .lower import lower
from .verify import compare_with_executor

__all__ = ["export_qonnx"]

OPSET = 18  # the oldest that torch.onnx.export writes without converting, which FINN's onnx has, too


@checks_keywords
def export_qonnx(
    module: nn.Module,
    args: Tensor | tuple[object, ...],
    export_path: str | os.PathLike[str] | None = None,
    *,
    verify: bool = True,
    **options: object,
) -> torch.onnx.ONNXProgram:
    """Export a model to QONNX, as FINN and hls4ml read it: ``Quant``, ``BipolarQuant`` and ``Trunc`` nodes.

    Weights and biases stay float initializers with a node behind them; where the node does not make the model's
    integers of them, as with roundings and transforms of one's own, the file holds the values of these. Scales, and
    bit widths as they stand, are initializers of the nodes. A batch norm stays a ``BatchNormalization``;
    `bitwright.graph.fold_batch_norms` folds it beforehand. The result is clean: shapes are known, ``Gemm`` is
    ``MatMul`` and ``Add``, constants are folded, and names are unique and such as C takes.

    Args:
        module: a model with quantized layers, float32; left as it was.
        args: example input: one tensor, or a tuple of all positional arguments. Its shapes are those of the file.
        export_path: the file to write; None only returns the program.
        verify: run the file in the executor of the package qonnx, where that is installed, and compare every quantized
            tensor with torch's, see `verify_qonnx`; a difference raises and no file is written. What is too large
            for one file of 2 GB is written without, and a warning says so.
        options: further keywords of `torch.onnx.export`, such as ``kwargs``, ``input_names`` or ``opset_version``
            (by default 18). ``dynamic_shapes`` is refused.

    Returns:
        What `torch.onnx.export` returns: ``program.model_proto``, ``program.save(...)``.

    Raises:
        ExportError: something that the readers can't take (all of it is listed), an unknown keyword, a package that is
            not installed, or a file that disagrees with the model. What was there before is untouched.

    Example:
        >>> import bitwright.nn as qnn
        >>> model = nn.Sequential(qnn.QuantLinear(8, 4, weight_bit_width=4), qnn.QuantReLU(bit_width=4, scale=0.1))
        >>> program = export_qonnx(model, torch.randn(1, 8))
        >>> [node.op_type for node in program.model_proto.graph.node]
        ['Quant', 'MatMul', 'Add', 'Relu', 'Quant']
    """
    call = "export_qonnx"
    require_model(call, module, ExportError)
    require_path_or_none(call, export_path)
    require_flag(call, verify=verify)
    if "fast" in options:
        raise ExportError(f"{call}(fast=...) is not possible: FINN and hls4ml run the file. Leave it out.")
    path, given = checked_options(call, export_path, options)
    _check_options(call, given)
    if given.get("dynamic_shapes"):
        raise ExportError(
            f"{call}(dynamic_shapes=...) is not possible: QONNX's readers need fixed shapes. Leave it out, and pass "
            "args of the batch size that the file is to have."
        )
    for package in ("onnx", "onnxscript"):
        required(package, call)
    kwargs = given.get("kwargs")
    arguments = checked_inputs(call, "args", args, kwargs, module)
    quantizers = quantizers_of(module)
    given["opset_version"] = given.get("opset_version") or OPSET
    with unchanged(module), evaluating(module):
        with refusing_packed(call, module):
            recording = record(module, quantizers, arguments, kwargs)
        check(module, recording)
        warn_of_caveats(call, module, quantizers, recording.calls)
        program = trace(module, quantizers, recording, arguments, given, _placeholder)
        _check_names(call, given, program)
        check_operators(program)
        lower(program.model, recording)
        clean(program.model, given.get("output_names") or ())
        compared = verify and installed("qonnx")
        if compared and not fits_one_file(program.model):
            warn_user(
                f"{call}: the weights don't fit into one file of 2 GB, which the qonnx executor needs, so the file was "
                "not compared with the model. verify=False says the same without this warning."
            )
        elif compared:
            report, _ = compare_with_executor(call, module, quantizers, program.model_proto, arguments, kwargs)
            if not report.ok:
                raise ExportError(
                    f"{call}: the qonnx executor does not reproduce the model, so no file was written.\n{report}\n"
                    "Please report it. verify=False writes the file all the same."
                )
    if path is not None:
        write(program, path, given)
    return program


def _check_options(call: str, given: Keywords) -> None:
    opset = given.get("opset_version")
    if opset is not None and (not isinstance(opset, int) or opset < OPSET):
        raise ExportError(f"{call}(opset_version={opset!r}): write a whole number, {OPSET} or more, or leave it out.")
    for name in ("input_names", "output_names"):
        names = given.get(name)
        if names is not None and (isinstance(names, str) or not all(isinstance(each, str) for each in names)):
            raise ExportError(f"{call}({name}={names!r}): write a list of names, such as {name}=['image'].")


def _check_names(call: str, given: Keywords, program: torch.onnx.ONNXProgram) -> None:
    graph = program.model.graph
    for name, values in (("input_names", graph.inputs), ("output_names", graph.outputs)):
        names = given.get(name)
        if names is not None and len(names) > len(values):
            found = ", ".join(str(each.name) for each in values)
            raise ExportError(
                f"{call}({name}={list(names)!r}): the model has {len(values)}: {found}. Give no more names than that."
            )


def _placeholder(call: Call, x: Tensor) -> Tensor:
    return placeholder("Quantize", call, x)
