"""The running statistics of BatchNorms, measured again."""

from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass

import torch
from torch import Tensor, nn
from torch.nn.modules.batchnorm import _BatchNorm

from ...nn.contexts.freezing import frozen
from ...qcore import values_of
from ...qcore.models import require_model
from ..errors import GraphError
from ..measuring.batches import batches_of
from ..measuring.evaluation import evaluating
from ..recording.examples import Call
from .reports import Entry, Report, listed

__all__ = ["reestimate_batch_norms"]


def reestimate_batch_norms(model: nn.Module, data: object, *, one_pass: bool = False) -> Report:
    """Measure the running statistics of all BatchNorms again: those of what each reads in evaluation.

    For after quantization-aware training: weights that oscillate between two grid points spoil the moving averages. The
    model may be float or quantized, is in evaluation mode meanwhile, and changes in place. Mean and variance are
    those of all samples together, however they come in batches; the variance is the unbiased one that torch keeps.

    One BatchNorm after the other is measured, each with those before it settled: the data go through the model up
    to each of them. With ``one_pass`` they go through once, and while they do, every BatchNorm uses the statistics of
    the batch at hand, as in training: faster, but the result depends on the size of batches.

    Args:
        model: any model; it is changed.
        data: a tensor, a tuple of arguments, a dict of keyword arguments, or a list or loader of these, which may give
            labels, too.
        one_pass: measure all in one pass.

    Returns:
        For each BatchNorm whether it was measured, from how many values a channel, and by how much the mean moved, in
        standard deviations (root mean square over channels); or why it was left.

    Raises:
        GraphError: no BatchNorm could be measured, a variance of a single value, or statistics that are not finite. The
            model is as it was.

    References:
        Nagel et al., "Overcoming Oscillations in Quantization-Aware Training", 2022.

    Example:
        >>> model = nn.Sequential(nn.BatchNorm1d(1))
        >>> print(reestimate_batch_norms(model, [torch.tensor([[1.0], [2.0]]), torch.tensor([[6.0]])]))
        reestimate_batch_norms: 1 changed, 0 left
          0  measured (values 3, mean moved 1.134)
        >>> model[0].running_mean.item(), model[0].running_var.item()
        (3.0, 7.0)
    """
    require_model("reestimate_batch_norms", model, GraphError)
    calls = batches_of("reestimate_batch_norms", model, data)
    norms = {path: module for path, module in model.named_modules() if isinstance(module, _BatchNorm)}
    if not norms:
        raise GraphError("reestimate_batch_norms: nothing to measure. The model has no BatchNorm.")
    with _as_before(norms), evaluating(model), frozen(model):
        reached = _reached(model, norms, calls)
        entries = {path: Entry(path, "left", why) for path in norms if (why := _why_not(norms[path], reached[path]))}
        measured = {path: norms[path] for path in reached if path not in entries}
        if not measured:
            raise GraphError(f"reestimate_batch_norms: nothing to measure. {listed(entries.values())}")
        for group in [measured] if one_pass else [{path: norm} for path, norm in measured.items()]:
            for path, moments in _measure(model, group, calls, one_pass).items():
                entries[path] = _settle(path, norms[path], moments, len(calls))
    return Report("reestimate_batch_norms", tuple(entries[path] for path in norms))


@contextmanager
def _as_before(norms: Mapping[str, _BatchNorm]) -> Iterator[None]:
    """A block that leaves the momentum of BatchNorms, and if it fails, their statistics, as they were."""
    buffers = [(each, each.clone()) for norm in norms.values() for each in norm.buffers(recurse=False)]
    momenta = [(norm, norm.momentum) for norm in norms.values()]
    try:
        yield
    except BaseException:
        with torch.no_grad():
            for buffer, former in buffers:
                buffer.copy_(former)
        raise
    finally:
        for norm, momentum in momenta:
            norm.momentum = momentum


def _reached(model: nn.Module, norms: Mapping[str, _BatchNorm], calls: list[Call]) -> dict[str, int]:
    """How often each BatchNorm is called in a forward at most, in the order of their calls."""
    most: dict[str, int] = {}
    for args, kwargs in calls:
        times: dict[str, int] = {}

        def count(path: str, x: Tensor, times: dict[str, int] = times) -> None:
            times[path] = times.get(path, 0) + 1

        with _watched(norms, count):
            model(*args, **kwargs)
        for path, number in times.items():
            most[path] = max(most.get(path, 0), number)
    return {**most, **{path: 0 for path in norms if path not in most}}


def _why_not(norm: _BatchNorm, times: int) -> str | None:
    if norm.running_mean is None or norm.running_var is None:
        return "it keeps no running statistics"
    if not times:
        return "no batch reaches it"
    return f"it is called {times} times in a forward" if times > 1 else None


class _Stop(Exception):  # noqa: N818 - not an error
    """Ends a forward at the BatchNorm that is measured."""


@contextmanager
def _watched(norms: Mapping[str, _BatchNorm], see: Callable[[str, Tensor], None]) -> Iterator[None]:
    """Call ``see(path, input)`` before each call of a BatchNorm."""
    handles = [
        norm.register_forward_pre_hook(
            lambda _, args, kwargs, path=path: see(path, values_of(args[0] if args else kwargs["input"])),
            with_kwargs=True,
        )
        for path, norm in norms.items()
    ]
    try:
        yield
    finally:
        for handle in handles:
            handle.remove()


def _measure(
    model: nn.Module, norms: Mapping[str, _BatchNorm], calls: list[Call], one_pass: bool
) -> dict[str, "_Moments"]:
    """The moments of what each BatchNorm reads, over all calls."""
    found: dict[str, _Moments] = {}

    def see(path: str, x: Tensor) -> None:
        found[path] = found[path].joined(_Moments.of(x)) if path in found else _Moments.of(x)
        if not one_pass:
            raise _Stop

    for norm in norms.values():
        norm.training, norm.momentum = one_pass, 0.0  # with statistics of the batch, and running ones left alone
    with _watched(norms, see):
        for args, kwargs in calls:
            try:
                model(*args, **kwargs)
            except _Stop:
                continue
    for norm in norms.values():
        norm.training = False
    return found


@dataclass(frozen=True)
class _Moments:
    """How many values a channel has, their mean, and the sum of their squared distances from it."""

    count: int
    mean: Tensor
    squares: Tensor

    @classmethod
    def of(cls, x: Tensor) -> "_Moments":
        values = x.detach().double().transpose(0, 1).flatten(1)  # (channels, values)
        mean = values.mean(1)
        return cls(values.shape[1], mean, (values - mean[:, None]).square().sum(1))

    def joined(self, other: "_Moments") -> "_Moments":
        """The moments of all values together."""
        count, apart = self.count + other.count, other.mean - self.mean
        mean = self.mean + apart * (other.count / count)
        return _Moments(count, mean, self.squares + other.squares + apart.square() * (self.count * other.count / count))


def _settle(path: str, norm: _BatchNorm, moments: _Moments, batches: int) -> Entry:
    """Give a BatchNorm its statistics."""
    assert norm.running_mean is not None
    assert norm.running_var is not None
    if moments.count < 2:
        raise GraphError(
            f"reestimate_batch_norms: {path} sees a single value of each channel, which has no variance. "
            "Pass more data."
        )
    variance = moments.squares / (moments.count - 1)
    if not bool((moments.mean.isfinite() & variance.isfinite()).all()):
        raise GraphError(
            f"reestimate_batch_norms: what {path} reads is not finite. "
            "Look for NaN or infinity in the data and weights."
        )
    moved = (moments.mean - norm.running_mean.double()) / (variance + norm.eps).sqrt()
    norm.running_mean.copy_(moments.mean)
    norm.running_var.copy_(variance)
    if norm.num_batches_tracked is not None:
        norm.num_batches_tracked.fill_(batches)
    return Entry(path, "measured", figures={"values": moments.count, "mean moved": float(moved.square().mean().sqrt())})
