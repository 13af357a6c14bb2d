"""The public names of bitwright.quantizers, told apart by what they are."""

from bitwright import quantizers
from bitwright.qcore import QuantizerError, QuantizerType, resolve


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
USUAL = {  # integers: with a stored scale, or one of the weight
    name: each
    for module in (quantizers.weights, quantizers.activations, quantizers.biases)
    for name, each in vars(module).items()
    if name in COMPLETE and name in module.__all__
}
