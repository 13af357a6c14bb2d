"""The samples in portions that the file takes and that fit into a given number of bytes."""

from collections.abc import Callable, Iterator, Mapping
from dataclasses import replace
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor, nn
from torch.utils import _pytree
from torch.utils._python_dispatch import TorchDispatchMode

from ....nn.contexts.intercepting import intercepted
from ....qcore import Grid, TensorQuant
from ....qcore.tensor_quant import Intercept
from ...comparing.portion import Portion
from ...errors import ExportError

if TYPE_CHECKING:
    import onnx

__all__ = ["Largest", "per_sample", "portions"]


def portions(
    graph: "onnx.GraphProto", whole: Portion, batch_size: int, memory: int | None, measure: Callable[[Portion], float]
) -> Iterator[Portion]:
    """The samples in portions: as many as the fixed first dimension of the file's inputs says, or as fit.

    Args:
        graph: of the file.
        whole: all samples.
        batch_size: the most samples of a portion.
        memory: how many bytes a portion may take; None if any number.
        measure: the bytes that each sample takes, for the few that it is called with.

    Raises:
        ExportError: there are not as many tensors as inputs, or not a multiple of the samples that the file takes.
    """
    inputs = _inputs(graph)
    tensors = whole.tensors
    if len(tensors) != len(inputs):
        raise ExportError(
            f"the inputs hold {len(tensors)} tensors, and the file takes {len(inputs)}: "
            f"{', '.join(inputs)}. Pass what the model was exported with."
        )
    samples = {tensor.shape[0] if tensor.ndim else 0 for tensor in tensors}
    firsts = set(inputs.values())
    first = next(iter(firsts), 0)
    if len(samples) != 1 or len(firsts) != 1 or first == 0 or batch_size < 1:
        yield whole
        return
    count = samples.pop()
    if first is not None and count % first:
        raise ExportError(
            f"the inputs have {count} samples, and the file takes {first} at a time. Pass a multiple, or export with "
            "dynamic_shapes."
        )
    size = first or min(batch_size, count)
    if (
        first is None
        and memory is not None
        and size > _MEASURED
        and _MUCH * sum(each.nbytes for each in tensors) * size > memory * count
    ):
        size = min(size, max(1, int(memory / measure(whole.cut(0, _MEASURED)))))
    for start in range(0, max(count, 1), max(size, 1)):
        part = whole.cut(start, start + size) if size < count else whole
        yield replace(part, last=start + size >= count)


_MEASURED = 2  # samples: a batch of one is what models and files sometimes treat in a way of its own
_MUCH = 2**16  # times as many bytes as its inputs is more than a model makes, tokens and their logits included


def _inputs(graph: "onnx.GraphProto") -> dict[str, int | None]:
    """The inputs by name, and the size of their first dimension: 0 where there is none, None where it is open."""
    stored = {each.name for each in graph.initializer}
    found: dict[str, int | None] = {}
    for each in graph.input:
        if each.name not in stored:
            dims = each.type.tensor_type.shape.dim
            found[each.name] = 0 if not dims else dims[0].dim_value if dims[0].HasField("dim_value") else None
    return found


def per_sample(found: Mapping[str, Tensor], largest: "Largest", samples: int) -> float:
    """How many bytes a sample takes: all codes of two runs, and in torch what one layer works with.

    Args:
        found: the outputs of one run of the file with its codes.
        largest: of the model's forward.
        samples: how many these were.
    """
    watched = sum(each.nbytes for each in found.values())
    return max(2 * watched + _ALIVE * largest.nbytes, 1) / samples


_ALIVE = 8  # tensors as large as the largest, at a time: what goes into a layer and comes out, and the comparison


class Largest(TorchDispatchMode):
    """Notes the bytes of the largest tensor that a block makes, quantized weights apart.

    Example:
        >>> with Largest() as largest:
        ...     _ = torch.zeros(10).sum() + torch.zeros(4, 5).t()
        >>> largest.nbytes
        80
    """

    def __init__(self) -> None:
        super().__init__()
        self.nbytes, self.paused = 0, False

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        """Run an operator and look at what it made."""
        made = func(*args, **(kwargs or {}))
        if not self.paused and not any(each.alias_info for each in func._schema.returns):  # no views
            sizes = (each.nbytes for each in _pytree.tree_leaves(made) if isinstance(each, Tensor))
            self.nbytes = max(self.nbytes, *sizes, 0)
        return made

    def of(self, module: nn.Module, quantizers: Mapping[str, TensorQuant], part: Portion) -> "Largest":
        """The forward of a model."""
        with torch.no_grad(), intercepted(quantizers, self._without_weights), self:
            part.through(module)
        return self

    def _without_weights(self, path: str) -> Intercept:
        def call(quantizer: TensorQuant, x: Tensor, *context: object) -> tuple[Tensor, Grid | None]:
            self.paused = quantizer.of_parameter
            try:
                return quantizer._quantize(x, *context)
            finally:
                self.paused = False

        return call
