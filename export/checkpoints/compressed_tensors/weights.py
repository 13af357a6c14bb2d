"""The weight of a layer as compressed-tensors holds it."""

from collections.abc import Callable
from typing import NamedTuple

import torch
from torch import Tensor

from ....qcore import E2M1, E2M3, E4M3, GridQuant, PerGroup
from ....qcore.formats.integers import Integers
from ....qcore.formats.number_format import NumberFormat
from ....qcore.scaling.restriction import MXScale
from ...errors import ExportError
from ..packed.forms import in_a_byte
from ..stored_weights import Coded
from .words import in_bytes, in_words

__all__ = ["WeightForm", "weight_form"]

Settings = dict[str, object]


class WeightForm(NamedTuple):
    """A weight as tensors, and what the configuration says of it.

    Args:
        format: how it is written, such as ``"pack-quantized"``.
        settings: of the weights, as the configuration has them.
        tensors: by their names in the layer.

    Example:
        >>> WeightForm("pack-quantized", {"num_bits": 4, "strategy": "group"}, {}).kind
        'int4 group'
    """

    format: str
    settings: Settings
    tensors: dict[str, Tensor]

    @property
    def kind(self) -> str:
        """Type, width and strategy, in words."""
        said = self.settings
        return f"{said.get('type', 'int')}{said['num_bits']} {said['strategy']}"


def weight_form(quant: GridQuant, coded: Coded, plain: bool) -> WeightForm:
    """The form for a weight (outputs, inputs).

    Args:
        quant: its quantizer.
        coded: the weight as codes.
        plain: integers in a byte each, as layers with quantized inputs have them; else packed.

    Raises:
        ExportError: the text names what compressed-tensors can't hold.

    Example:
        >>> import bitwright.nn as qnn
        >>> from bitwright.export.checkpoints.stored_weights import stored_weights
        >>> layer = qnn.QuantLinear(64, 2, weight_bit_width=4)
        >>> stored = next(stored_weights(layer))
        >>> form = weight_form(layer.weight_quant, stored.coded(), plain=False)
        >>> form.format, form.kind, form.tensors["weight_packed"].shape
        ('pack-quantized', 'int4 channel', torch.Size([2, 8]))
    """
    levels = coded.grid.number_format
    if isinstance(levels, Integers):
        return _integers(coded, int(levels.bit_width), plain)
    rule = getattr(quant.scaling, "restriction", None)
    scales = "MX" if isinstance(rule, MXScale) else "float" if coded.grid.scale_format is None else "two-level"
    write = _FLOATS.get((levels, scales))
    if write is None:
        raise ExportError(
            f"compressed-tensors does not hold {levels} with {scales} scales. Choose integers of 2 to 8 bits, "
            "Fp8e4m3WeightPerChannel, MXFloat8e4m3Weight, MXFloat6e2m3Weight, MXFloat4e2m1Weight or NVFloat4Weight"
        )
    return write(coded)


def _settings(number: str, width: int, strategy: str, **more: object) -> Settings:
    always = {"num_bits": width, "type": number, "symmetric": True, "strategy": strategy, "dynamic": False}
    return {**always, "group_size": None, **more}


def _strategy(coded: Coded) -> tuple[str, tuple[int, ...]]:
    """Which weights share a scale, as compressed-tensors calls it, and how many along each dimension."""
    shape = tuple(coded.codes.shape)
    outputs, inputs = shape
    granularity = coded.grid.granularity
    rows, columns = granularity.block(shape)
    if isinstance(granularity, PerGroup) and granularity.group_size == inputs and rows == 1:
        return "group", (rows, columns)  # one of them, as in layers with more inputs
    if (rows, columns) == shape:
        return "tensor", shape
    if rows == 1 and columns == inputs:
        return "channel", (rows, columns)
    if rows == 1 and columns > 1 and inputs % columns == 0:
        return "group", (rows, columns)
    if rows > 1 and columns > 1 and inputs % columns == 0:
        return "block", (rows, columns)
    raise ExportError(
        f"compressed-tensors has no scales for {granularity} of a weight of {outputs} x {inputs}. Choose "
        "one scale, one for each output channel, or groups along the inputs whose size divides their number"
    )


def _integers(coded: Coded, width: int, plain: bool) -> WeightForm:
    if not 2 <= width <= 8:
        raise ExportError(f"compressed-tensors holds integers of 2 to 8 bits, not {width}")
    strategy, (_, columns) = _strategy(coded)
    if strategy == "block":
        raise ExportError(f"compressed-tensors has no {coded.grid.granularity} for integers")
    grid, outputs = coded.grid, coded.codes.shape[0]
    scale = grid.scale.detach().cpu().expand(outputs, 1) if strategy == "tensor" else grid.scale.detach().cpu()
    strategy = "channel" if strategy == "tensor" else strategy  # which every kernel takes
    codes, zero_point = coded.codes.cpu().to(torch.int16), grid.zero_point
    symmetric = grid.signed and zero_point is None
    below = 0 if grid.signed else 2 ** (width - 1)  # numbers are signed in these files
    settings = _settings("int", width, strategy, symmetric=symmetric)
    if strategy == "group":
        settings["group_size"] = columns
    tensors = {"weight_scale": scale.contiguous()}
    codes = (codes - below).to(torch.int8)
    if plain:
        tensors["weight"] = codes
    else:
        tensors |= {"weight_packed": in_words(codes, width), "weight_shape": torch.tensor(codes.shape)}
    if not symmetric:
        zeros = torch.zeros(()) if zero_point is None else zero_point.detach().cpu()
        zeros = (zeros.expand(scale.shape).to(torch.int16) - below).to(torch.int8)
        tensors["weight_zero_point"] = zeros if plain else in_words(zeros.t(), width).t().contiguous()
    return WeightForm("int-quantized" if plain else "pack-quantized", settings, tensors)


def _float8(coded: Coded) -> WeightForm:
    strategy, block = _strategy(coded)
    scale = coded.grid.scale.detach().cpu()
    settings = _settings("float", 8, strategy)
    if strategy == "group":
        raise ExportError("compressed-tensors has no groups for E4M3 weights with float scales")
    if strategy == "block":
        settings["block_structure"] = list(block)
    scale = scale.reshape(1) if strategy == "tensor" else scale.contiguous()
    return WeightForm("float-quantized", settings, {"weight": _e4m3(coded.codes), "weight_scale": scale})


def _e4m3(codes: Tensor) -> Tensor:
    return codes.cpu().contiguous().view(torch.float8_e4m3fn)


def _groups_of(size: int, coded: Coded, width: int) -> None:
    """Refuse another group size than that of the format, and rows that fill no whole bytes."""
    strategy, (_, columns) = _strategy(coded)
    if (strategy, columns) != ("group", size):
        raise ExportError(f"compressed-tensors has groups of {size} for {coded.grid.number_format}, not of {columns}")
    assert size * width % 8 == 0


def _microscaled(width: int) -> Callable[[Coded], WeightForm]:
    """Small floats with a power of two for each 32."""

    def write(coded: Coded) -> WeightForm:
        _groups_of(32, coded, width)
        settings = _settings("float", width, "group", group_size=32, scale_dtype="torch.uint8", zp_dtype="torch.uint8")
        tensors = {"weight_scale": in_a_byte(coded.grid.scale.detach().cpu())}
        if width == 8:
            return WeightForm("mxfp8-quantized", settings, {**tensors, "weight": _e4m3(coded.codes)})
        tensors["weight_packed"] = in_bytes(coded.codes, width)
        return WeightForm(f"mxfp{width}-pack-quantized", settings, tensors)

    return write


def _nvfp4(coded: Coded) -> WeightForm:
    """E2M1 with an E4M3 scale for each 16, and one that all of them are divided by."""
    _groups_of(16, coded, 4)
    scales = coded.grid.scales
    assert scales is not None
    e4m3 = "torch.float8_e4m3fn"
    settings = _settings("float", 4, "tensor_group", group_size=16, scale_dtype=e4m3, zp_dtype=e4m3)
    tensors = {
        "weight_packed": in_bytes(coded.codes, 4),
        "weight_scale": _e4m3(scales.to_int(coded.grid.scale)),
        "weight_global_scale": (1 / scales.scale.detach().cpu().double()).float().reshape(1),
    }
    return WeightForm("nvfp4-pack-quantized", settings, tensors)


_FLOATS: dict[tuple[NumberFormat, str], Callable[[Coded], WeightForm]] = {
    (E4M3, "float"): _float8,
    (E4M3, "MX"): _microscaled(8),
    (E2M3, "MX"): _microscaled(6),
    (E2M1, "MX"): _microscaled(4),
    (E2M1, "two-level"): _nvfp4,
}
