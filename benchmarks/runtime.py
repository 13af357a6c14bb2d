"""How long exported files take in onnxruntime, beside the float network's.

``python -m benchmarks.runtime`` exports the networks of `benchmarks.deployed` in float and quantized: as they are, with
float biases; with batch normalizations folded into convolutions and `Int32Bias`, which is what onnxruntime's integer
kernels need; with weights alone; each of them also with ``fast=True``. All files of a network are timed in turn, on one
thread and on two, and compared with their models: what ``fast=True`` waives is counted as differences, too. It prints
the rows of the table in docs/runtimes.md.
"""

import argparse
import statistics
import sys
import tempfile
import time
import warnings
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import onnxruntime
import torch
from torch import Tensor

from bitwright.export import VerificationReport, verify_onnx

from .deployed import NETWORKS, Deployed, Way

__all__ = ["File", "main", "rows"]


@dataclass(frozen=True)
class File:
    """An exported model.

    Attributes:
        way: how it was made.
        path: of the ONNX file.
        report: what the comparison with the model found.
        apart: the largest distance of an output from the model's, as a share of their range, over the whole network.
        agreeing: in how many samples the highest output is the same.
    """

    way: Way
    path: Path
    report: VerificationReport
    apart: float
    agreeing: int

    @classmethod
    def of(cls, way: Way, network: torch.nn.Module, samples: Tensor, path: Path) -> "File":
        """Quantize a network, export it for batches of one, and compare the file with the model, sample by sample."""
        torch.manual_seed(1)
        model = way.model(network, samples[:1])
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")  # of what is waived, it is in the table; and torch's of its LSTM
            way.export(model, samples[:1], path, input_names=["x"], **way.options)
        session, report = _session(path, 1), VerificationReport()
        with torch.no_grad():
            expected = torch.cat([model(sample) for sample in samples.split(1)])
        found = torch.cat([torch.from_numpy(_run(session, sample)) for sample in samples.split(1)])
        for sample in () if way.compares_itself else samples.split(1):
            report.add(verify_onnx(model, path, sample).rows)
        apart = (found - expected).abs().max() / (expected.max() - expected.min())
        return cls(way, path, report, apart.item(), int((found.argmax(1) == expected.argmax(1)).sum()))

    @property
    def differing(self) -> str:
        """How many integers differ, and of how many."""
        codes = [row for row in self.report.rows if row.kind == "activation"]
        differing, compared = sum(row.differences for row in codes), sum(row.compared for row in codes)
        if differing:
            return f"{differing} of {compared / 1e6:.2g} million"
        return "outputs alone" if self.report.differences else "0"


def main(arguments: Sequence[str] | None = None) -> int:
    """Print the rows of the table.

    Args:
        arguments: of the command line.

    Returns:
        The exit status: 1 if a file that should be exact differs from its model.
    """
    parser = argparse.ArgumentParser(prog="python -m benchmarks.runtime", description="Time exported files.")
    parser.add_argument("networks", nargs="*", help=f"of {', '.join(NETWORKS)} (default: all)")
    parser.add_argument("--rounds", type=int, default=200, help="in each, every file runs once (default: 200)")
    parser.add_argument("--samples", type=int, default=16, help="that files are compared on (default: 16)")
    parser.add_argument("--threads", type=int, nargs="+", default=[1, 2], help="of onnxruntime (default: 1 2)")
    options = parser.parse_args(arguments)
    unknown = [name for name in options.networks if name not in NETWORKS]
    if unknown:
        parser.error(f"there is no network {unknown[0]!r}, but {', '.join(NETWORKS)}")
    torch.set_num_threads(1)
    threads = ", ".join(f"{count} thread{'' if count == 1 else 's'}" for count in options.threads)
    print(f"| file | {threads.replace(', ', ' | ')} | differences | outputs off by, of their range | same top class |")
    print("| --- |" + " --- |" * (len(options.threads) + 3))
    wrong = False
    for name in options.networks or NETWORKS:
        with tempfile.TemporaryDirectory() as folder:
            files = _files(NETWORKS[name], options.samples, Path(folder))
            torch.manual_seed(2)
            sample = torch.randn(1, *NETWORKS[name].shape)
            taken = [_latencies(files, sample, options.rounds, count) for count in options.threads]
        for row in rows(NETWORKS[name].title, files, taken, options.samples):
            print(row, flush=True)
        wrong |= any(file.report.differences for file in files if file.way.exact)
    return int(wrong)


def rows(title: str, files: Sequence[File], taken: Sequence[Sequence[float]], samples: int) -> Iterator[str]:
    """Lines of a table in Markdown: milliseconds of the float file, which is the first, and ratios to it.

    Args:
        title: of the network.
        files: its files.
        taken: for each number of threads, the seconds of each file.
        samples: that they were compared on.
    """
    for place, file in enumerate(files):
        times = [f"{each[place] / each[0]:.2f}" if place else f"{1e3 * each[0]:.3g} ms" for each in taken]
        name = f"... {file.way.title}" if place else f"{title}, {file.way.title}"
        cells = [name, *times, file.differing, f"{file.apart:.1e}", f"{file.agreeing} of {samples}"]
        yield f"| {' | '.join(cells)} |"


def _files(deployed: Deployed, count: int, folder: Path) -> list[File]:
    network = deployed.network()
    torch.manual_seed(0)
    samples = torch.randn(count, *deployed.shape)
    return [File.of(way, network, samples, folder / f"{number}.onnx") for number, way in enumerate(deployed.ways)]


def _latencies(files: Sequence[File], sample: Tensor, rounds: int, threads: int) -> list[float]:
    """Median seconds of each file. They take turns, so that load affects all of them alike."""
    sessions = [_session(file.path, threads) for file in files]
    times: list[list[float]] = [[] for _ in files]
    for session in sessions:
        _run(session, sample)
    for _ in range(rounds):
        for session, taken in zip(sessions, times, strict=True):
            begun = time.perf_counter()
            _run(session, sample)
            taken.append(time.perf_counter() - begun)
    return [statistics.median(taken) for taken in times]


def _session(path: Path, threads: int) -> onnxruntime.InferenceSession:
    options = onnxruntime.SessionOptions()
    options.intra_op_num_threads = threads
    options.add_session_config_entry("session.intra_op.allow_spinning", "0")  # threads of idle sessions take no time
    return onnxruntime.InferenceSession(path, options)


def _run(session: onnxruntime.InferenceSession, sample: Tensor) -> np.ndarray:
    (found,) = session.run(None, {"x": sample.numpy()})
    return np.asarray(found)


if __name__ == "__main__":
    sys.exit(main())
