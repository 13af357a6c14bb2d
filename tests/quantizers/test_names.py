"""Every exported quantizer is what its name says."""

import re
from typing import TypeVar

import pytest
import torch

import bitwright.nn as qnn
from bitwright import quantizers
from bitwright.qcore import (
    BiasQuant,
    CalibratedScaling,
    FloatScale,
    IntQuant,
    LearnedScaling,
    PerAxis,
    PerGroup,
    PerTensor,
    PowerOfTwoScale,
    Quantizer,
    QuantTensor,
    RangeZeroPoint,
    StatisticScaling,
    int_bounds,
    resolve,
)
from bitwright.quantizers import (
    Int8Act,
    activations,
    base,
    biases,
    binary,
    codebooks,
    dynamic,
    floats,
    microscaling,
    weights,
)
from tests.quantizers.shipped import FRAGMENTS, MAKERS, USUAL

NAME = re.compile(
    r"(?P<shifted>Shifted)?(?P<kind>Int|Uint)(?P<bits>\d+)(?P<slot>Weight|Act|Bias)"
    r"(?P<granularity>PerTensor|PerChannel|PerGroup)?(?P<own>OwnScale)?(?P<scale>PowerOfTwo|Learned|MSE)?"
)
QUANTIZERS = list(USUAL.values())
FAMILIES = list({re.sub(r"\d+", "", each.__name__): each for each in QUANTIZERS}.values())  # one for all bit widths
every = pytest.mark.parametrize("quantizer", QUANTIZERS, ids=repr)


def said(quantizer):
    """The parts of a quantizer's name."""
    return NAME.fullmatch(quantizer.__name__).groupdict()


def layer(quantizer, **overrides):
    """A layer that takes it."""
    slot = said(quantizer)["slot"]
    if slot == "Weight":
        return qnn.QuantConv2d(2, 3, 3, weight_quant=quantizer, **overrides)
    if slot == "Bias":
        return qnn.QuantConv2d(2, 3, 3, input_quant=Int8Act(scale=0.1), bias_quant=quantizer, **overrides)
    return qnn.QuantIdentity(act_quant=quantizer, return_quant_tensor=True, **overrides)


def quant_of(module, quantizer):
    return getattr(module, said(quantizer)["slot"].lower() + "_quant")


@every
def test_name_follows_the_rule(quantizer):
    parts = said(quantizer)
    assert (parts["granularity"] is not None) >= (parts["slot"] == "Weight")
    assert (parts["own"] is None) or parts["slot"] == "Bias"
    assert (parts["shifted"] is None) or parts["kind"] == "Uint"


def test_names_are_those_of_the_classes():
    for name in quantizers.__all__:
        assert getattr(quantizers, name).__name__ == name
        assert name in MAKERS or issubclass(getattr(quantizers, name), Quantizer)
    assert len(set(quantizers.__all__)) == len(quantizers.__all__)
    assert FRAGMENTS | MAKERS <= set(quantizers.__all__)


def test_every_declared_one_is_exported():
    for module in (activations, base, biases, binary, codebooks, dynamic, floats, microscaling, weights):
        assert set(module.__all__) <= set(quantizers.__all__)
        own = {name: item for name, item in vars(module).items() if getattr(item, "__module__", "") == module.__name__}
        public = {name for name, item in own.items() if not (isinstance(item, TypeVar) or name.startswith("_"))}
        assert public == set(module.__all__)


@every
def test_documented(quantizer):
    assert quantizer.__doc__.strip().split("\n")[0].endswith(".")


@every
def test_two_bases_at_most(quantizer):
    assert 1 <= len(quantizer.__bases__) <= 2


@every
def test_resolves_to_what_its_name_says(quantizer):
    parts, quant = said(quantizer), quant_of(layer(quantizer), quantizer)
    follows = parts["slot"] == "Bias" and not parts["own"]
    assert type(quant) is (BiasQuant if follows else IntQuant)
    assert quant.int_range.bit_width == int(parts["bits"])
    assert quant.int_range.signed == (parts["kind"] == "Int")
    assert quant.quantizer == quantizer
    assert quant.follows_input == follows
    if follows:
        return
    assert (type(quant.zero_point) is RangeZeroPoint) == bool(parts["shifted"])
    channels = PerAxis(0 if parts["slot"] == "Weight" else 1)
    granularity = {"PerChannel": channels, "PerGroup": PerGroup(32, 1)}.get(parts["granularity"], PerTensor())
    assert quant.granularity == quant.scaling.granularity == granularity
    assert quant.axis == quant.scaling.axis == granularity.axis
    assert quant.zero_point is None or quant.zero_point.granularity == granularity
    assert type(quant.scaling.restriction) is (PowerOfTwoScale if parts["scale"] == "PowerOfTwo" else FloatScale)
    learned = parts["scale"] in ("Learned", "MSE")
    expected = CalibratedScaling if parts["slot"] == "Act" else LearnedScaling if learned else StatisticScaling
    assert type(quant.scaling) is expected
    symmetric = parts["slot"] != "Act" and parts["kind"] == "Int"
    assert quant.narrow_range == symmetric


@pytest.mark.filterwarnings("ignore:.* is clipped:UserWarning")  # a bias of 8 bits may be
@every
def test_granularity_of_the_scale(quantizer):
    parts, module = said(quantizer), layer(quantizer)
    torch.manual_seed(0)
    y = module(torch.randn(4, 2, 5, 5))
    if parts["slot"] == "Act":
        shape = (1, 2, 1, 1) if parts["granularity"] else ()
        assert isinstance(y, QuantTensor)
        assert y.scale.shape == shape
    else:
        tensor = module.quant_weight() if parts["slot"] == "Weight" else module.quant_bias()
        shapes = {"PerChannel": (3, 1, 1, 1), "PerGroup": (3, 1, 3, 3)}
        assert tensor.scale.shape == shapes.get(parts["granularity"], ())


@pytest.mark.filterwarnings("ignore:.* is clipped:UserWarning")  # a bias of 8 bits may be
@every
def test_integers_are_in_range_and_of_the_smallest_type(quantizer):
    module = layer(quantizer)
    torch.manual_seed(0)
    y = module(torch.randn(4, 2, 5, 5))
    slot = said(quantizer)["slot"]
    codes = y.int() if slot == "Act" else module.int_weight() if slot == "Weight" else module.int_bias()
    quant = quant_of(module, quantizer)
    low, high = int_bounds(int(said(quantizer)["bits"]), quant.int_range.signed, quant.int_range.narrow_range)
    assert low <= codes.min()
    assert codes.max() <= high
    smallest = [torch.int8, torch.uint8, torch.int16, torch.int32]
    holds = [each for each in smallest if torch.iinfo(each).min <= low and high <= torch.iinfo(each).max]
    assert codes.dtype == holds[0]


@pytest.mark.parametrize("quantizer", [each for each in QUANTIZERS if said(each)["scale"] == "PowerOfTwo"], ids=repr)
def test_powers_of_two(quantizer):
    module = layer(quantizer)
    y = module(torch.linspace(-3, 3, 100).reshape(1, 2, 5, 10))
    slot = said(quantizer)["slot"]
    scale = y.scale if slot == "Act" else module.quant_weight().scale if slot == "Weight" else module.quant_bias().scale
    assert torch.equal(torch.frexp(scale).mantissa, torch.full_like(scale, 0.5))


@pytest.mark.parametrize("quantizer", FAMILIES, ids=repr)
@pytest.mark.parametrize("bit_width", [2, 5, 16, 32])
def test_bit_width_by_keyword(quantizer, bit_width):
    slot = said(quantizer)["slot"]
    module = layer(quantizer, **{"bit_width" if slot == "Act" else f"{slot.lower()}_bit_width": bit_width})
    quant = quant_of(module, quantizer)
    assert quant.int_range.bit_width == bit_width
    assert quant.quantizer == quantizer(bit_width=bit_width)


@every
def test_same_as_another_one_of_other_bits(quantizer):
    """Widths differ in nothing else: Int4WeightPerTensor is Int8WeightPerTensor(bit_width=4)."""
    parts = said(quantizer)
    other = quantizer.__name__.replace(parts["bits"], "32" if parts["slot"] == "Bias" and not parts["own"] else "8", 1)
    base = getattr(quantizers, other)
    provided = {"channel_axis": 0}
    schemes = [resolve(each, provided).scheme() for each in (quantizer, base(bit_width=int(parts["bits"])))]
    assert schemes[0] == schemes[1]


@pytest.mark.parametrize("quantizer", [each for each in FAMILIES if said(each)["slot"] == "Weight"], ids=repr)
@pytest.mark.parametrize(
    ("build", "axis"),
    [
        (lambda quantizer: qnn.QuantLinear(4, 6, weight_quant=quantizer), 0),
        (lambda quantizer: qnn.QuantConv1d(4, 6, 3, weight_quant=quantizer), 0),
        (lambda quantizer: qnn.QuantConvTranspose2d(4, 6, 3, weight_quant=quantizer), 1),
    ],
    ids=["linear", "conv1d", "conv_transpose2d"],
)
def test_output_channels_of_every_weight(quantizer, build, axis):
    weight = build(quantizer).quant_weight()
    channels = [1] * weight.ndim
    channels[axis] = 6
    shapes = {"PerChannel": tuple(channels), "PerGroup": (*channels[:2], *weight.shape[2:])}
    assert weight.scale.shape == shapes.get(said(quantizer)["granularity"], ())
