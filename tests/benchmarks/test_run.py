"""The command, and the process beside it."""

import io
import json

import pytest

from benchmarks import run
from benchmarks.catalog import WORKLOADS
from benchmarks.rows import ROWS
from benchmarks.worker import serve


def test_rows_are_chosen_by_number():
    assert [row.number for row in run.chosen_rows("14, 2b")] == ["14", "2b"]
    assert run.chosen_rows(None) == ROWS


def test_unknown_row_is_told():
    with pytest.raises(SystemExit) as raised:
        run.chosen_rows("1,99")
    assert str(raised.value).startswith("--rows: there is no row 99. There are 1, 2, 2b, 3,")


def test_everything_is_measured_once():
    keys = run.workloads_of(ROWS, whole=True)
    assert sorted(keys) == sorted(WORKLOADS)
    assert run.workloads_of(run.chosen_rows("18,16"), whole=False) == [
        "modules-linear",
        "modules-relu",
        "construct-relu",
    ]


def test_command_writes_numbers_and_leaves_the_page(tmp_path, monkeypatch, capsys):
    monkeypatch.setattr(run, "ROOT", tmp_path)
    assert run.main(["--rows", "18", "--quick", "--no-brevitas"]) == 0
    printed = capsys.readouterr().out
    assert "18      4 / 4" in printed
    assert "docs/benchmarks.md stays as it was" in printed
    written = json.loads((tmp_path / "out" / "bench" / "partial.json").read_text(encoding="utf-8"))
    assert written["measured"]["modules-linear"]["base"] == {"median": 1.0, "low": 1.0, "high": 1.0, "rounds": 1}
    assert written["versions"]["torch"]
    assert not (tmp_path / "docs").exists()


def test_worker_answers_calls():
    calls = [["begin", "modules-linear", []], ["prepared"], ["sample", "float"], ["sample", "nobody"], ["end"]]
    answers = io.StringIO()
    serve(io.StringIO("".join(json.dumps(call) + "\n" for call in calls)), answers)
    assert [json.loads(line) for line in answers.getvalue().splitlines()] == [
        {"returned": None},
        {"returned": {}},
        {"returned": 1},
        {"raised": "KeyError: 'nobody'"},
        {"returned": None},
    ]
