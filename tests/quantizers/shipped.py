"""The public names of bitwright.quantizers, told apart by what they are."""

import re

from bitwright import quantizers
from bitwright.qcore import QuantizerError, QuantizerType, resolve, settings


def _is_complete(quantizer):
    try:
        return resolve(quantizer, {"channel_axis": 0, "shape": (4, 64)}) is not None
    except QuantizerError:
        return False


PUBLIC = {name: getattr(quantizers, name) for name in quantizers.__all__}
MAKERS = {name for name, each in PUBLIC.items() if not isinstance(each, QuantizerType)}  # functions that derive some
FRAGMENTS = {
    name
    for name, each in PUBLIC.items()
    if name not in MAKERS and (name in quantizers.base.__all__ or not _is_complete(each))
}
COMPLETE = {name: each for name, each in PUBLIC.items() if name not in MAKERS | FRAGMENTS}
ALONE = {  # those that need nothing to be known of other tensors
    name: each
    for name, each in COMPLETE.items()
    if settings(each)["quantizes"].declared in ("weight", "activation", "bias") and not name.startswith("Trunc")
}
KNOWING = {  # what others of them have to be told
    "Int8WeightPerChannelA2Q": {"input_bit_width": 8, "input_signed": False},
    "Int8WeightPerChannelA2QPlus": {"input_bit_width": 8, "input_signed": False},
}
ALONE = {name: each(**KNOWING.get(name, {})) for name, each in ALONE.items()}


def families(of):
    """One quantizer for each name without its numbers: they differ in nothing but the width, or the kind of float."""
    return {re.sub(r"(e\d+m\d+|\d+)(fnuz)?", "", name): each for name, each in reversed(of.items())}


def role(name):
    """What a quantizer is for, by its name."""
    return next(role for part, role in _ROLES.items() if part in name)


_ROLES = {"Weight": "weight", "Act": "activation", "Bias": "bias"}
USUAL = {  # integers: with a stored scale, or one of the weight
    name: each
    for module in (quantizers.weights, quantizers.activations, quantizers.biases)
    for name, each in vars(module).items()
    if name in COMPLETE and name in module.__all__
}
