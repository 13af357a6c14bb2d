"""The integers of a model in a file: a numpy archive or safetensors, without gaps between the bits.

Both hold the same arrays, each named by its quantizer: ``<name>.codes``, packed as `bitwright.export.integer.packing`
says, ``<name>.scale`` (float32), ``<name>.zero_point`` (int64), and ``<name>.entering.<number>`` (float32): the scales
of the terms that a quantizer takes. Everything else is one JSON text under the name ``bitwright``: an array of bytes in
a numpy archive, an entry of the header's metadata in safetensors::

    {"version": 2,
     "layers": [{"name", "kind", "settings", "quantizers": {slot: quantizer}, "input": grid, "output": grid,
                 "products": [{"weight": slot, "bias": slot, "input": grid}]}],
     "quantizers": {name: {"shape", "dtype", "bit_width", "signed", "narrow_range", "axis", "block",
                           "entering": {"terms", "axis", "low", "high", "rounding"}, "number_format"}},
     "sums": {name: {"bit_width", "signed", "narrow_range", "axis", "block"}},
     "floats": [{"path", "kind", "operations", "place"}]}

``shape`` is null for activations, which have no stored integers, and ``entering`` where a quantizer takes floats. A
grid is the name of a quantizer or of an entry of ``sums``: the grids of sums. Of a number format other than integers,
``number_format`` is the name, and ``<name>.levels`` (float32) has the level of each code; a file without any has
version 2, and no ``number_format``.
"""

import json
import os
import struct
from dataclasses import asdict
from pathlib import Path

import torch
from torch import Tensor

from ...qcore.aliases import Keywords
from ..capture.grid import Entering, IntegerGrid, QuantizedTensor
from ..errors import ExportError
from ..optional import required
from .float_modules import FloatModule
from .layers import LayerIntegers, LayerProduct, LayerTable
from .packing import pack_integers, unpack_integers

__all__ = ["load", "save_npz", "save_safetensors"]

KEY, VERSIONS = "bitwright", (2, 3)  # the later one where levels are no integers


def save_npz(integers: LayerTable, path: str | os.PathLike[str]) -> None:
    """Write a compressed numpy archive; the name is used as it is."""
    numpy = required("numpy", "save_npz")
    text, tensors = _taken_apart(integers)
    arrays = {name: each.numpy() for name, each in tensors.items()}
    arrays[KEY] = numpy.frombuffer(text.encode(), dtype="uint8")
    with open(path, "wb") as file:  # given a name, numpy would add .npz to it
        numpy.savez_compressed(file, **arrays)


def save_safetensors(integers: LayerTable, path: str | os.PathLike[str]) -> None:
    """Write a safetensors file."""
    required("numpy", "save_safetensors")  # which safetensors imports to write
    safetensors = required("safetensors.torch", "save_safetensors")
    text, tensors = _taken_apart(integers)
    safetensors.save_file(tensors, os.fspath(path), metadata={KEY: text})


def load(path: str | os.PathLike[str]) -> tuple[dict[str, LayerIntegers], tuple[FloatModule, ...]]:
    """Read a file of either kind."""
    with open(path, "rb") as file:
        start = file.read(9)
    if start[:4] == b"PK\x03\x04":
        text, tensors = _from_npz(Path(path))
    elif len(start) == 9 and start[8:] == b"{" and struct.unpack("<Q", start[:8])[0] <= Path(path).stat().st_size:
        text, tensors = _from_safetensors(Path(path))
    else:
        raise ExportError(f"Integers.load({os.fspath(path)!r}): the file is neither a numpy archive nor safetensors.")
    if text is None:
        raise ExportError(
            f"Integers.load({os.fspath(path)!r}): the file has no entry {KEY!r}. Load what save_npz or "
            "save_safetensors wrote."
        )
    described = json.loads(text)
    if described["version"] not in VERSIONS:
        raise ExportError(
            f"Integers.load({os.fspath(path)!r}): the file is of version {described['version']}, and this bitwright "
            f"reads versions {' and '.join(map(str, VERSIONS))}. Load it with the bitwright that wrote it, or write it "
            "again."
        )
    return _put_together(described, tensors)


def _from_npz(path: Path) -> tuple[str | None, dict[str, Tensor]]:
    numpy = required("numpy", "Integers.load")
    with numpy.load(path, allow_pickle=False) as archive:
        text = archive[KEY].tobytes().decode() if KEY in archive else None
        return text, {name: torch.from_numpy(archive[name]) for name in archive if name != KEY}


def _from_safetensors(path: Path) -> tuple[str | None, dict[str, Tensor]]:
    required("safetensors.torch", "Integers.load")
    with required("safetensors", "Integers.load").safe_open(os.fspath(path), framework="pt") as file:
        text = (file.metadata() or {}).get(KEY)
        return text, {name: file.get_tensor(name) for name in file.keys()}  # noqa: SIM118 - not a dict


def _taken_apart(integers: LayerTable) -> tuple[str, dict[str, Tensor]]:
    tensors: dict[str, Tensor] = {}
    quantizers: dict[str, dict[str, object]] = {}
    sums: dict[str, dict[str, object]] = {}
    layers = []

    def grid(each: IntegerGrid) -> dict[str, object]:
        tensors[f"{each.name}.scale"], tensors[f"{each.name}.zero_point"] = each.scale, each.zero_point
        if each.levels is not None:
            tensors[f"{each.name}.levels"] = each.levels
        names = ("bit_width", "signed", "narrow_range", "axis", "block")
        found: dict[str, object] = {name: getattr(each, name) for name in names}
        return found if each.number_format is None else {**found, "number_format": each.number_format}

    for name, part in integers.quantized().items():
        entry = {"shape": None, **grid(part.grid), "entering": None}
        if part.entering is not None:
            plain = {key: getattr(part.entering, key) for key in ("axis", "low", "high", "rounding")}
            entry["entering"] = {"terms": len(part.entering.scales), **plain}
            tensors |= {f"{name}.entering.{number}": each for number, each in enumerate(part.entering.scales)}
        if part.codes is not None:
            entry |= {"shape": list(part.codes.shape), "dtype": str(part.codes.dtype).removeprefix("torch.")}
            tensors[f"{name}.codes"] = pack_integers(part.codes, part.grid.bit_width, part.grid.signed)
        quantizers[name] = entry
    for layer in integers.layers.values():
        for each in (layer.input, layer.output, *(product.input for product in layer.products)):
            if each is not None and each.name not in quantizers:
                sums[each.name] = grid(each)
        layers.append(
            {
                "name": layer.name,
                "kind": layer.kind,
                "settings": layer.settings,
                "quantizers": {slot: each.grid.name for slot, each in layer.quantizers.items()},
                "input": None if layer.input is None else layer.input.name,
                "output": None if layer.output is None else layer.output.name,
                "products": [
                    {"weight": each.weight, "bias": each.bias, "input": each.input.name} for each in layer.products
                ],
            }
        )
    floats = [asdict(each) for each in integers.floats]
    version = VERSIONS[any("number_format" in each for each in quantizers.values())]
    described = {"version": version, "layers": layers, "quantizers": quantizers, "sums": sums, "floats": floats}
    return json.dumps(described), tensors


def _put_together(
    described: Keywords, tensors: dict[str, Tensor]
) -> tuple[dict[str, LayerIntegers], tuple[FloatModule, ...]]:
    def grid(name: str, entry: Keywords) -> IntegerGrid:
        plain = {key: entry[key] for key in ("bit_width", "signed", "narrow_range", "axis")}
        plain["block"] = entry.get("block")  # files of version 0.1 have none
        plain |= {"levels": tensors.get(f"{name}.levels"), "number_format": entry.get("number_format")}
        return IntegerGrid(name, tensors[f"{name}.scale"], tensors[f"{name}.zero_point"], **plain)

    grids = {name: grid(name, each) for name, each in {**described["sums"], **described["quantizers"]}.items()}
    parts = {}
    for name, entry in described["quantizers"].items():
        codes = None
        if entry["shape"] is not None:
            codes = unpack_integers(
                tensors[f"{name}.codes"], entry["bit_width"], entry["signed"], tuple(entry["shape"])
            )
            codes = codes.to(getattr(torch, entry["dtype"]))
        entering = entry["entering"]
        if entering is not None:
            scales = tuple(tensors[f"{name}.entering.{number}"] for number in range(entering.pop("terms")))
            entering = Entering(scales, **entering)
        parts[name] = QuantizedTensor(grids[name], codes, entering)
    layers = {}
    for each in described["layers"]:
        slots = {slot: parts[name] for slot, name in each["quantizers"].items()}
        entering, leaving = (None if each[end] is None else grids[each[end]] for end in ("input", "output"))
        products = tuple(
            LayerProduct(one["weight"], one["bias"], grids[one["input"]]) for one in each.get("products", [])
        )  # files of version 0.1 have none
        plain = (each["name"], each["kind"], slots, entering, leaving, each["settings"])
        layers[each["name"]] = LayerIntegers(*plain, products)
    floats = (FloatModule(**{**each, "operations": tuple(each["operations"])}) for each in described["floats"])
    return layers, tuple(floats)
