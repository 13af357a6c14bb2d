"""An ONNX model in onnxruntime, with the integer codes of its quantized tensors as outputs."""

from collections.abc import Sequence
from typing import TYPE_CHECKING

import torch
from torch import Tensor

from ..errors import ExportError
from ..optional import required

if TYPE_CHECKING:
    import onnx

__all__ = ["Session", "with_codes"]


class Session:
    """One model, loaded with the runtime's graph optimizations off or on, on CPU.

    Args:
        model: an ``onnx.ModelProto``.
        optimize: all optimizations, or none.
        folder: where external data lies, or None.
    """

    def __init__(self, model: "onnx.ModelProto", optimize: bool) -> None:
        runtime = required("onnxruntime", "verify_onnx")
        options = runtime.SessionOptions()
        levels = runtime.GraphOptimizationLevel
        options.graph_optimization_level = levels.ORT_ENABLE_ALL if optimize else levels.ORT_DISABLE_ALL
        options.log_severity_level = 4  # what fails is raised
        options.intra_op_num_threads = torch.get_num_threads()
        try:
            self.session = runtime.InferenceSession(model.SerializeToString(), options, ["CPUExecutionProvider"])
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


def with_codes(model: "onnx.ModelProto") -> tuple["onnx.ModelProto", list[str]]:
    """A copy of a model that also puts out the codes of its activations, and their names.

    Types that numpy lacks are cast to int32.
    """
    onnx = required("onnx", "verify_onnx")
    copy = onnx.ModelProto()
    copy.CopyFrom(model)
    types, helper = onnx.TensorProto, onnx.helper
    narrow = {types.INT2, types.UINT2, types.INT4, types.UINT4}
    known = {info.name: info.type.tensor_type.elem_type for info in copy.graph.value_info}
    names = []
    for node in list(copy.graph.node):
        if node.op_type not in ("QuantizeLinear", "Clip") or not node.output[0].endswith(".codes"):
            continue
        name, kind = node.output[0], known[node.output[0]]
        if kind in narrow:
            copy.graph.node.append(helper.make_node("Cast", [name], [f"{name}.int32"], to=types.INT32))
            copy.graph.output.append(helper.make_tensor_value_info(f"{name}.int32", types.INT32, None))
        else:
            copy.graph.output.append(helper.make_tensor_value_info(name, kind, None))
        names.append(name)
    return copy, names
