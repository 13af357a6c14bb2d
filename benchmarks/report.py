"""The output: lines for the terminal, and the page docs/benchmarks.md."""

from collections.abc import Iterable
from dataclasses import dataclass

from .catalog import SECTIONS, WORKLOADS, Section
from .measure import Measurement
from .rows import ROWS, Row
from .timing import Summary
from .workload import Workload

__all__ = ["Run", "page", "result_line", "row_lines"]

LIBRARIES = ("bitwright", "torch.ao", "torchao", "Brevitas")
OTHERS = LIBRARIES[1:]
LONGEST = 160  # characters of an error


@dataclass(frozen=True)
class Run:
    """One run of the benchmarks."""

    date: str
    machine: dict[str, str]
    versions: dict[str, str]
    seconds: int
    measured: dict[str, Measurement]


def number(value: float) -> str:
    """Three significant digits; whole numbers as they are.

    Example:
        >>> number(1.149), number(0.03125), number(1234.6), number(24.0)
        ('1.15', '0.0312', '1235', '24')
    """
    if value == int(value) or abs(value) >= 100:
        return f"{value:.0f}"
    return f"{value:#.3g}"


def duration(seconds: float) -> str:
    """Seconds, with a suitable unit.

    Example:
        >>> duration(1.24e-5), duration(0.25)
        ('12.4 us', '250 ms')
    """
    for unit, size in (("s", 1.0), ("ms", 1e-3)):
        if seconds >= size:
            return f"{number(seconds / size)} {unit}"
    return f"{number(seconds / 1e-6)} us"


# For the terminal


def result_line(workload: Workload, measurement: Measurement) -> str:
    """One workload: every library's number, and bitwright's spread."""
    found = [f"{library} {_told(measurement, library)}" for library in workload.libraries]
    spread = _spread([measurement.compared.get("bitwright")])
    told = f"{measurement.seconds:5.0f} s  {workload.title}: {', '.join(found)}"
    return f"{told} (bitwright {spread})" if spread else told


def row_lines(rows: Iterable[Row], run: Run) -> list[str]:
    """Every row: the number beside the budget, and whether it is met."""
    lines = [f"{'#':3} {'budget':>9} {'measured':>9} {'':6}  work"]
    for row in rows:
        cells = _cells(row, run)
        lines.append(f"{row.number:3} {cells['budget']:>9} {cells['bitwright']:>9} {cells['met']:6}  {row.work}")
    return lines


# The page


def page(run: Run | None) -> str:
    """The whole of docs/benchmarks.md; None before the first run."""
    if run is None:
        return "\n".join([INTRODUCTION, "Not run yet.\n", REPEATING, METHOD])
    tables = [part for section in SECTIONS for part in (_heading(section), _table(section, run))]
    return "\n".join([INTRODUCTION, _setting(run), BUDGETS, _budgets(run), REPEATING, METHOD, *tables, *_failures(run)])


def _setting(run: Run) -> str:
    machine, versions = (
        ", ".join(f"{name} {what}" for name, what in each.items()) for each in (run.machine, run.versions)
    )
    return f"Last run: {run.date}, in {run.seconds // 60} minutes. Machine: {machine}. Versions: {versions}.\n"


def _budgets(run: Run) -> str:
    header = ["#", "work", "budget", "bitwright", "quartiles", "met", *OTHERS]
    lines = [_line(header), _line(["---"] * len(header))]
    for row in ROWS:
        cells = _cells(row, run)
        lines.append(_line([row.number, row.work, *(cells[name] for name in header[2:])]))
    return "\n".join(lines) + "\n"


def _heading(section: Section) -> str:
    return f"## {section.title}\n\n{section.about}\n"


def _table(section: Section, run: Run) -> str:
    header = ["work", "float", "bitwright", "quartiles", *OTHERS]
    lines = [_line(header), _line(["---"] * len(header))]
    for key in section.workloads:
        workload, measurement = WORKLOADS[key], run.measured[key]
        title = f"{workload.title}, {workload.unit}" if workload.unit else workload.title
        told = {library: _told(measurement, library) for library in LIBRARIES}
        spread = _spread([measurement.compared.get("bitwright")])
        cells = [title, _base(workload, measurement), told["bitwright"], spread]
        lines.append(_line([*cells, *(told[library] for library in OTHERS)]))
    return "\n".join(lines) + "\n"


def _failures(run: Run) -> list[str]:
    """What the word "fails" stands for, the first line of each error."""
    lines = [
        f"- {library}, {WORKLOADS[key].title}: `{error.strip().splitlines()[0][:LONGEST]}`"
        for key, measurement in run.measured.items()
        for library, error in measurement.failures.items()
    ]
    return ["## What fails\n", "\n".join(lines) + "\n"] if lines else []


def _base(workload: Workload, measurement: Measurement) -> str:
    """Float's own number: in the workload's unit, else seconds or, where it is a count, bytes."""
    if measurement.base is None:
        return ""
    median = measurement.base.median
    if workload.unit:
        return number(median)
    return duration(median) if workload.repeats else f"{median:.0f} B"


def _cells(row: Row, run: Run) -> dict[str, str]:
    """The cells of a budget's line; several numbers are joined as ``1 / 2``."""
    measured = [run.measured[key] for key in row.workloads]
    cells = {library: _joined(_told(each, library) for each in measured) for library in LIBRARIES}
    own = [each.compared.get("bitwright") for each in measured]
    numbers = tuple(each.median for each in own if each is not None)
    cells["met"] = "no" if len(numbers) < len(own) or not row.met(numbers) else "yes"
    cells["budget"] = _joined(f"{limit:g}" for limit in row.limits)
    cells["quartiles"] = _spread(own)
    return cells


def _joined(cells: Iterable[str]) -> str:
    return " / ".join(each for each in cells if each)


def _told(measurement: Measurement, library: str) -> str:
    if library in measurement.failures:
        return "fails"
    return number(measurement.compared[library].median) if library in measurement.compared else ""


def _spread(found: Iterable[Summary | None]) -> str:
    spreads = [each for each in found if each is not None and each.rounds > 1]
    return _joined(f"{number(each.low)} to {number(each.high)}" for each in spreads)


def _line(cells: Iterable[str]) -> str:
    return f"| {' | '.join(cells)} |"


INTRODUCTION = """\
# Benchmarks

This page shows what quantized training costs compared with plain float torch and with other libraries. Every number is
a ratio to the same model in float, unless a row says otherwise; 1 means no overhead.
"""

BUDGETS = """\
## Budgets

Each row has the most that a piece of work may cost, and what it does cost. Missing a budget fails no test, because
timings vary; tests count modules, operations and saved bytes instead (`tests/test_cost.py`).
"""

REPEATING = """\
## How to repeat the benchmarks

```bash
make bench                              # everything, in about a quarter of an hour; rewrites this page
make bench ARGS="--rows 1,2b"           # some budgets, by number
make bench ARGS="--quick"               # all budgets, three rounds each: does everything run?
make bench ARGS="--no-brevitas"         # without Brevitas
python -m benchmarks.runtime            # exported W8A8 files in onnxruntime, for the README
```

`make bench` creates two virtual environments, `.venv/bench` and `.venv/brevitas`. It writes every number, with its
spread, to `out/bench/results.json`. Run nothing else at the same time, and have 12 GB of memory free.
"""

METHOD = """\
## How it is measured

- **Clock.** Everything runs on the CPU, on one thread. The clock is the CPU time of that thread (`time.thread_time`),
  which stands still while another process has the core: these are CPU seconds, not wall seconds. Other processes still
  affect caches and memory. Python's garbage collector is off during a sample, as in `timeit`.
- **Rounds.** In each round every library gives one sample, in random order, and each sample is divided by float's
  sample of the same round. A sample lasts at least 5 ms; shorter calls are repeated. The tables show the median of the
  rounds' ratios, with the quartiles as spread. Budgets take 7 to 31 rounds, as many as fit into 4 seconds; everything
  else takes 5 to 21 rounds in 1.5 seconds.
- **Processes.** Float, bitwright, `torch.ao.quantization` and torchao share a process. Brevitas pins a different
  version of `dependencies`, so it has its own environment and process. There it is compared with float, round by round
  in step with the first process.
- **Networks.** Every network is written once, in `benchmarks/models.py`; a library only makes its layers. Weights have
  one scale per tensor, from the largest magnitude. A training step is forward, loss, backward and SGD with momentum at
  a learning rate of 0, so that every step does the same arithmetic. "Learned" means that activation scales are
  parameters, as they are after calibration.
- **Single layers.** A step of a single layer (row 10) is forward and backward, to the input and the parameters, without
  an optimizer, as in the middle of a network.
- **Different work.** The other libraries do not always do the same work. torch.ao uses its fused fake-quant modules:
  activation scales are moving averages, nothing is learned, and biases stay float. torchao has one scale per output
  channel and per token, and quantizes linear layers only.
- **Input scale.** Learning the input's scale needs a gradient through the first layer that float training skips. Row 2b
  freezes that scale.
- **Peak memory** is the most that torch's allocator hands out during a step beyond what was allocated before it, from
  the profiler's record of allocations. Weights and momentum are allocated before, gradients are not.
- **Import** is the CPU time of a process that imports the library, minus that of a process that imports only torch.
- **1e7 elements** (40 MB): the C library maps fresh memory for every tensor, and page faults take most of the time, in
  `clone` too. The rows with 1e6 elements say more about the arithmetic.
- **Graphs** counts how often `torch.compile` calls its backend during the first 400 training steps, at batch 8.
- **Construction** with initialisation skipped: `nn.Linear.reset_parameters` does nothing, so that filling weights with
  random numbers doesn't hide the rest.
"""
