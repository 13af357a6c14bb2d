"""An ONNX model in onnxruntime, with the integer codes of its quantized tensors as outputs."""

import os
from collections.abc import Iterator, Mapping, Sequence
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor
from torch.utils import _pytree

from ...qcore import values_of
from ...qcore.models import shown
from ..errors import ExportError
from ..optional import required

if TYPE_CHECKING:
    import onnx

__all__ = ["Session", "all_nodes", "codes_among", "loaded", "tensors_in", "with_codes"]


class Session:
    """One model, loaded with the runtime's graph optimizations off or on, on CPU.

    Args:
        model: an ``onnx.ModelProto``.
        optimize: all optimizations, or none.
        call: the function that the user called, which errors name.
        disabled: names of optimization passes that are left out.
    """

    def __init__(self, model: "onnx.ModelProto", optimize: bool, call: str, disabled: Sequence[str] = ()) -> None:
        runtime = required("onnxruntime", call)
        options = runtime.SessionOptions()
        levels = runtime.GraphOptimizationLevel
        options.graph_optimization_level = levels.ORT_ENABLE_ALL if optimize else levels.ORT_DISABLE_ALL
        options.log_severity_level = 4  # what fails is raised
        options.intra_op_num_threads = torch.get_num_threads()
        try:
            self.session = runtime.InferenceSession(
                model.SerializeToString(), options, ["CPUExecutionProvider"], disabled_optimizers=list(disabled)
            )
        except Exception as error:  # onnxruntime's have no base class of their own
            level = "on" if optimize else "off"
            raise ExportError(
                f"onnxruntime {runtime.__version__} does not load the exported model, optimizations {level}: {error}\n"
                "verify=False writes the file all the same, for other runtimes."
            ) from None
        self.inputs = [each.name for each in self.session.get_inputs()]
        self.shapes = [each.shape for each in self.session.get_inputs()]
        self.outputs = [each.name for each in self.session.get_outputs()]

    def run(self, inputs: Sequence[Tensor]) -> dict[str, Tensor]:
        """The outputs by name."""
        feed = {name: each.detach().cpu().numpy() for name, each in zip(self.inputs, inputs, strict=True)}
        found = self.session.run(None, feed)
        return {name: torch.as_tensor(each) for name, each in zip(self.outputs, found, strict=True)}


def loaded(call: str, program: Any) -> "onnx.ModelProto":
    """An exported model, however a user names it; ``call`` is the function that errors name."""
    onnx = required("onnx", call)
    if isinstance(program, (str, os.PathLike)):
        return onnx.load(os.fspath(program))
    proto = getattr(program, "model_proto", program)
    if not isinstance(proto, onnx.ModelProto):
        raise ExportError(
            f"{call}: program={shown(program)} is not an exported model. Pass what an export returned, the path of a "
            "file, or an onnx.ModelProto."
        )
    return proto


def tensors_in(tree: object) -> list[Tensor]:
    """The tensors of arguments or outputs, in order, plain."""
    return [values_of(each) for each in _pytree.tree_leaves(tree) if isinstance(each, Tensor)]


def all_nodes(graph: "onnx.GraphProto") -> Iterator["onnx.NodeProto"]:
    """The nodes of a graph, and those in the bodies of its loops."""
    for node in graph.node:
        yield node
        for body in _bodies(node):
            yield from all_nodes(body)


def _bodies(node: "onnx.NodeProto") -> list["onnx.GraphProto"]:
    return [each.g for each in node.attribute if each.HasField("g")]


def codes_among(found: Mapping[str, Tensor], names: Sequence[str]) -> dict[str, Tensor]:
    """The codes that a model of `with_codes` put out, int64, by the name of the quantizer's call.

    Those in the body of a loop have the steps as their first dimension.
    """
    return {
        name.removesuffix(".codes"): found[name if name in found else f"{name}.int32"].to(torch.int64) for name in names
    }


def with_codes(
    model: "onnx.ModelProto", call: str, only: Sequence[str] | None = None
) -> tuple["onnx.ModelProto", list[str]]:
    """A copy of a model that also puts out the codes of its activations, all or only some, and their names.

    Types that numpy lacks are cast to int32, and so are the codes in the bodies of Scans: those of all steps.
    """
    onnx = required("onnx", call)
    copy = onnx.ModelProto()
    copy.CopyFrom(model)
    types, helper = onnx.TensorProto, onnx.helper
    narrow = {types.INT2, types.UINT2, types.INT4, types.UINT4}
    known = {info.name: info.type.tensor_type.elem_type for info in copy.graph.value_info}
    names = []
    for name in _codes_in(copy.graph, only):
        kind = known[name]
        if kind in narrow:
            copy.graph.node.append(helper.make_node("Cast", [name], [f"{name}.int32"], to=types.INT32))
            copy.graph.output.append(helper.make_tensor_value_info(f"{name}.int32", types.INT32, None))
        else:
            copy.graph.output.append(helper.make_tensor_value_info(name, kind, None))
        names.append(name)
    for node in copy.graph.node:
        for body in _bodies(node) if node.op_type == "Scan" else ():
            for name in _codes_in(body, only):
                body.node.append(helper.make_node("Cast", [name], [f"{name}.step"], to=types.INT32))
                body.output.append(helper.make_tensor_value_info(f"{name}.step", types.INT32, None))
                node.output.append(f"{name}.int32")
                copy.graph.output.append(helper.make_tensor_value_info(f"{name}.int32", types.INT32, None))
                for each in node.attribute:
                    if each.name in ("scan_output_axes", "scan_output_directions"):
                        each.ints.append(0)
                names.append(name)
    return copy, names


def _codes_in(graph: "onnx.GraphProto", only: Sequence[str] | None) -> list[str]:
    """The names of the activations' codes in a graph, all or only some."""
    quantized = (node.output[0] for node in graph.node if node.op_type in ("QuantizeLinear", "Clip"))
    return [name for name in quantized if name.endswith(".codes") and (only is None or name in only)]
