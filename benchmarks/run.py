"""``make bench``: measure everything, print every budget, write out/bench/results.json and docs/benchmarks.md."""

import argparse
import json
import logging
import sys
import time
import warnings
from dataclasses import asdict
from datetime import date
from pathlib import Path

import torch

from .catalog import SECTIONS, WORKLOADS
from .environment import machine
from .libraries import LIBRARIES, OWN_PROCESS
from .measure import BRIEF, FULL, QUICK, Measurement, Place, measure
from .report import Run, page, result_line, row_lines
from .rows import ROWS, Row
from .station import RemoteStation, Station

__all__ = ["chosen_rows", "main", "workloads_of"]

ROOT = Path(__file__).parents[1]


def main(arguments: list[str]) -> int:
    """Run the benchmarks; 1 if bitwright failed at one (a missed budget is no failure)."""
    options = _parser().parse_args(arguments)
    rows = chosen_rows(options.rows)
    whole = not (options.rows or options.quick)
    local = Station(tuple(library for library in LIBRARIES if library not in ("float", OWN_PROCESS)))
    remote = None if options.no_brevitas else RemoteStation(options.brevitas_python)
    places: list[Place] = [local]
    if remote is not None:
        places.append(remote)
    versions = {library: number for place in reversed(places) for library, number in place.versions().items()}

    begun = time.monotonic()
    measured: dict[str, Measurement] = {}
    budgeted = {key for row in rows for key in row.workloads}
    for key in workloads_of(rows, whole):
        effort = QUICK if options.quick else FULL if key in budgeted else BRIEF
        measured[key] = measure(key, WORKLOADS[key], places, effort)
        print(result_line(WORKLOADS[key], measured[key]), flush=True)
    if remote is not None:
        remote.close()
    took = time.monotonic() - begun

    run = Run(date.today().isoformat(), machine(), versions, round(took), measured)
    print("\n" + "\n".join(row_lines(rows, run)))
    folder = ROOT / "out" / "bench"
    folder.mkdir(parents=True, exist_ok=True)
    file = "results.json" if whole else "partial.json"
    (folder / file).write_text(json.dumps(asdict(run), indent=1), encoding="utf-8")
    print(f"\n{took:.0f} s; numbers in out/bench/{file}")
    if whole and remote is not None:
        (ROOT / "docs" / "benchmarks.md").write_text(page(run), encoding="utf-8")
        print("docs/benchmarks.md is written anew")
    else:
        print("docs/benchmarks.md stays as it was: this was not the whole run")
    return int(any("bitwright" in each.failures for each in measured.values()))


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(prog="python -m benchmarks.run", description=__doc__)
    parser.add_argument("--rows", help="only these budgets, by number: 1,2b,14")
    parser.add_argument(
        "--quick", action="store_true", help="only the budgets, three rounds each: does everything run?"
    )
    parser.add_argument("--no-brevitas", action="store_true", help="without Brevitas and its process")
    parser.add_argument(
        "--brevitas-python", default=sys.executable, help="the interpreter that Brevitas is installed in"
    )
    return parser


def chosen_rows(numbers: str | None) -> tuple[Row, ...]:
    """The rows of a comma-separated list; all of them for None.

    Raises:
        SystemExit: an unknown row number.
    """
    if numbers is None:
        return ROWS
    wanted = [number.strip() for number in numbers.split(",")]
    known = {row.number: row for row in ROWS}
    for number in wanted:
        if number not in known:
            sys.exit(f"--rows: there is no row {number}. There are {', '.join(known)}.")
    return tuple(known[number] for number in wanted)


def workloads_of(rows: tuple[Row, ...], whole: bool) -> list[str]:
    """The workloads to measure, each once: those of the rows, then all others if ``whole``."""
    keys = [key for row in rows for key in row.workloads]
    keys += [key for section in SECTIONS for key in section.workloads if whole]
    return list(dict.fromkeys(keys))


if __name__ == "__main__":
    torch.set_num_threads(1)
    warnings.simplefilter("ignore")  # of other libraries, like what they log
    logging.disable(logging.WARNING)
    sys.exit(main(sys.argv[1:]))
