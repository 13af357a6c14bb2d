"""Every public layer has an example, so that everything is checked for it."""

import pytest

import bitwright.nn as qnn
from tests.conformance.examples import ACT_LAYERS, EXAMPLES, LAYERS, WEIGHT_LAYERS, inputs_of, made, tensors_of


def test_every_public_layer_has_an_example():
    missing = sorted(set(LAYERS) - set(EXAMPLES))
    assert not missing, f"add a line for {', '.join(missing)} to EXAMPLES in tests/conformance/examples.py"


def test_every_example_is_of_a_public_layer():
    assert sorted(set(EXAMPLES) - set(LAYERS)) == []


def test_layers_of_the_oldest_kinds_are_found():
    assert set(WEIGHT_LAYERS) >= {"QuantLinear", "QuantConv2d", "QuantConvTranspose1d"}
    assert set(ACT_LAYERS) >= {"QuantReLU", "QuantSoftmax"}
    assert len(LAYERS) >= 19


@pytest.mark.parametrize("name", LAYERS)
def test_an_example_runs(name):
    layer = made(LAYERS[name])
    assert isinstance(layer, qnn.QuantLayer)
    assert tensors_of(layer(*inputs_of(layer)))


@pytest.mark.parametrize("name", LAYERS)
def test_inputs_are_the_same_for_a_seed(name):
    ones, others, thirds = (tensors_of(inputs_of(LAYERS[name], seed=seed)) for seed in (3, 3, 4))
    assert [each.tolist() for each in ones] == [each.tolist() for each in others]
    if any(each.is_floating_point() for each in ones):
        assert [each.tolist() for each in ones] != [each.tolist() for each in thirds]
