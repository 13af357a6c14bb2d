"""State: fixed keys, loading in place, and round trips through every way of saving."""

import contextlib
import copy
import io
import pickle
from collections.abc import Mapping

import torch
from torch import nn

from ...qcore import QuantizerError
from ..registry import register_check
from ..report import Failure
from ..subject import Subject
from .grid import first, shown

__all__ = ["deep_copy", "float_checkpoint", "load_in_place", "pickling", "resume", "state_dict", "state_keys"]


@register_check
def state_keys(subject: Subject) -> None:
    """The state dict has the same keys, with the same kinds of entries, from construction on."""
    layer = subject.layer()
    start = {name: each.dtype for name, each in layer.state_dict().items()}
    for what, act in (("training", layer.train), ("evaluation", layer.eval)):
        act()
        layer(subject.layer_input())
        now = {name: each.dtype for name, each in layer.state_dict().items()}
        if now != start:
            changed = sorted(set(now.items()) ^ set(start.items()), key=str)
            raise Failure(f"the keys of construction after {what}", ", ".join(f"{name}" for name, _ in changed))


@register_check
def load_in_place(subject: Subject) -> None:
    """Data and checkpoints change parameters and buffers in place: an optimizer made earlier stays valid."""
    source, layer = _used(subject), subject.layer(1)
    before = _tensors(layer)
    layer.train()(subject.layer_input(1))
    _same_objects(before, _tensors(layer), "training")
    layer.load_state_dict(source.state_dict())
    _same_objects(before, _tensors(layer), "load_state_dict")


@register_check
def state_dict(subject: Subject) -> None:
    """A state dict that is saved and loaded (strict, weights only) gives the same output, bit for bit."""
    source = _used(subject)
    file = io.BytesIO()
    torch.save(source.state_dict(), file)
    file.seek(0)
    target = subject.layer(1)
    target.load_state_dict(torch.load(file, weights_only=True), strict=True)
    _same_output(subject, source, target.eval())


@register_check
def pickling(subject: Subject) -> None:
    """The layer pickles, and the unpickled layer gives the same output."""
    source = _used(subject)
    _same_output(subject, source, pickle.loads(pickle.dumps(source)))


@register_check
def deep_copy(subject: Subject) -> None:
    """A deep copy gives the same output and is independent of the original."""
    source = _used(subject)
    copied = copy.deepcopy(source)
    _same_output(subject, source, copied)
    before = {name: each.clone() for name, each in source.state_dict().items()}
    with torch.no_grad():
        for each in [*copied.parameters(), *copied.buffers()]:
            each.add_(1)
    copied.train()(subject.layer_input(3))
    for name, each in source.state_dict().items():
        if not torch.equal(each, before[name]):
            raise Failure(f"{name} as it was, when the copy is trained", "it changed")


@register_check
def float_checkpoint(subject: Subject) -> None:
    """The state dict of torch's layer loads strictly; missing quantizer state is derived from the weights."""
    given = subject.float_layer(1)
    layer, fresh = _used(subject), subject.layer(1)
    if subject.role == "activation":
        fresh = subject.layer()
        fresh.load_state_dict(given.state_dict(), strict=True)
        layer.load_state_dict(given.state_dict(), strict=True)
        return
    layer.load_state_dict(given.state_dict(), strict=True)
    _same_output(subject, fresh.eval(), layer.eval(), "a layer made with these weights")


@register_check
def resume(subject: Subject) -> None:
    """Saved during calibration and loaded elsewhere, calibration ends with the same result."""
    subject = copy.copy(subject)
    with contextlib.suppress(QuantizerError):  # if nothing uses it
        short = subject.quantizer(calibration_steps=4)  # so that calibration ends within the test
        Subject(short, subject.role, subject.given, subject.channel_axis)
        subject.quantizer = short
    whole, half, late = subject.layer(), subject.layer(), subject.layer(1)
    batches = [subject.layer_input(seed) * (seed + 1) for seed in range(6)]
    _feed(whole, batches)
    _feed(half, batches[:2])
    late.load_state_dict(half.state_dict())
    _feed(late, batches[2:])
    for name, each in whole.state_dict().items():
        if not torch.equal(each, late.state_dict()[name]):
            raise Failure(f"{shown(each)} in {name}, as without the interruption", shown(late.state_dict()[name]))
    _same_output(subject, whole.eval(), late.eval(), "the layer that was not interrupted")


def _used(subject: Subject) -> nn.Module:
    """A layer that has seen some training, in evaluation."""
    layer = subject.layer()
    _feed(layer, [subject.layer_input(seed) for seed in range(2)])
    return layer.eval()


def _feed(layer: nn.Module, batches: list[torch.Tensor]) -> None:
    layer.train()
    with torch.no_grad():
        for batch in batches:
            torch.manual_seed(0)
            layer(batch.clone())


def _same_output(subject: Subject, one: nn.Module, other: nn.Module, whose: str = "the original") -> None:
    x = subject.layer_input(2)
    with torch.no_grad():
        outputs = []
        for each in (one, other):
            torch.manual_seed(0)
            outputs.append(each(x.clone()))
    expected, found = outputs
    if not torch.equal(expected, found):
        wrong = expected != found
        raise Failure(f"{first(expected, wrong)} as from {whose}", first(found, wrong))


def _tensors(layer: nn.Module) -> dict[str, torch.Tensor]:
    return {**dict(layer.named_parameters()), **dict(layer.named_buffers())}


def _same_objects(before: Mapping[str, object], after: Mapping[str, object], action: str) -> None:
    for name, each in before.items():
        if after.get(name) is not each:
            raise Failure(f"{name} to be the same tensor after {action}", "another one" if name in after else "none")
