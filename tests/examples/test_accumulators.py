import pytest

pytest.importorskip("rich.console")


@pytest.mark.slow
def test_narrow_accumulators(example, needs_digits, capsys):
    assert example("accumulators").main(["--fast", "--seeds", "1", "--bits", "12"]) == 0
    rows = [line.split() for line in capsys.readouterr().out.splitlines() if "A2Q" in line and "of 1" in line]
    assert len(rows) == 2
    for row in rows:
        assert "12" in row
        assert " ".join(row[-4:-1]) == "0 of 1"


@pytest.mark.slow
def test_overflow_is_told(example, needs_digits, monkeypatch, capsys):
    module = example("accumulators")
    monkeypatch.setattr(module, "Int8WeightPerChannelA2Q", lambda accumulator_bit_width: module.UNCONSTRAINED)
    monkeypatch.setattr(module, "UNCONSTRAINED", module.Int8WeightPerChannelLearned, raising=False)
    assert module.main(["--fast", "--seeds", "1", "--bits", "8"]) == 1
