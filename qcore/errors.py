"""The errors bitwright raises: one family, so that one ``except BitwrightError`` catches them all."""

import re
from collections.abc import Iterable
from difflib import get_close_matches

__all__ = [
    "BitwrightError",
    "BitwrightWarning",
    "QuantTensorError",
    "QuantizerError",
    "ReadOnlyError",
    "SettingError",
    "nearest",
]


class BitwrightError(ValueError):
    """Base class of every error that bitwright raises for a user's mistake.

    Example:
        >>> issubclass(QuantizerError, BitwrightError) and issubclass(BitwrightError, ValueError)
        True
    """


class QuantizerError(BitwrightError):
    """A quantizer can't be built as declared: unknown, missing, unused or impossible settings.

    Example:
        >>> import bitwright.nn as qnn
        >>> qnn.QuantReLU(bitwidth=4)
        Traceback (most recent call last):
        bitwright.qcore.errors.QuantizerError: QuantReLU(): nothing in Uint8Act uses bitwidth=4. Did you mean bit_width?
    """


class IncompleteError(QuantizerError):
    """A part of a quantizer asks for an attribute that it does not have.

    Example:
        >>> from bitwright.quantizers import IntBase
        >>> from bitwright.qcore import resolve
        >>> resolve(IntBase)
        Traceback (most recent call last):
        bitwright.qcore.errors.IncompleteError: resolve: IntQuant asks for 'scaling', which IntBase does not have \
(tensor_quant > scaling). Write `scaling = ...` in the quantizer, or give the argument a default.
    """


class ReadOnlyError(QuantizerError, AttributeError):
    """An attribute of something that is a value was assigned to or deleted.

    It is an ``AttributeError`` too, which is what tools that try assignments expect (IPython's ``%autoreload``).

    Example:
        >>> from bitwright.quantizers import Int8Act
        >>> Int8Act.bit_width = 4
        Traceback (most recent call last):
        bitwright.qcore.errors.ReadOnlyError: Int8Act is a value and can't be changed. Derive another: \
Int8Act(bit_width=4), or a subclass.
    """


class SettingError(QuantizerError):
    """A constructor refuses the value of one setting; the layer adds where the value came from.

    Args:
        setting: name of the attribute, e.g. ``"bit_width"``.
        found: the value that was given.
        expected: what is possible, e.g. ``"a whole number from 2 to 32"``.
        remedy: a sentence that says what to write instead.

    Example:
        >>> str(SettingError("bit_width", 0, "a whole number from 2 to 32", "Write bit_width=2 or more."))
        'bit_width=0 is not possible: expected a whole number from 2 to 32. Write bit_width=2 or more.'
    """

    def __init__(self, setting: str, found: object, expected: str, remedy: str = "") -> None:
        self.setting = setting
        self.found = found
        self.expected = expected
        self.remedy = remedy
        super().__init__(self.message(setting))

    def message(self, written: str) -> str:
        """The text of the error, with the setting spelled as the user wrote it."""
        prefix = prefix_of(written, self.setting)
        expected, remedy = (re.sub(r"\b([a-z_]+)=", rf"{prefix}\1=", text) for text in (self.expected, self.remedy))
        return f"{written}={self.found!r} is not possible: expected {expected}. {remedy}".rstrip()

    def __reduce__(self) -> tuple[type["SettingError"], tuple[str, object, str, str], dict[str, object]]:
        given = (self.setting, self.found, self.expected, self.remedy)
        return SettingError, given, {"args": self.args}  # the text may have been located since


class QuantTensorError(BitwrightError):
    """A quantized tensor was asked for something it does not have, such as integers off its grid.

    Example:
        >>> import torch
        >>> from bitwright.qcore import Grid, QuantTensor
        >>> QuantTensor.wrap(torch.tensor([0.3]), Grid(torch.tensor(0.5))).int()
        Traceback (most recent call last):
        bitwright.qcore.errors.QuantTensorError: Not every value lies on the grid of scale 0.5 and int8, so there are \
no integers to return. Quantize the tensor again, for example with QuantIdentity.
    """


class BitwrightWarning(UserWarning):
    """Something works, but perhaps not as intended; the text says what to do.

    Example:
        >>> import warnings
        >>> import torch, bitwright.nn as qnn
        >>> with warnings.catch_warnings(record=True) as caught:
        ...     warnings.simplefilter("always", BitwrightWarning)
        ...     _ = qnn.QuantReLU().eval()(torch.ones(2))  # its range is not known yet
        >>> [issubclass(each.category, BitwrightWarning) for each in caught]
        [True]
    """


class UncalibratedWarning(BitwrightWarning):
    """A quantizer that needs data is evaluated before it has seen any.

    Example:
        >>> issubclass(UncalibratedWarning, BitwrightWarning)
        True
    """


FORMER_SETTINGS = {"collect_steps": "calibration_steps"}  # until version 0.3


def prefix_of(written: str, setting: str) -> str:
    """What stands before the name of a setting in a keyword that the user typed: ``weight_``.

    Example:
        >>> prefix_of("weight_bit_width", "bit_width"), prefix_of("input_collect_steps", "calibration_steps")
        ('weight_', 'input_')
    """
    former = (name for name, present in FORMER_SETTINGS.items() if present == setting)
    return next((written.removesuffix(name) for name in (setting, *former) if written.endswith(name)), "")


def nearest(name: str, candidates: Iterable[str]) -> str | None:
    """The candidate closest in spelling to ``name``, or None if none is close.

    Example:
        >>> nearest("bitwidth", ["scaling", "bit_width"])
        'bit_width'
    """
    known = set(candidates)
    if name in _BREVITAS:
        meant = _BREVITAS[name]
        return meant if meant in known else None
    found = get_close_matches(name, sorted(known), n=1, cutoff=0.6)
    return found[0] if found else None


# What users of Brevitas may write, and what means the same here; None where nothing does.
_BREVITAS: dict[str, str | None] = {
    "ave": "mean_sigma",
    "bit_width_impl_type": "bit_width",
    "collect_stats_steps": "calibration_steps",
    "collect_steps": "calibration_steps",
    "collected": "calibrated",
    "float_to_int_impl_type": "rounding",
    "fp": "float",
    "high_percentile_q": "percentile",
    "low_percentile_q": "low_percentile",
    "max": "abs_max",
    "max_val": "max_value",
    "min_val": "min_value",
    "parameter": "learned",
    "parameter_from_stats": "calibrated",
    "restrict_scaling_type": "restriction",
    "round": "half_even",
    "round_to_zero": "toward_zero",
    "scaling_const": "max_value",
    "scaling_init": "max_value",
    "scaling_impl_type": "scaling",
    "scaling_min_val": "min_scale",
    "scaling_per_output_channel": "axis",
    "scaling_stats_momentum": "momentum",
    "scaling_stats_op": "statistic",
    "stats": "statistic",
    "stochastic_round": "stochastic",
}
