"""Which formats there are with which granularity, by the quantizers that declare them: the table of docs/formats.md."""

import re
import warnings
from pathlib import Path

import torch

import bitwright.nn as qnn
from bitwright.export import export_onnx_qdq, storage_report, verify_onnx
from bitwright.qcore import GridQuant, PerAxis, PerGroup, settings
from bitwright.quantizers import Int8Act
from tests.quantizers.shipped import COMPLETE

INPUTS, OUTPUTS = 72, 5


def role(quantizer):
    """What it quantizes."""
    return settings(quantizer)["quantizes"].declared


def layer(quantizer, **options):
    """A layer that uses a quantizer as what it is for, ready to train."""
    torch.manual_seed(0)
    if role(quantizer) == "weight":
        inputs = Int8Act(scale=0.05) if "accumulator_bit_width" in settings(quantizer) else None  # A2Q goes by its grid
        return qnn.QuantLinear(INPUTS, OUTPUTS, weight_quant=quantizer, input_quant=inputs, **options)
    if role(quantizer) == "bias":
        return qnn.QuantLinear(INPUTS, OUTPUTS, input_quant=Int8Act(scale=0.05), bias_quant=quantizer, **options)
    if role(quantizer) == "gradient":
        return qnn.QuantLinear(INPUTS, OUTPUTS, grad_quant=quantizer, **options)
    if getattr(settings(quantizer)["tensor_quant"].declared, "truncates", False):
        given = {"bias": False, "input_quant": Int8Act(scale=0.05), "output_quant": quantizer}
        return qnn.QuantLinear(INPUTS, OUTPUTS, **given, **options)
    calibrated = settings(quantizer)["scaling"].declared == "calibrated"
    steps = {"input_calibration_steps": 1} if calibrated else {}
    module = qnn.QuantLinear(INPUTS, OUTPUTS, input_quant=quantizer, **steps, **options)
    module(torch.randn(256, INPUTS, generator=torch.Generator().manual_seed(1)))
    return module


def quant_of(quantizer):
    """The module that a quantizer of weights or activations resolves to."""
    module = layer(quantizer)
    return module.weight_quant if role(quantizer) == "weight" else module.input_quant


def granularity(quant):
    """Who shares a scale, in the words of the table."""
    found = quant.granularity
    if isinstance(found, PerAxis):
        return "per channel"
    return f"groups of {found.group_size}" if isinstance(found, PerGroup) else str(found)


def scales(quant):
    """Which scales there are, in the words of the table."""
    kind = getattr(getattr(quant.scaling, "restriction", None), "kind", "float")
    return kind.partition(" (")[0]


def rows():
    """The rows of the table: format, granularity, scales, and the quantizers of weights and activations."""
    found = {}
    for name, quantizer in COMPLETE.items():
        if role(quantizer) not in ("weight", "activation"):
            continue
        quant = quant_of(quantizer)
        if isinstance(quant, GridQuant):
            zero_point = "" if quant.zero_point is None else ", zero point"
            key = (f"{quant.scheme().partition(',')[0]}{zero_point}", granularity(quant), scales(quant))
            found.setdefault(key, {"weight": [], "activation": []})[role(quantizer)].append(name)
    return {key: found[key] for key in sorted(found)}


def written(names):
    """Quantizers as a cell of the table has them."""
    return ", ".join(f"`{name}`" for name in sorted(names)) or "none"


WIDE = 64  # a weight of 64 x 64 numbers is what bytes are counted for


def stored(quantizer):
    """How the file of a layer holds its weight, and the bytes a number; the file agrees with the layer."""
    torch.manual_seed(0)
    inputs = Int8Act(scale=0.05) if "accumulator_bit_width" in settings(quantizer) else None
    module = qnn.QuantLinear(WIDE, WIDE, bias=False, weight_quant=quantizer, input_quant=inputs).eval()
    (row,) = [each for each in storage_report(_agreeing(module)).rows if each.name == "weight_quant"]
    return row.stored_as, f"{row.bytes / WIDE**2:.4f}"


def computed(quantizer):
    """How a file quantizes activations; it agrees with the layer."""
    torch.manual_seed(0)
    truncates = getattr(settings(quantizer)["tensor_quant"].declared, "truncates", False)
    inputs, outputs = (Int8Act(scale=0.05), quantizer) if truncates else (quantizer, None)
    module = qnn.QuantLinear(WIDE, 4, bias=False, input_quant=inputs, output_quant=outputs)
    module(_samples(0, 256))
    qnn.finish_calibration(module.eval())
    graph = _agreeing(module).model.graph
    name = f"{'output' if truncates else 'input'}_quant.quantize"
    ways = [_way(node) for node in graph if node.op_type == "QuantizeLinear" and node.name == name]
    return ways[0] if ways else "arithmetic"


def _way(node):
    """What a QuantizeLinear node is used for: dynamic scales aren't stored; other formats round before it does."""
    dynamic = "" if node.inputs[1].is_initializer() else "scale computed, "
    before, pending = set(), [node.inputs[0]]
    while pending:
        maker = pending.pop().producer()
        if maker is not None and maker.op_type != "DequantizeLinear":
            before.add(maker.op_type)
            pending += [each for each in maker.inputs if each is not None]
    rounds = "arithmetic, " if before & {"Round", "Floor", "GreaterOrEqual"} else ""
    return f"{dynamic}{rounds}QuantizeLinear to {node.outputs[0].dtype.name}"


def _samples(seed, count):
    return torch.randn(count, WIDE, generator=torch.Generator().manual_seed(seed))


def _agreeing(module):
    """The exported module, compared with it on what the export saw and on what it did not."""
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        program = export_onnx_qdq(module, _samples(1, 8))
    report = verify_onnx(module, program, _samples(2, 64))
    assert report.differences == 0, f"{report.table()}\n{module}"
    return program


def exports(weights, acts):
    """The last cells of a row: how files hold its weights and quantize its activations, and bytes a weight."""
    forms, sizes = zip(*(stored(COMPLETE[name]) for name in weights), strict=True) if weights else ((), ())
    ways = [computed(COMPLETE[name]) for name in acts]
    cells = [" or ".join(sorted(set(each))) for each in (forms, ways)]
    return ["; ".join(filter(None, cells)), " or ".join(sorted(set(sizes))) or "none"]


def listed(cell):
    """The quantizers that a cell of the table lists."""
    return re.findall(r"`(\w+)`", cell)


PAGE = Path(__file__).parents[2] / "docs" / "formats.md"
ROW = re.compile(r"^\| (?!Format \||---)(.*) \|\n", flags=re.MULTILINE)


def table():
    """The table as it stands: what each row says, by format, granularity and scales."""
    text = PAGE.read_text(encoding="utf-8").partition("\n## The table\n")[2].partition("\n## ")[0]
    found = [[cell.strip() for cell in line.split("|")] for line in ROW.findall(text)]
    return {tuple(cells[:3]): cells[3:] for cells in found}


def expected():
    """What the first columns must say: that all of them train and compile is what the tests beside this show."""
    return {key: [written(each["weight"]), written(each["activation"]), "yes", "yes"] for key, each in rows().items()}


def rewrite():
    """Write the rows anew, ``python -m tests.quantizers.matrix``: new ones, and those whose last cells are empty.

    Those take some seconds each, as their quantizers are exported.
    """
    quantizers, known = rows(), table()
    lines = []
    for key, cells in expected().items():
        kept = known.get(key, [])
        last = kept[4:] if kept[:4] == cells and all(kept) else exports(*quantizers[key].values())
        lines.append(f"| {' | '.join([*key, *cells, *last])} |\n")
    head, mark, rest = PAGE.read_text(encoding="utf-8").partition("\n## The table\n")
    section, end, after = rest.partition("\n## ")
    above, rule, _ = re.split(r"(^\| ---.*\n)", section, maxsplit=1, flags=re.MULTILINE)
    below = ROW.sub("", section.partition(rule)[2])
    PAGE.write_text(head + mark + above + rule + "".join(lines) + below + end + after, encoding="utf-8")


if __name__ == "__main__":
    rewrite()
