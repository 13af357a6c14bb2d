"""All workloads, and the tables that show them."""

from dataclasses import dataclass

from .constructing import CONSTRUCTING
from .converting import CONVERTING
from .exporting import EXPORTING
from .networks import NETWORKS
from .quantizing import QUANTIZING
from .sequences import SEQUENCES
from .storing import STORING
from .verifying import VERIFYING

__all__ = ["SECTIONS", "WORKLOADS", "Section"]


@dataclass(frozen=True)
class Section:
    """A table of the results page."""

    title: str
    about: str
    workloads: tuple[str, ...]


WORKLOADS = {**NETWORKS, **QUANTIZING, **SEQUENCES, **CONSTRUCTING, **CONVERTING, **STORING, **EXPORTING, **VERIFYING}

SECTIONS = (
    Section("Networks", "Ratios to the same network in float, eager or compiled alike.", tuple(NETWORKS)),
    Section(
        "Quantizers and layers",
        "Quantizers: 8 bits, ratios to `clone` of the tensor, forward only. Layers: ratios to the float layer; a step "
        "is forward and backward, to the input and the parameters, without an optimizer.",
        tuple(QUANTIZING),
    ),
    Section("Sequences", "Ratios to the float layer of torch; a step is forward and backward.", tuple(SEQUENCES)),
    Section("Construction and import", "Ratios to float where no unit is given.", tuple(CONSTRUCTING)),
    Section(
        "Whole models",
        "Models made by rule: against the same written by hand, against the float model's forward, or in seconds of "
        "one thread. MobileNetV2 has random weights here.",
        tuple(CONVERTING),
    ),
    Section("Copies and state", "Ratios to the float model.", tuple(STORING)),
    Section(
        "ONNX",
        "Ratios to the float file. Sizes: bitwright's QDQ form, in the narrowest integer types; Brevitas's QCDQ, by "
        "its TorchScript exporter. Latency in onnxruntime, one thread, default optimisations: QCDQ of both.",
        tuple(EXPORTING),
    ),
    Section("Verification", "Resident memory at its peak, beyond what was resident before.", tuple(VERIFYING)),
)
