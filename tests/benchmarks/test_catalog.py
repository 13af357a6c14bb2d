"""The registries: every budget is measured, every measurement is shown."""

import pytest

from benchmarks.catalog import SECTIONS, WORKLOADS
from benchmarks.libraries import LIBRARIES
from benchmarks.rows import ROWS, Row

BUDGETS = {
    "1": (1.15,),
    "2": (1.55,),
    "2b": (1.25,),
    "3": (1.65,),
    "4": (1.40,),
    "5": (1.45, 1.12),
    "6": (1.5, 1.2),
    "7": (1.10,),
    "8": (131,),
    "9": (1.30, 1.03),
    "10": (1.5,),
    "11": (1.6,),
    "12": (1.0,),
    "13": (1.08,),
    "14": (2,),
    "15": (2.5,),
    "16": (0.12,),
    "17": (5.5,),
    "17b": (30,),
    "18": (4, 4),
    "19": (0.2,),
    "20": (0.14,),
    "21": (25,),
    "22": (1.8, 3.0),
    "23": (1.1, 1.1),
    "24": (1.2, 1.2, 1.2, 1.2),
    "25": (1.6, 1.6),
    "26": (9,),
    "27": (12, 18),
    "28": (5.5, 12),
    "29": (1.02,),
    "30": (0.5,),
    "31": (1.4,),
    "32": (5, 8, 8, 8, 12, 25),
    "33": (1.3, 1.3),
    "34": (200, 1000),
}


def test_every_budget_is_a_row():
    assert [(row.number, row.limits) for row in ROWS] == list(BUDGETS.items())


@pytest.mark.parametrize("row", ROWS, ids=lambda row: row.number)
def test_row_measures_bitwright(row):
    assert len(row.workloads) == len(row.limits)
    assert all("bitwright" in WORKLOADS[key].libraries for key in row.workloads)


def test_row_is_met_by_numbers_up_to_the_limit():
    row = Row("1", "work", ("a", "b"), (6, 5))
    assert row.met((6, 5))
    assert not row.met((6, 5.001))


def test_every_workload_is_in_one_table():
    shown = [key for section in SECTIONS for key in section.workloads]
    assert sorted(shown) == sorted(WORKLOADS)


def test_titles_tell_workloads_apart():
    titles = [workload.title for workload in WORKLOADS.values()]
    assert sorted(set(titles)) == sorted(titles)


def test_workloads_name_known_libraries():
    named = {library for workload in WORKLOADS.values() for library in workload.libraries}
    assert named == set(LIBRARIES) - {"float"}
