import pytest
import torch

import bitwright.nn as qnn
from bitwright.qcore import QuantizerError, ReadOnlyError
from bitwright.quantizers import Int8Act

STEPS = r"^(input_)?collect_steps=\d is now (input_)?calibration_steps=\d: the former name goes with version 0.3.$"


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


@pytest.mark.filterwarnings("ignore:.* the former name goes with")
def test_errors_quote_what_the_user_typed():
    layer = "QuantLinear(in_features=4, out_features=2, bias=True)"
    for make, said in (
        (
            lambda: qnn.QuantLinear(4, 2, weight_collect_steps=5),
            f"{layer}: nothing in Int8WeightPerTensor uses weight_collect_steps=5. It is a setting of "
            "weight_scaling='calibrated', and scaling is 'statistic'.",
        ),
        (
            lambda: qnn.QuantLinear(4, 2, weight_scaling="calibrated", weight_collect_steps=0),
            f"{layer}: weight_collect_steps=0 is not possible: expected a whole number of training steps, 1 or more.",
        ),
        (
            lambda: qnn.QuantReLU(collect_steps=0),
            "QuantReLU(): collect_steps=0 is not possible: expected a whole number of training steps, 1 or more.",
        ),
        (
            lambda: qnn.QuantReLU(scale=0.1, collect_steps=5),
            "QuantReLU(): nothing in Uint8Act uses collect_steps=5. It is a setting of scaling='calibrated', and "
            "scaling is 'constant'.",
        ),
        (
            lambda: qnn.QuantLinear(4, 2, input_quant=Int8Act, input_collect_steps=5, input_calibration_steps=3),
            "input_collect_steps=5 and input_calibration_steps=3 are the same setting by its former and its present "
            "name. Write input_calibration_steps alone.",
        ),
        (
            lambda: Int8Act(collect_steps=5, calibration_steps=3),
            "collect_steps=5 and calibration_steps=3 are the same setting by its former and its present name. Write "
            "calibration_steps alone.",
        ),
    ):
        with pytest.raises(QuantizerError) as caught:
            make()
        assert str(caught.value) == said


def test_a_former_name_on_a_layer_that_is_built():
    relu = qnn.QuantReLU()
    with pytest.raises(ReadOnlyError) as caught:
        relu.collect_steps = 5
    assert str(caught.value) == (
        "QuantReLU(): collect_steps=5 can't be set on a layer that is built. Write layer.act_quant = "
        "Uint8Act(calibration_steps=5)."
    )


def test_the_warning_is_one_and_points_at_the_users_line():
    """Python hides deprecations that point into a library."""
    for make in (
        lambda: qnn.QuantLinear(2, 2, input_quant=Int8Act, input_collect_steps=3),
        lambda: Int8Act(bit_width=4)(collect_steps=3),
        lambda: type(Int8Act)("Former", (Int8Act,), {"collect_steps": 3}),
    ):
        with pytest.warns(DeprecationWarning, match=STEPS) as caught:
            make()
        assert [each.filename for each in caught] == [__file__]
