"""How well an exported file does on data, in onnxruntime."""

import os
from collections.abc import Callable, Iterable, Sequence
from contextlib import closing
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor
from torch.utils.data import Dataset, IterableDataset

from ....nn.contexts.progress import tracked
from ....qcore.models import shown
from ...errors import ExportError
from ...optional import required
from ...paths import require_file
from ..session import loaded
from .feeding import Feeder

if TYPE_CHECKING:
    import onnx
    import onnxruntime

__all__ = ["evaluate_onnx", "top1"]


_DEFAULT = ("CPUExecutionProvider",)


def top1(outputs: Tensor, labels: Tensor) -> float:
    """The share of samples whose largest output is that of their label, outputs (N, classes), labels (N,).

    Raises:
        ExportError: several outputs, or labels of another shape.

    Example:
        >>> top1(torch.tensor([[0.1, 0.9], [0.8, 0.2]]), torch.tensor([1, 1]))
        0.5
    """
    if not isinstance(outputs, Tensor) or outputs.ndim < 2:
        found = tuple(outputs.shape) if isinstance(outputs, Tensor) else f"{len(outputs)} tensors"
        raise ExportError(
            f"evaluate_onnx: accuracy takes one output of scores, (N, classes), and the file gives {found}. Pass "
            "metric=..., a function of the outputs and the labels of a batch."
        )
    classes, labels = outputs.argmax(1), torch.as_tensor(labels).cpu()
    if labels.shape != classes.shape:
        raise ExportError(
            f"evaluate_onnx: outputs of shape {tuple(outputs.shape)} need labels of shape {tuple(classes.shape)}, the "
            f"number of a class each, and a batch has {tuple(labels.shape)}. Pass such, or metric=..., a function of "
            "the outputs and the labels of a batch."
        )
    return (classes == labels).double().mean().item()


def evaluate_onnx(
    program: "torch.onnx.ONNXProgram | onnx.ModelProto | onnxruntime.InferenceSession | str | os.PathLike[str]",
    data: Iterable[tuple[object, object]],
    metric: Callable[[Any, Any], float] = top1,
    *,
    providers: Sequence[str | tuple[str, dict[str, Any]]] = _DEFAULT,
    progress: bool = True,
) -> float:
    """Run a file on data in onnxruntime, and return its accuracy, or the mean of another figure.

    A file that takes a fixed number of samples gets each batch in such portions. The last one, where it is smaller, is
    filled up with its last sample, whose further outputs are dropped.

    Args:
        program: what an export returned, an ``onnx.ModelProto``, the path of a file, or an ``InferenceSession`` with
            options of your own.
        data: batches, such as a DataLoader's: pairs of inputs and labels. Inputs are one tensor, or a tuple or dict of
            tensors whose first dimension counts samples.
        metric: a function of the outputs and the labels of a batch, by default the share of right classes. Outputs are
            one tensor, or a tuple where the file has several. The figures of batches are averaged, each as often as it
            has samples.
        providers: of onnxruntime, by name or with a dict of options; the first that is available for a node runs it. A
            session has its own.
        progress: whether a bar shows how far the loop has come.

    Returns:
        The mean over all samples.

    Raises:
        ExportError: no exported model, no data, batches that are no pairs, inputs that are not the file's, labels that
            are no classes, a figure that is no number, or a provider that is not available.

    Example:
        >>> import bitwright.nn as qnn
        >>> from bitwright.export import export_onnx_qdq
        >>> layer, x = qnn.QuantLinear(8, 4, weight_bit_width=4), torch.randn(6, 8)
        >>> program = export_onnx_qdq(layer, x[:2])
        >>> evaluate_onnx(program, [(x, layer(x).argmax(1))])
        1.0
    """
    if not callable(metric):
        raise ExportError(
            f"evaluate_onnx(metric={shown(metric)}) is not possible. Pass a function of the outputs and the labels of "
            "a batch that returns a number."
        )
    _require_batches(data)
    feeder = Feeder(_session(program, providers), "evaluate_onnx")
    total, count = 0.0, 0
    with closing(tracked(data, "evaluate_onnx", shown=progress)) as batches:
        for batch in batches:
            if not isinstance(batch, tuple | list) or len(batch) != 2:
                raise ExportError(
                    f"evaluate_onnx: data has {shown(batch)} for a batch. Pass pairs of inputs and labels, such as a "
                    "DataLoader's."
                )
            tensors = feeder.tensors(batch[0])
            samples = tensors[0].shape[0]
            if samples:
                outputs = feeder.run(tensors)
                found = metric(outputs[0] if len(outputs) == 1 else tuple(outputs), batch[1])
                total += _number(found) * samples
                count += samples
    if not count:
        raise ExportError("evaluate_onnx: data is empty. Pass at least one batch; an iterator can be used only once.")
    return total / count


def _require_batches(data: object) -> None:
    if isinstance(data, Dataset) and not isinstance(data, IterableDataset):
        raise ExportError(
            "evaluate_onnx: data is a Dataset, which gives one sample at a time. Pass "
            "torch.utils.data.DataLoader(data, batch_size=64)."
        )
    if not isinstance(data, Iterable):
        raise ExportError(
            f"evaluate_onnx: data={shown(data)} has no batches. Pass pairs of inputs and labels, such as a "
            "DataLoader's."
        )


def _number(found: object) -> float:
    try:
        return float(found)  # type: ignore[arg-type]
    except (RuntimeError, TypeError, ValueError):
        raise ExportError(
            f"evaluate_onnx: metric returned {shown(found)} for a batch. Return one number, such as a mean."
        ) from None


def _session(program: Any, providers: Sequence[str | tuple[str, dict[str, Any]]]) -> Any:
    runtime = required("onnxruntime", "evaluate_onnx")
    if isinstance(providers, str) or not providers:
        named = [providers or _DEFAULT[0]]
        raise ExportError(f"evaluate_onnx(providers={providers!r}) is not possible. Write providers={named!r}.")
    if isinstance(program, runtime.InferenceSession):
        if tuple(providers) != _DEFAULT:
            raise ExportError(
                f"evaluate_onnx(providers={providers!r}) has no effect on an InferenceSession, which has its own. "
                "Leave it out, or pass the file."
            )
        return program
    available = runtime.get_available_providers()
    names = [each if isinstance(each, str) else each[0] for each in providers]
    missing = [each for each in names if each not in available]
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
    try:
        return runtime.InferenceSession(source, options, list(providers))
    except Exception as error:  # onnxruntime's have no base class of their own
        raise ExportError(f"evaluate_onnx: onnxruntime {runtime.__version__} does not load the file: {error}") from None
