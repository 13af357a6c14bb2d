"""Whole models: a float model becomes a quantized one by rule, is calibrated, and repaired.

`quantize` makes a quantized model out of a float one and rules, `explain` says what it did and what it costs;
`calibrate` measures ranges. Passes change a float model so that it quantizes better (`fold_batch_norms`), or repair a
quantized one (`correct_biases`).
"""

from .calibration.calibration import calibrate
from .conversion.conversion import quantize
from .conversion.ready import W2, W3, W4, W4A4, W4A8, W8, W8A8, integer
from .conversion.rule_files import load_rules, save_rules
from .conversion.rules import first, last
from .errors import GraphError, GraphWarning
from .passes.bias_correction import correct_biases
from .passes.equalization import equalize
from .passes.folding import fold_batch_norms
from .passes.reestimation import reestimate_batch_norms
from .passes.smoothing import smooth
from .recording.recorder import record

__all__ = [
    "W2",
    "W3",
    "W4",
    "W4A4",
    "W4A8",
    "W8",
    "W8A8",
    "GraphError",
    "GraphWarning",
    "calibrate",
    "correct_biases",
    "equalize",
    "first",
    "fold_batch_norms",
    "integer",
    "last",
    "load_rules",
    "quantize",
    "record",
    "reestimate_batch_norms",
    "save_rules",
    "smooth",
]
