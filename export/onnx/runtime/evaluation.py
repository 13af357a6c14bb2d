"""How well an exported file does on data, in onnxruntime."""

import os
from collections.abc import Callable, Iterable, Mapping, Sequence
from contextlib import closing
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor

from ....nn.contexts.progress import tracked
from ....qcore.models import shown
from ...errors import ExportError
from ...optional import required
from ...paths import require_file
from ..session import loaded

if TYPE_CHECKING:
    import onnx
    import onnxruntime

__all__ = ["evaluate_onnx", "top1"]


def top1(outputs: Tensor, labels: Tensor) -> float:
    """The share of samples whose largest output is that of their label, outputs (N, classes), labels (N,).

    Example:
        >>> top1(torch.tensor([[0.1, 0.9], [0.8, 0.2]]), torch.tensor([1, 1]))
        0.5
    """
    return (outputs.argmax(1) == labels).double().mean().item()


def evaluate_onnx(
    program: "torch.onnx.ONNXProgram | onnx.ModelProto | onnxruntime.InferenceSession | str | os.PathLike[str]",
    data: Iterable[tuple[object, object]],
    metric: Callable[[Any, Any], float] = top1,
    *,
    providers: Sequence[str] = ("CPUExecutionProvider",),
    progress: bool = True,
) -> float:
    """Run a file on data in onnxruntime, and return its accuracy, or the mean of another figure.

    A file that takes a fixed number of samples gets each batch in such portions.

    Args:
        program: what an export returned, an ``onnx.ModelProto``, the path of a file, or an ``InferenceSession`` with
            options of your own.
        data: batches, such as a DataLoader's: pairs of inputs and labels. Inputs are one tensor, or a tuple or dict of
            tensors whose first dimension counts samples.
        metric: a function of the outputs and the labels of a batch, by default the share of right classes. Outputs are
            one tensor, or a tuple where the file has several. The figures of batches are averaged, each as often as it
            has samples.
        providers: of onnxruntime, the first that is available for a node runs it.
        progress: whether a bar shows how far the loop has come.

    Returns:
        The mean over all samples.

    Raises:
        ExportError: no exported model, no data, batches that are no pairs, inputs that are not the file's, or a
            provider that is not available.

    Example:
        >>> import bitwright.nn as qnn
        >>> from bitwright.export import export_onnx_qdq
        >>> layer, x = qnn.QuantLinear(8, 4, weight_bit_width=4), torch.randn(6, 8)
        >>> program = export_onnx_qdq(layer, x[:2])
        >>> evaluate_onnx(program, [(x, layer(x).argmax(1))])
        1.0
    """
    session = _session(program, providers)
    names, firsts = _inputs(session)
    total, count = 0.0, 0
    with closing(tracked(data, "evaluate_onnx", shown=progress)) as batches:
        for batch in batches:
            if not isinstance(batch, tuple | list) or len(batch) != 2:
                raise ExportError(
                    f"evaluate_onnx: data has {shown(batch)} for a batch. Pass pairs of inputs and labels, such as a "
                    "DataLoader's."
                )
            tensors = _ordered(batch[0], names)
            samples = tensors[0].shape[0]
            outputs = _run(session, names, tensors, firsts)
            total += float(metric(outputs[0] if len(outputs) == 1 else tuple(outputs), batch[1])) * samples
            count += samples
    if not count:
        raise ExportError("evaluate_onnx: data is empty. Pass at least one batch; an iterator can be used only once.")
    return total / count


def _session(program: Any, providers: Sequence[str]) -> Any:
    runtime = required("onnxruntime", "evaluate_onnx")
    if isinstance(program, runtime.InferenceSession):
        return program
    available = runtime.get_available_providers()
    missing = [each for each in providers if each not in available]
    if missing:
        raise ExportError(
            f"evaluate_onnx: onnxruntime {runtime.__version__} has no {missing[0]} here, only {', '.join(available)}. "
            "Pass providers of these, or install the package of onnxruntime that has it."
        )
    options = runtime.SessionOptions()
    options.intra_op_num_threads = torch.get_num_threads()
    if isinstance(program, str | os.PathLike):
        source: Any = require_file("evaluate_onnx", program)
    else:
        source = loaded("evaluate_onnx", program).SerializeToString()
    return runtime.InferenceSession(source, options, list(providers))


def _inputs(session: Any) -> tuple[list[str], set[int]]:
    """The names of a file's inputs, and the numbers of samples that they are fixed at."""
    inputs = session.get_inputs()
    firsts = {each.shape[0] for each in inputs if each.shape and isinstance(each.shape[0], int)}
    return [each.name for each in inputs], firsts


def _ordered(inputs: object, names: list[str]) -> list[Tensor]:
    """Inputs in the order of the file's."""
    if isinstance(inputs, Mapping):
        if set(inputs) != set(names):
            raise ExportError(
                f"evaluate_onnx: the inputs of a batch are named {', '.join(map(str, inputs))}, those of the file "
                f"{', '.join(names)}. Name them as the file does."
            )
        inputs = [inputs[name] for name in names]
    tensors = list(inputs) if isinstance(inputs, tuple | list) else [inputs]
    if len(tensors) != len(names) or not all(isinstance(each, Tensor) and each.ndim for each in tensors):
        raise ExportError(
            f"evaluate_onnx: the file takes {', '.join(names)}, and a batch has {shown(inputs)} for them. Pass one "
            "tensor of samples for each."
        )
    return [each for each in tensors if isinstance(each, Tensor)]


def _run(session: Any, names: list[str], tensors: list[Tensor], firsts: set[int]) -> list[Tensor]:
    """The outputs of a batch, computed in portions that the file takes."""
    samples = tensors[0].shape[0]
    portion = next(iter(firsts)) if len(firsts) == 1 else samples
    if portion < 1 or samples % portion:
        raise ExportError(
            f"evaluate_onnx: a batch has {samples} samples, and the file takes {portion} at a time. Pass batches of a "
            "multiple, such as by DataLoader(drop_last=True), or export with dynamic_shapes."
        )
    found = []
    for start in range(0, samples, max(portion, 1)):
        parts = (each[start : start + portion] for each in tensors)
        feed = {name: each.detach().cpu().numpy() for name, each in zip(names, parts, strict=True)}
        found.append([torch.as_tensor(each) for each in session.run(None, feed)])
    return [
        found[0][index] if len(found) == 1 else torch.cat(each) for index, each in enumerate(zip(*found, strict=True))
    ]
