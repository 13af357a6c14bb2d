"""Batches of samples through a file in onnxruntime, as many at a time as it takes."""

from collections.abc import Mapping
from typing import Any

import torch
from torch import Tensor

from ....qcore.models import shown
from ...errors import ExportError
from ..inputs import require_input

__all__ = ["Feeder"]


class Feeder:
    """Runs batches through a session, and refuses inputs that are not the file's.

    Args:
        session: an ``onnxruntime.InferenceSession``.
        call: the function that the user called, which errors name.
    """

    def __init__(self, session: Any, call: str) -> None:
        self.session, self.call = session, call
        self.inputs = session.get_inputs()
        self.names = [each.name for each in self.inputs]
        self.outputs = [each.name for each in session.get_outputs()]
        firsts = {each.shape[0] for each in self.inputs if each.shape and isinstance(each.shape[0], int)}
        self.portion: int | None = firsts.pop() if len(firsts) == 1 else None

    def tensors(self, inputs: object) -> list[Tensor]:
        """The inputs of a batch in the order of the file's.

        Raises:
            ExportError: other names, another number of inputs, or something that is no tensor of samples.
        """
        if isinstance(inputs, Mapping):
            if set(inputs) != set(self.names):
                raise ExportError(
                    f"{self.call}: the inputs of a batch are named {', '.join(map(str, inputs))}, those of the file "
                    f"{', '.join(self.names)}. Name them as the file does."
                )
            inputs = [inputs[name] for name in self.names]
        given = list(inputs) if isinstance(inputs, tuple | list) else [inputs]
        tensors = [each for each in given if isinstance(each, Tensor) and each.ndim]
        if len(given) != len(self.names) or len(tensors) != len(given):
            raise ExportError(
                f"{self.call}: the file takes {', '.join(self.names)}, and a batch has {shown(inputs)} for them. Pass "
                "one tensor of samples for each."
            )
        counts = {name: each.shape[0] for name, each in zip(self.names, tensors, strict=True)}
        if len(set(counts.values())) > 1:
            several = ", ".join(f"{count} of {name}" for name, count in counts.items())
            raise ExportError(
                f"{self.call}: a batch has {several}. The first dimension of every input counts the same samples."
            )
        for each, tensor in zip(self.inputs, tensors, strict=True):
            require_input(self.call, each, tensor, "a batch", any_count=self.portion is not None)
        return tensors

    def run(self, tensors: list[Tensor]) -> list[Tensor]:
        """The outputs of a batch. A portion that is too small for the file is filled up with its last sample.

        Raises:
            ExportError: an output that can't be put together from portions.
        """
        samples = tensors[0].shape[0]
        portion = self.portion or samples
        if portion == samples:
            return self._outputs(tensors)
        found = []
        for start in range(0, samples, portion):
            outputs = self._outputs([_filled(each[start : start + portion], portion) for each in tensors])
            for name, each in zip(self.outputs, outputs, strict=True):
                if each.shape[:1] != (portion,):
                    raise ExportError(
                        f"{self.call}: the file takes {portion} samples at a time, a batch has {samples}, and the "
                        f"output {name} of shape {tuple(each.shape)} can't be put together from portions. Pass batches "
                        f"of {portion}, or export with dynamic_shapes."
                    )
            found.append(outputs)
        return [torch.cat(parts)[:samples] for parts in zip(*found, strict=True)]

    def _outputs(self, tensors: list[Tensor]) -> list[Tensor]:
        feed = {name: each.detach().cpu().numpy() for name, each in zip(self.names, tensors, strict=True)}
        return [torch.as_tensor(each) for each in self.session.run(None, feed)]


def _filled(part: Tensor, portion: int) -> Tensor:
    missing = portion - part.shape[0]
    return torch.cat([part, part[-1:].expand(missing, *part.shape[1:])]) if missing else part
