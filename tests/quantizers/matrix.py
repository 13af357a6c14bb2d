"""Which formats there are with which granularity, by the quantizers that declare them: the table of docs/formats.md."""

import re
from pathlib import Path

import torch

import bitwright.nn as qnn
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
    """Write the rows anew, and keep what the last columns say: ``python -m tests.quantizers.matrix``."""
    known, text = table(), PAGE.read_text(encoding="utf-8")
    head, mark, rest = text.partition("\n## The table\n")
    section, end, after = rest.partition("\n## ")
    lines = [
        f"| {' | '.join([*key, *cells, *(known[key][4:] if key in known else ['', ''])])} |\n"
        for key, cells in expected().items()
    ]
    above, rule, _ = re.split(r"(^\| ---.*\n)", section, maxsplit=1, flags=re.MULTILINE)
    below = ROW.sub("", section.partition(rule)[2])
    PAGE.write_text(head + mark + above + rule + "".join(lines) + below + end + after, encoding="utf-8")


if __name__ == "__main__":
    rewrite()
