"""pareto: what budgets buy."""

import json
import re
import sys

import pytest

from bitwright.graph import Candidate, GraphError, SensitivityTable, allocate_bits, pareto

pytest.importorskip("scipy")

DAMAGES = {"a": (0.1, 0.01, 0.0), "b": (0.2, 0.02, 0.0), "c": (0.04, 0.04, 0.04)}
TABLE = SensitivityTable(
    "Net",
    "sqnr",
    ("a", "b", "c"),
    ("2", "4", "8"),
    tuple(
        Candidate(path, str(bits), damage, 1.0, 10, 10.0 * bits)
        for path, own in DAMAGES.items()
        for bits, damage in zip((2, 4, 8), own, strict=True)
    ),
)


def test_each_point_is_the_best_for_what_it_costs():
    found = pareto(TABLE, points=31)
    assert [point.spent for point in found] == [60.0, 80.0, 100.0, 140.0, 180.0]
    assert [round(point.damage, 3) for point in found] == [0.34, 0.16, 0.07, 0.05, 0.04]
    assert [allocate_bits(TABLE, point.spent).settings == point.settings for point in found] == [True] * 5
    assert (found[0].settings, found[-1].settings) == (dict.fromkeys("abc", "2"), {"a": "8", "b": "8", "c": "2"})


def test_it_prints_and_is_data():
    found = pareto(TABLE, "average_bits", points=2)
    assert str(found) == "\n".join(
        ["average_bits  bits  predicted", "           2     2     4.7 dB", "           6     6    14.0 dB"]
    )
    assert [len(point["choices"]) for point in json.loads(json.dumps(found.as_dict()))["points"]] == [3, 3]
    assert len(found) == 2


def test_plots():
    pytest.importorskip("matplotlib")
    axes = pareto(TABLE, points=2).plot().axes[0]
    assert (axes.get_xlabel(), axes.get_ylabel()) == ("weight_bits", "predicted SQNR of the outputs in dB")
    assert axes.lines[0].get_xdata().tolist() == [60.0, 180.0]
    assert [text.get_text() for text in TABLE.plot().axes[0].texts] == ["1.0"] * 9


def test_files_of_tables(tmp_path):
    TABLE.save(tmp_path / "table.html")
    assert '<td class="number">1.0</td>' in (tmp_path / "table.html").read_text(encoding="utf-8")
    TABLE.save(tmp_path / "table.json")
    assert json.loads((tmp_path / "table.json").read_text(encoding="utf-8")) == TABLE.as_dict()
    message = "SensitivityTable.save: 'table.txt' must end in .html or .json, which says the format."
    with pytest.raises(GraphError, match=f"^{re.escape(message)}$"):
        TABLE.save("table.txt")


@pytest.mark.parametrize(
    ("call", "message"),
    [
        (lambda: pareto(TABLE, points=1), "pareto: points=1 is not possible: expected a whole number from 2."),
        (
            lambda: pareto({}),
            "pareto: table={} is no table. Pass what sensitivity(model, data, ...) returned.",
        ),
    ],
)
def test_what_is_refused(call, message):
    with pytest.raises(GraphError, match=f"^{re.escape(message)}$"):
        call()


def test_without_matplotlib(monkeypatch):
    monkeypatch.setitem(sys.modules, "matplotlib.figure", None)
    for call, asked in ((TABLE.plot, "SensitivityTable.plot"), (pareto(TABLE, points=2).plot, "Pareto.plot")):
        message = f"{asked} needs the package matplotlib: pip install bitwright[plot]"
        with pytest.raises(GraphError, match=f"^{re.escape(message)}$"):
            call()


def test_tables_find_their_candidates():
    assert TABLE["b", 4] is TABLE["b", "4"] is TABLE.of("b")[1]
    assert (TABLE.worst, TABLE.weights, len(TABLE)) == (("b", "c", "a"), 30, 9)
    with pytest.raises(KeyError, match=re.escape("('b', 3)")):
        TABLE["b", 3]
