"""The rule of names: ``[Shifted]<Format>[Dynamic](Weight|Act|Bias|Grad)[granularity][how the scale is found]``."""

import re

import pytest

from bitwright.qcore import (
    BINARY,
    E2M1,
    E2M3,
    E3M2,
    E4M3,
    E4M3FNUZ,
    E5M2,
    E5M2FNUZ,
    NF4,
    Integers,
    MXScale,
    OddIntegers,
    PerAxis,
    PerGroup,
    PerTensor,
    PerToken,
    StatisticScaling,
    TwoLevel,
    powers_of_two,
    resolve,
    settings,
)
from tests.quantizers.shipped import COMPLETE, KNOWING

FORMAT = (
    r"Int\d+|Uint\d+|OddInt\d+|Fp\d+e\d+m\d+(?:fnuz)?|MXFloat\d+e\d+m\d+|MXInt8|NVFloat4|NF4|Pot\d+|Apot\d+|"
    r"Binary(?:Connect)?|Ternary"
)
RULE = re.compile(
    rf"(?P<shifted>Shifted)?(?P<format>{FORMAT})(?P<dynamic>Dynamic)?(?P<slot>Weight|Act|Bias|Grad)"
    r"(?P<granularity>PerTensor|PerChannel|PerGroup|PerToken)?(?P<own>OwnScale)?(?P<scale>\w+)?"
)
FLOATS = {
    "8e4m3": E4M3,
    "8e5m2": E5M2,
    "8e4m3fnuz": E4M3FNUZ,
    "8e5m2fnuz": E5M2FNUZ,
    "6e3m2": E3M2,
    "6e2m3": E2M3,
    "4e2m1": E2M1,
}
SCALES = {  # how the scale is found, by the last part of the name
    None,
    "PowerOfTwo",
    "Learned",
    "MSE",
    "LSQ",
    "LSQPlus",
    "PACT",
    "SAWB",
    "DoReFa",
    "WRPN",
    "HQO",
    "KL",
    "QuantizedScale",
    "Norm",
    "A2Q",
    "A2QPlus",
}
CUT = {"TruncTo8bit"}  # Brevitas' name, for what drops bits of sums
RULED = {name: each for name, each in COMPLETE.items() if name not in CUT}
GROUPS = {"MX": 32, "NV": 16, "NF": 64}
every = pytest.mark.parametrize("name", RULED)


def said(name):
    """The parts of a name."""
    found = RULE.fullmatch(name)
    assert found is not None, f"{name} does not follow the rule of names"
    return found.groupdict()


def built(name):
    quantizer = COMPLETE[name](**KNOWING.get(name, {}))
    provided = {"channel_axis": 0, "channels": 4, "shape": (4, 64)} if said(name)["slot"] == "Weight" else {}
    return resolve(quantizer, provided)


def expected_format(parts, signed):
    """The levels that a name says."""
    form, narrow = parts["format"], parts["slot"] in ("Weight", "Bias", "Grad")
    (bits,) = re.findall(r"(\d+)", form)[:1] or ["1"]
    if form.startswith(("Fp", "MXFloat")):
        return FLOATS[form.removeprefix("Fp").removeprefix("MXFloat")]
    fixed = {"NVFloat4": E2M1, "NF4": NF4, "Binary": BINARY, "BinaryConnect": BINARY}
    fixed["Ternary"] = Integers(2, narrow_range=True)
    fixed["Pot4"] = powers_of_two(4)
    if form.startswith("OddInt") or (parts["scale"] == "DoReFa" and parts["slot"] == "Weight"):
        return OddIntegers(int(bits))
    return fixed.get(form) or Integers(int(bits), not form.startswith("Uint"), narrow and signed)


@every
def test_a_name_says_levels_granularity_and_kind_of_scale(name):
    parts, quant = said(name), built(name)
    form, slot = parts["format"], parts["slot"]
    role = {"Weight": "weight", "Act": "activation", "Bias": "bias", "Grad": "gradient"}[slot]
    assert settings(COMPLETE[name])["quantizes"].declared == role
    if quant.follows_input:
        assert parts["own"] is None
        assert quant.scheme().startswith(f"{form.lower()}, ")
        return
    levels = quant.number_format
    if levels.whole and form != "Ternary":
        width, signed = int(form.lstrip("MXUuOdIint")), not form.startswith("Uint")
        assert (levels.bits, levels.signed) == (width, signed)
    elif getattr(quant.zero_point, "whole", True) and not form.startswith(("Apot", "Pot")):
        assert levels == expected_format(parts, True)
    assert (quant.zero_point is not None) == bool(parts["shifted"])
    group = next((PerGroup(size, 1 if slot == "Weight" else -1) for kind, size in GROUPS.items() if kind in form), None)
    stated = {
        "PerTensor": PerTensor(),
        "PerChannel": PerAxis(0 if slot == "Weight" else 1),
        "PerGroup": PerGroup(32, 1 if slot == "Weight" else -1),
        "PerToken": PerToken(),
    }
    assert quant.granularity == (group or stated.get(parts["granularity"], PerTensor()))
    if slot == "Weight" and group is None and form != "BinaryConnect":
        assert parts["granularity"] is not None, "weights say which of them share a scale"
    if slot == "Act":
        dynamic = bool(parts["dynamic"]) or group is not None
        assert isinstance(quant.scaling, StatisticScaling) == dynamic
        assert not (dynamic and list(quant.parameters()))
    restriction = type(getattr(quant.scaling, "restriction", None))
    assert (restriction is MXScale) == form.startswith("MX")
    assert (restriction is TwoLevel) == (form.startswith("NV") or parts["scale"] == "QuantizedScale")
    assert parts["scale"] in SCALES
    assert (parts["scale"] in ("Learned", "MSE", "LSQ", "LSQPlus", "PACT", "Norm", "A2Q", "A2QPlus")) <= bool(
        list(quant.parameters())
    )


def test_names_that_break_the_rule_are_found():
    for wrong in ("WeightInt8", "Int8DynamicWeightPerRow!", "E4m3Act", "Int8"):
        with pytest.raises(AssertionError, match="does not follow the rule of names"):
            said(wrong)
