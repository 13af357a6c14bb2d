"""An ONNX model in onnxruntime, with the integer codes of its quantized tensors as outputs."""

import os
from collections.abc import Callable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor

from ...qcore.models import shown
from ..errors import ExportError
from ..optional import required
from ..paths import require_file
from .inputs import require_input

if TYPE_CHECKING:
    import onnx

__all__ = ["Session", "all_nodes", "codes_among", "loaded", "with_activations", "with_codes"]


class Session:
    """One model, loaded with the runtime's graph optimizations off or on, on CPU.

    Args:
        model: an ``onnx.ModelProto``.
        optimize: all optimizations, or none.
        call: the function that the user called, which errors name.
        disabled: names of optimization passes that are left out.
        folder: where the data files of the model lie, if it has some; the runtime maps them.
    """

    def __init__(
        self,
        model: "onnx.ModelProto",
        optimize: bool,
        call: str,
        disabled: Sequence[str] = (),
        folder: Path | None = None,
    ) -> None:
        self.call = call
        runtime = required("onnxruntime", call)
        options = runtime.SessionOptions()
        levels = runtime.GraphOptimizationLevel
        options.graph_optimization_level = levels.ORT_ENABLE_ALL if optimize else levels.ORT_DISABLE_ALL
        options.log_severity_level = 4  # what fails is raised
        options.intra_op_num_threads = torch.get_num_threads()
        options.enable_cpu_mem_arena = options.enable_mem_pattern = False  # what a run took is free after it
        options.execution_order = runtime.ExecutionOrder.PRIORITY_BASED  # else all weights are dequantized at first
        if folder is not None:
            options.add_session_config_entry("session.model_external_initializers_file_folder_path", str(folder))
        try:
            self.session = runtime.InferenceSession(
                model.SerializeToString(), options, ["CPUExecutionProvider"], disabled_optimizers=list(disabled)
            )
        except Exception as error:  # onnxruntime's have no base class of their own
            level = "on" if optimize else "off"
            said = f"onnxruntime {runtime.__version__} does not load the exported model, optimizations {level}: {error}"
            if call.startswith("export"):
                said += "\nverify=False writes the file all the same, for other runtimes."
            raise ExportError(said) from None
        self.inputs = [each.name for each in self.session.get_inputs()]
        self.outputs = [each.name for each in self.session.get_outputs()]

    def run(self, inputs: Sequence[Tensor]) -> dict[str, Tensor]:
        """The outputs by name.

        Raises:
            ExportError: inputs of another number, type or shape than the file takes.
        """
        self._check(inputs)
        feed = {name: each.detach().cpu().numpy() for name, each in zip(self.inputs, inputs, strict=True)}
        found = self.session.run(None, feed)
        return {name: torch.as_tensor(each) for name, each in zip(self.outputs, found, strict=True)}

    def _check(self, inputs: Sequence[Tensor]) -> None:
        if len(inputs) != len(self.inputs):
            raise ExportError(
                f"{self.call}: the inputs hold {len(inputs)} tensors, and the file takes {len(self.inputs)}: "
                f"{', '.join(self.inputs)}. Pass what the model was exported with."
            )
        for taken, each in zip(self.session.get_inputs(), inputs, strict=True):
            require_input(self.call, taken, each)


def loaded(call: str, program: Any) -> "onnx.ModelProto":
    """An exported model, however a user names it; ``call`` is the function that errors name."""
    onnx = required("onnx", call)
    if isinstance(program, (str, os.PathLike)):
        return onnx.load(require_file(call, program))
    proto = getattr(program, "model_proto", program)
    if not isinstance(proto, onnx.ModelProto):
        raise ExportError(
            f"{call}: program={shown(program)} is not an exported model. Pass what an export returned, the path of a "
            "file, or an onnx.ModelProto."
        )
    return proto


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
        name.removesuffix(".codes"): found[next(each for each in _shown(name) if each in found)].to(torch.int64)
        for name in names
    }


def with_codes(
    model: "onnx.ModelProto", call: str, only: Sequence[str] | None = None
) -> tuple["onnx.ModelProto", list[str]]:
    """A copy of a model that also puts out the codes of its activations, all or only some, and their names.

    Types that numpy lacks are cast to bytes, and the codes in the bodies of Scans to int32: those of all steps.
    """

    def wanted(node: "onnx.NodeProto") -> bool:
        return _computes(node, "codes") and (only is None or node.output[0] in only)

    copy, outputs = _with_outputs(model, call, wanted)
    return copy, list(outputs)


def with_activations(model: "onnx.ModelProto", call: str) -> tuple["onnx.ModelProto", dict[str, str]]:
    """A copy of a model that puts out all that is worked out of its activations at run time.

    Returns:
        The copy; and by name of a tensor, such as ``act.codes``, ``act.levels``, ``act.scale`` or ``act.zero_point``,
        the output. Types that numpy lacks are cast to bytes or float32; those in the bodies of Scans are of all steps.
    """
    return _with_outputs(model, call, lambda node: any(_computes(node, role) for role in _COMPUTED))


_COMPUTED = {
    "codes": ("QuantizeLinear", "Clip"),
    "levels": ("Identity",),
    "scale": ("Identity",),
    "zero_point": ("Identity", "Cast"),
}


def _computes(node: "onnx.NodeProto", role: str) -> bool:
    """Whether a node works out a part of a quantized activation."""
    return node.op_type in _COMPUTED[role] and node.output[0].endswith(f".{role}")


def _with_outputs(
    model: "onnx.ModelProto", call: str, wanted: Callable[["onnx.NodeProto"], bool]
) -> tuple["onnx.ModelProto", dict[str, str]]:
    onnx = required("onnx", call)
    copy = onnx.ModelProto()
    copy.CopyFrom(model)
    types, helper = onnx.TensorProto, onnx.helper
    cast = dict.fromkeys((types.INT2, types.INT4), types.INT8)
    cast |= dict.fromkeys((types.UINT2, types.UINT4), types.UINT8)
    cast |= {kind: types.FLOAT for kind in types.DataType.values() if types.DataType.Name(kind).startswith("FLOAT8")}
    outputs = {}
    for name, kind in _results(copy.graph, wanted):
        if kind in cast:
            outputs[name] = f"{name}.{_SUFFIX[types.DataType.Name(cast[kind])]}"
            copy.graph.node.append(helper.make_node("Cast", [name], [outputs[name]], to=cast[kind]))
        else:
            outputs[name] = name
        copy.graph.output.append(helper.make_tensor_value_info(outputs[name], cast.get(kind, kind), None))
    for node in copy.graph.node:
        for body in _bodies(node) if node.op_type == "Scan" else ():
            for name, kind in _results(body, wanted):
                target = types.FLOAT if cast.get(kind, kind) == types.FLOAT else types.INT32
                outputs[name] = f"{name}.{_SUFFIX[types.DataType.Name(target)]}"
                body.node.append(helper.make_node("Cast", [name], [f"{name}.step"], to=target))
                body.output.append(helper.make_tensor_value_info(f"{name}.step", target, None))
                node.output.append(outputs[name])
                copy.graph.output.append(helper.make_tensor_value_info(outputs[name], target, None))
                for each in node.attribute:
                    if each.name in ("scan_output_axes", "scan_output_directions"):
                        each.ints.append(0)
    return copy, outputs


_SUFFIX = {"INT8": "int8", "UINT8": "uint8", "INT32": "int32", "FLOAT": "float32"}


def _shown(name: str) -> list[str]:
    """What the output of a tensor may be called."""
    return [name, *(f"{name}.{suffix}" for suffix in _SUFFIX.values())]


def _results(graph: "onnx.GraphProto", wanted: Callable[["onnx.NodeProto"], bool]) -> list[tuple[str, int]]:
    """The results of some nodes of a graph, and their types."""
    known = {info.name: info.type.tensor_type.elem_type for info in (*graph.value_info, *graph.output)}
    return [(node.output[0], known[node.output[0]]) for node in graph.node if wanted(node)]
