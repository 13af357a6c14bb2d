"""Tensors of quantizers that a trace has no use for: torch.export does not list them as inputs of the graph."""

from collections.abc import Iterable, Iterator, Mapping
from contextlib import contextmanager
from typing import Any

from torch import nn

from ....qcore import TensorQuant
from ...capture.record import Call, Recording

__all__ = ["unlisted"]


@contextmanager
def unlisted(module: nn.Module, quantizers: Mapping[str, TensorQuant], recording: Recording) -> Iterator[None]:
    """Quantizers whose parameters and buffers are plain attributes for the length of the block.

    torch.export makes an input of the graph of every parameter and buffer of a model, used or not, and every pass over
    the graph carries it along: some 2 ms each, and the quantizers of MobileNetV2 have 212. Placeholders need none.
    What reads one all the same gets a constant, also by `parameters`: the forward finds them listed. The modules stay
    where they are, with their hooks.

    Tensors stay listed where arithmetic that uses them is traced: scales that follow the input, and roundings that are
    modules.

    Args:
        module: the model.
        quantizers: by path.
        recording: their calls.
    """
    needed = {
        part for path, each in quantizers.items() if _traced(recording.calls.get(path, ())) for part in each.modules()
    }
    parts = {part: None for each in quantizers.values() for part in each.modules() if part not in needed}
    listed = ((part, each) for part in parts for each in (part._parameters, part._buffers) if each)
    held: list[tuple[nn.Module, dict[str, Any], dict[str, Any]]] = [(part, each, dict(each)) for part, each in listed]

    def listed_again(*args: object) -> None:
        for _, tensors, former in held:
            tensors.update(former)

    def not_listed(*args: object) -> None:
        for _, tensors, former in held:
            for name in former:
                tensors.pop(name, None)

    handles = [
        module.register_forward_pre_hook(listed_again, prepend=True),
        module.register_forward_hook(not_listed, always_call=True),
    ]
    try:
        for part, _, former in held:
            vars(part).update(former)
        not_listed()
        yield
    finally:
        for handle in handles:
            handle.remove()
        for part, tensors, former in held:
            for name in former:
                vars(part).pop(name, None)
            others = dict(tensors)
            tensors.clear()
            tensors.update(former | others)


def _traced(calls: Iterable[Call]) -> bool:
    """Whether more is traced of a quantizer than placeholders."""
    return any(
        not call.stored and (call.follows_input or isinstance(getattr(call.quantizer, "rounding", None), nn.Module))
        for call in calls
    )
