import pickle

import pytest

from bitwright.qcore import BitwrightError, BitwrightWarning, QuantizerError, QuantTensorError, SettingError
from bitwright.qcore.errors import ReadOnlyError, nearest


def test_one_family():
    assert issubclass(BitwrightError, ValueError)
    assert issubclass(QuantizerError, BitwrightError)
    assert issubclass(SettingError, QuantizerError)
    assert issubclass(ReadOnlyError, QuantizerError)
    assert issubclass(ReadOnlyError, AttributeError)  # for tools that try to assign
    assert issubclass(QuantTensorError, BitwrightError)
    assert issubclass(BitwrightWarning, UserWarning)


@pytest.mark.parametrize(
    ("remedy", "message"),
    [
        ("", "bits=0 is not possible: expected 2 to 32."),
        ("Write bits=2.", "bits=0 is not possible: expected 2 to 32. Write bits=2."),
    ],
)
def test_setting_error(remedy, message):
    error = SettingError("bits", 0, "2 to 32", remedy)
    assert str(error) == message
    assert (error.setting, error.found, error.expected, error.remedy) == ("bits", 0, "2 to 32", remedy)


def test_setting_error_is_spelled_as_the_user_wrote_it():
    error = SettingError("bits", "four", "2 to 32", "Write bits=4.")
    assert error.message("weight_bits") == (
        "weight_bits='four' is not possible: expected 2 to 32. Write weight_bits=4."
    )


def test_setting_error_pickles_with_its_location():
    error = SettingError("bits", 0, "2 to 32", "Write bits=2.")
    error.args = (f"QuantLinear: {error}",)
    again = pickle.loads(pickle.dumps(error))
    assert str(again) == "QuantLinear: bits=0 is not possible: expected 2 to 32. Write bits=2."
    assert (again.setting, again.found, again.expected, again.remedy) == ("bits", 0, "2 to 32", "Write bits=2.")


@pytest.mark.parametrize(
    ("name", "guess"),
    [("bitwidth", "bit_width"), ("scalling", "scaling"), ("scaling", "scaling"), ("colour", None), ("", None)],
)
def test_nearest(name, guess):
    assert nearest(name, ["scaling", "bit_width", "rounding"]) == guess


@pytest.mark.parametrize(
    ("name", "guess"),
    [("scaling_stats_op", "statistic"), ("scaling_impl_type", "scaling"), ("collect_stats_steps", "calibration_steps")],
)
def test_nearest_to_what_brevitas_calls_it(name, guess):
    assert nearest(name, ["scaling", "statistic", "calibration_steps", "scale"]) == guess
    assert nearest("scaling_const", ["rounding"]) is None
