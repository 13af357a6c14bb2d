import pytest

pytest.importorskip("rich.console")


@pytest.mark.slow
def test_narrow_accumulators(example, needs_digits, capsys):
    assert example("accumulators").main(["--fast", "--seeds", "1", "--bits", "12"]) == 0
    rows = [line for line in capsys.readouterr().out.splitlines() if "A2Q" in line and "%" in line]
    assert len(rows) == 3
    for row in rows:
        assert "12 bits" in row.partition("%")[2]
        assert "0 of 1" in row
