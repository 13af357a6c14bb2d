import pytest
import torch

import bitwright.nn as qnn
from bitwright.quantizers import Int8Act

STEPS = r"^collect_steps=\d is now calibration_steps=\d: the former name goes with version 0.3.$"


def test_settings_by_their_former_names():
    with pytest.warns(DeprecationWarning, match=STEPS):
        layer = qnn.QuantReLU(collect_steps=2)
    assert layer.act_quant.scaling.calibration_steps == 2
    with pytest.warns(DeprecationWarning, match=STEPS):
        layer = qnn.QuantLinear(2, 2, input_quant=Int8Act, input_collect_steps=3)
    assert layer.input_quant.scaling.calibration_steps == 3


def test_a_quantizer_declared_by_former_names():
    said = "^scaling='collected' is now scaling='calibrated': the former name goes with version 0.3.$"
    with pytest.warns(DeprecationWarning, match=said):

        class Former(Int8Act):
            scaling = "collected"

    assert Former.scaling == "calibrated"


def test_attributes_by_their_former_names():
    scaling = qnn.QuantReLU(calibration_steps=1).act_quant.scaling
    with pytest.warns(DeprecationWarning, match="^observed is now calibrated: the former name goes with version 0.3.$"):
        assert scaling.observed is False
    with pytest.warns(DeprecationWarning, match="^collecting is now calibrating"):
        assert scaling.collecting is True
    scaling(torch.ones(2))
    with pytest.warns(DeprecationWarning, match="^collect_steps is now calibration_steps"):
        assert scaling.collect_steps == 1
    with pytest.raises(AttributeError, match="no attribute 'observe'"):
        scaling.observe(torch.ones(2))
