"""Whole models: a float model becomes a quantized one by rule, is calibrated, and repaired.

`quantize` makes a quantized model out of a float one and rules; `explain` says what it did, and what it costs.
`calibrate` measures the ranges of activations.

Passes over a float model return another one, whose ``report`` says what was done to every layer: `fold_batch_norms`,
`equalize`, `absorb_biases`, `smooth`, `split_channels`. Those over a quantized one work on it, and return the report:
`correct_biases`, `reestimate_batch_norms`, `lqer`, `reconstruct_blocks`.

`load_brevitas` takes a checkpoint of Brevitas into a model that was ported by hand.
"""

from .calibration import (
    CalibratedRange,
    CalibrationReport,
    DataStatistic,
    Entropy,
    Histogram,
    Levels,
    Percentile,
    SquaredError,
    calibrate,
)
from .conversion.conversion import quantize
from .conversion.decisions import Decision, SlotDecision, decisions_of
from .errors import GraphError, GraphWarning
from .explaining.explanation import ExplainedLayer, ExplainedQuantizer, Explanation
from .explaining.reasons import explain
from .layerwise.methods.activation_aware import awq
from .layerwise.methods.iterating import adaround, autoround
from .layerwise.methods.low_rank import lqer
from .layerwise.methods.one_pass import gpfq, gptq, qronos
from .layerwise.methods.preparing import magr, search_scales
from .layerwise.methods.reconstructing import reconstruct_blocks
from .layerwise.options import WalkOptions
from .layerwise.problem import ColumnGrid, Problem, Solution, WeightGrid
from .layerwise.reports import LayerwiseReport
from .layerwise.walking.walk import walk_blocks
from .passes.absorption import absorb_biases
from .passes.bias_correction import BiasReport, correct_biases
from .passes.equalization import equalize
from .passes.folding import fold_batch_norms
from .passes.reestimation import reestimate_batch_norms
from .passes.reports import Entry, Report
from .passes.smoothing import ChannelScale, smooth
from .passes.splitting import split_channels
from .porting import CheckpointError, load_brevitas
from .precision.allocation import Allocation, allocate_bits
from .precision.analysis import sensitivity
from .precision.frontier import Pareto, pareto
from .precision.gradients import GradientNoise, gradient_noise
from .precision.table import Candidate, SensitivityTable
from .recording.nodes import Graph, Node
from .recording.places import Place
from .recording.recorder import record
from .rotation.rotating import rotate
from .rules.ready import W2, W3, W4, W4A4, W4A8, W8, W8A8, integer
from .rules.rule_files import load_rules, save_rules
from .rules.rules import End, first, last

__all__ = [
    "W2",
    "W3",
    "W4",
    "W4A4",
    "W4A8",
    "W8",
    "W8A8",
    "Allocation",
    "BiasReport",
    "CalibratedRange",
    "CalibrationReport",
    "Candidate",
    "ChannelScale",
    "CheckpointError",
    "ColumnGrid",
    "DataStatistic",
    "Decision",
    "End",
    "Entropy",
    "Entry",
    "ExplainedLayer",
    "ExplainedQuantizer",
    "Explanation",
    "GradientNoise",
    "Graph",
    "GraphError",
    "GraphWarning",
    "Histogram",
    "LayerwiseReport",
    "Levels",
    "Node",
    "Pareto",
    "Percentile",
    "Place",
    "Problem",
    "Report",
    "SensitivityTable",
    "SlotDecision",
    "Solution",
    "SquaredError",
    "WalkOptions",
    "WeightGrid",
    "absorb_biases",
    "adaround",
    "allocate_bits",
    "autoround",
    "awq",
    "calibrate",
    "correct_biases",
    "decisions_of",
    "equalize",
    "explain",
    "first",
    "fold_batch_norms",
    "gpfq",
    "gptq",
    "gradient_noise",
    "integer",
    "last",
    "load_brevitas",
    "load_rules",
    "lqer",
    "magr",
    "pareto",
    "qronos",
    "quantize",
    "reconstruct_blocks",
    "record",
    "reestimate_batch_norms",
    "rotate",
    "save_rules",
    "search_scales",
    "sensitivity",
    "smooth",
    "split_channels",
    "walk_blocks",
]
