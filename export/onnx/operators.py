"""Operations that torch's ONNX exporter writes as something else: it drops an argument (torch 2.13, by experiment)."""

import math
from collections.abc import Callable, Iterator
from contextlib import contextmanager

import torch
from torch import nn
from torch.nn.utils.rnn import PackedSequence

from ...qcore.aliases import Arguments, Keywords
from ...qcore.locate import path_of
from ..errors import ExportError, with_causes

__all__ = ["check_operators", "refusing_packed"]


def check_operators(program: torch.onnx.ONNXProgram) -> None:
    """Refuse operations that the file does not compute as torch does.

    Args:
        program: what `torch.onnx.export` returned.

    Raises:
        ExportError: with one line for each operation: the module, what is dropped, what to write instead.
    """
    exported = program.exported_program
    causes: dict[str, None] = {}
    for node in [] if exported is None else exported.graph.nodes:
        rule = _RULES.get(str(node.target))
        problem = None if rule is None else rule(_arguments(node))
        if problem is not None:
            causes[f"{_module_of(node)}: {problem}"] = None
    if causes:
        count = f"{len(causes)} operation{'s' * (len(causes) > 1)}"
        raise ExportError(
            with_causes(f"torch.onnx.export would write {count} of this model as something else:", list(causes))
        )


@contextmanager
def refusing_packed(call: str, module: nn.Module) -> Iterator[None]:
    """Refuse a PackedSequence that reaches a recurrent layer: a file takes tensors, and its steps one batch size."""

    def check(part: nn.Module, args: Arguments, kwargs: Keywords) -> None:
        if any(isinstance(each, PackedSequence) for each in (*args, *kwargs.values())):
            raise ExportError(
                f"{call}: {path_of(part)} gets a PackedSequence, and a file takes tensors of one length. Export with a "
                "padded tensor: pass torch.nn.utils.rnn.pad_packed_sequence(x)[0], or leave out pack_padded_sequence."
            )

    layers = (each for each in module.modules() if isinstance(each, nn.RNNBase))
    handles = [each.register_forward_pre_hook(check, with_kwargs=True) for each in layers]
    try:
        yield
    finally:
        for handle in handles:
            handle.remove()


def _arguments(node: torch.fx.Node) -> Keywords:
    """Every argument of a traced operation by its name in the schema; tensors as the values of the trace."""
    schema = node.target._schema.arguments  # type: ignore[union-attr]
    given = dict(zip((each.name for each in schema), node.args, strict=False)) | node.kwargs
    found = {each.name: given.get(each.name, each.default_value) for each in schema}
    return {name: torch.fx.map_arg(each, lambda other: other.meta.get("val")) for name, each in found.items()}


def _module_of(node: torch.fx.Node) -> str:
    """The path and class of the innermost module that an operation is in."""
    *_, (path, kind) = node.meta.get("nn_module_stack", {"": ("", "")}).values()
    name = kind if isinstance(kind, str) else kind.__name__
    return f"{path or 'the model'} ({name.rpartition('.')[2]})"


def _pooling(given: Keywords) -> str | None:
    divisor, size = given["divisor_override"], math.prod(given["kernel_size"])
    padded = given["padding"] not in (0, [0] * len(given["kernel_size"]))
    whole = not given["ceil_mode"] and (given["count_include_pad"] or not padded)
    if divisor is None or (divisor == size and whole):
        return None
    return (
        f"average pooling with divisor_override={divisor}, which it drops. Write it without ceil_mode, with "
        f"count_include_pad=True, and multiply: avg_pool(x) * ({size} / {divisor})."
    )


def _resizing(given: Keywords) -> str | None:
    scales = [given.get(name) for name in ("scales_h", "scales_w")]
    sizes = zip(given["self"].shape[-2:], given["output_size"], scales, strict=True)
    if given["align_corners"]:
        return (
            "interpolate(antialias=True, align_corners=True), whose corners it does not align. Write "
            "align_corners=False, or antialias=False."
        )
    if not all(_is_whole(*each) for each in sizes):
        return (
            "interpolate(antialias=True) by a factor that gives no whole size, which it counts otherwise. Write "
            "recompute_scale_factor=True, or size= in place of scale_factor=."
        )
    return None


def _is_whole(before: int | torch.SymInt, after: int | torch.SymInt, scale: float | None) -> bool:
    """Whether a size times a scale is the size that comes out: for every size, where it is left open."""
    if scale is None or float(scale).is_integer():
        return True
    return isinstance(before, int) and isinstance(after, int) and math.isclose(before * scale, after)


def _projecting(given: Keywords) -> str | None:
    matrices = 4 if given["has_biases"] else 2
    cells = given["num_layers"] * (2 if given["bidirectional"] else 1)
    if len(given["params"]) == matrices * cells:
        return None
    return "an LSTM with proj_size, whose projection it drops. Write proj_size=0 and a linear layer behind it."


_RULES: dict[str, Callable[[Keywords], str | None]] = {
    "aten.avg_pool2d.default": _pooling,
    "aten.avg_pool3d.default": _pooling,
    "aten._upsample_bilinear2d_aa.default": _resizing,
    "aten._upsample_bicubic2d_aa.default": _resizing,
    "aten.lstm.input": _projecting,
}
