"""The ONNX files of the LeNet-5 demo: exported, compared with torch, and timed in onnxruntime."""

import statistics
import time
from dataclasses import dataclass
from pathlib import Path

import onnxruntime
from torch import Tensor, nn

from bitwright.export import VerificationReport, export_onnx_qcdq, export_onnx_qdq, verify_onnx

__all__ = ["DIALECTS", "File", "latencies"]

DIALECTS = {
    "float": export_onnx_qdq,  # a model without quantizers becomes an ordinary float file in either dialect
    "qcdq": export_onnx_qcdq,
    "qdq": export_onnx_qdq,
}


@dataclass(frozen=True)
class File:
    """An exported file, compared with its model.

    Attributes:
        path: of the ONNX file.
        dialect: ``qcdq`` (8-bit integers that are clipped to 4), ``qdq`` (4-bit integers), or ``float``.
        report: what the comparison found.
    """

    path: Path
    dialect: str
    report: VerificationReport

    @classmethod
    def of(cls, model: nn.Module, dialect: str, images: Tensor, folder: Path) -> "File":
        """Export a model with a dynamic batch size, and compare the file with it on all images."""
        path = folder / f"{type(model).__name__}.{dialect}.onnx"
        DIALECTS[dialect](model, images[:2], path, dynamic_shapes=({0: "batch"},), output_names=["logits"])
        return cls(path, dialect, verify_onnx(model, path, images))

    @property
    def differences(self) -> tuple[int, int]:
        """Numbers that differ from torch's, with the runtime's optimizations off and on."""
        off, on, plain = (self.report.only(each).differences for each in ("off", "on", "plain"))
        return off, on + plain

    @property
    def tie_flips(self) -> tuple[int, int]:
        """Integers off by one because the value lay on a rounding boundary, optimizations off and on."""
        return self.report.only("off").tie_flips, self.report.only("on").tie_flips


def latencies(files: list[File], image: Tensor, runs: int = 300) -> list[float]:
    """The median time of each file for one image, in seconds, on one thread.

    The files take turns, so that load on the machine affects all of them alike.
    """
    options = onnxruntime.SessionOptions()
    options.intra_op_num_threads = 1
    sessions = [onnxruntime.InferenceSession(file.path, options) for file in files]
    feed = {"images": image.numpy()}
    times: list[list[float]] = [[] for _ in files]
    for _ in range(runs):
        for session, taken in zip(sessions, times, strict=True):
            begun = time.perf_counter()
            session.run(None, feed)
            taken.append(time.perf_counter() - begun)
    return [statistics.median(taken) for taken in times]
