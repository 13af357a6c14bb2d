"""What bias correction did to every layer."""

import math
from collections.abc import Iterator
from dataclasses import asdict, dataclass

__all__ = ["BiasCorrectionReport", "CorrectedLayer"]


@dataclass(frozen=True)
class CorrectedLayer:
    """What became of one layer.

    Attributes:
        path: where it is in the model.
        outcome: ``"corrected"``; ``"undone"``, as the samples held out show no gain; ``"unchanged"``, as there was
            nothing to correct; ``"skipped"``, with the reason.
        reason: why the bias is as it was.
        before: how far the means of the output channels were off on the samples that judge, all layers before it
            corrected: their root mean square, as a share of that of the float output. NaN for skipped layers.
        after: the same with the correction.

    Example:
        >>> CorrectedLayer("conv1", "corrected", before=0.25, after=0.01).after
        0.01
    """

    path: str
    outcome: str
    reason: str = ""
    before: float = math.nan
    after: float = math.nan


@dataclass(frozen=True)
class BiasCorrectionReport:
    """What `correct_biases` did: a row for each layer with a weight, and what it brought to the model's outputs.

    Attributes:
        layers: the rows, in the model's order.
        sqnr_before: signal-to-quantization-noise ratio of the model's outputs in dB, on the samples that judge; NaN
            where it returns no floating numbers.
        sqnr_after: the same with the corrections, whether they were kept or not.
        held_out: whether the samples that judge are others than those that estimate.

    Example:
        >>> layers = CorrectedLayer("0", "corrected", "", 0.25, 0.01), CorrectedLayer("2", "skipped", "saw no data")
        >>> report = BiasCorrectionReport(layers, 5.0, 9.5)
        >>> print(report)
        1 of 2 layers corrected; SQNR of the outputs on held-out samples 5.0 dB before, 9.5 dB after
        layer  outcome    mean error  after  reason
        0      corrected        0.25   0.01
        2      skipped                       saw no data
        >>> report["2"].reason
        'saw no data'
    """

    layers: tuple[CorrectedLayer, ...]
    sqnr_before: float = math.nan
    sqnr_after: float = math.nan
    held_out: bool = True

    @property
    def corrected(self) -> tuple[str, ...]:
        """The paths of the layers with a new bias."""
        return tuple(each.path for each in self.layers if each.outcome == "corrected")

    def __getitem__(self, path: str) -> CorrectedLayer:
        """The row of a layer."""
        for each in self.layers:
            if each.path == path:
                return each
        raise KeyError(path)

    def __iter__(self) -> Iterator[CorrectedLayer]:
        return iter(self.layers)

    def __len__(self) -> int:
        return len(self.layers)

    def to_dict(self) -> dict[str, object]:
        """Everything as plain dicts and lists."""
        return asdict(self) | {"layers": [asdict(each) for each in self.layers]}

    def __str__(self) -> str:
        width = max([len("layer"), *(len(each.path) for each in self.layers)])
        header = f"{'layer':{width}}  {'outcome':9}  {'mean error':>10}  {'after':>5}  reason"
        return "\n".join([self._headline(), header, *(_line(each, width) for each in self.layers)])

    def _headline(self) -> str:
        line = f"{len(self.corrected)} of {len(self.layers)} layers corrected"
        if math.isnan(self.sqnr_before):
            return line
        which = "held-out samples" if self.held_out else "the same samples"
        change = f"{self.sqnr_before:.1f} dB before, {self.sqnr_after:.1f} dB after"
        return f"{line}; SQNR of the outputs on {which} {change}"


def _line(layer: CorrectedLayer, width: int) -> str:
    numbers = ["" if math.isnan(each) else f"{each:.2g}" for each in (layer.before, layer.after)]
    return f"{layer.path:{width}}  {layer.outcome:9}  {numbers[0]:>10}  {numbers[1]:>5}  {layer.reason}".rstrip()
