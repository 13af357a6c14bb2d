"""Saving a model with packed weights."""

import json
import os
from collections.abc import Mapping
from typing import NamedTuple

import torch
from torch import Tensor, nn

from ...errors import ExportError, with_causes
from ...onnx.stored.report import StorageReport, StorageRow
from ..stored_weights import Coded, StoredWeight, checked_model, stored_weights
from ..tensor_file import described, writing
from .forms import Form, packed, row_of

__all__ = ["KEY", "VERSION", "save_packed"]

KEY, VERSION = "bitwright_packed", 1  # of the header's metadata


def save_packed(model: nn.Module, path: str | os.PathLike[str]) -> StorageReport:
    """Write a model's state to a safetensors file in which quantized weights are packed codes.

    A weight of 4 bits takes half a byte, one of 3 bits three eighths, in any number format and granularity. Scales that
    are powers of two, or E4M3 numbers under one scale, take a byte each. All else of the state dict, biases, norms,
    calibrated ranges, is as it is. Layers are written one after the other, so that no second copy of the model is held.
    `load_packed` reads the file into a model with the same quantizers, which then computes the same outputs bit by bit.

    A weight stays in floats where codes would not give it back: one that is transformed before it is quantized, one
    whose rounding is learned, one that a float layer uses, too. The report says which, and why.

    Args:
        model: a model with quantized layers; it is left as it was.
        path: of the file, such as ``model.safetensors``.

    Returns:
        A `StorageReport`: what each quantized weight takes.

    Raises:
        ExportError: not a model, no weight that can be packed, or state that is no tensor. A file of that name is
            then left as it was.

    Example:
        >>> import tempfile, bitwright.nn as qnn
        >>> model = nn.Sequential(qnn.QuantLinear(64, 8, weight_bit_width=4))
        >>> with tempfile.TemporaryDirectory() as folder:
        ...     print(save_packed(model, os.path.join(folder, "model.safetensors")))
        260 bytes in 1 stored tensor
        tensor          numbers  bits each  stored as              scales
        0.weight_quant      512      4.062  4 bits of int4 narrow  1 x FLOAT
    """
    checked_model("save_packed", model)
    plan = _Plan.of(model)
    described_text = {
        "version": VERSION,
        "weights": {name: weight.form._asdict() for name, weight in plan.weights.items()},
        "twins": plan.twins,
        "ties": plan.ties,
    }
    files = {name: described(each) for name, each in plan.plain.items()}
    for name, weight in plan.weights.items():
        files |= {f"{name}.{part}": each for part, each in weight.form.tensors().items()}
    with writing("save_packed", path, files, {KEY: json.dumps(described_text)}) as put:
        for name, weight in plan.weights.items():
            for part, tensor in packed(weight.form, weight.stored.coded()).items():
                put(f"{name}.{part}", tensor)
        for name, tensor in plan.plain.items():
            put(name, tensor)
    rows = [row_of(name, each.form) for name, each in plan.weights.items()]
    return StorageReport((*rows, *plan.left))


class _Weight(NamedTuple):
    """A weight to be packed, and how."""

    stored: StoredWeight
    form: Form


class _Plan(NamedTuple):
    """What a file will hold.

    Args:
        weights: what is packed, by quantizer.
        twins: other quantizers of such a weight, and other paths of one, which have the same grid.
        plain: all other tensors, by name.
        ties: other names for what is held under one.
        left: rows for weights that stay in floats.
    """

    weights: dict[str, _Weight]
    twins: dict[str, str]
    plain: dict[str, Tensor]
    ties: dict[str, str]
    left: tuple[StorageRow, ...]

    @classmethod
    def of(cls, model: nn.Module) -> "_Plan":
        state = model.state_dict(keep_vars=True)
        wrong = [name for name, each in state.items() if not isinstance(each, Tensor)]
        if wrong:
            raise ExportError(
                f"save_packed: {wrong[0]} is {type(state[wrong[0]]).__name__}, and files hold tensors alone. Keep such "
                "state in buffers, or save the model with torch.save."
            )
        users: dict[int, list[str]] = {}
        for name, each in state.items():
            users.setdefault(id(each), []).append(name)
        weights, twins, left = _divided(model, users)
        if not weights:
            raise ExportError(_nothing(left))
        given = {key for each in weights.values() for key in users[id(each.stored.tensor)]}
        fixed = [name for name, each in weights.items() if each.form.fixed] + list(twins)
        dropped = {f"{name}.{part}." for name in fixed for part in _REPLACED}
        plain = {
            name: each.detach()
            for name, each in state.items()
            if name not in given and not name.startswith(tuple(dropped))
        }
        ties = {name: names[0] for names in users.values() for name in names[1:] if names[0] in plain}
        ties |= {name: each.stored.key for each in weights.values() for name in users[id(each.stored.tensor)]}
        ties = {name: first for name, first in ties.items() if name != first}
        plain = {name: each for name, each in plain.items() if name not in ties}
        return cls(weights, twins, plain, ties, left)


_REPLACED = ("scaling", "zero_point")  # the parts of a quantizer that a fixed grid stands for


def _divided(
    model: nn.Module, users: Mapping[int, list[str]]
) -> tuple[dict[str, _Weight], dict[str, str], tuple[StorageRow, ...]]:
    """The weights that can be packed, their twins, and rows for those that can't."""
    groups: dict[int, list[StoredWeight]] = {}
    for each in stored_weights(model):
        groups.setdefault(id(each.tensor), []).append(each)
    weights: dict[str, _Weight] = {}
    fixed: dict[int, str] = {}  # quantizers
    left = []
    for first, *others in groups.values():
        try:
            _check_users(model, [first, *others], users[id(first.tensor)])
            coded = first.coded()
            first.verify(coded)
            for other in others:
                _check_twin(first, other, coded)
            weights[first.name] = _Weight(first, Form.of(first.key, coded, first.fixable))
            if first.fixable:
                fixed |= {id(each.quant): first.name for each in (first, *others)}
        except ExportError as error:
            kind = str(first.tensor.dtype).removeprefix("torch.")
            size = first.tensor.numel() * first.tensor.itemsize
            left.append(StorageRow(first.name, tuple(first.tensor.shape), f"{kind}: {error}", "none", size))
    paths = {path: fixed.get(id(each)) for path, each in model.named_modules(remove_duplicate=False)}
    twins = {path: first for path, first in paths.items() if first is not None and path not in weights}
    return weights, twins, tuple(left)


def _check_twin(first: StoredWeight, other: StoredWeight, coded: Coded) -> None:
    """Refuse a parameter that two layers quantize in two ways."""
    if other.quant is first.quant:
        return
    found = other.coded()
    other.verify(found)
    mine, its = coded.grid, found.grid
    zeros = [each for each in (mine.zero_point, its.zero_point) if each is not None]
    alike = mine[2:4] == its[2:4] and torch.equal(mine.scale, its.scale) and len(zeros) != 1
    if not (first.fixable and other.fixable and alike and (not zeros or torch.equal(*zeros))):
        raise ExportError(f"{other.name} quantizes it in another way")


def _check_users(model: nn.Module, group: list[StoredWeight], names: list[str]) -> None:
    """Refuse a parameter that something else than these layers uses as it is."""
    modules = {id(each.layer) for each in group}
    for name in names:
        owner = model.get_submodule(name.rpartition(".")[0])
        if id(owner) not in modules:
            raise ExportError(f"{name} is the same tensor, and is used in floats")


def _nothing(left: tuple[StorageRow, ...]) -> str:
    causes = [f"{row.name}: {row.stored_as.partition(': ')[2]}." for row in left]
    headline = "save_packed: this model has no weight that can be packed. Save it with torch.save."
    return with_causes(headline, causes)
