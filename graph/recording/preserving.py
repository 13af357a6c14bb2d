"""Running a model as it is evaluated, and leaving no trace."""

import random
import sys
import warnings
from collections import OrderedDict, deque
from collections.abc import Iterable, Iterator
from contextlib import ExitStack, contextmanager
from typing import Any

import torch
from torch import Tensor, nn

from .tensors import storage_of, version_of

__all__ = ["Preserved", "evaluating"]


@contextmanager
def evaluating(model: nn.Module, inputs: Iterable[Tensor]) -> Iterator["Preserved"]:
    """Evaluation without gradients; afterwards the model, the inputs and the random generators are as they were.

    Flags are set, `eval` is not called: a module may do more in it than can be undone. torch's fused attention is off,
    which would read the weights of layers without calling them, and so is what torch.compile has compiled.

    Args:
        model: any module.
        inputs: the tensors that will go in.

    Yields:
        What keeps parameters that are written to.
    """
    inputs = list(inputs)
    tensors = [*model.parameters(), *model.buffers(), *inputs]
    modules = list(model.modules())
    attributes = [(each, _Attributes(each)) for each in modules]
    modes = [(each, each.training) for each in modules]
    kept = Preserved(model, inputs)
    generator = random.getstate()
    fused = torch.backends.mha.get_fastpath_enabled()
    with ExitStack() as stack:
        stack.callback(random.setstate, generator)
        stack.enter_context(torch.random.fork_rng(_cuda_devices(tensors)))
        stack.callback(torch.backends.mha.set_fastpath_enabled, fused)
        torch.backends.mha.set_fastpath_enabled(False)
        if "torch._dynamo" in sys.modules:  # nothing has been compiled before it is imported, which takes seconds
            stack.enter_context(torch.compiler.set_stance("force_eager"))
            stack.enter_context(warnings.catch_warnings())
            warnings.filterwarnings("ignore", "Using `torch.compile")  # with global hooks
        if not any(each.is_inference() for each in tensors):  # which may only be written to in inference mode
            stack.enter_context(torch.inference_mode(False))
        stack.enter_context(torch.no_grad())
        try:
            for each in modules:
                each.training = False
            yield kept
        finally:
            for module, before in attributes:
                before.restore(module)
            for module, mode in modes:
                if module.training is not mode:
                    module.training = mode
            kept.restore()


def _cuda_devices(tensors: Iterable[Tensor]) -> list[int]:
    indices = {each.device.index for each in tensors if each.is_cuda}
    return sorted(index for index in indices if index is not None)


class _Attributes:
    """The attributes of a module, and what is in those that are containers."""

    def __init__(self, module: nn.Module) -> None:
        self.attributes = dict(vars(module))
        self.contents = {
            name: dict(value) if isinstance(value, dict) else list(value)
            for name, value in self.attributes.items()
            if type(value) in (dict, OrderedDict, list, set, deque)
        }

    def restore(self, module: nn.Module) -> None:
        now = vars(module)
        if not _same(now, self.attributes):
            now.clear()
            now.update(self.attributes)
        for name, before in self.contents.items():
            container: Any = self.attributes[name]
            if isinstance(before, dict):
                if not _same(container, before):
                    container.clear()
                    container.update(before)
            elif len(container) != len(before) or any(a is not b for a, b in zip(container, before, strict=True)):
                container.clear()
                container.update(before) if isinstance(container, set) else container.extend(before)


def _same(one: dict[Any, Any], other: dict[Any, Any]) -> bool:
    return list(one) == list(other) and all(one[key] is other[key] for key in one)


class Preserved:
    """The values of buffers, inputs, and of the parameters that something is about to write to.

    Buffers are copied beforehand. Parameters are copied only when a function is called that writes, since a copy of all
    would take as much memory as the model.
    """

    def __init__(self, model: nn.Module, inputs: Iterable[Tensor]) -> None:
        self._buffers = [(each, each.detach().clone()) for each in model.buffers()]
        self._inputs = [(each, version_of(each), each.detach().clone()) for each in inputs]
        self._parameters: dict[int, list[Tensor]] = {}  # by their memory, which those of an LSTM may share
        for each in model.parameters():
            storage = storage_of(each)
            if storage is not None:
                self._parameters.setdefault(storage, []).append(each)
        self._written: list[tuple[Tensor, Tensor]] = []

    def before_writing(self, tensors: Iterable[Tensor]) -> None:
        """Keep the parameters among these, or those that these are views of."""
        for each in tensors:
            storage = storage_of(each)
            for parameter in () if storage is None else self._parameters.pop(storage, ()):
                self._written.append((parameter, parameter.detach().clone()))

    def restore(self) -> None:
        """Put everything back."""
        with torch.no_grad():
            for tensor, before in [*self._buffers, *self._written]:
                if not torch.equal(tensor, before):
                    tensor.data.copy_(before)
            for tensor, version, before in self._inputs:
                if version_of(tensor) != version or tensor.is_inference():
                    tensor.data.copy_(before)
