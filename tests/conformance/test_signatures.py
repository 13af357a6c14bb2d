"""What is positional in torch is positional here, in torch's order; everything of ours is keyword-only."""

import inspect
from typing import Any

import pytest
import torch
from torch import nn

from bitwright.qcore import QuantizerError
from tests.conformance.examples import (
    ACT_LAYERS,
    LAYERS,
    ON_INTEGERS,
    WEIGHT_LAYERS,
    class_of_torch,
    example_of,
    floats,
    inputs_of,
    made,
    parameters_of,
    same,
    seeded,
    twin_of,
    warm,
)

OURS_WEIGHT = {"weight_quant", "bias_quant", "input_quant", "output_quant", "grad_quant", "return_quant_tensor"}
OURS_ACT = {"act_quant", "input_quant", "return_quant_tensor", "device", "dtype"}
DEPRECATED = {nn.Hardtanh: {"min_value", "max_value"}}  # by torch, for years
STANDING = {name: each for name, each in LAYERS.items() if class_of_torch(each) is not None}


def torchs_parameters(layer: Any) -> list[inspect.Parameter]:
    """The parameters of the torch class, spelled out where it passes ``*args`` on: nn.LSTM and its like."""
    torchs: Any = class_of_torch(layer)
    found = parameters_of(torchs.__init__)
    if any(each.kind is each.VAR_POSITIONAL for each in found):
        above = parameters_of(next(base for base in torchs.__mro__[1:] if "__init__" in vars(base)).__init__)
        spelled = {"mode"} if torchs is nn.LSTM else {"mode", "proj_size"}  # which is for LSTMs
        found = [each for each in above if each.name not in spelled]
        if torchs is nn.RNN:
            kind = inspect.Parameter.POSITIONAL_OR_KEYWORD
            found.insert(3, inspect.Parameter("nonlinearity", kind, default="tanh"))
    gone = DEPRECATED.get(torchs, set())
    return [each for each in found if each.kind is each.POSITIONAL_OR_KEYWORD and each.name not in gone]


@pytest.mark.parametrize("name", STANDING)
def test_positional_arguments_are_torchs(name):
    fixed = torchs_parameters(STANDING[name])
    ours = parameters_of(STANDING[name])
    positional = [each for each in ours if each.kind is each.POSITIONAL_OR_KEYWORD]
    wanted = [(each.name, each.default) for each in fixed]
    assert [(each.name, each.default) for each in positional] == wanted
    assert not [each for each in ours if each.kind is each.VAR_POSITIONAL]


@pytest.mark.parametrize("name", LAYERS)
def test_everything_else_is_keyword_only(name):
    ours = parameters_of(LAYERS[name])
    keywords = {each.name for each in ours if each.kind is each.KEYWORD_ONLY}
    quantizers = {f"{slot.name}_quant" for slot in LAYERS[name].slots}
    assert quantizers | {"return_quant_tensor"} <= keywords
    assert [each.name for each in ours if each.kind is each.VAR_KEYWORD] == ["overrides"]
    if name in WEIGHT_LAYERS:
        assert keywords == OURS_WEIGHT
    if name in ACT_LAYERS and quantizers == {"act_quant", "input_quant"}:
        assert keywords == OURS_ACT


@pytest.mark.parametrize("name", LAYERS)
def test_every_keyword_of_a_quantizer_may_be_left_out(name):
    for each in parameters_of(LAYERS[name]):
        if each.kind is each.KEYWORD_ONLY:
            assert each.default is not each.empty, each.name


@pytest.mark.parametrize("name", STANDING)
def test_forward_takes_what_torchs_takes(name):
    layer = STANDING[name]
    torchs = [each.name for each in parameters_of(class_of_torch(layer).forward)]
    ours = [each.name for each in parameters_of(layer.forward)]
    assert [each for each in ours if each in torchs] == torchs
    inputs = inputs_of(layer)
    module = warm(made(layer)).eval()  # training measures a second time
    named = dict(zip(torchs, inputs, strict=False))
    expected = seeded(module, *inputs)
    torch.manual_seed(1)
    same(module(**named), expected)


@pytest.mark.parametrize("name", STANDING)
def test_the_name_is_torchs(name):
    torchs: Any = class_of_torch(STANDING[name])
    start = "trunc" if name in ON_INTEGERS else "quant"
    assert name.lower() == f"{start}{torchs.__name__}".lower()
    if not hasattr(STANDING[name], "stands_for"):
        assert isinstance(made(STANDING[name]), torchs)


@pytest.mark.parametrize("name", LAYERS)
def test_all_or_nothing_fits_the_signature(name):
    layer = LAYERS[name]
    example = example_of(layer)
    bound = inspect.signature(layer).bind(*example.arguments, **example.keywords, **floats(layer))
    assert bound.arguments
    assert twin_of(layer) is None or callable(twin_of(layer))


@pytest.mark.parametrize("name", LAYERS)
def test_an_unknown_keyword_is_refused(name):
    with pytest.raises(QuantizerError, match=f"^{name}[(:]"):
        made(LAYERS[name], bitwidth=4)
