"""What is printed and written: lines for the terminal, the page for docs/benchmarks.md."""

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
    """Seconds in a unit that suits them.

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
    """The cells of a budget's line; several numbers are put as ``1 / 2``."""
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

What quantized training costs beside plain float torch, and beside other libraries that do it. Every number is a ratio
to the same model in float, unless a row says otherwise: 1 would be free.
"""

BUDGETS = """\
## Budgets

What each piece of work may cost at most, and what it does. Missing a budget fails no test: tests count modules,
operations and saved bytes instead (`tests/test_cost.py`).
"""

REPEATING = """\
## Repeat it

```bash
make bench                              # everything, in about a quarter of an hour; writes this page anew
make bench ARGS="--rows 1,2b"           # some budgets, by number
make bench ARGS="--quick"               # all budgets, three rounds each: does everything run?
make bench ARGS="--no-brevitas"         # without Brevitas
```

It makes two virtual environments of its own, `.venv/bench` and `.venv/brevitas`, and writes every number, with its
spread, to `out/bench/results.json`. Let nothing else run meanwhile, and have 12 GB of memory free.
"""

METHOD = """\
## How it is measured

- On the CPU, with one thread. The clock is the CPU time of that thread (`time.thread_time`), which stands still while
  another process has the core; these are CPU seconds, not wall seconds. What other processes do to caches and memory
  still counts. Python's garbage collector rests during a sample, as in `timeit`.
- In rounds. In each round every library gives one sample, in random order, and each sample is divided by float's of
  the same round. A sample lasts 5 ms or longer: shorter calls are repeated. What is shown is the median of the
  rounds' ratios, with the quartiles as spread. Budgets: 7 to 31 rounds, as many as fit into 4 seconds; everything
  else: 5 to 21 rounds in 1.5 seconds.
- Float, bitwright, `torch.ao.quantization` and torchao share a process. Brevitas pins another version of
  `dependencies` than bitwright, so it has an environment and a process of its own, and is compared with float in that
  process, round by round beside the first.
- Every network is written once, in `benchmarks/models.py`; a library only makes its layers. Weights have one scale a
  tensor, from the largest magnitude. A training step is forward, loss, backward and SGD with momentum, at a learning
  rate of 0: the same arithmetic at every step. "Learned": activation scales are parameters, as they are once
  statistics were collected.
- A step of a single layer (row 10) is forward and backward, to the input and the parameters, without an optimizer, as
  in the middle of a network.
- The others do not always do the same work. torch.ao: the fused fake-quant modules; activation scales follow a moving
  average, nothing is learned, biases stay float. torchao: a scale for each output channel and each token, linear
  layers only.
- A learned scale at the network's input makes the first layer compute a gradient that the float network never needs;
  row 2b is without it.
- Peak memory: the most bytes that torch's allocator has given out during a step beyond those before it, from the
  profiler's record of allocations; weights and momentum are there before, gradients are not.
- Import: CPU time of a process that imports the library, less that of one which imports torch alone.
- At 1e7 elements (40 MB) the C library maps fresh memory for every tensor, and page faults take most of the time, in
  `clone` too: the lines of 1e6 elements say more about the arithmetic.
- Graphs: how often `torch.compile` calls its backend during 400 training steps from the first, at batch 8.
- Construction with initialisation skipped: `nn.Linear.reset_parameters` does nothing, so that filling weights with
  random numbers doesn't hide the rest.
"""
