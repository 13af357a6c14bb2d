"""What the terminal and the page show."""

from pathlib import Path

import pytest

from benchmarks.catalog import SECTIONS, WORKLOADS
from benchmarks.measure import Measurement
from benchmarks.report import INTRODUCTION, METHOD, REPEATING, Run, duration, number, page, result_line, row_lines
from benchmarks.rows import ROWS
from benchmarks.timing import Summary

PAGE = Path(__file__).parents[2] / "docs" / "benchmarks.md"


def measurement(key):
    """Made-up numbers: bitwright at 1.25, others at 2, torchao failing."""
    compared = {library: Summary(2.0, 1.9, 2.1, 7) for library in WORKLOADS[key].libraries if library != "torchao"}
    failures = {"torchao": "ImportError: none\n  at line 1"} if "torchao" in WORKLOADS[key].libraries else {}
    return Measurement(compared | {"bitwright": Summary(1.25, 1.2, 1.3, 7)}, Summary(0.5, 0.5, 0.5, 7), failures, 3.0)


RUN = Run(
    "2026-01-31",
    {"processor": "Abacus", "cores": "2"},
    {"Python": "3.11.7", "torch": "2.13.0"},
    840,
    {key: measurement(key) for key in WORKLOADS},
)
LINES = page(RUN).splitlines()


@pytest.mark.parametrize(
    ("value", "text"),
    [
        (1.149, "1.15"),
        (1.0, "1"),
        (0.03125, "0.0312"),
        (24.04, "24.0"),
        (42.0, "42"),
        (1234.6, "1235"),
        (-0.01, "-0.0100"),
    ],
)
def test_numbers_have_three_digits(value, text):
    assert number(value) == text


@pytest.mark.parametrize(
    ("seconds", "text"), [(1.24e-5, "12.4 us"), (0.25, "250 ms"), (1.5, "1.50 s"), (9.994e-4, "999 us")]
)
def test_durations_have_a_unit(seconds, text):
    assert duration(seconds) == text


def test_budget_lines_of_the_page():
    assert "| # | work | budget | bitwright | quartiles | met | torch.ao | torchao | Brevitas |" in LINES
    assert "| 1 | LeNet-5 batch 64, training step, W4 | 1.15 | 1.25 | 1.20 to 1.30 | no | 2 |  | 2 |" in LINES
    modules = "| 18 | modules in a QuantLinear / in an activation layer | 4 / 4 | 1.25 / 1.25 |"
    assert f"{modules} 1.20 to 1.30 / 1.20 to 1.30 | yes | 2 / 2 | fails | 2 / 2 |" in LINES


def test_lines_of_the_other_tables():
    linear = "| Linear 1024x1024, batch 64, W8A8, step | 500 ms | 1.25 | 1.20 to 1.30 | 2 | fails | 2 |"
    assert linear in LINES
    memory = "| ResNet-18, W4A4, peak memory of a training step, MB | 0.500 | 1.25 | 1.20 to 1.30 | 2 |  | 2 |"
    assert memory in LINES


def test_page_has_every_row_and_every_workload():
    tables = [line for line in LINES if line.startswith("| ") and not line.startswith(("| # |", "| work |", "| --- |"))]
    assert len(tables) == len(ROWS) + len(WORKLOADS)
    assert [line for line in LINES if line.startswith("## ")] == [
        "## Budgets",
        "## How to repeat the benchmarks",
        "## How it is measured",
        *(f"## {section.title}" for section in SECTIONS),
        "## What fails",
    ]


def test_page_tells_the_errors():
    assert "- torchao, MLP 3 x 512, W4A4, training step: `ImportError: none`" in LINES
    sound = {key: Measurement(each.compared, each.base, {}, 1.0) for key, each in RUN.measured.items()}
    assert "## What fails" not in page(Run(RUN.date, RUN.machine, RUN.versions, RUN.seconds, sound))


def test_page_says_what_it_was_measured_on():
    machine, versions = "Machine: processor Abacus, cores 2.", "Versions: Python 3.11.7, torch 2.13.0."
    assert f"Last run: 2026-01-31, in 14 minutes. {machine} {versions}" in LINES


def test_terminal_shows_the_number_beside_the_budget():
    assert row_lines(ROWS[:2], RUN) == [
        "#      budget  measured         work",
        "1        1.15      1.25 no      LeNet-5 batch 64, training step, W4",
        "2        1.55      1.25 yes     ... W4A4, all scales learned",
    ]


def test_terminal_shows_each_result():
    line = "    3 s  MLP 3 x 512, W4A4, training step: bitwright 1.25, torch.ao 2, Brevitas 2, torchao fails"
    assert result_line(WORKLOADS["mlp-step"], RUN.measured["mlp-step"]) == f"{line} (bitwright 1.20 to 1.30)"


def test_a_failure_of_ours_misses_the_budget():
    failed = {**RUN.measured, "lenet-w4-step": Measurement({}, None, {"bitwright": "TypeError"}, 1.0)}
    run = Run(RUN.date, RUN.machine, RUN.versions, RUN.seconds, failed)
    assert row_lines(ROWS[:1], run)[1] == "1        1.15     fails no      LeNet-5 batch 64, training step, W4"


def test_stored_page_is_of_this_report():
    """Its words are; its numbers are those of the last run."""
    stored = PAGE.read_text(encoding="utf-8")
    assert stored.startswith(INTRODUCTION)
    assert REPEATING in stored
    assert METHOD in stored
