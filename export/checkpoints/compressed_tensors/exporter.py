"""Writing a checkpoint of compressed-tensors."""

import json
import os
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import NamedTuple

import torch
from torch import Tensor, nn

from ....nn.layer import QuantLayer
from ....nn.linear import QuantLinear
from ....qcore import GridQuant, TensorQuant
from ....qcore.models import shown
from ...errors import ExportError, with_causes
from ...onnx.stored.report import StorageReport, StorageRow
from ..stored_weights import StoredWeight, checked_model, joined, stored_weights
from ..tensor_file import Described, described, writing
from .inputs import NO_INPUTS, InputForm, input_form
from .weights import WeightForm, weight_form

__all__ = ["export_compressed_tensors"]

CALL = "export_compressed_tensors"
SCALES = (torch.float32, torch.bfloat16, torch.float16)


def export_compressed_tensors(
    model: nn.Module,
    folder: str | os.PathLike[str],
    *,
    config: Mapping[str, object] | None = None,
    scale_dtype: torch.dtype = torch.float32,
) -> StorageReport:
    """Write a checkpoint in the format of compressed-tensors, which vLLM and transformers read.

    The folder gets ``model.safetensors`` and ``config.json`` with a ``quantization_config``. Quantized are the weights
    of linear layers, and their inputs:

    - integers of 2 to 8 bits per channel or group, with zero points or without (``pack-quantized``);
    - the same of 8 bits per channel, and of 4 bits, with inputs of 8 bits (``int-quantized``);
    - E4M3 per tensor, channel or block, with E4M3 inputs or without (``float-quantized``);
    - MXFP8, MXFP6 (E2M3), MXFP4, NVFP4 weights.

    Inputs are of 8 bits, int8 or E4M3: one scale for each token that follows it, or one that was calibrated. What
    follows an input is worked out by the runtime, with kernels of its own.

    Names are those of the model's state dict, so it must be named as its float model: one of transformers, say. All
    else is written as it is; tensors under several names once, as transformers has it.

    Args:
        model: a model whose linear layers are quantized; it is left as it was.
        folder: is made where there is none.
        config: what else ``config.json`` is to hold; by default ``model.config.to_dict()``, if the model has one, or
            what a ``config.json`` in the folder holds.
        scale_dtype: of float scales of integer weights: float32, with which the values of weights are the model's bit
            by bit, or bfloat16 or float16, to which runtimes with such a model round them anyway.

    Returns:
        A `StorageReport`: what each weight takes.

    Raises:
        ExportError: not a model, nothing quantized, or quantizers that such a checkpoint can't describe, all of which
            are listed. Nothing is written then.

    Example:
        >>> import tempfile, bitwright.nn as qnn
        >>> from bitwright.quantizers import Int4WeightPerGroup
        >>> model = nn.Sequential(qnn.QuantLinear(64, 8, weight_quant=Int4WeightPerGroup), nn.Linear(8, 2))
        >>> with tempfile.TemporaryDirectory() as folder:
        ...     print(export_compressed_tensors(model, folder))
        ...     said = json.loads(Path(folder, "config.json").read_text())["quantization_config"]
        320 bytes in 1 stored tensor
        tensor          numbers  bits each  stored as                   scales
        0.weight_quant      512          5  pack-quantized, int4 group  16 x FLOAT
        >>> said["ignore"], said["config_groups"]["group_0"]["targets"]
        (['1'], ['Linear'])
    """
    checked_model(CALL, model)
    if scale_dtype not in SCALES:
        raise ExportError(
            f"{CALL}: scale_dtype={shown(scale_dtype)} is not possible. Write torch.float32, torch.bfloat16 or "
            "torch.float16."
        )
    place = Path(folder)
    said = _config_of(model, place, config)
    stored = {each.path: each for each in stored_weights(model) if isinstance(each.layer, QuantLinear)}
    plan, causes = _planned(model, stored, scale_dtype)
    if causes:
        raise ExportError(with_causes(f"{CALL}: this model can't be written:", causes))
    if not plan:
        raise ExportError(f"{CALL}: no linear layer of this model quantizes its weight. Save it as a float model.")
    plain = _plain(model, {stored[path].key for path in plan})
    files = {name: described(each) for name, each in plain.items()}
    for path, layer in plan.items():
        files |= {joined(path, name): each for name, each in layer.tensors.items()}
    text = json.dumps({**said, "quantization_config": _quantization(model, plan)}, indent=2)
    place.mkdir(parents=True, exist_ok=True)
    with writing(CALL, place / "model.safetensors", files, {"format": "pt"}) as put:
        for path in plan:
            for name, tensor in _tensors_of(stored[path], scale_dtype).items():
                put(joined(path, name), tensor)
        for name, tensor in plain.items():
            put(name, tensor)
    partial = place / "config.json.partial"
    partial.write_text(f"{text}\n")
    os.replace(partial, place / "config.json")
    return StorageReport(tuple(_row(stored[path], layer) for path, layer in plan.items()))


class _Layer(NamedTuple):
    """A layer to be written: how, and what its tensors will be."""

    format: str
    weights: dict[str, object]
    inputs: dict[str, object] | None
    tensors: dict[str, Described]
    kind: str


def _config_of(model: nn.Module, folder: Path, given: Mapping[str, object] | None) -> dict[str, object]:
    """What ``config.json`` holds besides."""
    if given is not None:
        if not isinstance(given, Mapping):
            raise ExportError(
                f"{CALL}: config={shown(given)} is not possible. Pass a dict, such as model.config.to_dict(), or leave "
                "it out."
            )
        return dict(given)
    as_dict = getattr(getattr(model, "config", None), "to_dict", None)
    if callable(as_dict):
        found = as_dict()
        return dict(found) if isinstance(found, Mapping) else {}
    path = folder / "config.json"
    return json.loads(path.read_text()) if path.exists() else {}


def _planned(
    model: nn.Module, stored: Mapping[str, StoredWeight], scale_dtype: torch.dtype
) -> tuple[dict[str, _Layer], list[str]]:
    """The layers to be written, and what is wrong with them or with other quantizers."""
    plan, causes = {}, []
    users = _users(model)
    for path, each in stored.items():
        try:
            others = [name for name in users[id(each.tensor)] if name != each.key]
            if others:
                raise ExportError(f"{others[0]} is the same weight. Leave both layers in floats")
            form, inputs = _forms(each)
            tensors = {name: described(tensor) for name, tensor in _tensors(form, inputs, scale_dtype).items()}
            plan[path] = _Layer(form.format, form.settings, inputs.settings, tensors, form.kind)
        except ExportError as error:
            causes.append(f"{each.path or type(each.layer).__name__}: {error}.")
    causes += _unsaid(model, stored)
    return plan, causes


def _forms(stored: StoredWeight) -> tuple[WeightForm, InputForm]:
    inputs = input_form(getattr(stored.layer, "input_quant", None))
    quant = stored.quant
    if type(stored.layer).forward is not QuantLinear.forward:
        raise ExportError(f"{type(stored.layer).__name__} has a forward of its own, which runtimes don't run")
    if not isinstance(quant, GridQuant) or quant.transform is not None:
        raise ExportError(f"its weight has no grid of its own ({quant.scheme()})")
    packs = inputs is NO_INPUTS or inputs.kind.startswith("float")
    form = weight_form(quant, stored.coded(), plain=not packs)
    if not _goes(form, inputs):
        raise ExportError(
            f"no kernel combines weights of {form.kind}{'' if form.settings['symmetric'] else ' with zero points'} and "
            f"{inputs.kind}"
        )
    if inputs is NO_INPUTS and form.format == "float-quantized":
        form = form._replace(format="naive-quantized")  # by which readers tell weights alone
    return form, inputs


def _goes(form: WeightForm, inputs: InputForm) -> bool:
    """Whether runtimes have a kernel for the pair."""
    if inputs is NO_INPUTS:
        return True
    allowed = _PAIRS.get(inputs.kind, ())
    return bool(form.settings["symmetric"]) and form.kind in allowed


_FLOAT8 = ("float8 tensor", "float8 channel")
_PAIRS = {
    "int8 token dynamic inputs": ("int8 channel", "int4 channel", "int4 group"),
    "int8 tensor static inputs": ("int8 channel",),
    "float8 token dynamic inputs": (*_FLOAT8, "int4 group"),
    "float8 tensor dynamic inputs": _FLOAT8,
    "float8 tensor static inputs": _FLOAT8,
}


def _tensors(form: WeightForm, inputs: InputForm, scale_dtype: torch.dtype) -> dict[str, Tensor]:
    tensors = {**form.tensors, **inputs.tensors}
    if form.settings["type"] == "int":
        tensors["weight_scale"] = tensors["weight_scale"].to(scale_dtype)
    return tensors


def _tensors_of(stored: StoredWeight, scale_dtype: torch.dtype) -> dict[str, Tensor]:
    return _tensors(*_forms(stored), scale_dtype)


def _users(model: nn.Module) -> dict[int, list[str]]:
    """All names of each parameter."""
    found: dict[int, list[str]] = {}
    for name, each in model.named_parameters(remove_duplicate=False):
        found.setdefault(id(each), []).append(name)
    return found


def _unsaid(model: nn.Module, stored: Mapping[str, StoredWeight]) -> Iterator[str]:
    """What else the model computes that the checkpoint doesn't describe."""
    own = __name__.partition(".")[0]
    said = {id(each.layer): {"weight", "input"} for each in stored.values()}
    for path, module in model.named_modules():
        if isinstance(module, QuantLayer):
            for slot in module.slots:
                quant = getattr(module, f"{slot.name}_quant", None)
                if slot.backward or quant is None or slot.name in said.get(id(module), ()):
                    continue
                where = joined(path, f"{slot.name}_quant")
                yield (
                    f"{where}: these checkpoints describe only the weights and inputs of linear layers "
                    f"({quant.scheme()}). Leave it out: {slot.name}_quant=None."
                )
        elif type(module).__module__.partition(".")[0] == own and not _inside_quantizer(model, path):
            yield f"{path}: runtimes don't have {type(module).__name__} and would leave it out."


def _inside_quantizer(model: nn.Module, path: str) -> bool:
    parts = path.split(".")
    paths = (".".join(parts[:count]) for count in range(len(parts) + 1))
    return any(isinstance(model.get_submodule(each), TensorQuant) for each in paths)


def _plain(model: nn.Module, written: set[str]) -> dict[str, Tensor]:
    """All other tensors, each under its first name."""
    owned = tuple(
        f"{name}." for name, each in model.named_modules(remove_duplicate=False) if isinstance(each, TensorQuant)
    )
    found: dict[str, Tensor] = {}
    seen = set[int]()
    for name, each in model.state_dict(keep_vars=True).items():
        if name in written or (owned and name.startswith(owned)) or id(each) in seen:
            continue
        if not isinstance(each, Tensor):
            raise ExportError(f"{CALL}: {name} is {type(each).__name__}, and files hold tensors alone.")
        seen.add(id(each))
        found[name] = each.detach()
    return found


def _quantization(model: nn.Module, plan: Mapping[str, _Layer]) -> dict[str, object]:
    """The entry of ``config.json``: layers in groups that are quantized alike."""
    groups: list[tuple[_Layer, list[str]]] = []
    for path, layer in plan.items():
        alike = next((paths for first, paths in groups if first[:3] == layer[:3]), None)
        if alike is None:
            groups.append((layer, [path]))
        else:
            alike.append(path)
    linear = [path for path, each in model.named_modules() if isinstance(each, nn.Linear) and path not in plan]
    formats = {layer.format for layer, _ in groups}
    return {
        "quant_method": "compressed-tensors",
        "format": formats.pop() if len(formats) == 1 else "mixed-precision",
        "quantization_status": "compressed",
        "global_compression_ratio": None,
        "kv_cache_scheme": None,
        "ignore": linear,
        "config_groups": {
            f"group_{number}": {
                "targets": ["Linear"] if len(groups) == 1 else paths,
                "weights": layer.weights,
                "input_activations": layer.inputs,
                "output_activations": None,
                "format": layer.format,
            }
            for number, (layer, paths) in enumerate(groups)
        },
    }


def _row(stored: StoredWeight, layer: _Layer) -> StorageRow:
    scale = layer.tensors["weight_scale"]
    count = torch.Size(scale.shape).numel()
    kinds = {torch.float32: "FLOAT", torch.bfloat16: "BFLOAT16", torch.float16: "FLOAT16", torch.uint8: "FLOAT8E8M0"}
    under = " under one FLOAT" if "weight_global_scale" in layer.tensors else ""
    text = f"{count} x {kinds.get(scale.dtype, 'FLOAT8E4M3FN')}{under}"
    size = sum(each.nbytes for name, each in layer.tensors.items() if name.startswith("weight") and "shape" not in name)
    return StorageRow(stored.name, tuple(stored.tensor.shape), f"{layer.format}, {layer.kind}", text, size)
