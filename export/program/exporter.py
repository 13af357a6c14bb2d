"""The public call: a quantized model as a program of torch.export."""

import os
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn
from torch.export import ExportedProgram

from ...nn.contexts.intercepting import quantizers_of
from ...qcore.models import require_model
from ..arguments import checked_inputs, checks_keywords, require_flag, require_path_or_none
from ..capture.caveats import warn_of_caveats
from ..capture.model_state import evaluating, unchanged
from ..capture.record import record
from ..errors import ExportError
from ..paths import require_folder
from .check import check
from .tidy import tidied
from .trace import trace
from .verify import compare_with_program

__all__ = ["export_program"]


@checks_keywords
def export_program(
    module: nn.Module,
    args: Tensor | tuple[object, ...],
    export_path: str | os.PathLike[str] | None = None,
    *,
    kwargs: Mapping[str, object] | None = None,
    dynamic_shapes: Any = None,
    verify: bool = True,
    exact: bool = False,
) -> ExportedProgram:
    """Export a quantized model as a `torch.export.ExportedProgram` with operators of ``quantized_decomposed``.

    Quantizers become ``torch.ops.quantized_decomposed.quantize_*`` and ``dequantize_*``, per tensor, channel, token or
    group: what the quantization passes of Inductor and ExecuTorch read. Weights and biases are stored as
    integers alone. Number formats that have no such operators are stored as codes or 8-bit floats, and dequantized by
    plain operators of torch.

    The program runs without bitwright, in a process that imports ``torch.ao.quantization.fx._decomposed``, also after
    ``torch.export.save`` and ``load``. It shares no tensor with the model.

    ``quantize_*`` of torch multiplies by the reciprocal of the scale, where the model divides by the scale. A value
    that lies on a rounding boundary may therefore go to the other side of it; verification counts it as a tie flip.
    ``exact=True`` excludes this.

    Args:
        module: the model; evaluated, and left as it was.
        args: an example input, or a tuple of the positional arguments.
        export_path: a ``.pt2`` file to write, or None.
        kwargs: keyword arguments.
        dynamic_shapes: sizes to leave open, as `torch.export.export` takes them.
        verify: compare the program with the model on the example input, see `verify_program`.
        exact: round ``x / scale``, as the model does, before the ``quantize`` operators of activations. They find
            integers then, and all codes are the model's. This takes three more operators for each quantizer, and keeps
            passes from fusing it with the layer before.

    Returns:
        The program. ``program.module()`` is callable.

    Raises:
        ExportError: with all the quantizers that can't be expressed, before anything is traced; or the program does
            not agree with the model. No file is written then.

    Example:
        >>> import bitwright.nn as qnn
        >>> layer = qnn.QuantLinear(8, 4, bias=False, weight_bit_width=4)
        >>> program = export_program(layer, torch.randn(2, 8))
        >>> program.state_dict["weight_quant.codes"].dtype
        torch.int8
        >>> [node.name for node in program.graph.nodes]
        ['b_weight_quant_codes', 'input', 'values_weight_quant', 'linear', 'output']
    """
    require_model("export_program", module, ExportError)
    _check_path(export_path)
    require_flag("export_program", verify=verify, exact=exact)
    arguments = checked_inputs("export_program", "args", args, kwargs, module)
    if not isinstance(dynamic_shapes, Mapping | tuple | list | None):
        raise ExportError(
            f"export_program(dynamic_shapes={dynamic_shapes!r}): write one entry for each argument of the model, such "
            'as dynamic_shapes=({0: torch.export.Dim("batch")},).'
        )
    quantizers = quantizers_of(module)
    with unchanged(module), evaluating(module):
        recording = record(module, quantizers, arguments, kwargs)
        check(recording)
        warn_of_caveats("export_program", module, quantizers, recording.calls)
        program = tidied(trace(module, quantizers, recording, arguments, kwargs, dynamic_shapes, exact))
        if verify:
            report, _ = compare_with_program("export_program", module, quantizers, program, arguments, kwargs)
            if not report.ok:
                raise ExportError(
                    f"export_program: the program does not reproduce the model, so nothing was written.\n{report}\n"
                    "Please report it. verify=False returns the program all the same."
                )
    if export_path is not None:
        torch.export.save(program, export_path)
    return program


def _check_path(path: str | os.PathLike[str] | None) -> None:
    require_path_or_none("export_program", path)
    if path is None:
        return
    if Path(path).suffix != ".pt2":
        raise ExportError(f"export_program(export_path={str(path)!r}): torch.export writes files named *.pt2.")
    require_folder("export_program", path)
